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

from ocp.adjoint.rows import Rows
from ocp.integrators.tableaus import Tableau, Weights

__all__ = ["RecordedSteps", "RungeKuttaSteps", "Steps", "differentiate"]

#: The most rows on one tape, copies included. More do not fit the cache of a core: tuned on the pole on a cart.
TAPE_ROWS = 2**15

#: The most iterations of Newton's method for implicit stages. When it converges, about five are enough.
NEWTON_STEPS = 25


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
        z_k as a function of t_k and (x_k, v_k).
    """

    def __init__(self, rows: Rows):
        self.rows = rows

    def take(self, t: Tensor, x: Tensor, v: Tensor) -> tuple[Tensor, Tensor]:
        return self.rows.values(t, torch.cat((x, v), 1)), x

    def differentiate(self, t: Tensor, taken: Tensor, v: Tensor, weights: Tensor) -> tuple[Tensor, Tensor]:
        return differentiate(self.rows, t, torch.cat((taken, v), 1), weights)

    def jacobians(self, t: Tensor, taken: Tensor, v: Tensor) -> Tensor:
        z = torch.cat((taken, v), 1)
        parts = _parts(len(z), TAPE_ROWS // max(z.shape[1], self.rows.outputs))
        return torch.cat([self.rows.record(t[k], z[k]).jacobian() for k in parts], 2)


class RungeKuttaSteps:
    """Steps of Runge-Kutta, explicit or diagonally implicit, from derivatives of f and L at all stages at once.

    Parameters
    ----------
    rows : Rows
        (f, L) as a function of t and (x, v): n + 1 outputs.
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
            slope = self.rows.values(time, torch.cat((state, v), 1))
            if diagonal[i]:  # not f, which is inaccurate where it is stiff
                slope = torch.cat(((state - r) / (h * diagonal[i]), slope[:, n:]), 1)
            states.append(state)
            slopes.append(slope)
        end = torch.cat((x, x.new_zeros(len(x), 1)), 1)
        for i, b in self.tableau.weights:
            end = torch.add(end, slopes[i], alpha=h * b)
        return end, torch.stack(states)

    def differentiate(self, t: Tensor, taken: Tensor, v: Tensor, weights: Tensor) -> tuple[Tensor, Tensor]:
        parts = self._parts(taken, v)
        return _joined([self._differentiate(t[k], taken[:, k], v[k], weights[k]) for k in parts])

    def jacobians(self, t: Tensor, taken: Tensor, v: Tensor) -> Tensor:
        return torch.cat([self._differentiate(t[k], taken[:, k], v[k], None)[0] for k in self._parts(taken, v)], 2)

    def _parts(self, taken: Tensor, v: Tensor) -> list[slice]:
        size = max(taken.shape[2] + v.shape[1], self.rows.outputs)
        return _parts(len(v), TAPE_ROWS // (len(taken) * size))

    def _differentiate(self, t: Tensor, taken: Tensor, v: Tensor, weights: Tensor | None) -> tuple[Tensor, Tensor]:
        """Jacobians and Hessians; these are empty without weights."""
        (r, N, n), h, c = taken.shape, self.h, self.tableau.c
        z = torch.cat((taken, v.expand(r, *v.shape)), 2).flatten(0, 1)
        recorded = self.rows.record(torch.cat([t + c[i] * h for i in range(r)]), z)
        slopes = recorded.jacobian().unflatten(2, (r, N)).unbind(2)  # of f and L at each stage, by state and control
        inverses = [self._inverse(a, slope) for a, slope in zip(self.tableau.diagonal, slopes, strict=True)]
        J, H, curved = v.new_zeros(n + 1, z.shape[1], N), v.new_empty(0), ()
        if weights is not None:
            costates = self._costates(slopes, inverses, weights.mT)
            curved = recorded.hessian(torch.cat(costates, 1).mT).unflatten(2, (r, N)).unbind(2)
            H = torch.zeros_like(curved[0])
        J[:n, :n] = torch.eye(n).to(v).unsqueeze(2)
        tangents: list[Tensor] = []  # of the slopes
        for i, (before, b) in enumerate(zip(self._before, self.tableau.b, strict=True)):
            slope, inverse, a, dx = slopes[i], inverses[i], h * self.tableau.diagonal[i], J.new_zeros(n, *J.shape[1:])
            dx[:, :n] = torch.eye(n).to(v).unsqueeze(2)
            for j, weight in before:
                dx.add_(tangents[j][:n], alpha=h * weight)
            if inverse is not None:
                dx[:, n:].add_(slope[:n, n:], alpha=a)
                dx = _product(inverse, dx)
            first = i == 0 and inverse is None  # then dx is the identity
            tangents.append(slope if first else _chained(slope, dx))
            J.add_(tangents[i], alpha=h * b)
            if curved:
                H.add_(curved[i] if first else _squeezed(curved[i], dx))
        return J, H

    def _costates(self, slopes: Sequence[Tensor], inverses: Sequence[Tensor | None], weights: Tensor) -> list[Tensor]:
        """(kappa_i, h b_i w), the weights of f and L at each stage, shape (n + 1, N)."""
        n, h, b = len(weights) - 1, self.h, self.tableau.b
        costates, xi = [weights] * len(slopes), [weights] * len(slopes)
        for i in range(len(slopes) - 1, -1, -1):
            costates[i] = weights * (h * b[i])
            kappa, by_state, inverse = costates[i][:n], slopes[i][:, :n], inverses[i]
            for j, a in self.tableau.columns[i]:
                kappa.add_(xi[j], alpha=h * a)
            if inverse is not None:
                source = torch.addcmul(kappa, by_state[n], costates[i][n:], value=h * self.tableau.diagonal[i])
                kappa.copy_((inverse * source.unsqueeze(1)).sum(0))
            if i:
                xi[i] = (by_state * costates[i].unsqueeze(1)).sum(0)
        return costates

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
            recorded = self.rows.record(t, torch.cat((x, v), 1))
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


def differentiate(rows: Rows, t: Tensor, z: Tensor, weights: Tensor) -> tuple[Tensor, Tensor]:
    """Jacobians and Hessians of weighted sums of `Rows`, on tapes of at most `TAPE_ROWS` rows."""
    found = []
    for part in _parts(len(z), TAPE_ROWS // max(z.shape[1], rows.outputs)):
        recorded = rows.record(t[part], z[part])
        found.append((recorded.jacobian(), recorded.hessian(weights[part])))
    return _joined(found)


def _product(a: Tensor, b: Tensor) -> Tensor:
    """Products of matrices, shape (i, k, N), with others, shape (k, j, N)."""
    total = a[:, :1] * b[:1]
    for k in range(1, len(b)):
        total.addcmul_(a[:, k : k + 1], b[k : k + 1])
    return total


def _chained(slope: Tensor, dx: Tensor) -> Tensor:
    """The derivative by (x, v), from those by (X, v) and of X by (x, v)."""
    n = len(dx)
    total = _product(slope[:, :n], dx)
    total[:, n:] += slope[:, n:]
    return total


def _squeezed(H: Tensor, dx: Tensor) -> Tensor:
    """The Hessian by (x, v), from that by (X, v) and the derivative of X by (x, v)."""
    n = len(dx)
    half = _chained(H, dx)
    total = _product(dx.transpose(0, 1), half[:n])
    total[n:] += half[n:]
    return total


def _parts(rows: int, size: int) -> list[slice]:
    size = max(1, size)
    return [slice(k, min(k + size, rows)) for k in range(0, rows, size)]


def _joined(parts: list[tuple[Tensor, Tensor]]) -> tuple[Tensor, Tensor]:
    if len(parts) == 1:
        return parts[0]
    J, H = (torch.cat(each, 2) for each in zip(*parts, strict=True))
    return J, H
