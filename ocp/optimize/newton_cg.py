"""Newton's method by truncated conjugate gradients in a trust region.

All lengths are time-weighted norms, and the Riesz map is the preconditioner. So neither a radius nor the number of
conjugate gradients depends on the grid: Kelley & Sachs (1999), "A trust region method for parabolic boundary control
problems".
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, replace
from math import inf, isfinite
from typing import ClassVar, NamedTuple

import torch
from torch import Tensor

from ocp.objective.evaluation import Evaluation, Objective, SecondOrderObjective, free_part, optimality
from ocp.optimize.method import Method, State
from ocp.optimize.status import Status
from ocp.space.bounds import feasible, masked
from ocp.space.control import ControlSpace

__all__ = ["NewtonCG", "Polygon", "Step", "TrustRegion", "steihaug"]


class Step(NamedTuple):
    """A displacement, and the change of the objective that a model predicts for it."""

    displacement: Tensor
    change: float


class _Leg(NamedTuple):
    """A straight part of a path, with the change of the model before it."""

    start: Tensor
    change: float
    direction: Tensor
    slope: float
    curvature: float
    length: float


@dataclass(frozen=True, eq=False)
class Polygon:
    """The iterates of the conjugate gradients and the lines between them.

    On it lies the step for each shorter radius, too: Steihaug (1983), theorem 2.1.
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
    product: Callable[[Tensor], Tensor], d: Tensor, space: ControlSpace, radius: float, tolerance: float, limit: int
) -> Polygon:
    """Minimize the model <d, s> + <H s, s> / 2 within a radius by truncated conjugate gradients.

    ``product`` maps s to H s, a dual vector, as is d. The path ends when the dual norm of the residual H s + d is at
    most ``tolerance`` times that of d, or after ``limit`` products. A direction of negative curvature, or one that
    leads out, is followed to the boundary. A first product that is not finite counts as no curvature, a later one ends
    the path. Steihaug (1983), "The conjugate gradient method and trust regions in large scale optimization"; Nocedal &
    Wright (2006), algorithm 7.2, with the Riesz map as preconditioner.
    """
    legs: list[_Leg] = []
    tolerance = max(tolerance, torch.finfo(d.dtype).eps)
    residual, gradient = d, space.gradient(d)
    square = first = float(torch.dot(residual, gradient))
    iterate, change, direction = torch.zeros_like(residual), 0.0, -gradient
    while len(legs) < limit:
        image = product(direction)
        curvature = float(torch.dot(direction, image))
        if legs and not isfinite(curvature):
            break
        curvature = curvature if isfinite(curvature) else 0.0
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

    After a step that fails, a shorter one on the same path is tried, which costs no Hessian product: Conn, Gould &
    Toint (2000), "Trust-region methods", algorithm 6.1.1. Where rounding hides the change of the objective, a step is
    taken if it brings the control nearer to first-order optimality.

    A step that would leave the domain of the objective is cut, and one that would leave the bounds is projected, as in
    Bertsekas (1982), "Projected Newton methods for optimization problems with simple constraints". For such a step half
    the first-order change is predicted, as in Armijo's rule. The model's own prediction would cost a product; with it,
    linear oscillators and Van der Pol with bounds took up to twice the work.

    Parameters
    ----------
    accept, good : float
        A step is accepted from the first share on; above the second the radius grows, if the step reached it. Nocedal &
        Wright (2006), algorithm 4.1.
    shrink, grow : float
        Trials are cheap compared with products, so the radius shrinks by 0.5, not the usual 0.25; tuned on the swing-up
        of a pendulum. It grows as in Lin & More (1999), "Newton's method for large bound-constrained optimization
        problems", section 5.
    """

    accept: float = 0.25
    good: float = 0.75
    shrink: float = 0.5
    grow: float = 4.0

    def __call__(self, start: Evaluation, path: Polygon, radius: float) -> tuple[Evaluation, float] | None:
        """The evaluation after the step, and the next radius; None if no radius that can be resolved is acceptable."""
        eps, distance = torch.finfo(start.control.dtype).eps, optimality(start)
        noise = 10 * eps * abs(start.value)  # Conn, Gould & Toint, section 17.4.2
        least = eps * max(path.space.norm(start.control), path.space.norm(path.within(radius).displacement))
        while radius > least:
            step = path.within(radius)
            length = path.space.norm(step.displacement)
            point, change = _allowed(start, step)
            decrease = start.value - point.value if change < 0 else -inf
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
    limit = start.objective.step_limit(start.control, step.displacement)
    straight = torch.add(start.control, step.displacement, alpha=min(1.0, limit))
    control = feasible(straight, start.objective.box)
    cut = limit < 1 or control is not straight
    change = float(torch.dot(start.derivative, control - start.control)) / 2 if cut else step.change
    return start.objective.at(control), change


@dataclass(frozen=True)
class NewtonCG(Method):
    """Newton's method by truncated conjugate gradients in a trust region, Nocedal & Wright (2006), section 7.1.

    It needs second derivatives. The conjugate gradients end when the residual is at most
    min(forcing, (|d| / |d_0|)^exponent) |d|, where d is the derivative and d_0 that of the first step: early far from
    the optimum, and near it late enough for convergence of order 1 + exponent (theorem 7.2 there). With bounds, they
    run in the subspace of the free entries, and the step is projected.

    Parameters
    ----------
    forcing, exponent : float
        The defaults are those of Nocedal & Wright, algorithm 7.1.
    iterations : int
        At most this many Hessian products per step.
    region : TrustRegion
    first : float
        The first radius, in multiples of max(1, norm of the control). On Van der Pol, Rayleigh's oscillator and the
        pendulum 0.1, 1 and 10 made little difference.
    """

    forcing: float = 0.5
    exponent: float = 0.5
    iterations: int = 50
    region: TrustRegion = TrustRegion()
    first: float = 1.0
    full_batch: ClassVar[bool] = True

    def __post_init__(self) -> None:
        if not (0 < self.forcing < 1 and self.iterations >= 1 and 0 < self.first < inf):
            raise ValueError(
                "forcing, iterations, first: expected a number between 0 and 1, an integer >= 1 and a positive number, "
                f"got {self.forcing}, {self.iterations}, {self.first}"
            )

    def check(self, objective: Objective) -> None:
        """Raise ``ValueError`` if a piece of the problem has no second derivatives."""
        if isinstance(objective, SecondOrderObjective):
            for piece, expected in objective.without_hvp.items():
                raise ValueError(f"{piece}: expected {expected}, as NewtonCG requires")

    def step(self, objective: Objective, state: State) -> State:
        point, space = state.point, objective.space
        (d, free), norm = free_part(point), optimality(point)
        if not (0 < norm < inf and space.dual_norm(d) > 0):
            return replace(state, status=Status.NO_DECREASE)
        radius, start = state.memory or (self.first * max(1.0, space.norm(point.control)), norm)
        tolerance = min(self.forcing, (norm / start) ** self.exponent)
        path = steihaug(lambda s: masked(point.hessian_product(s), free), d, space, radius, tolerance, self.iterations)
        accepted = self.region(point, path, radius)
        if accepted is None:
            return replace(state, status=Status.NO_DECREASE)
        after, radius = accepted
        return replace(state, point=after, memory=(radius, start), status=Status.RUNNING)
