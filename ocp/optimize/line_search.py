"""How far to go along a direction. A trial value that is not finite is a failed trial, never an error.

Where the control has bounds, a search follows the projected path a -> P(u + a d), as in Bertsekas (1982), "Projected
Newton methods for optimization problems with simple constraints", and Ferry, Gill, Wong & Zhang (2022),
"Projected-search methods for bound-constrained optimization".
"""

from __future__ import annotations

from dataclasses import dataclass
from math import inf, isfinite, nan
from typing import Protocol

import torch
from torch import Tensor

from ocp.objective.evaluation import Evaluation
from ocp.space.bounds import feasible

__all__ = ["Armijo", "LineSearch", "StrongWolfe", "Trial", "first_step"]


@dataclass(frozen=True, eq=False)
class Trial:
    """An accepted step: its length, and the evaluation at the control it leads to."""

    step: float
    point: Evaluation


class LineSearch(Protocol):
    """Looks for a step that decreases the objective sufficiently, within the steps that the objective allows."""

    def __call__(self, start: Evaluation, direction: Tensor, step: float) -> Trial | None:
        """Begin with the length ``step``; None if no trial step is acceptable."""


def first_step(point: Evaluation, direction: Tensor, step: float) -> float:
    """A first step along a direction of descent: ``step``, unless rounding hides what it changes, as in large units.

    In that case, the step to the minimum of the parabola that a difference of derivatives shows.
    """
    space, slope = point.objective.space, float(torch.dot(point.derivative, direction))
    eps, length = torch.finfo(direction.dtype).eps, space.norm(direction)
    if -slope * step >= eps**0.5 * abs(point.value) or not 0 < length < inf:
        return step
    size = max(1.0, space.norm(point.control)) / length
    nearby = torch.add(point.control, direction, alpha=eps ** (1 / 3) * size)
    change = point.objective.at(feasible(nearby, point.objective.box)).derivative - point.derivative
    bend = float(torch.dot(change, direction)) / (eps ** (1 / 3) * size)
    return -slope / bend if bend > 0 else size


@dataclass(frozen=True, eq=False)
class _Curve:
    """The controls P(u + a d) for a >= 0; without bounds a straight line."""

    start: Evaluation
    direction: Tensor

    def at(self, step: float) -> Evaluation:
        objective = self.start.objective
        return objective.at(feasible(torch.add(self.start.control, self.direction, alpha=step), objective.box))

    def slope(self, point: Evaluation) -> float:
        """Slope of the objective along the curve, at one of its points."""
        return float(torch.dot(point.derivative, self._tangent(point)))

    def bent(self, point: Evaluation) -> bool:
        """Whether the curve has a kink before one of its points: an entry has met its bound."""
        return not torch.equal(self._tangent(self.start), self._tangent(point))

    def change(self, slope: float, step: float, point: Evaluation) -> float:
        """Change of the objective to first order, given the slope at the start."""
        if self.start.objective.box is None:
            return step * slope
        return float(torch.dot(self.start.derivative, point.control - self.start.control))

    def _tangent(self, point: Evaluation) -> Tensor:
        box = self.start.objective.box
        return self.direction if box is None else box.inward(point.control, self.direction)


def _interpolate(width: float, slope: float, rise: float) -> float:
    """Minimizer between 0 and ``width`` of the parabola with this slope at 0 and this rise at ``width``.

    The safeguards 0.1, used alone where the rise is not finite, and 0.5 are those of Dennis & Schnabel (1983),
    algorithm A6.3.1.
    """
    curvature = rise - slope * width
    if not isfinite(curvature):
        return 0.1 * width
    best = -0.5 * slope * width**2 / curvature if curvature > 0 else 0.5 * width
    nearest, farthest = sorted((0.1 * width, 0.5 * width))
    return min(max(best, nearest), farthest)


@dataclass(frozen=True)
class Armijo:
    """Backtracking to sufficient decrease: J(v) <= J(u) + c1 <dJ(u), v - u> for v = u + a d.

    At most ``trials`` values are computed. Nocedal & Wright (2006), section 3.1.
    """

    c1: float = 1e-4
    trials: int = 20

    def __call__(self, start: Evaluation, direction: Tensor, step: float) -> Trial | None:
        curve = _Curve(start, direction)
        slope, step = curve.slope(start), min(step, start.objective.step_limit(start.control, direction))
        if not slope < 0 < step:
            return None
        for _ in range(self.trials):
            point = curve.at(step)
            value, change = point.value, curve.change(slope, step, point)
            if isfinite(value) and value - start.value <= self.c1 * change < 0:
                # The derivative is needed next in any case.
                if isfinite(curve.slope(point)):
                    return Trial(step, point)
                value = inf
            step = _interpolate(step, change / step, value - start.value)
        return None


@dataclass(frozen=True)
class StrongWolfe:
    """Sufficient decrease and a slope that has become flat: |<dJ(u + a d), d>| <= c2 |<dJ(u), d>|.

    Nocedal & Wright (2006), algorithms 3.5 and 3.6, as one loop over a bracket, with 0 < c1 < c2 < 1; take a smaller
    c2, such as 0.1, for conjugate gradients. After ``trials`` values and slopes, the best point that decreases
    sufficiently is taken, if there is one; the longest step allowed needs sufficient decrease only.
    """

    c1: float = 1e-4
    c2: float = 0.9
    trials: int = 20

    def __call__(self, start: Evaluation, direction: Tensor, step: float) -> Trial | None:
        curve = _Curve(start, direction)
        first_slope, limit = curve.slope(start), start.objective.step_limit(start.control, direction)
        step = min(step, limit)
        if not first_slope < 0 < step:
            return None
        # Differences of values below this are noise; the slope still tells whether a step is a good one.
        slack = 4 * torch.finfo(start.control.dtype).eps * abs(start.value)
        low, low_value, low_slope, best = 0.0, start.value, first_slope, None
        high, high_value = inf, inf
        for _ in range(self.trials):
            point = curve.at(step)
            value, slope = point.value, nan
            enough = start.value + self.c1 * curve.change(first_slope, step, point)
            if isfinite(value) and value <= min(enough, low_value if best is not None else inf) + slack:
                slope = curve.slope(point)
                value = value if isfinite(slope) else inf
            if not isfinite(slope):
                high, high_value = step, value
            else:
                flat = abs(slope) <= -self.c2 * first_slope
                # At a kink of a projected path the slope can jump over the flat range.
                if flat or (slope > 0 and curve.bent(point)) or (slope < 0 and step == limit):
                    return Trial(step, point)
                if slope * (high - step) >= 0:
                    high, high_value = low, low_value
                low, low_value, low_slope, best = step, value, slope, point
            # Where nothing brackets the step yet, go on farther; 4 is between the 2 and 10 of Dennis & Schnabel.
            if high == inf:
                step = min(4 * step, limit)
            else:
                step = low + _interpolate(high - low, low_slope, high_value - low_value)
        # A decrease below rounding passes the test with its slack; where the slope is still steep, it leads nowhere.
        return Trial(low, best) if best is not None and low_value < start.value - slack else None
