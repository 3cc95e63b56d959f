"""Parameters as a border of the Newton system, eliminated by their Schur complement."""

from __future__ import annotations

import numpy as np

from ocp.optimize.interior_point.kkt import Array, Layout, Model, Solver

__all__ = ["Bordered"]


class Bordered:
    """The whole system: that of a `Solver`, and rows and columns for s parameters."""

    def __init__(self, solver: Solver):
        self.solver = solver

    def assemble(self, layout: Layout, model: Model) -> None:
        """Take the numbers of a new system."""
        self.layout = layout
        n, cut = layout.n, layout.n + layout.m
        self.solver.assemble(layout, model)
        if layout.s:
            by_step = model.J[:, cut:].transpose(2, 0, 1)
            self._columns = layout.pack(
                np.concatenate((model.start[None], by_step)),
                model.H[:cut, cut:].transpose(2, 0, 1),
                model.end[:n, n:],
                model.G[:, n:],
            )
            self._corner = model.H[cut:, cut:].sum(2) + model.end[n:, n:] + model.parameters

    def factor(self, primal: float, dual: float) -> bool:
        """As `Solver.factor`; ``primal`` is added for the parameters, too."""
        if not self.solver.factor(primal, dual):
            return False
        if self.layout.s:
            self._image = self.solver.solve(self._columns)
            self._schur = self._corner + primal * np.eye(self.layout.s) - self._columns.T @ self._image
            if not np.isfinite(self._schur).all():
                return False
            return bool(np.linalg.eigvalsh(self._schur)[0] > 0)
        return True

    def solve(self, right: Array, parameters: Array) -> tuple[Array, Array]:
        """The packed solution and the parameters, for right-hand sides of shapes (size,) and (s,)."""
        solution = self.solver.solve(right)
        if not self.layout.s:
            return solution, parameters
        q = np.linalg.solve(self._schur, parameters - self._columns.T @ solution)
        return solution - self._image @ q, q
