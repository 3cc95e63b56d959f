"""How far to go along a direction. A trial value that is not finite is a failed trial, never an error."""

from __future__ import annotations

from dataclasses import dataclass
from math import inf, isfinite
from typing import Protocol

import torch
from torch import Tensor

from ocp.objective import Objective

__all__ = ["Armijo", "LineSearch", "StrongWolfe", "Trial"]


@dataclass(frozen=True)
class Trial:
    """An accepted step: its length and the control it leads to."""

    step: float
    control: Tensor


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
    """Backtracking to sufficient decrease: J(u + a d) <= J(u) + c1 a <dJ(u), d>.

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
        value = objective.value(control)
        slope = float(torch.dot(objective.derivative(control), direction))
        if not slope < 0:
            return None
        step = min(step, objective.room(control, direction))
        for _ in range(self.trials if step > 0 else 0):
            candidate = torch.add(control, direction, alpha=step)
            trial = objective.value(candidate)
            if isfinite(trial) and trial - value <= self.c1 * step * slope:
                return Trial(step, candidate)
            step = _interpolate(step, slope, trial - value)
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
        value = objective.value(control)
        slope = float(torch.dot(objective.derivative(control), direction))
        if not slope < 0:
            return None
        # Differences of values below this are noise; the slope still tells whether a step is a good one.
        slack = 4 * torch.finfo(control.dtype).eps * abs(value)
        low, low_value, low_slope, best = 0.0, value, slope, None
        high, high_value = inf, inf
        room = objective.room(control, direction)
        step = min(step, room)
        for _ in range(self.trials if room > 0 else 0):
            candidate = torch.add(control, direction, alpha=step)
            trial = objective.value(candidate)
            bound = min(value + self.c1 * step * slope, low_value if best is not None else inf) + slack
            if not (isfinite(trial) and trial <= bound):
                high, high_value = step, trial
            else:
                trial_slope = float(torch.dot(objective.derivative(candidate), direction))
                if not isfinite(trial_slope):
                    high, high_value = step, inf
                else:
                    if abs(trial_slope) <= -self.c2 * slope or (step == room and trial_slope < 0):
                        return Trial(step, candidate)
                    if trial_slope * (high - step if isfinite(high) else 1.0) >= 0:
                        high, high_value = low, low_value
                    low, low_value, low_slope, best = step, trial, trial_slope, candidate
            # Where nothing brackets the step yet, go on farther; 4 is between the 2 and 10 of Dennis & Schnabel.
            farther = high == inf
            step = min(4 * step, room) if farther else low + self._inside(low, low_value, low_slope, high, high_value)
        return Trial(low, best) if best is not None else None

    @staticmethod
    def _inside(low: float, low_value: float, low_slope: float, high: float, high_value: float) -> float:
        """Signed way from ``low`` into the bracket."""
        width = high - low
        sign = 1.0 if width > 0 else -1.0
        return sign * _interpolate(abs(width), sign * low_slope, high_value - low_value)
