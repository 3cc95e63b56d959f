"""Explicit Runge-Kutta steps of dynamics that are `StageWise`, in blocks of steps and in storage allocated once."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from math import isqrt
from typing import Any, cast

import torch
from torch import Tensor

from ocp.integrators.stages import Workspace, advance, combine, retreat
from ocp.integrators.tableaus import Tableau
from ocp.problem.costs import PointByPoint
from ocp.problem.protocols import Batched, Evaluations, RunningCost, Stages, StageWise, StateEquation
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
        A state, for its shape, type, device and memory layout: contiguous, or so when its last two dimensions are
        swapped.
    batched : bool
        Whether running costs are `Batched`; otherwise they are evaluated at one point after the other.
    """

    def __init__(self, tableau: Tableau, grid: TimeGrid, steps: int, x: Tensor, batched: bool = False):
        r = len(tableau.b)
        each = max(r * x.numel() * x.element_size(), 1)
        size = min(max(BLOCK_BYTES // each, isqrt(steps)), steps)  # the root balances one block with the starts of all
        blocks = [(begin, min(begin + size, steps)) for begin in range(0, steps, size)]
        self.tableau, self.grid, self._all_blocks, self._batched = tableau, grid, blocks, batched
        self._values, self._starts = _allocate(x, steps, r), _allocate(x, len(blocks) + 1)
        self._stages, self._consumed = _allocate(x, size, r), False
        self._xi, self._p = _allocate(x, r), _allocate(x)
        # Views, made once: to make one costs as much as an operation on a small state.
        self._workspace, self._start = Workspace(_allocate(x), self._xi.unbind(0)), self._starts.unbind(0)
        self._value = self._values.flatten(0, 1).unbind(0)
        self._stage = self._stages.flatten(0, 1).unbind(0)
        times = [[t + grid.h * c for c in tableau.c] for t in grid.nodes[:-1]]
        self._times = torch.tensor(times, dtype=x.dtype).to(x.device)

    def took(self, problem: StateEquation, first: int, path: ControlPath) -> None:
        """Set what `forward` sets besides its storage; called alone after its operations were replayed."""
        self._problem, self._first, self._path, self._consumed = problem, first, path, False
        self._trajectory: Tensor | None = None
        blocks = [(begin, min(end, len(path))) for begin, end in self._all_blocks if begin < len(path)]
        self._blocks, self.end = list(enumerate(blocks)), self._start[len(blocks)]

    def returned(self) -> None:
        """Set what `backward` sets besides its storage."""
        self._consumed = True

    def forward(self, problem: StateEquation, first: int, x: BatchState, path: ControlPath) -> Scalar | None:
        self.took(problem, first, path)
        total = None
        self._start[0].copy_(x)
        for n, (begin, end) in self._blocks:
            stages = self._block(begin, end)
            self._walk(n, begin, end, self._evaluations(begin, end, stages).value)
            if problem.running_cost is not None:
                cost = self._cost(problem.running_cost, stages, path[begin:end])
                total = cost if total is None else total + cost
        self.end = self.end.contiguous()
        return total

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
        return Stages(
            self.grid.h,
            self._times[self._first + begin : self._first + end],
            self._stages[:S],
            self._values[begin:end],
            self._stage[: S * r],
            self._value[begin * r : end * r],
        )

    def _evaluations(self, begin: int, end: int, stages: Stages) -> Evaluations:
        return cast(StageWise, self._problem.dynamics).over(self._path[begin:end], stages)

    def _walk(self, n: int, begin: int, end: int, value: Callable[[int, float, Tensor], Tensor]) -> None:
        """Put the stage states of block n together, given the values of f at each of its stages in turn."""
        h, clock, state, r = self.grid.h, self.grid.nodes, self._stage, len(self.tableau.b)
        x = state[0].copy_(self._start[n])
        for k in range(end - begin):
            slopes = advance(self.tableau, clock[self._first + begin + k], h, x, value, k * r, state)
            after = state[k * r + r] if begin + k + 1 < end else self._start[n + 1]
            x = combine(x, h, self.tableau.weights, slopes, after)

    def _cost(self, L: RunningCost, stages: Stages, path: Tensor) -> Tensor:
        along = self._along(L).along
        parts = [h * along(stages.t[:, i], stages.x[:, i], path).sum() for i, h in self._end]
        return torch.stack(parts).sum()

    @property
    def _end(self) -> list[tuple[int, float]]:
        return [(i, self.grid.h * b) for i, b in self.tableau.weights]

    def _along(self, L: RunningCost) -> Batched:
        return cast(Batched, L) if self._batched else PointByPoint(L)

    def backward(self, p: BatchState, derivative: ControlPath) -> BatchState:
        self.returned()
        L, p = self._problem.running_cost, self._p.copy_(p)
        for n, (begin, end) in reversed(self._blocks):
            stages, path, out = self._block(begin, end), self._path[begin:end], derivative[begin:end]
            if n + 1 < len(self._blocks):  # those of the last block are still in place
                self._walk(n, begin, end, lambda j, t, x, value=stages.value: value[j])  # type: ignore[misc]
            f, slopes = self._evaluations(begin, end, stages), {}
            f.linearize()
            if L is not None:
                along = self._along(L).derivative_along
                slopes = {i: (hb, *along(stages.t[:, i], stages.x[:, i], path)) for i, hb in self._end}
            p = self._retreat(f, p, end - begin, {i: Lx.mul(hb).unbind(0) for i, (hb, Lx, _) in slopes.items()})
            f.by_control(out)
            for hb, _, Lu in slopes.values():
                out.add_(Lu, alpha=hb)
        return p.contiguous()

    def _retreat(self, f: Evaluations, p: Tensor, steps: int, by_state: Mapping[int, Sequence[Tensor]]) -> Tensor:
        """The costate at the start of a block from that at its end, which may be overwritten.

        Parameters
        ----------
        by_state : mapping
            For each stage with a running cost, its derivatives by the stage states, times h b_i.
        """
        r = len(self.tableau.b)

        def with_cost(j: int, kappa: Tensor, into: Tensor) -> Tensor:
            f.transpose(j, kappa, into)
            return into.add_(by_state[j % r][j // r]) if j % r in by_state else into

        pull: Any = with_cost if by_state else f.transpose  # none is called without a tensor to add to
        for k in range(steps - 1, -1, -1):
            if r > 1:
                self._xi.zero_()
            p = retreat(self.tableau, p, pull, k * r, self._workspace)
        return p


def _allocate(x: Tensor, *numbers: int) -> Tensor:
    """Storage for states in the layout of x, as it is or with its last two dimensions swapped."""
    if x.is_contiguous():
        return x.new_empty(*numbers, *x.shape)
    return x.new_empty(*numbers, *x.mT.shape).mT
