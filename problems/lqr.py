"""Steer a scalar linear system at quadratic cost.

Minimize the integral of (x^2 + u^2) / 2 over [0, 1] subject to x' = u, x(0) = 1. By the theory of Bryson & Ho
(1975), "Applied optimal control", chapter 5, the Riccati equation S' = S^2 - 1, S(1) = 0 with the solution
S(t) = tanh(1 - t) gives the optimal control u = -S x and the optimum S(0) x(0)^2 / 2 = tanh(1) / 2.
"""

from __future__ import annotations

from math import tanh

import torch
from torch import Tensor

from ocp import LINEAR, ControlProblem, QuadraticRunning, Stop, Study, Target

__all__ = ["problem"]


def dynamics(t: float, x: Tensor, u: Tensor) -> Tensor:
    """x' = u."""
    return u.expand_as(x)


def problem(*, dtype: torch.dtype = torch.float64, device: torch.device | str = "cpu") -> Study:
    """The control of a scalar linear system.

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
        optimum=tanh(1) / 2,
        stop=Stop(max_work=100, tolerance=1e-8),
        target=Target("value", 0.3808),
    )
