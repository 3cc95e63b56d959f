"""Steer an unstable scalar system at quadratic cost.

Minimize the integral of (2 x^2 + u^2) / 2 over [0, 1] subject to x' = x / 2 + u, x(0) = 1: example (P1) of Hager
(2000), "Runge-Kutta methods in optimal control and the transformed adjoint system". The optimal state is
(2 e^(3t) + e^3) / (e^(3t/2) (2 + e^3)), and the optimum is (e^3 - 1) / (e^3 + 2) = 0.8641644978.
"""

from __future__ import annotations

from math import exp

import torch
from torch import Tensor

from ocp import LINEAR, ControlProblem, QuadraticRunning, Stop, Study, Target

__all__ = ["problem"]


def dynamics(t: float, x: Tensor, u: Tensor) -> Tensor:
    """x' = x / 2 + u."""
    return 0.5 * x + u


def problem(*, dtype: torch.dtype = torch.float64, device: torch.device | str = "cpu") -> Study:
    """The control of an unstable scalar system.

    Parameters
    ----------
    dtype : torch.dtype
    device : torch.device or str
    """
    return Study(
        ControlProblem(
            dynamics,
            initial_state=torch.ones(1, 1, dtype=dtype, device=device),
            running_cost=QuadraticRunning(state_weight=2.0),
            control_size=1,
        ),
        steps=128,
        levels=4,
        integrator="rk4",
        interpolation=LINEAR,
        optimum=(exp(3) - 1) / (exp(3) + 2),
        stop=Stop(max_work=100, tolerance=1e-8),
        target=Target("value", 0.8642),
    )
