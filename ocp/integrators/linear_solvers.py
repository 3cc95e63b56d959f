"""Linear systems with I - scale df/dx and its transpose, which the stages of implicit schemes solve."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any, Protocol

import torch
from torch import Tensor

from ocp.problem.protocols import Dynamics
from ocp.problem.shapes import BatchState, StepControl

__all__ = ["ConstantJacobian", "DenseLU", "Factorization", "LinearSolver"]


class Factorization(Protocol):
    """The factors of one matrix; right-hand sides and solutions have the shape of the state."""

    def solve(self, r: BatchState) -> BatchState:
        """The solution y of (I - scale df/dx) y = r."""

    def solve_transposed(self, r: BatchState) -> BatchState:
        """The solution y of (I - scale df/dx)^T y = r."""


class LinearSolver(Protocol):
    """A way to factor I - scale df/dx: dense, or by the structure of the dynamics (banded, sparse, FFT).

    The derivative has to be exact: for Newton's method to converge as expected, and for the adjoint to be
    the transpose of the step.
    """

    def factor(self, f: Dynamics, t: float, x: BatchState, u: StepControl, scale: float) -> Factorization:
        """The factors of I - scale df/dx at (t, x, u)."""


@dataclass(frozen=True, eq=False)
class _LU:
    """Factors of one matrix for each sample, or of one for all of them."""

    factors: Tensor
    pivots: Tensor

    def _solve(self, r: BatchState, adjoint: bool) -> Tensor:
        columns = r.flatten(1).unsqueeze(2) if self.factors.ndim == 3 else r.flatten(1).t()
        y: Tensor = torch.linalg.lu_solve(self.factors, self.pivots, columns, adjoint=adjoint)
        return (y if self.factors.ndim == 3 else y.t()).reshape(r.shape)

    def solve(self, r: BatchState) -> BatchState:
        return self._solve(r, adjoint=False)

    def solve_transposed(self, r: BatchState) -> BatchState:
        return self._solve(r, adjoint=True)


def _lu(matrix: Tensor) -> _LU:
    """LU factors with pivots. A singular matrix raises nothing: its solutions are not finite."""
    factors, pivots, _ = torch.linalg.lu_factor_ex(matrix)
    return _LU(factors, pivots)


@dataclass(frozen=True)
class DenseLU:
    """Dense LU factors of one matrix for each sample; the right choice for states of up to a few hundred numbers.

    For states of n numbers, the Jacobians of all samples come from one ``jvp`` on n copies of the batch. So the
    dynamics have to take batches of any size, and to treat each sample by itself.

    Examples
    --------
    >>> from ocp.problem.dynamics import FunctionDynamics
    >>> f, x = FunctionDynamics(lambda t, x, u: -3 * x, control_size=1), torch.ones(1, 2)
    >>> DenseLU().factor(f, 0.0, x, torch.zeros(1), scale=1.0).solve(x)
    tensor([[0.2500, 0.2500]])
    """

    def factor(self, f: Dynamics, t: float, x: BatchState, u: StepControl, scale: float) -> Factorization:
        batch, n = len(x), x[0].numel()
        identity = torch.eye(n, dtype=x.dtype, device=x.device)
        directions = identity.repeat_interleave(batch, dim=0).view(n * batch, *x.shape[1:])
        columns = f.jvp(t, x.repeat(n, *[1] * (x.ndim - 1)), u, directions, torch.zeros_like(u))
        jacobian = columns.view(n, batch, n).permute(1, 2, 0)  # by sample, by entry of f, by entry of x
        return _lu(identity - scale * jacobian)


@dataclass(frozen=True, eq=False)
class ConstantJacobian:
    """For dynamics f(t, x, u) = A x + g(t, u): the factors are computed once for each scale, type and device.

    Parameters
    ----------
    matrix : Tensor
        A, shape (n, n); it acts on the flattened state of each sample.

    Raises
    ------
    ValueError
        If the matrix is not square.

    Examples
    --------
    >>> from ocp.problem.dynamics import FunctionDynamics
    >>> A, x = torch.tensor([[0.0, 1.0], [-1.0, 0.0]]), torch.ones(1, 2)
    >>> f = FunctionDynamics(lambda t, x, u: x @ A.T, control_size=1)
    >>> ConstantJacobian(A).factor(f, 0.0, x, torch.zeros(1), scale=1.0).solve(x)
    tensor([[1., 0.]])
    """

    matrix: Tensor
    _kept: dict[tuple[Any, ...], Factorization] = field(default_factory=dict, repr=False, compare=False)

    def __post_init__(self) -> None:
        if self.matrix.ndim != 2 or self.matrix.shape[0] != self.matrix.shape[1]:
            raise ValueError(f"matrix: expected a square matrix, got shape {tuple(self.matrix.shape)}")

    def factor(self, f: Dynamics, t: float, x: BatchState, u: StepControl, scale: float) -> Factorization:
        key = (scale, x.dtype, x.device)
        if key not in self._kept:
            matrix = self.matrix.to(x)
            self._kept[key] = _lu(torch.eye(len(matrix)).to(x) - scale * matrix)
        return self._kept[key]
