"""Drive a car around a round obstacle in the shortest time.

Minimize T subject to x' = cos a, y' = sin a, a' = u, x^2 + y^2 >= r^2 and |u| <= 2 / r, from (-d, 0) to (d, 0), with
the headings at both ends free. The heading at the start is a parameter. A car that turns more sharply than the obstacle
goes along a tangent, along the obstacle, and along another tangent, a path of length

    T = 2 sqrt(d^2 - r^2) + r (pi - 2 arccos(r / d)),

the shortest one of all: Dubins (1957), "On curves of minimal length with a constraint on average curvature".
"""

from __future__ import annotations

from math import acos, pi, sqrt

import torch
from torch import Tensor

from ocp import LINEAR, ControlProblem, Parameter, Study

__all__ = ["optimum", "problem"]

DISTANCE, RADIUS = 2.0, 1.0


def dynamics(t: float, x: Tensor, u: Tensor) -> Tensor:
    """Position and heading of a car with unit speed, with the control as its turning rate."""
    heading = x[:, 2]
    return torch.stack((torch.cos(heading), torch.sin(heading), u.expand(len(x))), dim=1)


def optimum(distance: float = DISTANCE, radius: float = RADIUS) -> float:
    """The length of the shortest path."""
    return 2 * sqrt(distance**2 - radius**2) + radius * (pi - 2 * acos(radius / distance))


def problem(*, dtype: torch.dtype = torch.float64, device: torch.device | str = "cpu") -> Study:
    """The drive around an obstacle.

    Parameters
    ----------
    dtype : torch.dtype
    device : torch.device or str
    """
    number = torch.tensor([DISTANCE, 0.0], dtype=dtype, device=device)
    heading = Parameter(number.new_tensor(1.0), lower=-pi, upper=pi)
    return Study(
        ControlProblem(
            dynamics,
            initial_state=lambda q: torch.cat((-number, q.heading.view(1))).unsqueeze(0),
            terminal_cost=lambda x, q: q.horizon,
            horizon=Parameter(number.new_tensor(4.0), lower=0.1, upper=20.0),
            control_size=1,
            parameters={"heading": heading},
            start=-0.5,
            bounds=(-2 / RADIUS, 2 / RADIUS),
            path_constraint=lambda t, x, u: RADIUS**2 - x[:, :2].square().sum(1),
            terminal_equality=lambda x: x[:, :2] - number,
            names={"x": ("x", "y", "heading"), "u": ("turning rate",)},
        ),
        steps=128,
        levels=2,
        integrator="rk4",
        interpolation=LINEAR,
        optimum=optimum(),
    )
