"""Data as people hand it over: the derivative is that of a plain loop over contiguous copies, or it is refused."""

import math

import numpy as np
import pytest
import torch
from torch import nn

import ocp
from ocp.problem.layers import SMOOTH_RELU, TANH, Antisymmetric, Convolution, Dense
from ocp.training.networks import residual_network

D, STEPS, SAMPLES = torch.float64, 4, 5
TABLEAUS = {"euler": ([[]], [1.0]), "rk4": ([[], [0.5], [0, 0.5], [0, 0, 1.0]], [1 / 6, 1 / 3, 1 / 3, 1 / 6])}


def numbers(*shape, dtype=D, seed=0):
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed), dtype=D).to(dtype)


def in_inference_mode(x):
    with torch.inference_mode():
        return x.clone()


def strided(x):
    wide = torch.zeros(2 * len(x), *x.shape[1:], dtype=x.dtype)
    wide[::2] = x
    return wide[::2]


#: From a contiguous tensor to one with the same numbers.
KINDS = {
    "inference": in_inference_mode,
    "requires grad": lambda x: x.clone().requires_grad_(),
    "result of a tape": lambda x: x.clone().requires_grad_() * 1.0,
    "transposed": lambda x: x.transpose(0, -1).contiguous().transpose(0, -1),
    "strided": strided,
    "parameter": nn.Parameter,
}
each_kind = pytest.mark.parametrize("kind", KINDS.values(), ids=KINDS.keys())


def test_kinds_keep_the_numbers_and_differ_from_plain_tensors():
    x = numbers(SAMPLES, 3)
    for kind in KINDS.values():
        y = kind(x)
        assert torch.equal(y, x)
        assert y.is_inference() or y.requires_grad or not y.is_contiguous()


def loop(f, x, u, cost, scheme):
    """Value and derivative of an explicit scheme by plain autograd."""
    (a, b), h = TABLEAUS[scheme], 1 / STEPS
    u = u.detach().clone().requires_grad_()
    for k in range(STEPS):
        slopes = []
        for row in a:
            slopes.append(f(0.0, x + h * sum((w * s for w, s in zip(row, slopes, strict=True)), torch.zeros(())), u[k]))
        x = x + h * sum(w * s for w, s in zip(b, slopes, strict=True))
    value = cost(x)
    return value.detach(), torch.autograd.grad(value, u)[0]


def wave(t, x, u):
    return torch.sin(x) * u[0] + u[1]


#: Dynamics, the same as a function of torch operations, the shape of a state, the size of a control.
DYNAMICS = {
    "function": (wave, wave, (3,), 2),
    "large function": (wave, wave, (40,), 2),
    "module": (nn.Linear(3, 3).double(), lambda t, x, u: x @ u[:9].view(3, 3).T + u[9:], (3,), 12),
    "dense": (Dense(3), lambda t, x, u: torch.tanh(x @ u[:9].view(3, 3).T + u[9:]), (3,), 12),
    "antisymmetric": (
        Dense(3, TANH, Antisymmetric(0.1)),
        lambda t, x, u: torch.tanh(
            x @ ((u[:9].view(3, 3).T - u[:9].view(3, 3)) / 2 - 0.05 * torch.eye(3, dtype=D)) + u[9:]
        ),
        (3,),
        12,
    ),
    "convolution": (
        Convolution(2, 3, SMOOTH_RELU),
        lambda t, x, u: SMOOTH_RELU.function(torch.conv2d(x, u[:-2].view(2, 2, 3, 3), u[-2:], padding=1)),
        (2, 4, 3),
        38,
    ),
}
each_dynamics = pytest.mark.parametrize("dynamics", DYNAMICS.values(), ids=DYNAMICS.keys())
SCHEDULES = {"all": ocp.StoreAll(), "binomial": ocp.Binomial(2)}


def channels_last(x):
    return x.to(memory_format=torch.channels_last) if x.ndim == 4 else KINDS["transposed"](x)


def expanded(x):
    return x[:1].expand_as(x)


@pytest.mark.cover(2)
@pytest.mark.parametrize("schedule", SCHEDULES.values(), ids=SCHEDULES.keys())
@pytest.mark.parametrize("scheme", TABLEAUS)
@pytest.mark.parametrize("kind", [*KINDS.values(), channels_last, expanded], ids=[*KINDS, "channels last", "expanded"])
@each_dynamics
def test_states_and_targets_of_every_kind_give_the_derivative_of_a_plain_loop(dynamics, kind, scheme, schedule):
    f, plain, shape, size = dynamics
    x, y, u = numbers(SAMPLES, *shape), numbers(SAMPLES, *shape, seed=1), 0.5 * numbers(STEPS, size, seed=2)
    given = kind(x)
    problem = ocp.ControlProblem(
        f, given, ocp.LeastSquares(kind(y)), ocp.QuadraticRunning(0.0, 0.0, kind(y)), control_size=size
    )
    before = given.clone().detach()
    value, derivative = ocp.discretize(problem, STEPS, scheme, schedule).value_and_derivative(u.flatten())
    target = kind(y).detach().clone()
    expected, slope = loop(
        plain, given.detach().clone().contiguous(), u, lambda z: (z - target).square().sum() / (2 * SAMPLES), scheme
    )
    assert value == pytest.approx(float(expected), rel=1e-12)
    torch.testing.assert_close(derivative.view_as(u), slope, rtol=1e-10, atol=1e-13)
    assert torch.equal(given, before)


@pytest.mark.parametrize("scheme", ["backward_euler", "crank_nicolson", "verlet"])
@pytest.mark.parametrize("kind", [*KINDS.values(), expanded], ids=[*KINDS, "expanded"])
def test_implicit_and_reversible_steps_see_the_numbers_alone(kind, scheme):
    x, u = numbers(SAMPLES, 4), numbers(STEPS, 2, seed=1).flatten()
    schedule = ocp.Reversible() if scheme == "verlet" else ocp.Binomial(2)

    def solve(x):
        problem = ocp.ControlProblem(
            lambda t, x, u: (
                torch.cat((x[:, 2:], -torch.sin(x[:, :2]) + u), dim=1) if scheme == "verlet" else u.sum() - x**3
            ),
            x,
            lambda z: z.square().sum(),
            control_size=2,
        )
        return ocp.discretize(problem, STEPS, scheme, schedule).value_and_derivative(u)

    (value, derivative), (expected, slope) = solve(kind(x)), solve(kind(x).detach().clone().contiguous())
    assert value == expected
    assert torch.equal(derivative, slope)


@each_kind
def test_inputs_of_an_opening_starts_and_bounds_may_be_of_every_kind(kind):
    torch.manual_seed(0)
    opening, block = nn.Linear(3, 3).double(), nn.Sequential(nn.Linear(3, 3), nn.Tanh()).double()
    x, y = numbers(SAMPLES, 3), numbers(SAMPLES, 3, seed=1)
    given = residual_network(kind(x), ocp.LeastSquares(kind(y)), block, opening)
    plain = residual_network(x, ocp.LeastSquares(y), block, opening)
    one, other = (ocp.discretize(problem, STEPS) for problem in (given, plain))
    u = other.discretization.start().flat
    assert one.value(u) == other.value(u)
    assert torch.equal(one.derivative(u), other.derivative(u))
    part = torch.tensor([3, 1])
    assert torch.equal(one.take(part).derivative(u), other.take(part).derivative(u))

    start, bound = numbers(STEPS, 2, seed=2), numbers(2, 2, seed=3)[0].abs()
    problem = ocp.ControlProblem(
        wave, x, ocp.LeastSquares(y), control_size=2, start=kind(start), bounds=(None, kind(bound))
    )
    started = ocp.discretize(problem, STEPS).discretization.start()
    assert torch.equal(started.path, torch.minimum(start, bound))
    assert not started.flat.requires_grad
    assert not started.flat.is_inference()


SCHEMES = ["euler", "rk4", "backward_euler", "crank_nicolson"]
OTHER_TYPES = [torch.float64, torch.int64, torch.bool]


@pytest.mark.parametrize("scheme", SCHEMES)
@pytest.mark.parametrize("dtype", OTHER_TYPES, ids=str)
def test_targets_of_another_type_give_what_converted_ones_give(dtype, scheme):
    y, z = ((0.1 + numbers(SAMPLES, 2, seed=k)).to(dtype) for k in (1, 2))

    def solve(y, z):
        running = ocp.QuadraticRunning(target=z)
        problem = ocp.ControlProblem(
            lambda t, x, u: u - x,
            numbers(SAMPLES, 2, dtype=torch.float32),
            ocp.LeastSquares(y),
            running,
            control_size=2,
        )
        objective = ocp.discretize(problem, STEPS, scheme)
        u = numbers(2 * STEPS, dtype=torch.float32, seed=3)
        return *objective.value_and_derivative(u), objective.hessian_product(u, u)

    given, expected = solve(y, z), solve(y.float(), z.float())
    assert given[0] == expected[0]
    for a, b in zip(given[1:], expected[1:], strict=True):
        assert a.dtype == torch.float32
        assert torch.equal(a, b)


@pytest.mark.parametrize("scheme", SCHEMES)
def test_a_function_with_a_target_from_numpy_works_with_single_precision(scheme):
    y = torch.from_numpy(np.linspace(0, 1, 10).reshape(SAMPLES, 2))

    def solve(y):
        problem = ocp.ControlProblem(
            lambda t, x, u: u - x,
            numbers(SAMPLES, 2, dtype=torch.float32),
            lambda x: (x - y).square().sum(),
            lambda t, x, u: (x - y).square().sum() + u.square().sum(),
            control_size=2,
        )
        return ocp.discretize(problem, STEPS, scheme).value_and_derivative(
            numbers(2 * STEPS, dtype=torch.float32, seed=3)
        )

    (value, derivative), (expected, slope) = solve(y), solve(y.float())
    assert value == pytest.approx(expected, rel=1e-6)
    torch.testing.assert_close(derivative, slope, rtol=1e-5, atol=1e-6)


def test_labels_numbers_and_targets_that_are_no_tensors_are_refused_with_the_way_to_make_one():
    for make in (
        lambda: ocp.LeastSquares(np.zeros((2, 2))),
        lambda: ocp.QuadraticRunning(target=[0.0, 1.0]),
        lambda: ocp.CrossEntropy(np.zeros(2)),
        lambda: ocp.ControlProblem(wave, np.ones((1, 2)), ocp.LeastSquares(torch.ones(1, 2)), control_size=2),
        lambda: ocp.ControlProblem(wave, torch.ones(1, 2), lambda x: x.sum(), control_size=2, start=np.ones((4, 2))),
    ):
        with pytest.raises(TypeError, match=r": expected .* got (ndarray|list); torch.as_tensor\(...\) makes it one"):
            make()
    with pytest.raises(ValueError, match="target: expected finite numbers, got 1 of 2"):
        ocp.LeastSquares(torch.tensor([[math.nan, 1.0]]))
    with pytest.raises(ValueError, match=r"target: expected real numbers, got torch\.complex64"):
        ocp.QuadraticRunning(target=torch.ones(2, dtype=torch.complex64))


@pytest.mark.parametrize("shape", [(5, 2), (1, 5), (1, 1), (2, 1), (3,), (1, 1, 2)], ids=str)
def test_a_running_target_that_would_broadcast_is_refused(shape):
    problem = ocp.ControlProblem(
        wave, torch.ones(2, 2), running_cost=ocp.QuadraticRunning(target=torch.zeros(shape)), control_size=2
    )
    with pytest.raises(
        ValueError, match=r"running_cost: expected a target that is a number or of shape \(1, 2\) or \(2, 2\)"
    ):
        ocp.discretize(problem, STEPS)


def test_labels_that_do_not_fit_the_samples_or_the_classes_are_refused():
    for labels, message in (
        ([0, 1, 1], "labels: expected one for each row"),
        ([0, 2], "terminal_cost: .* out of bounds"),
    ):
        problem = ocp.ControlProblem(wave, torch.ones(2, 2), ocp.CrossEntropy(torch.tensor(labels)), control_size=2)
        with pytest.raises(ValueError, match=message):
            ocp.discretize(problem, STEPS)


def test_a_start_of_one_number_per_step_may_be_a_vector():
    problem = ocp.ControlProblem(
        lambda t, x, u: u - x, torch.ones(1, 1), lambda x: x.sum(), control_size=1, start=torch.arange(4.0)
    )
    assert ocp.discretize(problem, 8).discretization.start().flat.tolist() == [0, 0, 1, 1, 2, 2, 3, 3]


def test_calls_in_inference_mode_give_the_same_numbers():
    x, y, u = numbers(SAMPLES, 2), numbers(SAMPLES, 2, seed=1), numbers(2 * STEPS, seed=2)

    def solve(copy=lambda x: x):
        problem = ocp.ControlProblem(
            lambda t, x, u: torch.sin(x) + u, copy(x), ocp.LeastSquares(copy(y)), control_size=2, start=copy(u)[:2]
        )
        objective = ocp.discretize(problem, STEPS)
        result = ocp.minimize(problem, STEPS, ocp.LBFGS(), stop=ocp.Stop(max_iterations=3))
        product = objective.hessian_product(copy(u), copy(u))
        slope = objective.directional(copy(u), copy(u))
        return objective, *objective.value_and_derivative(copy(u)), product, slope, result.control.flat

    objective, *expected = solve()
    with torch.inference_mode():
        other, *given = solve(torch.clone)
        assert torch.equal(objective.derivative(u.clone()), expected[1])
    assert all(torch.equal(torch.as_tensor(a), torch.as_tensor(b)) for a, b in zip(given, expected, strict=True))
    for either in (objective, other):  # also afterwards
        assert torch.equal(either.derivative(u), expected[1])


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"dynamics": lambda x, u, t: u - x}, r"dynamics: expected the arguments \(t, x, u\), got \(x, u, t\)"),
        (
            {"running_cost": lambda x, u, t: u.sum()},
            r"running_cost: expected the arguments \(t, x, u\), got \(x, u, t\)",
        ),
        (
            {"terminal_cost": lambda q, x: x.sum(), "parameters": 2},
            r"terminal_cost: expected the arguments \(x, q\), got \(q, x\)",
        ),
        ({"dynamics": lambda y, v, time: v - y}, r"dynamics: expected the arguments \(t, x, u\), got \(y, v, time\)"),
        ({"dynamics": lambda a, b, c: b - a[:, 0]}, "dynamics: expected f.* not subscriptable; t is a float"),
        ({"dynamics": lambda t, x, u: u - torch.sin(t) * x}, r"dynamics: expected f.* write math.sin\(t\)"),
        ({"dynamics": lambda t, x, u: u - t.sin() * x}, r"dynamics: expected f.* write math.sin\(t\)"),
        ({"dynamics": lambda t, x, u: x + u * x[len(x)]}, r"IndexError.*; the first index of x is that of the sample"),
        ({"dynamics": lambda t, x, u: torch.cat((t, x)) + u}, r"dynamics: expected f.* write math.sin\(t\)"),
        ({"running_cost": lambda t, x, u: torch.sin(t) * u.sum()}, r"running_cost: expected L.* write math.sin\(t\)"),
        ({"bounds": (lambda t: torch.sin(t), None)}, r"bounds: expected the lower one to take a time .* math.sin\(t\)"),
        ({"start": lambda t: torch.sin(t)}, r"start: expected it to take a time t, .* math.sin\(t\)"),
        ({"running_cost": lambda x, u: u.sum()}, r"running_cost: expected L\(t, x, u\) to take t, x .* takes 2 pos"),
        (
            {"terminal_cost": lambda x, q: x.sum()},
            r"parameters: expected some for terminal_cost, which takes 2 arguments \(x, q\), got none",
        ),
        (
            {"dynamics": lambda t, x, u, q: x},
            r"parameters: expected some for dynamics, which takes 4 arguments \(t, x, u, q\), got none",
        ),
        (
            {"initial_state": lambda q: torch.cat((torch.ones(1, 1), q.view(1, -1)), dim=1)},
            "parameters: expected some for an initial state that is a function",
        ),
    ],
)
def test_arguments_in_another_order_or_number_are_refused_where_they_are_met(changes, message):
    pieces = {
        "dynamics": wave,
        "initial_state": torch.ones(3, 2),
        "running_cost": lambda t, x, u: u.square().sum(),
        "control_size": 2,
    }
    with pytest.raises(ValueError, match=message):
        ocp.minimize(ocp.ControlProblem(**{**pieces, **changes}), STEPS)
