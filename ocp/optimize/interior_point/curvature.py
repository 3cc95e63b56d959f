"""Whether a stationary point is a minimum, by the exact inertia, and the way down from one that is not."""

from __future__ import annotations

from dataclasses import replace

import numpy as np

from ocp.optimize.interior_point.barrier import reach, restrained
from ocp.optimize.interior_point.direction import DUAL, MOST, NewtonSystem
from ocp.optimize.interior_point.iterate import Iterate
from ocp.optimize.interior_point.kkt import Array

__all__ = ["beyond", "is_minimum"]

#: Negative curvature below this share of the largest second derivative counts as none, which singular arcs have.
FLAT = 1e-6

#: The growth of the shift until it makes the Hessian positive, and the steps of inverse iteration with it.
GROWTH, SOLVES = 4.0, 20

#: How far to go from a saddle point: this share of the largest state, control and parameter, and of the way to a bound.
STRIDE, SHARE = 0.1, 0.5


def is_minimum(system: NewtonSystem) -> bool:
    """Whether the curvature is not negative along any feasible direction; the solver has to know the inertia."""
    return system.system.factor(_flat(system), DUAL)


def beyond(system: NewtonSystem, side: int) -> Iterate | None:
    """A point off a saddle point, along the direction of the most negative curvature, to one of its two sides.

    The direction is found by inverse iteration among those that keep the linearized constraints. None if no shift makes
    the Hessian positive.
    """
    shift, point, program, inequalities = _flat(system), system.point, system.program, system.inequalities
    while not system.system.factor(shift, DUAL):
        shift = max(GROWTH * shift, FLAT)
        if not shift <= MOST:
            return None
    random, (free, chosen) = np.random.default_rng(0), program.free
    x, u = random.standard_normal(point.x.shape), random.standard_normal(point.u.shape) * free.T
    q = random.standard_normal(point.q.shape) * chosen
    none, nothing = np.zeros_like(point.x), np.zeros(program.g)
    for _ in range(SOLVES):
        size = np.sqrt(program.h * ((x**2).sum() + (u**2).sum()) + (q**2).sum())
        x, u, q = x / size, u / size, q / size
        z = program.h * np.concatenate((x[:-1], u), 1)
        packed, q = system.system.solve(program.layout.pack(none, z, program.h * x[-1], nothing), q)
        _, x, u, _ = program.layout.unpack(packed)
    slacks = -inequalities.along(system.at, x, u, q)
    stride = STRIDE / max(_relative(x, point.x), _relative(u, point.u), _relative(q, point.q))
    step = side * min(stride, reach(point.slacks, side * stride * slacks, SHARE) * stride)
    slacks = point.slacks + step * slacks
    y = restrained(point.y, slacks, point.mu * inequalities.weights)
    return replace(point, x=point.x + step * x, u=point.u + step * u, q=point.q + step * q, slacks=slacks, y=y)


def _flat(system: NewtonSystem) -> float:
    """The curvature that counts as none."""
    at, h = system.at, system.program.h
    return FLAT * max(float(np.abs(at.H).max()) / h, float(np.abs(at.end_hessian).max()))


def _relative(step: Array, values: Array) -> float:
    """The largest entry of a step relative to the largest value in its column, absolute where that is zero."""
    sizes = np.abs(values).max(0, initial=0.0) if values.ndim > 1 else np.abs(values)
    return float((np.abs(step) / np.where(sizes > 0, sizes, 1.0)).max(initial=0.0))
