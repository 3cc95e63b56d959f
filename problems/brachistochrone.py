"""Find the curve on which a bead slides from one point to another in the shortest time.

Minimize T subject to x' = v sin u, y' = -v cos u, v' = g cos u on [0, T], from (0, 10) at rest to (10, 5), where u is
the angle of the curve from the vertical: Johann Bernoulli (1696). The curve is a cycloid,

    x = r (s - sin s),   10 - y = r (1 - cos s),

which the bead follows with constant s'; so T = s sqrt(r / g) with (s, r) such that it ends at (10, 5).
"""

from __future__ import annotations

from math import cos, pi, sin, sqrt

import torch
from scipy.optimize import brentq
from torch import Tensor

from ocp import LINEAR, ControlProblem, Parameter, Study

__all__ = ["optimum", "problem"]

GRAVITY = 9.81
START, END = (0.0, 10.0), (10.0, 5.0)


def dynamics(t: float, x: Tensor, u: Tensor) -> Tensor:
    """Position and speed of the bead."""
    speed = x[:, 2]
    return torch.stack((speed * torch.sin(u), -speed * torch.cos(u), GRAVITY * torch.cos(u).expand(len(x))), dim=1)


def optimum() -> float:
    """The shortest time, in s."""
    width, depth = END[0] - START[0], START[1] - END[1]
    s = float(brentq(lambda s: (s - sin(s)) / (1 - cos(s)) - width / depth, 1e-3, 2 * pi - 1e-3, xtol=1e-15))
    return s * sqrt(depth / (1 - cos(s)) / GRAVITY)


def problem(*, dtype: torch.dtype = torch.float64, device: torch.device | str = "cpu") -> Study:
    """The brachistochrone.

    Parameters
    ----------
    dtype : torch.dtype
    device : torch.device or str
    """
    first, last = (torch.tensor(point, dtype=dtype, device=device) for point in (START, END))
    return Study(
        ControlProblem(
            dynamics,
            initial_state=torch.cat((first, first.new_zeros(1))).unsqueeze(0),
            terminal_cost=lambda x, q: q.horizon,
            horizon=Parameter(first.new_tensor(2.0), lower=0.1, upper=20.0),
            control_size=1,
            start=0.8,
            bounds=(0.01, pi - 0.01),
            terminal_equality=lambda x: x[:, :2] - last,
            names={"x": ("x", "y", "speed"), "u": ("angle",)},
        ),
        steps=128,
        levels=2,
        integrator="rk4",
        interpolation=LINEAR,
        optimum=optimum(),
    )
