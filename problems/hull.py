"""Drive an integrator towards zero with a terminal penalty; the optimal control is constant.

Minimize (5/2) x(5)^2 plus the integral of u^2 / 2 over [0, 5] subject to x' = u, x(0) = 3/2, known as Hull's problem.
With c = 5, T = 5, x0 = 3/2 the optimal control is the constant -c x0 / (1 + c T), and the optimum is
c x0^2 / (2 (1 + c T)) = 0.2163461538, on every grid, too, since every Runge-Kutta scheme is exact for a constant slope:
a grid of one step solves the problem.
"""

from __future__ import annotations

import torch
from torch import Tensor

from ocp import LINEAR, ControlProblem, LeastSquares, QuadraticRunning, Stop, Study, Target

__all__ = ["problem"]


def dynamics(t: float, x: Tensor, u: Tensor) -> Tensor:
    """x' = u."""
    return u.expand_as(x)


def problem(*, dtype: torch.dtype = torch.float64, device: torch.device | str = "cpu") -> Study:
    """The control of an integrator with a terminal penalty.

    Parameters
    ----------
    dtype : torch.dtype
    device : torch.device or str
    """
    zero = torch.zeros(1, 1, dtype=dtype, device=device)
    return Study(
        ControlProblem(
            dynamics,
            initial_state=zero + 1.5,
            terminal_cost=LeastSquares(zero, weight=5.0),
            running_cost=QuadraticRunning(state_weight=0.0),
            horizon=5.0,
            control_size=1,
        ),
        steps=128,
        levels=4,
        integrator="rk4",
        interpolation=LINEAR,
        optimum=5 * 1.5**2 / (2 * (1 + 5 * 5)),
        stop=Stop(max_work=100, tolerance=1e-8),
        target=Target("value", 0.21635),
    )
