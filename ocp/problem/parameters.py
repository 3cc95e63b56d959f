"""Parameters q that do not depend on time: their names, shapes, starts and bounds, and views of them in one vector."""

from __future__ import annotations

import inspect
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from functools import cached_property, reduce
from itertools import accumulate, pairwise
from math import inf, prod
from typing import Any

import torch
from torch import Tensor

from ocp.problem.boundary import data, uncompiled

__all__ = ["Named", "Parameter", "ParameterSet", "as_parameters", "check_arguments", "takes_parameters"]

#: The name under which functions find a free final time.
HORIZON = "horizon"


@dataclass(frozen=True, eq=False)
class Parameter:
    """A number or tensor that does not depend on time and is to be found, with its start and its bounds.

    Parameters
    ----------
    start : float or Tensor
        The initial guess, of any shape.
    lower, upper : float or Tensor, optional
        Bounds, each a number or of the shape of the start; by default, none.

    Raises
    ------
    TypeError, ValueError
        If something is no number or tensor, is not finite, has another shape, or if nothing lies between the bounds.

    Examples
    --------
    >>> Parameter(1.2, lower=0.1).start
    tensor(1.2000, dtype=torch.float64)
    """

    start: Tensor | float
    lower: Tensor | float | None = None
    upper: Tensor | float | None = None
    #: The type of a start that was given as a tensor; numbers take that of the problem.
    dtype: torch.dtype | None = field(init=False, repr=False)

    def __post_init__(self) -> None:
        start = data("start", _tensor(self.start), "a number or a tensor")
        typed = isinstance(self.start, Tensor) and start.is_floating_point()
        start = start if start.is_floating_point() else start.double()
        lower, upper = (_bound(n, b, start) for n, b in (("lower", self.lower), ("upper", self.upper)))
        if lower is not None and upper is not None and not bool((lower <= upper).all()):
            raise ValueError(f"lower, upper: expected lower <= upper, got {self.lower} and {self.upper}")
        vars(self).update(start=start, lower=lower, upper=upper, dtype=start.dtype if typed else None)


def _tensor(number: Any) -> Any:
    return torch.tensor(float(number), dtype=torch.float64) if isinstance(number, int | float) else number


def _bound(name: str, bound: Any, start: Tensor) -> Tensor | None:
    """A bound of the shape of the start."""
    numbers = _tensor(bound)
    if numbers is None or (isinstance(numbers, Tensor) and numbers.ndim == 0 and bool(numbers.isinf())):
        return None
    numbers = data(name, numbers, "a number or a tensor").to(torch.promote_types(numbers.dtype, start.dtype))
    if numbers.shape not in ((), start.shape):
        raise ValueError(f"{name}: expected a number or the shape {tuple(start.shape)}, got {tuple(numbers.shape)}")
    expanded: Tensor = numbers.expand(start.shape)
    return expanded


class Named(dict[str, Tensor]):
    """Parameters by their names: ``q["mass"]``, or ``q.mass``."""

    def __getattr__(self, name: str) -> Tensor:
        try:
            return self[name]
        except KeyError as error:
            raise AttributeError(*error.args) from None

    def __missing__(self, name: str) -> Tensor:
        raise KeyError(f"expected one of the parameters {', '.join(self)}, got {name!r}")


@dataclass(frozen=True, eq=False)
class ParameterSet:
    """All parameters of a problem, in one vector of s numbers.

    Attributes
    ----------
    of : mapping
        Each `Parameter` by its name. The name is empty if they are one vector that functions get as it is.
    """

    of: Mapping[str, Parameter]

    @property
    def named(self) -> bool:
        """Whether functions get them by name."""
        return "" not in self.of

    @cached_property
    def slices(self) -> dict[str, slice]:
        """Where each is in the vector."""
        ends = accumulate((prod(_start(p).shape) for p in self.of.values()), initial=0)
        return {name: slice(*pair) for name, pair in zip(self.of, pairwise(ends), strict=True)}

    @cached_property
    def size(self) -> int:
        """s, the length of the vector."""
        return sum(_start(p).numel() for p in self.of.values())

    @cached_property
    def start(self) -> Tensor:
        """The starts, shape (s,)."""
        return self._joined([_start(p) for p in self.of.values()])

    @property
    def dtype(self) -> torch.dtype:
        """The type of the starts that were given as tensors, or the default type."""
        found = [p.dtype for p in self.of.values() if p.dtype is not None]
        return reduce(torch.promote_types, found) if found else torch.get_default_dtype()

    def bounds(self, like: Tensor) -> tuple[Tensor, Tensor]:
        """Lower and upper bounds, of shape (s,), infinite where there is none, with dtype and device of ``like``."""
        lower = [torch.full_like(_start(p), -inf) if p.lower is None else p.lower for p in self.of.values()]
        upper = [torch.full_like(_start(p), inf) if p.upper is None else p.upper for p in self.of.values()]
        return self._joined(lower).to(like), self._joined(upper).to(like)

    @property
    def bounded(self) -> bool:
        """Whether any has a bound."""
        return any(b is not None for p in self.of.values() for b in (p.lower, p.upper))

    @property
    def free_horizon(self) -> bool:
        """Whether the final time is one of them."""
        return HORIZON in self.of

    def duration(self, q: Tensor) -> Tensor:
        """The final time, shape (), if it is free."""
        return q[self.slices[HORIZON]].view(())

    def __call__(self, q: Tensor) -> Tensor | Named:
        """What functions get for the vector: views of it by name, or the vector itself."""
        if not self.named:
            return q
        return Named({name: q[s].view(_start(self.of[name]).shape) for name, s in self.slices.items()})

    def _joined(self, parts: list[Any]) -> Tensor:
        return torch.cat([part.reshape(-1) for part in parts]) if parts else torch.zeros(0)


def _start(parameter: Parameter) -> Tensor:
    assert isinstance(parameter.start, Tensor)
    return parameter.start


def as_parameters(parameters: Any, horizon: float | Parameter) -> ParameterSet:
    """The parameters from a number of them, a mapping or None; a free final time is the last one.

    Raises
    ------
    TypeError, ValueError
        If they are something else, or a name is no identifier, or taken.
    """
    if isinstance(parameters, ParameterSet):
        parameters = {name: p for name, p in parameters.of.items() if name != HORIZON}
    if isinstance(parameters, int) and not isinstance(parameters, bool) and parameters >= 0:
        parameters = {"": Parameter(torch.zeros(parameters, dtype=torch.int64))} if parameters else {}
    if parameters is not None and not isinstance(parameters, Mapping):
        raise TypeError(
            "parameters: expected a mapping from names to starts, such as {'mass': 1.2}, or an integer >= 0, the "
            f"number of parameters, got {parameters!r}"
        )
    found: dict[str, Parameter] = {}
    for name, start in (parameters or {}).items():
        if not isinstance(name, str) or name == HORIZON or (name and not name.isidentifier()):
            raise ValueError(
                f"parameters: expected names that are identifiers other than {HORIZON!r}, which is that of a free "
                f"final time, got {name!r}"
            )
        try:
            found[name] = start if isinstance(start, Parameter) else Parameter(start)
        except (TypeError, ValueError) as error:
            raise type(error)(f"parameters: {name}: {error}") from error
    if isinstance(horizon, Parameter):
        if "" in found:
            raise ValueError("parameters: expected a mapping from names to starts with a free horizon, got a number")
        found[HORIZON] = horizon
    return ParameterSet(found)


def takes_parameters(function: Callable[..., Any], arguments: int) -> bool:
    """Whether a function of ``arguments`` other arguments also takes the parameters q, as its signature says."""
    found = _positional(function)
    if len(found) <= arguments:
        return len(found) == arguments and _has_more(function)  # as in Phi(x, *q)
    # A default value marks a constant that a function carries along, unless it is called q.
    return found[arguments].default is inspect.Parameter.empty or found[arguments].name == "q"


def check_arguments(name: str, function: Callable[..., Any], arguments: int) -> None:
    """Raise a ``ValueError`` if a function takes parameters, for a problem without any."""
    if takes_parameters(function, arguments) and not _has_more(function):
        names = ", ".join(p.name for p in _positional(function))
        raise ValueError(
            f"parameters: expected some for {name}, which takes {arguments + 1} arguments ({names}), got none"
        )


def _positional(function: Callable[..., Any]) -> list[inspect.Parameter]:
    kinds = (inspect.Parameter.POSITIONAL_ONLY, inspect.Parameter.POSITIONAL_OR_KEYWORD)
    return [p for p in _signature(function) if p.kind in kinds]


def _has_more(function: Callable[..., Any]) -> bool:
    """Whether a function takes any number of arguments."""
    return any(p.kind is inspect.Parameter.VAR_POSITIONAL for p in _signature(function))


def _signature(function: Callable[..., Any]) -> list[inspect.Parameter]:
    try:
        return list(inspect.signature(uncompiled(function)).parameters.values())
    except (TypeError, ValueError):  # it has no signature, as some built-in functions
        return []
