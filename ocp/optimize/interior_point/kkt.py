"""The linear system of one Newton step on the optimality conditions, and what solves it.

The unknowns are the multipliers lambda_k of x_k, the states x_k, the controls u_k and the multipliers nu of conditions
at the end. In the order lambda_0, x_0, u_0, lambda_1, x_1, u_1, ..., lambda_N, x_N, nu the matrix is banded: diagonal
blocks

        lambda_k   x_k, u_k
        [   0      (-I, 0) ]
        [ (-I, 0)^T   H_k  ]    and, below and left of the next one, (0, J_k).

Parameters, which touch all steps, are a border of it: see `border`.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Protocol

import numpy as np
from numpy.typing import NDArray

__all__ = ["Array", "Layout", "Model", "Solver"]

#: Numbers in double precision; linear algebra and bookkeeping are NumPy's, functions are torch's.
Array = NDArray[np.float64]


@dataclass(frozen=True, eq=False)
class Model:
    """Quadratic model of the Lagrangian with linear constraints, for z = (x, u, q): n + m + s numbers in each step.

    Attributes
    ----------
    J : array of shape (n, n + m + s, N)
        Jacobians of the steps.
    H : array of shape (n + m + s, n + m + s, N)
        Hessians of the steps.
    end : array of shape (n + s, n + s)
        Hessian by (x_N, q) of what depends on the final state.
    G : array of shape (g, n + s)
        Jacobian of the g equations at the end.
    start : array of shape (n, s)
        Derivative of the initial state by the parameters.
    parameters : array of shape (s, s)
        Hessian of what depends on the parameters alone.
    h : float
        Length of a step: the weight of states and controls where the Hessian is made positive.
    """

    J: Array
    H: Array
    end: Array
    G: Array
    start: Array
    parameters: Array
    h: float


@dataclass(frozen=True)
class Layout:
    """Where the unknowns are: n states, m controls, s parameters, N steps, g equations at the end."""

    n: int
    m: int
    s: int
    N: int
    g: int

    @property
    def block(self) -> int:
        """The number of unknowns of a step."""
        return 2 * self.n + self.m

    @property
    def size(self) -> int:
        """The number of all unknowns but the parameters."""
        return self.N * self.block + 2 * self.n + self.g

    @property
    def negative(self) -> int:
        """The number of negative eigenvalues of the matrix at a strict minimum: one for each equation."""
        return (self.N + 1) * self.n + self.g

    def pack(self, costates: Array, z: Array, end: Array, nu: Array) -> Array:
        """One vector from parts for lambda, (N + 1, n), for (x, u), (N, n + m), for x_N, (n,), and for nu, (g,).

        The parts may have a further dimension; then so has the result.
        """
        n, cut = self.n, self.N * self.block
        packed = np.empty((self.size, *nu.shape[1:]))
        steps = packed[:cut].reshape(self.N, self.block, *nu.shape[1:])
        steps[:, :n], steps[:, n:] = costates[:-1], z
        packed[cut : cut + n], packed[cut + n : cut + 2 * n], packed[cut + 2 * n :] = costates[-1], end, nu
        return packed

    def unpack(self, packed: Array) -> tuple[Array, Array, Array, Array]:
        """The multipliers lambda, (N + 1, n), the states, (N + 1, n), the controls, (N, m), and nu."""
        n, cut = self.n, self.N * self.block
        steps, last = packed[:cut].reshape(self.N, self.block), packed[cut:]
        costates = np.concatenate((steps[:, :n], last[None, :n]))
        states = np.concatenate((steps[:, n : 2 * n], last[None, n : 2 * n]))
        return costates, states, steps[:, 2 * n :].copy(), last[2 * n :].copy()


class Solver(Protocol):
    """Factors and solves the system without the border."""

    def assemble(self, layout: Layout, model: Model) -> None:
        """Take the numbers of a new system."""

    def factor(self, primal: float, dual: float) -> bool:
        """Factor it with ``primal`` h added to the Hessian by states and controls, and ``dual`` subtracted for nu.

        False if the matrix is singular, or known to have other than `Layout.negative` negative eigenvalues.
        """

    def solve(self, right: Array) -> Array:
        """Solve for a packed right-hand side, shape (size,) or (size, columns)."""
