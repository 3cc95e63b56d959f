"""A closer look at where a run ended: whether its success is one, and why it failed. None of it counts as work."""

from __future__ import annotations

from math import inf, isfinite

import torch
from torch import Tensor

from ocp.adjoint.schedules import Binomial
from ocp.objective.evaluation import Evaluation
from ocp.objective.reduced import ReducedEvaluation, ReducedObjective
from ocp.space.transfer import Transfer

__all__ = ["curvature", "premature", "unresolved"]

#: Of a control that is called optimal, the estimated distance from the optimum as a share of its size, and the decrease
#: of the objective on the way as a share of its value: at most one of the two may be larger.
DISTANCE, GAIN = 1e-4, 1e-3

#: With half the step, sizes may differ by the first factor. Unstable explicit schemes go far beyond: x' = -1000 x with
#: h = 0.02 grows to 1e64 in 50 steps. Below the second factor, times the size at the start, they are not compared.
DIFFERENCE, GROWTH = 10.0, 100.0

#: With half the step, an objective that changes by more than the first share of itself is another one if the states
#: change by more than the second share of their size, or the objective by the third share of what the run has gained.
#: Controls of a stirred tank reactor that are optimal on 50 RK4 steps alone have states that change by 1.05 and more.
#: An implicit step of a stiff problem changes them by 0.11 on their way to rest.
CHANGE, APART, GAINED = 0.5, 0.5, 0.05


def curvature(point: Evaluation, size: float) -> float:
    """Second derivative of the objective along its gradient, per unit of length, from a difference of derivatives.

    Parameters
    ----------
    size : float
        Norm of the control that a short step is measured by.
    """
    return _bend(point, _gradient(point), size)


def _bend(point: Evaluation, gradient: Tensor, size: float) -> float:
    """Second derivative of the objective along a gradient, per unit of length."""
    space = point.objective.space
    length = space.norm(gradient)
    if not (0 < length < inf and size > 0):
        return 0.0
    step = torch.finfo(gradient.dtype).eps ** (1 / 3) * size / length
    change = point.objective.at(torch.add(point.control, gradient, alpha=-step)).derivative - point.derivative
    return -float(torch.dot(change, gradient)) / float(step * length**2)


def _gradient(point: Evaluation) -> Tensor:
    """The gradient, with zeros where a step against it would leave the bounds."""
    box, gradient = point.objective.box, point.objective.space.gradient(point.derivative)
    if box is None:
        return gradient
    end = point.control - gradient
    return torch.where(box.project(end) == end, gradient, 0.0)


def premature(point: Evaluation, size: float) -> bool:
    """Whether a small derivative does not mean a nearby optimum, as after a start at which the objective was steep.

    One step of Newton's method along the gradient says how far the optimum is, at least, and how much lower.
    """
    gradient = _gradient(point)
    bend, norm = _bend(point, gradient, size), point.objective.space.norm(gradient)
    if bend <= 0:
        return False
    return norm / bend > DISTANCE * size and 0.5 * norm**2 / bend > GAIN * abs(point.value)


def unresolved(point: ReducedEvaluation, norm: float, decrease: float, thorough: bool = True) -> str:
    """How the same control does with half the step, if so differently that the grid is too coarse; empty otherwise.

    With an explicit scheme for a stiff problem, states and costates can explode to finite values, of which bounds or a
    cost that is linear in the state make an optimum; and an optimum can be one of the grid alone.

    Parameters
    ----------
    norm : float
        Of the derivative at the start.
    decrease : float
        Of the objective since then. The worse the start, the less it says, so states are compared as well.
    thorough : bool
        Whether to look also where neither states nor derivative have grown much, as before a success.
    """
    objective, start = point.objective, point.objective.discretization.example()[0]
    order, slope = objective.discretization.integrator.order, objective.space.dual_norm(point.derivative)
    if not isfinite(slope):
        return " The derivative is not finite."
    (end,) = objective.processes.maximum(float(point.final_state.abs().max()))
    steep = slope > 1e-3 * norm  # if not, the derivative has vanished since the start
    large = slope > GROWTH * norm or end > GROWTH * float(start.abs().max())
    if not large and not thorough:
        return ""
    # All states of twice the steps may be more than fit into memory.
    discretization = objective.discretization.on(2 * objective.space.grid.steps)
    grid = ReducedObjective(discretization, schedule=Binomial(8), processes=objective.processes)
    fine = grid.at(Transfer(grid.space, objective.space).prolong(point.control))
    if not isfinite(fine.value):
        return " With half the step the objective is not finite."
    after = grid.space.dual_norm(fine.derivative) if steep else slope
    if slope > DIFFERENCE * after or not after <= max(DIFFERENCE * slope, GROWTH * norm):
        return f" With half the step the norm of the derivative is {after:.3g}, not {slope:.3g}."
    (after,) = objective.processes.maximum(float(fine.final_state.abs().max()))
    if not _alike(end, after):  # unless both are small on the way
        states = objective.processes.maximum(*(float(p.states.abs().max()) for p in (point, fine)))
        if not _alike(*states):
            return f" With half the step the states reach {states[1]:.3g}, not {states[0]:.3g}."
    # The steps of Euler's method may be the layers of a network, which is not meant to be a discretization.
    change = abs(fine.value - point.value)
    far = order > 1 and change > CHANGE * max(abs(fine.value), abs(point.value))
    if far and (0 < GAINED * decrease < change or _apart(point, fine)):
        return f" With half the step the objective is {fine.value:.6g}, not {point.value:.6g}."
    return ""


def _apart(point: ReducedEvaluation, fine: ReducedEvaluation) -> bool:
    """Whether some component of the state differs at the nodes of a grid from a simulation with half the step."""
    coarse = point.states.clone()  # the next sweep may use the same storage
    change, size = (x.abs().amax((0, 1)).flatten() for x in (fine.states[::2] - coarse, coarse))
    seen = size > torch.finfo(size.dtype).eps ** 0.5 * size.max()  # the others may be rounding errors
    (apart,) = point.objective.processes.maximum(float((change / size)[seen].max()) if bool(seen.any()) else 0.0)
    return apart > APART


def _alike(a: float, b: float) -> bool:
    return b < inf and a / DIFFERENCE <= b <= DIFFERENCE * a
