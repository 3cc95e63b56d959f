"""What a run calls a success: an optimum, of the problem and not of the grid, whatever the units and the start."""

from dataclasses import replace
from functools import cache

import pytest
import torch

from ocp import (
    LBFGS,
    MGOPT,
    Adaptive,
    Bounds,
    ControlProblem,
    GradientDescent,
    NewtonCG,
    NonlinearCG,
    SciPy,
    State,
    Status,
    Stop,
    discretize,
    minimize,
)

D = torch.float64
METHODS = pytest.mark.parametrize("method", [LBFGS(), MGOPT(3), NewtonCG()], ids=lambda m: type(m).__name__)


def decay(cost=1.0, length=1.0, **changes):
    """x' = u - x / 2 from x(0) = length, in other units of the cost and of the state."""
    pieces = {
        "dynamics": lambda t, x, u: length * u - x / 2,
        "initial_state": torch.full((1, 1), length, dtype=D),
        "terminal_cost": lambda x: cost * ((x / length - 2) ** 2).sum(),
        "running_cost": lambda t, x, u: 0.1 * cost * u.square().sum(),
        "control_size": 1,
    }
    return ControlProblem(**{**pieces, **changes})


ALL = [GradientDescent(), LBFGS(), NonlinearCG(), NewtonCG(), MGOPT(3), SciPy("L-BFGS-B"), SciPy("BFGS")]


@cache
def usual(method):
    """What a method finds in the usual units."""
    return minimize(decay(), 16, method, integrator="rk4")


@pytest.mark.parametrize("unit", [1e-30, 1e-18, 1e9, 1e18])
@pytest.mark.parametrize("method", ALL, ids=lambda m: getattr(m, "name", type(m).__name__))
def test_every_method_moves_in_every_unit_of_the_cost(method, unit):
    result = minimize(decay(unit), 16, method, integrator="rk4")
    assert result.status is usual(method).status is Status.CONVERGED
    assert result.value / unit == pytest.approx(usual(method).value, rel=1e-9)


def steep(cost, start):
    return ControlProblem(lambda t, x, u: u.expand_as(x), torch.zeros(1, 1, dtype=D), cost, control_size=1, start=start)


@METHODS
@pytest.mark.parametrize(("cost", "length"), [(1e9, 1.0), (1e-9, 1.0), (1.0, 1e3), (1.0, 1e-6)])
def test_verdicts_do_not_depend_on_units(method, cost, length):
    result = minimize(decay(cost, length), 16, method, integrator="rk4")
    assert result.status is usual(method).status is Status.CONVERGED
    torch.testing.assert_close(result.control.flat, usual(method).control.flat, rtol=1e-5, atol=1e-6)


@METHODS
@pytest.mark.parametrize(
    ("cost", "start", "least"),
    [
        (lambda x: ((x - 1) ** 4).sum(), 1e3, 0.0),
        (lambda x: (torch.exp(x) - x).sum(), 20.0, 1.0),
        (lambda x: (torch.exp(x) - x).sum(), 100.0, 1.0),
    ],
    ids=["quartic", "exponential", "far away"],
)
def test_a_steep_start_makes_no_success_far_from_the_optimum(method, cost, start, least):
    result = minimize(steep(cost, start), 8, method)
    assert not result.success or result.value - least < 1e-2
    if isinstance(method, LBFGS):
        assert result.success
        assert "much steeper at the start" in result.message


@METHODS
@pytest.mark.parametrize("tolerance", [1e-6, 1e-12])
def test_an_optimum_as_start_is_a_success_without_work(method, tolerance):
    first = minimize(decay(), 32, LBFGS(), integrator="rk4", stop=Stop(tolerance=tolerance))
    again = minimize(decay(), 32, method, integrator="rk4", start=first.control)
    assert (first.status, again.status) == (Status.CONVERGED, Status.CONVERGED)
    assert again.iterations <= (0 if tolerance < 1e-9 else 3)


class Stuck:
    """A method whose every search fails."""

    def init(self, objective, point):
        return State(point)

    def step(self, objective, state):
        return replace(state, status=Status.NO_DECREASE)

    def transport(self, memory, transfer):
        return memory


@pytest.mark.parametrize("cost", [1.0, 1e-18, 1e9])
@pytest.mark.parametrize("start", [-5.0, -300.0], ids=["near", "far"])
def test_an_optimum_of_the_grid_alone_is_no_success(start, cost):
    # With one step of the midpoint rule x(1) = 1 + z + z^2 / 2 for z = -u, with two steps (1 + z / 2 + z^2 / 8)^2.
    problem = ControlProblem(
        lambda t, x, u: -u * x,
        torch.ones(1, 1, dtype=D),
        lambda x: cost * (x - 25.0).square().sum(),
        control_size=1,
        start=start,
    )
    first = minimize(problem, 1, LBFGS(), integrator="midpoint")
    again = [minimize(problem, 1, method, integrator="midpoint", start=first.control) for method in (LBFGS(), Stuck())]
    for result in (first, *again):
        assert result.status is Status.UNRESOLVED
        assert "With half the step the " in result.message


@pytest.mark.parametrize(("start", "status"), [(3.0, Status.CONVERGED), (1.0, Status.UNRESOLVED)])
def test_a_reactor_that_explodes_between_the_nodes_is_not_resolved(start, status):
    # A stirred tank reactor whose optima are 0.133 and 0.244: Luus & Galli (1991), "Multiplicity of solutions in using
    # dynamic programming for optimal control". 25 steps have another, 0.04, that is worth 0.3 on a fine grid.
    def reactor(t, x, u):
        rate = (x[:, 1] + 0.5) * torch.exp(25 * x[:, 0] / (x[:, 0] + 2))
        return torch.stack((rate - (2 + u[0]) * (x[:, 0] + 0.25), 0.5 - x[:, 1] - rate), 1)

    problem = ControlProblem(
        reactor,
        torch.tensor([[0.09, 0.09]], dtype=D),
        running_cost=lambda t, x, u: x.square().sum() + 0.1 * u.square().sum(),
        control_size=1,
        horizon=0.78,
        start=start,
    )
    result = minimize(problem, 25, integrator="rk4")
    assert result.status is status
    assert result.value > 0.13 or not result.success


@METHODS
@pytest.mark.parametrize("bounds", [None, Bounds(-3.0, 3.0)], ids=["free", "bounded"])
@pytest.mark.cover(1)
def test_a_saddle_point_is_no_success(method, bounds):
    # A pendulum that hangs at rest: by symmetry the derivative is zero, and a push in either direction is better.
    problem = ControlProblem(
        lambda t, x, u: torch.stack((x[:, 1], u[0] - torch.sin(x[:, 0])), dim=1),
        torch.zeros(1, 2, dtype=D),
        lambda x: 50 * (1 + torch.cos(x[:, 0])).sum(),
        lambda t, x, u: 0.01 * u.square().sum(),
        control_size=1,
        horizon=3.0,
        bounds=bounds,
    )
    assert minimize(problem, 16, method, integrator="rk4").status is Status.SADDLE
    pushed = minimize(replace(problem, start=0.1), 16, method, integrator="rk4", stop=Stop(max_iterations=60))
    assert pushed.value < 50
    assert pushed.status is not Status.SADDLE


def test_nothing_is_worse_than_the_start():
    problem = ControlProblem(
        lambda t, x, u: torch.stack((x[:, 1], u[0] - torch.sin(x[:, 0])), dim=1),
        torch.zeros(1, 2, dtype=D),
        lambda x: (50 * (1 + torch.cos(x[:, 0])) + 5 * x[:, 1].square()).sum(),
        lambda t, x, u: 0.1 * u.square().sum(),
        control_size=1,
        horizon=3.0,
        start=0.1,
    )
    start = discretize(problem, 64).value(discretize(problem, 64).discretization.start())
    for limit in (1, 2, 5, 1000):
        result = minimize(problem, 64, stop=Stop(max_iterations=limit))
        assert result.value <= start


def test_a_pulse_between_the_first_grids_is_found():
    width = 0.01
    problem = ControlProblem(
        lambda t, x, u: u + (1 / width if 0.331 < t < 0.331 + width else 0.0) + 0 * x,
        torch.zeros(1, 1, dtype=D),
        lambda x: (x - 1).square().sum(),
        lambda t, x, u: 0.1 * u.square().sum(),
        control_size=1,
    )
    result = minimize(problem, Adaptive(error=1e-3, first=8, limit=256, absolute=0.02), integrator="rk4")
    assert not result.success or result.value < 0.02


@pytest.mark.parametrize("steps", [1, 2, 8])
def test_a_control_that_holds_an_unstable_scheme_in_place_is_no_success(steps):
    problem = ControlProblem(
        lambda t, x, u: -1e3 * (x - u),
        torch.ones(1, 1, dtype=D),
        lambda x: x.square().sum(),
        lambda t, x, u: (x - 0.3).square().sum() + u.square().sum(),
        control_size=1,
    )
    assert minimize(problem, steps, LBFGS(), integrator="euler").status is Status.UNRESOLVED
    assert minimize(problem, steps, LBFGS(), integrator="backward_euler").status is Status.CONVERGED
