"""The Taylor test: orders of the remainders along one direction."""

from __future__ import annotations

from dataclasses import dataclass
from math import isfinite, log, nan
from statistics import linear_regression

import torch
from torch import Tensor

from ocp.adjoint.sweeps import without_hvp
from ocp.objective.evaluation import Evaluation, SecondOrderEvaluation
from ocp.objective.reduced import ReducedEvaluation
from ocp.objective.shifted import ShiftedEvaluation

__all__ = ["Taylor", "taylor_test"]

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
        """Observed order: the slope of a line fitted to the four finest points above the noise, in logarithms.

        NaN where fewer than two points are above the noise.
        """
        points = zip(self.steps, remainders, strict=True)
        logs = [(log(e), log(r)) for e, r in points if isfinite(r) and r > self.noise][-4:]
        return linear_regression(*zip(*logs, strict=True)).slope if len(logs) > 1 else nan


def taylor_test(point: Evaluation, direction: Tensor) -> Taylor:
    """Remainders of the Taylor expansion of an objective at one control along a flat direction, for halved steps.

    Examples
    --------
    >>> from ocp import ControlProblem, discretize
    >>> x = torch.ones(1, 1).double()
    >>> problem = ControlProblem(lambda t, x, u: u * x, x, lambda x: x.square().sum(), control_size=1)
    >>> taylor = taylor_test(discretize(problem, steps=8).at(torch.zeros(8).double()), torch.ones(8).double())
    >>> round(taylor.order(taylor.second), 1)
    2.0
    """
    objective, control = point.objective, point.control
    value, slope = point.value, float(torch.dot(point.derivative, direction))
    changes = [(e, objective.at(torch.add(control, direction, alpha=e)).value - value) for e in STEPS]
    second, third = tuple(abs(change - e * slope) for e, change in changes), None
    if _has_hessian(point):
        bend = float(torch.dot(point.hessian_product(direction), direction))
        third = tuple(abs(change - e * slope - 0.5 * e**2 * bend) for e, change in changes)
    # What is left at the smallest steps is rounding, also that of parts of the objective which cancel in its value.
    left = max((r for r in second[-2:] if isfinite(r)), default=0.0)
    rounding = 100 * torch.finfo(control.dtype).eps * max(abs(value), abs(slope) * STEPS[0])
    return Taylor(STEPS, tuple(abs(change) for _, change in changes), second, max(rounding, 4 * left), third)


def _has_hessian(point: Evaluation) -> bool:
    """Whether an evaluation, with all pieces of its problem, has second derivatives."""
    if isinstance(point, ShiftedEvaluation):
        return _has_hessian(point.base)
    if isinstance(point, ReducedEvaluation):
        return not without_hvp(point.objective.discretization)
    return isinstance(point, SecondOrderEvaluation)
