"""Calm a Van der Pol oscillator.

Minimize the integral of (x1^2 + x2^2 + u^2) / 2 over [0, 2] subject to

    x1' = x2,   x2' = (1 - x1^2) x2 - x1 + u,   x(0) = (1, 0).

This is an example of Team Commands, Inria Saclay (2017), "Bocop: an open source toolbox for optimal control", which
prints 1.047921 on its own grid. The optimum of the continuous problem is 1.0478069, found by extrapolating discrete
optima to the step 0.
"""

from __future__ import annotations

import torch
from torch import Tensor

from ocp import LINEAR, ControlProblem, QuadraticRunning, Stop, Study, Target

__all__ = ["problem"]


def dynamics(t: float, x: Tensor, u: Tensor) -> Tensor:
    """The oscillator, with the control as a force."""
    position, velocity = x.unbind(1)
    return torch.stack((velocity, (1 - position**2) * velocity - position + u), dim=1)


def problem(*, dtype: torch.dtype = torch.float64, device: torch.device | str = "cpu") -> Study:
    """The control of a Van der Pol oscillator.

    Parameters
    ----------
    dtype : torch.dtype
    device : torch.device or str
    """
    return Study(
        ControlProblem(
            dynamics,
            initial_state=torch.tensor([[1.0, 0.0]], dtype=dtype, device=device),
            running_cost=QuadraticRunning(),
            horizon=2.0,
            control_size=1,
        ),
        steps=128,
        levels=4,
        integrator="rk4",
        interpolation=LINEAR,
        optimum=1.0478069,
        stop=Stop(max_work=100, tolerance=1e-8),
        target=Target("value", 1.048),
    )
