"""The trajectory of a control by Newton's method on all steps at once, and its costates by one transposed solve.

For states of few numbers these are much faster than loops over time, and equal to them up to rounding: Lim, Zhu,
Selfridge & Kasim (2024), "Parallelizing non-linear sequential models over the sequence length".
"""

from __future__ import annotations

from typing import Any

import numpy as np
import torch
from numpy.lib.stride_tricks import as_strided
from numpy.typing import NDArray
from scipy.linalg import lapack
from torch import Tensor

from ocp.adjoint.all_steps import Steps

__all__ = ["Bidiagonal", "roll_out"]

#: The most iterations. From a trajectory nearby two or three are enough; where more than that do not settle it, steps
#: one after the other are faster and safe.
ITERATIONS = 8


class Bidiagonal:
    """The linear equations x_0 = r_0, x_{k+1} - A_k x_k = r_{k+1}.

    Parameters
    ----------
    A : array of shape (n, n, N)
        In float64 or float32.
    """

    def __init__(self, A: NDArray[Any]):
        n, _, N = A.shape
        # Entry (i, j) is in row j and column i - j; the ones on the diagonal are not stored.
        self._band = np.zeros(((N + 1) * n, 2 * n), A.dtype)
        item = self._band.itemsize
        blocks = as_strided(self._band.reshape(-1)[n:], (N, n, n), (2 * n * n * item, (2 * n - 1) * item, item))
        np.negative(A.transpose(2, 1, 0), out=blocks)

    def solve(self, right: NDArray[Any], transposed: bool = False) -> NDArray[Any]:
        """The solution x, or that of the transposed equations, for r of shape (N + 1, n)."""
        solve = lapack.dtbtrs if self._band.dtype == np.float64 else lapack.stbtrs
        found = solve(self._band.T, right.reshape(-1, 1), uplo="L", trans="T" if transposed else "N", diag="U")[0]
        return np.reshape(found, right.shape)


def roll_out(steps: Steps, t: Tensor, first: Tensor, guess: Tensor, v: Tensor) -> tuple[Tensor, Tensor, Any] | None:
    """States, shape (N + 1, n), with ends and costs and what `Steps.take` returned for them.

    None if Newton's method does not settle, from a guess of all states.
    """
    x = guess.clone()
    x[0] = first
    eps = torch.finfo(x.dtype).eps
    last = False
    for _ in range(ITERATIONS):
        ends, taken = steps.take(t, x[:-1], v)
        residuals = torch.cat((torch.zeros_like(x[:1]), ends[:, :-1] - x[1:]))
        if not bool(residuals.isfinite().all()):
            return None
        if last:
            return x, ends, taken
        A = steps.jacobians(t, taken, v)[:-1, : x.shape[1]].numpy()
        update = torch.from_numpy(Bidiagonal(A).solve(residuals.numpy()))
        x = x + update
        # Each iteration doubles the correct digits.
        last = bool((update.abs().amax(0) <= eps**0.5 * x.abs().amax(0)).all())
    return None
