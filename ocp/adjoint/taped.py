"""Steps made of torch operations, differentiated by autograd, some steps at a time."""

from __future__ import annotations

from itertools import repeat
from typing import Any, NamedTuple

import torch
from torch import Tensor

from ocp.adjoint.tapes import total
from ocp.integrators.integrator import Integrator
from ocp.problem.protocols import StateEquation
from ocp.problem.shapes import BatchState, ControlPath, Scalar
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
    observation: Any


class Taped:
    """A `Tape` for problems and integrators that are `Traceable`, with ``bindable`` also `Bindable` dynamics.

    Recording each step by itself would cost more than the operations of a small step; recording all of them at once,
    their memory. So autograd records segments of steps. The states are in ``storage``, (steps + 1, batch, *state).
    """

    def __init__(self, integrator: Integrator, grid: TimeGrid, storage: Tensor, bindable: bool = False):
        self.integrator, self.grid, self._storage, self._bindable = integrator, grid, storage, bindable
        self._segments: list[_Segment] = []

    def forward(self, problem: StateEquation, first: int, x: BatchState, path: ControlPath) -> Scalar | None:
        self._segments.clear()
        self.states, self.end = self._storage[: len(path) + 1], self._storage[len(path)]
        self._storage[0].copy_(x)
        return total(
            self._take(problem, first + begin, self._storage[begin:], path[begin : begin + SEGMENT_STEPS])
            for begin in range(0, len(path), SEGMENT_STEPS)
        )

    def _take(self, problem: StateEquation, first: int, states: Tensor, path: Tensor) -> Tensor | None:
        f: Any = problem.dynamics
        with torch.enable_grad():
            x, path = states[0].clone().requires_grad_(), path.detach().requires_grad_()
            parts: list[Tensor] = []
            equations: Any = repeat(problem)
            if self._bindable:
                parts, bound = f.bind(path)
                equations = [
                    _Bound(each, problem.running_cost, getattr(problem, "observation", None)) for each in bound
                ]
            visited, costs, end = [], [], x
            for equation, t, u in zip(equations, self.grid.nodes[first:], path.unbind(0), strict=False):
                end, cost = self.integrator.step(equation, t, self.grid.h, end, u)
                visited.append(end)
                costs.append(cost)
            running = total(costs)
        torch.stack(visited, out=states[1 : len(visited) + 1])
        outputs = [end] if running is None or not running.requires_grad else [end, running]
        self._segments.append(_Segment(outputs, [x, path, *parts]))
        return None if running is None else running.detach()

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
