"""All steps of a grid in the storage of a few; a schedule says which steps to take again or undo."""

from __future__ import annotations

from collections.abc import Iterator

import torch
from torch import Tensor

from ocp.adjoint.schedules import Action, Advance, Keep, Offloading, Restore, Reverse, Schedule, Take, Undo
from ocp.adjoint.stepwise import Stepwise
from ocp.adjoint.tapes import Tape
from ocp.problem.protocols import StateEquation
from ocp.problem.shapes import BatchState, ControlPath, NodeStates, Scalar

__all__ = ["Recomputed"]


class Recomputed:
    """A `Tape` for all steps of a grid, in the storage for a few of them and the slots that a schedule asks for.

    Parameters
    ----------
    schedule : Schedule
    steps : int
        How many steps the grid has.
    x : Tensor
        A state, for its shape, type and device.
    few : Tape
        Takes the steps to remember, and goes back through them.
    plain : Stepwise
        Undoes steps.
    walk : Tape
        Takes the steps of which nothing is to be remembered: either of the two.
    capacity : int
        How many steps each of them can hold.
    """

    def __init__(
        self, schedule: Schedule, steps: int, x: Tensor, few: Tape, plain: Stepwise, walk: Tape, capacity: int
    ):
        self.schedule, self.few, self.plain, self.walk, self.capacity = schedule, few, plain, walk, capacity
        slots = schedule.slots_for(steps)
        host = min(schedule.host, slots) if isinstance(schedule, Offloading) else 0
        far = torch.empty(host, *x.shape, dtype=x.dtype, pin_memory=host > 0 and x.is_cuda)
        self._x, self._start, self.end, *near = x.new_empty(slots - host + 3, *x.shape).unbind(0)
        self._slots = (*far.unbind(0), *near)
        self._ready = False

    def forward(self, problem: StateEquation, first: int, x: BatchState, path: ControlPath) -> Scalar | None:
        self._problem, self._first, self._path = problem, first, path
        self._rest, total = self.schedule.actions(len(path)), None
        self._start.copy_(x)
        self._x.copy_(x)
        for action in self._rest:
            cost = self._do(action)
            if cost is not None:
                total = cost if total is None else total + cost
            if isinstance(action, Take):
                break
        self.end.copy_(self._x)
        self._ready = True
        return total

    def backward(self, p: BatchState, derivative: ControlPath) -> BatchState:
        for first, last in self.retrace():
            p = self.few.backward(p, derivative[first:last])
        return p

    def retrace(self) -> Iterator[tuple[int, int]]:
        """Go on with the schedule after `forward`; yields the steps to go back through each time ``few`` holds them."""
        if not self._ready:
            self.forward(self._problem, self._first, self._start, self._path)
        self._ready = False
        for action in self._rest:
            if isinstance(action, Reverse):
                yield action.first, action.last
            else:
                self._do(action)

    def _do(self, action: Action) -> Tensor | None:
        """One action that is not a step back; the running cost of the steps taken."""
        match action:
            case Keep(_, slot):
                self._slots[slot].copy_(self._x, non_blocking=True)
            case Restore(_, slot):
                self._x.copy_(self._slots[slot], non_blocking=True)
            case Advance(first, last):
                return self._take(self.walk, first, last)
            case Take(first, last):
                return self._take(self.few, first, last)
            case Undo(first, last):
                self.plain.undo(self._problem, self._first + first, self._x, self._path[first:last])
        return None

    def _take(self, steps: Tape, first: int, last: int, visited: Tensor | None = None) -> Tensor | None:
        total = None
        for begin in range(first, last, self.capacity):
            end = min(begin + self.capacity, last)
            cost = steps.forward(self._problem, self._first + begin, self._x, self._path[begin:end])
            self._x.copy_(steps.end)
            if visited is not None:
                visited[begin : end + 1].copy_(steps.states)
            if cost is not None:
                total = cost if total is None else total + cost
        return total

    @property
    @torch.no_grad()
    def states(self) -> NodeStates:
        """All states, for which the steps are taken once more, and again before the next way back."""
        self._ready = False
        states = self._x.new_empty(len(self._path) + 1, *self._x.shape)
        self._x.copy_(self._start)
        self._take(self.walk, 0, len(self._path), states)
        return states
