"""Where in a sweep a number ceased to be finite; looked for only after one was seen."""

from __future__ import annotations

from collections.abc import Iterator

import torch
from torch import Tensor

from ocp.adjoint.discretization import Discretization

__all__ = ["locate"]


@torch.no_grad()
def locate(discretization: Discretization, control: Tensor) -> str:
    """The first place of a forward and an adjoint sweep that is not finite, in words; empty if all is finite.

    Takes all steps again, one by one. Steps are counted from 0, as in u_0, ..., u_{N-1}; the control is flat.

    Examples
    --------
    >>> from ocp import ControlProblem, discretize
    >>> problem = ControlProblem(
    ...     lambda t, x, u: x / (0.5 - t), torch.ones(1, 1), lambda x: x.sum(), control_size=1
    ... )
    >>> locate(discretize(problem, steps=4).discretization, torch.zeros(4))
    'the state after step 2'
    """
    for place, numbers in _numbers(discretization, control):
        if not all(bool(torch.isfinite(n).all()) for n in numbers if n is not None):
            return place
    return ""


def _numbers(discretization: Discretization, control: Tensor) -> Iterator[tuple[str, tuple[Tensor | None, ...]]]:
    """All that both sweeps compute, in this order."""
    problem, space, integrator = discretization.problem, discretization.space, discretization.stepper
    q, points = (
        space.parameters(control),
        list(zip(discretization.grid.nodes, discretization.inputs(control), strict=False)),
    )
    h, last, states = discretization.grid.h, problem.terminal_cost, [problem.initial_state(q)]
    yield "the initial state", (states[0],)
    for k, (t, u) in enumerate(points):
        x, cost = integrator.step(problem.equation, t, h, states[-1], u)
        states.append(x)
        yield f"the running cost in step {k}", (cost,)
        yield f"the state after step {k}", (x,)
    p = torch.zeros_like(states[-1])
    if last is not None:
        yield "the terminal cost", (last(states[-1], q),)
    for control_cost in problem.control_cost:
        yield "the cost of the control", (control_cost(space, control),)
    if last is not None:
        p, pq = last.derivative(states[-1], q)
        yield "the derivative of the terminal cost", (p, pq)
    for k, (t, u) in reversed(list(enumerate(points))):
        p, pu = integrator.pullback(problem.equation, t, h, states[k], u, p)
        yield f"the adjoint of step {k}", (p, pu)
    yield "the derivative of the initial state", (problem.initial_state.vjp(q, p),)
    for control_cost in problem.control_cost:
        yield "the derivative of the cost of the control", (control_cost.derivative(space, control),)
