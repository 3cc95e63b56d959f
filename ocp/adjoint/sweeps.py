"""The loops over time: states forward, costates backward, and the tangents of both. No tape spans them."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import torch
from torch import Tensor

from ocp.adjoint.discretization import Discretization
from ocp.adjoint.linearization import Linearization, linearizes
from ocp.adjoint.schedules import Action, Advance, Keep, Memory, Restore, Reverse, Take, Undo
from ocp.adjoint.tapes import Record, Stepwise, Taped
from ocp.problem.control_problem import ControlProblem
from ocp.problem.costs import Readout

__all__ = ["Planned", "adjoint", "forward", "linearize", "record", "second_adjoint", "tangent", "without_hvp"]


#: A plan takes the steps that it does not remember so many at a time, in storage of that size: what a record does once
#: for all of them weighs less then, and four states more are not much beside the slots.
CHUNK = 4


def record(discretization: Discretization, memory: Memory, x: Tensor, u: Tensor) -> Record:
    """Room for the steps of a grid, to be remembered as a plan says and as integrator and problem allow.

    Parameters
    ----------
    discretization : Discretization
    memory : Memory
    x, u : Tensor
        A state and the control of a step: for shape, type and device, and to try what the problem offers.
    """
    problem, integrator, grid = discretization.problem, discretization.integrator, discretization.grid
    own, steps = getattr(integrator, "record", None), grid.steps
    room = min(max(memory.span(steps), CHUNK), steps)
    found: Record | None = None if own is None else own(problem, grid, room, x, u)
    if found is not None and memory.span(steps) == steps:
        return found
    plain = Stepwise(integrator, grid, x.new_empty(room + 1, *x.shape))
    if memory.span(steps) == steps:
        return plain
    slots = memory.slots_for(steps)
    host = min(getattr(memory, "host", 0), slots)
    far = torch.empty(host, *x.shape, dtype=x.dtype, pin_memory=host > 0 and x.is_cuda)
    return Planned(memory, found or plain, plain, room, x.new_empty(slots - host + 3, *x.shape), far)


class Planned:
    """All steps of a grid, in the storage for a few of them and the slots that a plan wants.

    Parameters
    ----------
    memory : Memory
        The plan.
    few : Record
        What steps are taken and gone back through with.
    plain : Stepwise
        What steps are undone with, and taken where nothing is to be remembered of them but ``few`` would make a tape.
    room : int
        How many either can hold.
    storage : Tensor
        Shape (slots + 3, batch, *state); without the slots in ``far``.
    far : Tensor
        The first slots, in the memory of the host.
    """

    def __init__(self, memory: Memory, few: Record, plain: Stepwise, room: int, storage: Tensor, far: Tensor):
        self.memory, self.few, self.plain, self.room = memory, few, plain, room
        self._walk: Record = plain if isinstance(few, Taped) else few
        self._x, self._start, self.end, *near = storage.unbind(0)
        self._slots = (*far.unbind(0), *near)
        self._ready = False

    def forward(self, problem: ControlProblem, first: int, x: Tensor, path: Tensor) -> Tensor | None:
        self._problem, self._first, self._path = problem, first, path
        self._rest, total = self.memory.actions(len(path)), None
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

    def backward(self, p: Tensor, derivative: Tensor) -> Tensor:
        for first, last in self.retrace():
            p = self.few.backward(p, derivative[first:last])
        return p

    def retrace(self) -> Iterator[tuple[int, int]]:
        """Go on with the plan after `forward`; yields the steps to go back through, when ``few`` remembers them."""
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
                return self._take(self._walk, first, last)
            case Take(first, last):
                return self._take(self.few, first, last)
            case Undo(first, last):
                self.plain.undo(self._problem, self._first + first, self._x, self._path[first:last])
        return None

    def _take(self, steps: Record, first: int, last: int, visited: Tensor | None = None) -> Tensor | None:
        total = None
        for begin in range(first, last, self.room):
            end = min(begin + self.room, last)
            cost = steps.forward(self._problem, self._first + begin, self._x, self._path[begin:end])
            self._x.copy_(steps.end)
            if visited is not None:
                visited[begin : end + 1].copy_(steps.states)
            if cost is not None:
                total = cost if total is None else total + cost
        return total

    @property
    @torch.no_grad()
    def states(self) -> Tensor:
        """All states, for which the steps are taken once more, and again before the next way back."""
        self._ready = False
        states = self._x.new_empty(len(self._path) + 1, *self._x.shape)
        self._x.copy_(self._start)
        self._take(self._walk, 0, len(self._path), states)
        return states


@torch.no_grad()
def forward(discretization: Discretization, control: Tensor, states: Tensor | Record) -> Tensor:
    """State sweep x_{k+1} = Psi_h(t_k, x_k, u_k).

    Parameters
    ----------
    discretization : Discretization
    control : Tensor
        Flat, shape (N m + s,).
    states : Tensor or Record
        Shape (N + 1, batch, *state); overwritten with the trajectory. A record, which `record` makes, remembers in its
        place what the adjoint sweep needs.

    Returns
    -------
    Tensor
        The objective, shape ().
    """
    problem, space = discretization.problem, discretization.space
    steps = Stepwise(discretization.integrator, discretization.grid, states) if isinstance(states, Tensor) else states
    q, value = space.parameters(control), control.new_zeros(())
    running = steps.forward(problem, 0, problem.initial_state(q), space.path(control))
    if running is not None:
        value += running
    if problem.terminal_cost is not None:
        value += problem.terminal_cost(steps.end, q)
    for cost in problem.control_cost:
        value += cost(space, control)
    # A state that is not finite makes the objective so, also where no cost sees it.
    finite = steps.end.mul(0.0).sum() == 0
    return torch.where(finite | value.isnan(), value, torch.inf)


@torch.no_grad()
def adjoint(
    discretization: Discretization,
    control: Tensor,
    states: Tensor | Record,
    costates: Tensor | None = None,
    out: Tensor | None = None,
) -> Tensor:
    """Costate sweep p_k = dPsi/dx^T p_{k+1} + dL/dx, which yields the exact derivative of the discrete objective.

    Parameters
    ----------
    discretization : Discretization
    control : Tensor
        Flat, shape (N m + s,).
    states : Tensor or Record
        What `forward` wrote for this control. A record serves one adjoint sweep.
    costates : Tensor, optional
        Of the shape of the states; overwritten with p_0, ..., p_N where they are wanted.
    out : Tensor, optional
        Storage for the derivative, of the shape of ``control``.

    Returns
    -------
    Tensor
        The derivative, a dual vector of the shape of ``control``.
    """
    problem, space = discretization.problem, discretization.space
    q, end = space.parameters(control), states[-1] if isinstance(states, Tensor) else states.end
    derivative = torch.empty_like(control) if out is None else out
    by_path, by_parameters = space.path(derivative), space.parameters(derivative).zero_()
    p = torch.zeros_like(end)
    if problem.terminal_cost is not None:
        p, pq = problem.terminal_cost.derivative(end, q)
        by_parameters += pq
    if isinstance(states, Tensor) or costates is not None:
        x = states if isinstance(states, Tensor) else states.states
        steps = Stepwise(discretization.integrator, discretization.grid, x)
        p = steps.resume(problem, 0, space.path(control)).backward(p, by_path, costates)
    else:
        p = states.backward(p, by_path)
    by_parameters += problem.initial_state.vjp(q, p)
    for cost in problem.control_cost:
        derivative += cost.derivative(space, control)
    return derivative


@torch.no_grad()
def tangent(
    discretization: Discretization, control: Tensor, direction: Tensor, states: Tensor, tangents: Tensor | None = None
) -> tuple[Tensor, Tensor]:
    """Tangent sweep: the directional derivative of the final state and of the objective.

    Parameters
    ----------
    discretization : Discretization
    control, direction : Tensor
        Flat, shape (N m + s,).
    states : Tensor
        The trajectory that `forward` wrote for this control.
    tangents : Tensor, optional
        Of the shape of ``states``; overwritten with the tangents of x_0, ..., x_N where they are wanted.

    Returns
    -------
    (Tensor, Tensor)
        Of the shape of the final state, and of shape ().
    """
    problem, grid, space = discretization.problem, discretization.grid, discretization.space
    step, h, t = discretization.integrator.tangent, grid.h, grid.nodes
    x, u, q = states.unbind(0), space.path(control).unbind(0), space.parameters(control)
    du, dq = space.path(direction).unbind(0), space.parameters(direction)
    dx = problem.initial_state.jvp(q, dq)
    dvalue = torch.zeros((), dtype=states.dtype, device=states.device)
    for k in range(grid.steps):
        if tangents is not None:
            tangents[k].copy_(dx)
        dx, running = step(problem, t[k], h, x[k], u[k], dx, du[k])
        if running is not None:
            dvalue += running
    if tangents is not None:
        tangents[-1].copy_(dx)
    if problem.terminal_cost is not None:
        px, pq = problem.terminal_cost.derivative(x[-1], q)
        dvalue += (px * dx).sum() + (pq * dq).sum()
    for cost in problem.control_cost:
        dvalue += torch.dot(cost.derivative(space, control), direction)
    return dx, dvalue


@torch.no_grad()
def linearize(discretization: Discretization, control: Tensor, states: Tensor) -> Linearization | None:
    """All steps at once, for `second_adjoint` at this control in many directions; None where that is not offered."""
    if not linearizes(discretization):
        return None
    p = _last_costate(discretization, control, states[-1])
    return Linearization(discretization, states, discretization.space.path(control), p)


def _last_costate(discretization: Discretization, control: Tensor, end: Tensor) -> Tensor:
    """p_N, the derivative of the terminal cost by the final state."""
    cost = discretization.problem.terminal_cost
    return torch.zeros_like(end) if cost is None else cost.derivative(end, discretization.space.parameters(control))[0]


@torch.no_grad()
def second_adjoint(
    discretization: Discretization,
    control: Tensor,
    direction: Tensor,
    states: Tensor,
    tangents: Tensor,
    steps: Linearization | None = None,
) -> Tensor:
    """Tangent sweep, then the tangent of the costate sweep: the Hessian of the discrete objective, applied to a vector.

    Every piece of the problem that takes part needs its ``hvp``, the integrator its ``pullback_tangent``.

    Parameters
    ----------
    discretization : Discretization
    control, direction : Tensor
        Flat, shape (N m + s,).
    states : Tensor
        The trajectory that `forward` wrote for this control.
    tangents : Tensor
        Of the shape of ``states``; overwritten with the tangents of x_0, ..., x_N.
    steps : Linearization, optional
        What `linearize` gave for this control; it serves all directions.

    Returns
    -------
    Tensor
        The product, a dual vector of the shape of ``control``.
    """
    problem: Any = discretization.problem
    integrator: Any = discretization.integrator
    grid, space = discretization.grid, discretization.space
    q, dq, dpath = space.parameters(control), space.parameters(direction), space.path(direction)
    if steps is None:
        tangent(discretization, control, direction, states, tangents)
    else:
        tangents.copy_(steps.tangents(problem.initial_state.jvp(q, dq), dpath))
    product, last, end = torch.zeros_like(control), problem.terminal_cost, states[-1]
    by_path, by_parameters, dp = space.path(product), space.parameters(product), torch.zeros_like(end)
    if last is not None:
        dp, hq = last.hvp(end, q, tangents[-1], dq)
        by_parameters += hq
    if steps is None:
        h, t, x, dx = grid.h, grid.nodes, states.unbind(0), tangents.unbind(0)
        u, du, by_step = space.path(control).unbind(0), dpath.unbind(0), by_path.unbind(0)
        p = _last_costate(discretization, control, end)
        for k in reversed(range(grid.steps)):
            p, dp, dpu = integrator.pullback_tangent(problem, t[k], h, x[k], u[k], p, dx[k], du[k], dp)
            by_step[k].copy_(dpu)
    else:
        p = steps.costate
        dp, second = steps.second(tangents, dpath, dp)
        by_path.copy_(second)
    by_parameters += problem.initial_state.vjp(q, dp) + problem.initial_state.hvp(q, p, dq)
    for cost in problem.control_cost:
        product += cost.hvp(space, control, direction)
    return product


def without_hvp(discretization: Discretization) -> dict[str, str]:
    """The pieces that stand in the way of second derivatives, and of what kind each is; empty where there are none."""
    problem, last = discretization.problem, discretization.problem.terminal_cost
    pieces: list[tuple[str, Any, str]] = [
        ("dynamics", problem.dynamics, "hvp"),
        ("initial_state", problem.initial_state, "hvp"),
        ("running_cost", problem.running_cost, "hvp"),
        ("terminal_cost", last, "hvp"),
        ("terminal_cost.cost", last.cost if isinstance(last, Readout) else None, "hvp"),
        *(("control_cost", cost, "hvp") for cost in problem.control_cost),
        ("integrator", discretization.integrator, "pullback_tangent"),
    ]
    return {
        name: f"a method {method} for second derivatives, got {type(piece).__name__}"
        for name, piece, method in pieces
        if piece is not None and not hasattr(piece, method)
    }
