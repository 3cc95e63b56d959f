"""The interior-point method on programs with constraints, parameters and free final times."""

from dataclasses import replace

import numpy as np
import pytest
import torch
from programs import CONSTRAINED, double_integrator, plain, program, solve, vector

from ocp.adjoint.rows import Rows
from ocp.optimize.interior_point.banded import BandedLU
from ocp.optimize.interior_point.feasibility import violations
from ocp.optimize.interior_point.iterate import errors
from ocp.optimize.interior_point.nesting import prolonged
from ocp.optimize.interior_point.riccati import Riccati
from ocp.optimize.status import Status


@pytest.mark.parametrize("name", CONSTRAINED)
def test_optima_with_constraints_are_the_known_ones(name):
    statement, start, optimum, accuracy = CONSTRAINED[name]
    found, iterations = solve(program(64, **statement), **start)
    assert found.status is Status.CONVERGED
    assert found.number <= 30
    assert plain(found, iterations)[0] == pytest.approx(optimum, rel=accuracy)
    assert found.errors.primal <= 1e-8


@pytest.mark.parametrize("name", ["minimum time", "cart-pole"])
def test_both_linear_solvers_lead_to_the_same_optimum(name):
    statement, start, _, _ = CONSTRAINED[name]
    a, b = (solve(program(16, **statement), **start, solver=solver) for solver in (BandedLU, Riccati))
    assert a[0].status is b[0].status is Status.CONVERGED
    assert plain(*b)[0] == pytest.approx(plain(*a)[0], rel=1e-6)


def reach(distance, force, **pieces):
    """Move a mass by a distance within one unit of time, from rest to rest, with bounded force: 4 is enough for 1."""
    pieces = {"g": lambda x, q: vector(x[0] - distance, x[1]), **pieces}
    return program(32, double_integrator, [0, 0], L=lambda t, x, u, q: u[0] ** 2, bounds=(-force, force), **pieces)


INFEASIBLE = {
    "too little force": (reach(1.0, 3.9), "terminal_equality"),
    "equations that contradict each other": (
        reach(1.0, 100.0, g=lambda x, q: vector(x[0] - 1, x[0] - 2)),
        "terminal_equality",
    ),
    "an equation without a root": (reach(1.0, 5.0, g=lambda x, q: vector(x[0] ** 2 + 1)), "terminal_equality"),
    "a path that is nowhere allowed": (
        reach(1.0, 5.0, g=None, c=lambda t, x, u, q: vector(x[0] - 1, 1.1 - x[0])),
        "path_constraint",
    ),
    "a limit out of reach": (reach(1.0, 1.0, g=None, d=lambda x, q: vector(1 - x[0])), "terminal_inequality"),
}


@pytest.mark.parametrize("name", INFEASIBLE)
def test_an_infeasible_problem_is_said_to_be_one(name):
    impossible, culprit = INFEASIBLE[name]
    found, _ = solve(impossible)
    assert found.status is Status.INFEASIBLE
    largest = violations(impossible, found.values)
    assert max(largest, key=largest.get) == culprit


def test_a_little_more_force_makes_it_feasible():
    assert solve(reach(1.0, 4.1))[0].status is Status.CONVERGED


def test_equations_may_say_the_same_twice():
    found, iterations = solve(reach(1.0, 5.0, g=lambda x, q: vector(x[0] - 1, 2 * x[0] - 2, x[1])))
    assert found.status is Status.CONVERGED
    assert plain(found, iterations)[0] == pytest.approx(12, rel=1e-2)


def test_limits_at_the_end_bind_only_where_they_have_to():
    """Move as little as 1 - x <= 0 asks for; the speed at the end is free: the cost is 3."""
    cost, point = plain(*solve(reach(1.0, 5.0, g=None, d=lambda x, q: vector(1 - x[0], x[0] - 7))))
    assert cost == pytest.approx(3, rel=1e-2)
    tight, loose = point.y[-2:]
    assert tight == pytest.approx(6, rel=1e-2)  # the derivative of 3 d^2 by the distance d
    assert loose == pytest.approx(0, abs=1e-7)


def test_a_parameter_of_the_initial_state_is_found():
    """Minimize (x_0 - 3)^2 / 2 + x(1)^2 / 2 with x' = -x, x(0) = q: q (1 + e^-2) = 3."""
    statement = program(
        20, lambda t, x, u, q: -x + 0 * u, [1.0], L=lambda t, x, u, q: 0.5 * u[0] ** 2 + 0.5 * (q[0] - 3) ** 2,
        Phi=lambda x, q: 0.5 * x[0] ** 2, q=[1.0], X0=lambda q: q,
    )  # fmt: skip
    found, _ = solve(statement, q=[1.0])
    assert found.status is Status.CONVERGED
    assert found.point.q[0] == pytest.approx(3 / (1 + np.exp(-2)), rel=1e-6)


def test_bounds_on_parameters_hold():
    statement = program(
        8, lambda t, x, u, q: u + 0 * x, [1.0], L=lambda t, x, u, q: u[0] ** 2 + (q[0] - 3) ** 2, q=[0.5], box=(0, 1)
    )
    _, point = plain(*solve(statement, q=[0.5]))
    assert point.q[0] == pytest.approx(1, abs=1e-7)
    assert point.y[-1] == pytest.approx(4, rel=1e-6)


def test_equal_bounds_prescribe_controls_and_parameters():
    statement = program(
        8,
        lambda t, x, u, q: u[:1] * u[1] + q,
        [1.0],
        L=lambda t, x, u, q: (u - 1).square().sum() + x[0] ** 2,
        q=[0.5],
        m=2,
    )
    lower, upper = np.full((8, 2), -9.0), np.full((8, 2), 9.0)
    lower[:, 1] = upper[:, 1] = np.linspace(0, 1, 8)
    fixed = replace(statement, lower=lower, upper=upper, least=np.array([0.25]), most=np.array([0.25]))
    found, iterations = solve(fixed, q=[0.25])
    assert found.status is Status.CONVERGED
    np.testing.assert_array_equal(found.point.u[:, 1], lower[:, 1])
    assert found.point.q[0] == 0.25
    loose = solve(replace(fixed, lower=lower - 1e-7 * (lower == upper), least=np.array([0.25 - 1e-7])), q=[0.25])
    assert plain(found, iterations)[0] == pytest.approx(plain(*loose)[0], rel=1e-5)


def test_multipliers_are_the_derivatives_of_the_optimum():
    """By the initial state and the final one, against differences of optima."""

    def optimum(start, end):
        statement = program(
            16, lambda t, x, u, q: vector(x[1], u[0] - torch.sin(x[0])), start, L=lambda t, x, u, q: u[0] ** 2,
            g=lambda x, q: x - vector(*end), bounds=(-30, 30),
        )  # fmt: skip
        return plain(*solve(statement, target=end))

    (_, found), eps = optimum([0.1, 0.2], [1.0, 0.0]), 1e-4
    for k, step in enumerate(eps * np.eye(2)):
        up, down = (optimum(np.array([0.1, 0.2]) + sign * step, [1.0, 0.0])[0] for sign in (1, -1))
        assert found.costates[0, k] == pytest.approx((up - down) / (2 * eps), rel=1e-5)
        up, down = (optimum([0.1, 0.2], np.array([1.0, 0.0]) + sign * step)[0] for sign in (1, -1))
        assert -found.nu[k] == pytest.approx((up - down) / (2 * eps), rel=1e-5)


@pytest.mark.parametrize("name", ["cart-pole", "goddard"])
def test_a_prolonged_solution_needs_few_iterations(name):
    statement, start, _, _ = CONSTRAINED[name]
    found, coarse = solve(program(32, **statement), **start, tolerance=1e-5)
    _, fine = solve(program(128, **statement), **start, limit=0)
    fine.program = replace(fine.program, scale=coarse.program.scale)
    after = fine.run(fine.resume(prolonged(found.point, coarse.inequalities, fine.inequalities)), 20)
    assert after.status is Status.CONVERGED
    assert after.number <= 8
    alone, same = solve(program(128, **statement), **start)
    assert plain(after, fine)[0] == pytest.approx(plain(alone, same)[0], rel=1e-7)
    assert alone.number >= 2 * after.number


def test_what_is_spread_over_the_steps_is_gathered_again():
    statement, start, _, _ = CONSTRAINED["cart-pole"]
    inequalities = solve(program(5, **statement), **start, limit=0)[1].inequalities
    y = np.arange(1.0, inequalities.number + 1)
    by_step, others = inequalities.spread(y)
    assert by_step.shape == (5, 4)
    np.testing.assert_array_equal(inequalities.gather(by_step, others), y)


def test_values_that_are_not_finite_end_in_a_status():
    statement = program(4, lambda t, x, u, q: u * torch.nan, [1.0], L=lambda t, x, u, q: u[0] ** 2)
    assert solve(statement)[0].status is Status.NOT_FINITE


def test_steps_out_of_the_domain_of_a_function_are_cut():
    """The logarithm keeps u below 1, where Newton's first step would lead beyond."""
    statement = program(
        4, lambda t, x, u, q: u + 0 * x, [0.0], L=lambda t, x, u, q: -torch.log(1 - u[0]), Phi=lambda x, q: -50 * x[0]
    )
    found, _ = solve(statement, u=0.5)
    assert found.status in (Status.CONVERGED, Status.NO_DECREASE)
    assert np.isfinite(found.values.cost)


def test_derivatives_of_the_lagrangian_are_differences_of_values(rand):
    """All pieces at once: path, equations and limits at the end, parameters in the initial state, damping."""
    statement = replace(
        program(
            3, lambda t, x, u, q: vector(x[1] * q[0], torch.sin(x[0]) * u[0] + t), [1.0, 0.5],
            L=lambda t, x, u, q: (x * q).sum() ** 2 * u[0], Phi=lambda x, q: x[0] ** 3 * q[1],
            g=lambda x, q: vector(x[0] * x[1] + q[0]), d=lambda x, q: vector(torch.exp(x[0]), q[1] * x[1] ** 2),
            c=lambda t, x, u, q: vector(x[0] * u[0] * q[1], x[1] ** 2 - t), q=[0.7, 0.4], X0=lambda q: q**2,
        ),
        damping=0.3, scale=1.7,
    )  # fmt: skip
    x, u, q, costates, nu, y = (rand(*s).numpy() for s in ((4, 2), (3, 1), (2,), (4, 2), (1,), (8,)))
    assert isinstance(statement.initial, Rows)

    def lagrangian(x, u, q):
        at = statement.values(x, u, q)
        return at.cost + (costates * at.defects).sum() + nu @ at.equations + y @ at.limits

    def slope(x, u, q):
        at = statement.derivatives(x, u, q, statement.values(x, u, q).taken, costates, nu, y)
        by_step = at.gradient + np.einsum("ijk,ki->jk", at.J, costates[1:])
        by_step += np.einsum("cjk,kc->jk", at.path, y[:6].reshape(3, 2))
        by_end = at.end_gradient + at.G.T @ nu + at.limits.T @ y[6:]
        by_x = np.concatenate((by_step[:2].T, by_end[None, :2])) - costates
        by_q = by_step[3:].sum(1) + by_end[2:] + at.start.T @ costates[0] + at.parameter_gradient
        return np.concatenate((by_x.ravel(), by_step[2], by_q)), at

    def split(z):
        return z[:8].reshape(4, 2), z[8:11].reshape(3, 1), z[11:]

    z, eps = np.concatenate((x.ravel(), u.ravel(), q)), 1e-6
    found, at = slope(x, u, q)
    H = np.zeros((13, 13))
    for k in range(4):
        if k < 3:
            rows = np.r_[2 * k : 2 * k + 2, 8 + k, 11:13]
            H[np.ix_(rows, rows)] += at.H[..., k]
        else:
            H[np.ix_([6, 7, 11, 12], [6, 7, 11, 12])] += at.end_hessian
    H[11:, 11:] += at.parameters
    for j in range(13):
        e = eps * np.eye(13)[j]
        assert found[j] == pytest.approx((lagrangian(*split(z + e)) - lagrangian(*split(z - e))) / (2 * eps), abs=1e-7)
        column = (slope(*split(z + e))[0] - slope(*split(z - e))[0]) / (2 * eps)
        np.testing.assert_allclose(H[:, j], column, atol=1e-6)


@pytest.mark.parametrize("name", ["minimum time", "cart-pole"])
def test_the_unit_of_the_cost_makes_no_difference(name):
    statement, start, _, _ = CONSTRAINED[name]
    one = program(16, **statement)
    runs = [solve(replace(one, scale=unit), **start) for unit in (1.0, 2.0**-40, 2.0**40)]
    for found, iterations in runs:
        assert found.number == runs[0][0].number
        assert plain(found, iterations)[0] == pytest.approx(plain(*runs[0])[0], rel=1e-12)


def test_errors_vanish_at_a_solution_and_nowhere_near():
    statement, start, _, _ = CONSTRAINED["minimum time"]
    found, iterations = solve(program(8, **statement), **start)
    at = found.point
    for name in ("x", "u", "costates", "y"):
        moved = replace(at, **{name: getattr(at, name) * 1.01 + 0.01})
        values = iterations.program.values(moved.x, moved.u, moved.q)
        derivatives = iterations._derivatives(moved, values)
        assert errors(iterations.program, iterations.inequalities, moved, values, derivatives).largest > 1e-4
