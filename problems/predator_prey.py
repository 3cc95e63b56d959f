"""Fit the model of Lotka and Volterra to counts of prey and predators at irregular times.

Find a, b, c, d and x(0) that minimize the sum of squares of ((x(t_i) - data_i) / 0.2) / 2, subject to

    x1' = a x1 - b x1 x2,   x2' = -c x2 + d x1 x2   on [0, 15],

the equations of Volterra (1926), "Fluctuations in the abundance of a species considered mathematically". The data were
made with a, b, c, d = 1, 0.5, 0.8, 0.3 and x(0) = (2, 1), by SciPy's DOP853 with tolerances 1e-12, at 25 random times,
with normal noise of standard deviation 0.2; two counts are missing. The optimum 16.82760882 and the parameters in
`FITTED`, with the standard errors in `ERRORS`, are those of scipy.optimize.least_squares over the same integrator.
"""

from __future__ import annotations

from math import nan

import torch
from torch import Tensor

from ocp import ControlProblem, Measurements, Parameter, Stop, Study, Target
from ocp.problem.parameters import Named

__all__ = ["problem"]

HORIZON, NOISE = 15.0, 0.2
#: Time, prey, predators.
DATA = (
    (0.41, 2.09, 0.91),
    (2.01, 4.93, 1.63),
    (2.16, 5.18, 2.19),
    (3.05, 3.94, 3.13),
    (3.93, 2.52, 3.69),
    (4.21, 1.86, 3.24),
    (4.55, 1.08, 3.01),
    (4.68, nan, 2.59),
    (4.95, 1.08, 2.52),
    (6.05, 1.03, 1.52),
    (6.14, 1.26, 1.49),
    (6.35, 1.22, 1.48),
    (6.8, 1.75, 1.21),
    (7.28, 1.8, 1.16),
    (7.68, 2.3, 1.13),
    (8.07, 2.74, nan),
    (8.24, 3.22, 0.72),
    (11.26, 2.04, 3.57),
    (11.3, 2.09, 3.33),
    (11.83, 1.22, 3.07),
    (12.42, 1.08, 2.42),
    (14.23, 1.8, 0.78),
    (14.26, 1.72, 1.35),
    (14.42, 1.73, 0.89),
    (14.71, 2.22, 1.04),
)
#: a, b, c, d and x(0) at the optimum, and their standard errors for noise of the stated size.
FITTED = (1.0620494, 0.5255071, 0.7623618, 0.2918562, 1.9026757, 1.0530406)
ERRORS = (0.062877, 0.028418, 0.043176, 0.017108, 0.078003, 0.056167)


def dynamics(t: float, x: Tensor, u: Tensor, q: Named) -> Tensor:
    """Prey and predators."""
    prey, predators = x.unbind(1)
    births, deaths = prey * (q.a - q.b * predators), predators * (q.d * prey - q.c)
    return torch.stack((births, deaths), dim=1)


def problem(*, dtype: torch.dtype = torch.float64, device: torch.device | str = "cpu") -> Study:
    """The fit of four rates and two initial numbers.

    Parameters
    ----------
    dtype : torch.dtype
    device : torch.device or str
    """
    data, starts = torch.tensor(DATA, dtype=torch.float64), {"a": 0.8, "b": 0.4, "c": 1.0, "d": 0.4}

    def number(start: float | list[float]) -> Tensor:
        return torch.tensor(start, dtype=dtype, device=device)

    return Study(
        ControlProblem(
            dynamics,
            initial_state=lambda q: q.first[None],
            horizon=HORIZON,
            control_size=0,
            parameters={
                **{name: Parameter(number(start), lower=0.0) for name, start in starts.items()},
                "first": number([2.5, 1.5]),
            },
            measurements=Measurements(data[:, 0], data[:, 1:], weight=NOISE**-2),
        ),
        steps=128,
        levels=1,
        integrator="rk4",
        optimum=16.82760882,
        stop=Stop(max_work=200, tolerance=1e-6),
        target=Target("value", 16.9),
    )
