"""The minimizers of SciPy as methods."""

from dataclasses import replace

import pytest
import scipy.optimize
import torch

from ocp import LBFGS, Bounds, ControlSpace, SciPy, State, Status, TimeGrid, minimize
from ocp.run.stopping import Stop


@pytest.mark.parametrize("name", ["L-BFGS-B", "CG", "BFGS"])
def test_a_run_goes_on_until_the_solver_is_satisfied(name, lqr):
    assert minimize(lqr, 16, SciPy(name), stop=Stop(tolerance=1e-8)).status is Status.CONVERGED


@pytest.mark.parametrize("name", ["L-BFGS-B", "CG", "BFGS"])
def test_path_and_parameters_are_scaled_each_by_its_weight(name, objective_of, rand, run):
    root, b = rand(5, 5), rand(5)
    A = root @ root.T + torch.eye(5).double()
    space = ControlSpace(TimeGrid(0.3, 3), 1, 2)
    objective = objective_of(lambda u: 0.5 * u @ A @ u - b @ u, space)
    found = run(SciPy(name, 50), objective.at(torch.zeros(5).double()), 2).control
    torch.testing.assert_close(found, torch.linalg.solve(A, b), rtol=0, atol=1e-6)


def test_the_barrier_of_trust_constr_gets_to_its_end_within_one_long_call(lqr):
    problem = replace(lqr, bounds=Bounds(-0.3, 0.3))
    result = minimize(problem, 8, SciPy("trust-constr", iterations=200), stop=Stop(tolerance=1e-5))
    assert result.status is Status.CONVERGED
    assert result.value == pytest.approx(minimize(problem, 8, LBFGS(), stop=Stop(tolerance=1e-8)).value, rel=1e-8)


@pytest.mark.parametrize("name", ["L-BFGS-B", "TNC", "SLSQP"])
def test_every_method_that_supports_bounds_keeps_to_them(name, convex_within, run):
    objective, optimum = convex_within("active")
    found = run(SciPy(name, 100), objective.at(objective.box.project(torch.ones(14).double())), 3).control
    torch.testing.assert_close(found, optimum, rtol=0, atol=1e-5)


@pytest.mark.parametrize("name", ["CG", "BFGS", "Newton-CG"])
def test_a_method_that_does_not_support_bounds_is_refused_before_work_begins(name, lqr):
    message = f"name: expected a method that supports bounds, one of l-bfgs-b, .*, got '{name}'"
    with pytest.raises(ValueError, match=message) as caught:
        minimize(replace(lqr, bounds=Bounds(0.0, 1.0)), 8, SciPy(name))
    assert not hasattr(caught.value, "result")


def test_a_method_that_scipy_does_not_have_is_refused():
    with pytest.raises(ValueError, match=r"name: expected one of l-bfgs-b, .*, got 'foo'"):
        SciPy("foo")


@pytest.mark.parametrize(("last", "values"), [(2.0, 4), (0.25, 3)], ids=["not the best", "the best"])
def test_the_control_is_what_scipy_returns_and_not_the_last_that_it_tried(last, values, monkeypatch, objective_of):
    def minimizer(fun, z, **rest):
        fun(z)
        fun(0.25 * z)
        fun(last * z)
        return scipy.optimize.OptimizeResult(x=0.25 * z)

    monkeypatch.setattr(scipy.optimize, "minimize", minimizer)
    objective, u = objective_of(lambda u: u.square().sum()), torch.ones(2, dtype=torch.float64)
    state = SciPy().step(objective, State(objective.at(u)))
    torch.testing.assert_close(state.control, 0.25 * u)
    assert state.point.value == pytest.approx(0.125)
    assert len(objective.asked) == values
