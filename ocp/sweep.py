"""The loops over time: states forward, costates backward, and the tangents of both. No tape spans them."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from ocp.costs import Readout
from ocp.discretization import Discretization

__all__ = ["adjoint", "forward", "second_adjoint", "tangent", "without_hvp"]


@torch.no_grad()
def forward(discretization: Discretization, control: Tensor, states: Tensor) -> Tensor:
    """State sweep x_{k+1} = Psi_h(t_k, x_k, u_k).

    Parameters
    ----------
    discretization : Discretization
    control : Tensor
        Flat, shape (N m + s,).
    states : Tensor
        Shape (N + 1, batch, *state); overwritten with the trajectory.

    Returns
    -------
    Tensor
        The objective, shape ().
    """
    problem, grid, space = discretization.problem, discretization.grid, discretization.space
    step, h, t = discretization.integrator.step, grid.h, grid.nodes
    x, u, q = states.unbind(0), space.path(control).unbind(0), space.parameters(control)
    x[0].copy_(problem.initial_state(q))
    value = torch.zeros((), dtype=states.dtype, device=states.device)
    for k in range(grid.steps):
        running = step(problem, t[k], h, x[k], u[k], out=x[k + 1])
        if running is not None:
            value += running
    if problem.terminal_cost is not None:
        value += problem.terminal_cost(x[-1], q)
    for cost in problem.control_cost:
        value += cost(space, control)
    # A state that is not finite makes the objective so, also where no cost sees it.
    seen = torch.isfinite(x[-1]).all() | ~torch.isfinite(value)
    return torch.where(seen, value, torch.inf)


@torch.no_grad()
def adjoint(discretization: Discretization, control: Tensor, states: Tensor, costates: Tensor | None = None) -> Tensor:
    """Costate sweep p_k = dPsi/dx^T p_{k+1} + dL/dx, which yields the exact derivative of the discrete objective.

    Parameters
    ----------
    discretization : Discretization
    control : Tensor
        Flat, shape (N m + s,).
    states : Tensor
        The trajectory that `forward` wrote for this control.
    costates : Tensor, optional
        Of the shape of ``states``; overwritten with p_0, ..., p_N where they are wanted.

    Returns
    -------
    Tensor
        The derivative, a dual vector of the shape of ``control``.
    """
    problem, grid, space = discretization.problem, discretization.grid, discretization.space
    pullback, h, t = discretization.integrator.pullback, grid.h, grid.nodes
    x, u, q = states.unbind(0), space.path(control).unbind(0), space.parameters(control)
    derivative = torch.zeros_like(control)
    by_step, by_parameters = space.path(derivative).unbind(0), space.parameters(derivative)
    p = torch.zeros_like(x[-1])
    if problem.terminal_cost is not None:
        p, pq = problem.terminal_cost.derivative(x[-1], q)
        by_parameters += pq
    for k in reversed(range(grid.steps)):
        if costates is not None:
            costates[k + 1].copy_(p)
        p, pu = pullback(problem, t[k], h, x[k], u[k], p)
        by_step[k].copy_(pu)
    if costates is not None:
        costates[0].copy_(p)
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
def second_adjoint(
    discretization: Discretization, control: Tensor, direction: Tensor, states: Tensor, tangents: Tensor
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

    Returns
    -------
    Tensor
        The product, a dual vector of the shape of ``control``.
    """
    problem: Any = discretization.problem
    integrator: Any = discretization.integrator
    grid, space = discretization.grid, discretization.space
    tangent(discretization, control, direction, states, tangents)
    h, t, x, dx = grid.h, grid.nodes, states.unbind(0), tangents.unbind(0)
    u, q = space.path(control).unbind(0), space.parameters(control)
    du, dq = space.path(direction).unbind(0), space.parameters(direction)
    product = torch.zeros_like(control)
    by_step, by_parameters = space.path(product).unbind(0), space.parameters(product)
    p, dp = torch.zeros_like(x[-1]), torch.zeros_like(x[-1])
    if problem.terminal_cost is not None:
        p, _ = problem.terminal_cost.derivative(x[-1], q)
        dp, hq = problem.terminal_cost.hvp(x[-1], q, dx[-1], dq)
        by_parameters += hq
    for k in reversed(range(grid.steps)):
        p, dp, dpu = integrator.pullback_tangent(problem, t[k], h, x[k], u[k], p, dx[k], du[k], dp)
        by_step[k].copy_(dpu)
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
