"""The Newton direction of the barrier problem, with the Hessian made positive where it has to be."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from ocp.optimize.interior_point.border import Bordered
from ocp.optimize.interior_point.inequalities import Inequalities
from ocp.optimize.interior_point.iterate import Iterate, residual
from ocp.optimize.interior_point.kkt import Array
from ocp.optimize.interior_point.program import Derivatives, Program, Values

__all__ = ["DUAL", "Direction", "NewtonSystem", "Residuals"]

#: The shift of the Hessian: first tried, least, largest, its growth at first and later, and its decrease from one
#: iteration to the next. As in Wächter & Biegler (2006), section 3.1, with larger first steps.
FIRST, LEAST, MOST, GROW_FIRST, GROW, DECREASE = 1e-2, 1e-8, 1e12, 20.0, 8.0, 1 / 3

#: Of the equations at the end, so that they need not be independent.
DUAL = 1e-12


@dataclass(frozen=True, eq=False)
class Residuals:
    """What a step has to make up for: defects, equations at the end, inequalities with their slacks."""

    defects: Array
    equations: Array
    limits: Array

    def plus(self, other: Residuals, share: float) -> Residuals:
        """``share`` times these residuals plus others."""
        return Residuals(
            share * self.defects + other.defects,
            share * self.equations + other.equations,
            share * self.limits + other.limits,
        )


@dataclass(frozen=True, eq=False)
class Direction:
    """Displacements of an iterate; ``costates`` and ``nu`` are the new multipliers themselves."""

    x: Array
    u: Array
    q: Array
    costates: Array
    nu: Array
    slacks: Array
    y: Array


class NewtonSystem:
    """The Newton system at one iterate.

    Slacks and their multipliers are eliminated, so that the rest has the structure of `kkt`. One factorization gives
    the directions for all values of mu and all residuals.
    """

    def __init__(
        self,
        program: Program,
        inequalities: Inequalities,
        system: Bordered,
        point: Iterate,
        values: Values,
        at: Derivatives,
    ):
        self.program, self.inequalities, self.system = program, inequalities, system
        self.point, self.values, self.at = point, values, at
        self.residuals = Residuals(values.defects, values.equations, residual(inequalities, values, point.slacks))
        self._sigma = point.y / point.slacks
        self._model = inequalities.model(at, self._sigma)
        system.assemble(program.layout, self._model)

    def factor(self, last: float) -> tuple[float, Direction | None]:
        """Shift the Hessian until the direction is one of descent for the barrier problem.

        Given the last shift that was needed, 0 at first, it returns the shift and the direction for the current mu,
        or None if no shift helps.
        """
        shift = 0.0
        while shift <= MOST:
            if self.system.factor(shift, DUAL):
                direction = self.direction(self.point.mu)
                if np.isfinite(direction.u).all() and self._descends(direction, shift):
                    return shift, direction
            if shift == 0:
                shift = max(LEAST, DECREASE * last) if last else FIRST
            else:
                shift *= GROW if last else GROW_FIRST
        return shift, None

    def direction(self, mu: float, residuals: Residuals | None = None) -> Direction:
        """The direction towards slack times multiplier = mu, and towards zero residuals."""
        program, point, at, ineq = self.program, self.point, self.at, self.inequalities
        n, m, r = program.n, program.m, self.residuals if residuals is None else residuals
        central = mu * ineq.weights / point.slacks
        by_step, by_end, by_parameters = ineq.pull(at, central + self._sigma * r.limits)
        by_step += at.gradient
        by_end += at.end_gradient
        by_parameters += by_step[n + m :].sum(1) + by_end[n:] + at.parameter_gradient
        right = program.layout.pack(-r.defects, -by_step[: n + m].T, -by_end[:n], -r.equations)
        packed, q = self.system.solve(right, -by_parameters)
        costates, x, u, nu = program.layout.unpack(packed)
        slacks = -r.limits - ineq.along(at, x, u, q)
        return Direction(x, u, q, costates, nu, slacks, central - point.y - self._sigma * slacks)

    def slope(self, d: Direction, mu: float) -> float:
        """The derivative of the barrier function along a direction."""
        n, m, at, point = self.program.n, self.program.m, self.at, self.point
        by_state = np.einsum("ik,ki->", at.gradient[:n], d.x[:-1]) + at.end_gradient[:n] @ d.x[-1]
        by_control = np.einsum("ik,ki->", at.gradient[n : n + m], d.u)
        by_parameters = at.gradient[n + m :].sum(1) + at.end_gradient[n:] + at.parameter_gradient
        barrier = mu * float((self.inequalities.weights * d.slacks / point.slacks).sum())
        return float(by_state + by_control + by_parameters @ d.q) - barrier

    def _descends(self, d: Direction, shift: float) -> bool:
        """Whether the curvature along a direction, apart from what the equations contribute, is positive."""
        N, model, h = len(d.u), self._model, self.program.h
        z = np.concatenate((d.x[:-1], d.u, np.broadcast_to(d.q, (N, len(d.q)))), 1).T
        end = np.concatenate((d.x[-1], d.q))
        size = h * float((d.x**2).sum() + (d.u**2).sum()) + float(d.q @ d.q)
        curvature = float((z * np.einsum("ijk,jk->ik", model.H, z)).sum())
        curvature += float(end @ model.end @ end + d.q @ model.parameters @ d.q) + shift * size
        equations = -float((d.costates * self.residuals.defects).sum() + d.nu @ self.residuals.equations)
        return curvature + max(0.0, equations) >= 1e-10 * size
