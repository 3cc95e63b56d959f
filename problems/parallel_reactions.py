"""Heat a reactor with two parallel reactions for the largest yield of one; the control is bounded.

Minimize -x2(1) subject to

    x1' = -(u + u^2 / 2) x1,   x2' = u x1,   x(0) = (1, 0),   0 <= u <= 5:

the reactions A -> B and A -> C in a tubular reactor, Ray (1981), "Advanced process control"; problem 4 of
Cizniar, Fikar & Latifi (2006), "Matlab dynamic optimisation code DYNOPT"; PROPT prints -0.573541. The optimum
-0.573545 is that of discrete optima for RK4, extrapolated to the step 0. The upper bound is active towards the end.
"""

from __future__ import annotations

import torch
from torch import Tensor

from ocp import LINEAR, ControlProblem, Stop, Study, Target

__all__ = ["problem"]


def dynamics(t: float, x: Tensor, u: Tensor) -> Tensor:
    """Concentrations of A and of B; the control is a scaled rate of reaction."""
    a = x[:, 0]
    return torch.stack((-(u + 0.5 * u**2) * a, u * a), dim=1)


def loss(x: Tensor) -> Tensor:
    """-x2, the amount of B with its sign changed."""
    return -x[:, 1].sum()


def problem(*, dtype: torch.dtype = torch.float64, device: torch.device | str = "cpu") -> Study:
    """The heating of a reactor.

    Parameters
    ----------
    dtype : torch.dtype
    device : torch.device or str
    """
    return Study(
        ControlProblem(
            dynamics,
            initial_state=torch.tensor([[1.0, 0.0]], dtype=dtype, device=device),
            terminal_cost=loss,
            control_size=1,
            bounds=(0.0, 5.0),
        ),
        steps=128,
        levels=4,
        integrator="rk4",
        interpolation=LINEAR,
        optimum=-0.573545,
        stop=Stop(max_work=200, tolerance=1e-6),
        target=Target("value", -0.5735),
    )
