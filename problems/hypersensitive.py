"""Leave one state, rest long at zero, reach another: two layers in time, nothing in between.

Minimize (c/2) (x(25) - 1)^2 plus the integral of (x^2 + u^2) / 2 over [0, 25] subject to x' = -x^3 + u, x(0) = 3/2:
Rao & Mease (2000), "Eigenvector approximate dichotomic basis method for solving hyper-sensitive optimal control
problems", with the final condition x(T) = 1 as a penalty; with c = inf it is a constraint. A uniform grid spends most
of its steps where nothing happens.

Optimum: up to terms of order e^(-T) the two layers do not see each other, and on each the Hamiltonian is zero, so that
the costate is p = -x^3 +- sqrt(x^6 + x^2). Its integrals are the costs of the layers,

    from a to 0:  G(a) - a^4 / 4,     from 0 to b:  G(b) + b^4 / 4,     G(x) = (x^2 sqrt(x^4 + 1) + asinh x^2) / 4,

and b = x(T) solves b^3 + sqrt(b^6 + b^2) = c (1 - b); with c = inf, b = 1, the optimum is 1.330826.
"""

from __future__ import annotations

from math import asinh, inf, sqrt

import torch
from scipy.optimize import brentq
from torch import Tensor

from ocp import LINEAR, ControlProblem, LeastSquares, QuadraticRunning, Stop, Study, Target

__all__ = ["end", "optimum", "problem"]

PENALTY = 1e2


def dynamics(t: float, x: Tensor, u: Tensor) -> Tensor:
    """x' = -x^3 + u."""
    return u - x**3


def end(penalty: float = PENALTY) -> float:
    """The optimal final state b."""
    if penalty == inf:
        return 1.0
    return float(brentq(lambda b: b**3 + sqrt(b**6 + b**2) - penalty * (1 - b), 0.0, 1.0, xtol=1e-15))


def optimum(penalty: float = PENALTY, start: float = 1.5) -> float:
    """The optimum for a long horizon."""

    def g(x: float) -> float:
        return (x**2 * sqrt(x**4 + 1) + asinh(x**2)) / 4

    b = end(penalty)
    miss = 0.0 if penalty == inf else 0.5 * penalty * (1 - b) ** 2
    return g(start) - start**4 / 4 + g(b) + b**4 / 4 + miss


def problem(
    *, penalty: float = PENALTY, dtype: torch.dtype = torch.float64, device: torch.device | str = "cpu"
) -> Study:
    """The hyper-sensitive problem.

    Parameters
    ----------
    penalty : float
        c, the weight of the miss at the end; infinity for x(25) = 1.
    dtype : torch.dtype
    device : torch.device or str
    """
    one = torch.ones(1, 1, dtype=dtype, device=device)
    return Study(
        ControlProblem(
            dynamics,
            initial_state=1.5 * one,
            terminal_cost=LeastSquares(one, weight=penalty) if penalty < inf else None,
            running_cost=QuadraticRunning(),
            horizon=25.0,
            control_size=1,
            terminal_equality=None if penalty < inf else lambda x: x - one,
        ),
        steps=256,
        levels=3,
        integrator="rk4",
        interpolation=LINEAR,
        optimum=optimum(penalty),
        stop=Stop(max_work=200, tolerance=1e-6),
        target=Target("value", 1.005 * optimum(penalty)),
    )
