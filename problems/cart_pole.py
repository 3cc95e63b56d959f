"""Swing up a pole by pushing the cart that it hangs on.

Minimize (c/2) |x(2) - (1, pi, 0, 0)|^2 plus the integral of u^2 over [0, 2], starting with the cart at 0, the pole
hanging down and both at rest; x = (q1, q2, q1', q2') with

    q1'' = (l m2 sin q2 q2'^2 + u + m2 g cos q2 sin q2) / (m1 + m2 sin^2 q2),
    q2'' = -(l m2 cos q2 sin q2 q2'^2 + u cos q2 + (m1 + m2) g sin q2) / (l (m1 + m2 sin^2 q2)).

This is section 6 of Kelly (2017), "An introduction to trajectory optimization: how to do your own direct collocation",
with its masses, length, distance and duration. Its final conditions are a penalty here, and its bounds |u| <= 20,
|q1| <= 2 are left out, since they are not active; with c = inf all of them are constraints. With c = 1000 the pole ends
2.8 degrees from upright, almost still. The optimum 56.530 comes from discrete optima for RK4 on 64 and 128 steps
(56.7555 and 56.5864), extrapolated to the step 0; nothing proves that no other swing is cheaper.
"""

from __future__ import annotations

from math import inf

import torch
from torch import Tensor

from ocp import LINEAR, ControlProblem, LeastSquares, QuadraticRunning, Stop, Study, Target

__all__ = ["problem"]

#: Masses of the cart and of the pole in kg, length of the pole in m, gravity in m/s^2.
CART, POLE, LENGTH, GRAVITY = 1.0, 0.3, 0.5, 9.81
PENALTY = 1e3


def dynamics(t: float, x: Tensor, u: Tensor) -> Tensor:
    """Position of the cart, angle of the pole from hanging down, and their velocities; the control is a force in N."""
    _, angle, speed, spin = x.unbind(1)
    s, c = torch.sin(angle), torch.cos(angle)
    inertia, push = CART + POLE * s**2, u + LENGTH * POLE * s * spin**2
    cart = (push + POLE * GRAVITY * c * s) / inertia
    pole = -(push * c + (CART + POLE) * GRAVITY * s) / (LENGTH * inertia)
    return torch.stack((speed, spin, cart, pole), dim=1)


def problem(
    *, penalty: float = PENALTY, dtype: torch.dtype = torch.float64, device: torch.device | str = "cpu"
) -> Study:
    """The swing-up of a pole on a cart.

    Parameters
    ----------
    penalty : float
        c, the weight of the miss at the end; infinity for constraints in its place, and for the bounds.
    dtype : torch.dtype
    device : torch.device or str
    """
    free = penalty < inf
    goal = torch.tensor([[1.0, torch.pi, 0.0, 0.0]], dtype=dtype, device=device)
    return Study(
        ControlProblem(
            dynamics,
            initial_state=torch.zeros_like(goal),
            terminal_cost=LeastSquares(goal, weight=penalty) if free else None,
            running_cost=QuadraticRunning(state_weight=0.0, control_weight=2.0),
            horizon=2.0,
            control_size=1,
            bounds=None if free else (-20.0, 20.0),
            terminal_equality=None if free else lambda x: x - goal,
            path_constraint=None if free else lambda t, x, u: torch.stack((x[:, 0] - 2, -2 - x[:, 0]), dim=1),
            names={"x": ("position", "angle", "speed", "spin"), "u": ("force",)},
        ),
        steps=128,
        levels=4,
        integrator="rk4",
        interpolation=LINEAR,
        optimum=56.530 if penalty == PENALTY else None,
        stop=Stop(max_work=300, tolerance=1e-6),
        target=Target("value", 57.0) if penalty == PENALTY else None,
    )
