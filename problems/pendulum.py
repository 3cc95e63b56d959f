"""Swing up a pendulum with a weak motor; the torque is bounded.

Minimize 100 (1 + cos x1(4)) + 10 x2(4)^2 plus the integral of u^2 / 20 over [0, 4] subject to

    x1' = x2,   x2' = -9.81 sin x1 - x2 / 10 + u,   x(0) = (0, 0),   -5 <= u <= 5.

A textbook problem of robotics, as in Tedrake (2023), "Underactuated robotics". The bound is half the torque that would
hold the pendulum out sideways, so that it has to swing back before it swings up. There are several local optima; the
search begins at u = 1/2, since at u = 0 the pendulum does not move and the derivative vanishes. The optimum
1.46206 is that of discrete optima for RK4, extrapolated to the step 0. Coarse explicit Euler grids have optima that are
not there on fine ones: 0.57 on 50 steps; so the coarsest grid suggested has 64. The derivative at the start is small,
0.43: it grows twentyfold before it falls, which is why the tolerance is no smaller.
"""

from __future__ import annotations

import torch
from torch import Tensor

from ocp import LINEAR, ControlProblem, QuadraticRunning, Settled, Stop, Study, Target

__all__ = ["problem"]

HORIZON = 4.0


def dynamics(t: float, x: Tensor, u: Tensor) -> Tensor:
    """Angle from hanging down and angular velocity of a pendulum of 1 m and 1 kg, with the control as a torque."""
    angle, velocity = x.unbind(1)
    return torch.stack((velocity, -9.81 * torch.sin(angle) - 0.1 * velocity + u), dim=1)


def miss(x: Tensor) -> Tensor:
    """100 (1 + cos x1) + 10 x2^2, zero where the pendulum stands upright and still."""
    return (100 * (1 + torch.cos(x[:, 0])) + 10 * x[:, 1] ** 2).sum()


def problem(*, dtype: torch.dtype = torch.float64, device: torch.device | str = "cpu") -> Study:
    """The swing-up of a pendulum.

    Parameters
    ----------
    dtype : torch.dtype
    device : torch.device or str
    """
    return Study(
        ControlProblem(
            dynamics,
            initial_state=torch.zeros(1, 2, dtype=dtype, device=device),
            terminal_cost=miss,
            running_cost=QuadraticRunning(state_weight=0.0, control_weight=0.1),
            horizon=HORIZON,
            control_size=1,
            start=0.5,
            bounds=(-5.0, 5.0),
        ),
        steps=128,
        levels=2,
        integrator="rk4",
        interpolation=LINEAR,
        refine=Settled(),
        optimum=1.46206,
        stop=Stop(max_work=1000, tolerance=1e-5),
        target=Target("value", 1.47),
    )
