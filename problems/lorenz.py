"""Find the parameters of the Lorenz equations from two of their three states at irregular times.

Find s, r, b and x(0) that minimize the sum of squares of ((x1(t_i), x3(t_i)) - data_i) / 0.5, halved, subject to

    x1' = s (x2 - x1),   x2' = x1 (r - x3) - x2,   x3' = x1 x2 - b x3   on [0, 2.5]:

Lorenz (1963), "Deterministic nonperiodic flow". On longer intervals the solution forgets its start, and the sum of
squares has many minima. The data were made with the parameters of the source, s, r, b = 10, 28, 8/3, and
x(0) = (-2, -3, 20), by SciPy's DOP853 with tolerances 1e-12, at times 0, 2.5 and 28 random ones between, with normal
noise of standard deviation 0.5. The optimum 26.68917266 and the parameters in `FITTED`, with the standard errors in
`ERRORS`, are those of scipy.optimize.least_squares over the same integrator.
"""

from __future__ import annotations

import torch
from torch import Tensor

from ocp import ControlProblem, Measurements, Stop, Study, Target
from ocp.problem.parameters import Named

__all__ = ["problem"]

HORIZON, NOISE = 2.5, 0.5
#: Time, x1, x3.
DATA = (
    (0.0, -1.58, 20.06),
    (0.23, -7.01, 17.08),
    (0.261, -9.04, 18.89),
    (0.268, -9.62, 19.8),
    (0.375, -14.75, 33.52),
    (0.468, -10.62, 37.32),
    (0.47, -10.98, 35.76),
    (0.654, -2.19, 23.29),
    (0.687, -1.63, 21.57),
    (0.746, -2.22, 18.5),
    (0.795, -0.9, 15.13),
    (0.865, -1.97, 14.04),
    (0.979, -4.67, 12.3),
    (1.057, -7.47, 15.29),
    (1.082, -10.49, 17.54),
    (1.177, -15.33, 35.47),
    (1.278, -10.22, 37.56),
    (1.406, -0.98, 25.41),
    (1.5, 0.08, 18.97),
    (1.583, 2.47, 16.49),
    (1.644, 3.56, 14.49),
    (1.673, 3.05, 14.11),
    (1.708, 4.34, 12.87),
    (1.734, 4.84, 14.49),
    (1.821, 9.92, 18.44),
    (1.939, 14.83, 36.22),
    (2.036, 9.77, 35.94),
    (2.228, 0.11, 21.13),
    (2.311, -0.66, 17.08),
    (2.5, -0.83, 10.02),
)
#: s, r, b and x(0) at the optimum, and their standard errors for noise of the stated size.
FITTED = (9.9186554, 28.0605683, 2.6664659, -1.5849363, -3.2727829, 20.1618489)
ERRORS = (0.286073, 0.107211, 0.020794, 0.492656, 0.332717, 0.190222)


def dynamics(t: float, x: Tensor, u: Tensor, q: Named) -> Tensor:
    """Convection, and the horizontal and vertical differences of temperature."""
    x1, x2, x3 = x.unbind(1)
    return torch.stack((q.s * (x2 - x1), x1 * (q.r - x3) - x2, x1 * x2 - q.b * x3), dim=1)


def problem(*, dtype: torch.dtype = torch.float64, device: torch.device | str = "cpu") -> Study:
    """The fit of three parameters and three initial numbers.

    Parameters
    ----------
    dtype : torch.dtype
    device : torch.device or str
    """
    data = torch.tensor(DATA, dtype=torch.float64)
    starts: dict[str, float | list[float]] = {"s": 9.0, "r": 27.0, "b": 2.5, "first": [-2.0, -2.0, 20.0]}
    return Study(
        ControlProblem(
            dynamics,
            initial_state=lambda q: q.first[None],
            horizon=HORIZON,
            control_size=0,
            parameters={name: torch.tensor(start, dtype=dtype, device=device) for name, start in starts.items()},
            measurements=Measurements(data[:, 0], data[:, 1:], observe=lambda x: x[:, ::2], weight=NOISE**-2),
        ),
        steps=256,
        levels=1,
        integrator="rk4",
        optimum=26.68917266,
        stop=Stop(max_work=300, tolerance=1e-7),
        target=Target("value", 27.0),
    )
