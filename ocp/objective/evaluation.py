"""What a method minimizes, and its evaluation at one control: a value that methods and searches carry along."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Protocol, runtime_checkable

from torch import Tensor

from ocp.objective.work import Work
from ocp.space.bounds import Box, masked
from ocp.space.control import ControlSpace

__all__ = ["Evaluation", "Objective", "SecondOrderEvaluation", "SecondOrderObjective", "free_part", "optimality"]


@runtime_checkable
class SecondOrderEvaluation(Protocol):
    """What second-order methods ask of an evaluation."""

    def hessian_product(self, direction: Tensor) -> Tensor:
        """Hessian of J at u applied to a direction, a dual vector."""


class Evaluation(SecondOrderEvaluation, Protocol):
    """An objective at one control; it alone remembers value and derivative, so carry it along to use them again."""

    @property
    def objective(self) -> Objective: ...

    @property
    def control(self) -> Tensor:
        """u, a flat control of shape (N m + s,)."""

    @property
    def value(self) -> float:
        """J(u)."""

    @property
    def derivative(self) -> Tensor:
        """Derivative of J at u, a dual vector of the shape of the control; not to be written to."""


@runtime_checkable
class Objective(Protocol):
    """What a method minimizes: a function of flat controls on one grid."""

    @property
    def space(self) -> ControlSpace: ...

    @property
    def work(self) -> Work:
        """The count to which its evaluations are charged."""

    @property
    def box(self) -> Box | None:
        """The controls within the bounds; None without bounds."""

    def at(self, control: Tensor) -> Evaluation:
        """The evaluation at a flat control; nothing is computed yet."""

    def on(self, steps: int) -> Objective:
        """The objective of the same problem on another grid; repeated calls return the same one."""

    def step_limit(self, control: Tensor, direction: Tensor) -> float:
        """The longest step along a direction that stays in the domain of the objective."""


@runtime_checkable
class SecondOrderObjective(Objective, Protocol):
    """An objective that knows whether its evaluations have Hessian products."""

    @property
    def without_hvp(self) -> Mapping[str, str]:
        """The pieces without second derivatives, each with what was expected and what it is; empty if all have them."""


def optimality(point: Evaluation) -> float:
    """Distance of a control from first-order optimality: zero at stationary points only.

    Without bounds, the dual norm of the derivative. With bounds, the norm of the projected gradient step,
    |P(u - g) - u| with the gradient g and the projection P onto the box: Conn, Gould & Toint (2000), "Trust-region
    methods", section 12.1.4. The two agree where no bound is near.
    """
    space, box = point.objective.space, point.objective.box
    if box is None:
        return space.dual_norm(point.derivative)
    return space.norm(box.project(point.control - space.gradient(point.derivative)) - point.control)


def free_part(point: Evaluation) -> tuple[Tensor, Tensor | None]:
    """The derivative, with zeros where a bound holds an entry back, and the mask of the others; None without bounds."""
    box = point.objective.box
    free = None if box is None else box.free(point.control, point.derivative)
    return masked(point.derivative, free), free
