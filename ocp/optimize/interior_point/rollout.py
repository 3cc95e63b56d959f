"""What the reduced objective says about a control: its cost when rolled out, and the derivative of that."""

from __future__ import annotations

import numpy as np
import torch

from ocp.adjoint.at_once import Bidiagonal, roll_out
from ocp.adjoint.rows import Rows
from ocp.optimize.interior_point.kkt import Array
from ocp.optimize.interior_point.program import Program

__all__ = ["rolled_out"]


def rolled_out(program: Program, guess: Array, u: Array, q: Array) -> tuple[float, Array, Array] | None:
    """The cost of the trajectory of a control, and its derivatives by u, shape (N, m), and q.

    It begins from a guess of the states. None if Newton's method on the trajectory does not settle, or if a number is
    not finite.
    """
    n, m, v, t = program.n, program.m, program.inputs(u, q), program.times
    found = roll_out(program.steps, t, torch.from_numpy(program.first(q)), torch.from_numpy(guess), v)
    if found is None:
        return None
    x, ends, taken = found
    J = program.steps.jacobians(t, taken, v).numpy()
    last = program.end.record(t[:1], x[-1:], torch.from_numpy(q[None]))
    slope, phi = last.jacobian().numpy()[0, :, 0], last.values
    right = np.concatenate((J[n, :n].T, slope[None, :n]))
    p = Bidiagonal(J[:n, :n]).solve(right, transposed=True)
    by_input = J[n, n:].T + np.einsum("ijk,ki->kj", J[:n, n:], p[1:])
    by_parameters = by_input[:, m:].sum(0) + slope[n:]
    if isinstance(program.initial, Rows):
        row = torch.from_numpy(q[None])
        start = program.initial.record(t[:1], row[:, :0], row).jacobian().numpy()[..., 0]
        by_parameters = by_parameters + start.T @ p[0]
    value, by_control = float(ends[:, n].sum() + phi[0, 0]), by_input[:, :m]
    if not (np.isfinite(value) and np.isfinite(by_control).all() and np.isfinite(by_parameters).all()):
        return None
    return value, by_control, by_parameters
