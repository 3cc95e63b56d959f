"""Send a rocket as high as its fuel takes it, through air that slows it down.

Maximize h(T) subject to

    h' = v,   v' = (u - D(h, v)) / m - 1 / h^2,   m' = -2 u,   D = 310 v^2 exp(-500 (h - 1)),   0 <= u <= 3.5,

from h = m = 1 and v = 0 to m(T) = 0.6, with T free: Goddard (1919), in the units and with the numbers of Dolan, Moré &
Munson (2004), "Benchmarking optimization software with COPS 3.0", section 10, who give the altitude 1.01283. The thrust
is full, then less on a singular arc, where the rocket goes at the speed that wastes least, then zero.
"""

from __future__ import annotations

import torch
from torch import Tensor

from ocp import LINEAR, ControlProblem, Parameter, Study

__all__ = ["problem"]

#: Drag and its decay with the height, exhaust speed, and mass without fuel.
DRAG, DECAY, EXHAUST, EMPTY = 310.0, 500.0, 0.5, 0.6


def dynamics(t: float, x: Tensor, u: Tensor) -> Tensor:
    """Height, speed and mass of the rocket, with the control as its thrust."""
    height, speed, mass = x.unbind(1)
    drag = DRAG * speed**2 * torch.exp(-DECAY * (height - 1))
    return torch.stack((speed, (u[0] - drag) / mass - 1 / height**2, -u.expand(len(x)) / EXHAUST), dim=1)


def problem(*, dtype: torch.dtype = torch.float64, device: torch.device | str = "cpu") -> Study:
    """Goddard's rocket.

    Parameters
    ----------
    dtype : torch.dtype
    device : torch.device or str
    """
    first = torch.tensor([[1.0, 0.0, 1.0]], dtype=dtype, device=device)
    return Study(
        ControlProblem(
            dynamics,
            initial_state=first,
            terminal_cost=lambda x: -x[:, 0].sum(),
            horizon=Parameter(first.new_tensor(0.2), lower=0.01, upper=2.0),
            control_size=1,
            start=1.75,
            bounds=(0.0, 3.5),
            terminal_equality=lambda x: x[:, 2] - EMPTY,
            names={"x": ("height", "speed", "mass"), "u": ("thrust",)},
        ),
        steps=128,
        levels=2,
        integrator="rk4",
        interpolation=LINEAR,
        optimum=-1.0128369,
    )
