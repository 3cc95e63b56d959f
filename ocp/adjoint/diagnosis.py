"""Where in a sweep a number ceased to be finite; looked for only after one was seen."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import torch
from torch import Tensor

from ocp.adjoint.discretization import Discretization

__all__ = ["locate"]


@torch.no_grad()
def locate(discretization: Discretization, control: Tensor) -> str:
    """The first place of a forward and an adjoint sweep that is not finite, in words; empty where all is finite.

    The sweeps are made anew, one step at a time, so that every number can be looked at as it comes. Steps are counted
    from 0, as in u_0, ..., u_{N-1}.

    Parameters
    ----------
    discretization : Discretization
    control : Tensor
        Flat, shape (N m + s,).

    Examples
    --------
    >>> from ocp import ControlProblem, discretize
    >>> problem = ControlProblem(
    ...     lambda t, x, u: x / (0.5 - t), torch.ones(1, 1), lambda x: x.sum(), control_size=1
    ... )
    >>> locate(discretize(problem, steps=4).discretization, torch.zeros(4))
    'the state after step 2'
    """
    states: list[Tensor] = []
    for place, numbers in (*_forward(discretization, control, states), *_adjoint(discretization, control, states)):
        if not bool(torch.isfinite(numbers).all()):
            return place
    return ""


def _forward(discretization: Discretization, control: Tensor, states: list[Tensor]) -> Iterator[tuple[str, Tensor]]:
    """What a forward sweep computes, in order; the states are kept."""
    problem, grid, space = discretization.problem, discretization.grid, discretization.space
    q = space.parameters(control)
    states.append(problem.initial_state(q).clone())
    yield "the initial state", states[0]
    for k, u in enumerate(space.path(control)):
        x = torch.empty_like(states[k])
        running = discretization.integrator.step(problem, grid.nodes[k], grid.h, states[k], u, out=x)
        states.append(x)
        if running is not None:
            yield f"the running cost in step {k}", running
        yield f"the state after step {k}", x
    if problem.terminal_cost is not None:
        yield "the terminal cost", problem.terminal_cost(states[-1], q)
    for cost in problem.control_cost:
        yield "the cost of the control", cost(space, control)


def _adjoint(discretization: Discretization, control: Tensor, states: list[Tensor]) -> Iterator[tuple[str, Tensor]]:
    """What an adjoint sweep computes, in order, the last step first."""
    problem, grid, space = discretization.problem, discretization.grid, discretization.space
    pullback: Any = discretization.integrator.pullback
    q, p = space.parameters(control), torch.zeros_like(states[-1])
    if problem.terminal_cost is not None:
        p, pq = problem.terminal_cost.derivative(states[-1], q)
        yield "the derivative of the terminal cost", torch.cat((p.reshape(-1), pq))
    for k in reversed(range(grid.steps)):
        p, pu = pullback(problem, grid.nodes[k], grid.h, states[k], space.path(control)[k], p)
        yield f"the adjoint of step {k}", torch.cat((p.reshape(-1), pu.reshape(-1)))
    yield "the derivative of the initial state", problem.initial_state.vjp(q, p)
    for cost in problem.control_cost:
        yield "the derivative of the cost of the control", cost.derivative(space, control)
