"""Move a mass from rest to rest with least energy; a penalty enforces the end.

Minimize (c/2) |x(1) - (1, 0)|^2 plus the integral of u^2 / 2 over [0, 1] subject to x1' = x2, x2' = u, x(0) = (0, 0):
after Bryson & Ho (1975), "Applied optimal control". With the Gramian W of the map from controls to final states the
optimum is d^T (W + I/c)^(-1) d / 2, d = (1, 0). For the continuous problem and for the grids of N = 1/h steps

    W = [[1/3, 1/2], [1/2, 1]]                              continuous time
    W = [[1/3 - h^2/12, 1/2], [1/2, 1]]                     exact integration of held controls: midpoint, RK4, ...
    W = [[(1 - h)(2 - h)/6, (1 - h)/2], [(1 - h)/2, 1]]     explicit Euler

For c -> infinity the optimal control is 6 - 12 t and the optimum is 6.
"""

from __future__ import annotations

import torch
from torch import Tensor

from ocp import LINEAR, ControlProblem, LeastSquares, QuadraticRunning, Stop, Study, Target

__all__ = ["optimum", "problem"]

PENALTY = 1e3


def dynamics(t: float, x: Tensor, u: Tensor) -> Tensor:
    """Position and velocity of a unit mass, with the control as a force."""
    velocity = x[:, 1]
    return torch.stack((velocity, u.expand_as(velocity)), dim=1)


def optimum(w11: float, w12: float, w22: float, penalty: float = PENALTY) -> float:
    """The optimum for a Gramian [[w11, w12], [w12, w22]].

    Examples
    --------
    >>> round(optimum(1 / 3, 1 / 2, 1.0, penalty=1e9), 5)
    6.0
    """
    a, d = w11 + 1 / penalty, w22 + 1 / penalty
    return 0.5 * d / (a * d - w12**2)


def problem(
    *, penalty: float = PENALTY, dtype: torch.dtype = torch.float64, device: torch.device | str = "cpu"
) -> Study:
    """The motion of a mass from rest to rest.

    Parameters
    ----------
    penalty : float
        c, the weight of the miss at the end.
    dtype : torch.dtype
    device : torch.device or str
    """
    goal = torch.tensor([[1.0, 0.0]], dtype=dtype, device=device)
    least = optimum(1 / 3, 1 / 2, 1.0, penalty)
    return Study(
        ControlProblem(
            dynamics,
            initial_state=torch.zeros_like(goal),
            terminal_cost=LeastSquares(goal, weight=penalty),
            running_cost=QuadraticRunning(state_weight=0.0),
            control_size=1,
        ),
        steps=128,
        levels=4,
        integrator="rk4",
        interpolation=LINEAR,
        optimum=least,
        stop=Stop(max_work=100, tolerance=1e-8),
        target=Target("value", 1.0005 * least),
    )
