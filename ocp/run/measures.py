"""What a run measures at a control."""

from __future__ import annotations

from dataclasses import dataclass
from math import inf, isfinite, nan

from ocp.objective.evaluation import Evaluation, optimality
from ocp.objective.reduced import ReducedObjective
from ocp.optimize.method import KKT
from ocp.problem.protocols import Classifier
from ocp.space.control import Control

__all__ = ["Scale", "classified", "evaluate"]


@dataclass(frozen=True)
class Scale:
    """The norm by which the tolerance is measured, and the depth of no minimum, from the control of an iteration."""

    norm: float = 0.0
    floor: float = -inf
    iteration: int = -1  # none has been finite yet
    value: float = nan  # of the objective at the start
    size: float = 0.0  # the norm of the largest control that was measured
    steep: bool = False  # whether the derivative at the start was too large to measure by


def evaluate(point: Evaluation, kkt: KKT | None = None) -> tuple[float, float]:
    """The value at a point, and how far it is from first-order optimality, as a method with constraints knows it."""
    if kkt is not None:
        return point.value, kkt.stationarity
    return point.value, optimality(point) if isfinite(point.value) else inf


def classified(objective: ReducedObjective, control: Control) -> float:
    """Fraction of the samples whose class a control predicts."""
    problem = objective.discretization.problem
    cost = problem.terminal_cost
    if not isinstance(cost, Classifier):
        raise ValueError("problem: expected a terminal cost with an accuracy, such as CrossEntropy")
    problem.check_space("control", control.space)
    return cost.accuracy(objective.final_state(control), control.parameters)
