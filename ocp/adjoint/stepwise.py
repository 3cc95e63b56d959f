"""Steps of any integrator, one by one: the states are remembered, all else is computed again on the way back."""

from __future__ import annotations

from torch import Tensor

from ocp.adjoint.tapes import total
from ocp.integrators.integrator import Integrator, Invertible
from ocp.problem.protocols import StateEquation
from ocp.problem.shapes import BatchState, ControlPath, Scalar
from ocp.space.grid import TimeGrid

__all__ = ["Stepwise"]


class Stepwise:
    """A `Tape` for every integrator and every problem; the states are in ``storage``, (steps + 1, batch, *state)."""

    def __init__(self, integrator: Integrator, grid: TimeGrid, storage: Tensor):
        self.integrator, self.grid, self._storage = integrator, grid, storage

    def resume(self, problem: StateEquation, first: int, path: ControlPath) -> Stepwise:
        """As if `forward` had been called: the states are already in the storage."""
        self._problem, self._first, self._path = problem, first, path
        self.states, self.end = self._storage[: len(path) + 1], self._storage[len(path)]
        return self

    def forward(self, problem: StateEquation, first: int, x: BatchState, path: ControlPath) -> Scalar | None:
        step, h, t, visited = self.integrator.step, self.grid.h, self.grid.nodes, self._storage.unbind(0)
        self.resume(problem, first, path)
        visited[0].copy_(x)
        costs = []
        for k, u in enumerate(path.unbind(0)):
            end, cost = step(problem, t[first + k], h, visited[k], u)
            visited[k + 1].copy_(end)
            costs.append(cost)
        return total(costs)

    def backward(self, p: BatchState, derivative: ControlPath, costates: Tensor | None = None) -> BatchState:
        """As for any `Tape`; may be called again, and writes the costates at all nodes to ``costates`` if given."""
        pullback, h, t, x = self.integrator.pullback, self.grid.h, self.grid.nodes, self.states.unbind(0)
        by_step, u = derivative.unbind(0), self._path.unbind(0)
        for k in reversed(range(len(u))):
            if costates is not None:
                costates[k + 1].copy_(p)
            p, pu = pullback(self._problem, t[self._first + k], h, x[k], u[k], p)
            by_step[k].copy_(pu)
        if costates is not None:
            costates[0].copy_(p)
        return p

    def undo(self, problem: StateEquation, first: int, x: Tensor, path: Tensor) -> None:
        """Replace x, the state after the steps from node ``first`` with the controls ``path``, by that before them.

        The integrator is `Invertible`.
        """
        assert isinstance(self.integrator, Invertible)
        before = x
        for k in reversed(range(len(path))):
            before = self.integrator.inverse(problem, self.grid.nodes[first + k], self.grid.h, before, path[k])
        x.copy_(before)
