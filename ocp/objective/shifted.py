"""An objective plus a linear term, within a ball: the coarse model of MG/OPT."""

from __future__ import annotations

from dataclasses import dataclass
from math import inf, sqrt

import torch
from torch import Tensor

from ocp.objective.evaluation import Evaluation, Objective
from ocp.objective.work import Work
from ocp.space.bounds import Box
from ocp.space.control import ControlSpace

__all__ = ["ShiftedEvaluation", "ShiftedObjective"]

#: Steps end this share of the squared radius inside the ball, so that rounding does not put them outside.
_INSIDE = 1 - 1e-5


@dataclass(frozen=True, eq=False)
class ShiftedObjective:
    """J(v) - <shift, v - origin>, and infinite farther than ``radius`` from the origin.

    With shift = dJ(origin) - P^T d, where d is the derivative of the finer objective, it agrees with the finer
    objective to first order: Nash (2000), "A multigrid approach to discretized optimization problems". The radius
    keeps a coarse solve where the model is good; without it the shifted objective can be unbounded below.

    Parameters
    ----------
    base : Objective
    origin, shift : Tensor
        The start of the coarse solve, and a dual vector.
    radius : float
        In the time-weighted norm.
    box : Box, optional
        Within it a correction keeps the finer control in its bounds; see `Transfer.restrict_box`.
    """

    base: Objective
    origin: Tensor
    shift: Tensor
    radius: float = inf
    box: Box | None = None

    @property
    def space(self) -> ControlSpace:
        return self.base.space

    @property
    def work(self) -> Work:
        return self.base.work

    def at(self, control: Tensor) -> ShiftedEvaluation:
        return self.shifted(self.base.at(control))

    def shifted(self, point: Evaluation) -> ShiftedEvaluation:
        """The evaluation that reuses one of the base."""
        return ShiftedEvaluation(self, point)

    def on(self, steps: int) -> Objective:
        """The base on another grid, without a shift: a coarser grid makes its own."""
        return self.base.on(steps)

    def step_limit(self, control: Tensor, direction: Tensor) -> float:
        """The longest step along a direction that stays in the ball."""
        if self.radius == inf:
            return inf
        return self.space.reach(control - self.origin, direction, sqrt(_INSIDE) * self.radius)

    def confine(self, point: Evaluation) -> Evaluation:
        """The evaluation itself, or the one where the line from the origin to its control leaves the ball."""
        step = point.control - self.origin
        limit = self.step_limit(self.origin, step)
        return point if limit >= 1 else self.at(torch.add(self.origin, step, alpha=limit))

    def at_boundary(self, control: Tensor) -> bool:
        """Whether the control has reached the boundary of the ball."""
        return self.space.norm(control - self.origin) ** 2 >= _INSIDE**2 * self.radius**2


class ShiftedEvaluation:
    """A `ShiftedObjective` at one control, from the evaluation of its base there."""

    def __init__(self, objective: ShiftedObjective, base: Evaluation):
        self.objective, self.base, self.control = objective, base, base.control
        self._value: float | None = None
        self._derivative: Tensor | None = None

    @property
    def value(self) -> float:
        if self._value is None:
            step = self.control - self.objective.origin
            outside = self.objective.space.norm(step) > self.objective.radius
            self._value = inf if outside else self.base.value - float(torch.dot(self.objective.shift, step))
        return self._value

    @property
    def derivative(self) -> Tensor:
        if self._derivative is None:
            self._derivative = self.base.derivative - self.objective.shift
        return self._derivative

    def hessian_product(self, direction: Tensor) -> Tensor:
        """That of the base, since the shift is linear."""
        return self.base.hessian_product(direction)
