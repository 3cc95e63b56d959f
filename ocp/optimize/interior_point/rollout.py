"""What the reduced objective says about a control: its cost when rolled out, and the derivative of that."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import torch

from ocp.adjoint.at_once import Bidiagonal, roll_out
from ocp.adjoint.rows import Rows
from ocp.optimize.interior_point.kkt import Array
from ocp.optimize.interior_point.program import Program

__all__ = ["RolledOut", "rolled_out"]


@dataclass(frozen=True, eq=False)
class RolledOut:
    """The trajectory of a control.

    Attributes
    ----------
    x : array of shape (N + 1, n)
    value : float
        Its cost.
    derivative, lagrangian : pair of arrays of shape (N, m) and (s,)
        The derivatives of the cost by u and q, and of the cost with the given multipliers of the constraints.
    """

    x: Array
    value: float
    derivative: tuple[Array, Array]
    lagrangian: tuple[Array, Array]


def rolled_out(program: Program, guess: Array, u: Array, q: Array, nu: Array, y: Array) -> RolledOut | None:
    """Roll a control out, from a guess of the states; nu and y are multipliers of equations and limits.

    None if Newton's method on the trajectory does not settle, or if a number is not finite.
    """
    n, m, v, t = program.n, program.m, program.inputs(u, q), program.times
    found = roll_out(program.steps, t, torch.from_numpy(program.first(q)), torch.from_numpy(guess), v)
    if found is None:
        return None
    x, ends, taken = found
    J = program.steps.jacobians(t, taken, v).numpy()
    last = program.end.record(t[:1], x[-1:], torch.from_numpy(q[None]))
    at_end = last.jacobian().numpy()[..., 0]
    transition, start = Bidiagonal(J[:n, :n]), np.zeros((n, len(q)))
    if isinstance(program.initial, Rows):
        row = torch.from_numpy(q[None])
        start = program.initial.record(t[:1], row[:, :0], row).jacobian().numpy()[..., 0]

    def pull(by_step: Array, by_end: Array) -> tuple[Array, Array]:
        p = transition.solve(np.concatenate((by_step[:n].T, by_end[None, :n])), transposed=True)
        by_input = by_step[n:].T + np.einsum("ijk,ki->kj", J[:n, n:], p[1:])
        return by_input[:, :m], by_input[:, m:].sum(0) + by_end[n:] + start.T @ p[0]

    derivative = lagrangian = pull(J[n], at_end[0])
    if len(nu) or len(y):
        by_step, paths = J[n], program.c * len(t)
        if program.path is not None:
            on_path = program.path.record(t, x[:-1], v).jacobian().numpy()
            by_step = by_step + np.einsum("cik,kc->ik", on_path, y[:paths].reshape(-1, program.c))
        lagrangian = pull(by_step, np.concatenate(([1.0], nu, y[paths:])) @ at_end)
    value = float(ends[:, n].sum() + last.values[0, 0])
    if not (np.isfinite(value) and all(np.isfinite(part).all() for part in (*derivative, *lagrangian))):
        return None
    return RolledOut(x.numpy(), value, derivative, lagrangian)
