"""The Newton system by a Riccati recursion over the steps: exact inertia, and the gains of a feedback law."""

from __future__ import annotations

import numpy as np
from scipy.linalg import lapack

from ocp.optimize.interior_point.kkt import Array, Layout, Model

__all__ = ["Riccati"]

#: Weight of the equations at the end in the Hessian, relative to its own size. It changes no solution; a larger one
#: spoils more digits, a smaller one may not make the Hessian positive where only the equations do.
EQUATIONS = 1e4


class Riccati:
    """Backward elimination of the controls by Cholesky factors: Rao, Wright & Rawlings (1998), "Application of
    interior-point methods to model predictive control".

    A factorization succeeds only if the model has a strict minimum. Equations at the end are eliminated last, with
    nu' = nu - w G x in place of nu. This change of unknowns adds a multiple of G^T G to the Hessian at the end, which
    makes the rest of the system positive, and leaves the inertia as it is.

    Attributes
    ----------
    gains : array of shape (N, m, n)
        K_k: near the solution the optimal control of a disturbed state is u_k + K_k dx_k, if no equation has to hold at
        the end.
    """

    gains: Array

    def assemble(self, layout: Layout, model: Model) -> None:
        self._layout, self._model = layout, model
        self._J = np.ascontiguousarray(model.J[:, : layout.n + layout.m].transpose(2, 0, 1))
        self._H = np.ascontiguousarray(model.H[: layout.n + layout.m, : layout.n + layout.m].transpose(2, 0, 1))

    def factor(self, primal: float, dual: float) -> bool:
        layout, model = self._layout, self._model
        n, m, N = layout.n, layout.m, layout.N
        G = model.G[:, :n]
        size = max(np.abs(model.end[:n, :n]).max(initial=0.0), np.abs(self._H).max(initial=0.0), model.h)
        weight = EQUATIONS * size / (float((G**2).sum()) or 1.0)
        self._weight = min(weight, 0.5 / dual) if dual else weight
        self._share = 1 - self._weight * dual
        P = model.end[:n, :n] + primal * model.h * np.eye(n) + self._weight * (1 + self._share) * G.T @ G
        self._P, self._factors = np.empty((N + 1, n, n)), np.empty((N, m, m))
        self.gains = np.empty((N, m, n))
        self._P[N] = P
        shift = primal * model.h * np.eye(n + m)
        for k in range(N - 1, -1, -1):
            J = self._J[k]
            M = self._H[k] + shift + J.T @ P @ J
            factor, info = lapack.dpotrf(M[n:, n:], lower=1)
            if info != 0:
                return False
            self._factors[k] = factor
            self.gains[k] = -_solved(factor, M[n:, :n])
            P = M[:n, :n] + M[:n, n:] @ self.gains[k]
            P = self._P[k] = (P + P.T) / 2
        self._border = None
        if layout.g:
            columns = np.zeros((layout.size, layout.g))
            columns[layout.size - layout.g - n : layout.size - layout.g] = G.T
            self._image = self._recursion(columns)
            self._border = -(self._share**2) * columns.T @ self._image - dual * np.eye(layout.g)
            if np.linalg.eigvalsh(self._border)[-1] >= 0:
                return False
        return bool(np.isfinite(self._P[0]).all())

    def solve(self, right: Array) -> Array:
        layout = self._layout
        columns = right.reshape(layout.size, -1)
        if self._border is None:
            return np.reshape(self._recursion(columns), right.shape)
        n, g = layout.n, layout.g
        G, rows = self._model.G[:, :n], slice(layout.size - g - n, layout.size - g)
        shifted, equations = columns.copy(), columns[-g:]
        shifted[rows] += self._weight * G.T @ equations
        shifted[-g:] = 0.0
        first = self._recursion(shifted)
        nu = np.linalg.solve(self._border, equations - self._share * G @ first[rows])
        solution = first - self._share * self._image @ nu
        solution[-g:] = nu + self._weight * G @ solution[rows]
        return np.reshape(solution, right.shape)

    def _recursion(self, columns: Array) -> Array:
        """Solve without the equations at the end, for right-hand sides of shape (size, columns)."""
        layout = self._layout
        n, N, block = layout.n, layout.N, layout.block
        steps = columns[: N * block].reshape(N, block, -1)
        last, solution = columns[N * block :], np.zeros_like(columns)
        found, end = solution[: N * block].reshape(N, block, -1), solution[N * block :]
        p = last[n : 2 * n]  # the costate is P x - p
        forces = [p] * N
        offsets = np.empty((N + 1, n, columns.shape[1]))
        offsets[N] = p
        for k in range(N - 1, -1, -1):
            defect = steps[k + 1, :n] if k + 1 < N else last[:n]
            right = steps[k, n:] + self._J[k].T @ (self._P[k + 1] @ defect + offsets[k + 1])
            forces[k] = _solved(self._factors[k], right[n:])
            offsets[k] = right[:n] + self.gains[k].T @ right[n:]
        x = -(steps[0, :n] if N else last[:n])
        for k in range(N):
            u = forces[k] + self.gains[k] @ x
            found[k, :n], found[k, n : 2 * n], found[k, 2 * n :] = self._P[k] @ x - offsets[k], x, u
            defect = steps[k + 1, :n] if k + 1 < N else last[:n]
            x = self._J[k] @ found[k, n:] - defect
        end[:n], end[n : 2 * n] = self._P[N] @ x - offsets[N], x
        return solution


def _solved(factor: Array, right: Array) -> Array:
    """Solve with a Cholesky factor, which LAPACK does not do without rows."""
    solution: Array = lapack.dpotrs(factor, right, lower=1)[0] if len(right) else right
    return solution
