"""An iterate, and how far it is from optimality."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from ocp.optimize.interior_point.inequalities import Inequalities
from ocp.optimize.interior_point.kkt import Array
from ocp.optimize.interior_point.program import Derivatives, Program, Values

__all__ = ["Errors", "Iterate", "errors", "residual"]


@dataclass(frozen=True, eq=False)
class Iterate:
    """States, controls, parameters, and all multipliers.

    Attributes
    ----------
    x, u, q : arrays of shape (N + 1, n), (N, m) and (s,)
    costates, nu : arrays of shape (N + 1, n) and (g,)
        Multipliers of X0(q) - x_0 and Psi_k - x_{k+1}, and of the equations at the end.
    slacks, y : arrays of shape (number of inequalities,)
        Positive; y holds the multipliers.
    mu : float
        The parameter of the barrier.
    """

    x: Array
    u: Array
    q: Array
    costates: Array
    nu: Array
    slacks: Array
    y: Array
    mu: float


@dataclass(frozen=True)
class Errors:
    """How far an iterate is from optimality, Wächter & Biegler (2006), equation 5.

    Attributes
    ----------
    dual : float
        The largest entry of the derivative of the Lagrangian; that of a step is divided by h.
    primal : float
        The largest violation of an equation or inequality.
    complementarity : float
        The largest product of slack and multiplier, divided by its weight.
    """

    dual: float
    primal: float
    complementarity: float

    @property
    def largest(self) -> float:
        """The largest of them; NaN if one is."""
        return float(np.max((self.dual, self.primal, self.complementarity)))


def residual(inequalities: Inequalities, values: Values, slacks: Array) -> Array:
    """Limits plus slacks, and zero for bounds."""
    bounds = inequalities.bounds
    return np.concatenate((np.zeros(bounds), values.limits + slacks[bounds:]))


def errors(program: Program, inequalities: Inequalities, point: Iterate, values: Values, at: Derivatives) -> Errors:
    """The errors; dual errors are relative to the mean multiplier where that is above 100, as in the source."""
    n, m, h, costates = program.n, program.m, program.h, point.costates
    by_step, by_end, by_parameters = inequalities.pull(at, point.y)
    by_step += at.gradient
    by_step += np.einsum("ijk,ki->jk", at.J, costates[1:])
    by_end += at.end_gradient + at.G.T @ point.nu
    by_parameters += by_step[n + m :].sum(1) + by_end[n:] + at.parameter_gradient + at.start.T @ costates[0]
    by_state = by_step[:n] - costates[:-1].T
    sizes = np.abs(costates).sum() + (np.abs(point.y) / inequalities.weights).sum() + np.abs(point.nu).sum()
    scale = max(100.0, sizes / max(1, costates.size + point.y.size + point.nu.size)) / 100
    dual = (
        np.abs(by_state).max() / h,
        np.abs(by_step[n : n + m]).max(initial=0.0) / h,
        np.abs(by_end[:n] - costates[-1]).max(),
        np.abs(by_parameters).max(initial=0.0),
    )
    primal = (
        np.abs(values.defects).max(),
        np.abs(values.equations).max(initial=0.0),
        np.abs(residual(inequalities, values, point.slacks)).max(initial=0.0),
    )
    products = point.slacks * point.y / inequalities.weights
    return Errors(float(np.max(dual) / scale), float(np.max(primal)), float(products.max(initial=0.0) / scale))
