"""The Van der Pol oscillator: discrete and continuous optima."""

import pytest
import torch
from ocp.problems import van_der_pol

from ocp import Stop, Watch, minimize
from ocp.optimize.lbfgs import LBFGS


@pytest.fixture(scope="module")
def optimum():
    """Discrete optima, computed by L-BFGS."""

    def solve(scheme, steps):
        problem = van_der_pol.problem().problem
        result = minimize(
            problem, steps, LBFGS(), integrator=scheme, stop=Stop(tolerance=1e-8), watch=Watch(progress=False)
        )
        return result.require_success().value

    return solve


@pytest.mark.parametrize(("scheme", "expected"), [("euler", 1.0614719965966875), ("rk4", 1.047900689093394)])
def test_the_discrete_optimum_is_that_of_a_direct_method(optimum, scheme, expected):
    # Computed by multiple shooting with an interior-point solver, checked by a roll-out and a complex-step gradient.
    assert optimum(scheme, 50) == pytest.approx(expected, rel=1e-8)


def test_extrapolated_optima_approach_the_continuous_one(optimum):
    coarse, fine = optimum("rk4", 25), optimum("rk4", 50)
    # With the control held over a step, RK4 is second order in the objective.
    extrapolated = (4 * fine - coarse) / 3
    assert extrapolated == pytest.approx(van_der_pol.problem().optimum, abs=2e-7)


def test_the_target_lies_above_the_discrete_optimum_of_the_suggested_grid():
    study = van_der_pol.problem()
    # The error falls by four where the step is halved.
    assert study.optimum + (1.047900689093394 - study.optimum) * (50 / study.steps) ** 2 < study.target.threshold


def test_the_oscillator_is_the_stated_one():
    x, u = torch.tensor([[2.0, 3.0]]), torch.tensor([5.0])
    assert van_der_pol.dynamics(0.0, x, u).tolist() == [[3.0, -6.0]]


def test_the_precision_is_that_asked_for():
    assert van_der_pol.problem(dtype=torch.float32).problem.initial_state.x.dtype == torch.float32
    assert van_der_pol.problem().problem.initial_state.x.dtype == torch.float64
