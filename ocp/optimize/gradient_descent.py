"""Steepest descent in the time-weighted inner product."""

from __future__ import annotations

from dataclasses import dataclass, replace

from ocp.objective.evaluation import Evaluation, Objective
from ocp.optimize.line_search import Armijo, LineSearch
from ocp.optimize.method import State
from ocp.optimize.status import Status
from ocp.space.transfer import Transfer

__all__ = ["GradientDescent"]


@dataclass(frozen=True)
class GradientDescent:
    """Steepest descent in the time-weighted inner product; each search begins with twice the last step.

    Parameters
    ----------
    search : LineSearch
    first : float
        The first trial step, in multiples of the gradient.
    """

    search: LineSearch = Armijo()
    first: float = 1.0

    def init(self, objective: Objective, point: Evaluation) -> State:
        return State(point, self.first)

    def step(self, objective: Objective, state: State) -> State:
        direction = -objective.space.gradient(state.point.derivative)
        trial = self.search(state.point, direction, state.memory)
        if trial is None:
            return replace(state, status=Status.NO_DECREASE)
        return replace(state, point=trial.point, memory=2 * trial.step, status=Status.RUNNING)

    def transport(self, memory: float, transfer: Transfer) -> float:
        return memory
