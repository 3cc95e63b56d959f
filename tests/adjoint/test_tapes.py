"""Tapes: every kind against steps that are computed again, and which problems get which."""

import gc
import math

import pytest
import torch
from torch import nn

from ocp.adjoint.discretization import Discretization
from ocp.adjoint.paths import choose
from ocp.adjoint.schedules import Binomial, StoreAll
from ocp.adjoint.staged import Staged
from ocp.adjoint.stepwise import Stepwise
from ocp.adjoint.sweeps import adjoint, forward
from ocp.adjoint.taped import Taped
from ocp.integrators.integrator import INTEGRATORS
from ocp.objective.reduced import ReducedObjective, discretize
from ocp.problem.control_problem import ControlProblem
from ocp.problem.costs import LeastSquares, QuadraticRunning
from ocp.problem.dynamics import FunctionDynamics
from ocp.problem.layers import RELU, SMOOTH_RELU, Activation, Antisymmetric, Convolution, Dense
from ocp.space.grid import TimeGrid

STEPS = 7


def swing(t, x, u):
    return torch.stack((x[:, 1], u[0] * torch.cos(t * x[:, 0]) - torch.sin(x[:, 0])), dim=1)


def swing_by_numbers(t, x, u):
    """The same, but it asks for numbers, which only single evaluations have."""
    return torch.stack((x[:, 1], u[0] * torch.cos(x[:, 0] * float(t)) - torch.sin(x[:, 0])), dim=1)


def cost(t, x, u):
    return t * x.square().sum() + u.pow(4).sum()


def cost_by_numbers(t, x, u):
    return math.sin(t) * x.square().sum() + u.pow(4).sum()


def large(t, x, u):
    return torch.tanh(x.flip(1)) * u


class Own(FunctionDynamics):
    """Dynamics that know their transpose."""

    def vjp(self, t, x, u, p):
        return super().vjp(t, x, u, p)


#: Dynamics, the shape of the state, a running cost, and the kind of tape for explicit Runge-Kutta steps.
CASES = {
    "dense": (Dense(3), (5, 3), None, Staged),
    "dense with cost": (Dense(3, RELU), (5, 3), QuadraticRunning(0.3, 0.2, 0.1), Staged),
    "dense with function": (Dense(3, SMOOTH_RELU), (5, 3), cost, Staged),
    "dense with function of numbers": (Dense(3), (5, 3), cost_by_numbers, Staged),
    "convolution": (Convolution(2), (2, 2, 3, 2), cost, Staged),
    "dense, nothing along the way": (Dense(3), (5, 3), None, Staged),
    "antisymmetric, nothing along the way": (Dense(9, RELU, Antisymmetric(0.1)), (4, 9), None, Staged),
    "small function": (FunctionDynamics(swing, 1), (1, 2), cost, Staged),
    "small function of numbers": (FunctionDynamics(swing_by_numbers, 1), (1, 2), cost, Taped),
    "small function, cost of numbers": (FunctionDynamics(swing, 1), (1, 2), cost_by_numbers, Taped),
    "large function": (FunctionDynamics(large, 30), (2, 30), QuadraticRunning(), Taped),
    "module": (nn.Sequential(nn.Linear(3, 4), nn.Tanh(), nn.Linear(4, 3, bias=False)), (5, 3), cost, Taped),
    "module without parameters": (FunctionDynamics(lambda t, x, u: torch.sin(x), 1), (9, 3), None, Taped),
    "own transpose": (Own(swing, 1), (1, 2), cost, Stepwise),
}


@pytest.fixture(params=["euler", "midpoint", "rk4", "crank_nicolson"])
def scheme(request):
    """One stage, a stage without weight, four of them, an implicit one."""
    return request.param


@pytest.fixture(params=CASES.values(), ids=CASES.keys())
def recorded(request, rand, scheme):
    """A discretization, its control, a tape of all its steps, and the kind of tape to expect."""
    dynamics, shape, running, kind = request.param
    problem = ControlProblem(dynamics, rand(*shape), lambda x: x.pow(3).sum(), running, horizon=0.7)
    discretization = Discretization(problem, TimeGrid(0.7, STEPS), INTEGRATORS[scheme])
    discretization.check()
    control = 0.5 * rand(discretization.space.dimension)
    x, u = problem.initial_state.x, discretization.space.path(control)[0]
    return discretization, control, choose(discretization, StoreAll(), x, u), kind


def test_the_tape_that_a_problem_supports_gives_the_derivative_of_what_is_computed_again(recorded):
    discretization, control, steps, kind = recorded
    implicit = any(discretization.integrator.tableau.diagonal)
    assert type(steps) is (Stepwise if implicit else kind)
    states = torch.empty(STEPS + 1, *discretization.example()[0].shape, dtype=torch.float64)
    value = forward(discretization, control, states)
    torch.testing.assert_close(forward(discretization, control, steps), value, rtol=1e-13, atol=1e-13)
    expected = adjoint(discretization, control, states)
    torch.testing.assert_close(adjoint(discretization, control, steps), expected, rtol=1e-12, atol=1e-13)
    forward(discretization, control, steps)
    assert torch.equal(steps.end, steps.states[-1])
    torch.testing.assert_close(steps.states, states, rtol=1e-13, atol=1e-13)


@pytest.mark.cover(1)
def test_whatever_the_layout_of_the_stages_the_ends_are_laid_out_as_usual(recorded):
    discretization, control, steps, _ = recorded
    forward(discretization, control, steps)
    path, derivative = discretization.space.path(control), torch.empty_like(control)
    assert steps.end.is_contiguous()
    assert steps.backward(torch.ones_like(steps.end), derivative.view_as(path)).is_contiguous()


@pytest.mark.cover(1)
def test_states_are_there_after_the_way_back(recorded):
    discretization, control, steps, _ = recorded
    forward(discretization, control, steps)
    expected = steps.states.clone()
    forward(discretization, control, steps)
    adjoint(discretization, control, steps)
    assert torch.equal(steps.states, expected)


@pytest.mark.cover(1)
def test_a_tape_can_be_used_again_and_leaves_controls_unchanged(recorded, rand, unchanged):
    discretization, control, steps, _ = recorded
    with unchanged(control, discretization.problem.initial_state.x):
        forward(discretization, control, steps)
        first = adjoint(discretization, control, steps)
    forward(discretization, 2 * control, steps)
    adjoint(discretization, 2 * control, steps)
    forward(discretization, control, steps)
    assert torch.equal(adjoint(discretization, control, steps), first)


@pytest.mark.parametrize("block", [1, 2**12])
@pytest.mark.parametrize("scheme", ["euler", "rk4"])
def test_blocks_of_steps_change_nothing(scheme, block, rand, monkeypatch):
    problem = ControlProblem(Dense(4), rand(5, 4), lambda x: x.square().sum(), cost)
    u = rand(100 * 20)
    expected = discretize(problem, 100, scheme).derivative(u)
    monkeypatch.setattr("ocp.adjoint.staged.BLOCK_BYTES", block)
    objective = discretize(problem, 100, scheme)
    torch.testing.assert_close(objective.derivative(u), expected, rtol=1e-13, atol=1e-13)


@pytest.mark.parametrize("case", ["large function", "module", "small function of numbers"])
def test_segments_of_steps_change_nothing(case, rand, monkeypatch):
    dynamics, shape, running, _ = CASES[case]
    problem = ControlProblem(dynamics, rand(*shape), lambda x: x.pow(3).sum(), running)
    objective = discretize(problem, STEPS, "heun")
    u = 0.5 * rand(objective.space.dimension)
    expected = objective.derivative(u)
    monkeypatch.setattr("ocp.adjoint.taped.SEGMENT_STEPS", 3)
    torch.testing.assert_close(discretize(problem, STEPS, "heun").derivative(u), expected, rtol=1e-13, atol=1e-13)


def test_an_activation_of_ones_own_needs_no_methods_in_place(rand):
    sine = Activation(torch.sin, lambda a: (1 - a * a).sqrt(), lambda a: -a, nn.Identity)
    problem = ControlProblem(Dense(3, sine), 0.1 * rand(4, 3), lambda x: x.square().sum())
    objective, u, d = discretize(problem, 5), 0.1 * rand(60), rand(60)
    assert objective.directional(u, d) == pytest.approx(float(objective.derivative(u) @ d), rel=1e-12)


def test_a_function_that_turns_out_to_be_another_at_many_points_is_evaluated_point_by_point(rand):
    """It was the same where it was tried: a table of times that only single evaluations can look up."""
    times = {0.25: 3.0}

    def f(t, x, u):
        return times.get(t, 1.0) * torch.sin(x) + u

    problem = ControlProblem(f, rand(1, 2), lambda x: x.square().sum(), control_size=2)
    objective, u, d = discretize(problem, 4), rand(8), rand(8)
    assert objective.directional(u, d) == pytest.approx(float(objective.derivative(u) @ d), rel=1e-12)


def test_a_batch_has_its_own_running_cost_in_the_storage_of_another(rand):
    problem = ControlProblem(Dense(3), rand(6, 3), running_cost=QuadraticRunning(target=rand(6, 3)))
    objective, u = discretize(problem, 4), rand(48)
    first, second = (objective.take(torch.arange(k, k + 3)) for k in (0, 3))
    assert first.value(u) != second.value(u)
    expected = discretize(problem.take(torch.arange(3, 6)), 4).derivative(u)
    torch.testing.assert_close(second.derivative(u), expected, rtol=1e-13, atol=1e-13)


def alive():
    """How many tensors, and how many objects of any kind."""
    gc.collect()
    objects = gc.get_objects()
    return sum(issubclass(type(thing), torch.Tensor) for thing in objects), len(objects)


@pytest.mark.parametrize("schedule", [StoreAll(), Binomial(3)], ids=str)
@pytest.mark.parametrize("dynamics", [Dense(2), swing], ids=["layer", "function"])
@pytest.mark.slow
def test_memory_does_not_grow(dynamics, schedule, rand):
    size = 1 if dynamics is swing else None
    problem = ControlProblem(dynamics, rand(1, 2), lambda x: x.square().sum(), control_size=size)
    objective = discretize(problem, 4, "heun", schedule)
    u = rand(objective.space.dimension)

    def iterate(times):
        for k in range(times):
            v = u + 1e-3 * k
            objective.value(v)
            objective.derivative(v)

    iterate(20)
    before = alive()
    iterate(1000)
    after = alive()
    assert after[0] <= before[0]
    assert after[1] <= before[1] + 20


@pytest.mark.parametrize(("schedule", "steps"), [(StoreAll(), 100_000), (Binomial(300), 5_000)], ids=str)
@pytest.mark.slow
def test_many_steps_can_be_taken(schedule, steps):
    x = torch.ones(1, 1, dtype=torch.float64)
    problem = ControlProblem(Dense(1), x, LeastSquares(x))
    objective = discretize(problem, steps, schedule=schedule)
    u = torch.full((objective.space.dimension,), 0.5, dtype=torch.float64)
    assert bool(objective.derivative(u).isfinite().all())


def test_the_derivative_of_an_interrupted_adjoint_sweep_is_right_the_next_time(rand):
    stop = []

    class Stubborn(Own):
        def vjp(self, t, x, u, p):
            if stop and t < 0.5:
                raise KeyboardInterrupt
            return super().vjp(t, x, u, p)

    problem = ControlProblem(Stubborn(swing, 1), rand(1, 2), lambda x: x.square().sum())
    objective, u = ReducedObjective(Discretization(problem, TimeGrid(1.0, 4), INTEGRATORS["euler"])), rand(4)
    expected = objective.uncounted().derivative(u)
    stop.append(True)
    with pytest.raises(KeyboardInterrupt):
        objective.derivative(u)
    stop.clear()
    assert torch.equal(objective.derivative(u), expected)


#: Dynamics that torch can compile, the shape of the state, and the length of a plain function's control.
COMPILED = {
    "small function": (swing, (1, 2), 1),
    "module": (nn.Sequential(nn.Linear(3, 4), nn.Tanh(), nn.Linear(4, 3)).double(), (5, 3), None),
}


@pytest.mark.filterwarnings("ignore:The .grad attribute")  # torch looks at one while it compiles a module
@pytest.mark.parametrize(("dynamics", "shape", "size"), COMPILED.values(), ids=COMPILED.keys())
def test_compiled_dynamics_have_the_same_derivatives(dynamics, shape, size, rand):
    x = rand(*shape)
    plain, compiled = (
        discretize(ControlProblem(f, x, lambda x: x.pow(3).sum(), control_size=size), STEPS, "rk4")
        for f in (dynamics, torch.compile(dynamics, backend="aot_eager"))  # which needs no compiler
    )
    u, d = 0.5 * rand(plain.space.dimension), rand(plain.space.dimension)
    assert type(compiled._slot(u).tape) is type(plain._slot(u).tape)
    torch.testing.assert_close(compiled.derivative(u), plain.derivative(u), rtol=1e-13, atol=1e-14)
    torch.testing.assert_close(compiled.hessian_product(u, d), plain.hessian_product(u, d), rtol=1e-12, atol=1e-13)
    f, g, uk = plain.discretization.problem.dynamics, compiled.discretization.problem.dynamics, plain.space.path(u)[0]
    torch.testing.assert_close(g.hvp(0.3, x, uk, x, x, uk), f.hvp(0.3, x, uk, x, x, uk), rtol=1e-12, atol=1e-13)


def test_a_compiled_function_stays_compiled_after_a_hessian_product(rand):
    runs = []

    def backend(graph, inputs):
        return lambda *arguments: runs.append(graph) or graph(*arguments)

    problem = ControlProblem(
        torch.compile(large, backend=backend), rand(2, 30), lambda x: x.square().sum(), control_size=30
    )
    objective, u = discretize(problem, STEPS), rand(30 * STEPS)
    objective.hessian_product(u, u)
    before = len(runs)
    objective.derivative(2 * u)
    assert len(runs) == before + STEPS
