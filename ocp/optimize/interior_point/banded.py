"""The Newton system by LU factorization of a band matrix: LAPACK's dgbtrf and dgbtrs."""

from __future__ import annotations

import numpy as np
from numpy.lib.stride_tricks import as_strided
from scipy.linalg import lapack

from ocp.optimize.interior_point.kkt import Array, Layout, Model

__all__ = ["BandedLU"]


class BandedLU:
    """Band LU with partial pivoting.

    The number of negative eigenvalues is known up to a multiple of two, from the sign of the determinant.
    """

    def assemble(self, layout: Layout, model: Model) -> None:
        self._layout, self._model = layout, model
        # Within a step from the first state to the last multiplier of the next step; at the end to the last equation.
        self._width = max(layout.block - 1, layout.n + layout.g - 1)

    def factor(self, primal: float, dual: float) -> bool:
        layout, width = self._layout, self._width
        self._lu, self._pivots, info = lapack.dgbtrf(self._band(primal, dual).T, width, width, overwrite_ab=1)
        if info != 0:
            return False
        swapped = self._pivots != np.arange(layout.size)
        odd = np.count_nonzero(self._lu[2 * width] < 0) + np.count_nonzero(swapped)
        return bool((odd - layout.negative) % 2 == 0)

    def solve(self, right: Array) -> Array:
        solution: Array = lapack.dgbtrs(self._lu, self._width, self._width, right, self._pivots)[0]
        return solution

    def _band(self, primal: float, dual: float) -> Array:
        """The matrix in LAPACK's storage, transposed: entry (i, j) in row j, column 2 width + i - j."""
        layout, model, width = self._layout, self._model, self._width
        n, block, N, g, last = layout.n, layout.block, layout.N, layout.g, 2 * layout.n + layout.g
        row = 3 * width + 1
        band = np.zeros((layout.size, row))
        flat = band.reshape(-1)

        def blocks(down: int, number: int, size: int, first: int = 0) -> Array:
            """A view of blocks, ``down`` places below the diagonal: by block, by column, by row."""
            at = first * block * row + 2 * width + (block * down if down >= 0 else block * row - block)
            item = flat.itemsize
            return as_strided(flat[at:], (number, size, size), (block * row * item, (row - 1) * item, item))

        J, H = model.J[:, : n + layout.m], model.H[: n + layout.m, : n + layout.m]
        diagonal, below, above = blocks(0, N, block), blocks(1, N, block), blocks(-1, N, block)
        diagonal[:, n:, n:] = H.transpose(2, 1, 0)
        below[:, n:, :n] = J.transpose(2, 1, 0)
        above[:, :n, n:] = J.transpose(2, 0, 1)
        end = blocks(0, 1, last, N)
        end[0, n : 2 * n, n : 2 * n] = model.end[:n, :n]
        end[0, 2 * n :, n : 2 * n] = model.G[:, :n]
        end[0, n : 2 * n, 2 * n :] = model.G[:, :n].T
        if primal:
            for k in range(n, block):
                diagonal[:, k, k] += primal * model.h
            for k in range(n, 2 * n):
                end[0, k, k] += primal * model.h
        for k in range(g):
            end[0, 2 * n + k, 2 * n + k] = -dual
        for k in range(n):
            diagonal[:, k, n + k] = diagonal[:, n + k, k] = end[:, k, n + k] = end[:, n + k, k] = -1.0
        return band
