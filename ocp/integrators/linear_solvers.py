"""Linear systems with I - scale df/dx and its transpose, which the stages of implicit schemes solve."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any, Protocol

import torch
from torch import Tensor

from ocp.problem.functions import jacobian
from ocp.problem.protocols import Dynamics, SampleWise
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

    The derivative has to be exact: Newton's method relies on it, and so does the adjoint.
    """

    def factor(self, f: Dynamics, t: float, x: BatchState, u: StepControl, scale: float) -> Factorization:
        """The factors of I - scale df/dx at (t, x, u)."""


class _LU:
    """Factors of one matrix for each sample, or of one for all; those of a singular one give infinite solutions."""

    def __init__(self, matrix: Tensor):
        self.factors, self.pivots, _ = torch.linalg.lu_factor_ex(matrix)

    def solve(self, r: BatchState, adjoint: bool = False) -> Tensor:
        separate = self.factors.ndim == 3
        columns = r.flatten(1).unsqueeze(2) if separate else r.flatten(1).t()
        y: Tensor = torch.linalg.lu_solve(self.factors, self.pivots, columns, adjoint=adjoint)
        return (y if separate else y.t()).reshape(r.shape)

    def solve_transposed(self, r: BatchState) -> Tensor:
        return self.solve(r, adjoint=True)


@dataclass(frozen=True)
class DenseLU:
    """Dense LU factors of one matrix for each sample; the right choice for states of up to a few hundred numbers.

    The Jacobians come from the dynamics if they are `SampleWise`, otherwise from n ``vjp``. Each sample must be treated
    by itself.

    Examples
    --------
    >>> from ocp.problem.dynamics import FunctionDynamics
    >>> f, x = FunctionDynamics(lambda t, x, u: -3 * x, control_size=1), torch.ones(1, 2)
    >>> DenseLU().factor(f, 0.0, x, torch.zeros(1), scale=1.0).solve(x)
    tensor([[0.2500, 0.2500]])
    """

    def factor(self, f: Dynamics, t: float, x: BatchState, u: StepControl, scale: float) -> Factorization:
        blocks = f.jacobian(t, x, u) if isinstance(f, SampleWise) else jacobian(lambda p: f.vjp(t, x, u, p)[0], x)
        return _LU(torch.eye(blocks.shape[1], dtype=x.dtype, device=x.device) - scale * blocks)


@dataclass(frozen=True, eq=False)
class ConstantJacobian:
    """For dynamics f(t, x, u) = A x + g(t, u): factors once for each scale, type and device.

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
            self._kept[key] = _LU(torch.eye(len(matrix)).to(x) - scale * matrix)
        return self._kept[key]
