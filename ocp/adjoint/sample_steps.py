"""Runge-Kutta steps from many states at once, with the Jacobians of each sample by itself."""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple

import torch
from torch import Tensor

from ocp.integrators.runge_kutta import NEWTON_STEPS
from ocp.integrators.stages import advance, combine, retreat
from ocp.integrators.tableaus import EULER, Tableau
from ocp.problem.boundary import same
from ocp.problem.protocols import Vectorized
from ocp.problem.shapes import BatchState, StepControl

__all__ = ["RecordedStage", "SampleSteps", "Unusable", "negligible", "product", "samples_are_independent"]

#: Into how many parts of time errors are sorted, to be compared with the states of the same part.
PARTS = 32


class Unusable(Exception):
    """Dynamics failed at some points, which are not all on a trajectory."""


class RecordedStage(NamedTuple):
    """f at one stage of all steps as autograd has recorded it: the leaves, states and controls, and the values."""

    x: Tensor
    u: Tensor
    values: Tensor

    def jacobian(self) -> Tensor:
        """df/dx of each sample, shape (n, n, samples, N)."""
        with torch.enable_grad():
            rows = self.values.unbind(0)
        return torch.stack([self._pull(row, (self.x,), torch.ones_like(row))[0] for row in rows])

    def transpose(self, p: Tensor) -> tuple[Tensor, ...]:
        """df/dx^T p and df/du^T p."""
        return self._pull(self.values, (self.x, self.u), p)

    def _pull(self, values: Tensor, leaves: tuple[Tensor, ...], p: Tensor) -> tuple[Tensor, ...]:
        found: Sequence[Tensor | None] = [None] * len(leaves)
        if values.requires_grad:
            found = torch.autograd.grad(values, leaves, p, retain_graph=True, allow_unused=True)
        return tuple(torch.zeros_like(a) if d is None else d for a, d in zip(leaves, found, strict=True))


class SampleSteps:
    """N steps x -> Psi_h(t_k, x, u_k), each from a state of its own, for samples that do not depend on each other.

    States are arrays of shape (n, samples, N), with the steps as last dimension, so that products of small matrices are
    a few operations on long vectors. Times have the shape (N,), controls (N, m).

    Parameters
    ----------
    dynamics : Vectorized
    tableau : Tableau
        Explicit or diagonally implicit.
    h : float
    shape : torch.Size
        Of a state: (batch, *state). If its samples depend on each other, all of them are one sample here.
    """

    def __init__(self, dynamics: Vectorized, tableau: Tableau, h: float, shape: torch.Size):
        self.dynamics, self.tableau, self.h, self.shape = dynamics, tableau, h, shape

    def points(self, x: Tensor) -> Tensor:
        """States of shape (n, samples, N) as those of points, shape (N, batch, *state)."""
        return x.permute(2, 1, 0).reshape(-1, *self.shape)

    def arranged(self, points: Tensor, samples: int) -> Tensor:
        """The inverse of `points`."""
        return points.reshape(len(points), samples, -1).permute(2, 1, 0)

    def rate(self, t: Tensor, x: Tensor, u: Tensor) -> Tensor:
        """f, of the shape of x."""
        try:
            points = self.dynamics.along(t, self.points(x), u)
        except Exception as error:  # anything: a function may not have been written for states off the trajectory
            raise Unusable from error
        return self.arranged(points, x.shape[1])

    def record(self, t: Tensor, x: Tensor, u: Tensor) -> RecordedStage:
        with torch.enable_grad():
            x, u = x.detach().contiguous().requires_grad_(), u.detach().clone().requires_grad_()
            return RecordedStage(x, u, self.rate(t, x, u))

    def take(self, t: Tensor, x: Tensor, u: Tensor) -> tuple[Tensor, list[Tensor]]:
        """The states after the steps, and those at the stages; NaN where an implicit stage has no solution."""
        states: list[Tensor] = []

        def slope(i: int, time: Tensor, r: Tensor) -> Tensor:
            a = self.h * self.tableau.diagonal[i]
            states.append(self._solution(time, r, u, a) if a else r)
            return (states[i] - r) / a if a else self.rate(time, r, u)  # f is inaccurate where it is stiff

        slopes = advance(self.tableau, t, self.h, x, slope)
        return combine(x, self.h, self.tableau.weights, slopes), states

    def linearize(self, t: Tensor, x: Tensor, u: Tensor) -> tuple[Tensor, Tensor]:
        """The states after the steps and their derivatives by x, shape (n, n, samples, N)."""
        by_state: list[Tensor] = []

        def slope(i: int, time: Tensor, r: Tensor) -> Tensor:
            a = self.h * self.tableau.diagonal[i]
            stage = self.record(time, self._solution(time, r, u, a) if a else r, u)
            by_state.append(stage.jacobian())
            return (stage.x.detach() - r) / a if a else stage.values.detach()

        slopes = advance(self.tableau, t, self.h, x, slope)
        return combine(x, self.h, self.tableau.weights, slopes), self.jacobian(by_state)

    def jacobian(self, by_state: Sequence[Tensor]) -> Tensor:
        """The derivative of the steps by the states where they begin, given those of f at the stages."""
        one = _one(by_state[0]).expand_as(by_state[0])

        def slope(i: int, _: float, r: Tensor) -> Tensor:
            a = self.h * self.tableau.diagonal[i]
            if a:
                r = self._solve(by_state[i], r, a)
            return by_state[i] if i == 0 and not a else product(by_state[i], r)

        return combine(one, self.h, self.tableau.weights, advance(self.tableau, 0.0, self.h, one, slope))

    def transpose(
        self, by_state: Sequence[Tensor], p: Tensor, sources: Sequence[Tensor | None]
    ) -> tuple[Tensor, list[Tensor]]:
        """Costates where the steps begin, from p where they end, and the cotangents, over h, of f at the stages.

        ``sources`` are derivatives of running costs by the states of the stages.
        """
        totals = [p] * len(by_state)

        def pull(i: int, kappa: Tensor, into: Tensor | None) -> Tensor:
            a, source, total = self.tableau.diagonal[i], sources[i], kappa
            if a:
                total = kappa if source is None else torch.add(kappa, source, alpha=a)
                total = self._solve(by_state[i].transpose(0, 1), total.unsqueeze(1), self.h * a).squeeze(1)
                xi = (total - kappa) / a
            else:
                xi = self.h * (by_state[i] * total.unsqueeze(1)).sum(0)
                xi = xi if source is None else xi + source
            totals[i] = total
            return xi if into is None else into + xi

        return retreat(self.tableau, p, pull), totals

    def _solution(self, t: Tensor, r: Tensor, u: Tensor, a: float) -> Tensor:
        """The solutions X of X = r + a f(t, X, u), starting from X = r; NaN if Newton's method does not converge."""
        x, last = r, False
        for _ in range(NEWTON_STEPS):
            stage = self.record(t, x, u)
            residual = torch.sub(x - r, stage.values.detach(), alpha=a)
            update = self._solve(stage.jacobian(), residual.unsqueeze(1), a).squeeze(1)
            x = x - update
            if last or not bool(update.isfinite().all()):
                return x
            # Each iteration doubles the correct digits, so the next one ends in rounding.
            last = negligible(update, x, torch.finfo(x.dtype).eps ** 0.5)
        return torch.full_like(r, torch.nan)

    def _solve(self, by_state: Tensor, right: Tensor, a: float) -> Tensor:
        """The solutions y of (I - a df/dx) y = right, shape (n, k, samples, N); not finite where it is singular."""
        matrices, columns = ((_one(by_state) - a * by_state), right)
        solution, info = torch.linalg.solve_ex(matrices.permute(2, 3, 0, 1), columns.permute(2, 3, 0, 1))
        y: Tensor = solution.masked_fill_((info != 0)[..., None, None], torch.nan).permute(2, 3, 0, 1)
        return y


def samples_are_independent(f: Vectorized, x: BatchState, u: StepControl) -> bool:
    """Whether no sample depends on another one, as a few points near a state and a control show."""
    samples, number = len(x), 3
    steps, shift = SampleSteps(f, EULER, 1.0, x.shape), torch.linspace(0, 0.2, number).to(x)
    states = steps.arranged(x + shift.view(-1, *[1] * x.ndim), samples)
    stage = steps.record(shift, states, u + shift[:, None])
    p = torch.linspace(-1, 2, states.numel()).to(x).view_as(states)
    return same(stage.transpose(p)[0], (stage.jacobian() * p.unsqueeze(1)).sum(0))


def product(a: Tensor, b: Tensor) -> Tensor:
    """Products of matrices, shape (i, k, *points), with others, shape (k, j, *points)."""
    total = a[:, :1] * b[:1]
    for k in range(1, len(b)):
        total.addcmul_(a[:, k : k + 1], b[k : k + 1])
    return total


def negligible(error: Tensor, size: Tensor, accuracy: float) -> bool:
    """Whether errors of states, shape (n, samples, steps), are small: each number in each part of time by itself."""
    parts = min(PARTS, error.shape[-1])
    most, scale = (torch.nn.functional.adaptive_max_pool1d(a.abs().amax(1), parts) for a in (error, size))
    return bool((most <= accuracy * scale).all())


def _one(like: Tensor) -> Tensor:
    """The identity, shape (n, n, 1, 1)."""
    return torch.eye(len(like), dtype=like.dtype)[:, :, None, None]
