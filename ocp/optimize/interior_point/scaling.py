"""What is large and what is small in a program: the units of its costs and states make no difference."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import torch

from ocp.adjoint.rows import differentiate
from ocp.optimize.interior_point.kkt import Array
from ocp.optimize.interior_point.program import Program

__all__ = ["scaled", "sizes"]

#: Of how many steps the costs are looked at.
SAMPLES = 16


def scaled(program: Program, x: Array, u: Array, q: Array) -> Program:
    """The program with its costs divided by what they may change by, to second order, near the start.

    So parameters of the barrier, shifts and multipliers have numbers for which constants can be given.
    """
    n, N, h = program.n, len(program.times), program.h
    steps = np.unique(np.linspace(0, N - 1, SAMPLES).astype(int))
    values, v = program.values(x, u, q), program.inputs(u[steps], q)
    at, t = torch.from_numpy(x[steps]), program.times[torch.from_numpy(steps)]
    weights = torch.zeros(len(steps), n + 1, dtype=torch.float64)
    weights[:, n] = 1.0
    J, H = program.steps.differentiate(t, program.steps.take(t, at, v)[1], v, weights)
    width = np.where(np.isfinite(program.upper - program.lower), program.upper - program.lower, np.abs(u)).max(0)
    state, control, parameters = (np.where(a > 0, a, 1.0) for a in (np.abs(x).max(0), width, np.abs(q)))
    z, end = np.concatenate((state, control, parameters)), np.concatenate((state, parameters))
    running = np.einsum("jk,j->k", np.abs(J[n].numpy()), z) + 0.5 * np.einsum("ijk,i,j->k", np.abs(H.numpy()), z, z)
    row = torch.zeros(1, program.end.outputs, dtype=torch.float64)
    row[0, 0] = 1.0
    last = differentiate(program.end, t[:1], torch.from_numpy(x[-1:]), torch.from_numpy(q[None]), row)
    slope, bend = (np.abs(a.numpy()[..., 0]) for a in last)
    change = N * running.mean() + slope[0] @ end + 0.5 * end @ bend @ end
    change += 0.5 * program.damping * (N * h * (control**2).sum() + (parameters**2).sum())
    size = max(abs(values.cost) / program.scale, change)
    return replace(program, scale=1 / size if 0 < size < np.inf else 1.0)


def sizes(values: Array) -> Array:
    """The largest absolute value of each column, with those that others dwarf lifted to where rounding begins."""
    columns: Array = np.abs(values).max(0, initial=0.0)
    least = 1e-8 * float(columns.max(initial=0.0))
    return columns.clip(least)
