"""Move a mass from one place to another, at rest in both, in the shortest time.

Minimize T subject to x1' = x2, x2' = u, -1 <= u <= 1, from (0, 0) to (d, 0): Bushaw (1953); Pontryagin, Boltyanskii,
Gamkrelidze & Mishchenko (1962), "The mathematical theory of optimal processes", example 1 of chapter 1. The force
pushes with all its strength up to the middle of the time T = 2 sqrt(d), and brakes with all its strength from there.
"""

from __future__ import annotations

from math import sqrt

import torch
from torch import Tensor

from ocp import LINEAR, ControlProblem, Parameter, Study

__all__ = ["problem"]


def dynamics(t: float, x: Tensor, u: Tensor) -> Tensor:
    """Position and velocity of a unit mass, with the control as a force."""
    return torch.stack((x[:, 1], u.expand(len(x))), dim=1)


def problem(*, distance: float = 1.0, dtype: torch.dtype = torch.float64, device: torch.device | str = "cpu") -> Study:
    """The transfer of a mass in the shortest time.

    Parameters
    ----------
    distance : float
        d.
    dtype : torch.dtype
    device : torch.device or str
    """
    last = torch.tensor([[distance, 0.0]], dtype=dtype, device=device)
    return Study(
        ControlProblem(
            dynamics,
            initial_state=torch.zeros_like(last),
            terminal_cost=lambda x, q: q.horizon,
            horizon=Parameter(last.new_tensor(1.0), lower=0.1, upper=20.0),
            control_size=1,
            bounds=(-1.0, 1.0),
            terminal_equality=lambda x: x - last,
            names={"x": ("position", "velocity"), "u": ("force",)},
        ),
        steps=128,
        levels=2,
        integrator="rk4",
        interpolation=LINEAR,
        optimum=2 * sqrt(distance),
    )
