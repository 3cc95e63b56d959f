"""Explicit Runge-Kutta steps of dynamics that are `StageWise`, in blocks of steps and in storage allocated once."""

from __future__ import annotations

from collections.abc import Callable
from math import isqrt
from typing import Any

import torch
from torch import Tensor

from ocp.adjoint.tapes import total
from ocp.integrators.stages import advance, combine, retreat
from ocp.integrators.tableaus import Tableau
from ocp.problem.costs import PointByPoint
from ocp.problem.protocols import Stages, StateEquation
from ocp.problem.shapes import BatchState, ControlPath, NodeStates, Scalar
from ocp.space.grid import TimeGrid

__all__ = ["Staged"]

#: The least size of the stage states of a block, which costs as much as some operations: it fits the cache of a core.
#: Tuned on dense layers of widths 8 to 1024.
BLOCK_BYTES = 2**20


class Staged:
    """A `Tape` that remembers the values of f at all stages, and the states at which blocks of steps begin.

    On the way back, block by block, the states and stage states are put together again from these, bit for bit; the
    costate passes, leaving cotangents in the place of the values; then the derivatives by the control are taken for
    the whole block.

    Parameters
    ----------
    tableau : Tableau
        Explicit.
    grid : TimeGrid
    steps : int
        The most steps that are taken at a time.
    x : Tensor
        A state, for its shape, type, device and memory layout; it or ``x.mT`` is contiguous.
    batched : bool
        Whether running costs are `Batched`; if not, they are evaluated at one point after the other.
    """

    def __init__(self, tableau: Tableau, grid: TimeGrid, steps: int, x: Tensor, batched: bool = False):
        r = len(tableau.b)
        each = max(r * x.numel() * x.element_size(), 1)
        size = min(max(BLOCK_BYTES // each, isqrt(steps)), steps)  # the root balances one block with the starts of all
        blocks = [(begin, min(begin + size, steps)) for begin in range(0, steps, size)]
        self.tableau, self.grid, self._all_blocks, self._batched = tableau, grid, blocks, batched
        self._values, self._starts = _allocate(x, steps, r), _allocate(x, len(blocks) + 1)
        self._stages, self._xi, self._p = _allocate(x, size, r), _allocate(x, r), _allocate(x)
        # Views, made once: to make one costs as much as an operation on a small state.
        self._workspace, self._start = (_allocate(x), self._xi.unbind(0)), self._starts.unbind(0)
        self._value = self._values.flatten(0, 1).unbind(0)
        self._stage = self._stages.flatten(0, 1).unbind(0)
        times = [[t + grid.h * c for c in tableau.c] for t in grid.nodes[:-1]]
        self._times = torch.tensor(times, dtype=x.dtype).to(x.device)

    def took(self, problem: StateEquation, first: int, path: ControlPath) -> None:
        """Set what `forward` sets besides its storage; called alone after its operations were replayed."""
        L = problem.running_cost
        self._problem, self._first, self._path, self._consumed = problem, first, path, False
        self._f: Any = problem.dynamics
        self._cost: Any = L if L is None or self._batched else PointByPoint(L)
        self._trajectory: Tensor | None = None
        blocks = [(begin, min(end, len(path))) for begin, end in self._all_blocks if begin < len(path)]
        self._blocks, self.end = list(enumerate(blocks)), self._start[len(blocks)]

    def returned(self) -> None:
        """Set what `backward` sets besides its storage."""
        self._consumed = True

    def forward(self, problem: StateEquation, first: int, x: BatchState, path: ControlPath) -> Scalar | None:
        self.took(problem, first, path)
        self._start[0].copy_(x)
        costs = []
        for n, (begin, end) in self._blocks:
            u, stages = path[begin:end], self._block(begin, end)
            self._walk(n, begin, end, self._f.over(u, stages).value)
            if self._cost is not None:
                costs += [hb * self._cost.along(t, x, u).sum() for _, hb, t, x in self._quadrature(stages)]
        self.end = self.end.contiguous()
        return total(costs)

    @property
    @torch.no_grad()
    def states(self) -> NodeStates:
        """Shape (S + 1, batch, *state), of the last steps; put together when first asked for.

        After the way back, which uses the values up, this takes another way forward.
        """
        if self._trajectory is None:
            if self._consumed:
                self.forward(self._problem, self._first, self._start[0], self._path)
            self._trajectory = states = self._values.new_empty(len(self._path) + 1, *self._p.shape)
            r, x = len(self.tableau.b), states.unbind(0)
            x[0].copy_(self._start[0])
            for k in range(len(self._path)):
                combine(x[k], self.grid.h, self.tableau.weights, self._value[k * r : k * r + r], x[k + 1])
        return self._trajectory

    def _block(self, begin: int, end: int) -> Stages:
        """The storage of steps begin, ..., end - 1."""
        r, S = len(self.tableau.b), end - begin
        times, values = self._times[self._first + begin : self._first + end], self._values[begin:end]
        return Stages(
            self.grid.h, times, self._stages[:S], values, self._stage[: S * r], self._value[begin * r : end * r]
        )

    def _walk(self, n: int, begin: int, end: int, value: Callable[[int, float, Tensor], Tensor]) -> None:
        """Put the stage states of block n together, given the values of f at each of its stages in turn."""
        h, clock, state, r = self.grid.h, self.grid.nodes, self._stage, len(self.tableau.b)
        x = state[0].copy_(self._start[n])
        for k in range(end - begin):
            slopes = advance(self.tableau, clock[self._first + begin + k], h, x, value, k * r, state)
            after = state[k * r + r] if begin + k + 1 < end else self._start[n + 1]
            x = combine(x, h, self.tableau.weights, slopes, after)

    def _quadrature(self, stages: Stages) -> list[tuple[int, float, Tensor, Tensor]]:
        """For each stage i with a weight: i, h b_i, its times and states in all steps."""
        return [(i, self.grid.h * b, stages.t[:, i], stages.x[:, i]) for i, b in self.tableau.weights]

    def backward(self, p: BatchState, derivative: ControlPath) -> BatchState:
        self.returned()
        p, r = self._p.copy_(p), len(self.tableau.b)
        for n, (begin, end) in reversed(self._blocks):
            stages, u, by_control = self._block(begin, end), self._path[begin:end], derivative[begin:end]
            if n + 1 < len(self._blocks):  # those of the last block are still in place
                self._walk(n, begin, end, lambda j, t, x, value=stages.value: value[j])  # type: ignore[misc]
            f, slopes = self._f.over(u, stages), []
            f.linearize()
            if self._cost is not None:
                slopes = [(i, hb, *self._cost.derivative_along(t, x, u)) for i, hb, t, x in self._quadrature(stages)]
            pull = _with_cost(f, r, {i: Lx.mul(hb).unbind(0) for i, hb, Lx, _ in slopes}) if slopes else f.transpose
            for k in range(end - begin - 1, -1, -1):
                if r > 1:
                    self._xi.zero_()
                p = retreat(self.tableau, p, pull, k * r, self._workspace)
            f.by_control(by_control)
            for _, hb, _, Lu in slopes:
                by_control.add_(Lu, alpha=hb)
        return p.contiguous()


def _with_cost(f: Any, r: int, by_state: dict[int, Any]) -> Callable[[int, Tensor, Any], Tensor]:
    """Transposes of f that add the derivatives of the running cost by the states of r stages."""

    def pull(j: int, kappa: Tensor, into: Tensor) -> Tensor:
        f.transpose(j, kappa, into)
        return into.add_(by_state[j % r][j // r]) if j % r in by_state else into

    return pull


def _allocate(x: Tensor, *numbers: int) -> Tensor:
    """Storage for states in the layout of x, as it is or with its last two dimensions swapped."""
    return x.new_empty(*numbers, *x.shape) if x.is_contiguous() else x.new_empty(*numbers, *x.mT.shape).mT
