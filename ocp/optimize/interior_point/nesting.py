"""From one grid to the next finer one: everything is prolonged, multipliers too."""

from __future__ import annotations

from dataclasses import replace

import numpy as np

from ocp.optimize.interior_point.inequalities import Inequalities
from ocp.optimize.interior_point.iterate import Iterate
from ocp.optimize.interior_point.kkt import Array
from ocp.optimize.interior_point.program import Program, Values

__all__ = ["prolonged", "settled", "shifted", "with_slacks"]

#: The parameter of the barrier with which a finer grid begins. Tuned on twelve problems of control.
MU = 1e-6

#: The least distance from a bound, as a share of the distance between bounds, and the least slack of a limit.
DISTANCE, SLACK = 1e-9, 1e-10

#: Prolonged multipliers stay within these factors of mu / slack: those of bounds and of limits.
FACTORS = 1e3, 10.0

#: A limit that is violated or active within this distance gets the slack that its multiplier suggests.
NEAR = 1e-4


def prolonged(point: Iterate, coarse: Inequalities, fine: Inequalities) -> Iterate:
    """An iterate on a finer grid: linear between nodes, and between the midpoints of steps.

    Multipliers of what holds in each step are densities times h. Slacks are zero until it is `settled`.
    """
    by_step, constant = coarse.spread(point.y / coarse.weights)
    y = fine.gather(_at_midpoints(by_step, fine.steps), constant) * fine.weights
    return replace(
        point,
        x=_at_nodes(point.x, fine.steps),
        u=_at_midpoints(point.u, fine.steps),
        costates=_at_nodes(point.costates, fine.steps),
        slacks=np.zeros(fine.number),
        y=y,
        mu=MU,
    )


def settled(point: Iterate, program: Program) -> Iterate:
    """The controls and parameters of an iterate moved just inside their bounds."""
    u, q = (
        shifted(point.u, program.lower, program.upper, DISTANCE),
        shifted(point.q, program.least, program.most, DISTANCE),
    )
    return replace(point, u=u, q=q)


def with_slacks(point: Iterate, inequalities: Inequalities, values: Values) -> Iterate:
    """Slacks that fit the values, and multipliers that fit the slacks."""
    bounds, central = inequalities.bounds, point.mu * inequalities.weights
    distances, room = np.maximum(inequalities.distances(point.u, point.q), SLACK * DISTANCE), -values.limits
    suggested = central[bounds:] / np.maximum(point.y[bounds:], np.finfo(float).tiny)
    limits = np.maximum(np.maximum(room, SLACK), np.minimum(suggested, np.maximum(room, NEAR)))
    slacks, factors = np.concatenate((distances, limits)), np.full(inequalities.number, FACTORS[1])
    factors[:bounds] = FACTORS[0]
    return replace(point, slacks=slacks, y=np.clip(point.y, central / slacks / factors, central / slacks * factors))


def shifted(u: Array, lower: Array, upper: Array, share: float) -> Array:
    """Numbers moved inside bounds by a share of the distance between these, or of 1 if that is larger."""
    width = share * np.minimum(upper - lower, 1.0)
    return np.clip(u, lower + width, upper - width)


def _at_nodes(values: Array, steps: int) -> Array:
    return _between(values, np.arange(len(values)) / (len(values) - 1), np.arange(steps + 1) / steps)


def _at_midpoints(values: Array, steps: int) -> Array:
    return _between(values, (np.arange(len(values)) + 0.5) / len(values), (np.arange(steps) + 0.5) / steps)


def _between(values: Array, known: Array, wanted: Array) -> Array:
    found = np.empty((len(wanted), values.shape[1]))
    for column, entry in zip(found.T, values.T, strict=True):
        column[...] = np.interp(wanted, known, entry)
    return found
