"""One step: against its definition, its transpose against its tangent, and its order of accuracy."""

from math import cos, exp, log, log2, sin

import pytest
import torch

from ocp.costs import QuadraticRunning
from ocp.discretization import Discretization
from ocp.dynamics import FunctionDynamics
from ocp.grid import TimeGrid
from ocp.integrators import INTEGRATORS, ExplicitRungeKutta, as_integrator
from ocp.problem import ControlProblem
from ocp.sweep import forward
from ocp.tableaus import RK4

T, H = 0.7, 0.3


def running(t, x, u):
    return (t * x.square().sum() + x.sum() * u.sum() + u.pow(4).sum()) / len(x)


@pytest.fixture(params=[running, QuadraticRunning(0.5, 2.0), None], ids=["function", "quadratic", "none"])
def running_cost(request):
    return request.param


@pytest.fixture
def problem(case, running_cost):
    x = torch.zeros(5, *case.state, dtype=torch.float64)
    return ControlProblem(case.dynamics, x, lambda x: x.sum(), running_cost)


@pytest.fixture
def point(problem, rand):
    """State, control, costate and a direction for states and controls."""
    x, u = rand(*problem.initial_state.x.shape), rand(problem.control_size)
    return x, u, rand(*x.shape), rand(*x.shape), rand(*u.shape)


def test_every_integrator_has_a_definition_here(definitions):
    assert set(INTEGRATORS) == set(definitions)


def test_a_step_is_that_of_the_definition(case, problem, point, scheme, definitions):
    (x, u, *_), out = point, torch.empty_like(point[0])
    L = problem.running_cost or (lambda t, x, u: torch.zeros(()).double())
    cost = INTEGRATORS[scheme].step(problem, T, H, x, u, out)
    end, expected = definitions[scheme](lambda t, x: (case.definition(t, x, u), L(t, x, u)), T, H, x)
    torch.testing.assert_close(out, end, rtol=1e-12, atol=1e-12)
    assert (cost is None) == (problem.running_cost is None)
    assert float(cost or 0.0) == pytest.approx(float(expected), rel=1e-12)


def test_the_transpose_of_a_step_pairs_as_its_tangent(problem, point, scheme):
    x, u, p, dx, du = point
    px, pu = INTEGRATORS[scheme].pullback(problem, T, H, x, u, p)
    dend, dcost = INTEGRATORS[scheme].tangent(problem, T, H, x, u, dx, du)
    forward = float((p * dend).sum() + (dcost or 0.0))
    assert forward == pytest.approx(float((px * dx).sum() + (pu * du).sum()), rel=1e-12)


def test_a_step_leaves_its_arguments_as_they_were(problem, point, scheme, unchanged):
    x, u, p, dx, du = point
    with unchanged(*point):
        INTEGRATORS[scheme].step(problem, T, H, x, u, torch.empty_like(x))
        INTEGRATORS[scheme].pullback(problem, T, H, x, u, p)
        INTEGRATORS[scheme].tangent(problem, T, H, x, u, dx, du)


def test_single_precision_stays_single(problem, point, scheme):
    x, u, p, dx, du = (part.float() for part in point)
    parts = [
        INTEGRATORS[scheme].step(problem, T, H, x, u, torch.empty_like(x)),
        *INTEGRATORS[scheme].pullback(problem, T, H, x, u, p),
        *INTEGRATORS[scheme].tangent(problem, T, H, x, u, dx, du),
    ]
    assert {part.dtype for part in parts if part is not None} == {torch.float32}


def errors(integrator, problem, path, state, cost, steps):
    """Distances of the final state and of the running cost from their exact values."""
    discretization = Discretization(problem, TimeGrid(problem.horizon, steps), integrator)
    states = torch.empty(steps + 1, 1, 1, dtype=torch.float64)
    value = float(forward(discretization, path(discretization.grid), states))
    return abs(float(states[-1]) - state), abs(value - cost)


@pytest.mark.parametrize("quantity", [0, 1], ids=["state", "running cost"])
def test_the_order_of_accuracy_is_the_stated_one(scheme, quantity):
    # x' = u x (1 - x) cos t is logistic in sin t, and the integral of x cos t can be written down.
    u, x0, end = 2.0, 0.3, sin(1.5)
    problem = ControlProblem(
        FunctionDynamics(lambda t, x, u: u * x * (1 - x) * cos(t), control_size=1),
        torch.full((1, 1), x0, dtype=torch.float64),
        running_cost=lambda t, x, u: x.sum() * cos(t),
        horizon=1.5,
    )
    a = 1 / x0 - 1
    exact = 1 / (1 + a * exp(-u * end)), log((exp(u * end) + a) / (1 + a)) / u
    coarse, fine = (
        errors(INTEGRATORS[scheme], problem, lambda g: torch.full((g.steps,), u).double(), *exact, steps)[quantity]
        for steps in (64, 128)
    )
    assert log2(coarse / fine) == pytest.approx(INTEGRATORS[scheme].order, abs=0.1)


@pytest.mark.parametrize(
    ("times", "order"),
    [(lambda grid: grid.nodes[:-1], 1), (lambda grid: grid.midpoints, 2)],
    ids=["nodes", "midpoints"],
)
def test_the_time_at_which_the_held_control_is_sampled_limits_the_order(times, order):
    # x' = u - x with u = cos t held on each step; exactly, x = (cos t + sin t - exp(-t)) / 2 from x = 0.
    problem = ControlProblem(
        FunctionDynamics(lambda t, x, u: u - x, control_size=1),
        torch.zeros(1, 1, dtype=torch.float64),
        lambda x: x.sum(),
    )
    exact = (cos(1.0) + sin(1.0) - exp(-1.0)) / 2
    coarse, fine = (
        errors(INTEGRATORS["rk4"], problem, lambda g: torch.tensor(times(g)).double().cos(), exact, exact, steps)[0]
        for steps in (128, 256)
    )
    assert log2(coarse / fine) == pytest.approx(order, abs=0.1)


def test_an_integrator_is_known_by_the_name_of_its_tableau(scheme):
    integrator = as_integrator(scheme)
    assert integrator is INTEGRATORS[scheme]
    assert (integrator.name, integrator.order) == (scheme, integrator.tableau.order)


def test_an_integrator_of_ones_own_is_taken_as_it_is():
    mine = ExplicitRungeKutta(RK4)
    assert as_integrator(mine) is mine


def test_a_name_that_no_integrator_has_is_refused():
    with pytest.raises(ValueError, match=r"integrator: expected one of euler, midpoint, heun, rk4.*, got 'rk5'"):
        as_integrator("rk5")
