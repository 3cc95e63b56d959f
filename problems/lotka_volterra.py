"""Fish predator and prey towards their equilibrium; bounded control with a singular arc.

Minimize the integral of (x1 - 1)^2 + (x2 - 1)^2 over [0, 12] subject to

    x1' = x1 - x1 x2 - 0.4 x1 u,   x2' = -x2 + x1 x2 - 0.2 x2 u,   x(0) = (0.5, 0.7),   0 <= u <= 1:

the fishing problem of Sager (2006), "Numerical methods for mixed-integer optimal control problems", with the control
relaxed from {0, 1} to [0, 1]. The control has no cost of its own. The optimum 1.34408 is that of mintOC, Sager (2012),
"A benchmark library of mixed-integer optimal control problems"; discrete optima for RK4 on 800 steps agree.
"""

from __future__ import annotations

import torch
from torch import Tensor

from ocp import LINEAR, ControlProblem, QuadraticRunning, Stop, Study, Target

__all__ = ["problem"]


def dynamics(t: float, x: Tensor, u: Tensor) -> Tensor:
    """Biomass of the prey and of the predator; the control is the share of the fleet at sea."""
    prey, predator = x.unbind(1)
    return torch.stack((prey * (1 - predator - 0.4 * u), predator * (-1 + prey - 0.2 * u)), dim=1)


def problem(*, dtype: torch.dtype = torch.float64, device: torch.device | str = "cpu") -> Study:
    """Fishing, relaxed.

    Parameters
    ----------
    dtype : torch.dtype
    device : torch.device or str
    """
    return Study(
        ControlProblem(
            dynamics,
            initial_state=torch.tensor([[0.5, 0.7]], dtype=dtype, device=device),
            running_cost=QuadraticRunning(state_weight=2.0, control_weight=0.0, target=1.0),
            horizon=12.0,
            control_size=1,
            bounds=(0.0, 1.0),
        ),
        steps=256,
        levels=4,
        integrator="rk4",
        interpolation=LINEAR,
        optimum=1.34408,
        stop=Stop(max_work=200, tolerance=1e-5),
        target=Target("value", 1.345),
    )
