"""The loops over time: states forward, costates backward, and the tangents of both. No tape spans them.

Controls, directions and derivatives are flat, (N m + s,); states, costates and tangents are (N + 1, batch, *state).
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from ocp.adjoint.discretization import Discretization
from ocp.adjoint.linearization import Linearization
from ocp.adjoint.paths import supports_linearization
from ocp.adjoint.stepwise import Stepwise
from ocp.adjoint.tapes import Tape
from ocp.problem.shapes import BatchState, FlatControl, NodeStates, Scalar

__all__ = ["adjoint", "forward", "linearize", "second_adjoint", "tangent"]


@torch.no_grad()
def forward(discretization: Discretization, control: FlatControl, states: NodeStates | Tape) -> Scalar:
    """State sweep x_{k+1} = Psi_h(t_k, x_k, u_k); returns the objective, shape ().

    Overwrites ``states`` with the trajectory, or has a tape remember what the adjoint sweep needs.
    """
    problem, space = discretization.problem, discretization.space
    steps = Stepwise(discretization.stepper, discretization.grid, states) if isinstance(states, Tensor) else states
    q, value = space.parameters(control), control.new_zeros(())
    running = steps.forward(problem.equation, 0, problem.initial_state(q), discretization.inputs(control))
    if running is not None:
        value += running
    if problem.terminal_cost is not None:
        value += problem.terminal_cost(steps.end, q)
    for cost in problem.control_cost:
        value += cost(space, control)
    # A final state that is not finite makes the objective infinite, even if no cost depends on it.
    finite = steps.end.mul(0.0).sum() == 0
    return torch.where(finite | value.isnan(), value, torch.inf)


@torch.no_grad()
def adjoint(
    discretization: Discretization,
    control: FlatControl,
    states: NodeStates | Tape,
    costates: Tensor | None = None,
    out: Tensor | None = None,
) -> FlatControl:
    """Costate sweep p_k = dPsi/dx^T p_{k+1} + dL/dx; returns the exact derivative of the discrete objective.

    The states or the tape are what `forward` wrote for this control; a tape serves one adjoint sweep. Writes
    p_0, ..., p_N to ``costates`` and the derivative, a dual vector, to ``out``, if given.
    """
    problem, space = discretization.problem, discretization.space
    q, end = space.parameters(control), states[-1] if isinstance(states, Tensor) else states.end
    derivative = torch.empty_like(control) if out is None else out
    by_inputs, by_parameters = discretization.by_inputs(derivative), space.parameters(derivative).zero_()
    p = torch.zeros_like(end)
    if problem.terminal_cost is not None:
        p, pq = problem.terminal_cost.derivative(end, q)
        by_parameters += pq
    if isinstance(states, Tensor) or costates is not None:
        x = states if isinstance(states, Tensor) else states.states
        steps = Stepwise(discretization.stepper, discretization.grid, x)
        p = steps.resume(problem.equation, 0, discretization.inputs(control)).backward(p, by_inputs, costates)
    else:
        p = states.backward(p, by_inputs)
    discretization.collect(by_inputs, derivative)
    by_parameters += problem.initial_state.vjp(q, p)
    for cost in problem.control_cost:
        derivative += cost.derivative(space, control)
    return derivative


@torch.no_grad()
def tangent(
    discretization: Discretization,
    control: FlatControl,
    direction: FlatControl,
    states: NodeStates,
    tangents: NodeStates | None = None,
) -> tuple[BatchState, Scalar]:
    """Tangent sweep: the directional derivatives of the final state and of the objective.

    The states are those that `forward` wrote for this control. Overwrites ``tangents`` with those of x_0, ..., x_N.
    """
    problem, grid, space = discretization.problem, discretization.grid, discretization.space
    step, h, t = discretization.stepper.tangent, grid.h, grid.nodes
    x, u, q = states.unbind(0), discretization.inputs(control).unbind(0), space.parameters(control)
    du, dq = discretization.inputs(direction).unbind(0), space.parameters(direction)
    dx = problem.initial_state.jvp(q, dq)
    dvalue = states.new_zeros(())
    for k in range(grid.steps):
        if tangents is not None:
            tangents[k].copy_(dx)
        dx, running = step(problem.equation, t[k], h, x[k], u[k], dx, du[k])
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
def linearize(discretization: Discretization, control: FlatControl, states: NodeStates) -> Linearization | None:
    """All steps at once, for `second_adjoint` at this control in many directions; None if that is not supported."""
    p, inputs = _last_costate(discretization, control, states[-1]), discretization.inputs(control)
    return Linearization(discretization, states, inputs, p) if supports_linearization(discretization) else None


def _last_costate(discretization: Discretization, control: FlatControl, end: Tensor) -> Tensor:
    """p_N, the derivative of the terminal cost by the final state."""
    cost = discretization.problem.terminal_cost
    return torch.zeros_like(end) if cost is None else cost.derivative(end, discretization.space.parameters(control))[0]


@torch.no_grad()
def second_adjoint(
    discretization: Discretization,
    control: FlatControl,
    direction: FlatControl,
    states: NodeStates,
    tangents: NodeStates,
    steps: Linearization | None = None,
) -> FlatControl:
    """Tangent sweep, then the tangent of the costate sweep: the Hessian of the discrete objective times a direction.

    All pieces must have second derivatives: see `Discretization.without_hvp`. The states are those that `forward` wrote
    for this control; overwrites ``tangents`` with those of x_0, ..., x_N. ``steps``, which `linearize` returned for
    this control, serve all directions.
    """
    problem: Any = discretization.problem
    integrator: Any = discretization.stepper
    grid, space = discretization.grid, discretization.space
    q, dq, dinputs = space.parameters(control), space.parameters(direction), discretization.inputs(direction)
    if steps is None:
        tangent(discretization, control, direction, states, tangents)
    else:
        tangents.copy_(steps.tangents(problem.initial_state.jvp(q, dq), dinputs))
    product, last, end = torch.zeros_like(control), problem.terminal_cost, states[-1]
    by_inputs, by_parameters, dp = discretization.by_inputs(product), space.parameters(product), torch.zeros_like(end)
    if last is not None:
        dp, hq = last.hvp(end, q, tangents[-1], dq)
        by_parameters += hq
    if steps is None:
        h, t, x, dx = grid.h, grid.nodes, states.unbind(0), tangents.unbind(0)
        u, du, by_step = discretization.inputs(control).unbind(0), dinputs.unbind(0), by_inputs.unbind(0)
        p = _last_costate(discretization, control, end)
        for k in reversed(range(grid.steps)):
            p, dp, dpu = integrator.pullback_tangent(problem.equation, t[k], h, x[k], u[k], p, dx[k], du[k], dp)
            by_step[k].copy_(dpu)
    else:
        p = steps.costate
        dp, second = steps.second(tangents, dinputs, dp)
        by_inputs.copy_(second)
    discretization.collect(by_inputs, product)
    by_parameters += problem.initial_state.vjp(q, dp) + problem.initial_state.hvp(q, p, dq)
    for cost in problem.control_cost:
        product += cost.hvp(space, control, direction)
    return product
