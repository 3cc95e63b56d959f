"""Programs with constraints, parameters and free final times, as the interior-point method takes them."""

from dataclasses import replace
from math import pi

import numpy as np
import torch

from ocp.adjoint.all_steps import RungeKuttaSteps
from ocp.adjoint.rows import Rows, pointwise
from ocp.integrators.tableaus import RK4
from ocp.optimize.interior_point.banded import BandedLU
from ocp.optimize.interior_point.loop import Iterations
from ocp.optimize.interior_point.program import Program
from ocp.optimize.interior_point.scaling import scaled


def vector(*entries):
    return torch.stack([torch.as_tensor(entry, dtype=torch.float64) for entry in entries])


def program(
    steps, f, x0, *, horizon=1.0, L=None, Phi=None, g=None, d=None, c=None, bounds=None, q=(), box=None, m=1, X0=None
):
    """A program from f(t, x, u, q) and functions alike, with parameters near ``q`` and ``bounds``, ``box`` of u and q.

    The final time ``horizon`` may be a function of q; then the grid divides [0, 1].
    """
    n, s, free = len(x0), len(q), callable(horizon)
    h, T = (1 / steps, horizon) if free else (horizon / steps, lambda q: 1.0)
    x, v = (torch.tensor(numbers, dtype=torch.float64) for numbers in (x0, [*[0.1] * m, *q]))
    u, q = v[:m], v[m:]
    zero, none = torch.zeros(1, dtype=torch.float64), torch.zeros(0, dtype=torch.float64)

    def rates(t, x, v):
        u, q = v[:m], v[m:]
        return T(q) * torch.cat((f(t * T(q), x, u, q), zero if L is None else L(t * T(q), x, u, q).view(1)))

    def final(t, x, q):
        parts = [zero if Phi is None else Phi(x, q).view(1), *(none if F is None else F(x, q) for F in (g, d))]
        return torch.cat(parts)

    equations, limits = (0 if F is None else len(F(x, q)) for F in (g, d))
    path = None
    if c is not None:
        number = len(c(0.0, x, u, q))
        path = Rows(pointwise(lambda t, x, v: c(t, x, v[:m], v[m:]), x, v), number)
    initial = np.array(x0, dtype=float)
    if X0 is not None:
        initial = Rows(pointwise(lambda t, none, q: X0(q), x[:0], q), n)
    low, high = bounds or (-np.inf, np.inf)
    least, most = box or (-np.inf, np.inf)
    return Program(
        RungeKuttaSteps(Rows(pointwise(rates, x, v), n + 1), RK4, h),
        torch.arange(steps) * h,
        h,
        n,
        m,
        initial,
        Rows(pointwise(final, x, q), 1 + equations + limits),
        np.full((steps, m), low),
        np.full((steps, m), high),
        s=s,
        g=equations,
        d=limits,
        path=path,
        least=np.full(s, least),
        most=np.full(s, most),
    )


def solve(program, target=None, u=0.0, q=(), solver=BandedLU, limit=100, tolerance=1e-8):
    """Iterate from a straight line to a target, or from the initial state held."""
    q, steps = np.array(q, dtype=float), len(program.times)
    first = program.first(q)
    x = first + np.linspace(0, 1, steps + 1)[:, None] * (0 if target is None else np.array(target) - first)
    u = np.full((steps, program.m), u)
    iterations = Iterations(scaled(program, x, u, q), solver(), tolerance)
    return iterations.run(iterations.begin(x, u, q), limit), iterations


def plain(found, iterations):
    """The cost and the point in the units of the program, without its factor of all costs."""
    scale = iterations.program.scale
    parts = {name: getattr(found.point, name) / scale for name in ("costates", "nu", "y")}
    return found.values.cost / scale, replace(found.point, **parts)


def double_integrator(t, x, u, q):
    return vector(x[1], u[0])


def cart_pole(t, x, u, q):
    s, c = torch.sin(x[1]), torch.cos(x[1])
    inertia, push = 1 + 0.3 * s**2, u[0] + 0.15 * s * x[3] ** 2
    return vector(x[2], x[3], (push + 2.943 * c * s) / inertia, -(push * c + 12.753 * s) / (0.5 * inertia))


def rocket(t, x, u, q):
    """Goddard's: altitude, speed and mass, with drag in an atmosphere that thins out."""
    drag = 310 * x[1] ** 2 * torch.exp(-500 * (x[0] - 1))
    return vector(x[1], (u[0] - drag) / x[2] - 1 / x[0] ** 2, -2 * u[0])


def bead(t, x, u, q):
    return vector(x[2] * torch.sin(u[0]), -x[2] * torch.cos(u[0]), 9.81 * torch.cos(u[0]))


def free(q):
    return q[0]


#: Keyword arguments of `program`, of `solve`, and the optimum with the relative accuracy of 64 steps.
CONSTRAINED = {
    # A bead slides from (0, 10) to (10, 5): a cycloid takes 1.8012917 s.
    "brachistochrone": (
        {"f": bead, "x0": [0, 10, 0], "horizon": free, "Phi": lambda x, q: q, "q": [2.0], "box": (0.1, 20),
         "g": lambda x, q: vector(x[0] - 10, x[1] - 5), "bounds": (0.01, pi - 0.01)},
        {"target": [10, 5, 9.9], "u": 0.8, "q": [2.0]}, 1.801296, 1e-4,
    ),
    # Bryson & Ho (1975), section 3.11: 4 / (9 l) for l <= 1/6.
    "bryson-denham": (
        {"f": double_integrator, "x0": [0, 1], "L": lambda t, x, u, q: 0.5 * u[0] ** 2,
         "g": lambda x, q: vector(x[0], x[1] + 1), "c": lambda t, x, u, q: vector(x[0] - 1 / 9)},
        {"target": [0, -1]}, 4.0, 1e-3,
    ),
    # Full thrust, then full brake: two units of time for the distance 1.
    "minimum time": (
        {"f": double_integrator, "x0": [0, 0], "horizon": free, "Phi": lambda x, q: q, "q": [1.0], "box": (0.1, 20),
         "g": lambda x, q: vector(x[0] - 1, x[1]), "bounds": (-1, 1)},
        {"target": [1, 0], "q": [1.0]}, 2.0, 1e-7,
    ),
    # COPS 3.0 prints 1.01283, at 0.19886.
    "goddard": (
        {"f": rocket, "x0": [1, 0, 1], "horizon": free, "Phi": lambda x, q: -x[0], "q": [0.2], "box": (0.01, 2),
         "g": lambda x, q: vector(x[2] - 0.6), "bounds": (0, 3.5)},
        {"target": [1.01, 0.05, 0.6], "u": 1.75, "q": [0.2]}, -1.0128369, 1e-6,
    ),
    # The swing-up of `ocp.problems.cart_pole` with the final state prescribed; by an independent solver.
    "cart-pole": (
        {"f": cart_pole, "x0": [0] * 4, "horizon": 2.0, "L": lambda t, x, u, q: u[0] ** 2, "bounds": (-20, 20),
         "g": lambda x, q: x - vector(1, pi, 0, 0), "c": lambda t, x, u, q: vector(x[0] - 2, -x[0] - 2)},
        {"target": [1, pi, 0, 0]}, 58.8077, 4e-3,
    ),
}  # fmt: skip
