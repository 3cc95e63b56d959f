"""How far undone steps drift from the original ones."""

from __future__ import annotations

import torch
from torch import Tensor

from ocp.adjoint.paths import choose
from ocp.adjoint.recomputed import Recomputed
from ocp.adjoint.schedules import Reversible
from ocp.adjoint.sweeps import forward
from ocp.objective.reduced import ReducedObjective
from ocp.space.control import Control

__all__ = ["drift"]


@torch.no_grad()
def drift(objective: ReducedObjective, control: Tensor | Control) -> float:
    """How far the states on the way back are from those on the way forward, where `Reversible` undoes steps.

    The largest difference at any node, relative to the largest entry of all states, which are stored meanwhile. Its
    effect on the derivative depends on the problem. ValueError if the objective has another schedule.

    Examples
    --------
    >>> from ocp import ControlProblem, Reversible, discretize
    >>> wheel = lambda t, x, u: torch.stack((x[:, 1], u[0] - torch.sin(x[:, 0])), dim=1)
    >>> x = torch.ones(1, 2, dtype=torch.float64)
    >>> problem = ControlProblem(wheel, x, lambda x: x.square().sum(), control_size=1, horizon=10.0)
    >>> objective = discretize(problem, 1000, "verlet", Reversible())
    >>> 0 < drift(objective, torch.zeros(1000, dtype=torch.float64)) < 1e-13
    True
    """
    if not isinstance(objective, ReducedObjective) or not isinstance(objective.schedule, Reversible):
        got = objective.schedule if isinstance(objective, ReducedObjective) else type(objective).__name__
        raise ValueError(f"objective: expected one from discretize with the schedule Reversible, got {got}")
    discretization, u = objective.discretization, objective.at(control).control
    steps = choose(discretization, objective.schedule, *(part.to(u) for part in discretization.example()))
    forward(discretization, u, steps)
    if not isinstance(steps, Recomputed):
        return 0.0
    states = steps.states
    apart = [(steps.few.states - states[a : b + 1]).abs().max() for a, b in steps.retrace()]
    return float(torch.stack(apart).max() / states.abs().max())
