"""The continuous problem: what it takes, what it refuses."""

from math import inf, nan

import pytest
import torch
from torch import nn

from ocp.problem.control_problem import ControlProblem
from ocp.problem.costs import (
    CrossEntropy,
    LeastSquares,
    QuadraticRunning,
    Readout,
    RunningFunction,
    TerminalFunction,
    Tikhonov,
)
from ocp.problem.initial_state import FixedState, Opening, StateFunction
from ocp.problem.layers import Dense
from ocp.problem.modules import FlatModule
from ocp.problem.protocols import InitialState
from ocp.space.control import Control, ControlSpace
from ocp.space.grid import TimeGrid

INPUTS = torch.linspace(-1, 1, 10, dtype=torch.float64).view(5, 2)
INITIAL_STATES = {
    "fixed": FixedState(INPUTS),
    "function": StateFunction(lambda q: torch.outer(torch.sin(q[:5]), q[5:7])),
    "opening": Opening(FlatModule(nn.Sequential(nn.Linear(2, 2), nn.Tanh()), offset=1), INPUTS),
    "opening without parameters": Opening(FlatModule(nn.Identity()), INPUTS),
}
each_initial_state = pytest.mark.parametrize("start", INITIAL_STATES.values(), ids=INITIAL_STATES.keys())


def quadratic(x):
    return x.square().sum()


def build(**changes):
    """A problem, valid but for the changes."""
    pieces = {
        "dynamics": lambda t, x, u: u - x,
        "initial_state": torch.ones(4, 2),
        "terminal_cost": quadratic,
        "control_size": 2,
    }
    return ControlProblem(**{**pieces, **changes})


def start_on(steps, control_size, parameter_size):
    space = ControlSpace(TimeGrid(1.0, steps), control_size, parameter_size)
    return Control(space, torch.zeros(space.dimension))


@each_initial_state
def test_every_kind_is_an_initial_state(start):
    assert isinstance(start, InitialState)


@each_initial_state
def test_the_transpose_of_an_initial_state_agrees_with_autograd(start, rand, unchanged):
    q, p = rand(8).requires_grad_(), rand(5, 2)
    (expected,) = torch.autograd.grad((start(q) * p).sum() + 0 * q.sum(), q)
    with unchanged(q, p, INPUTS), torch.no_grad():
        torch.testing.assert_close(start.vjp(q.detach(), p), expected, rtol=1e-12, atol=1e-14)


@each_initial_state
def test_the_tangent_of_an_initial_state_pairs_as_its_transpose(start, rand):
    q, dq, p = rand(8), rand(8), rand(5, 2)
    forward, backward = (p * start.jvp(q, dq)).sum(), start.vjp(q, p) @ dq
    assert float(forward) == pytest.approx(float(backward), rel=1e-12)


@each_initial_state
def test_the_second_derivative_of_an_initial_state_agrees_with_autograd(start, rand, unchanged):
    q, p, dq = rand(8), rand(5, 2), rand(8)
    H = torch.func.hessian(lambda q: (p * start(q)).sum() + 0 * q.sum())(q)
    with unchanged(q, p, dq, INPUTS), torch.no_grad():
        torch.testing.assert_close(start.hvp(q, p, dq), H @ dq, rtol=1e-12, atol=1e-14)


@pytest.mark.parametrize("name", ["fixed", "opening", "opening without parameters"])
def test_an_initial_state_is_divided_by_samples(name, rand):
    start, q, indices = INITIAL_STATES[name], rand(8), torch.tensor([4, 0])
    torch.testing.assert_close(start.take(indices)(q), start(q)[indices], rtol=1e-15, atol=0)


def test_a_problem_on_some_samples_has_their_states_and_labels(rand):
    x, labels, indices = rand(5, 3), torch.tensor([0, 1, 2, 1, 0]), torch.tensor([2, 4])
    problem = ControlProblem(Dense(3), x, CrossEntropy(labels), horizon=3.0).take(indices)
    assert torch.equal(problem.initial_state.x, x[indices])
    assert torch.equal(problem.terminal_cost.labels, labels[indices])
    assert problem.horizon == 3.0


def test_a_running_cost_is_divided_by_samples_too(rand):
    x, target, indices = rand(5, 3), rand(5, 3), torch.tensor([2, 4])
    problem = ControlProblem(Dense(3), x, running_cost=QuadraticRunning(target=target)).take(indices)
    assert torch.equal(problem.running_cost.target, target[indices])


def test_plain_functions_treat_all_samples_alike():
    problem = build(running_cost=lambda t, x, u: x.sum())
    part = problem.take(torch.tensor([0, 2]))
    assert (part.terminal_cost, part.running_cost) == (problem.terminal_cost, problem.running_cost)


class Whole:
    """A terminal cost that cannot be divided by samples."""

    def __call__(self, x, q):
        return x.sum()

    def derivative(self, x, q):
        return torch.ones_like(x), torch.zeros_like(q)


@pytest.mark.parametrize(
    ("changes", "piece", "kind"),
    [
        ({"initial_state": lambda q: torch.ones(4, 2), "parameters": 1}, "initial_state", "StateFunction"),
        ({"terminal_cost": Whole()}, "terminal_cost", "Whole"),
    ],
    ids=["initial state", "terminal cost"],
)
def test_a_piece_that_cannot_be_divided_by_samples_is_refused(changes, piece, kind):
    with pytest.raises(ValueError, match=rf"{piece}: expected a piece with a method take\(indices\).* got {kind}"):
        build(**changes).take(torch.tensor([0]))


def test_plain_functions_and_tensors_become_pieces():
    problem = build(running_cost=lambda t, x, u: u.sum(), control_cost=Tikhonov(0.1), horizon=2)
    assert isinstance(problem.initial_state, FixedState)
    assert isinstance(problem.terminal_cost, TerminalFunction)
    assert isinstance(problem.running_cost, RunningFunction)
    assert problem.control_cost == (Tikhonov(0.1),)
    assert problem.horizon == 2.0
    assert isinstance(build(initial_state=lambda q: q.expand(4, 2), parameters=1).initial_state, StateFunction)


def test_costs_are_taken_as_they_are():
    terminal, running = LeastSquares(torch.zeros(4, 2)), QuadraticRunning()
    problem = build(terminal_cost=terminal, running_cost=running)
    assert problem.terminal_cost is terminal
    assert problem.running_cost is running


def test_dynamics_state_their_control_size_to_the_problem():
    problem = build(dynamics=Dense(2), control_size=None, parameters=5)
    assert problem.control_size == 6
    assert problem.space(TimeGrid(1.0, 10)).dimension == 65


def test_a_plain_terminal_cost_sees_parameters_where_there_are_any():
    problem = build(terminal_cost=lambda x, q: x.sum() * q.sum(), parameters=3)
    assert float(problem.terminal_cost(torch.ones(4, 2), torch.ones(3))) == 24.0


@pytest.mark.parametrize(
    ("state", "got"),
    [
        (torch.ones(3), r"shape \(3,\) of torch.float32; a single state of n numbers has the shape \(1, n\)"),
        (torch.ones(3, 2, dtype=torch.int64), r"shape \(3, 2\) of torch.int64; x.float\(\) or x.double\(\) has the"),
    ],
    ids=["no batch", "integers"],
)
def test_a_state_without_batch_or_of_integers_is_refused(state, got):
    with pytest.raises(ValueError, match=rf"initial_state: expected a floating-point tensor .* got {got}"):
        build(initial_state=state)


@pytest.mark.parametrize("bad", [nan, inf, -inf])
def test_a_state_that_is_not_finite_is_refused(bad):
    state = torch.ones(4, 2)
    state[1, 0] = bad
    with pytest.raises(ValueError, match="initial_state: expected finite numbers, got 1 of 8 that are NaN or infinite"):
        build(initial_state=state)


def test_an_initial_state_of_another_kind_is_refused():
    with pytest.raises(TypeError, match="initial_state: expected a tensor or a function of the parameters, got list"):
        build(initial_state=[1.0, 2.0])


@pytest.mark.parametrize("horizon", [0.0, -1.0, inf, nan, "1"])
def test_a_horizon_that_is_not_finite_and_positive_is_refused(horizon):
    with pytest.raises(ValueError, match=f"horizon: expected a finite number > 0, or a Parameter, got {horizon!r}"):
        build(horizon=horizon)


@pytest.mark.parametrize("size", [-1, 1.5])
def test_a_number_of_parameters_that_is_no_natural_number_is_refused(size):
    with pytest.raises(TypeError, match=f"parameters: expected a mapping .* an integer >= 0, .* got {size}"):
        build(parameters=size)


def test_a_problem_without_any_cost_is_refused():
    with pytest.raises(ValueError, match=r"costs: expected a terminal_cost, .* or measurements, got none"):
        build(terminal_cost=None)


@pytest.mark.parametrize("cost", [{"running_cost": QuadraticRunning()}, {"control_cost": Tikhonov(1.0)}])
def test_one_cost_of_any_kind_is_enough(cost):
    assert build(terminal_cost=None, **cost).terminal_cost is None


@pytest.mark.parametrize("sizes", [(3, 0), (2, 1)])
def test_a_start_of_other_sizes_is_refused(sizes):
    m, s = sizes
    with pytest.raises(
        ValueError, match=rf"start: expected a control with 2 numbers per step and 0 parameters, got {m} and {s}"
    ):
        build(start=start_on(2, *sizes))


def test_a_start_on_another_horizon_is_refused():
    with pytest.raises(ValueError, match="start: expected a control on the horizon 2, got 1"):
        build(start=start_on(2, 2, 0), horizon=2.0)


@pytest.mark.parametrize(
    ("start", "error", "message"),
    [
        ("zero", TypeError, "start: expected a Control, a number, a tensor or a function of time, got str"),
        (float("nan"), ValueError, "start: expected finite numbers, got 1 of 1 that are NaN"),
        (torch.zeros(3), ValueError, r"start: expected a number or shape \(2,\) or \(n, 2\), got shape \(3,\)"),
        (torch.zeros(1, 2, 2), ValueError, r"start: expected a number .* got shape \(1, 2, 2\)"),
        (torch.zeros(0, 2), ValueError, r"start: expected a number .* got shape \(0, 2\)"),
    ],
    ids=["text", "NaN", "(3,)", "three axes", "no steps"],
)
def test_what_is_no_start_is_refused(start, error, message):
    with pytest.raises(error, match=message):
        build(start=start)


@pytest.mark.parametrize("steps", [1, 4])
def test_a_start_may_live_on_any_grid(steps):
    assert build(start=start_on(steps, 2, 0)).start.space.grid.steps == steps


@pytest.mark.parametrize(
    ("changes", "error", "message"),
    [
        ({"dynamics": 1.0}, TypeError, "dynamics: expected a function"),
        ({"control_size": None}, ValueError, "control_size: expected the length of u"),
        ({"control_size": 1.0}, ValueError, r"control_size: expected the length of u .*, got 1\.0"),
        (
            {"terminal_cost": 1.0},
            TypeError,
            r"terminal_cost: expected a function Phi\(x\) or a TerminalCost, got float",
        ),
        (
            {"running_cost": 1.0},
            TypeError,
            r"running_cost: expected a function L\(t, x, u\) or a RunningCost, got float",
        ),
        ({"control_cost": 1.0}, TypeError, r"control_cost: expected costs such as Tikhonov\(alpha\), got float"),
    ],
    ids=lambda value: next(iter(value)) if isinstance(value, dict) else None,
)
def test_a_piece_of_the_wrong_kind_is_refused(changes, error, message):
    with pytest.raises(error, match=message):
        build(**changes)


def test_a_readout_may_follow_an_opening_in_one_vector_of_parameters(rand):
    first, last = FlatModule(nn.Linear(2, 3)), FlatModule(nn.Linear(3, 2), offset=9)
    readout = Readout(last, CrossEntropy(torch.tensor([0, 1, 1, 0, 1])))
    problem = ControlProblem(Dense(3), Opening(first, INPUTS), readout, parameters=first.size + last.size)
    q, x = rand(17), rand(5, 3)
    V, c = q[9:15].view(2, 3), q[15:]
    expected = nn.functional.cross_entropy(x @ V.T + c, readout.cost.labels)
    assert float(problem.terminal_cost(x, q)) == pytest.approx(float(expected), rel=1e-14)


def test_a_problem_is_printed_in_one_short_line():
    problem = build(initial_state=torch.ones(1000, 2), terminal_cost=LeastSquares(torch.zeros(1000, 2)))
    assert "LeastSquares" in repr(problem)
    assert len(repr(problem)) < 200
