"""Bring a damped scalar system to rest at quadratic cost.

Minimize the integral of (x^2 + u^2) / 2 over [0, 1] subject to x' = -x + u, x(0) = 1: the problem of Feldbaum (1965),
"Optimal control systems". The Riccati equation S' = 2 S + S^2 - 1, S(1) = 0 has the solution

    S(t) = sinh(c (1 - t)) / (c cosh(c (1 - t)) + sinh(c (1 - t))),   c = sqrt(2),

and the optimum is S(0) x(0)^2 / 2 = 0.1929092981.
"""

from __future__ import annotations

from math import cosh, sinh, sqrt

import torch
from torch import Tensor

from ocp import LINEAR, ControlProblem, QuadraticRunning, Stop, Study, Target

__all__ = ["problem"]

OPTIMUM = sinh(sqrt(2)) / (sqrt(2) * cosh(sqrt(2)) + sinh(sqrt(2))) / 2


def dynamics(t: float, x: Tensor, u: Tensor) -> Tensor:
    """x' = -x + u."""
    return u - x


def problem(*, dtype: torch.dtype = torch.float64, device: torch.device | str = "cpu") -> Study:
    """The control of a damped scalar system.

    Parameters
    ----------
    dtype : torch.dtype
    device : torch.device or str
    """
    return Study(
        ControlProblem(
            dynamics,
            initial_state=torch.ones(1, 1, dtype=dtype, device=device),
            running_cost=QuadraticRunning(),
            control_size=1,
        ),
        steps=128,
        levels=4,
        integrator="rk4",
        interpolation=LINEAR,
        optimum=OPTIMUM,
        stop=Stop(max_work=100, tolerance=1e-8),
        target=Target("value", 0.19291),
    )
