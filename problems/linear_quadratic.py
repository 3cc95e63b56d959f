"""Regulate a random linear system of any size at quadratic cost; the optimum of every grid is known.

Minimize (x(T)^T S x(T) + integral of x^T Q x + u^T R u) / 2 subject to x' = A x + B u, x(0) = x0: Kalman (1960),
"Contributions to the theory of optimal control". The optimum is x0^T P(0) x0 / 2, where P solves the Riccati equation

    -P' = Q + A^T P + P A - P B R^(-1) B^T P,   P(T) = S.

On a grid, a Runge-Kutta step with the control held is a linear map x_{k+1} = F x_k + G u_k, and the running cost over
it a quadratic form M of (x_k, u_k), so that the discrete Riccati recursion gives the discrete optimum.
"""

from __future__ import annotations

from dataclasses import dataclass
from math import ceil

import torch
from torch import Tensor

from ocp import LINEAR, ControlProblem, Stop, Study, Target
from ocp.integrators.tableaus import EULER, Tableau

__all__ = ["LinearQuadratic", "continuous_optimum", "control_problem", "optimum", "problem", "random"]


@dataclass(frozen=True)
class LinearQuadratic:
    """A linear system with quadratic costs.

    Parameters
    ----------
    A, B : Tensor
        Shapes (n, n) and (n, m).
    Q, R, S : Tensor
        Symmetric; R of shape (m, m) positive definite, Q and S of shape (n, n) positive semidefinite.
    x0 : Tensor
        Shape (n,).
    horizon : float
        T.
    """

    A: Tensor
    B: Tensor
    Q: Tensor
    R: Tensor
    S: Tensor
    x0: Tensor
    horizon: float = 1.0

    def to(self, device: torch.device | str, dtype: torch.dtype) -> LinearQuadratic:
        """The same on a device and in a precision."""
        A, B, Q, R, S, x0 = (M.to(device, dtype) for M in (self.A, self.B, self.Q, self.R, self.S, self.x0))
        return LinearQuadratic(A, B, Q, R, S, x0, self.horizon)


def random(
    size: int = 4, controls: int = 2, *, growth: float = 0.5, horizon: float = 2.0, data_seed: int = 0
) -> LinearQuadratic:
    """A random system with unit weights, in double precision.

    Parameters
    ----------
    size, controls : int
        n and m.
    growth : float
        The largest real part of the eigenvalues of A: the system is stable where it is negative.
    horizon : float
    data_seed : int
    """
    generator = torch.Generator().manual_seed(data_seed)

    def draw(*shape: int) -> Tensor:
        return torch.randn(*shape, generator=generator, dtype=torch.float64)

    A, B, x0 = draw(size, size) / size**0.5, draw(size, controls), draw(size)
    eye = torch.eye(size, dtype=torch.float64)
    A = A + (growth - float(torch.linalg.eigvals(A).real.max())) * eye
    return LinearQuadratic(A, B, eye, torch.eye(controls, dtype=torch.float64), eye, x0, horizon)


def control_problem(lq: LinearQuadratic) -> ControlProblem:
    """The control problem of a linear system with quadratic costs."""

    def form(M: Tensor, z: Tensor) -> Tensor:
        return 0.5 * ((z @ M) * z).sum()

    return ControlProblem(
        lambda t, x, u: x @ lq.A.T + lq.B @ u,
        initial_state=lq.x0[None],
        terminal_cost=lambda x: form(lq.S, x),
        running_cost=lambda t, x, u: form(lq.Q, x) + form(lq.R, u),
        horizon=lq.horizon,
        control_size=lq.B.shape[1],
    )


def optimum(lq: LinearQuadratic, steps: int, tableau: Tableau = EULER) -> float:
    """The discrete optimum, by the Riccati recursion.

    Parameters
    ----------
    lq : LinearQuadratic
    steps : int
    tableau : Tableau
        Of the Runge-Kutta scheme that integrates state and running cost, with the control held over a step.

    Examples
    --------
    >>> one = torch.ones(1, 1, dtype=torch.float64)
    >>> lqr = LinearQuadratic(0 * one, one, one, one, 0 * one, one[0])
    >>> round(optimum(lqr, 50), 12)  # the golden value of ocp.problems.lqr
    0.383696577812
    """
    n, h = len(lq.x0), lq.horizon / steps
    step, M = _step(lq, h, tableau)
    P = lq.S
    for _ in range(steps):
        H = M + step.T @ P @ step
        P = H[:n, :n] - H[:n, n:] @ torch.linalg.solve(H[n:, n:], H[n:, :n])
    return 0.5 * float(lq.x0 @ P @ lq.x0)


def _step(lq: LinearQuadratic, h: float, tableau: Tableau) -> tuple[Tensor, Tensor]:
    """(F, G) side by side, and M: the next state and twice the running cost as functions of z = (x_k, u_k)."""
    n, m = lq.B.shape
    stages = len(tableau.b)
    rows = torch.zeros(stages, stages).to(lq.A)
    for i, row in enumerate(tableau.A):
        rows[i, : len(row)] = torch.tensor(row, dtype=torch.float64)
    state, control = torch.eye(n + m).to(lq.A).split((n, m))
    # All stages X = (e, 0) z + h (rows A) X + h (rows B) u as one linear system.
    right = state.repeat(stages, 1) + h * torch.kron(rows.sum(1, keepdim=True), lq.B @ control)
    X = torch.linalg.solve(torch.eye(stages * n).to(rows) - h * torch.kron(rows, lq.A), right).view(stages, n, n + m)
    b = torch.tensor(tableau.b, dtype=torch.float64)[:, None, None]
    step = state + h * (b * (lq.A @ X + lq.B @ control)).sum(0)
    return step, h * (b * (X.mT @ lq.Q @ X + control.T @ lq.R @ control)).sum(0)


def continuous_optimum(lq: LinearQuadratic) -> float:
    """The optimum in continuous time, by the exponential of the Hamiltonian matrix over short pieces of time."""
    n = len(lq.x0)
    hamiltonian = torch.cat(
        (
            torch.cat((lq.A, -lq.B @ torch.linalg.solve(lq.R, lq.B.T)), dim=1),
            torch.cat((-lq.Q, -lq.A.T), dim=1),
        )
    )
    # Over a long time the exponential holds numbers of all sizes, and P, a ratio of two of its parts, would be lost.
    pieces = ceil(lq.horizon * float(torch.linalg.matrix_norm(hamiltonian, 2)))
    flow = torch.linalg.matrix_exp(-lq.horizon / pieces * hamiltonian)  # from the end of a piece to its start
    P, eye = lq.S, torch.eye(n).to(lq.S)
    for _ in range(pieces):
        X, Y = (flow @ torch.cat((eye, P))).split(n)
        P = torch.linalg.solve(X.T, Y.T).T
    return 0.5 * float(lq.x0 @ P @ lq.x0)


def problem(
    *,
    size: int = 4,
    controls: int = 2,
    growth: float = 0.5,
    data_seed: int = 0,
    dtype: torch.dtype = torch.float64,
    device: torch.device | str = "cpu",
) -> Study:
    """The regulation of a random linear system.

    Parameters
    ----------
    size, controls : int
        n and m.
    growth : float
        The largest real part of the eigenvalues of A: the system is stable where it is negative.
    data_seed : int
        Of the system and its initial state.
    dtype : torch.dtype
    device : torch.device or str
    """
    lq = random(size, controls, growth=growth, data_seed=data_seed)
    least = continuous_optimum(lq)
    return Study(
        control_problem(lq.to(device, dtype)),
        steps=128,
        levels=4,
        integrator="rk4",
        interpolation=LINEAR,
        optimum=least,
        stop=Stop(max_work=100, tolerance=1e-8),
        target=Target("value", 1.001 * least),
    )
