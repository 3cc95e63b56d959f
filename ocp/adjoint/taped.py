"""Steps made of torch operations, differentiated by autograd, some steps at a time."""

from __future__ import annotations

from itertools import repeat
from typing import Any, NamedTuple, cast

import torch
from torch import Tensor

from ocp.integrators.integrator import Integrator
from ocp.problem.protocols import Bindable, StateEquation
from ocp.problem.shapes import BatchState, ControlPath, NodeStates, Scalar
from ocp.space.grid import TimeGrid

__all__ = ["Taped"]

#: Steps in a segment. With more of them the cost of calling autograd, spread over the steps, no longer falls.
SEGMENT_STEPS = 64


class _Segment(NamedTuple):
    """A few steps as autograd has recorded them. The leaves: the state at the start, the controls, parts of these."""

    outputs: list[Tensor]
    leaves: list[Tensor]


class _Bound(NamedTuple):
    """A state equation whose dynamics already have the control of their step."""

    dynamics: Any
    running_cost: Any


class Taped:
    """A `Tape` for problems and integrators that autograd can follow.

    To record each step by itself would cost more than the operations of a small step; to record all of them at once,
    their memory. So autograd records segments of steps.

    Parameters
    ----------
    integrator : Integrator
        `Traceable`.
    grid : TimeGrid
    storage : Tensor
        Shape (steps + 1, batch, *state), where the states are written.
    bindable : bool
        Whether the dynamics are `Bindable`.
    """

    def __init__(self, integrator: Integrator, grid: TimeGrid, storage: Tensor, bindable: bool = False):
        self._bindable = bindable
        self.integrator, self.grid, self._storage, self._steps = integrator, grid, storage, 0
        self._segments: list[_Segment] = []

    @property
    def states(self) -> NodeStates:
        return self._storage[: self._steps + 1]

    @property
    def end(self) -> BatchState:
        return self._storage[self._steps]

    def forward(self, problem: StateEquation, first: int, x: BatchState, path: ControlPath) -> Scalar | None:
        self._segments.clear()
        self._steps, total = len(path), None
        self._storage[0].copy_(x)
        for begin in range(0, len(path), SEGMENT_STEPS):
            cost = self._take(problem, first + begin, self._storage[begin:], path[begin : begin + SEGMENT_STEPS])
            if cost is not None:
                total = cost if total is None else total + cost
        return total

    def _take(self, problem: StateEquation, first: int, states: Tensor, path: Tensor) -> Tensor | None:
        step, h, times = self.integrator.step, self.grid.h, self.grid.nodes
        f, L = problem.dynamics, problem.running_cost
        with torch.enable_grad():
            x, path = states[0].clone().requires_grad_(), path.detach().requires_grad_()
            parts: list[Tensor] = []
            equations: Any = repeat(problem)
            if self._bindable:
                parts, bound = cast(Bindable, f).bind(path)
                equations = [_Bound(each, L) for each in bound]
            visited, costs, end = [x], [], x
            for equation, t, u in zip(equations, times[first:], path.unbind(0), strict=False):
                end, cost = step(equation, t, h, end, u)
                visited.append(end)
                if cost is not None:
                    costs.append(cost)
            total = torch.stack(costs).sum() if costs else None
        torch.stack(visited[1:], out=states[1 : len(visited)])
        outputs = [visited[-1]] if total is None or not total.requires_grad else [visited[-1], total]
        self._segments.append(_Segment(outputs, [x, path, *parts]))
        return None if total is None else total.detach()

    def backward(self, p: BatchState, derivative: ControlPath) -> BatchState:
        for k in reversed(range(len(self._segments))):
            outputs, leaves = self._segments.pop()
            cotangents = [p, p.new_ones(())][: len(outputs)]
            p, by_path, *by_part = torch.autograd.grad(outputs, leaves, cotangents, allow_unused=True)
            by_step = derivative[k * SEGMENT_STEPS : k * SEGMENT_STEPS + len(leaves[1])]
            by_step.zero_() if by_path is None else by_step.copy_(by_path)
            sizes = [leaf[0].numel() for leaf in leaves[2:]]
            for part, grad in zip(by_step.split(sizes, dim=1) if sizes else (), by_part, strict=True):
                if grad is not None:
                    part.add_(grad.flatten(1))
        return p
