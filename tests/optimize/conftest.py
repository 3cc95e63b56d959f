"""Objectives for the tests of methods, functions of vectors, and runs of methods on them."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field
from functools import cached_property
from math import inf

import pytest
import scipy.optimize
import torch
from torch import Tensor

from ocp import ControlSpace, TimeGrid, discretize
from ocp.space.bounds import Box

PLANE = ControlSpace(TimeGrid(1.0, 2), 1)


@dataclass
class Function:
    """A function of a vector as an objective; it keeps the vectors at which value and derivative were computed.

    Its derivative can be changed to a wrong one: ``change(u, derivative)``.
    """

    function: Callable[[Tensor], Tensor]
    space: ControlSpace = PLANE
    box: Box | None = None
    limit: float = inf
    change: Callable[[Tensor, Tensor], Tensor] = lambda u, derivative: derivative
    asked: list[Tensor] = field(default_factory=list)
    differentiated: list[Tensor] = field(default_factory=list)
    products: int = 0

    def at(self, u):
        return Point(self, u)

    def step_limit(self, u, direction):
        return self.limit

    def value(self, u):
        return float(self.function(u))

    def derivative(self, u):
        return self.change(u, torch.func.grad(self.function)(u))


@dataclass(frozen=True, eq=False)
class Point:
    """A function at a vector."""

    objective: Function
    control: Tensor

    @cached_property
    def value(self):
        self.objective.asked.append(self.control)
        return self.objective.value(self.control)

    @cached_property
    def derivative(self):
        self.objective.differentiated.append(self.control)
        return self.objective.derivative(self.control)

    def hessian_product(self, direction):
        self.objective.products += 1
        return torch.func.jvp(torch.func.grad(self.objective.function), (self.control,), (direction,))[1]


@pytest.fixture
def objective_of():
    """Makes an objective of a function of a vector."""
    return Function


@pytest.fixture
def run():
    """The state of a method after some steps from an evaluation: (method, point, steps) -> state."""

    def state_after(method, point, steps):
        state = method.init(point.objective, point)
        for _ in range(steps):
            state = method.step(point.objective, state)
        return state

    return state_after


@pytest.fixture
def start():
    """The evaluation at the start of a problem: (problem, steps) -> evaluation by a new objective."""

    def evaluation(problem, steps=16):
        objective = discretize(problem, steps)
        return objective.at(objective.discretization.start())

    return evaluation


def quadratic(A, b):
    return lambda u: 0.5 * torch.dot(u, A @ u) - torch.dot(b, u)


def best(A, b, box):
    """Minimizer of (1/2) u^T A u - b^T u in a box, by SciPy's active sets."""
    open_ = box.lower < box.upper
    u = torch.where(open_, 0.0, box.lower)
    if not open_.any():
        return u
    root = torch.linalg.cholesky(A[open_][:, open_]).T
    right = torch.linalg.solve(root.T, (b - A @ u)[open_])
    bounds = (box.lower[open_].numpy(), box.upper[open_].numpy())
    found = scipy.optimize.lsq_linear(root.numpy(), right.numpy(), bounds, method="bvls", tol=1e-14)
    u[open_] = torch.from_numpy(found.x)
    return u


@pytest.fixture
def bounded_optimum():
    """The minimizer of (1/2) u^T A u - b^T u in a box: (A, b, box) -> u."""
    return best


#: Bounds on a path of twelve steps; the optimum without bounds of the first entries is near one.
NONE, RAMP = inf * torch.ones(12).double(), torch.linspace(-0.5, 0.5, 12, dtype=torch.float64)
PATHS = {
    "inactive": (-NONE, NONE),
    "far": (-9 - 0 * RAMP, 9 + 0 * RAMP),
    "active": (-0.1 - 0 * RAMP, 0.2 + 0 * RAMP),
    "above zero": (0 * RAMP, NONE),
    "varying in time": (RAMP - 0.1, RAMP + 0.1),
    "some equal": (torch.where(RAMP < 0, 0.3, -0.2), torch.where(RAMP < 0, 0.3, 0.2)),
    "all equal": (RAMP, RAMP),
}


@pytest.fixture(params=PATHS)
def bounds(request):
    """The name of every kind of bounds on a path."""
    return request.param


@pytest.fixture
def convex_within():
    """A strictly convex objective of twelve steps and two parameters within bounds, and its optimum, by their name."""
    generator = torch.Generator().manual_seed(0)
    root = torch.randn(14, 14, generator=generator, dtype=torch.float64)
    weight = torch.cat((torch.full((12,), 0.1), torch.ones(2))).double()
    A = weight.sqrt() * (0.2 * root @ root.T + torch.eye(14)) * weight.sqrt().unsqueeze(1)
    b = weight * torch.randn(14, generator=generator, dtype=torch.float64)

    def make(name):
        lower, upper = PATHS[name]
        box = Box(torch.cat((lower, -NONE[:2])), torch.cat((upper, NONE[:2])))
        return Function(quadratic(A, b), ControlSpace(TimeGrid(1.2, 12), 1, 2), box), best(A, b, box)

    return make
