"""The interior-point method within `minimize`."""

import importlib
import json
from math import log
from pathlib import Path

import pytest
import torch
from ocp.problems import cart_pole, linear_quadratic, lotka_volterra, pendulum

import ocp
from ocp import ControlProblem, InteriorPoint, Status, Stop, Watch, discretize, minimize
from ocp.adjoint.at_once import roll_out
from ocp.integrators.integrator import INTEGRATORS
from ocp.optimize.interior_point.riccati import Riccati
from ocp.optimize.interior_point.statement import program_of

FOLDER = Path(__file__).parents[2] / "problems"
REFERENCE = json.loads((FOLDER / "discrete_optima.json").read_text())["problems"]
STRICT = Stop(tolerance=1e-9)


def solve(problem, steps, integrator="rk4", method=InteriorPoint(), **options):  # noqa: B008
    return minimize(problem, steps, method, integrator=integrator, **{"stop": STRICT, **options})


@pytest.mark.parametrize("scheme", ["euler", "rk4"])
@pytest.mark.parametrize("name", [name for name in REFERENCE if name != "catalyst_mixing"])
def test_discrete_optima_are_those_of_the_reference(name, scheme):
    steps, optimum = next(iter(REFERENCE[name]["optima"][scheme].items()))
    result = solve(importlib.import_module(f"ocp.problems.{name}").problem().problem, int(steps), scheme)
    assert result.value == pytest.approx(optimum, rel=1e-8)
    # Euler grids of the pendulum have optima of their own.
    assert result.success or (name, scheme) == ("pendulum", "euler")


def test_catalysts_are_mixed_as_in_the_reference():
    """With Euler's method there are many local optima."""
    result = solve(importlib.import_module("ocp.problems.catalyst_mixing").problem().problem, 50)
    assert result.value == pytest.approx(REFERENCE["catalyst_mixing"]["optima"]["rk4"]["50"], rel=1e-7)


@pytest.mark.parametrize("solver", [InteriorPoint().solver, Riccati])
@pytest.mark.parametrize("integrator", ["euler", "crank_nicolson", "rk4"])
def test_linear_problems_with_quadratic_costs_take_one_iteration(integrator, solver):
    lq = linear_quadratic.random(size=4, controls=2)
    result = solve(linear_quadratic.control_problem(lq), 20, integrator, InteriorPoint(solver=solver))
    assert result.counts["newton_iterations"] == 1
    optimum = linear_quadratic.optimum(lq, 20, INTEGRATORS[integrator].tableau)
    assert result.value == pytest.approx(optimum, rel=1e-12)


def test_costates_are_those_of_the_sweeps():
    objective = discretize(pendulum.problem().problem, 40, "rk4")
    method = InteriorPoint(tolerance=1e-10)
    state = method.step(objective, method.init(objective, objective.at(objective.discretization.start())))
    p = objective.trajectory(state.control).p.view(41, 2)
    found = state.memory.iterate["costates"] / state.memory.scale
    torch.testing.assert_close(found, p, rtol=1e-8, atol=1e-9)


def test_value_and_derivative_are_those_of_the_sweeps():
    """Also with a cost of the control, parameters, several samples, and a control that is not yet optimal."""
    problem = ControlProblem(
        lambda t, x, u: torch.stack((x[:, 1], u[0] * torch.cos(x[:, 0]) - t * x[:, 1] ** 3), dim=1),
        lambda q: torch.stack((q, 0.5 * q)),
        lambda x, q: (x.square().sum() * q).sum(),
        running_cost=lambda t, x, u: (x[0] * x[1]).sum() + u.square().sum(),
        control_cost=ocp.Tikhonov(0.3),
        control_size=1,
        parameters=2,
        bounds=(-0.4, 0.3),
        start=ocp.Control(
            ocp.ControlSpace(ocp.TimeGrid(1.0, 1), 1, 2), torch.tensor([0.1, 0.3, -0.6], dtype=torch.float64)
        ),
    )
    for scheme in ("rk4", "implicit_midpoint"):
        objective = discretize(problem, 4, scheme)
        for iterations in (1, 40):
            method = InteriorPoint(iterations=iterations)
            point = method.step(objective, method.init(objective, objective.at(objective.discretization.start()))).point
            value, derivative = objective.value_and_derivative(point.control)
            assert point.value == pytest.approx(value, rel=1e-12)
            torch.testing.assert_close(point.derivative, derivative, rtol=1e-10, atol=1e-11)


def test_other_integrators_and_modules_take_part():
    module = torch.nn.Sequential(torch.nn.Linear(2, 3), torch.nn.Tanh(), torch.nn.Linear(3, 2)).double()
    x = torch.tensor([[0.5, -0.2], [0.1, 0.7]], dtype=torch.float64)
    networks = ControlProblem(module, x, ocp.LeastSquares(x.flip(0)), control_cost=ocp.Tikhonov(1e-2), start=0.3)
    spring = ControlProblem(
        lambda t, x, u: torch.stack((x[:, 1], u[0] - torch.sin(x[:, 0])), dim=1),
        x[:1],
        running_cost=lambda t, x, u: x.square().sum() + u.square().sum(),
        control_size=1,
    )
    for problem, scheme in ((networks, "euler"), (spring, "verlet")):
        result = solve(problem, 4, scheme)
        assert result.success
        other = minimize(problem, 4, ocp.LBFGS(), integrator=scheme, start=result.control, stop=Stop(max_iterations=20))
        assert other.value == pytest.approx(result.value, rel=1e-8)


def test_a_run_goes_on_where_it_stopped_to_the_last_bit(tmp_path):
    problem, method = pendulum.problem().problem, InteriorPoint(iterations=10, coarsest=8)
    whole = solve(problem, 32, method=method)
    folder = tmp_path / "run"
    part = solve(problem, 32, method=method, stop=Stop(tolerance=1e-9, max_iterations=3), checkpoint=folder)
    assert part.status is Status.MAX_ITERATIONS
    again = solve(problem, 32, method=method, checkpoint=ocp.Checkpoint(folder, resume=True))
    assert again.status is whole.status is Status.CONVERGED
    assert torch.equal(again.control.flat, whole.control.flat)
    assert [r.value for r in again.history] == [r.value for r in whole.history]


def test_finer_grids_need_few_iterations():
    problem = cart_pole.problem().problem
    alone, nested = (solve(problem, N, method=InteriorPoint(coarsest=24)).counts["newton_iterations"] for N in (24, 96))
    assert nested - alone <= 4


def test_adaptive_grids_carry_the_solution_along():
    problem = lotka_volterra.problem().problem
    result = minimize(problem, ocp.Adaptive(1e-3, first=16), InteriorPoint(coarsest=8), integrator="rk4")
    assert result.success
    assert result.value == pytest.approx(1.34408, rel=2e-3)


def test_what_it_reports():
    seen = []
    watch = Watch(callback=lambda record, control: seen.append((record.value, control.flat.clone())) and None)
    problem = pendulum.problem().problem
    result = solve(problem, 50, method=InteriorPoint(iterations=30), watch=watch)
    objective = discretize(problem, 50, "rk4")
    assert len(seen) == result.iterations + 1 > 2
    for value, control in seen:
        assert value == pytest.approx(objective.value(control), rel=1e-12)
        assert bool((control.abs() <= 5).all())
    assert result.work_units > result.counts["newton_iterations"]
    stopped = solve(problem, 50, method=InteriorPoint(iterations=3), watch=Watch(callback=lambda record, control: True))
    assert stopped.status is Status.STOPPED


def test_a_trajectory_is_not_found_from_a_guess_too_far_away():
    problem = ControlProblem(lambda t, x, u: x**2 + u, torch.ones(1, 1).double(), lambda x: x.sum(), control_size=1)
    objective = discretize(problem, 20, "rk4")
    program = program_of(objective.discretization, torch.empty(0).double())
    v, first = torch.zeros(20, 1).double(), torch.tensor([0.5]).double()
    x = torch.linspace(0.5, 1, 21).view(-1, 1).double()
    found = roll_out(program.steps, program.times, first, x, v)
    assert found is not None
    assert float(found[0][-1]) == pytest.approx(1, rel=1e-5)
    assert roll_out(program.steps, program.times, 10 * first, 1e6 * x, v) is None


X = torch.ones(1, 2).double()


def move(t, x, u):
    return x * u


REFUSED = {
    "single precision": (ControlProblem(move, X.float(), lambda x: x.sum(), control_size=1), "float64"),
    "a large state": (ControlProblem(move, torch.ones(1, 300).double(), lambda x: x.sum(), control_size=1), "got 301"),
    "smoothness": (
        ControlProblem(move, X, lambda x: x.sum(), control_size=1, control_cost=ocp.TimeSmoothness(1.0)),
        "TimeSmoothness",
    ),
}


@pytest.mark.parametrize("name", REFUSED)
def test_what_does_not_fit_is_refused_before_work_begins(name):
    problem, words = REFUSED[name]
    with pytest.raises(ValueError, match=f"^method: InteriorPoint expected .*{words}"):
        minimize(problem, 4, InteriorPoint())


def test_functions_without_second_derivatives_are_refused(once_differentiable_power):
    problem = ControlProblem(lambda t, x, u: u - once_differentiable_power(x, 2), X, lambda x: x.sum(), control_size=1)
    with pytest.raises(ValueError, match="second derivatives of the dynamics"):
        minimize(problem, 4, InteriorPoint())


def test_it_takes_no_shifted_objective_as_a_smoother_would():
    objective = discretize(cart_pole.problem().problem, 8, "rk4")
    point = objective.at(objective.discretization.start())
    shifted = ocp.ShiftedObjective(objective, point.control, torch.zeros(8).double())
    with pytest.raises(ValueError, match="InteriorPoint expected the objective of a problem, got ShiftedObjective"):
        InteriorPoint().init(shifted, shifted.at(point.control))


@pytest.mark.parametrize("options", [{"tolerance": 0}, {"iterations": 0}, {"factor": 1}, {"coarse_tolerance": -1.0}])
def test_options_out_of_range_are_refused(options):
    with pytest.raises(ValueError, match=next(iter(options))):
        InteriorPoint(**options)


def test_it_begins_on_a_trajectory_where_the_initial_state_held_is_outside_the_domain():
    """The cost is finite for x > 1 only, where the start arrives before it counts."""
    problem = ControlProblem(
        lambda t, x, u: u + 0 * x,
        torch.ones(1, 1).double(),
        lambda x: -torch.log(x - 1).sum(),
        control_cost=ocp.Tikhonov(1.0),
        control_size=1,
        start=0.5,
    )
    result = solve(problem, 16)
    assert result.success
    assert result.control.path.mean() == pytest.approx(1.0, rel=1e-6)  # -1 / u + u = 0


def test_from_a_saddle_point_it_goes_on_to_a_minimum():
    """Two masses at the top between two wells. Of the directions that lead down, band LU sees whether they are odd."""
    problem = ControlProblem(
        lambda t, x, u: u[None],
        torch.zeros(1, 2, dtype=torch.float64),
        lambda x: (x.square() - 1).square().sum(),
        running_cost=lambda t, x, u: 0.1 * u.square().sum(),
        control_size=2,
    )
    objective, method = discretize(problem, 16, "rk4"), InteriorPoint()
    state = method.step(objective, method.init(objective, objective.at(objective.discretization.start())))
    assert state.status is Status.CONVERGED
    assert state.point.value == pytest.approx(2 * (0.1 - 0.1**2 / 4), rel=1e-9)  # at x^2 = 1 - 0.1 / 2


@pytest.mark.parametrize("start", [2.0, 3.0])
def test_the_boat_crosses_the_current_in_minimum_time(start):
    """Zermelo's problem as in Bryson & Ho (1975), section 2.7; the time is that of a shooting method.

    From the second start band LU leads to a saddle point with an even number of directions that lead down.
    """
    problem = ControlProblem(
        lambda t, x, u: torch.stack((torch.cos(u[0]) - x[:, 1], torch.sin(u[0]).expand(1)), dim=1),
        torch.tensor([[3.66, -1.86]], dtype=torch.float64),
        lambda x, q: q["horizon"],
        horizon=ocp.Parameter(5.0, lower=0.1, upper=20.0),
        control_size=1,
        start=start,
        terminal_equality=lambda x: x[0],
    )
    result = minimize(problem, 128, integrator="rk4")
    assert result.success
    assert result.value == pytest.approx(5.457865, rel=1e-4)


def test_parameters_may_be_all_there_is_to_find():
    problem = ControlProblem(
        lambda t, x, u, q: -q.k * x,
        torch.ones(1, 1).double(),
        lambda x, q: q.k.square().sum(),
        control_size=0,
        parameters={"k": 0.1},
        terminal_equality=lambda x: x[0] - 0.5,
    )
    for solver in (InteriorPoint().solver, Riccati):
        result = solve(problem, 16, method=InteriorPoint(solver=solver))
        assert result.success
        assert float(result.control.parameters) == pytest.approx(log(2), rel=1e-6)
