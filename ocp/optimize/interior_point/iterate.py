"""An iterate, and how far it is from optimality."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from ocp.optimize.interior_point.inequalities import Inequalities
from ocp.optimize.interior_point.kkt import Array
from ocp.optimize.interior_point.program import Derivatives, Program, Values
from ocp.optimize.interior_point.scaling import sizes

__all__ = ["Errors", "Iterate", "errors", "gap", "residual"]


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


#: Multipliers and costs that vanish in the end, as where a target is hit exactly, count as this share of what they
#: were at the start.
VANISHED = 1e-6


@dataclass(frozen=True)
class Errors:
    """How far an iterate is from optimality, in no units.

    Attributes
    ----------
    dual : float
        The largest entry of the derivative of the Lagrangian, relative to the largest of its terms; those of a step are
        divided by h.
    primal : float
        The largest violation of an equation or inequality, relative to the size of states and of the terms of a
        linearized constraint.
    complementarity : float
        The largest product of slack and multiplier, divided by its weight, relative to the cost.
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


def gap(values: Values) -> float:
    """The cost that products of slacks and multipliers are compared with."""
    return max(abs(values.cost), VANISHED)


def errors(
    program: Program, inequalities: Inequalities, point: Iterate, values: Values, at: Derivatives, forces: float = 0.0
) -> Errors:
    """The errors; ``forces`` is the size of terms that cancel within derivatives, where they cannot be seen."""
    n, m, h, costates = program.n, program.m, program.h, point.costates
    by_step, by_end, by_parameters = inequalities.pull(at, point.y)
    terms = [np.abs(a[n : n + m]).max(initial=0.0) / h for a in (by_step, at.gradient)]
    terms += [np.abs(a).max(initial=0.0) for a in (costates, by_end, at.end_gradient, by_parameters)]
    by_step += at.gradient
    by_step += np.einsum("ijk,ki->jk", at.J, costates[1:])
    by_end += at.end_gradient + at.G.T @ point.nu
    by_parameters += by_step[n + m :].sum(1) + by_end[n:] + at.parameter_gradient + at.start.T @ costates[0]
    dual = (
        np.abs(by_step[:n] - costates[:-1].T).max() / h,
        np.abs(by_step[n : n + m]).max(initial=0.0) / h,
        np.abs(by_end[:n] - costates[-1]).max(),
        np.abs(by_parameters).max(initial=0.0),
    )
    states, others = sizes(point.x), np.abs(point.q)
    end, step = np.concatenate((states, others)), np.concatenate((states, sizes(point.u), others))
    limits = np.abs(values.limits + point.slacks[inequalities.bounds :])
    on_path = np.einsum("cik,i->kc", np.abs(at.path), step).max(0)
    primal = (
        _relative(values.defects, states),
        _relative(values.equations, np.abs(at.G) @ end),
        _relative(limits[: inequalities.path].reshape(-1, program.c), on_path) if program.c else 0.0,
        _relative(limits[inequalities.path :], np.abs(at.limits) @ end),
    )
    products = (point.slacks * point.y / inequalities.weights).max(initial=0.0)
    return Errors(
        float(np.max(dual) / max(np.max(terms), forces, VANISHED)), float(np.max(primal)), float(products / gap(values))
    )


def _relative(residuals: Array, sizes: Array) -> float:
    """The largest residual relative to its size, absolute where that is zero."""
    return float((np.abs(residuals) / np.where(sizes > 0, sizes, 1.0)).max(initial=0.0))
