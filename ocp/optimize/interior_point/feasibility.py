"""A program whose cost is the violation of the constraints of another one: it restores feasibility, or disproves it.

Minimize (1/2) [ h sum_k |max(c_k, 0)|^2 + |g|^2 + |max(d, 0)|^2 ] subject to the same steps and bounds. It is solved by
the same method. At a positive minimum no nearby point satisfies the constraints.
"""

from __future__ import annotations

from dataclasses import dataclass, replace

import numpy as np
from torch import Tensor

from ocp.adjoint.all_steps import Steps
from ocp.adjoint.rows import Rows, differentiate
from ocp.optimize.interior_point.program import Derivatives, Program, Values

__all__ = ["feasibility", "forces", "violations"]


@dataclass(frozen=True, eq=False)
class _Violating:
    """Steps with another running cost, given by rows."""

    steps: Steps
    cost: Rows | None

    def take(self, t: Tensor, x: Tensor, v: Tensor) -> tuple[Tensor, tuple[Tensor, Tensor]]:
        ends, taken = self.steps.take(t, x, v)
        ends = ends.clone()
        ends[:, -1] = 0.0 if self.cost is None else self.cost.values(t, x, v)[:, 0]
        return ends, (x, taken)

    def differentiate(
        self, t: Tensor, taken: tuple[Tensor, Tensor], v: Tensor, weights: Tensor
    ) -> tuple[Tensor, Tensor]:
        (x, inner), weights = taken, weights.clone()
        own = weights[:, -1:].clone()
        weights[:, -1] = 0.0
        J, H = self.steps.differentiate(t, inner, v, weights)
        J[-1] = 0.0
        if self.cost is not None:
            slope, curved = differentiate(self.cost, t, x, v, own)
            J[-1], H = slope[0], H + curved
        return J, H

    def jacobians(self, t: Tensor, taken: tuple[Tensor, Tensor], v: Tensor) -> Tensor:
        raise NotImplementedError  # nothing rolls these steps out


def feasibility(program: Program) -> Program:
    """The program that minimizes violations."""
    path, end, g = program.path, program.end, program.g
    cost = None
    if path is not None:
        cost = Rows(lambda *row: 0.5 * program.h * path.function(*row).clamp_min(0).square().sum(1, keepdim=True), 1)

    def violation(t: Tensor, x: Tensor, q: Tensor) -> Tensor:
        y = end.function(t, x, q)
        equations, limits = y[:, 1 : 1 + g], y[:, 1 + g :].clamp_min(0)
        return 0.5 * (equations.square().sum(1, keepdim=True) + limits.square().sum(1, keepdim=True))

    return replace(
        program,
        steps=_Violating(program.steps, cost),
        end=Rows(violation, 1),
        g=0,
        d=0,
        path=None,
        damping=0.0,
        scale=1.0,
    )


def forces(program: Program, values: Values, at: Derivatives) -> float:
    """The largest derivative that the cost would have by states, controls or parameters if no two terms canceled."""
    on_path, at_end = np.split(values.limits.clip(0), [len(program.times) * program.c])
    along = np.einsum("cik,kc->ik", np.abs(at.path), on_path.reshape(-1, program.c)) if program.c else np.zeros(1)
    end = np.abs(at.G).T @ np.abs(values.equations) + np.abs(at.limits).T @ at_end
    return float(max(along.max(initial=0.0), end.max(initial=0.0)))


def violations(program: Program, values: Values) -> dict[str, float]:
    """The largest violation of each kind of constraint."""
    on_path, at_end = np.split(values.limits, [len(program.times) * program.c])
    return {
        "path_constraint": float(on_path.max(initial=0.0)),
        "terminal_equality": float(np.abs(values.equations).max(initial=0.0)),
        "terminal_inequality": float(at_end.max(initial=0.0)),
    }
