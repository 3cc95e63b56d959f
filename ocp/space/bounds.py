"""Bounds on the control as functions of time, and as a box of flat controls on one grid."""

from __future__ import annotations

from dataclasses import dataclass
from math import inf
from typing import Any

import torch
from torch import Tensor

from ocp.space.control import ControlSpace, TimeFunction, at_midpoints

__all__ = ["Bounds", "Box", "as_bounds", "feasible", "masked"]


@dataclass(frozen=True, eq=False)
class Box:
    """The flat controls between ``lower`` and ``upper``, of shape (N m + s,) and infinite where there is no bound."""

    lower: Tensor
    upper: Tensor

    def project(self, u: Tensor) -> Tensor:
        """The nearest control in the box; a control that lies in it is returned as it is."""
        return u if bool(((u >= self.lower) & (u <= self.upper)).all()) else u.clamp(self.lower, self.upper)

    def free(self, u: Tensor, derivative: Tensor) -> Tensor:
        """Mask of the entries that can decrease the objective to first order: false where a bound holds them back."""
        return ~self._held(u, -derivative) & (self.lower < self.upper)

    def inward(self, u: Tensor, direction: Tensor) -> Tensor:
        """The direction, with zeros where it leads out of the box."""
        return direction.masked_fill(self._held(u, direction), 0.0)

    def _held(self, u: Tensor, direction: Tensor) -> Tensor:
        return ((u <= self.lower) & (direction < 0)) | ((u >= self.upper) & (direction > 0))


def feasible(u: Tensor, box: Box | None) -> Tensor:
    """The nearest control in the box; the control itself if there is no box."""
    return u if box is None else box.project(u)


def masked(vector: Tensor, free: Tensor | None) -> Tensor:
    """The vector with zeros in place of the entries that are not free; the vector itself if there is no mask."""
    return vector if free is None else vector * free


@dataclass(frozen=True, eq=False)
class Bounds:
    """Bounds lower <= u(t) <= upper on the path of the control, imposed at the midpoint of each step.

    Bounds compare by identity, like everything that may hold tensors.

    Parameters
    ----------
    lower, upper : TimeFunction
        A number, a tensor of shape (m,), or a callable of the time t that returns one of these. Infinity is no bound;
        equal bounds prescribe the control.

    Examples
    --------
    >>> from ocp.space.grid import TimeGrid
    >>> bounds = Bounds(0.0, lambda t: 1.0 + t)
    >>> bounds.on(ControlSpace(TimeGrid(horizon=1.0, steps=2), control_size=1), torch.empty(0)).upper
    tensor([1.2500, 1.7500])
    """

    lower: TimeFunction = -inf
    upper: TimeFunction = inf

    def on(self, space: ControlSpace, like: Tensor, parameters: tuple[Tensor, Tensor] | None = None) -> Box:
        """The box in a control space, with the dtype and device of ``like``, and bounds of the parameters, if any.

        Raises TypeError or ValueError if a bound has the wrong type or shape, or if nothing finite lies between them.
        """
        none = like.new_full((space.parameter_size,), inf)
        below, above = parameters or (-none, none)
        lower = space.join(at_midpoints("bounds: expected the lower one", self.lower, space, like), below)
        upper = space.join(at_midpoints("bounds: expected the upper one", self.upper, space, like), above)
        crossed = torch.nonzero(~((lower <= upper) & (lower < inf) & (upper > -inf))).flatten().tolist()
        if crossed:
            k, (low, high) = crossed[0], (float(bound[crossed[0]]) for bound in (lower, upper))
            raise ValueError(
                f"bounds: expected lower <= upper, got {low:g} and {high:g} for entry {k % space.control_size} of the "
                f"control on step {k // space.control_size}"
            )
        return Box(lower, upper)


def as_bounds(bounds: Any) -> Bounds | None:
    """Accept `Bounds`, a pair (lower, upper) whose sides may be None, or None; anything else is a TypeError."""
    if bounds is None or isinstance(bounds, Bounds):
        return bounds
    if isinstance(bounds, tuple | list) and len(bounds) == 2:
        lower, upper = bounds
        return Bounds(-inf if lower is None else lower, inf if upper is None else upper)
    raise TypeError(f"bounds: expected a pair (lower, upper) or Bounds, got {bounds!r}")
