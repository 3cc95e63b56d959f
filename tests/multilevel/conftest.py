"""Problems, and methods that note what they do, which the tests of multilevel methods share."""

import math
from dataclasses import dataclass, field
from typing import Any

import pytest
import torch
from torch import nn

from ocp import (
    LBFGS,
    Armijo,
    CrossEntropy,
    GradientDescent,
    NonlinearCG,
    ShiftedObjective,
    Tikhonov,
    TorchOptimizer,
    Transfer,
    discretize,
    residual_network,
)
from ocp.multilevel import cycle as cycles
from ocp.problem.layers import Dense


@pytest.fixture(scope="session")
def classification():
    """Twelve points on two spiral arms, regularized so much that there is one optimum."""
    t = torch.linspace(0.3, 1.5, 6, dtype=torch.float64)
    arms = [torch.stack((t * torch.cos(3 * t + a), t * torch.sin(3 * t + a)), dim=1) for a in (0.0, math.pi)]
    with torch.random.fork_rng():
        torch.manual_seed(0)
        opening, closing = nn.Linear(2, 3), nn.Linear(3, 2)
    labels = CrossEntropy(torch.arange(2).repeat_interleave(6))
    return residual_network(
        torch.cat(arms), labels, Dense(3), opening, closing, horizon=2.0, control_cost=Tikhonov(0.04)
    )


@pytest.fixture(params=["lqr", "classification"])
def problem(request):
    """Both problems."""
    return request.getfixturevalue(request.param)


SMOOTHERS = {
    "L-BFGS": LBFGS(),
    "gradient descent": GradientDescent(),
    "conjugate gradients": NonlinearCG(),
    "Adam": TorchOptimizer(torch.optim.Adam, {"lr": 0.01}),
}


@pytest.fixture(params=SMOOTHERS.values(), ids=SMOOTHERS.keys())
def smoother(request):
    """Methods of each kind."""
    return request.param


@pytest.fixture(scope="session")
def started():
    """The objective of a problem and its start, moved by a constant."""

    def start(problem, steps=16, move=0.0):
        objective = discretize(problem, steps)
        return objective, objective.discretization.start().flat + move

    return start


@pytest.fixture(scope="session")
def run():
    """The states of a method from the first on."""

    def states(method, objective, control, steps):
        made = [method.init(objective, objective.at(control))]
        for _ in range(steps):
            made.append(method.step(objective, made[-1]))
        return made

    return states


@dataclass(frozen=True)
class Recorded:
    """A method that notes the objective and the state of each of its steps."""

    method: Any
    log: list = field(default_factory=list)

    def init(self, objective, point):
        return self.method.init(objective, point)

    def step(self, objective, state):
        after = self.method.step(objective, state)
        self.log.append((objective, state, after))
        return after

    def transport(self, memory, transfer):
        return self.method.transport(memory, transfer)


@pytest.fixture(scope="session")
def recorded():
    return Recorded


@dataclass(frozen=True)
class OnShifted:
    """Works on shifted objectives only, so that a cycle changes the fine control by corrections alone."""

    method: Any = field(default_factory=GradientDescent)

    def init(self, objective, point):
        return self.method.init(objective, point)

    def step(self, objective, state):
        return self.method.step(objective, state) if isinstance(objective, ShiftedObjective) else state

    def transport(self, memory, transfer):
        return self.method.transport(memory, transfer)


@pytest.fixture(scope="session")
def on_shifted():
    return OnShifted


@dataclass(frozen=True)
class Watched:
    """A line search that notes what it was given and what it found."""

    search: Any = field(default_factory=lambda: Armijo(trials=5))
    log: list = field(default_factory=list)

    def __call__(self, start, direction, step):
        trial = self.search(start, direction, step)
        self.log.append((start, direction, trial))
        return trial


@pytest.fixture(scope="session")
def watched():
    return Watched


@pytest.fixture
def models(monkeypatch):
    """The shifted objectives that are made, in this order."""
    made = []

    @dataclass(frozen=True)
    class Noted(ShiftedObjective):
        def __post_init__(self):
            made.append(self)

    monkeypatch.setattr(cycles, "ShiftedObjective", Noted)
    return made


@pytest.fixture
def wrong_corrections(monkeypatch):
    """Prolongation with the wrong sign, so that corrections lead uphill."""
    prolong = Transfer.prolong
    monkeypatch.setattr(Transfer, "prolong", lambda self, v: -prolong(self, v))
