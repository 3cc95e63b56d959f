"""How far to go along a direction: trial points, second-order corrections, and the filter that judges them."""

from __future__ import annotations

from dataclasses import dataclass, replace
from math import inf, isfinite

import numpy as np

from ocp.optimize.interior_point.barrier import reach, restrained
from ocp.optimize.interior_point.direction import Direction, NewtonSystem, Residuals
from ocp.optimize.interior_point.filters import Filter, Measure
from ocp.optimize.interior_point.inequalities import Inequalities
from ocp.optimize.interior_point.iterate import Iterate, residual
from ocp.optimize.interior_point.kkt import Array
from ocp.optimize.interior_point.program import Program, Values

__all__ = ["Found", "measure", "search"]

#: Wächter & Biegler (2006): the most second-order corrections, what each has to leave of the infeasibility, and the
#: shortest step.
CORRECTIONS, PROGRESS, SHORTEST = 4, 0.99, 1e-7


@dataclass(frozen=True, eq=False)
class Found:
    """An accepted point with its values, and the filter after it."""

    point: Iterate
    values: Values
    filter: Filter


def measure(inequalities: Inequalities, values: Values, slacks: Array, mu: float) -> Measure:
    """Infeasibility, the sum of all residuals with the weights of the barrier, and merit, the barrier function."""
    weights, limits = inequalities.weights, residual(inequalities, values, slacks)
    theta = np.abs(values.defects).sum() + np.abs(values.equations).sum() + (weights * np.abs(limits)).sum()
    phi = values.cost - mu * float((weights * np.log(slacks)).sum()) if len(slacks) else values.cost
    return Measure(float(theta) if isfinite(theta) else inf, phi if isfinite(phi) and isfinite(theta) else inf)


def search(system: NewtonSystem, direction: Direction, values: Values, filter: Filter, tau: float) -> Found | None:
    """The first acceptable point on the way along a direction; None if there is none that can be resolved."""
    point, inequalities, program = system.point, system.inequalities, system.program
    start = measure(inequalities, values, point.slacks, point.mu)
    slope = system.slope(direction, point.mu)
    longest = step = reach(point.slacks, direction.slacks, tau)
    while step > SHORTEST:
        trial, tried = _trial(program, inequalities, point, direction, step)
        reached = measure(inequalities, tried, trial.slacks, point.mu)
        if filter.accepts(start, slope, step, reached):
            after = filter.after(start, slope, step, reached)
            return Found(_with_multipliers(inequalities, point, trial, direction, step, tau), tried, after)
        if step == longest and reached.theta >= start.theta and reached.phi < inf:
            found = _corrected(system, filter, start, slope, step, tau, (trial, tried, reached))
            if found is not None:
                return found
        step *= 0.5
    return None


def _corrected(
    system: NewtonSystem,
    filter: Filter,
    start: Measure,
    slope: float,
    step: float,
    tau: float,
    first: tuple[Iterate, Values, Measure],
) -> Found | None:
    """A point after second-order corrections, which take back what curvature adds to the residuals."""
    program, inequalities, point = system.program, system.inequalities, system.point
    (trial, tried, reached), residuals, share = first, system.residuals, step
    for _ in range(CORRECTIONS):
        new = Residuals(tried.defects, tried.equations, residual(inequalities, tried, trial.slacks))
        residuals = residuals.plus(new, share)
        direction = system.direction(point.mu, residuals)
        share = reach(point.slacks, direction.slacks, tau)
        before = reached.theta
        trial, tried = _trial(program, inequalities, point, direction, share)
        reached = measure(inequalities, tried, trial.slacks, point.mu)
        if filter.accepts(start, slope, step, reached):
            after = filter.after(start, slope, step, reached)
            return Found(_with_multipliers(inequalities, point, trial, direction, share, tau), tried, after)
        if not reached.theta <= PROGRESS * before:
            return None
    return None


def _trial(
    program: Program, inequalities: Inequalities, point: Iterate, d: Direction, step: float
) -> tuple[Iterate, Values]:
    """The point after a step, and its values; slacks of limits grow to what the limits allow."""
    x, u, q = point.x + step * d.x, point.u + step * d.u, point.q + step * d.q
    slacks, bounds = point.slacks + step * d.slacks, inequalities.bounds
    with np.errstate(all="ignore"):
        values = program.values(x, u, q)
        if inequalities.number > bounds:
            slacks[bounds:] = np.fmax(slacks[bounds:], -values.limits)
    return replace(point, x=x, u=u, q=q, slacks=slacks), values


def _with_multipliers(
    inequalities: Inequalities, point: Iterate, trial: Iterate, d: Direction, step: float, tau: float
) -> Iterate:
    y = point.y + reach(point.y, d.y, tau) * d.y
    return replace(
        trial,
        costates=point.costates + step * (d.costates - point.costates),
        nu=point.nu + step * (d.nu - point.nu),
        y=restrained(y, trial.slacks, point.mu * inequalities.weights),
    )
