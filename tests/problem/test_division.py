"""A problem can be divided among mini-batches and processes if it is the average of its parts; otherwise refused."""

from dataclasses import dataclass, field

import pytest
import torch
from torch import nn

import ocp
from ocp.objective.processes import Serial
from ocp.problem.functions import pullback
from ocp.problem.layers import Dense
from ocp.training.networks import residual_network

D, SAMPLES, STEPS = torch.float64, 7, 4
X = torch.randn(SAMPLES, 2, generator=torch.Generator().manual_seed(0), dtype=D)
LABELS = torch.tensor([0, 1, 0, 0, 1, 1, 0])
WEIGHTS = torch.tensor([1.0, 9.0], dtype=D)
Y = X.flip(0)


@dataclass(frozen=True)
class Cost:
    """A terminal cost of a user, on the samples with some numbers."""

    function: object
    samples: torch.Tensor = field(default_factory=lambda: torch.arange(SAMPLES))

    def __call__(self, x, q):
        return self.function(x, self.samples)

    def derivative(self, x, q):
        return pullback(self, (x, q))

    def take(self, indices):
        return Cost(self.function, self.samples[indices])


def cross_entropy(x, k, **options):
    return nn.functional.cross_entropy(x, LABELS[k], **options)


def build(**changes):
    pieces = {"dynamics": Dense(2), "initial_state": X, "terminal_cost": lambda x: x.square().sum() / len(x)}
    return ocp.ControlProblem(**{**pieces, **changes})


@dataclass(frozen=True)
class Two(Serial):
    """The first of two processes; it asks nothing of the other."""

    size: int = 2


WAYS = {
    "batches": {"batches": ocp.Batches(3), "method": ocp.TorchOptimizer(torch.optim.Adam)},
    "processes": {"processes": Two(), "method": ocp.LBFGS()},
}
each_way = pytest.mark.parametrize("way", WAYS.values(), ids=WAYS.keys())


def run(problem, way):
    return ocp.minimize(problem, STEPS, stop=ocp.Stop(max_iterations=1), **way)


GOOD = {
    "mean": {},
    "a class of a user": {"terminal_cost": Cost(cross_entropy)},
    "smoothed labels": {"terminal_cost": Cost(lambda x, k: cross_entropy(x, k, label_smoothing=0.1))},
    "weights over the number of samples": {
        "terminal_cost": Cost(lambda x, k: cross_entropy(x, k, weight=WEIGHTS, reduction="sum") / len(x))
    },
    "running cost": {"running_cost": lambda t, x, u: x.square().mean() + u.square().sum()},
    "running target": {"running_cost": ocp.QuadraticRunning(target=Y)},
    "control cost": {"control_cost": ocp.Tikhonov(0.1)},
    "one for all": {"terminal_cost": lambda x: (x - Y[:1]).square().mean()},
    "cancellation": {"initial_state": 1e6 * (X - X.mean(0)), "terminal_cost": lambda x: x.mean()},
    "single precision": {"initial_state": X.float(), "terminal_cost": ocp.CrossEntropy(LABELS)},
    "not finite": {"terminal_cost": lambda x: torch.log(x).mean()},
}


@each_way
@pytest.mark.parametrize("changes", GOOD.values(), ids=GOOD.keys())
def test_averages_are_divided(changes, way):
    if "processes" in way:
        problem = build(**changes)
        ocp.discretize(problem, STEPS).discretization.check_division()
    else:
        run(build(**changes), way)


AVERAGE = "terminal_cost: expected an average over the samples, as mini-batches and processes require"
REFUSED = {
    "sum": ({"terminal_cost": lambda x: x.square().sum()}, AVERAGE),
    "maximum": ({"terminal_cost": lambda x: x.square().sum(1).max()}, AVERAGE),
    "maximum of equal states": ({"initial_state": torch.ones(SAMPLES, 2), "terminal_cost": lambda x: x.max()}, AVERAGE),
    "maximum of many in single precision": (
        {
            "initial_state": torch.linspace(-1, 1, 10000).view(5000, 2).sin(),
            "terminal_cost": lambda x: x.square().sum(1).max(),
        },
        AVERAGE,
    ),
    "median": ({"terminal_cost": lambda x: x[:, 0].square().median()}, AVERAGE),
    "root of a mean": ({"terminal_cost": lambda x: x.square().mean().sqrt()}, AVERAGE),
    "weighted mean": ({"terminal_cost": Cost(lambda x, k: cross_entropy(x, k, weight=WEIGHTS))}, AVERAGE),
    "weighted mean at zero": (
        {"initial_state": 0 * X, "terminal_cost": Cost(lambda x, k: cross_entropy(x, k, weight=WEIGHTS))},
        AVERAGE,
    ),
    "first targets": ({"terminal_cost": lambda x: (x - Y[: len(x)]).square().sum() / len(x)}, AVERAGE),
    "take without effect": (
        {"running_cost": lambda t, x, u: (x - Y[: len(x)]).square().sum() / len(x)},
        "running_cost: expected an average over the samples",
    ),
    "targets": (
        {"terminal_cost": lambda x: (x - Y).square().sum() / len(x)},
        r"terminal_cost: expected one that works on \d of 7 samples, .* method take\(indices\)",
    ),
    "running sum": (
        {"running_cost": lambda t, x, u: x.square().sum()},
        "running_cost: expected an average over the samples",
    ),
    "numbers for each sample": (
        {"dynamics": lambda t, x, u: u - LABELS[:, None] * x, "control_size": 2},
        r"dynamics: expected (one that works on|shape .* for) \d of 7 samples",
    ),
    "coupled samples": (
        {"dynamics": lambda t, x, u: u - x.mean(0), "control_size": 2},
        "dynamics: expected .* (samples that do not depend on each other|shape)",
    ),
    "coupled and of the right shape": (
        {"dynamics": lambda t, x, u: u - (x - x.mean(0)), "control_size": 2},
        "dynamics: expected samples that do not depend on each other",
    ),
}


@each_way
@pytest.mark.parametrize(("changes", "message"), REFUSED.values(), ids=REFUSED.keys())
def test_what_is_no_average_of_its_parts_is_refused(changes, message, way):
    with pytest.raises(ValueError, match=message):
        run(build(**changes), way)


@each_way
def test_modules_that_compare_samples_are_refused(way):
    class Centered(nn.Module):
        def forward(self, x):
            return x - x.mean(0)

    linear, y = nn.Linear(2, 2).double(), ocp.LeastSquares(Y)
    for parts, message in (
        ((linear, Centered()), "initial_state: expected samples that do not depend on each other"),
        ((nn.Sequential(linear, Centered()),), "dynamics: expected samples that do not depend on each other"),
        ((linear, None, Centered()), AVERAGE),
    ):
        with pytest.raises(ValueError, match=message):
            run(residual_network(X, y, *parts), way)


def test_one_sample_has_no_parts():
    problem = build(initial_state=X[:1], terminal_cost=lambda x: x.square().sum())
    assert run(problem, {**WAYS["batches"], "batches": ocp.Batches(1)}).history


def test_a_weighted_mean_divided_all_the_same_would_have_another_gradient():
    """The reason for the refusal: the mean of the gradients of all mini-batches is not the gradient of the whole."""
    objective = ocp.discretize(build(terminal_cost=Cost(lambda x, k: cross_entropy(x, k, weight=WEIGHTS))), STEPS)
    u = torch.randn(objective.space.dimension, generator=torch.Generator().manual_seed(1), dtype=D)
    parts = torch.arange(SAMPLES).split(3)
    mean = sum(len(part) / SAMPLES * objective.take(part).derivative(u) for part in parts)
    assert (mean - objective.derivative(u)).norm() > 0.1 * mean.norm()
