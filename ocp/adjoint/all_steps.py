"""All steps of a grid at once, from states that need not belong together, with first and second derivatives.

The derivatives of a Runge-Kutta step follow from those of f and L at its stages, which no tape has to connect. Write a
step as equations for its stage states X_i and slopes K_i. They are linear except for K_i = f(t_i, X_i, v), whose
multipliers kappa_i are the costates of the stages: Hager (2000), "Runge-Kutta methods in optimal control and the
transformed adjoint system". So with dZ_i, the derivative of (X_i, v) by (x, v),

    the Hessian of <p, Psi> + w l  is  sum_i dZ_i^T (Hessian of <kappa_i, f> + h b_i w L at stage i) dZ_i,

for explicit and implicit stages alike.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, Protocol

import torch
from torch import Tensor

from ocp.adjoint.rows import Rows, differentiate, parts
from ocp.adjoint.sample_steps import product
from ocp.integrators.runge_kutta import NEWTON_STEPS
from ocp.integrators.tableaus import Tableau, Weights

__all__ = ["RecordedSteps", "RungeKuttaSteps", "Steps"]


class Steps(Protocol):
    """N steps z_k = (Psi_h(t_k, x_k, v_k), running cost of the step).

    Times have the shape (N,), states (N, n), controls (N, m); v_k may hold parameters after the control.
    """

    def take(self, t: Tensor, x: Tensor, v: Tensor) -> tuple[Tensor, Any]:
        """The ends and costs of the steps, shape (N, n + 1), and what `differentiate` needs of them."""

    def differentiate(self, t: Tensor, taken: Any, v: Tensor, weights: Tensor) -> tuple[Tensor, Tensor]:
        """Derivatives, given what `take` returned.

        The Jacobians have the shape (n + 1, n + m, N), and the Hessians, of the outputs with weights of shape
        (N, n + 1), the shape (n + m, n + m, N).
        """

    def jacobians(self, t: Tensor, taken: Any, v: Tensor) -> Tensor:
        """The Jacobians alone."""


class RecordedSteps:
    """Steps of any integrator made of torch operations, each step a row on a tape.

    Parameters
    ----------
    rows : Rows
        z_k as a function of t_k, x_k and v_k.
    """

    def __init__(self, rows: Rows):
        self.rows = rows

    def take(self, t: Tensor, x: Tensor, v: Tensor) -> tuple[Tensor, Tensor]:
        return self.rows.values(t, x, v), x

    def differentiate(self, t: Tensor, taken: Tensor, v: Tensor, weights: Tensor) -> tuple[Tensor, Tensor]:
        return differentiate(self.rows, t, taken, v, weights)

    def jacobians(self, t: Tensor, taken: Tensor, v: Tensor) -> Tensor:
        number = max(taken.shape[1] + v.shape[1], self.rows.outputs)
        each = [self.rows.record(t[k], taken[k], v[k]).jacobian() for k in parts(len(v), number)]
        return torch.cat(each, 2)


class RungeKuttaSteps:
    """Steps of Runge-Kutta, explicit or diagonally implicit, from derivatives of f and L at all stages at once.

    Parameters
    ----------
    rows : Rows
        (f, L) as a function of t, x and v: n + 1 outputs.
    tableau : Tableau
    h : float
    """

    def __init__(self, rows: Rows, tableau: Tableau, h: float):
        self.rows, self.tableau, self.h = rows, tableau, h
        self._before: list[Weights] = [[], *(row for _, row, _ in tableau.later)]

    def take(self, t: Tensor, x: Tensor, v: Tensor) -> tuple[Tensor, Tensor]:
        """The ends and costs of the steps, and their stage states, shape (r, N, n)."""
        n, h, diagonal = x.shape[1], self.h, self.tableau.diagonal
        states: list[Tensor] = []
        slopes: list[Tensor] = []  # of state and cost
        for i, (c, before) in enumerate(zip(self.tableau.c, self._before, strict=True)):
            r = x
            for j, a in before:
                r = torch.add(r, slopes[j][:, :n], alpha=h * a)
            time = t + c * h if c else t
            state = self._newton(time, r, v, h * diagonal[i]) if diagonal[i] else r
            slope = self.rows.values(time, state, v)
            if diagonal[i]:  # not f, which is inaccurate where it is stiff
                slope = torch.cat(((state - r) / (h * diagonal[i]), slope[:, n:]), 1)
            states.append(state)
            slopes.append(slope)
        end = torch.cat((x, x.new_zeros(len(x), 1)), 1)
        for i, b in self.tableau.weights:
            end.add_(slopes[i], alpha=h * b)
        return end, torch.stack(states)

    def differentiate(self, t: Tensor, taken: Tensor, v: Tensor, weights: Tensor) -> tuple[Tensor, Tensor]:
        found = [self._part(t[k], taken[:, k], v[k], weights[k]) for k in self._parts(taken, v)]
        return (
            found[0] if len(found) == 1 else (torch.cat([J for J, _ in found], 2), torch.cat([H for _, H in found], 2))
        )

    def jacobians(self, t: Tensor, taken: Tensor, v: Tensor) -> Tensor:
        return torch.cat([self._part(t[k], taken[:, k], v[k], None)[0] for k in self._parts(taken, v)], 2)

    def _parts(self, taken: Tensor, v: Tensor) -> list[slice]:
        return parts(len(v), len(taken) * max(taken.shape[2] + v.shape[1], self.rows.outputs))

    def _part(self, t: Tensor, taken: Tensor, v: Tensor, weights: Tensor | None) -> tuple[Tensor, Tensor]:
        """Jacobians and Hessians; these are empty without weights."""
        (r, N, n), h, tableau = taken.shape, self.h, self.tableau
        times = t if r == 1 and not tableau.c[0] else torch.cat([t + c * h if c else t for c in tableau.c])
        recorded = self.rows.record(
            times, taken.view(r * N, n) if taken.is_contiguous() else taken.flatten(0, 1), v.repeat(r, 1)
        )
        jacobian = recorded.jacobian()
        slopes = jacobian.unflatten(2, (r, N)).unbind(2)  # of f and L at each stage, by state and control
        inverses = [self._inverse(a, slope) for a, slope in zip(tableau.diagonal, slopes, strict=True)]
        J = torch.zeros_like(slopes[0])
        J[:n, :n].diagonal().fill_(1.0)
        dx = J[:n].unsqueeze(2).repeat(1, 1, r, 1)  # of the stage states by state and control
        by_stage: list[Tensor] = []
        for i, (before, b) in enumerate(zip(self._before, tableau.b, strict=True)):
            dxi, inverse = dx[:, :, i], inverses[i]
            for j, a in before:
                dxi.add_(by_stage[j][:n], alpha=h * a)
            if inverse is not None:
                dxi[:, n:].add_(slopes[i][:n, n:], alpha=h * tableau.diagonal[i])
                dxi.copy_(product(inverse, dxi))
            identity = i == 0 and inverse is None
            by_stage.append(slopes[0] if identity else _chained(slopes[i], dxi))
            J.add_(by_stage[i], alpha=h * b)
        if weights is None:
            return J, J.new_empty(0)
        curved = recorded.hessian(self._costates(slopes, inverses, weights.mT).mT)
        if r == 1 and tableau.explicit:
            return J, curved
        dx = dx.flatten(2)
        half = _chained(curved, dx)
        H = product(dx.transpose(0, 1), half[:n])
        H[n:] += half[n:]
        return J, H.unflatten(2, (r, N)).sum(2)

    def _costates(self, slopes: Sequence[Tensor], inverses: Sequence[Tensor | None], weights: Tensor) -> Tensor:
        """(kappa_i, h b_i w): the weights of f and L at the stages, shape (n + 1, r N)."""
        n, h, r, N = len(weights) - 1, self.h, len(slopes), weights.shape[1]
        total = weights.new_empty(n + 1, r, N)
        xi = [weights] * r
        for i in range(r - 1, -1, -1):
            costate = torch.mul(weights, h * self.tableau.b[i], out=total[:, i])
            kappa, by_state, inverse = costate[:n], slopes[i][:, :n], inverses[i]
            for j, a in self.tableau.columns[i]:
                kappa.add_(xi[j], alpha=h * a)
            if inverse is not None:
                source = torch.addcmul(kappa, by_state[n], costate[n:], value=h * self.tableau.diagonal[i])
                kappa.copy_((inverse * source.unsqueeze(1)).sum(0))
            if i:
                xi[i] = (by_state * costate.unsqueeze(1)).sum(0)
        return total.flatten(1)

    def _inverse(self, a: float, slope: Tensor) -> Tensor | None:
        """(I - h a f_x)^-1 of an implicit stage, shape (n, n, N)."""
        if not a:
            return None
        n = len(slope) - 1
        matrices = torch.eye(n).to(slope) - (self.h * a) * slope[:n, :n].permute(2, 0, 1)
        inverse: Tensor = torch.linalg.inv_ex(matrices)[0]
        return inverse.permute(1, 2, 0)

    def _newton(self, t: Tensor, r: Tensor, v: Tensor, scale: float) -> Tensor:
        """The solutions X of X = r + scale f(t, X, v), starting from X = r; NaN where Newton's method fails."""
        n, x, one = r.shape[1], r, torch.eye(r.shape[1]).to(r)
        enough, tiny, last = torch.finfo(r.dtype).eps ** 0.5, torch.finfo(r.dtype).tiny, False
        moving = torch.ones(len(r), dtype=torch.bool, device=r.device)
        for _ in range(NEWTON_STEPS):
            recorded = self.rows.record(t, x, v)
            residual = torch.sub(x - r, recorded.values[:, :n], alpha=scale)
            matrices = one - scale * recorded.jacobian()[:n, :n].permute(2, 0, 1)
            update, info = torch.linalg.solve_ex(matrices, residual)
            x = torch.where((info == 0).unsqueeze(1), x - update, torch.nan)
            if last:
                return x
            # Each iteration doubles the correct digits, so that the next one ends in rounding; NaN does not move.
            moving = (update.abs() > enough * x.abs().clamp_min(tiny)).any(1)
            moving &= update.norm(dim=1) > enough * (x.norm(dim=1) + r.norm(dim=1))
            last = not bool(moving.any())
        return torch.where(moving.unsqueeze(1), torch.nan, x)


def _chained(slope: Tensor, dx: Tensor) -> Tensor:
    """The derivative by (x, v), from those by (X, v) and of X by (x, v)."""
    n = len(dx)
    total = product(slope[:, :n], dx)
    total[:, n:] += slope[:, n:]
    return total
