"""Turn a mass around within a short way.

Minimize the integral of u^2 / 2 over [0, 1] subject to x1' = x2, x2' = u, from (0, 1) to (0, -1), with x1 <= l:
Bryson, Denham & Dreyfus (1963), "Optimal programming problems with inequality constraints I". The control enters the
second derivative of what is limited. For l <= 1/6 the optimum 4 / (9 l) has the mass rest at the limit, and the
multiplier of the limit is a measure with weight where it gets there and where it leaves; so an augmented Lagrangian has
a hard time.
"""

from __future__ import annotations

import torch
from torch import Tensor

from ocp import LINEAR, ControlProblem, QuadraticRunning, Study

__all__ = ["optimum", "problem"]


def dynamics(t: float, x: Tensor, u: Tensor) -> Tensor:
    """Position and velocity of a unit mass, with the control as a force."""
    return torch.stack((x[:, 1], u.expand(len(x))), dim=1)


def optimum(limit: float = 1 / 9) -> float:
    """The least effort, for limits of at most 1/6."""
    return 4 / (9 * limit)


def problem(*, limit: float = 1 / 9, dtype: torch.dtype = torch.float64, device: torch.device | str = "cpu") -> Study:
    """The problem of Bryson and Denham.

    Parameters
    ----------
    limit : float
        l, the largest position.
    dtype : torch.dtype
    device : torch.device or str
    """
    first = torch.tensor([[0.0, 1.0]], dtype=dtype, device=device)
    return Study(
        ControlProblem(
            dynamics,
            initial_state=first,
            running_cost=QuadraticRunning(state_weight=0.0),
            control_size=1,
            path_constraint=lambda t, x, u: x[:, 0] - limit,
            terminal_equality=lambda x: x + first,
            names={"x": ("position", "velocity"), "u": ("force",)},
        ),
        steps=128,
        levels=2,
        integrator="rk4",
        interpolation=LINEAR,
        optimum=optimum(limit) if limit <= 1 / 6 else None,
    )
