"""What a method minimizes, and its evaluation at one control: a value that methods and searches carry along."""

from __future__ import annotations

from typing import Protocol

from torch import Tensor

from ocp.objective.work import Work
from ocp.space.bounds import Box, masked
from ocp.space.control import ControlSpace

__all__ = ["Evaluation", "Objective", "free_part", "optimality"]


class Evaluation(Protocol):
    """An objective at one control. Value and derivative are computed when first asked for, and then kept.

    Nothing else remembers them: to use them again, carry the evaluation along.
    """

    @property
    def objective(self) -> Objective:
        """Whose evaluation it is."""

    @property
    def control(self) -> Tensor:
        """Flat, shape (N m + s,)."""

    @property
    def value(self) -> float:
        """J(u)."""

    @property
    def derivative(self) -> Tensor:
        """Derivative of J at u, a dual vector of the shape of the control; not to be written to."""

    def hessian_product(self, direction: Tensor) -> Tensor:
        """Hessian of J at u applied to a direction, a dual vector; only second-order methods ask for it."""


class Objective(Protocol):
    """What a method minimizes: a function of flat controls on one grid."""

    @property
    def space(self) -> ControlSpace:
        """The space of its controls."""

    @property
    def work(self) -> Work:
        """Where its evaluations are counted."""

    @property
    def box(self) -> Box | None:
        """The controls within the bounds; None where there are no bounds."""

    def at(self, control: Tensor) -> Evaluation:
        """The evaluation at a flat control; nothing is computed yet."""

    def on(self, steps: int) -> Objective:
        """The objective of the same problem on another grid; the same one at each call."""

    def step_limit(self, control: Tensor, direction: Tensor) -> float:
        """The longest step along a direction that stays in the domain of the objective."""


def optimality(point: Evaluation) -> float:
    """How far a control is from first-order optimality: zero at a stationary point, and only there.

    Without bounds the dual norm of the derivative. With bounds the norm of the projected gradient step,
    |P(u - g) - u| with the gradient g and the projection P on the box, after Conn, Gould & Toint (2000), "Trust-region
    methods", section 12.1.4; the two agree where no bound is near.
    """
    space, box = point.objective.space, point.objective.box
    if box is None:
        return space.dual_norm(point.derivative)
    return space.norm(box.project(point.control - space.gradient(point.derivative)) - point.control)


def free_part(point: Evaluation) -> tuple[Tensor, Tensor | None]:
    """The derivative in the subspace of the entries that no bound holds back, and their mask, None without bounds."""
    box = point.objective.box
    free = None if box is None else box.free(point.control, point.derivative)
    return masked(point.derivative, free), free
