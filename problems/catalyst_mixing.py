"""Mix two catalysts along a reactor for the largest yield; bounded control with a singular arc.

Minimize -1 + x1(1) + x2(1) subject to

    x1' = u (10 x2 - x1),   x2' = -u (10 x2 - x1) - (1 - u) x2,   x(0) = (1, 0),   0 <= u <= 1,

where u is the share of the first catalyst: Gunn & Thomas (1965), "Mass transport and chemical reaction in
multifunctional catalyst systems"; problem 14 of Dolan, More & Munson (2004), "Benchmarking optimization software with
COPS 3.0", which prints -0.04806. The optimal control is 1, then singular at about 0.227, then 0. The optimum -0.0480557
comes from discrete optima for RK4 on up to 800 steps. Explicit Euler has very many local optima here, whose values
differ by 1e-4 to 1e-3 of the optimum; of 30 starts, u = 1 - t led to good ones on all grids.
"""

from __future__ import annotations

import torch
from torch import Tensor

from ocp import LINEAR, ControlProblem, Stop, Study, Target

__all__ = ["problem"]


def dynamics(t: float, x: Tensor, u: Tensor) -> Tensor:
    """Amounts of the first and of the second substance along the reactor."""
    x1, x2 = x.unbind(1)
    exchange = u * (10 * x2 - x1)
    return torch.stack((exchange, -exchange - (1 - u) * x2), dim=1)


def loss(x: Tensor) -> Tensor:
    """-1 + x1 + x2: less what has become of the third substance."""
    return x.sum() - 1


def problem(*, dtype: torch.dtype = torch.float64, device: torch.device | str = "cpu") -> Study:
    """The mixing of two catalysts.

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
            start=lambda t: 1 - t,
            bounds=(0.0, 1.0),
        ),
        steps=128,
        levels=4,
        integrator="rk4",
        interpolation=LINEAR,
        optimum=-0.0480557,
        stop=Stop(max_work=200, tolerance=1e-5),
        target=Target("value", -0.04805),
    )
