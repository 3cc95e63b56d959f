"""What the steps of an integrator see of a problem: pieces that take all that is fixed during a step in one vector.

That vector is the control u of the step or, where dynamics or running cost depend on the parameters q or the final time
is free, (u, q). So integrators and sweeps know one kind of argument. A free final time T turns x' = f(t, x, u, q) on
[0, T] into x' = T f(T s, x, u, q) on [0, 1], which has the same steps.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from ocp.problem.costs import RunningFunction
from ocp.problem.dynamics import FunctionDynamics
from ocp.problem.parameters import ParameterSet, takes_parameters
from ocp.problem.protocols import Dynamics, RunningCost, Traceable, capability_applies
from ocp.problem.shapes import BatchState, Cotangent, Scalar, StepControl

__all__ = ["Equation", "as_equation", "with_parameters"]


@dataclass(frozen=True, eq=False)
class Equation:
    """A `StateEquation` on the vector that is fixed during a step.

    Attributes
    ----------
    dynamics, running_cost
        The pieces.
    control_size, parameter_size : int
        The numbers of u and q in the vector; 0 for q if the pieces do not depend on it.
    """

    dynamics: Dynamics
    running_cost: RunningCost | None
    control_size: int
    parameter_size: int = 0


def as_equation(
    dynamics: Dynamics, running_cost: RunningCost | None, parameters: ParameterSet, more: Callable[..., Any] | None
) -> Equation:
    """The equation of a problem; ``more`` is a path constraint, which may depend on the parameters, too.

    Raises
    ------
    ValueError
        If the final time is free and a piece is neither a plain function nor made of torch operations.
    """
    m, f, L = dynamics.control_size, dynamics, running_cost
    given = {"dynamics": _function(f), "running_cost": _function(L), "path_constraint": more}
    depends = any(takes_parameters(function, 3) for function in given.values() if function is not None)
    if not (depends or parameters.free_horizon):
        return Equation(f, L, m)
    size = m + parameters.size
    if parameters.free_horizon:
        given |= {name: _traced(name, piece) for name, piece in (("dynamics", f), ("running_cost", L))}
    function, integrand = given["dynamics"], given["running_cost"]
    f = _OfControl(f, size) if function is None else FunctionDynamics(_rate(function, m, parameters), size)
    if L is not None:
        rate = None if integrand is None else _rate(integrand, m, parameters)
        L = _CostOfControl(L, m) if rate is None else RunningFunction(rate)
    return Equation(f, L, m, parameters.size)


def with_parameters(
    function: Callable[..., Tensor], control_size: int, parameters: ParameterSet
) -> Callable[[Any, Tensor, Tensor], Tensor]:
    """A function of (t, x, u) or (t, x, u, q) as one of (t, x, (u, q)); t is a part of the final time if that is free.

    ``control_size`` is m.
    """
    takes = takes_parameters(function, 3)

    def joined(t: Any, x: Tensor, v: Tensor) -> Tensor:
        u, q = v[:control_size], v[control_size:]
        t = t * parameters.duration(q) if parameters.free_horizon else t
        return function(t, x, u, parameters(q)) if takes else function(t, x, u)

    return joined


def _rate(function: Callable[..., Tensor], m: int, parameters: ParameterSet) -> Callable[..., Tensor]:
    """The same for a function that is integrated over time."""
    joined = with_parameters(function, m, parameters)
    if not parameters.free_horizon:
        return joined
    return lambda t, x, v: parameters.duration(v[m:]) * joined(t, x, v)


def _function(piece: object) -> Callable[..., Tensor] | None:
    return piece.function if isinstance(piece, FunctionDynamics | RunningFunction) else None


def _traced(name: str, piece: Any) -> Callable[..., Tensor] | None:
    """A piece as a function that autograd can follow, so that it can be differentiated by the final time."""
    if piece is None or _function(piece) is not None:
        return _function(piece)
    methods = ("__call__", "vjp") if isinstance(piece, Dynamics) else ("__call__", "derivative")
    traceable = capability_applies(piece, "supports_autograd", *methods) and isinstance(piece, Traceable)
    if not (traceable and piece.supports_autograd):
        raise ValueError(
            f"{name}: expected a function with a free horizon, since derivatives by the final time are needed, "
            f"got {type(piece).__name__}"
        )
    return lambda t, x, u: piece(t, x, u)


@dataclass(frozen=True, eq=False)
class _OfControl:
    """Dynamics with derivatives of their own, on (u, q) although they depend only on u."""

    dynamics: Any
    control_size: int

    def _split(self, v: Tensor) -> tuple[Tensor, Tensor]:
        m = self.dynamics.control_size
        return v[:m], v[m:]

    def __call__(self, t: float, x: BatchState, u: StepControl) -> BatchState:
        value: Tensor = self.dynamics(t, x, self._split(u)[0])
        return value

    def vjp(self, t: float, x: BatchState, u: StepControl, p: BatchState) -> Cotangent:
        u, q = self._split(u)
        px, pu = self.dynamics.vjp(t, x, u, p)
        return px, torch.cat((pu, torch.zeros_like(q)))

    def jvp(self, t: float, x: BatchState, u: StepControl, dx: BatchState, du: StepControl) -> BatchState:
        tangent: Tensor = self.dynamics.jvp(t, x, self._split(u)[0], dx, self._split(du)[0])
        return tangent

    def hvp(self, t: float, x: BatchState, u: StepControl, p: BatchState, dx: BatchState, du: StepControl) -> Cotangent:
        u, q = self._split(u)
        hx, hu = self.dynamics.hvp(t, x, u, p, dx, self._split(du)[0])
        return hx, torch.cat((hu, torch.zeros_like(q)))


@dataclass(frozen=True, eq=False)
class _CostOfControl:
    """A running cost with derivatives of its own, on (u, q) although it depends only on u."""

    cost: Any
    control_size: int

    def _split(self, v: Tensor) -> tuple[Tensor, Tensor]:
        return v[: self.control_size], v[self.control_size :]

    def __call__(self, t: float, x: BatchState, u: StepControl) -> Scalar:
        value: Tensor = self.cost(t, x, self._split(u)[0])
        return value

    def derivative(self, t: float, x: BatchState, u: StepControl) -> Cotangent:
        u, q = self._split(u)
        Lx, Lu = self.cost.derivative(t, x, u)
        return Lx, torch.cat((Lu, torch.zeros_like(q)))

    def hvp(self, t: float, x: BatchState, u: StepControl, dx: BatchState, du: StepControl) -> Cotangent:
        u, q = self._split(u)
        Lhx, Lhu = self.cost.hvp(t, x, u, dx, self._split(du)[0])
        return Lhx, torch.cat((Lhu, torch.zeros_like(q)))

    def take(self, indices: Tensor) -> _CostOfControl:
        return _CostOfControl(self.cost.take(indices), self.control_size)
