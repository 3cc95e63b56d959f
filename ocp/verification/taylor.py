"""The Taylor test: orders of the remainders along one direction."""

from __future__ import annotations

from dataclasses import dataclass
from math import isfinite, log

import torch
from torch import Tensor

from ocp.adjoint.sweeps import without_hvp
from ocp.objective.evaluation import Evaluation, Objective
from ocp.objective.reduced import ReducedEvaluation
from ocp.objective.shifted import ShiftedEvaluation

__all__ = ["Taylor", "expand", "taylor_test"]

#: Step lengths of a Taylor test, in multiples of a direction of unit norm.
STEPS = tuple(0.2 * 2.0**-k for k in range(22))


@dataclass(frozen=True)
class Taylor:
    """Remainders of the Taylor expansion of an objective along one direction.

    Attributes
    ----------
    steps : tuple of float
        Step lengths e.
    first : tuple of float
        |J(u + e d) - J(u)|, of first order.
    second : tuple of float
        |J(u + e d) - J(u) - e <dJ(u), d>|, of second order if the derivative is right.
    noise : float
        Remainders below this are rounding errors.
    third : tuple of float, optional
        |J(u + e d) - J(u) - e <dJ(u), d> - e^2/2 <H d, d>|, of third order if the Hessian H is right and J smooth;
        None where the objective has no second derivative.
    """

    steps: tuple[float, ...]
    first: tuple[float, ...]
    second: tuple[float, ...]
    noise: float
    third: tuple[float, ...] | None = None

    def order(self, remainders: tuple[float, ...]) -> float:
        """Observed order: slope of a straight line through the four finest points above the noise, in logarithms.

        NaN where fewer than two points are above the noise.
        """
        points = [
            (log(e), log(r)) for e, r in zip(self.steps, remainders, strict=True) if isfinite(r) and r > self.noise
        ]
        points = points[-4:]
        if len(points) < 2:
            return float("nan")
        x, y = (sum(values) / len(points) for values in zip(*points, strict=True))
        slope: float = sum((a - x) * (b - y) for a, b in points) / sum((a - x) ** 2 for a, _ in points)
        return slope


def taylor_test(objective: Objective, control: Tensor, direction: Tensor) -> Taylor:
    """Remainders of the Taylor expansion at ``control`` along ``direction``, for halved steps.

    Parameters
    ----------
    objective : Objective
    control, direction : Tensor
        Flat.

    Examples
    --------
    >>> from ocp import ControlProblem, discretize
    >>> problem = ControlProblem(
    ...     lambda t, x, u: u * x, torch.ones(1, 1).double(), lambda x: x.square().sum(), control_size=1
    ... )
    >>> objective = discretize(problem, steps=8)
    >>> taylor = taylor_test(objective, torch.zeros(8).double(), torch.ones(8).double())
    >>> round(taylor.order(taylor.second), 1)
    2.0
    """
    return expand(objective.at(control), direction)


def expand(start: Evaluation, direction: Tensor) -> Taylor:
    """What `taylor_test` returns, from the evaluation at the control."""
    objective, control = start.objective, start.control
    value, slope = start.value, float(torch.dot(start.derivative, direction))
    changes = tuple(objective.at(torch.add(control, direction, alpha=e)).value - value for e in STEPS)
    third = None
    if _has_hessian(start):
        bend = float(torch.dot(start.hessian_product(direction), direction))
        third = tuple(abs(c - e * slope - 0.5 * e**2 * bend) for e, c in zip(STEPS, changes, strict=True))
    second = tuple(abs(change - e * slope) for e, change in zip(STEPS, changes, strict=True))
    # What is left at the smallest steps is rounding, also that of parts of the objective which cancel in its value.
    left = max((r for r in second[-2:] if isfinite(r)), default=0.0)
    rounding = 100 * torch.finfo(control.dtype).eps * max(abs(value), abs(slope) * STEPS[0])
    return Taylor(STEPS, tuple(abs(change) for change in changes), second, max(rounding, 4 * left), third)


def _has_hessian(point: Evaluation) -> bool:
    """Whether an evaluation has second derivatives, down to the pieces of the problem; a user's own may do without."""
    if isinstance(point, ShiftedEvaluation):
        return _has_hessian(point.base)
    if isinstance(point, ReducedEvaluation):
        return not without_hvp(point.objective.discretization)
    return hasattr(point, "hessian_product")
