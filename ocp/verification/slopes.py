"""Slopes of an objective, measured by differences of its values and stated by its derivative."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from itertools import pairwise
from math import cos, inf, isfinite, nan, pi

import torch
from torch import Tensor

from ocp.objective.evaluation import Evaluation, Objective
from ocp.problem.differences import normal
from ocp.space.bounds import feasible

__all__ = ["AROUND", "Slope", "descends_nearby", "draw_direction", "kinked", "measure_slope", "quick_check"]


@dataclass(frozen=True)
class Slope:
    """A slope of the objective along a direction d, as measured by its values and as stated by its derivative.

    Attributes
    ----------
    measured, error : float
        From central differences, with an estimate of their error; infinite where no difference is finite.
    stated, scale : float
        <dJ(u), d> and |dJ(u)| |d|.
    decrease : float
        The largest decrease among the values, less their noise.
    eps : float
        Machine precision.
    spread : float
        How far the slopes stated nearby lie apart, looked at where measured and stated slope differ: far at kinks, and
        where the scheme is unstable. Infinite where one is not finite.
    """

    measured: float
    error: float
    stated: float
    scale: float
    decrease: float
    eps: float
    spread: float = 0.0

    @property
    def contradicted(self) -> bool:
        """Whether values and derivative cannot both be right."""
        # Good difference quotients differ from a right slope by less than the square root of eps.
        bound = 4 * self.error + 10 * self.eps**0.5 * self.scale + self.spread
        return isfinite(bound) and abs(self.measured - self.stated) > bound

    def __str__(self) -> str:
        return f"the values have the slope {self.measured:.6g}, the derivative has {self.stated:.6g}"


def measure_slope(start: Evaluation, direction: Tensor, lengths: Sequence[float]) -> Slope:
    """The slope of an objective along a direction, by central differences of several lengths.

    The lengths begin with the longest, in multiples of the norm of the control, or of 1 where that is smaller. The best
    quotient is the one that differs least from that of the next longer difference. This difference, together with the
    noise of the values, is the estimated error: after Ridders (1982), "Accurate computation of F'(x) and F'(x) F''(x)".
    The noise is at least rounding, and more if values change more when rounding moves the control.

    If the stated slope then seems wrong, a kink may be the reason, so the two sides are looked at one by one: by the
    mean value theorem, the quotient of each lies between slopes that a right derivative states along its step.
    """
    objective, control = start.objective, start.control
    space, eps = objective.space, torch.finfo(control.dtype).eps
    value, derivative = start.value, start.derivative
    norm, best, error, low, reach = space.norm(direction), inf, inf, value, 0.0
    unit = max(1.0, space.norm(control)) / norm if norm > 0 else 0.0
    by_rounding = (torch.add(control * (1 + k * eps), direction, alpha=k * eps * unit) for k in (1, 0, -1))
    noise = max(8 * eps * abs(value), *(2 * abs(objective.at(moved).value - value) for moved in by_rounding))
    longer = nan
    for step in (unit * length for length in lengths if unit > 0):
        ends = [objective.at(torch.add(control, direction, alpha=a)).value for a in (step, -step)]
        low = min([low, *(end for end in ends if isfinite(end))])
        rounding = 8 * eps * max(map(abs, ends))  # more than that of a value which is zero
        quotient, uncertain = (ends[0] - ends[1]) / (2 * step), max(noise, rounding) / step
        if abs(longer - quotient) + uncertain < error:  # false where one is NaN or infinite
            best, error, reach = quotient, abs(longer - quotient) + uncertain, step
        longer = quotient
    stated = float(torch.dot(derivative, direction))
    slope = Slope(best, error, stated, space.dual_norm(derivative) * norm, value - low - noise, eps)
    return _side_by_side(start, direction, reach, slope) if slope.contradicted else slope


#: Where along a step slopes are stated, as shares of it.
SHARES = (0.0, 0.25, 0.5, 1.0)


def _side_by_side(start: Evaluation, direction: Tensor, step: float, slope: Slope) -> Slope:
    """One of two sides that contradicts the slopes stated along it; otherwise the slope, with their spread.

    All slopes are stated anew, so that a derivative left over from another control is found out.
    """
    sides = {side: _stated(start, direction, side) for side in (step, -step)}
    for side, slopes in sides.items():
        if all(map(isfinite, slopes)):
            end = start.objective.at(torch.add(start.control, direction, alpha=side))
            low, high, quotient = min(slopes), max(slopes), (end.value - start.value) / side
            # Between two of the shares, slopes may go as far again.
            one = replace(slope, measured=quotient, stated=min(max(quotient, low), high), spread=high - low)
            if one.contradicted:
                return one
    return replace(slope, spread=2 * _spread([s for slopes in sides.values() for s in slopes]))


def _stated(start: Evaluation, direction: Tensor, step: float) -> list[float]:
    """Slopes that the derivative states from a control to the end of a step."""
    ways = (torch.add(start.control, direction, alpha=share * step) for share in SHARES)
    return [float(torch.dot(start.objective.at(u).derivative, direction)) for u in ways]


def _spread(slopes: Sequence[float]) -> float:
    return max(slopes) - min(slopes) if all(map(isfinite, slopes)) else inf


def kinked(start: Evaluation, direction: Tensor) -> bool:
    """Whether the slopes that the derivative states around a control differ otherwise than in proportion to a step.

    The steps are those of good differences: a kink that none of them crosses spoils no difference.
    """
    space, eps = start.objective.space, torch.finfo(start.control.dtype).eps
    norm = space.norm(direction)
    scale, unit = space.dual_norm(start.derivative) * norm, max(1.0, space.norm(start.control)) / norm * eps ** (1 / 3)
    spreads = [
        _spread(_stated(start, direction, k * unit) + _stated(start, direction, -k * unit)) for k in (*AROUND, 1 / 8)
    ]
    ratio, rounding = AROUND[0] / AROUND[1], 10 * eps**0.5 * scale
    return any(not abs(ratio * b - a) <= 0.02 * a + rounding for a, b in pairwise(spreads))


#: Lengths of a few differences around the best one of smooth functions, eps^(1/3), in multiples of it.
AROUND = (64.0, 8.0, 1.0)


def quick_check(objective: Objective, control: Tensor, seed: int = 0) -> Slope:
    """Compare values and derivative at a control and at one nearby, for about eight gradients.

    Returns a slope that is contradicted, if there is one. A stale derivative is right at one of the two at most.
    """
    generator, space = torch.Generator().manual_seed(seed), objective.space
    lengths = [k * torch.finfo(control.dtype).eps ** (1 / 3) for k in AROUND]
    way = normal(control, generator)
    way *= 0.1 * max(1.0, space.norm(control)) / space.norm(way)
    points = [objective.at(u) for u in (control, feasible(control + way, objective.box))]
    slopes = [measure_slope(point, draw_direction(point, generator), lengths) for point in points]
    return next((slope for slope in slopes if slope.contradicted), slopes[0])


def draw_direction(point: Evaluation, generator: torch.Generator) -> Tensor:
    """A direction of unit norm, half random and half along the gradient."""
    space, direction = point.objective.space, normal(point.control, generator)
    direction /= space.norm(direction)
    gradient = space.gradient(point.derivative)
    length = space.norm(gradient)
    if isfinite(length) and length > 0:
        direction += gradient / length
        direction /= space.norm(direction)
    return direction


def descends_nearby(point: Evaluation, size: float = 0.0) -> Tensor | None:
    """A control near a stationary one, within the bounds, towards which the objective bends down; None if not found.

    A derivative of zero does not tell a minimum from a maximum or a saddle point.

    Parameters
    ----------
    size : float
        Norm of the control that the steps are measured by; 0 for 1.
    """
    objective, u = point.objective, point.control
    noise = 100 * torch.finfo(u.dtype).eps
    for direction in _directions(point):
        for length in (0.1, 1e-3):
            v = feasible(torch.add(u, direction, alpha=length * (size or 1.0)), objective.box)
            value = objective.at(v).value
            change = value - point.value
            bend = change - float(torch.dot(point.derivative, v - u))
            if max(change, bend) < -noise * max(abs(value), abs(point.value)):
                return v
    return None


def _directions(point: Evaluation) -> Iterator[Tensor]:
    """Directions of unit norm and their opposites: slow ones, in which a control can matter, and a random one."""
    space, u = point.objective.space, point.control
    generator, steps = torch.Generator().manual_seed(0), space.grid.steps
    for wave in (0, 1, 2, None):
        random = normal(u, generator)
        if wave is not None:
            path = space.path(random)
            shape = [cos(pi * wave * (k + 0.5) / steps) for k in range(steps)]
            path.copy_(path[0] * torch.tensor(shape, dtype=u.dtype, device=u.device).unsqueeze(1))
        random /= space.norm(random)
        yield random
        yield -random
