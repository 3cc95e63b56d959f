"""How far to go along a direction. A trial value that is not finite is a failed trial, never an error.

Where the control has bounds, a search follows the projected path a -> P(u + a d), as in Bertsekas (1982), "Projected
Newton methods for optimization problems with simple constraints", and Ferry, Gill, Wong & Zhang (2022),
"Projected-search methods for bound-constrained optimization".
"""

from __future__ import annotations

from dataclasses import dataclass
from math import inf, isfinite
from typing import Protocol

import torch
from torch import Tensor

from ocp.objective.reduced import Objective
from ocp.space.bounds import feasible

__all__ = ["Armijo", "LineSearch", "StrongWolfe", "Trial"]


@dataclass(frozen=True)
class Trial:
    """An accepted step: its length and the control it leads to."""

    step: float
    control: Tensor


@dataclass(frozen=True)
class _Path:
    """The controls P(u + a d) for a >= 0; without bounds a straight line."""

    objective: Objective
    control: Tensor
    direction: Tensor
    derivative: Tensor

    def at(self, step: float) -> Tensor:
        return feasible(torch.add(self.control, self.direction, alpha=step), self.objective.box)

    def slope(self, candidate: Tensor, derivative: Tensor) -> float:
        """Slope of the objective along the path, at one of its points."""
        box = self.objective.box
        direction = self.direction if box is None else box.inward(candidate, self.direction)
        return float(torch.dot(derivative, direction))

    def bent(self, candidate: Tensor) -> bool:
        """Whether the path has a kink on the way to one of its points: an entry has met its bound."""
        box = self.objective.box
        if box is None:
            return False
        before, after = (box.inward(u, self.direction) for u in (self.control, candidate))
        return not torch.equal(before, after)

    def change(self, slope: float, step: float, candidate: Tensor) -> float:
        """Change of the objective to first order, given the slope at the beginning."""
        if self.objective.box is None:
            return step * slope
        return float(torch.dot(self.derivative, candidate - self.control))


class LineSearch(Protocol):
    """Looks for a step that decreases the objective sufficiently, within the room that the objective leaves."""

    def __call__(self, objective: Objective, control: Tensor, direction: Tensor, step: float) -> Trial | None:
        """Begin with the length ``step``; None where no trial will do."""


def _interpolate(width: float, slope: float, rise: float) -> float:
    """Minimizer in (0, width) of the parabola with this slope at 0 and this rise at ``width``, kept off both ends.

    The safeguards 0.1 and 0.5 are those of Dennis & Schnabel (1983), algorithm A6.3.1; where the rise is not
    finite there is no parabola, and the smaller one is used.
    """
    curvature = rise - slope * width
    if not isfinite(curvature):
        return 0.1 * width
    best = -0.5 * slope * width**2 / curvature if curvature > 0 else 0.5 * width
    return min(max(best, 0.1 * width), 0.5 * width)


@dataclass(frozen=True)
class Armijo:
    """Backtracking to sufficient decrease: J(v) <= J(u) + c1 <dJ(u), v - u> for v = u + a d.

    Parameters
    ----------
    c1 : float
        Nocedal & Wright (2006), section 3.1.
    trials : int
        At most so many values are computed.
    """

    c1: float = 1e-4
    trials: int = 20

    def __call__(self, objective: Objective, control: Tensor, direction: Tensor, step: float) -> Trial | None:
        value, derivative = objective.value(control), objective.derivative(control)
        path = _Path(objective, control, direction, derivative)
        slope = path.slope(control, derivative)
        if not slope < 0:
            return None
        step = min(step, objective.room(control, direction))
        for _ in range(self.trials if step > 0 else 0):
            candidate = path.at(step)
            trial, change = objective.value(candidate), path.change(slope, step, candidate)
            if isfinite(trial) and trial - value <= self.c1 * change < 0:
                # Whoever goes on from there needs the derivative anyway.
                if isfinite(path.slope(candidate, objective.derivative(candidate))):
                    return Trial(step, candidate)
                trial = inf
            step = _interpolate(step, change / step, trial - value)
        return None


@dataclass(frozen=True)
class StrongWolfe:
    """Sufficient decrease and a slope that has become flat: |<dJ(u + a d), d>| <= c2 |<dJ(u), d>|.

    Nocedal & Wright (2006), algorithms 3.5 and 3.6, as one loop over a bracket. Where the trials run out, the best
    point with sufficient decrease is taken, if there is one; the end of the room needs sufficient decrease only.

    Parameters
    ----------
    c1, c2 : float
        0 < c1 < c2 < 1; take a smaller c2, as 0.1, for conjugate gradients.
    trials : int
        At most so many values and slopes are computed.
    """

    c1: float = 1e-4
    c2: float = 0.9
    trials: int = 20

    def __call__(self, objective: Objective, control: Tensor, direction: Tensor, step: float) -> Trial | None:
        value, derivative = objective.value(control), objective.derivative(control)
        path = _Path(objective, control, direction, derivative)
        slope = path.slope(control, derivative)
        if not slope < 0:
            return None
        # Differences of values below this are noise; the slope still tells whether a step is a good one.
        slack = 4 * torch.finfo(control.dtype).eps * abs(value)
        low, low_value, low_slope, best = 0.0, value, slope, None
        high, high_value = inf, inf
        room = objective.room(control, direction)
        step = min(step, room)
        for _ in range(self.trials if room > 0 else 0):
            candidate = path.at(step)
            trial = objective.value(candidate)
            enough = value + self.c1 * path.change(slope, step, candidate)
            bound = min(enough, low_value if best is not None else inf) + slack
            if not (isfinite(trial) and trial <= bound):
                high, high_value = step, trial
            else:
                trial_slope = path.slope(candidate, objective.derivative(candidate))
                if not isfinite(trial_slope):
                    high, high_value = step, inf
                else:
                    # At a kink of a projected path the slope can jump over the flat range.
                    rising = trial_slope > 0 and path.bent(candidate)
                    if rising or abs(trial_slope) <= -self.c2 * slope or (step == room and trial_slope < 0):
                        return Trial(step, candidate)
                    if trial_slope * (high - step if isfinite(high) else 1.0) >= 0:
                        high, high_value = low, low_value
                    low, low_value, low_slope, best = step, trial, trial_slope, candidate
            # Where nothing brackets the step yet, go on farther; 4 is between the 2 and 10 of Dennis & Schnabel.
            farther = high == inf
            step = min(4 * step, room) if farther else low + self._inside(low, low_value, low_slope, high, high_value)
        # A decrease below rounding passes the test with its slack; where the slope is still steep, it leads nowhere.
        return Trial(low, best) if best is not None and low_value < value - slack else None

    @staticmethod
    def _inside(low: float, low_value: float, low_slope: float, high: float, high_value: float) -> float:
        """Signed way from ``low`` into the bracket."""
        width = high - low
        sign = 1.0 if width > 0 else -1.0
        return sign * _interpolate(abs(width), sign * low_slope, high_value - low_value)
