"""A neural ODE with the same weights at all times, fitted to time series of a pendulum.

Find the weights q of f(x, q) = W2 tanh(W1 x + b1) + b2 that minimize, as the mean over six experiments, the sum of
squares of (x(t_i) - data_i) / 0.03, halved, subject to x' = f(x, q) on [0, 3]. This is the neural ordinary differential
equation of Chen, Rubanova, Bettencourt & Duvenaud (2018), with a hidden layer of 8 numbers. The data are angles and
angular velocities of a pendulum with friction,

    x1' = x2,   x2' = -2 sin x1 - 0.3 x2,

from six random starts, at 15 random times, with normal noise of standard deviation 0.03. At the true right-hand side
the objective has the mean 15: 30 squares of standard normal numbers in each experiment, halved.
"""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor

from ocp import ControlProblem, Measurements, Stop, Study, Target
from ocp.problem.parameters import Named

__all__ = ["pendulum", "problem", "simulated"]

HORIZON, NOISE, EXPERIMENTS, TIMES = 3.0, 0.03, 6, 15
#: Steps of RK4 between two measurements: the error is below 1e-6, far below the noise.
SUBSTEPS = 10


def pendulum(x: Tensor) -> Tensor:
    """The true right-hand side."""
    return torch.stack((x[:, 1], -2 * torch.sin(x[:, 0]) - 0.3 * x[:, 1]), dim=1)


def simulated(f: Callable[[Tensor], Tensor], x: Tensor, times: Tensor) -> Tensor:
    """States at increasing times, shape (batch, count, n), from x at time 0, by RK4."""
    found, t = [], 0.0
    for end in times.tolist():
        h, t = (end - t) / SUBSTEPS, end
        for _ in range(SUBSTEPS):
            k1 = f(x)
            k2 = f(x + h / 2 * k1)
            k3 = f(x + h / 2 * k2)
            x = x + h / 6 * (k1 + 2 * k2 + 2 * k3 + f(x + h * k3))
        found.append(x)
    return torch.stack(found, dim=1)


def dynamics(t: float, x: Tensor, u: Tensor, q: Named) -> Tensor:
    """The network."""
    return torch.tanh(x @ q.W1.T + q.b1) @ q.W2.T + q.b2


def problem(
    *,
    seed: int = 0,
    data_seed: int = 0,
    dtype: torch.dtype = torch.float64,
    device: torch.device | str = "cpu",
    width: int = 8,
) -> Study:
    """The fit of all weights.

    Parameters
    ----------
    seed : int
        Of the initial weights.
    data_seed : int
        Of starts, times and noise.
    dtype : torch.dtype
    device : torch.device or str
    width : int
        Numbers in the hidden layer.
    """
    made, generator = torch.Generator().manual_seed(data_seed), torch.Generator().manual_seed(seed)
    x0 = 3 * torch.rand(EXPERIMENTS, 2, generator=made, dtype=torch.float64) - 1.5
    times = HORIZON * torch.rand(TIMES, generator=made, dtype=torch.float64).sort().values
    data = simulated(pendulum, x0, times)
    data += NOISE * torch.randn(data.shape, generator=made, dtype=torch.float64)

    def random(size: float, *shape: int) -> Tensor:
        return size * torch.randn(*shape, generator=generator, dtype=torch.float64).to(device=device, dtype=dtype)

    return Study(
        ControlProblem(
            dynamics,
            initial_state=x0.to(device=device, dtype=dtype),
            horizon=HORIZON,
            control_size=0,
            parameters={
                "W1": random(2**-0.5, width, 2),
                "b1": random(0.0, width),
                "W2": random(width**-0.5, 2, width),
                "b2": random(0.0, 2),
            },
            measurements=Measurements(times, data, weight=NOISE**-2),
        ),
        steps=32,
        levels=1,
        integrator="rk4",
        stop=Stop(max_work=100, tolerance=1e-6),
        target=Target("value", 15.0),
    )
