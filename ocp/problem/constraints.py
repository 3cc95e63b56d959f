"""Constraints on states, controls and parameters, as functions whose values are vectors, and their multipliers."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from functools import cached_property
from typing import Any

from torch import Tensor

from ocp.problem.boundary import call, check_order
from ocp.problem.equation import with_parameters
from ocp.problem.functions import Mapped
from ocp.problem.parameters import ParameterSet, takes_parameters

__all__ = ["Constraints", "Multipliers", "as_constraints"]


@dataclass(frozen=True, eq=False)
class Constraints:
    """The constraints of a problem; those that it does not have are None.

    Attributes
    ----------
    path : callable
        c(t, x, v), which must not be positive; v is (u, q) if the equation of the problem depends on q, else u.
    equality, inequality : callable
        g(x, q) at the final time, which must be zero or not positive.
    """

    path: Callable[[Any, Tensor, Tensor], Tensor] | None = None
    equality: Callable[[Tensor, Tensor], Tensor] | None = None
    inequality: Callable[[Tensor, Tensor], Tensor] | None = None

    def __bool__(self) -> bool:
        return not (self.path is None and self.equality is None and self.inequality is None)

    def along(self, t: Tensor, x: Tensor, v: Tensor) -> Tensor:
        """c at n points, shape (n, k), for times (n,), states (n, batch, *state) and inputs (n, m) or (n, m + s)."""
        mapped = self._mapped
        if mapped.agreed is None:
            mapped.agrees_near(x[0], v[0])
        return mapped(t, x, v)

    @cached_property
    def _mapped(self) -> Mapped:
        assert self.path is not None
        return Mapped(self.path, "path_constraint")


@dataclass(frozen=True, eq=False)
class Multipliers:
    """Multipliers of the constraints; those of constraints that a problem does not have are None.

    The derivative of J + <equality, g> + <inequality, g> + h sum_k <path_k, c_k> vanishes at an optimum, except where a
    bound holds it back; ``path`` and ``inequality`` are not negative, and zero where the constraint has room.

    Attributes
    ----------
    path : Tensor
        Shape (N, k), a function of time: the multipliers of c at t_0, ..., t_{N-1} as densities, divided by the step.
    equality, inequality : Tensor
        Of the entries of g at the final time.
    """

    path: Tensor | None = None
    equality: Tensor | None = None
    inequality: Tensor | None = None


def as_constraints(
    path: Callable[..., Tensor] | None,
    equality: Callable[..., Tensor] | None,
    inequality: Callable[..., Tensor] | None,
    control_size: int,
    parameters: ParameterSet,
) -> Constraints:
    """The constraints from a user's functions."""
    if path is not None:
        for names in (("t", "x", "u"), ("t", "x", "u", "q")):
            check_order("path_constraint", path, *names)
    joined = None if path is None else with_parameters(path, control_size, parameters)

    def along(t: Any, x: Tensor, v: Tensor) -> Tensor:
        assert joined is not None
        return _vector("path_constraint", call("path_constraint", joined, t=t, x=x, u=v))

    def at_end(name: str, function: Callable[..., Tensor] | None) -> Callable[[Tensor, Tensor], Tensor] | None:
        if function is None:
            return None
        check_order(name, function, "x", "q")
        takes = takes_parameters(function, 1)

        def value(x: Tensor, q: Tensor) -> Tensor:
            arguments = {"x": x, "q": parameters(q)} if takes else {"x": x}
            return _vector(name, call(name, function, **arguments))

        return value

    return Constraints(
        None if path is None else along,
        at_end("terminal_equality", equality),
        at_end("terminal_inequality", inequality),
    )


def _vector(name: str, value: Any) -> Tensor:
    """The values in one vector."""
    if not isinstance(value, Tensor):
        raise ValueError(f"{name}: expected a tensor, got {type(value).__name__}")
    return value.reshape(-1)
