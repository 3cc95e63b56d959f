"""Constraints of a control problem, in `minimize` with the interior-point method."""

from math import pi

import pytest
import torch

import ocp
from ocp import ControlProblem, InteriorPoint, Status, Stop, Target, minimize


def tensor(*numbers):
    return torch.tensor(numbers, dtype=torch.float64)


def mass(t, x, u):
    return torch.stack((x[:, 1], u.expand(1)), dim=1)


def move(force, **pieces):
    """Move a mass by 1 within one unit of time, from rest to rest, with little effort."""
    pieces = {"terminal_equality": lambda x: x[0] - tensor(1, 0), **pieces}
    effort = lambda t, x, u: u.square().sum()  # noqa: E731
    return ControlProblem(
        mass, tensor(0, 0)[None], running_cost=effort, control_size=1, bounds=(-force, force), **pieces
    )


def solve(problem, steps=32, **options):
    return minimize(problem, steps, InteriorPoint(), integrator="rk4", **options)


def test_equations_at_the_end_hold_though_the_derivative_vanishes_at_the_start():
    result = solve(move(50.0))
    assert result.success
    assert result.iterations > 0
    assert result.value == pytest.approx(12, rel=2e-3)
    torch.testing.assert_close(
        ocp.discretize(move(50.0), 32, "rk4").final_state(result.control), tensor(1, 0)[None], rtol=0, atol=1e-9
    )


def test_the_final_time_is_found_and_the_bead_falls_where_the_target_lets_it():
    problem = ControlProblem(
        lambda t, x, u: torch.stack(
            (x[:, 2] * torch.sin(u[0]), -x[:, 2] * torch.cos(u[0]), 9.81 * torch.cos(u[0]).expand(1)), dim=1
        ),
        tensor(0, 10, 0)[None],
        lambda x, q: q.horizon.sum(),
        horizon=ocp.Parameter(2.0, lower=0.1, upper=20.0),
        control_size=1,
        bounds=(0.01, pi - 0.01),
        start=0.8,
        terminal_equality=lambda x: x[0, :2] - tensor(10, 5),
    )
    result = solve(problem)
    assert result.success
    assert result.value == pytest.approx(1.801296, rel=5e-4)
    assert float(result.control.parameters) == pytest.approx(result.value)


def test_constraints_on_the_path_hold_at_the_nodes():
    """Bryson & Ho (1975), section 3.11: 4 / (9 l) for l <= 1/6."""
    problem = ControlProblem(
        mass,
        tensor(0, 1)[None],
        running_cost=lambda t, x, u: 0.5 * u.square().sum(),
        control_size=1,
        path_constraint=lambda t, x, u: x[0, 0] - 1 / 9,
        terminal_equality=lambda x: x[0] - tensor(0, -1),
    )
    result = solve(problem, 64)
    assert result.success
    assert result.value == pytest.approx(4, rel=1e-3)
    states = ocp.discretize(problem, 64, "rk4").trajectory(result.control).x
    assert float(states[:, 0, 0].max()) <= 1 / 9 + 1e-8


@pytest.mark.parametrize(
    ("pieces", "name"),
    [
        ({}, "terminal_equality"),
        (
            {
                "terminal_equality": lambda x: x[0, :1] - tensor(1, 2),
                "horizon": ocp.Parameter(1.0, lower=0.1, upper=20),
            },
            "terminal_equality",
        ),
        ({"terminal_equality": None, "terminal_inequality": lambda x: 1 - x[0, :1]}, "terminal_inequality"),
        ({"terminal_equality": None, "path_constraint": lambda t, x, u: 1 - x[0, :1]}, "path_constraint"),
    ],
)
def test_an_infeasible_problem_ends_in_a_status_that_names_the_constraint(pieces, name):
    result = solve(move(1.0, **pieces))
    assert result.status is Status.INFEASIBLE
    assert not result.success
    assert result.status.failed
    assert f"of {name}." in result.message


def test_a_target_counts_only_where_the_constraints_hold():
    result = solve(move(50.0), stop=Stop(target=Target("value", 13.0)))
    assert result.status in (Status.CONVERGED, Status.TARGET)
    assert 11.5 < result.value < 13


def test_a_run_that_was_cut_short_returns_its_last_control_and_says_what_is_violated():
    method = InteriorPoint(iterations=1)
    result = minimize(move(5.0), 16, method, integrator="rk4", stop=Stop(max_iterations=2))
    assert result.status is Status.MAX_ITERATIONS
    assert result.value == result.history[-1].value
    assert "The largest violation of a constraint is" in result.message
