"""The discrete problem as this method sees it: functions of all steps at once, with their derivatives."""

from __future__ import annotations

from dataclasses import dataclass, field
from functools import cached_property
from typing import Any

import numpy as np
import torch
from torch import Tensor

from ocp.adjoint.all_steps import Steps
from ocp.adjoint.rows import Rows, differentiate
from ocp.optimize.interior_point.kkt import Array, Layout

__all__ = ["Derivatives", "Program", "Values"]


@dataclass(frozen=True, eq=False)
class Values:
    """Values at one point.

    Attributes
    ----------
    cost : float
    defects : array of shape (N + 1, n)
        X0(q) - x_0, then Psi_k - x_{k+1}.
    equations : array of shape (g,)
    limits : array of shape (N c + d,)
        What must not be positive: on the path, step by step, then at the end.
    taken : Any
        What the derivatives of the steps need.
    """

    cost: float
    defects: Array
    equations: Array
    limits: Array
    taken: Any


@dataclass(frozen=True, eq=False)
class Derivatives:
    """Derivatives at one point, by z = (x, u, q) in each step and by (x_N, q) at the end; steps are the last dimension.

    Attributes
    ----------
    gradient, J, H : arrays of shape (n + m + s, N), (n, n + m + s, N) and (n + m + s, n + m + s, N)
        Of the running cost, of the steps, and of the Lagrangian.
    path : array of shape (c, n + m + s, N)
        Of the constraints on the path.
    end_gradient, end_hessian : arrays of shape (n + s,) and (n + s, n + s)
        Of the terminal cost, and of the Lagrangian.
    G, limits : arrays of shape (g, n + s) and (d, n + s)
        Of equations and limits at the end.
    start, parameters : arrays of shape (n, s) and (s, s)
        Of the initial state, and the Hessian of <lambda_0, X0> with that of the costs of q alone.
    parameter_gradient : array of shape (s,)
        Of the costs of q alone.
    """

    gradient: Array
    J: Array
    H: Array
    path: Array
    end_gradient: Array
    end_hessian: Array
    G: Array
    limits: Array
    start: Array
    parameters: Array
    parameter_gradient: Array


@dataclass(frozen=True, eq=False)
class Program:
    """Minimize sum_k l_k(x_k, v_k) + Phi(x_N, q), where v_k = (u_k, q), subject to

        x_0 = X0(q),   x_{k+1} = Psi_k(x_k, v_k),   c(t_k, x_k, v_k) <= 0,   g(x_N, q) = 0,   d(x_N, q) <= 0,

    and bounds on u and q.

    Parameters
    ----------
    steps : Steps
        (Psi, l).
    times : Tensor
        Shape (N,).
    h : float
        The length of a step, which weighs the logarithmic barrier on the path.
    n, m, s : int
        Numbers of states, controls and parameters.
    initial : array of shape (n,) or Rows
        X0; rows are functions of q.
    end : Rows
        (Phi, g, d) as functions of (x_N, q).
    g, d : int
        Numbers of equations and limits at the end.
    path : Rows, optional
        c.
    lower, upper : arrays of shape (N, m)
    least, most : arrays of shape (s,)
        Bounds on the parameters.
    damping : float
        alpha in the cost (alpha / 2) (h sum_k |u_k|^2 + |q|^2).
    scale : float
        Factor of all costs.
    """

    steps: Steps
    times: Tensor
    h: float
    n: int
    m: int
    initial: Array | Rows
    end: Rows
    lower: Array
    upper: Array
    s: int = 0
    g: int = 0
    d: int = 0
    path: Rows | None = None
    least: Array = field(default_factory=lambda: np.empty(0))
    most: Array = field(default_factory=lambda: np.empty(0))
    damping: float = 0.0
    scale: float = 1.0

    @cached_property
    def layout(self) -> Layout:
        """Where the unknowns are in the Newton system."""
        return Layout(self.n, self.m, self.s, len(self.times), self.g)

    @property
    def c(self) -> int:
        """The number of constraints on the path in each step."""
        return 0 if self.path is None else self.path.outputs

    @cached_property
    def free(self) -> tuple[Array, Array]:
        """1 where bounds leave a choice, 0 where they prescribe the value: of the controls, (m, N), and parameters."""
        return (self.lower < self.upper).T.astype(float), (self.least < self.most).astype(float)

    def values(self, x: Array, u: Array, q: Array) -> Values:
        """The values for states of shape (N + 1, n), controls of shape (N, m) and parameters of shape (s,)."""
        n, v = self.n, self.inputs(u, q)
        z, taken = self.steps.take(self.times, torch.from_numpy(x[:-1]), v)
        end = self.end.values(self.times[:1], _row(x[-1]), _row(q)).numpy()[0]
        ends, defects = z.numpy(), np.empty_like(x)
        defects[0] = self.first(q) - x[0]
        np.subtract(ends[:, :n], x[1:], out=defects[1:])
        limits = end[1 + self.g :]
        if self.path is not None:
            path = self.path.values(self.times, torch.from_numpy(x[:-1]), v).numpy()
            limits = np.concatenate((path.reshape(-1), limits))
        cost = float(ends[:, n].sum() + end[0])
        if self.damping:
            cost += 0.5 * self.damping * float(self.h * (u**2).sum() + (q**2).sum())
        return Values(self.scale * cost, defects, end[1 : 1 + self.g], limits, taken)

    def derivatives(
        self, x: Array, u: Array, q: Array, taken: Any, costates: Array, nu: Array, y: Array
    ) -> Derivatives:
        """The derivatives, with multipliers for the Lagrangian: of the limits, y, shape (N c + d,)."""
        n, m, s, N = self.n, self.m, self.s, len(self.times)
        v, weights = self.inputs(u, q), np.empty((N, n + 1))
        weights[:, :n], weights[:, n] = costates[1:], self.scale
        J, H = (a.numpy() for a in self.steps.differentiate(self.times, taken, v, torch.from_numpy(weights)))
        path = np.empty((0, n + m + s, N))
        if self.path is not None:
            on_path = torch.from_numpy(y[: N * self.c].reshape(N, self.c))
            path, curved = (
                a.numpy() for a in differentiate(self.path, self.times, torch.from_numpy(x[:-1]), v, on_path)
            )
            H += curved
        at_end = torch.from_numpy(np.concatenate(([self.scale], nu, y[N * self.c :]))[None])
        by_end, end_hessian = (
            a.numpy()[..., 0] for a in differentiate(self.end, self.times[:1], _row(x[-1]), _row(q), at_end)
        )
        start, parameters = np.zeros((n, s)), np.zeros((s, s))
        if isinstance(self.initial, Rows):
            row, first = torch.from_numpy(q[None]), torch.from_numpy(costates[:1].copy())
            pair = differentiate(self.initial, self.times[:1], row[:, :0], row, first)
            start, parameters = (a.numpy()[..., 0] for a in pair)
        gradient, slope = self.scale * J[n], self.scale * self.damping
        if slope:
            gradient[n : n + m] += slope * self.h * u.T
            for i in range(n, n + m):
                H[i, i] += slope * self.h
        free, chosen = self.free
        if not (free.all() and chosen.all()):
            columns = np.ones((n + m + s, N))
            columns[n : n + m], columns[n + m :] = free, chosen[:, None]
            gradient, J, path = gradient * columns, J * columns, path * columns
            H = H * columns * columns[:, None]
            for i in range(m):
                H[n + i, n + i] += self.h * (1 - free[i])
            last = np.concatenate((np.ones(n), chosen))
            by_end, end_hessian = by_end * last, end_hessian * last * last[:, None]
            start, parameters = start * chosen, parameters * chosen * chosen[:, None] + np.diag(1 - chosen)
        return Derivatives(
            gradient,
            J[:n],
            H,
            path,
            self.scale * by_end[0],
            end_hessian,
            by_end[1 : 1 + self.g],
            by_end[1 + self.g :],
            start,
            parameters + slope * np.diag(chosen),
            slope * q * chosen,
        )

    def first(self, q: Array) -> Array:
        """X0(q)."""
        if isinstance(self.initial, Rows):
            value: Array = self.initial.values(self.times[:1], _row(q[:0]), _row(q)).numpy()[0]
            return value
        return self.initial

    def inputs(self, u: Array, q: Array) -> Tensor:
        """v = (u, q) in each step, shape (N, m + s)."""
        if not self.s:
            return torch.from_numpy(u)
        return torch.from_numpy(np.concatenate((u, np.broadcast_to(q, (len(u), self.s))), 1))


def _row(numbers: Array) -> Tensor:
    return torch.from_numpy(numbers[None])
