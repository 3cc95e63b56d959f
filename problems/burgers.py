"""Hold a step in place against the flow of the viscous Burgers equation.

Minimize (1/2) integral of (y - y0)^2 + alpha u^2 over time [0, 1] and space (0, 1) subject to

    y_t + (y^2 / 2)_x = nu y_xx + u,   y = 0 at the ends,   y(0) = y0,   nu = 0.01,   alpha = 0.05,

where y0 is 1 on (0, 1/2] and 0 elsewhere: the distributed control of Kunisch & Volkwein (1999), "Control of the Burgers
equation by a reduced-order approach using proper orthogonal decomposition". In space: conservative central
differences on n interior points; the sums over points carry the weight dx. The optimum 0.057543 of the system on 31
points comes from discrete optima for Crank-Nicolson on 32, 64 and 128 steps, extrapolated to the step 0.
"""

from __future__ import annotations

import torch
from torch import Tensor

from ocp import LINEAR, ControlProblem, QuadraticRunning, Stop, Study

__all__ = ["problem"]

VISCOSITY = 0.01
POINTS, ALPHA = 31, 0.05


def dynamics(t: float, x: Tensor, u: Tensor) -> Tensor:
    """-(y^2 / 2)_x + nu y_xx + u for x = y on the interior points, shape (batch, n)."""
    dx = 1 / (x.shape[1] + 1)
    y = torch.nn.functional.pad(x, (1, 1))
    flux = 0.25 * (y[:, 1:] ** 2 + y[:, :-1] ** 2) - VISCOSITY / dx * torch.diff(y)  # at the midpoints
    return u - torch.diff(flux) / dx


def problem(
    *,
    points: int = POINTS,
    alpha: float = ALPHA,
    dtype: torch.dtype = torch.float64,
    device: torch.device | str = "cpu",
) -> Study:
    """The control of the viscous Burgers equation.

    Parameters
    ----------
    points : int
        n, the interior points.
    alpha : float
        Weight of the control.
    dtype : torch.dtype
    device : torch.device or str
    """
    dx = 1 / (points + 1)
    step = (dx * torch.arange(1, points + 1, dtype=torch.float64, device=device)[None] <= 0.5).to(dtype)
    return Study(
        ControlProblem(
            dynamics,
            initial_state=step,
            running_cost=QuadraticRunning(dx, alpha * dx, step),
            control_size=points,
        ),
        steps=64,
        levels=4,
        integrator="crank_nicolson",
        interpolation=LINEAR,
        optimum=0.057543 if (points, alpha) == (POINTS, ALPHA) else None,
        stop=Stop(max_work=100, tolerance=1e-6),
    )
