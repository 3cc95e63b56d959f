"""Problems with constraints or a free final time reach their known optima, by the method that is their default."""

from math import inf

import pytest

from ocp import minimize
from ocp.cli import catalog

#: Problem, its arguments, steps of RK4, the distance to the optimum of the continuous problem at most, and how many
#: times smaller it is on four times as many steps at least. The control is held on each step: second order if it is
#: smooth; the arc at a limit begins anywhere within a step.
CASES = {
    "brachistochrone": ("brachistochrone", {}, 32, 4e-4, 12),
    "Bryson-Denham": ("bryson_denham", {}, 36, 2e-2, 12),
    "minimum time": ("minimum_time", {}, 64, 3e-8, 0),
    "Goddard": ("goddard", {}, 64, 1e-5, 0),
    "obstacle": ("obstacle", {}, 64, 1e-5, 0),
    "hyper-sensitive": ("hypersensitive", {"penalty": inf}, 256, 4e-3, 0),
}


@pytest.mark.parametrize(("name", "options", "steps", "distance", "factor"), CASES.values(), ids=CASES)
def test_the_known_optimum_is_reached(name, options, steps, distance, factor):
    study = catalog.load(name, **options)
    result = minimize(study.problem, steps, integrator="rk4")
    assert result.success, str(result)
    off = abs(result.value - study.optimum)
    assert off <= distance
    assert max(one.value for one in result.violation.nodes) <= 1e-8
    if factor:
        finer = minimize(study.problem, 4 * steps, integrator="rk4")
        assert abs(finer.value - study.optimum) <= off / factor


def test_the_pole_swings_up_within_its_bounds():
    """The limit of values on finer and finer grids is 58.8077, says another interior-point solver."""
    problem = catalog.load("cart_pole", penalty=inf).problem
    coarse, fine = (minimize(problem, steps, integrator="rk4") for steps in (64, 128))
    assert fine.success, str(fine)
    assert (4 * fine.value - coarse.value) / 3 == pytest.approx(58.8077, abs=2e-3)
    assert max(one.value for one in fine.violation.nodes) <= 1e-8


def test_the_multiplier_of_the_end_is_what_a_longer_way_costs():
    """T = 2 sqrt(d) has the derivative 1 by d = 1."""
    result = minimize(catalog.load("minimum_time").problem, 32, integrator="rk4")
    assert float(result.multipliers.equality[0]) == pytest.approx(-1.0, abs=1e-6)
    assert result.derivative_norm <= 1e-6


def test_costates_and_gradient_are_those_of_the_lagrangian():
    """Altitude is maximized, speed is free, and the gradient vanishes where no bound or limit holds the control."""
    rocket = catalog.load("goddard").problem
    result = minimize(rocket, 32, integrator="rk4")
    end = result.trajectory(rocket).p[-1, 0]
    assert end.tolist() == pytest.approx([-1.0, 0.0, float(result.multipliers.equality)], abs=1e-6)
    mass = catalog.load("bryson_denham").problem
    assert float(minimize(mass, 32, integrator="rk4").trajectory(mass).gradient.abs().max()) <= 1e-6
