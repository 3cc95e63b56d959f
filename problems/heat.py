"""Heat a rod or a plate to a given profile, with a source at every point.

Minimize (1/2) integral of (y - d)^2 + alpha u^2 over time [0, 1] and space (0, 1)^dimension subject to

    y_t = kappa Laplace(y) + u,   y = 0 on the boundary and at t = 0,   kappa = 0.1,

where the profile d is a tent, the product of 1 - |2 x_i - 1| over the directions: a parabolic model problem as in
Troeltzsch (2010), "Optimal control of partial differential equations". In space: central differences on n interior
points in each direction; the sums over points carry the weight dx^dimension, so that refinement keeps the problem.

Optimum of the system in space that stays continuous in time: the sine modes decouple. For a mode with the eigenvalue
l, let d be its share of the profile and z, w, p = -alpha w = (z - d) / l be the steady state z = d / (1 + alpha l^2),
control w = l z and costate of its optimality system. With s = sqrt(l^2 + 1 / alpha), E = s / (s cosh s + l sinh s) and
P = sinh s / (s cosh s + l sinh s), the start from rest, -z away from the steady state, costs

    ((z - d)^2 + alpha w^2) / 2 - p z + P z^2 / 2 + p E z - p^2 P / (2 alpha).
"""

from __future__ import annotations

import torch
from torch import Tensor

from ocp import LINEAR, ConstantJacobian, ControlProblem, QuadraticRunning, RungeKutta, Stop, Study, Target
from ocp.integrators.tableaus import CRANK_NICOLSON

__all__ = ["optimum", "problem", "profile"]

CONDUCTIVITY = 0.1
ALPHA = 1e-3


def dynamics(t: float, x: Tensor, u: Tensor) -> Tensor:
    """kappa Laplace(y) + u for x = y on a grid of one or more dimensions, shape (batch, n, ...)."""
    n = x.shape[-1]
    second = 0.0 * x
    for k in range(1, x.ndim):
        edge = torch.zeros_like(x.narrow(k, 0, 1))
        second = second + torch.diff(x, n=2, dim=k, prepend=edge, append=edge)
    return CONDUCTIVITY * (n + 1) ** 2 * second + u.view(x.shape[1:])


def profile(points: int, dimension: int) -> Tensor:
    """The tent d, shape (n, ...)."""
    x = torch.arange(1, points + 1, dtype=torch.float64) / (points + 1)
    side = 1 - (2 * x - 1).abs()
    return side if dimension == 1 else side[:, None] * side


def optimum(points: int, dimension: int, alpha: float = ALPHA) -> float:
    """The optimum of the system on n points in each direction, continuous in time."""
    k, dx = torch.arange(1, points + 1, dtype=torch.float64), 1 / (points + 1)
    sines = torch.sin(torch.pi * dx * k[:, None] * k)
    line = CONDUCTIVITY * (2 / dx * torch.sin(0.5 * torch.pi * dx * k)) ** 2
    target = profile(points, dimension)
    # Orthonormal with the weight dx: the modes are sqrt(2) sin(k pi x).
    if dimension == 1:
        d, l = 2**0.5 * dx * (sines @ target), line
    else:
        d, l = 2 * dx**2 * (sines @ target @ sines), line[:, None] + line
    z = d / (1 + alpha * l**2)
    w = l * z
    p = -alpha * w
    s = (l**2 + 1 / alpha).sqrt()
    # sinh s and cosh s divided by e^s / 2, since they may overflow.
    sinh, cosh = -torch.expm1(-2 * s), 1 + torch.exp(-2 * s)
    P = sinh / (s * cosh + l * sinh)
    E = 2 * torch.exp(-s) * s / (s * cosh + l * sinh)
    cost = ((z - d) ** 2 + alpha * w**2) / 2 - p * z + P * z**2 / 2 + p * E * z - p**2 * P / (2 * alpha)
    return float(cost.sum())


def problem(
    *,
    dimension: int = 1,
    points: int | None = None,
    alpha: float = ALPHA,
    dtype: torch.dtype = torch.float64,
    device: torch.device | str = "cpu",
) -> Study:
    """The heating of a rod or of a plate.

    Parameters
    ----------
    dimension : int
        1 for the rod, 2 for the plate.
    points : int, optional
        n, the interior points in each direction; 31 for the rod and 11 for the plate where it is left out.
    alpha : float
        Weight of the control.
    dtype : torch.dtype
    device : torch.device or str
    """
    if dimension not in (1, 2):
        raise ValueError(f"dimension: expected 1 or 2, got {dimension!r}")
    points = {1: 31, 2: 11}[dimension] if points is None else points
    target = profile(points, dimension).to(device, dtype)[None]
    weight = (points + 1.0) ** -dimension
    least = optimum(points, dimension, alpha)
    units = torch.eye(points**dimension, dtype=dtype, device=device)
    laplacian = dynamics(0.0, units.view(-1, *target.shape[1:]), 0 * units[0]).flatten(1)  # symmetric
    return Study(
        ControlProblem(
            dynamics,
            initial_state=torch.zeros_like(target),
            running_cost=QuadraticRunning(weight, alpha * weight, target),
            control_size=points**dimension,
        ),
        steps=64,
        levels=4,
        integrator=RungeKutta(CRANK_NICOLSON, ConstantJacobian(laplacian)),
        interpolation=LINEAR,
        optimum=least,
        stop=Stop(max_work=100, tolerance=1e-6),
        target=Target("value", 1.03 * least),
    )
