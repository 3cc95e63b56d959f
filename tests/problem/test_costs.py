"""Costs: values by hand, derivatives against autograd, adapters."""

from math import log

import pytest
import torch
from torch import nn

from ocp.problem.costs import (
    CrossEntropy,
    LeastSquares,
    PointByPoint,
    QuadraticRunning,
    Readout,
    RunningFunction,
    TerminalFunction,
    Tikhonov,
    TimeSmoothness,
    as_control_costs,
)
from ocp.problem.modules import FlatModule
from ocp.problem.protocols import Classifier
from ocp.space.control import ControlSpace
from ocp.space.grid import TimeGrid

LABELS = torch.tensor([0, 2, 1, 1, 0])
TARGET = torch.linspace(-1, 1, 15, dtype=torch.float64).view(5, 3)
LINEAR = FlatModule(nn.Linear(3, 3), offset=2)

TERMINAL = {
    "cross-entropy": CrossEntropy(LABELS),
    "least squares": LeastSquares(TARGET, weight=0.3),
    "function of the state": TerminalFunction(lambda x, *q: x.pow(3).sum()),
    "function of state and parameters": TerminalFunction(lambda x, q: (x @ q[:3]).square().sum() + q.sum()),
    "cross-entropy after a readout": Readout(LINEAR, CrossEntropy(LABELS)),
    "least squares after a readout": Readout(LINEAR, LeastSquares(TARGET)),
}
RUNNING = {
    "quadratic": QuadraticRunning(state_weight=0.5, control_weight=2.0, target=TARGET),
    "quadratic around a number": QuadraticRunning(target=0.5),
    "function": RunningFunction(lambda t, x, u: (t * x[:, 0] * u[0]).sum() + u.pow(4).sum()),
    "function of the state": RunningFunction(lambda t, x, u: x.square().sum()),
}
CONTROL = {"Tikhonov": Tikhonov(0.3), "time-smoothness": TimeSmoothness(0.7)}


def each(costs):
    return pytest.mark.parametrize("cost", costs.values(), ids=costs.keys())


def space_on(steps):
    return ControlSpace(TimeGrid(2.0, steps), control_size=2, parameter_size=3)


@each(TERMINAL)
def test_the_derivative_of_a_terminal_cost_agrees_with_autograd(cost, rand, unchanged):
    x, q = rand(5, 3).requires_grad_(), rand(16).requires_grad_()
    expected = torch.autograd.grad(cost(x, q) + 0 * q.sum(), (x, q))
    with unchanged(x, q), torch.no_grad():
        torch.testing.assert_close(cost.derivative(x, q), expected, rtol=1e-12, atol=1e-14)


@each(RUNNING)
def test_the_derivative_of_a_running_cost_agrees_with_autograd(cost, rand, unchanged):
    x, u = rand(5, 3).requires_grad_(), rand(4).requires_grad_()
    expected = torch.autograd.grad(cost(0.7, x, u) + 0 * u.sum(), (x, u))
    with unchanged(x, u), torch.no_grad():
        torch.testing.assert_close(cost.derivative(0.7, x, u), expected, rtol=1e-12, atol=1e-14)


@pytest.mark.parametrize("steps", [1, 2, 7])
@each(CONTROL)
def test_the_derivative_of_a_control_cost_agrees_with_autograd(cost, steps, rand, unchanged):
    space = space_on(steps)
    u = rand(space.dimension).requires_grad_()
    (expected,) = torch.autograd.grad(cost(space, u), u)
    with unchanged(u), torch.no_grad():
        torch.testing.assert_close(cost.derivative(space, u), expected, rtol=1e-12, atol=1e-14)


def hessian_applied(function, arguments, directions):
    """The Hessian of a scalar function by all of its arguments, from torch.func.hessian, applied to directions."""
    sizes, shapes = [a.numel() for a in arguments], [a.shape for a in arguments]

    def split(z):
        return [part.view(shape) for part, shape in zip(z.split(sizes), shapes, strict=True)]

    z, d = (torch.cat([a.detach().reshape(-1) for a in parts]) for parts in (arguments, directions))
    return tuple(split(torch.func.hessian(lambda z: function(*split(z)))(z) @ d))


@each(TERMINAL)
def test_the_hessian_of_a_terminal_cost_agrees_with_autograd(cost, rand, unchanged):
    x, q, dx, dq = rand(5, 3), rand(16), rand(5, 3), rand(16)
    with unchanged(x, q, dx, dq), torch.no_grad():
        found = cost.hvp(x, q, dx, dq)
    torch.testing.assert_close(found, hessian_applied(cost, (x, q), (dx, dq)), rtol=1e-12, atol=1e-13)


def test_the_hessian_of_a_nonlinear_readout_agrees_with_autograd(rand):
    module = FlatModule(nn.Sequential(nn.Linear(3, 4), nn.Tanh(), nn.Linear(4, 3)), offset=2)
    cost = Readout(module, CrossEntropy(LABELS))
    x, q, dx, dq = rand(5, 3), rand(36), rand(5, 3), rand(36)
    expected = hessian_applied(cost, (x, q), (dx, dq))
    torch.testing.assert_close(cost.hvp(x, q, dx, dq), expected, rtol=1e-12, atol=1e-13)


@each(RUNNING)
def test_the_hessian_of_a_running_cost_agrees_with_autograd(cost, rand, unchanged):
    x, u, dx, du = rand(5, 3), rand(4), rand(5, 3), rand(4)
    with unchanged(x, u, dx, du), torch.no_grad():
        found = cost.hvp(0.7, x, u, dx, du)
    expected = hessian_applied(lambda x, u: cost(0.7, x, u), (x, u), (dx, du))
    torch.testing.assert_close(found, expected, rtol=1e-12, atol=1e-14)


def test_compiled_functions_have_second_derivatives(rand):
    x, q, dx, dq = rand(5, 3), rand(4), rand(5, 3), rand(4)
    for cost in (TERMINAL["function of the state"], RUNNING["function"]):
        time = () if isinstance(cost, TerminalFunction) else (0.7,)
        compiled = type(cost)(torch.compile(cost.function, backend="aot_eager"))
        torch.testing.assert_close(compiled.derivative(*time, x, q), cost.derivative(*time, x, q))
        torch.testing.assert_close(compiled.hvp(*time, x, q, dx, dq), cost.hvp(*time, x, q, dx, dq))


@pytest.mark.parametrize("steps", [1, 2, 7])
@each(CONTROL)
def test_the_hessian_of_a_control_cost_agrees_with_autograd(cost, steps, rand, unchanged):
    space = space_on(steps)
    u, d = rand(space.dimension), rand(space.dimension)
    with unchanged(u, d), torch.no_grad():
        found = cost.hvp(space, u, d)
    (expected,) = hessian_applied(lambda u: cost(space, u), (u,), (d,))
    torch.testing.assert_close(found, expected, rtol=1e-12, atol=1e-14)


@pytest.mark.parametrize("classes", [2, 10])
def test_the_cross_entropy_of_equal_logits_is_the_logarithm_of_the_number_of_classes(classes):
    labels = torch.zeros(4, dtype=torch.int64)
    value = CrossEntropy(labels)(torch.zeros(4, classes, dtype=torch.float64), torch.zeros(0))
    assert float(value) == pytest.approx(log(classes), rel=1e-14)


def test_large_logits_leave_the_cross_entropy_finite():
    cost, x, q = CrossEntropy(torch.tensor([0, 1])), torch.tensor([[1e4, 0.0], [1e4, 0.0]]), torch.zeros(0)
    assert float(cost(x, q)) == 5e3
    assert torch.equal(cost.derivative(x, q)[0], torch.tensor([[0.0, 0.0], [0.5, -0.5]]))


def test_least_squares_is_half_the_weighted_mean_of_the_squared_distances():
    x = torch.tensor([[3.0, 4.0], [0.0, 0.0]])
    assert float(LeastSquares(torch.zeros(2, 2), weight=2.0)(x, torch.zeros(0))) == 12.5


def test_quadratic_running_weighs_state_and_control():
    cost = QuadraticRunning(state_weight=2.0, control_weight=6.0, target=1.0)
    assert float(cost(0.0, torch.tensor([[1.0, 3.0], [1.0, 1.0]]), torch.tensor([1.0, 2.0]))) == 2.0 + 15.0


@pytest.mark.parametrize("steps", [1, 4, 12])
def test_tikhonov_of_a_constant_control_is_the_same_on_every_grid(steps):
    u = torch.full((space_on(steps).dimension,), 2.0, dtype=torch.float64)
    assert float(Tikhonov(0.5)(space_on(steps), u)) == pytest.approx(0.25 * (2.0 * 2 * 4.0 + 3 * 4.0))


@pytest.mark.parametrize("steps", [2, 4, 12])
def test_time_smoothness_of_a_linear_path_is_its_squared_slope_times_the_time_between_midpoints(steps):
    space = space_on(steps)
    path = torch.tensor(space.grid.midpoints, dtype=torch.float64).unsqueeze(1) * torch.tensor([3.0, 0.0])
    u = space.join(path, torch.ones(3, dtype=torch.float64))
    assert float(TimeSmoothness(0.5)(space, u)) == pytest.approx(0.25 * 9.0 * (2.0 - space.grid.h), rel=1e-12)


@each({name: cost for name, cost in TERMINAL.items() if "readout" in name})
def test_a_readout_reads_no_parameters_but_its_own(cost, rand):
    x, q = rand(5, 3), rand(16)
    other = q.clone()
    other[:2], other[14:] = 7.0, 8.0
    assert float(cost(x, q)) == float(cost(x, other))
    assert torch.equal(cost.derivative(x, q)[1][[0, 1, 14, 15]], torch.zeros(4, dtype=torch.float64))


def test_accuracy_is_the_share_of_labels_with_the_largest_entry():
    x = torch.tensor([[2.0, 1.0], [0.0, 1.0], [5.0, 1.0], [0.0, 3.0]])
    cost = CrossEntropy(torch.tensor([0, 1, 1, 1]))
    swap = FlatModule(nn.Linear(2, 2, bias=False))
    assert cost.accuracy(x, torch.zeros(0)) == 0.75
    assert Readout(swap, cost).accuracy(x, torch.tensor([0.0, 1.0, 1.0, 0.0])) == 0.25


@pytest.mark.parametrize(("cost", "expected"), [(CrossEntropy(LABELS), True), (LeastSquares(TARGET), False)])
def test_a_readout_is_a_classifier_if_its_cost_is_one(cost, expected):
    readout = Readout(LINEAR, cost)
    for piece in (cost, readout, Readout(LINEAR, readout), readout.take(torch.tensor([0]))):
        assert isinstance(piece, Classifier) is expected


@each({name: cost for name, cost in TERMINAL.items() if "function" not in name})
def test_the_cost_on_some_samples_is_the_cost_of_those_samples(cost, rand):
    x, q = rand(5, 3), rand(16)
    parts = [float(cost.take(torch.tensor([k]))(x[k : k + 1], q)) for k in range(5)]
    assert sum(parts) / 5 == pytest.approx(float(cost(x, q)), rel=1e-13)
    indices = torch.tensor([3, 0])
    assert float(cost.take(indices)(x[indices], q)) == pytest.approx((parts[3] + parts[0]) / 2, rel=1e-13)


@pytest.mark.parametrize(
    ("labels", "got"),
    [
        (torch.tensor([0.0, 1.0]), r"shape \(2,\) of torch.float32"),
        (torch.tensor([[0], [1]]), r"shape \(2, 1\) of torch.int64"),
        (torch.tensor([0, -1]), r"shape \(2,\) of torch.int64"),
    ],
    ids=["float", "matrix", "negative"],
)
def test_labels_that_are_no_class_numbers_are_refused(labels, got):
    with pytest.raises(ValueError, match=rf"labels: expected a vector of class numbers >= 0 .* got {got}"):
        CrossEntropy(labels)


def test_a_running_target_of_each_sample_is_taken_with_its_sample(rand):
    x, u, indices = rand(5, 3), rand(4), torch.tensor([3, 0])
    part = QuadraticRunning(target=TARGET).take(indices)
    assert torch.equal(part(0.0, x[indices], u), QuadraticRunning(target=TARGET[indices])(0.0, x[indices], u))


@pytest.mark.parametrize(
    "target", [0.5, torch.tensor(0.5), TARGET[:1], TARGET[0]], ids=["number", "0-d", "row", "state"]
)
def test_a_running_target_of_all_samples_is_the_same_for_some(target, rand):
    x, u, indices = rand(5, 3), rand(4), torch.tensor([3, 0, 1])
    cost = QuadraticRunning(target=target)
    assert torch.equal(cost.take(indices)(0.0, x[indices], u), cost(0.0, x[indices], u))


@pytest.mark.parametrize("shape", [(5,), (1, 1), (5, 5)], ids=str)
def test_a_target_of_another_shape_than_the_state_is_refused_instead_of_broadcast(shape):
    x, q, cost = torch.ones(5, 1), torch.zeros(0), LeastSquares(torch.zeros(shape))
    with pytest.raises(ValueError, match="target: expected"):
        cost(x, q)


@pytest.mark.parametrize(
    ("given", "taken"),
    [
        (None, ()),
        (Tikhonov(1.0), (Tikhonov(1.0),)),
        ([Tikhonov(1.0), TimeSmoothness(2.0)], (Tikhonov(1.0), TimeSmoothness(2.0))),
    ],
    ids=["none", "one", "two"],
)
def test_control_costs_are_none_one_or_several(given, taken):
    assert as_control_costs(given) == taken


@pytest.mark.parametrize("cost", [*RUNNING.values(), PointByPoint(RUNNING["quadratic"])], ids=[*RUNNING, "one by one"])
def test_a_running_cost_along_many_points_is_that_at_each_of_them(cost, rand):
    t, x, u = torch.linspace(0, 1, 4).double(), rand(4, 5, 3), rand(4, 2)
    own = cost.cost if isinstance(cost, PointByPoint) else cost
    points = list(zip(t.tolist(), x, u, strict=True))
    torch.testing.assert_close(cost.along(t, x, u), torch.stack([own(*p) for p in points]), rtol=1e-13, atol=1e-13)
    expected = (torch.stack(parts) for parts in zip(*(own.derivative(*p) for p in points), strict=True))
    torch.testing.assert_close(cost.derivative_along(t, x, u), tuple(expected), rtol=1e-13, atol=1e-13)
