"""How far to trust a quadratic model: truncated conjugate gradients, and the radius of the region of trust.

All lengths are time-weighted norms, and the Riesz map is the preconditioner. So neither a radius nor the number of
conjugate gradients depends on the grid: Kelley & Sachs (1999), "A trust region method for parabolic boundary control
problems".
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from math import inf, isfinite
from typing import NamedTuple

import torch
from torch import Tensor

from ocp.objective.evaluation import Evaluation, optimality
from ocp.space.bounds import feasible
from ocp.space.control import ControlSpace

__all__ = ["Polygon", "Step", "TrustRegion", "steihaug"]


class Step(NamedTuple):
    """A displacement, and the change of the objective that a model predicts for it."""

    displacement: Tensor
    change: float


class _Leg(NamedTuple):
    """A straight part of a path: where it starts, with the change of the model until there, and how far it goes."""

    start: Tensor
    change: float
    direction: Tensor
    slope: float
    curvature: float
    length: float


@dataclass(frozen=True, eq=False)
class Polygon:
    """The iterates of the conjugate gradients and the lines between them.

    From one to the next the distance from 0 grows and the model decreases. So the step for a shorter radius lies on
    the polygon, too: Steihaug (1983), theorem 2.1.
    """

    space: ControlSpace
    legs: tuple[_Leg, ...]

    def within(self, radius: float) -> Step:
        """The last step on the path that is not longer than ``radius``."""
        leg = next(leg for leg in reversed(self.legs) if leg is self.legs[0] or self.space.norm(leg.start) < radius)
        t = min(leg.length, self.space.reach(leg.start, leg.direction, radius))
        change = leg.change + t * (leg.slope + t * leg.curvature / 2)
        return Step(torch.add(leg.start, leg.direction, alpha=t), change)


def steihaug(
    product: Callable[[Tensor], Tensor],
    derivative: Tensor,
    space: ControlSpace,
    radius: float,
    tolerance: float,
    iterations: int,
) -> Polygon:
    """Minimize the model <d, s> + <H s, s> / 2 within a radius by truncated conjugate gradients.

    Steihaug (1983), "The conjugate gradient method and trust regions in large scale optimization"; Nocedal & Wright
    (2006), algorithm 7.2, with the Riesz map as preconditioner. A direction of negative curvature, or one that leads
    out, is followed to the boundary. A first product that is not finite counts as no curvature, a later one ends the
    iteration.

    Parameters
    ----------
    product : callable
        s -> H s, a dual vector.
    derivative : Tensor
        d, a dual vector other than zero.
    space : ControlSpace
    radius : float
    tolerance : float
        End when the dual norm of the residual H s + d is at most this share of that of d, or what rounding leaves.
    iterations : int
        At most this many products are computed.

    Returns
    -------
    Polygon
        Its last point, ``path.within(radius)``, is the solution.

    Examples
    --------
    >>> from ocp.space.grid import TimeGrid
    >>> space = ControlSpace(TimeGrid(horizon=1.0, steps=2), control_size=1)
    >>> path = steihaug(lambda s: space.dual(2 * s), torch.tensor([-1.0, 0.0]), space, 10.0, 1e-6, 5)
    >>> path.within(10.0)
    Step(displacement=tensor([1., 0.]), change=-0.5)
    """
    legs: list[_Leg] = []
    tolerance = max(tolerance, torch.finfo(derivative.dtype).eps)
    residual, gradient = derivative, space.gradient(derivative)
    square = first = float(torch.dot(residual, gradient))
    iterate, change, direction = torch.zeros_like(residual), 0.0, -gradient
    while len(legs) < iterations:
        image = product(direction)
        curvature = float(torch.dot(direction, image))
        if not isfinite(curvature):
            if legs:
                break
            curvature = 0.0
        # The slope of the model along the direction is minus the square of the residual.
        length, reach = square / curvature if curvature > 0 else inf, space.reach(iterate, direction, radius)
        legs.append(_Leg(iterate, change, direction, -square, curvature, min(length, reach)))
        if length >= reach:
            break
        iterate, change = torch.add(iterate, direction, alpha=length), change - length * square / 2
        residual = torch.add(residual, image, alpha=length)
        gradient = space.gradient(residual)
        last, square = square, float(torch.dot(residual, gradient))
        if square <= tolerance**2 * first:
            break
        direction = torch.add(-gradient, direction, alpha=square / last)
    return Polygon(space, tuple(legs))


@dataclass(frozen=True)
class TrustRegion:
    """Looks on a path for a step that decreases the objective by a share of what the model predicts.

    Conn, Gould & Toint (2000), "Trust-region methods", algorithm 6.1.1; Nocedal & Wright (2006), algorithm 4.1. After
    a step that fails, a shorter one on the same path is tried, which costs no Hessian product. Where rounding hides
    the change of the objective, a step is taken if it brings the control nearer to first-order optimality.

    A step that would leave the domain of the objective is cut, and one that would leave the bounds is projected, as in
    Bertsekas (1982), "Projected Newton methods for optimization problems with simple constraints". For such a step half
    the first-order change is predicted, which is exact at the minimum of a parabola: this is the rule of Armijo. The
    model's own prediction would cost a product; with it, linear oscillators and Van der Pol with bounds took up to
    twice the work.

    Parameters
    ----------
    accept : float
        Least share of the predicted decrease.
    good : float
        Above this share the radius grows, if the step reached it. Both are those of Nocedal & Wright, algorithm 4.1.
    shrink, grow : float
        The growth is that of Lin & More (1999), "Newton's method for large bound-constrained optimization problems",
        section 5. Since a trial is cheap compared with a product, the radius shrinks by 0.5 rather than the usual
        0.25; tuned on the swing-up of a pendulum.
    """

    accept: float = 0.25
    good: float = 0.75
    shrink: float = 0.5
    grow: float = 4.0

    def __call__(self, start: Evaluation, path: Polygon, radius: float) -> tuple[Evaluation, float] | None:
        """The evaluation after the step, and the next radius; None if no radius that can be resolved is acceptable."""
        value, space = start.value, start.objective.space
        eps, distance = torch.finfo(start.control.dtype).eps, optimality(start)
        noise = 10 * eps * abs(value)  # Conn, Gould & Toint, section 17.4.2
        least = eps * max(space.norm(start.control), space.norm(path.within(radius).displacement))
        while radius > least:
            step = path.within(radius)
            length = space.norm(step.displacement)
            point, change = _allowed(start, step)
            decrease = value - point.value if change < 0 else -inf
            share = decrease / -change if isfinite(decrease) else -inf
            if share >= self.accept:
                reached = length > 0.99 * radius  # all but rounding
                return point, self.grow * radius if share > self.good and reached else radius
            if abs(decrease) <= noise:
                if optimality(point) < distance:
                    return point, radius
                if -change <= noise:
                    return None  # no value could show a further decrease
            radius = self.shrink * min(length, radius)
        return None


def _allowed(start: Evaluation, step: Step) -> tuple[Evaluation, float]:
    """Where a step leads within the domain of the objective and its bounds, with the change predicted there."""
    objective = start.objective
    limit = objective.step_limit(start.control, step.displacement)
    straight = torch.add(start.control, step.displacement, alpha=min(1.0, limit))
    control = feasible(straight, objective.box)
    whole = limit >= 1 and control is straight
    change = step.change if whole else float(torch.dot(start.derivative, control - start.control)) / 2
    return objective.at(control), change
