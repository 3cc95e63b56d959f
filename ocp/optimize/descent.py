"""Steepest descent and nonlinear conjugate gradients in the time-weighted inner product."""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import Any, ClassVar

import torch

from ocp.objective.evaluation import Objective, free_part
from ocp.optimize.line_search import Armijo, LineSearch, StrongWolfe, first_step
from ocp.optimize.method import Method, State
from ocp.optimize.status import Status
from ocp.space.bounds import masked
from ocp.space.transfer import Transfer

__all__ = ["GradientDescent", "NonlinearCG"]


@dataclass(frozen=True)
class GradientDescent(Method):
    """Steepest descent; each search begins with twice the last step, and the first one with ``first``.

    Where rounding hides what that changes, the first step is found by `first_step`.
    """

    search: LineSearch = Armijo()
    first: float = 1.0
    full_batch: ClassVar[bool] = True

    def step(self, objective: Objective, state: State) -> State:
        direction = -objective.space.gradient(state.point.derivative)
        first = first_step(state.point, direction, self.first) if state.memory is None else state.memory
        trial = self.search(state.point, direction, first)
        if trial is None:
            return replace(state, status=Status.NO_DECREASE)
        return replace(state, point=trial.point, memory=2 * trial.step, status=Status.RUNNING)


@dataclass(frozen=True)
class NonlinearCG(Method):
    """Nonlinear conjugate gradients of Polak & Ribiere with restart (PR+), Nocedal & Wright (2006), section 5.2.

    The default search has a small c2, so that directions descend.
    """

    search: LineSearch = StrongWolfe(c2=0.1)
    full_batch: ClassVar[bool] = True

    def step(self, objective: Objective, state: State) -> State:
        space = objective.space
        d, free = free_part(state.point)
        gradient = space.gradient(d)
        direction, first = -gradient, 1 / max(space.dual_norm(d), 1.0)
        if state.memory is not None:
            old, old_direction, decrease = state.memory
            beta = float(torch.dot(d - old, gradient) / torch.dot(old, space.gradient(old)))
            conjugate = torch.add(direction, masked(old_direction, free), alpha=max(beta, 0.0))
            slope = float(torch.dot(d, conjugate))
            if slope < 0:
                # The first-order change of the last step is expected again (Nocedal & Wright, equation 3.60).
                direction, first = conjugate, decrease / slope
        else:
            first = first_step(state.point, direction, first)
        trial = self.search(state.point, direction, first)
        if trial is None:
            return replace(state, memory=None, status=Status.NO_DECREASE if state.memory is None else Status.RUNNING)
        memory = (d, direction, trial.step * float(torch.dot(d, direction)))
        return replace(state, point=trial.point, memory=memory, status=Status.RUNNING)

    def transport(self, memory: Any, transfer: Transfer) -> Any:
        if memory is None:
            return None
        derivative, direction, decrease = memory
        return transfer.prolong_dual(derivative), transfer.prolong(direction), decrease
