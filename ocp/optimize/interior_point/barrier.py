"""The parameter of the barrier, and steps that keep slacks and multipliers positive."""

from __future__ import annotations

import numpy as np

from ocp.optimize.interior_point.kkt import Array

__all__ = ["probe", "reach", "restrained", "share_kept"]

#: The least share of the way to the boundary that a step may take: Wächter & Biegler (2006), equation 8.
SHARE = 0.99

#: Multipliers stay within this factor of mu / slack: there, equation 16.
FACTOR = 1e10


def share_kept(mu: float) -> float:
    """tau, the share of the way to the boundary that a step may take."""
    return max(SHARE, 1 - mu)


def reach(values: Array, step: Array, tau: float) -> float:
    """The longest step up to 1 that takes no value more than ``tau`` of its way to zero."""
    if not len(values):
        return 1.0
    steepest = float((-step / values).max())
    return min(1.0, tau / steepest) if steepest > 0 else 1.0


def probe(slacks: Array, y: Array, ahead: tuple[Array, Array], tau: float, total: float) -> float:
    """The mu that the direction for mu = 0 suggests: Mehrotra (1992), "On the implementation of a primal-dual interior
    point method".

    ``ahead`` are the displacements of slacks and multipliers in that direction, ``total`` is the sum of the weights.
    The mean product now is reduced by the cube of the share that would be left of it.
    """
    ds, dy = ahead
    now = float(slacks @ y) / total
    then = float((slacks + reach(slacks, ds, tau) * ds) @ (y + reach(y, dy, tau) * dy)) / total
    return min(1.0, (then / now) ** 3) * now


def restrained(y: Array, slacks: Array, central: Array) -> Array:
    """Multipliers within `FACTOR` of ``central`` / slack, so that the Hessian stays near that of the barrier."""
    return np.clip(y, central / (FACTOR * slacks), FACTOR * central / slacks)
