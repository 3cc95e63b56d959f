"""All steps of a grid in the storage of a few; a schedule says which steps to take again or undo."""

from __future__ import annotations

from collections.abc import Iterator

import torch
from torch import Tensor

from ocp.adjoint.schedules import Action, Advance, Keep, Restore, Reverse, Schedule, Undo
from ocp.adjoint.stepwise import Stepwise
from ocp.adjoint.tapes import Tape, total
from ocp.problem.protocols import StateEquation
from ocp.problem.shapes import BatchState, ControlPath, NodeStates, Scalar

__all__ = ["Recomputed"]


class Recomputed:
    """A `Tape` for all steps of a grid, in the storage for a few of them and the slots that a schedule asks for.

    The tape ``few`` takes the steps to remember and goes back through them, ``plain`` undoes steps, and ``walk``, which
    is either of the two, takes the steps of which nothing is remembered. Each can hold ``capacity`` steps. The state x
    shows shape, type and device.
    """

    def __init__(
        self, schedule: Schedule, steps: int, x: Tensor, few: Tape, plain: Stepwise, walk: Tape, capacity: int
    ):
        self.schedule, self.few, self.plain, self.walk, self.capacity = schedule, few, plain, walk, capacity
        slots, _, host, _ = schedule.needs(steps)
        far = torch.empty(host, *x.shape, dtype=x.dtype, pin_memory=host > 0 and x.is_cuda)
        self._x, self._start, self.end, *near = x.new_empty(slots - host + 3, *x.shape).unbind(0)
        self._slots = (*far.unbind(0), *near)
        self._remembered: Reverse | None = None  # the last steps, if they are ready for the way back

    def forward(self, problem: StateEquation, first: int, x: BatchState, path: ControlPath) -> Scalar | None:
        self._problem, self._path, self._rest, costs = problem, path, self.schedule.actions(len(path)), []
        self._start.copy_(x)
        self._x.copy_(x)
        for action in self._rest:
            costs.append(self._do(action))
            if isinstance(action, Reverse):
                self._remembered = action
                break
        self.end.copy_(self._x)
        return total(costs)

    def backward(self, p: BatchState, derivative: ControlPath) -> BatchState:
        for first, last in self.retrace():
            p = self.few.backward(p, derivative[first:last])
        return p

    def retrace(self) -> Iterator[tuple[int, int]]:
        """The first and last node of each stretch of steps on the way back, while ``few`` holds them."""
        if self._remembered is None:
            self.forward(self._problem, 0, self._start, self._path)
        assert self._remembered is not None
        last_steps, self._remembered = self._remembered, None
        yield last_steps.first, last_steps.last
        for action in self._rest:
            self._do(action)
            if isinstance(action, Reverse):
                yield action.first, action.last

    def _do(self, action: Action) -> Tensor | None:
        """All of an action except the transposes; the running cost of the steps taken."""
        match action:
            case Keep(_, slot):
                self._slots[slot].copy_(self._x, non_blocking=True)
            case Restore(_, slot):
                self._x.copy_(self._slots[slot], non_blocking=True)
            case Undo(first, last):
                self.plain.undo(self._problem, first, self._x, self._path[first:last])
            case Advance(first, last):
                return self._take(self.walk, first, last)
            case Reverse(first, last):
                return self._take(self.few, first, last)
        return None

    def _take(self, steps: Tape, first: int, last: int, visited: Tensor | None = None) -> Tensor | None:
        costs = []
        for begin in range(first, last, self.capacity):
            end = min(begin + self.capacity, last)
            costs.append(steps.forward(self._problem, begin, self._x, self._path[begin:end]))
            self._x.copy_(steps.end)
            if visited is not None:
                visited[begin : end + 1].copy_(steps.states)
        return total(costs)

    @property
    @torch.no_grad()
    def states(self) -> NodeStates:
        """All states, for which the steps are taken once more, and again before the next way back."""
        self._remembered = None
        states = self._x.new_empty(len(self._path) + 1, *self._x.shape)
        self._x.copy_(self._start)
        self._take(self.walk, 0, len(self._path), states)
        return states
