"""All inequalities of a program as one list, G(x, u, q) + slack = 0: bounds, then limits on the path and at the end."""

from __future__ import annotations

from functools import cached_property

import numpy as np

from ocp.optimize.interior_point.kkt import Array, Model
from ocp.optimize.interior_point.program import Derivatives, Program

__all__ = ["Inequalities"]


class Inequalities:
    """The inequalities of a program, in this order: lower and upper bounds of controls and of parameters, limits.

    Attributes
    ----------
    number, bounds, steps : int
        Of all, of bounds, and N. The slack of a bound is the distance from it. It is carried along rather than computed
        as a difference, which loses all digits near the bound.
    weights : array of shape (number,)
        h for what holds in each step, 1 for the rest: the weights of the barrier, so that it depends on no grid.
    """

    def __init__(self, program: Program):
        self._program, (free, chosen) = program, program.free
        N, low, high = len(program.times), program.lower.reshape(-1), program.upper.reshape(-1)
        choice = free.T.reshape(-1) > 0
        self._low, self._high = (np.flatnonzero(np.isfinite(side) & choice) for side in (low, high))
        self._least, self._most = (np.flatnonzero(np.isfinite(b) & (chosen > 0)) for b in (program.least, program.most))
        parts = len(self._low), len(self._high), len(self._least), len(self._most)
        self.bounds = sum(parts)
        self._cuts = np.cumsum(parts)[:3].tolist()
        self.steps, self.path = N, N * program.c
        self.number = self.bounds + self.path + program.d
        self.weights = np.ones(self.number)
        self.weights[: self._cuts[1]] = self.weights[self.bounds : self.bounds + self.path] = program.h

    @cached_property
    def total(self) -> float:
        """The sum of the weights."""
        return float(self.weights.sum())

    def distances(self, u: Array, q: Array) -> Array:
        """The distances from the bounds."""
        program, flat = self._program, u.reshape(-1)
        low, high = program.lower.reshape(-1)[self._low], program.upper.reshape(-1)[self._high]
        least, most = program.least[self._least], program.most[self._most]
        return np.concatenate(
            (flat[self._low] - low, high - flat[self._high], q[self._least] - least, most - q[self._most])
        )

    def spread(self, y: Array) -> tuple[Array, Array]:
        """Numbers for all inequalities as those of each step, shape (N, 2 m + c), zero where a bound is missing, and
        the others."""
        program, end = self._program, self.bounds + self.path
        low, high = np.zeros(program.lower.size), np.zeros(program.lower.size)
        low[self._low], high[self._high] = y[: self._cuts[0]], y[self._cuts[0] : self._cuts[1]]
        shape, path = program.lower.shape, y[self.bounds : end].reshape(self.steps, program.c)
        by_step = np.concatenate((low.reshape(shape), high.reshape(shape), path), 1)
        return by_step, np.concatenate((y[self._cuts[1] : self.bounds], y[end:]))

    def gather(self, by_step: Array, others: Array) -> Array:
        """Inverse of `spread`."""
        m, count = self._program.m, self.bounds - self._cuts[1]
        low, high = by_step[:, :m].reshape(-1)[self._low], by_step[:, m : 2 * m].reshape(-1)[self._high]
        return np.concatenate((low, high, others[:count], by_step[:, 2 * m :].reshape(-1), others[count:]))

    def along(self, at: Derivatives, dx: Array, du: Array, dq: Array) -> Array:
        """G d, for a direction."""
        program, flat = self._program, du.reshape(-1)
        parts = [-flat[self._low], flat[self._high], -dq[self._least], dq[self._most]]
        if program.c:
            n, m = program.n, program.m
            limits = np.einsum("cik,ki->kc", at.path[:, :n], dx[:-1]) + np.einsum(
                "cik,ki->kc", at.path[:, n : n + m], du
            )
            if program.s:
                limits += np.einsum("cik,i->kc", at.path[:, n + m :], dq)
            parts.append(limits.reshape(-1))
        if program.d:
            parts.append(at.limits @ np.concatenate((dx[-1], dq)))
        return np.concatenate(parts)

    def pull(self, at: Derivatives, y: Array) -> tuple[Array, Array, Array]:
        """G^T y by (x, u, q) in the steps, shape (n + m + s, N), by (x_N, q), and by q alone."""
        program, parts = self._program, np.split(y, [*self._cuts, self.bounds, self.bounds + self.path])
        by_control = np.zeros(program.lower.size)
        by_control[self._low] -= parts[0]
        by_control[self._high] += parts[1]
        by_step = np.zeros(at.gradient.shape)
        by_step[program.n : program.n + program.m] = by_control.reshape(program.lower.shape).T
        if program.c:
            by_step += np.einsum("cik,kc->ik", at.path, parts[4].reshape(-1, program.c))
        by_parameters = np.zeros(program.s)
        by_parameters[self._least] -= parts[2]
        by_parameters[self._most] += parts[3]
        return by_step, at.limits.T @ parts[5], by_parameters

    def model(self, at: Derivatives, sigma: Array) -> Model:
        """The quadratic model of the barrier problem, with G^T diag(sigma) G in its Hessians."""
        program, parts = self._program, np.split(sigma, [*self._cuts, self.bounds, self.bounds + self.path])
        n, H = program.n, at.H
        if self._cuts[1] or program.c:
            H = H.copy()
            diagonal = np.zeros(program.lower.size)
            diagonal[self._low] += parts[0]
            diagonal[self._high] += parts[1]
            for i, row in enumerate(diagonal.reshape(program.lower.shape).T):
                H[n + i, n + i] += row
            for G, row in zip(at.path, parts[4].reshape(-1, program.c).T, strict=True) if program.c else ():
                H += (row * G)[:, None] * G
        corner = np.zeros(program.s)
        corner[self._least] += parts[2]
        corner[self._most] += parts[3]
        end = at.end_hessian + (at.limits.T * parts[5]) @ at.limits
        return Model(at.J, H, end, at.G, at.start, at.parameters + np.diag(corner), program.h)
