"""The reduced objective: exact derivatives, counted work, reused storage, coherent shifts."""

from collections.abc import Callable
from dataclasses import dataclass, field, replace
from itertools import pairwise
from math import inf
from typing import Any

import numpy as np
import pytest
import scipy.optimize
import torch
from torch import nn

from ocp.adjoint.discretization import Discretization
from ocp.integrators.integrator import INTEGRATORS
from ocp.objective.reduced import ReducedObjective, discretize
from ocp.objective.shifted import ShiftedObjective
from ocp.problem.control_problem import ControlProblem
from ocp.problem.costs import CrossEntropy, LeastSquares, QuadraticRunning, Readout, Tikhonov, TimeSmoothness
from ocp.problem.dynamics import FunctionDynamics
from ocp.problem.initial_state import Opening
from ocp.problem.layers import Dense
from ocp.problem.modules import FlatModule
from ocp.space.control import Control, ControlSpace
from ocp.space.grid import TimeGrid
from ocp.space.transfer import CONSTANT, LINEAR, Transfer
from ocp.training.networks import residual_network

STEPS, HORIZON = 4, 0.8
LABELS = torch.tensor([0, 1, 1, 0, 1])


@dataclass(frozen=True)
class Cost:
    """Costs of a problem together with their definitions."""

    pieces: dict[str, Any]
    terminal: Callable = lambda x, q: 0.0
    running: Callable = lambda t, x, u: 0.0
    control: Callable = lambda U, q, h: 0.0
    parameter_size: int = field(default=0)


def zero_start(m, s, horizon, dtype=torch.float64):
    """A control that tells a problem without states of its own in which precision to compute."""
    return Control(ControlSpace(TimeGrid(horizon, 1), m, s), torch.zeros(m + s, dtype=dtype))


def negative_log_likelihood(x):
    return (torch.logsumexp(x, dim=1) - x[range(5), LABELS.tolist()]).mean()


def half_square(x, weight=1.0):
    return 0.5 * weight * (x - 0.3).pow(2).sum() / 5


def least_squares(shape, **options):
    return LeastSquares(torch.full((5, *shape), 0.3, dtype=torch.float64), **options)


class Lazy:
    """Dynamics that call a function for each value and each derivative, the control being of no effect."""

    control_size = 1

    def __init__(self, function):
        self.function = function

    def __call__(self, t, x, u):
        return self.function(t, x, u)

    def vjp(self, t, x, u, p):
        self.function(t, x, u)
        return 0.5 * p, torch.zeros_like(u)

    def jvp(self, t, x, u, dx, du):
        return 0.5 * dx


def logits(x, q):
    n = x[0].numel()
    return x.flatten(1) @ q[: 2 * n].reshape(2, n).T + q[2 * n :]


def with_terminal(state):
    return Cost({"terminal_cost": least_squares(state, weight=2.0)}, lambda x, q: half_square(x, 2.0))


def with_readout(cost, definition):
    def build(state):
        n = torch.Size(state).numel()
        module = FlatModule(nn.Sequential(nn.Flatten(), nn.Linear(n, 2)))
        return Cost(
            {"terminal_cost": Readout(module, cost)}, lambda x, q: definition(logits(x, q)), parameter_size=2 * n + 2
        )

    return build


def with_quadratic_running(state):
    def running(t, x, u):
        return 0.5 * (0.4 * (x - 0.3).pow(2).sum() / 5 + 0.6 * u.pow(2).sum())

    return Cost({"running_cost": QuadraticRunning(0.4, 0.6, target=0.3)}, running=running)


def with_running_function(state):
    def running(t, x, u):
        return (1 + t) * x.pow(3).mean() + x.mean() * u.sum() + u.pow(4).sum()

    return Cost({"running_cost": running}, running=running)


def with_tikhonov(state):
    return Cost({"control_cost": Tikhonov(0.3)}, control=lambda U, q, h: 0.15 * (h * U.pow(2).sum() + q.pow(2).sum()))


def with_time_smoothness(state):
    return Cost({"control_cost": TimeSmoothness(0.3)}, control=lambda U, q, h: 0.15 * (U[1:] - U[:-1]).pow(2).sum() / h)


def with_everything(state):
    parts = [with_running_function(state), with_readout(least_squares((2,)), half_square)(state)]
    parts += [with_tikhonov(state), with_time_smoothness(state)]
    return Cost(
        {**parts[0].pieces, **parts[1].pieces, "control_cost": (Tikhonov(0.3), TimeSmoothness(0.3))},
        terminal=parts[1].terminal,
        running=parts[0].running,
        control=lambda U, q, h: parts[2].control(U, q, h) + parts[3].control(U, q, h),
        parameter_size=parts[1].parameter_size,
    )


COSTS = {
    "least squares": with_terminal,
    "least squares after a readout": with_readout(least_squares((2,)), half_square),
    "cross-entropy after a readout": with_readout(CrossEntropy(LABELS), negative_log_likelihood),
    "quadratic running": with_quadratic_running,
    "running function": with_running_function,
    "Tikhonov": with_tikhonov,
    "time-smoothness": with_time_smoothness,
    "everything": with_everything,
}


@pytest.fixture
def definition(rollout):
    """J(U, q) of its definition, which autograd can differentiate."""

    def J(case, cost, scheme, x, flat):
        m = case.dynamics.control_size
        U, q = flat[: STEPS * m].reshape(STEPS, m), flat[STEPS * m :]
        states, running = rollout(scheme, case.definition, x(q) if callable(x) else x, U, HORIZON, cost.running)
        return running + cost.terminal(states[-1], q) + cost.control(U, q, HORIZON / STEPS) + 0 * flat.sum()

    return J


@pytest.fixture
def agree(definition, rand):
    """Value, derivative and Hessian agree with autograd through the definition to rounding errors."""

    def check(case, cost, scheme, x, given=None, parameters=0):
        s = cost.parameter_size + parameters
        problem = ControlProblem(
            case.dynamics,
            x if given is None else given,
            horizon=HORIZON,
            parameters=s,
            start=zero_start(case.dynamics.control_size, s, HORIZON),
            **cost.pieces,
        )
        # Not by discretize, which keeps Verlet to separable dynamics: its derivatives are right for all.
        objective = ReducedObjective(Discretization(problem, TimeGrid(HORIZON, STEPS), INTEGRATORS[scheme]))
        u = 0.5 * rand(objective.space.dimension)
        leaf = u.clone().requires_grad_()
        value = definition(case, cost, scheme, x, leaf)
        (slope,) = torch.autograd.grad(value, leaf, create_graph=True)
        d, expected = rand(*u.shape), slope.detach()
        (product,) = torch.autograd.grad(slope @ d + 0 * leaf.sum(), leaf)
        assert objective.value(u) == pytest.approx(float(value.detach()), rel=1e-12)
        assert float((objective.derivative(u) - expected).norm()) <= 1e-12 * float(expected.norm())
        size = float(product.norm() + 0.1 * expected.norm())
        assert float((objective.hessian_product(u, d) - product).norm()) <= 1e-11 * size

    return check


@pytest.mark.cover(1)
def test_the_derivatives_are_those_of_autograd_through_the_definition(case, scheme, agree, rand):
    agree(case, with_everything(case.state), scheme, rand(5, *case.state))


@pytest.mark.parametrize("cost", COSTS.values(), ids=COSTS.keys())
@pytest.mark.parametrize("case", ["dense tanh", "convolution tanh", "function", "module"], indirect=True)
@pytest.mark.parametrize("scheme", ["euler", "rk4", "crank_nicolson"])
@pytest.mark.cover(2)
def test_the_derivatives_of_each_cost_are_those_of_autograd_through_the_definition(case, cost, scheme, agree, rand):
    agree(case, cost(case.state), scheme, rand(5, *case.state))


@pytest.mark.cover(1)
def test_the_derivatives_of_the_cross_entropy_of_the_state_are_those_of_autograd(vector_case, scheme, agree, rand):
    cost = Cost({"terminal_cost": CrossEntropy(LABELS)}, lambda x, q: negative_log_likelihood(x))
    agree(vector_case, cost, scheme, rand(5, *vector_case.state))


@pytest.mark.cover(1)
def test_the_derivatives_by_the_parameters_of_an_initial_state_are_those_of_autograd(vector_case, scheme, agree, rand):
    x = rand(5, *vector_case.state)
    agree(vector_case, with_terminal(vector_case.state), scheme, lambda q: x * q[0] + torch.sin(q[1]), parameters=2)


@pytest.mark.cover(1)
def test_the_derivatives_by_the_parameters_of_an_opening_are_those_of_autograd(case, scheme, agree, rand):
    inputs, n = rand(5, *case.state), case.state[-1]
    opening = Opening(FlatModule(nn.Sequential(nn.Linear(n, n, bias=False), nn.Tanh())), inputs)

    def x0(q):
        return torch.tanh(inputs @ q[: n * n].reshape(n, n).T)

    agree(case, with_terminal(case.state), scheme, x0, given=opening, parameters=n * n)


def network(rand, dtype=torch.float64):
    """A small network with every kind of cost and with parameters at both ends."""
    first, last = FlatModule(nn.Linear(2, 3)), FlatModule(nn.Linear(3, 2), offset=9)
    return ControlProblem(
        Dense(3),
        Opening(first, rand(5, 2).to(dtype)),
        Readout(last, CrossEntropy(LABELS)),
        QuadraticRunning(0.1, 0.2),
        (Tikhonov(1e-2), TimeSmoothness(1e-2)),
        parameters=first.size + last.size,
        start=zero_start(12, first.size + last.size, 1.0, dtype),
    )


class First:
    """A piece without its second derivative."""

    def __init__(self, piece):
        self.piece = piece

    def __call__(self, *arguments):
        return self.piece(*arguments)

    def __getattr__(self, name):
        if name in ("hvp", "pullback_tangent", "__setstate__"):
            raise AttributeError(name)
        return getattr(self.piece, name)


@pytest.fixture
def objective(rand):
    return discretize(network(rand), steps=12, integrator="heun")


@pytest.fixture
def u(objective, rand):
    return 0.5 * rand(objective.space.dimension)


def test_a_directional_derivative_is_the_pairing_with_the_derivative(objective, u, rand):
    direction = rand(*u.shape)
    pairing = float(objective.derivative(u) @ direction)
    assert objective.directional(u, direction) == pytest.approx(pairing, rel=1e-12)


def test_the_hessian_is_symmetric(objective, u, rand):
    a, b = rand(*u.shape), rand(*u.shape)
    left, right = (float(v @ objective.hessian_product(u, w)) for v, w in ((a, b), (b, a)))
    assert left == pytest.approx(right, rel=1e-10)


def test_the_hessian_of_a_shifted_objective_is_that_of_its_base(objective, u, rand):
    shifted, d = ShiftedObjective(objective, u, rand(*u.shape)), rand(*u.shape)
    assert torch.equal(shifted.at(u + 0.1).hessian_product(d), objective.hessian_product(u + 0.1, d))


@pytest.mark.parametrize(
    ("pieces", "message"),
    [
        ({"dynamics": First(Dense(3))}, "dynamics: expected a method hvp for second derivatives, got First"),
        ({"running_cost": First(QuadraticRunning())}, "running_cost: expected a method hvp .*, got First"),
        ({"terminal_cost": First(QuadraticRunning())}, "terminal_cost: expected a method hvp .*, got First"),
        (
            {"terminal_cost": Readout(FlatModule(nn.Linear(3, 2), offset=9), First(CrossEntropy(LABELS)))},
            r"terminal_cost.cost: expected a method hvp .*, got First",
        ),
        ({"control_cost": (Tikhonov(1.0), First(Tikhonov(1.0)))}, "control_cost: expected a method hvp .*, got First"),
        ({"initial_state": First(network(torch.randn).initial_state)}, "initial_state: .* hvp .*, got First"),
    ],
    ids=lambda value: "" if isinstance(value, str) else next(iter(value)),
)
def test_a_piece_without_second_derivative_is_named_when_a_second_derivative_is_asked_for(pieces, message, rand):
    problem = replace(network(rand), **pieces)
    objective = ReducedObjective(Discretization(problem, TimeGrid(1.0, 12), INTEGRATORS["euler"]))
    u = rand(objective.space.dimension)
    with pytest.raises(ValueError, match=message):
        objective.hessian_product(u, u)


def test_an_integrator_without_second_derivative_is_named(objective, u):
    integrator = First(INTEGRATORS["euler"])
    objective = ReducedObjective(replace(objective.discretization, integrator=integrator))
    with pytest.raises(ValueError, match=r"integrator: expected a method pullback_tangent .*, got First"):
        objective.hessian_product(u, u)


def test_a_control_and_its_flat_tensor_give_the_same(objective, u):
    control = Control(objective.space, u)
    assert objective.value(control) == objective.value(u)
    assert torch.equal(objective.derivative(control), objective.derivative(u))
    assert torch.equal(objective.hessian_product(control, control), objective.hessian_product(u, u))


def test_evaluations_leave_control_and_problem_unchanged(rand, unchanged):
    problem = ControlProblem(Dense(3), rand(5, 3), LeastSquares(rand(5, 3)), QuadraticRunning(target=rand(5, 3)))
    objective = discretize(problem, 4, "rk4")
    u, direction = rand(48), rand(48)
    with unchanged(u, direction, problem.initial_state.x, problem.terminal_cost.target, problem.running_cost.target):
        objective.value(u)
        objective.derivative(u)
        objective.directional(u, direction)
        objective.hessian_product(u, direction)
        objective.final_state(u)
        objective.trajectory(u)


def test_a_parameter_with_gradient_is_taken_as_a_plain_number_and_gets_none(objective, u):
    parameter = nn.Parameter(u.clone())
    derivative = objective.derivative(parameter)
    assert torch.equal(derivative, objective.derivative(u))
    assert not derivative.requires_grad
    assert parameter.grad is None


def test_single_precision_works_and_stays_single():
    def objective(dtype):
        return discretize(network(lambda *shape: torch.linspace(-1, 1, 10).view(shape), dtype), 12, "rk4")

    single, double = objective(torch.float32), objective(torch.float64)
    u = torch.linspace(-1, 1, single.space.dimension)
    derivative = single.derivative(u)
    assert single.hessian_product(u, u).dtype == torch.float32
    assert derivative.dtype == single.final_state(u).dtype == single.trajectory(u).p.dtype == torch.float32
    assert single.value(u) == pytest.approx(double.value(u.double()), rel=1e-5)
    torch.testing.assert_close(derivative.double(), double.derivative(u.double()), rtol=1e-4, atol=1e-5)


def test_an_evaluation_in_double_precision_is_not_spoiled_by_one_in_single_before_it(rand):
    problem = ControlProblem(lambda t, x, u: u - x, rand(5, 3), lambda x: x.square().sum(), control_size=3)
    objective, u = discretize(problem, steps=2), rand(6)
    expected = objective.uncounted().value(u)
    objective.value(u.float())
    assert objective.value(u) == expected


def test_changing_a_returned_derivative_does_not_change_the_next_one(objective, u):
    expected = objective.derivative(u).clone()
    objective.derivative(u).zero_()
    assert torch.equal(objective.derivative(u), expected)


@pytest.mark.parametrize("write", [lambda g: g.numpy().fill(7.0), lambda g: np.multiply(g, 2, out=np.asarray(g))])
def test_what_numpy_writes_to_a_returned_derivative_does_not_change_the_next_one(objective, u, write):
    expected = objective.derivative(u).clone()
    for _ in range(2):
        write(objective.derivative(u))
        assert torch.equal(objective.derivative(u), expected)


@pytest.mark.parametrize("call", ["value", "derivative"])
@pytest.mark.parametrize("change", [lambda x: x.fill(0.3), lambda x: np.random.default_rng(0).shuffle(x)])
def test_what_numpy_writes_to_a_control_is_noticed(objective, u, change, call):
    numbers = u.numpy().copy()
    shared = torch.from_numpy(numbers)
    getattr(objective, call)(shared)
    change(numbers)
    expected = getattr(objective.uncounted(), call)(torch.tensor(numbers))
    assert torch.equal(torch.as_tensor(getattr(objective, call)(shared)), torch.as_tensor(expected))


@pytest.mark.parametrize("change", [lambda x: x.fill(0.3), lambda x: np.random.default_rng(0).shuffle(x)])
def test_an_evaluation_is_that_of_the_control_it_was_made_for_whatever_numpy_writes_later(objective, u, change):
    value, derivative = objective.uncounted().value_and_derivative(u)
    numbers = u.numpy().copy()
    points = [objective.at(torch.from_numpy(numbers)), objective.at(numbers)]
    assert points[0].value == value
    change(numbers)
    for point in points:
        assert point.value == value
        assert torch.equal(point.derivative, derivative)


@pytest.mark.parametrize("asked", [[], ["value"]])
def test_a_control_that_is_written_to_while_its_evaluation_is_in_use_is_refused(objective, u, asked):
    point = objective.at(u)
    for name in asked:
        getattr(point, name)
    u.add_(0.1)
    with pytest.raises(ValueError, match="control: expected it not to be written to while its evaluation is in use"):
        _ = point.derivative


@pytest.mark.parametrize("dtype", [np.float64, np.float32])
def test_numpy_arrays_are_accepted_and_returned(objective, u, dtype):
    array = u.numpy().astype(dtype)
    value, derivative = objective.value_and_derivative(array)
    expected = objective.value_and_derivative(torch.tensor(array, dtype=torch.float64))
    assert value == objective.value(array) == expected[0]
    assert type(derivative) is np.ndarray
    assert derivative.dtype == dtype
    np.testing.assert_array_equal(derivative, expected[1].numpy().astype(dtype))
    np.testing.assert_array_equal(objective.derivative(array), derivative)


def test_scipy_minimizes_without_a_wrapper(objective, u):
    found = scipy.optimize.minimize(objective.value_and_derivative, u.numpy(), jac=True, method="L-BFGS-B")
    assert found.success
    assert float(objective.derivative(found.x).max()) < 1e-4


def test_a_control_and_a_direction_may_have_gaps_in_memory(rand):
    block = nn.Sequential(nn.Linear(3, 3), nn.BatchNorm1d(3)).double().eval()
    objective = discretize(residual_network(rand(5, 3), LeastSquares(rand(5, 3)), block), 4)
    u, d = rand(2, objective.space.dimension)
    spread = lambda a: torch.stack((a, a + 1), dim=1)[:, 0]  # noqa: E731
    assert torch.equal(objective.derivative(spread(u)), objective.derivative(u))
    assert torch.equal(objective.hessian_product(spread(u), spread(d)), objective.hessian_product(u, d))
    assert objective.directional(spread(u), spread(d)) == objective.directional(u, d)
    assert torch.equal(objective.at(u).hessian_product(spread(d)), objective.hessian_product(u, d))


def test_values_and_derivatives_of_layers_work_in_inference_mode():
    problem = ControlProblem(Dense(2), torch.ones(3, 2), LeastSquares(torch.zeros(3, 2)))
    objective, u = discretize(problem, 4), torch.ones(24)
    expected = objective.uncounted().derivative(u)
    with torch.inference_mode():
        assert torch.equal(objective.derivative(torch.ones(24)), expected)


@pytest.mark.parametrize("wrong", [np.zeros(26, dtype=int), [0.0] * 26, torch.zeros(26, dtype=torch.int64), None])
def test_anything_but_a_control_is_refused(objective, wrong):
    with pytest.raises(TypeError, match="control: expected a Control, or a flat tensor or array of real numbers, got"):
        objective.value(wrong)


def test_an_evaluation_keeps_what_it_has_computed(objective, u):
    point = objective.at(u)
    assert point.derivative is point.derivative
    assert point.value == point.value
    objective.value(u + 0.1)
    assert point.derivative is point.derivative
    assert objective.work.units == pytest.approx(1.0 + 1 / 3)


@pytest.mark.parametrize(("late", "call"), [(0, "value"), (1, "derivative")])
def test_a_problem_that_writes_to_the_control_is_refused(rand, late, call):
    calls: list[float] = []
    armed = False  # not while the pieces are inspected

    def f(t, x, u):
        if armed and t > 0:
            calls.append(t)
            with torch.no_grad():
                u.add_(len(calls) > 3 * late)
        return x * 0.5

    objective = discretize(ControlProblem(Lazy(f), torch.ones(1, 1), lambda x: x.sum()), steps=4)
    armed = True
    with pytest.raises(ValueError, match="not to be written to by the functions of the problem, got it changed"):
        getattr(objective, call)(torch.zeros(4))


@pytest.mark.parametrize(
    ("asked", "units"),
    [
        (["value"], 1 / 3),
        (["derivative"], 1.0),
        (["value", "derivative"], 1.0),
        (["derivative", "value"], 1.0),
        (["value", "value"], 1 / 3),
        (["derivative", "derivative"], 1.0),
        (["derivative", "final_state", "states"], 1.0),
    ],
    ids=lambda value: ", ".join(value) if isinstance(value, list) else "",
)
def test_an_evaluation_sweeps_forward_for_one_third_of_a_gradient_and_repeats_nothing(objective, u, asked, units):
    point = objective.at(u)
    assert [getattr(point, name) is not None for name in asked] == [True] * len(asked)
    assert objective.work.units == pytest.approx(units, rel=1e-15)


@pytest.mark.parametrize(
    ("call", "units"), [("value", 1 / 3), ("derivative", 1.0), ("value_and_derivative", 1.0), ("trajectory", 1.0)]
)
def test_plain_functions_compute_at_each_call(objective, u, call, units):
    for _ in range(2):
        getattr(objective, call)(u)
    assert objective.work.units == pytest.approx(2 * units, rel=1e-15)


def test_a_tangent_sweep_costs_as_much_as_an_adjoint_sweep(objective, u):
    objective.directional(u, torch.ones_like(u))
    assert objective.work.units == pytest.approx(1.0)


def test_a_hessian_product_costs_two_gradients_in_addition_to_the_states(objective, u, rand):
    point = objective.at(u)
    _ = point.derivative
    point.hessian_product(rand(*u.shape))
    assert objective.work.units == pytest.approx(3.0)
    objective.hessian_product(u + 0.1, u)
    assert objective.work.units == pytest.approx(3.0 + 1 / 3 + 2.0)


def test_a_hessian_product_leaves_derivative_and_states_of_its_control(objective, u, rand):
    expected, point = objective.uncounted().derivative(u), objective.at(u)
    point.hessian_product(rand(*u.shape))
    assert torch.equal(point.derivative, expected)


def test_the_derivative_of_an_earlier_evaluation_needs_its_states_again(objective, u):
    expected, point = objective.uncounted().derivative(u), objective.at(u)
    assert point.value != objective.value(u + 0.1)
    assert torch.equal(point.derivative, expected)
    assert objective.work.units == pytest.approx(2 / 3 + 1)


@pytest.mark.parametrize("steps", [3, 4, 6, 24])
def test_work_on_another_grid_is_proportional_to_its_steps(objective, steps, rand):
    other = objective.on(steps)
    other.derivative(rand(other.space.dimension))
    assert other.work is objective.work
    assert objective.work.units == pytest.approx(steps / 12)


@pytest.mark.parametrize("samples", [1, 3, 5])
def test_work_on_a_batch_is_proportional_to_its_samples(objective, u, samples):
    batch = objective.take(torch.arange(samples))
    batch.derivative(u)
    assert objective.work.units == pytest.approx(samples / 5)


def test_work_of_a_batch_on_a_coarse_grid_is_proportional_to_both(objective, rand):
    coarse = objective.take(torch.arange(2)).on(6)
    coarse.derivative(rand(coarse.space.dimension))
    assert coarse.final_state(rand(coarse.space.dimension)).shape == (2, 3)
    assert objective.work.units == pytest.approx((1 + 1 / 3) * 2 / 5 * 6 / 12)


def test_looking_without_being_charged_sees_the_same(objective, u):
    value = objective.uncounted().value(u)
    assert objective.work.units == 0.0
    assert objective.value(u) == value


@pytest.mark.parametrize(
    "change",
    [lambda u: u.add_(0.1), lambda u: u[-1].mul_(2.0), lambda u: u[:12].view(1, 12).zero_()],
    ids=["whole", "one number", "through a view"],
)
@pytest.mark.parametrize("call", ["value", "derivative", "final_state"])
def test_a_change_of_the_control_in_place_is_noticed(objective, u, change, call):
    getattr(objective, call)(u)
    change(u)
    expected = getattr(objective.uncounted(), call)(u.clone())
    torch.testing.assert_close(getattr(objective, call)(u), expected, rtol=0, atol=0)


def test_a_batch_of_equal_size_does_not_pass_for_another(objective, u):
    first, second = (objective.take(torch.tensor(k)) for k in ([0, 1], [2, 3]))
    expected = [part.uncounted().derivative(u) for part in (first, second)]
    first.value(u)
    second.value(u)
    assert torch.equal(first.derivative(u), expected[0])
    assert torch.equal(second.derivative(u), expected[1])


def test_batches_average_to_the_whole(rand):
    whole = discretize(ControlProblem(Dense(3), rand(4, 3), LeastSquares(rand(4, 3))), steps=3)
    u = rand(whole.space.dimension)
    parts = [whole.take(torch.tensor(k)).derivative(u) for k in ([0, 3], [1, 2])]
    torch.testing.assert_close((parts[0] + parts[1]) / 2, whole.derivative(u), rtol=1e-12, atol=1e-14)


def test_states_are_written_to_the_same_storage_at_every_call(rand):
    seen = []

    class Watched(FunctionDynamics):
        def __call__(self, t, x, u):
            seen.append(x.data_ptr())
            return u * x

        def vjp(self, t, x, u, p):
            return u * p, (x * p).sum(0)

    problem = ControlProblem(Watched(None, control_size=2), torch.ones(3, 2), lambda x: x.sum())
    objective = discretize(problem, steps=4)
    seen.clear()
    objective.value(torch.zeros(8))
    first = seen.copy()
    seen.clear()
    objective.value(torch.ones(8))
    assert len(set(first)) == 4
    assert seen == first


def test_a_trajectory_is_a_copy_that_later_evaluations_leave_alone(objective, u):
    trajectory = objective.trajectory(u)
    x, p = trajectory.x.clone(), trajectory.p.clone()
    objective.trajectory(u + 1.0)
    assert torch.equal(trajectory.x, x)
    assert torch.equal(trajectory.p, p)
    assert torch.equal(trajectory.x[-1], objective.final_state(u))
    assert trajectory.t.tolist() == pytest.approx(list(objective.space.grid.nodes))


def test_an_exception_within_a_sweep_leaves_no_half_written_states_behind(rand):
    fail = []

    def f(t, x, u):
        if fail and t > 0.4:
            raise KeyboardInterrupt
        return u * x

    objective = discretize(ControlProblem(f, torch.ones(1, 1), lambda x: x.sum(), control_size=1), steps=4)
    u, other = torch.full((4,), 0.5), torch.ones(4)
    expected = objective.uncounted().derivative(u)
    objective.value(u)
    fail.append(True)
    with pytest.raises(KeyboardInterrupt):
        objective.value(other)
    fail.clear()
    assert torch.equal(objective.derivative(u), expected)


def test_an_objective_on_a_grid_is_made_once(objective):
    assert objective.on(6) is objective.on(6)
    assert objective.on(6).on(12) is objective
    assert objective.on(6).space.grid.steps == 6


def levels(objective, interpolation, *steps):
    """Objectives on coarser grids, and the transfers between neighbors."""
    objectives = [objective, *(objective.on(n) for n in steps)]
    return objectives, [Transfer(fine.space, coarse.space, interpolation) for fine, coarse in pairwise(objectives)]


def relative(a, b):
    return float((a - b).norm() / b.norm())


@pytest.mark.parametrize("interpolation", [CONSTANT, LINEAR])
@pytest.mark.parametrize("steps", [6, 4, 1])
def test_the_shifted_objective_agrees_with_the_finer_one_to_first_order(objective, u, interpolation, steps, rand):
    (_, coarse), (transfer,) = levels(objective, interpolation, steps)
    origin, restricted = transfer.restrict(u), transfer.restrict_dual(objective.derivative(u))
    shifted = ShiftedObjective(coarse, origin, coarse.derivative(origin) - restricted)
    e = rand(*origin.shape)
    assert relative(shifted.at(origin).derivative, restricted) < 1e-12
    assert float(shifted.at(origin).derivative @ e) == pytest.approx(
        float(objective.derivative(u) @ transfer.prolong(e)), rel=1e-12
    )
    assert shifted.at(origin).value == coarse.value(origin)


@pytest.mark.parametrize("interpolation", [CONSTANT, LINEAR])
def test_on_three_levels_the_second_shift_acts_on_the_shifted_derivative(objective, u, interpolation, rand):
    (_, middle, coarse), (upper, lower) = levels(objective, interpolation, 6, 3)
    v = upper.restrict(u)
    first = ShiftedObjective(middle, v, middle.derivative(v) - upper.restrict_dual(objective.derivative(u)))
    v = v + 0.1 * rand(*v.shape)  # where smoothing on the middle level has gone
    w, base = lower.restrict(v), first.on(3)
    assert base is coarse
    second = ShiftedObjective(base, w, base.derivative(w) - lower.restrict_dual(first.at(v).derivative))
    e = rand(*w.shape)
    assert relative(second.at(w).derivative, lower.restrict_dual(first.at(v).derivative)) < 1e-12
    assert float(second.at(w).derivative @ e) == pytest.approx(
        float(first.at(v).derivative @ lower.prolong(e)), rel=1e-12
    )
    assert relative(lower.restrict_dual(first.at(v).derivative), lower.restrict_dual(middle.derivative(v))) > 1e-2


def test_the_shifted_value_is_the_base_minus_a_linear_term(objective, u, rand):
    origin, shift = rand(*u.shape), rand(*u.shape)
    shifted = ShiftedObjective(objective, origin, shift)
    expected = objective.value(u) - float(shift @ (u - origin))
    assert shifted.at(u).value == pytest.approx(expected, rel=1e-13)
    assert torch.equal(shifted.at(u).derivative, objective.derivative(u) - shift)
    assert shifted.space == objective.space
    assert shifted.work is objective.work


@pytest.mark.parametrize(("length", "inside"), [(0.999, True), (1.001, False)])
def test_outside_its_radius_the_shifted_objective_is_infinite_and_free(objective, u, rand, length, inside):
    shifted = ShiftedObjective(objective, u, torch.zeros_like(u), radius=2.0)
    e = rand(*u.shape)
    value = shifted.at(u + e * (2.0 * length / objective.space.norm(e))).value
    assert (value < inf) == inside
    assert (objective.work.units > 0) == inside


@pytest.fixture
def ball(objective, u):
    """A shifted objective of radius 2 around u."""
    return ShiftedObjective(objective, u, torch.zeros_like(u), radius=2.0)


@pytest.mark.parametrize("begin", [0.0, 1.0, 1.9, 2.5])
def test_the_longest_step_ends_at_the_boundary_and_is_zero_outside(ball, rand, begin):
    e, direction = rand(*ball.origin.shape), rand(*ball.origin.shape)
    control = ball.origin + e * (begin / ball.space.norm(e))
    limit = ball.step_limit(control, direction)
    end = control + limit * direction
    assert ball.space.norm(end - ball.origin) == pytest.approx(max(begin, 2.0), rel=1e-4)
    assert ball.at_boundary(end)
    assert (ball.at(end).value < inf) == (begin < 2.0)


def test_without_a_radius_or_a_direction_there_is_no_longest_step(objective, ball, u):
    free = ShiftedObjective(objective, u, torch.zeros_like(u))
    assert objective.step_limit(u, u) == free.step_limit(u, u) == ball.step_limit(u, torch.zeros_like(u)) == inf


@pytest.mark.parametrize(("length", "at"), [(0.0, False), (1.9, False), (2.0, True), (2.1, True)])
def test_the_boundary_is_where_the_radius_is_used_up(ball, rand, length, at):
    e = rand(*ball.origin.shape)
    assert ball.at_boundary(ball.origin + e * (length / ball.space.norm(e))) == at


@pytest.mark.parametrize(("length", "kept"), [(0.5, 0.5), (1.0, 1.0), (3.0, 2.0)])
def test_a_control_is_confined_to_the_radius(ball, u, rand, length, kept):
    e = rand(*u.shape)
    e *= length / ball.space.norm(e)
    confined = ball.confine(ball.at(u + e)).control
    assert ball.space.norm(confined - u) == pytest.approx(kept, rel=1e-5)
    torch.testing.assert_close(confined - u, e * (kept / length), rtol=1e-5, atol=1e-12)
    assert ball.at(confined).value < inf


@pytest.mark.parametrize("call", ["value", "derivative", "final_state", "trajectory"])
def test_a_control_of_another_length_is_refused(objective, call):
    with pytest.raises(ValueError, match=r"control: expected a flat tensor of 161 numbers .* got shape \(160,\)"):
        getattr(objective, call)(torch.zeros(160))


def test_anything_but_a_problem_is_refused():
    with pytest.raises(TypeError, match="problem: expected a ControlProblem, got dict"):
        discretize({}, steps=4)


@pytest.mark.parametrize(
    ("steps", "integrator", "message"),
    [
        (0, "euler", "steps: expected an integer >= 1, got 0"),
        (4, "leapfrog", "integrator: expected one of .* got 'leapfrog'"),
    ],
)
def test_a_grid_or_an_integrator_that_does_not_exist_is_refused(rand, steps, integrator, message):
    with pytest.raises(ValueError, match=message):
        discretize(network(rand), steps, integrator)


def test_pieces_that_do_not_fit_are_refused_before_any_solve():
    problem = ControlProblem(lambda t, x, u: x.sum(), torch.ones(3, 2), lambda x: x.sum(), control_size=1)
    with pytest.raises(ValueError, match=r"dynamics: expected f\(t, x, u\) of the shape of the state"):
        discretize(problem, steps=4)
