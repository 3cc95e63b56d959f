"""Where in a sweep a number ceased to be finite; looked for only after one was seen."""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import Any

import torch
from torch import Tensor

from ocp.adjoint import sweeps
from ocp.adjoint.discretization import Discretization
from ocp.integrators.integrator import Integrator
from ocp.problem.protocols import StateEquation
from ocp.space.grid import TimeGrid

__all__ = ["locate"]


@torch.no_grad()
def locate(discretization: Discretization, control: Tensor) -> str:
    """The first place of a forward and an adjoint sweep that is not finite, in words; empty if all is finite.

    The sweeps are run again, step by step, and each number is looked at as it comes. Steps are counted from 0, as in
    u_0, ..., u_{N-1}.

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
    try:
        _sweep(discretization, control)
    except _NotFinite as found:
        return str(found)
    return ""


class _NotFinite(Exception):
    """Carries the place."""


def _sweep(discretization: Discretization, control: Tensor) -> None:
    """Both sweeps, with a look at each number in the order in which they compute it."""
    problem, space = discretization.problem, discretization.space
    watched = replace(discretization, integrator=_Watched(discretization.integrator, discretization.grid))
    q = space.parameters(control)
    x = problem.initial_state(q)
    _look("the initial state", x)
    states = x.new_empty(discretization.grid.steps + 1, *x.shape)
    costates = torch.empty_like(states)
    sweeps.forward(watched, control, states)
    if problem.terminal_cost is not None:
        _look("the terminal cost", problem.terminal_cost(states[-1], q))
    for cost in problem.control_cost:
        _look("the cost of the control", cost(space, control))
    if problem.terminal_cost is not None:
        _look("the derivative of the terminal cost", *problem.terminal_cost.derivative(states[-1], q))
    sweeps.adjoint(watched, control, states, costates)
    _look("the derivative of the initial state", problem.initial_state.vjp(q, costates[0]))
    for cost in problem.control_cost:
        _look("the derivative of the cost of the control", cost.derivative(space, control))


def _look(place: str, *numbers: Tensor | None) -> None:
    if not all(bool(torch.isfinite(n).all()) for n in numbers if n is not None):
        raise _NotFinite(place)


@dataclass(frozen=True)
class _Watched:
    """An integrator that looks at what each of its steps computes."""

    integrator: Integrator
    grid: TimeGrid

    @property
    def name(self) -> str:
        return self.integrator.name

    @property
    def order(self) -> int:
        return self.integrator.order

    def step(self, problem: StateEquation, t: float, h: float, x: Tensor, u: Tensor) -> tuple[Tensor, Tensor | None]:
        end, cost = self.integrator.step(problem, t, h, x, u)
        k = self.grid.nodes.index(t)
        _look(f"the running cost in step {k}", cost)
        _look(f"the state after step {k}", end)
        return end, cost

    def pullback(
        self, problem: StateEquation, t: float, h: float, x: Tensor, u: Tensor, p: Tensor
    ) -> tuple[Tensor, Tensor]:
        before, by_control = self.integrator.pullback(problem, t, h, x, u, p)
        _look(f"the adjoint of step {self.grid.nodes.index(t)}", before, by_control)
        return before, by_control

    def tangent(self, *arguments: Any) -> tuple[Tensor, Tensor | None]:
        return self.integrator.tangent(*arguments)
