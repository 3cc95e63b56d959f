"""How far to trust a quadratic model: truncated conjugate gradients, and the radius of the region of trust.

All lengths are time-weighted norms, and the Riesz map is the preconditioner. So neither a radius nor the number of
conjugate gradients depends on the grid: Kelley & Sachs (1999), "A trust region method for parabolic boundary control
problems".
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from enum import Enum
from math import inf, isfinite

import torch
from torch import Tensor

from ocp.objective.evaluation import Evaluation, optimality
from ocp.space.bounds import feasible
from ocp.space.control import ControlSpace

__all__ = ["Ending", "Polygon", "Step", "TrustRegion", "steihaug"]


class Ending(Enum):
    """Why the conjugate gradients ended; ``ending.value`` is the sentence that explains it."""

    TOLERANCE = "The residual fell below the tolerance."
    BOUNDARY = "The next iterate would have left the trust region."
    CURVATURE = "The model has no minimum along the next direction, which was followed to the boundary."
    ITERATIONS = "The iteration limit was reached before the tolerance."
    NOT_FINITE = "The Hessian along the next direction is not finite."


@dataclass(frozen=True, eq=False)
class Step:
    """A displacement, and the change of the objective that a model predicts for it."""

    displacement: Tensor
    change: float


@dataclass(frozen=True, eq=False)
class _Leg:
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

    Attributes
    ----------
    space : ControlSpace
    legs : tuple
    ending : Ending
    """

    space: ControlSpace
    legs: tuple[_Leg, ...]
    ending: Ending

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
    >>> path.ending.name, path.within(10.0).displacement, path.within(10.0).change
    ('TOLERANCE', tensor([1., 0.]), -0.5)
    """
    residual, legs = derivative, list[_Leg]()
    tolerance = max(tolerance, torch.finfo(derivative.dtype).eps)
    gradient = space.gradient(residual)
    square = first = float(torch.dot(residual, gradient))
    iterate, change, direction = torch.zeros_like(residual), 0.0, -gradient
    for _ in range(iterations):
        image = product(direction)
        curvature = float(torch.dot(direction, image))
        if not isfinite(curvature):
            if legs:
                return Polygon(space, tuple(legs), Ending.NOT_FINITE)
            curvature = 0.0
        reach = space.reach(iterate, direction, radius)
        # The slope of the model along the direction is minus the square of the residual.
        length = square / curvature if curvature > 0 else inf
        legs.append(_Leg(iterate, change, direction, -square, curvature, min(length, reach)))
        if length >= reach:
            return Polygon(space, tuple(legs), Ending.BOUNDARY if curvature > 0 else Ending.CURVATURE)
        iterate, change = torch.add(iterate, direction, alpha=length), change - length * square / 2
        residual = torch.add(residual, image, alpha=length)
        gradient = space.gradient(residual)
        last, square = square, float(torch.dot(residual, gradient))
        if square <= tolerance**2 * first:
            return Polygon(space, tuple(legs), Ending.TOLERANCE)
        direction = torch.add(-gradient, direction, alpha=square / last)
    return Polygon(space, tuple(legs), Ending.ITERATIONS)


@dataclass(frozen=True)
class TrustRegion:
    """Looks on a path for a step that decreases the objective by a share of what the model predicts.

    Conn, Gould & Toint (2000), "Trust-region methods", algorithm 6.1.1; Nocedal & Wright (2006), algorithm 4.1. A step
    that does not is followed by a shorter one on the same path, which costs no Hessian product. Where rounding hides
    the change of the objective, a step is taken if it brings the control nearer to first-order optimality.

    A step that would leave the domain of the objective is cut, and one that would leave the bounds is projected, as in
    Bertsekas (1982), "Projected Newton methods for optimization problems with simple constraints". For such a step half
    the first-order change is predicted, which is exact at the minimum of a parabola: so the rule becomes that of
    Armijo. The model's own prediction would cost a product; with it, the work was up to twice as much on linear
    oscillators and on Van der Pol with bounds.

    Parameters
    ----------
    accept : float
        Least share of the predicted decrease.
    good : float
        Above this share the radius grows, if the step reached it. Both are those of Nocedal & Wright, algorithm 4.1.
    shrink, grow : float
        The growth is that of Lin & More (1999), "Newton's method for large bound-constrained optimization problems",
        section 5. A trial is cheap against a product, which speaks for small steps back: 0.5 instead of the usual 0.25
        was tuned on the swing-up of a pendulum.
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
                    return None  # nothing that a value could show is left to gain
            radius = self.shrink * min(length, radius)
        return None


def _allowed(start: Evaluation, step: Step) -> tuple[Evaluation, float]:
    """Where a step leads within the domain of the objective and its bounds, with the change predicted there."""
    objective = start.objective
    limit = objective.step_limit(start.control, step.displacement)
    straight = torch.add(start.control, step.displacement, alpha=min(1.0, limit))
    candidate = feasible(straight, objective.box)
    if limit >= 1 and candidate is straight:
        return objective.at(candidate), step.change
    return objective.at(candidate), float(torch.dot(start.derivative, candidate - start.control)) / 2
