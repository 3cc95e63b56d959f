"""The scalar linear system: discrete and continuous optima."""

from math import tanh

import pytest
import torch
from ocp.problems import lqr

from ocp import Stop, Watch, discretize, minimize
from ocp.optimize.lbfgs import LBFGS

# Computed by multiple shooting with an interior-point solver, checked against Riccati.
OPTIMA = {
    ("euler", 50): 0.3836965778124393,
    ("euler", 100): 0.38224700706982856,
    ("euler", 200): 0.38152207903419144,
    ("rk4", 50): 0.38080692450054276,
    ("rk4", 100): 0.38079953958632595,
    ("rk4", 200): 0.3807976933786041,
}


@pytest.mark.parametrize(("scheme", "steps"), OPTIMA)
def test_the_discrete_optimum_is_that_of_a_direct_method(scheme, steps):
    result = minimize(
        lqr.problem().problem, steps, LBFGS(), integrator=scheme, stop=Stop(tolerance=1e-8), watch=Watch(progress=False)
    )
    assert result.success
    assert result.value == pytest.approx(OPTIMA[scheme, steps], rel=1e-8)


@pytest.mark.parametrize(("scheme", "order"), [("euler", 1), ("rk4", 2)])
def test_discrete_optima_approach_the_continuous_one_at_the_stated_order(scheme, order):
    # With the control held over a step, RK4 is second order in the objective.
    coarse, fine = (OPTIMA[scheme, steps] - lqr.problem().optimum for steps in (100, 200))
    assert coarse / fine == pytest.approx(2**order, rel=0.01)


def test_the_riccati_feedback_costs_the_stated_optimum():
    study, steps = lqr.problem(), 1000
    assert study.optimum == tanh(1) / 2
    objective = discretize(study.problem, steps, "rk4")
    t = torch.tensor(objective.space.grid.midpoints, dtype=torch.float64)
    # The optimal state is cosh(1 - t) / cosh(1).
    u = -torch.sinh(1 - t) / torch.cosh(torch.tensor(1.0, dtype=torch.float64))
    assert objective.value(u) == pytest.approx(study.optimum, rel=1e-6)


def test_the_target_lies_above_the_discrete_optimum_of_the_suggested_grid():
    study = lqr.problem()
    result = minimize(study.problem, study.steps, LBFGS(), integrator=study.integrator, watch=Watch(progress=False))
    assert study.optimum < result.value < study.target.threshold


def test_the_precision_is_that_asked_for():
    assert lqr.problem(dtype=torch.float32).problem.initial_state.x.dtype == torch.float32
    assert lqr.problem().problem.initial_state.x.dtype == torch.float64
