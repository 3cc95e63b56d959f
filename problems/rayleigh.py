"""Calm a Rayleigh oscillator, which feeds its own small oscillations.

Minimize the integral of x1^2 + u^2 over [0, 2.5] subject to

    x1' = x2,   x2' = -x1 + (1.4 - 0.14 x2^2) x2 + 4 u,   x(0) = (-5, -5).

The oscillator is that of Rayleigh (1883), "On maintained vibrations", its control an example of Jacobson & Mayne
(1970), "Differential dynamic programming". The optimum 29.37608 is that of Rutquist & Edvall (2010), "PROPT: Matlab
optimal control software", by collocation (29.376079656); discrete optima for RK4, extrapolated to the step 0, agree to
seven digits.
"""

from __future__ import annotations

import torch
from torch import Tensor

from ocp import LINEAR, ControlProblem, Stop, Study, Target

__all__ = ["problem"]


def dynamics(t: float, x: Tensor, u: Tensor) -> Tensor:
    """The oscillator, with the control as a voltage."""
    x1, x2 = x.unbind(1)
    return torch.stack((x2, -x1 + (1.4 - 0.14 * x2**2) * x2 + 4 * u), dim=1)


def deviation_and_effort(t: float, x: Tensor, u: Tensor) -> Tensor:
    """x1^2 + u^2."""
    return x[:, 0].square().sum() + u.square().sum()


def problem(*, dtype: torch.dtype = torch.float64, device: torch.device | str = "cpu") -> Study:
    """The control of a Rayleigh oscillator.

    Parameters
    ----------
    dtype : torch.dtype
    device : torch.device or str
    """
    return Study(
        ControlProblem(
            dynamics,
            initial_state=torch.tensor([[-5.0, -5.0]], dtype=dtype, device=device),
            running_cost=deviation_and_effort,
            horizon=2.5,
            control_size=1,
        ),
        steps=128,
        levels=4,
        integrator="rk4",
        interpolation=LINEAR,
        optimum=29.37608,
        stop=Stop(max_work=200, tolerance=1e-6),
        target=Target("value", 29.38),
    )
