"""Steps that are remembered: taken forward, then gone back through, in storage that is planned once."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from itertools import repeat
from math import isqrt
from typing import Any, NamedTuple, Protocol

import torch
from torch import Tensor

from ocp.integrators.tableaus import Tableau
from ocp.problem.control_problem import ControlProblem
from ocp.problem.costs import PointByPoint, QuadraticRunning, RunningCost, RunningFunction
from ocp.problem.dynamics import Dynamics, Evaluations, FunctionDynamics, ModuleDynamics, Stages, offers
from ocp.space.grid import TimeGrid

__all__ = ["BY_AUTOGRAD", "Record", "Staged", "Stepwise", "Taped", "explicit"]


class Record(Protocol):
    """Up to so many consecutive steps: taken forward, remembered, and gone back through."""

    def forward(self, problem: ControlProblem, first: int, x: Tensor, path: Tensor) -> Tensor | None:
        """Take steps of a problem from node ``first`` and the state x on with the controls ``path``, shape (S, m).

        Returns the running cost over them, None where there is none.
        """

    @property
    def end(self) -> Tensor:
        """The state after the last step taken."""

    @property
    def states(self) -> Tensor:
        """Shape (S + 1, batch, *state): those of the steps last taken."""

    def backward(self, p: Tensor, derivative: Tensor) -> Tensor:
        """Transpose of the last `forward`, once for each: from the costate at the end to that at the start.

        Writes the derivative by the controls, shape (S, m). May overwrite p.
        """


class Stepwise:
    """Steps of any integrator. States are all that is remembered, the rest is computed again on the way back.

    Parameters
    ----------
    integrator : Integrator
    grid : TimeGrid
    storage : Tensor
        Shape (steps + 1, batch, *state), where the states are written.
    """

    def __init__(self, integrator: Any, grid: TimeGrid, storage: Tensor):
        self.integrator, self.grid, self._storage = integrator, grid, storage

    @property
    def states(self) -> Tensor:
        return self._storage[: len(self._path) + 1]

    @property
    def end(self) -> Tensor:
        return self._storage[len(self._path)]

    def forward(self, problem: ControlProblem, first: int, x: Tensor, path: Tensor) -> Tensor | None:
        step, h, t, visited = self.integrator.step, self.grid.h, self.grid.nodes, self._storage.unbind(0)
        self._problem, self._first, self._path, total = problem, first, path, None
        visited[0].copy_(x)
        for k, u in enumerate(path.unbind(0)):
            cost = step(problem, t[first + k], h, visited[k], u, out=visited[k + 1])
            total = cost if total is None else total + cost
        return total

    def backward(self, p: Tensor, derivative: Tensor, costates: Tensor | None = None) -> Tensor:
        """As that of any `Record`; may be called again, and writes the costates at the nodes where they are wanted."""
        pullback, h, t, x = self.integrator.pullback, self.grid.h, self.grid.nodes, self.states.unbind(0)
        by_step, u = derivative.unbind(0), self._path.unbind(0)
        for k in reversed(range(len(u))):
            if costates is not None:
                costates[k + 1].copy_(p)
            p, pu = pullback(self._problem, t[self._first + k], h, x[k], u[k], p)
            by_step[k].copy_(pu)
        if costates is not None:
            costates[0].copy_(p)
        return p

    def undo(self, problem: ControlProblem, first: int, x: Tensor, path: Tensor) -> None:
        """Take the steps from node ``first`` with the controls ``path`` back, from the state x after them to its place.

        The integrator has an ``inverse``.
        """
        inverse, h, t = self.integrator.inverse, self.grid.h, self.grid.nodes
        for k, u in reversed(list(enumerate(path.unbind(0)))):
            inverse(problem, t[first + k], h, x, u, out=x)

    def resume(self, problem: ControlProblem, first: int, path: Tensor) -> Stepwise:
        """As if `forward` had been called: the states are there already."""
        self._problem, self._first, self._path = problem, first, path
        return self


class _Tape(NamedTuple):
    """A few steps as autograd has seen them. The leaves: the state where they begin, the controls, parts of them."""

    outputs: list[Tensor]
    leaves: list[Tensor]


class _Pieces(NamedTuple):
    """What an integrator asks of a problem."""

    dynamics: Any
    running_cost: Any


class Taped:
    """Steps made of torch operations, differentiated by autograd, some steps at a time.

    A tape for each step would cost more than the operations of a small step; none spans more than `SPAN` steps.

    Parameters
    ----------
    integrator
        With a method ``advance(problem, t, h, x, u)`` that autograd can follow: the next state and the running cost.
    grid : TimeGrid
    storage : Tensor
        Shape (steps + 1, batch, *state), where the states are written.
    """

    #: Steps to a tape. With more the share of a call of autograd in each step does not fall any longer.
    SPAN = 64

    def __init__(self, integrator: Any, grid: TimeGrid, storage: Tensor):
        self.integrator, self.grid, self._storage, self._steps = integrator, grid, storage, 0
        self._tapes: list[_Tape] = []

    @property
    def states(self) -> Tensor:
        return self._storage[: self._steps + 1]

    @property
    def end(self) -> Tensor:
        return self._storage[self._steps]

    def forward(self, problem: ControlProblem, first: int, x: Tensor, path: Tensor) -> Tensor | None:
        self._tapes.clear()
        self._steps, total = len(path), None
        self._storage[0].copy_(x)
        for begin in range(0, len(path), self.SPAN):
            cost = self._take(problem, first + begin, self._storage[begin:], path[begin : begin + self.SPAN])
            if cost is not None:
                total = cost if total is None else total + cost
        return total

    def _take(self, problem: Any, first: int, states: Tensor, path: Tensor) -> Tensor | None:
        advance, h, times = self.integrator.advance, self.grid.h, self.grid.nodes
        f, L = problem.dynamics, problem.running_cost
        with torch.enable_grad():
            x, path = states[0].clone().requires_grad_(), path.detach().requires_grad_()
            parts, each = f.bind(path) if hasattr(f, "bind") else ([], [f])
            pieces = [_Pieces(bound, L) for bound in each]
            visited, costs, end = [x], [], x
            for piece, t, u in zip(pieces if parts else repeat(pieces[0]), times[first:], path.unbind(0), strict=False):
                end, cost = advance(piece, t, h, end, u)
                visited.append(end)
                costs.append(cost)
            total = None if L is None else torch.stack(costs).sum()
        torch.stack(visited[1:], out=states[1 : len(visited)])
        outputs = [visited[-1]] if total is None or not total.requires_grad else [visited[-1], total]
        self._tapes.append(_Tape(outputs, [x, path, *parts]))
        return None if total is None else total.detach()

    def backward(self, p: Tensor, derivative: Tensor) -> Tensor:
        for k in reversed(range(len(self._tapes))):
            outputs, leaves = self._tapes.pop()
            cotangents = [p, p.new_ones(())][: len(outputs)]
            p, by_path, *by_part = torch.autograd.grad(outputs, leaves, cotangents, allow_unused=True)
            by_step = derivative[k * self.SPAN : k * self.SPAN + len(leaves[1])]
            by_step.zero_() if by_path is None else by_step.copy_(by_path)
            sizes = [leaf[0].numel() for leaf in leaves[2:]]
            for part, grad in zip(by_step.split(sizes, dim=1) if sizes else (), by_part, strict=True):
                if grad is not None:
                    part.add_(grad.flatten(1))
        return p


#: Bytes of the stage states of a block of steps at least, since a block costs as much as some operations of its own:
#: such as fit the cache of a core. Tuned on dense layers of widths 8 to 1024.
BLOCK = 2**20


class Staged:
    """Explicit Runge-Kutta steps of dynamics that offer their `Evaluations`.

    Remembered are the values of f at all stages, and the states at which blocks of consecutive steps begin. On the way
    back, block by block, the states and stage states are put together again from these, bit for bit, the costate
    passes, leaving cotangents in the place of the values, and then the derivatives by the control are taken for the
    whole block.

    Parameters
    ----------
    tableau : Tableau
        Explicit.
    grid : TimeGrid
    steps : int
        At most so many are remembered.
    x : Tensor
        A state, for its shape, type, device and layout.
    """

    def __init__(self, tableau: Tableau, grid: TimeGrid, steps: int, x: Tensor):
        r, h = len(tableau.b), grid.h
        each = max(r * x.numel() * x.element_size(), 1)
        size = min(max(BLOCK // each, isqrt(steps)), steps)  # the root balances one block with the starts of all
        blocks = [(begin, min(begin + size, steps)) for begin in range(0, steps, size)]
        self.tableau, self.grid, self._all_blocks = tableau, grid, blocks
        self._values, self._starts = _room(x, steps, r), _room(x, len(blocks) + 1)
        self._stages, self._consumed = _room(x, size, r), False
        self._xi, self._p = _room(x, r), _room(x)
        # Views, made once: to make one costs as much as an operation on a small state.
        self._kappa, self._by_stage = _room(x, r).unbind(0), self._xi.unbind(0)
        self._start, self._value = self._starts.unbind(0), self._values.flatten(0, 1).unbind(0)
        self._stage = self._stages.flatten(0, 1).unbind(0)
        self._clock = grid.nodes[:-1]
        times = [[t + h * c for c in tableau.c] for t in self._clock]
        self._times = torch.tensor(times, dtype=x.dtype).to(x.device)
        rows = [[(j, h * a) for j, a in enumerate(row[:i]) if a] for i, row in enumerate(tableau.A)]
        self._rows = list(zip(rows, [h * c for c in tableau.c], strict=True))
        self._columns = [[(j, tableau.A[j][i]) for j in range(i + 1, r) if tableau.A[j][i]] for i in range(r)]
        self._end = [(i, h * b) for i, b in enumerate(tableau.b) if b]

    def took(self, problem: ControlProblem, first: int, path: Tensor) -> None:
        """What `forward` leaves beside its storage; alone it stands for one whose operations were replayed."""
        self._problem, self._first, self._path, self._consumed = problem, first, path, False
        self._trajectory: Tensor | None = None
        blocks = [(begin, min(end, len(path))) for begin, end in self._all_blocks if begin < len(path)]
        self._blocks, self.end = list(enumerate(blocks)), self._start[len(blocks)]

    def returned(self) -> None:
        """What `backward` leaves beside its storage."""
        self._consumed = True

    def forward(self, problem: ControlProblem, first: int, x: Tensor, path: Tensor) -> Tensor | None:
        self.took(problem, first, path)
        total = None
        self._start[0].copy_(x)
        for n, (begin, end) in self._blocks:
            stages, state, slope = self._block(begin, end), self._stage, self._value[begin * len(self.tableau.b) :]
            value = _evaluations(problem.dynamics, path[begin:end], stages).value
            for j, t in self._walk(n, begin, end):
                value(j, t, state[j], slope[j])
            if problem.running_cost is not None:
                cost = self._cost(problem.running_cost, stages, path[begin:end])
                total = cost if total is None else total + cost
        self.end = self.end.contiguous()
        return total

    @property
    @torch.no_grad()
    def states(self) -> Tensor:
        """Shape (S + 1, batch, *state), of the steps last taken; put together when asked for, and kept.

        After the way back, which uses the values up, for another way forward.
        """
        if self._trajectory is None:
            if self._consumed:
                self.forward(self._problem, self._first, self._start[0], self._path)
            self._trajectory = states = self._values.new_empty(len(self._path) + 1, *self._p.shape)
            r, x = len(self.tableau.b), states.unbind(0)
            x[0].copy_(self._start[0])
            for k in range(len(self._path)):
                _combine(x[k], self._end, self._value[k * r : k * r + r], x[k + 1])
        return self._trajectory

    def _block(self, begin: int, end: int) -> Stages:
        """The storage of steps begin, ..., end - 1."""
        r, S = len(self.tableau.b), end - begin
        return Stages(
            self._times[self._first + begin : self._first + end],
            self._stages[:S],
            self._values[begin:end],
            self._stage[: S * r],
            self._value[begin * r : end * r],
        )

    def _walk(self, n: int, begin: int, end: int) -> Iterator[tuple[int, float]]:
        """Put the stage states of block n together, each when the values of f at those before are there.

        Yields the number and the time of each stage that is in place.
        """
        r, state, j = len(self.tableau.b), self._stage, 0
        x = state[0].copy_(self._start[n])
        for k in range(begin, end):
            slopes, t = self._value[k * r : k * r + r], self._clock[self._first + k]
            for i, (row, c) in enumerate(self._rows):
                if i:
                    _combine(x, row, slopes, state[j])
                yield j, t + c
                j += 1
            after = state[j] if k + 1 < end else self._start[n + 1]
            _combine(x, self._end, slopes, after)
            x = after

    def _cost(self, L: RunningCost, stages: Stages, path: Tensor) -> Tensor:
        along = _along(L).along
        parts = [hb * along(stages.t[:, i], stages.x[:, i], path).sum() for i, hb in self._end]
        return torch.stack(parts).sum()

    def backward(self, p: Tensor, derivative: Tensor) -> Tensor:
        self.returned()
        L, h, p = self._problem.running_cost, self.grid.h, self._p.copy_(p)
        for n, (begin, end) in reversed(self._blocks):
            stages, path, out = self._block(begin, end), self._path[begin:end], derivative[begin:end]
            if n + 1 < len(self._blocks):  # those of the last block are still in place
                for _ in self._walk(n, begin, end):
                    pass
            f, slopes = _evaluations(self._problem.dynamics, path, stages), {}
            f.linearize()
            if L is not None:
                along = _along(L).derivative_along
                slopes = {i: (hb, *along(stages.t[:, i], stages.x[:, i], path)) for i, hb in self._end}
            self._retreat(f, p, end - begin, {i: Lx.mul(hb).unbind(0) for i, (hb, Lx, _) in slopes.items()})
            f.by_control(h, out)
            for hb, _, Lu in slopes.values():
                out.add_(Lu, alpha=hb)
        return p.contiguous()

    def _retreat(self, f: Evaluations, p: Tensor, steps: int, by_state: Mapping[int, Sequence[Tensor]]) -> None:
        """The steps of one block backward: p becomes the costate at their start.

        With kappa_i = b_i p + sum_{j > i} a_ji xi_j and xi_i = h f_x^T kappa_i + h b_i L_x it is p + sum_i xi_i.
        """
        transpose, costate, h, xi, r = f.transpose, self._costate, self.grid.h, self._by_stage, len(self.tableau.b)
        later, mixed = range(r - 1, 0, -1), r > 1 or self.tableau.b[0] != 1
        for k in range(steps - 1, -1, -1):
            if r > 1:
                self._xi.zero_()
            for i in later:
                transpose(k * r + i, costate(i, p), xi[i], h)
                if i in by_state:
                    xi[i].add_(by_state[i][k])
            kappa = costate(0, p) if mixed else p
            for i in later:
                p.add_(xi[i])
            transpose(k * r, kappa, p, h)
            if 0 in by_state:
                p.add_(by_state[0][k])

    def _costate(self, i: int, p: Tensor) -> Tensor:
        """kappa_i: p itself where it is nothing else."""
        b, later = self.tableau.b[i], self._columns[i]
        if b == 1 and not later:
            return p
        kappa = torch.mul(p, b, out=self._kappa[i])
        for j, a in later:
            kappa.add_(self._by_stage[j], alpha=a)
        return kappa


def _evaluations(f: Dynamics, path: Tensor, stages: Stages) -> Evaluations:
    evaluations = f.over(path, stages)  # type: ignore[attr-defined]
    assert evaluations is not None  # as `staged` has made sure
    return evaluations


def _along(L: RunningCost) -> Any:
    return L if offers(L, "derivative_along", "derivative") else PointByPoint(L)


def _room(x: Tensor, *numbers: int) -> Tensor:
    """Storage for so many states, each in the layout of x: as it is, or with its dimensions the other way round."""
    if x.is_contiguous():
        return x.new_empty(*numbers, *x.shape)
    return x.new_empty(*numbers, *x.mT.shape).mT


def _combine(x: Tensor, weights: Sequence[tuple[int, float]], slopes: Sequence[Tensor], out: Tensor) -> None:
    """Write x + sum of weights times slopes."""
    for j, w in weights:
        x = torch.add(x, slopes[j], alpha=w, out=out)
    if x is not out:
        out.copy_(x)


def explicit(
    integrator: Any, tableau: Tableau | None, problem: ControlProblem, grid: TimeGrid, steps: int, x: Tensor, u: Tensor
) -> Record | None:
    """The fastest record of explicit steps that the problem allows; None where it offers nothing.

    Parameters
    ----------
    integrator
        With a method ``advance``, for `Taped`.
    tableau : Tableau, optional
        For `Staged`; None where the scheme is no Runge-Kutta scheme.
    problem : ControlProblem
    grid : TimeGrid
    steps : int
        At most so many are remembered.
    x, u : Tensor
        A state and the control of a step.
    """
    if x.is_cuda:
        from ocp.adjoint.cuda import fused  # here, since to import Triton takes a while

        if fused.suits(tableau, problem, x):
            return fused.Fused(grid, steps, x)
    f, L = problem.dynamics, problem.running_cost
    by_autograd = type(f) in (FunctionDynamics, ModuleDynamics) and type(L) in BY_AUTOGRAD
    by_stages = tableau is not None and offers(f, "over", "vjp") and _suits(f, x, u)
    many = L is None or (offers(L, "derivative_along", "derivative") and _suits(L, x, u))
    if tableau is not None and by_stages and (many or not by_autograd):
        # What else sees the stages may want them as it makes them itself.
        return Staged(tableau, grid, steps, f.arrange(x) if L is None and hasattr(f, "arrange") else x)
    return Taped(integrator, grid, x.new_empty(steps + 1, *x.shape)) if by_autograd else None


#: Running costs that autograd can follow, and none.
BY_AUTOGRAD = (type(None), RunningFunction, QuadraticRunning)


def _suits(piece: Any, x: Tensor, u: Tensor) -> bool:
    return not hasattr(piece, "suits") or piece.suits(x, u)
