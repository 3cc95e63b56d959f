"""What several tests share: random numbers, and the mathematical definitions in plain torch operations."""

from __future__ import annotations

import random
from collections import defaultdict
from collections.abc import Callable
from dataclasses import dataclass
from itertools import combinations as subsets
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from ocp.problem.control_problem import ControlProblem
from ocp.problem.costs import LeastSquares, QuadraticRunning
from ocp.problem.dynamics import FunctionDynamics, ModuleDynamics
from ocp.problem.layers import RELU, SMOOTH_RELU, TANH, Antisymmetric, Convolution, Dense

torch.set_num_threads(1)


def pytest_xdist_auto_num_workers(config):
    """Test single files without workers, which take longer to start than most files to run."""
    named = config.option.file_or_dir
    return 0 if named and all(".py" in name for name in named) else None


def pytest_addoption(parser):
    parser.addoption("--full-products", action="store_true", help="run all combinations of tests marked cover")
    parser.addoption(
        "--random-problems", type=int, default=1000, help="how many the slow comparison with autograd runs"
    )


def covering(combinations, strength, seed):
    """As few combinations as a greedy choice needs for every pair of values (strength 2), or every value (1).

    Parameters
    ----------
    combinations : sequence of sequences
        The value of each parameter.
    seed
        Another one chooses others.

    Returns
    -------
    set of int
        Which combinations to keep.
    """
    covers = {k: set(subsets(enumerate(c), min(strength, len(c)))) for k, c in enumerate(combinations)}
    order = random.Random(seed).sample(sorted(covers), len(covers))
    missing, chosen = set().union(*covers.values()), set()
    while missing:
        chosen.add(best := max(order, key=lambda k: len(covers[k] & missing)))
        missing -= covers[best]
    return chosen


def pytest_collection_modifyitems(config, items):
    tests = defaultdict(list)
    for item in [] if config.option.full_products else items:
        if item.get_closest_marker("cover") and hasattr(item, "callspec"):
            tests[item.nodeid.split("[")[0]].append(item)
    spare = set()
    for name, alike in tests.items():
        (strength,) = alike[0].get_closest_marker("cover").args
        chosen = covering([item.callspec._idlist for item in alike], strength, name)
        spare |= {item for k, item in enumerate(alike) if k not in chosen}
    items[:] = [item for item in items if item not in spare]
    if not torch.cuda.is_available():
        for item in items:
            if item.get_closest_marker("gpu"):
                item.add_marker(pytest.mark.skip(reason="no CUDA device"))


@dataclass(frozen=True)
class Case:
    """Dynamics beside their definition, for states of one shape."""

    dynamics: Any
    definition: Callable[[float, Tensor, Tensor], Tensor]
    state: tuple[int, ...]


def smooth_relu(z):
    """The parabola with the values and slopes of ReLU at -0.1 and 0.1."""
    return torch.where(z > 0.1, z, torch.where(z < -0.1, 0 * z, 2.5 * z**2 + 0.5 * z + 0.025))


def dense(sigma, weight=lambda K: K):
    def f(t, x, u):
        n = x.shape[1]
        return sigma(x @ weight(u[: n * n].reshape(n, n)).T + u[n * n :])

    return f


def convolution(sigma, c, k):
    def f(t, x, u):
        patches = nn.functional.unfold(x, k, padding=k // 2)  # (batch, c k^2, pixels)
        out = u[:-c].reshape(c, c * k * k) @ patches + u[-c:, None]
        return sigma(out).reshape(x.shape)

    return f


def pendulum(t, x, u):
    return torch.stack((x[:, 1], u[0] * torch.cos(x[:, 0]) - torch.sin(x[:, 0]) + t * u[1] * x[:, 1]), dim=1)


def two_layers(t, x, u):
    W, b, V = u[:12].reshape(4, 3), u[12:16], u[16:].reshape(3, 4)
    return torch.tanh(x @ W.T + b) @ V.T


BLOCK = nn.Sequential(nn.Linear(3, 4), nn.Tanh(), nn.Linear(4, 3, bias=False))

VECTOR_CASES = {
    "dense tanh": Case(Dense(3, TANH), dense(torch.tanh), (3,)),
    "dense relu": Case(Dense(3, RELU), dense(torch.relu), (3,)),
    "dense smooth relu": Case(Dense(3, SMOOTH_RELU), dense(smooth_relu), (3,)),
    "antisymmetric": Case(
        Dense(3, TANH, Antisymmetric(gamma=0.3)),
        dense(torch.tanh, lambda K: 0.5 * (K - K.T) - 0.15 * torch.eye(3).to(K)),
        (3,),
    ),
    "function": Case(FunctionDynamics(pendulum, control_size=2), pendulum, (2,)),
    "function without control": Case(
        FunctionDynamics(lambda t, x, u: t - torch.sin(x), control_size=1), lambda t, x, u: t - torch.sin(x), (2,)
    ),
    "module": Case(ModuleDynamics(BLOCK), two_layers, (3,)),
}
IMAGE_CASES = {
    "convolution tanh": Case(Convolution(2, 3, TANH), convolution(torch.tanh, 2, 3), (2, 3, 2)),
    "convolution smooth relu": Case(Convolution(2, 1, SMOOTH_RELU), convolution(smooth_relu, 2, 1), (2, 3, 2)),
}
CASES = VECTOR_CASES | IMAGE_CASES


@pytest.fixture(params=CASES)
def case(request):
    """Every kind of dynamics."""
    return CASES[request.param]


@pytest.fixture(params=VECTOR_CASES.values(), ids=VECTOR_CASES.keys())
def vector_case(request):
    """Every kind of dynamics whose states are vectors."""
    return request.param


class _Power(torch.autograd.Function):
    @staticmethod
    def forward(ctx, x, n):
        ctx.save_for_backward(x)
        ctx.n = n
        return x**n

    @staticmethod
    @torch.autograd.function.once_differentiable
    def backward(ctx, p):
        return ctx.n * ctx.saved_tensors[0] ** (ctx.n - 1) * p, None


@pytest.fixture
def once_differentiable_power():
    """The function (x, n) -> x^n, with a derivative in reverse mode that has no tape."""
    return _Power.apply


@pytest.fixture
def rand():
    """Normal random numbers in double precision, the same at every run."""
    generator = torch.Generator().manual_seed(0)

    def draw(*shape):
        return torch.randn(*shape, generator=generator, dtype=torch.float64)

    return draw


def euler(F, t, h, x):
    k, l = F(t, x)
    return x + h * k, h * l


def midpoint(F, t, h, x):
    k, _ = F(t, x)
    k, l = F(t + h / 2, x + h / 2 * k)
    return x + h * k, h * l


def heun(F, t, h, x):
    k1, l1 = F(t, x)
    k2, l2 = F(t + h, x + h * k1)
    return x + h / 2 * (k1 + k2), h / 2 * (l1 + l2)


def rk4(F, t, h, x):
    k1, l1 = F(t, x)
    k2, l2 = F(t + h / 2, x + h / 2 * k1)
    k3, l3 = F(t + h / 2, x + h / 2 * k2)
    k4, l4 = F(t + h, x + h * k3)
    return x + h / 6 * (k1 + 2 * k2 + 2 * k3 + k4), h / 6 * (l1 + 2 * l2 + 2 * l3 + l4)


def dopri5(F, t, h, x):
    k1, l1 = F(t, x)
    k2, _ = F(t + h / 5, x + h * k1 / 5)
    k3, l3 = F(t + 3 * h / 10, x + h * (3 * k1 / 40 + 9 * k2 / 40))
    k4, l4 = F(t + 4 * h / 5, x + h * (44 * k1 / 45 - 56 * k2 / 15 + 32 * k3 / 9))
    k5, l5 = F(t + 8 * h / 9, x + h * (19372 * k1 - 76080 * k2 + 64448 * k3 - 1908 * k4) / 6561)
    x6 = x + h * (9017 * k1 / 3168 - 355 * k2 / 33 + 46732 * k3 / 5247 + 49 * k4 / 176 - 5103 * k5 / 18656)
    k6, l6 = F(t + h, x6)

    def mean(y1, y3, y4, y5, y6):
        return 35 * y1 / 384 + 500 * y3 / 1113 + 125 * y4 / 192 - 2187 * y5 / 6784 + 11 * y6 / 84

    return x + h * mean(k1, k3, k4, k5, k6), h * mean(l1, l3, l4, l5, l6)


def root(G, x):
    """The root of G near x by Newton's method with the Jacobian of autograd, as a function that it differentiates.

    The iteration runs without a tape. The steps after it, with the Jacobian fixed, give the root its derivatives: one
    step the first, by the implicit function theorem, and each further step one order more.
    """

    def flat(z):
        return G(z.reshape(x.shape)).reshape(-1)

    z = x.detach().reshape(-1)
    for _ in range(8):
        J = torch.autograd.functional.jacobian(flat, z)
        change = torch.linalg.solve(J, flat(z).detach())
        z = z - change
        if change.norm() <= 1e-14 * z.norm():
            break
    for _ in range(3):
        z = z - torch.linalg.solve(J, flat(z))
    return z.reshape(x.shape)


def backward_euler(F, t, h, x):
    end = root(lambda y: y - x - h * F(t + h, y)[0], x)
    return end, h * F(t + h, end)[1]


def implicit_midpoint(F, t, h, x):
    end = root(lambda y: y - x - h * F(t + h / 2, (x + y) / 2)[0], x)
    return end, h * F(t + h / 2, (x + end) / 2)[1]


def crank_nicolson(F, t, h, x):
    k, l = F(t, x)
    end = root(lambda y: y - x - h / 2 * (k + F(t + h, y)[0]), x)
    return end, h / 2 * (l + F(t + h, end)[1])


def sdirk2(F, t, h, x):
    g = 1 - 0.5**0.5
    inner = root(lambda y: y - x - g * h * F(t + g * h, y)[0], x)
    k, l = F(t + g * h, inner)
    end = root(lambda y: y - x - (1 - g) * h * k - g * h * F(t + h, y)[0], x)
    return end, h * ((1 - g) * l + g * F(t + h, end)[1])


def verlet(F, t, h, x):
    n = x.shape[1] // 2
    q, p = x[:, :n], x[:, n:]
    p = p + h / 2 * F(t, x)[0][:, n:]
    q = q + h * F(t + h / 2, torch.cat((q, p), 1))[0][:, :n]
    p = p + h / 2 * F(t + h, torch.cat((q, p), 1))[0][:, n:]
    end = torch.cat((q, p), 1)
    return end, h / 2 * (F(t, x)[1] + F(t + h, end)[1])


STEPS = {
    "euler": euler,
    "midpoint": midpoint,
    "heun": heun,
    "rk4": rk4,
    "dopri5": dopri5,
    "backward_euler": backward_euler,
    "implicit_midpoint": implicit_midpoint,
    "crank_nicolson": crank_nicolson,
    "sdirk2": sdirk2,
    "verlet": verlet,
}
EXPLICIT = ["euler", "midpoint", "heun", "rk4", "dopri5"]
IMPLICIT = ["backward_euler", "implicit_midpoint", "crank_nicolson", "sdirk2"]


@pytest.fixture
def definitions():
    """The step of every integrator by definition: (F, t, h, x) -> (next x, cost) with F(t, x) = (f, L)."""
    return STEPS


@pytest.fixture(params=STEPS)
def scheme(request):
    """The name of every integrator. A step of Verlet is a definition for all dynamics, and accurate for separable."""
    return request.param


@pytest.fixture(params=[*EXPLICIT, *IMPLICIT])
def general_scheme(request):
    """The name of every integrator that takes all dynamics."""
    return request.param


@pytest.fixture(params=EXPLICIT)
def explicit_scheme(request):
    """The name of every explicit Runge-Kutta scheme."""
    return request.param


@pytest.fixture(params=IMPLICIT)
def implicit_scheme(request):
    """The name of every implicit Runge-Kutta scheme."""
    return request.param


@pytest.fixture
def rollout():
    """Trajectory and running cost by definition; autograd can differentiate them."""

    def run(scheme, f, x, path, horizon=1.0, running=lambda t, x, u: 0.0):
        h, states, cost = horizon / len(path), [x], 0.0
        for k, u in enumerate(path):
            x, part = STEPS[scheme](lambda t, x, u=u: (f(t, x, u), running(t, x, u)), k * h, h, states[-1])
            states, cost = [*states, x], cost + part
        return states, cost

    return run


@pytest.fixture
def unchanged():
    """Whether tensors are bit for bit what they were when this was called: use it as a context."""

    class Unchanged:
        def __init__(self, *tensors):
            self.tensors = tensors

        def __enter__(self):
            self.before = [t.clone() for t in self.tensors]
            return self

        def __exit__(self, *error):
            if error[0] is None:
                assert all(map(torch.equal, self.tensors, self.before))

    return Unchanged


@dataclass(frozen=True)
class Linear:
    """x' = F x + G u."""

    F: Tensor
    G: Tensor

    @property
    def control_size(self):
        return self.G.shape[1]

    def __call__(self, t, x, u):
        return x @ self.F.T + self.G @ u

    def vjp(self, t, x, u, p):
        return p @ self.F, (p @ self.G).sum(0)

    def jvp(self, t, x, u, dx, du):
        return dx @ self.F.T + self.G @ du


@pytest.fixture(scope="session")
def lqr():
    """An oscillator with a quadratic cost."""
    F = torch.tensor([[0.0, 1.0], [-1.0, 0.0]], dtype=torch.float64)
    G = torch.tensor([[0.0], [1.0]], dtype=torch.float64)
    x = torch.tensor([[1.0, 0.5]], dtype=torch.float64)
    terminal, running = LeastSquares(torch.zeros_like(x), 2.0), QuadraticRunning(1.0, 0.5)
    return ControlProblem(Linear(F, G), x, terminal, running, horizon=2.0)
