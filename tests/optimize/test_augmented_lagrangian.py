"""Constraints kept by an augmented Lagrangian, against closed forms and published values."""

from dataclasses import replace

import pytest
import torch

import ocp
from ocp import AugmentedLagrangian, ControlProblem, Parameter, Status, Stop
from ocp.objective.feasibility import violation
from ocp.problem.augmented import Augmentation, AugmentedEnd

DOUBLE = torch.float64


def row(*numbers):
    return torch.tensor([numbers], dtype=DOUBLE)


def push(t, x, u):
    """A mass of one that is pushed along a line."""
    return torch.stack((x[:, 1], u.expand(len(x))), dim=1)


def energy(t, x, u):
    return 0.5 * u.square().sum()


def least_energy(unit=1.0, **changes):
    """From rest to rest over a distance of one: u = 6 - 12 t, the energy is 6, and the costate (-12, -12 (1 - t) + 6).

    At the midpoints of N steps u is 6 - 12 t times 1 / (1 - 1 / N^2), and the multipliers grow by the same factor.
    """
    pieces = {
        "dynamics": push,
        "initial_state": row(0.0, 0.0),
        "running_cost": energy,
        "control_size": 1,
        "terminal_equality": lambda x: unit * (x - row(1.0, 0.0)),
    }
    return ControlProblem(**{**pieces, **changes})


@pytest.mark.parametrize(
    ("method", "unit"),
    [(AugmentedLagrangian(), 1e6), (AugmentedLagrangian(ocp.NewtonCG(), levels=2), 1.0)],
    ids=["L-BFGS", "Newton, two grids"],
)
def test_a_prescribed_end_is_reached_with_the_multipliers_of_the_closed_form(method, unit):
    result = ocp.minimize(least_energy(unit), 8, method, integrator="rk4", stop=Stop(1e-8, feasibility=1e-9))
    factor = 1 / (1 - 1 / 8**2)
    assert result.status is Status.CONVERGED, result
    assert result.value == pytest.approx(6 * factor, rel=1e-8)
    # The costate at the end is minus the multiplier: (-12, 6) = (nu_1, nu_2).
    assert (unit * result.multipliers.equality).tolist() == pytest.approx([-12 * factor, 6 * factor], rel=1e-6)
    assert result.multipliers.path is None
    assert result.violation.relative <= 1e-9
    assert result.history[-1].violation == pytest.approx(result.violation.relative)


def test_the_verdict_does_not_depend_on_units():
    small, large = (
        ocp.minimize(least_energy(unit), 8, AugmentedLagrangian(), integrator="rk4") for unit in (1.0, 2.0**30)
    )
    assert small.iterations == large.iterations
    assert large.violation.relative == pytest.approx(small.violation.relative, rel=1e-6)


def test_the_shortest_time_to_rest_is_two():
    """Full thrust, then full brake: Bryson & Ho (1975), "Applied Optimal Control", section 3.9."""
    problem = least_energy(
        running_cost=None,
        terminal_cost=lambda x, q: q.horizon,
        bounds=(-1, 1),
        horizon=Parameter(torch.tensor(1.5, dtype=DOUBLE), lower=0.1),
        start=lambda t: 0.5 - t,
    )
    result = ocp.minimize(problem, 16, AugmentedLagrangian(levels=2), integrator="rk4")
    assert result.success, result
    assert result.value == pytest.approx(2, abs=1e-5)
    assert result.control.path[[0, -1], 0].tolist() == [1.0, -1.0]


def slide(t, x, u):
    """A bead without friction; u is the angle of the wire to the vertical."""
    return torch.stack((x[:, 2] * torch.sin(u[0]), -x[:, 2] * torch.cos(u[0]), 9.81 * torch.cos(u).expand(len(x))), 1)


def test_the_brachistochrone():
    """From (0, 10) to (10, 5) along a cycloid, with theta - sin theta = 2 (1 - cos theta): 1.8012955 seconds."""
    problem = ControlProblem(
        slide,
        row(0.0, 10.0, 0.0),
        lambda x, q: q.horizon,
        control_size=1,
        horizon=Parameter(torch.tensor(1.5, dtype=DOUBLE), lower=0.1),
        start=lambda t: 0.2 + 1.2 * t,
        terminal_equality=lambda x: x[:, :2] - row(10.0, 5.0),
    )
    coarse, fine = (ocp.minimize(problem, n, AugmentedLagrangian(), integrator="rk4") for n in (8, 16))
    assert fine.success, fine
    # A control that is held is slower by the square of the step.
    assert (4 * fine.value - coarse.value) / 3 == pytest.approx(1.8012955, abs=1e-5)


def limited(unit=1.0):
    """Least energy from 0 to 1 with x' = u, where u may not be larger than 1.2 - 0.4 t."""
    return ControlProblem(
        lambda t, x, u: u.expand_as(x),
        row(0.0),
        running_cost=energy,
        control_size=1,
        path_constraint=lambda t, x, u: unit * (u - 1.2 + 0.4 * t),
        terminal_equality=lambda x: x - 1,
    )


def test_a_limit_of_the_control_that_depends_on_time_has_the_multipliers_of_the_closed_form():
    """With one end prescribed, u + nu + y = 0 and the multiplier y >= 0: u is the smaller of -nu and the limit."""
    limit = 1.2 - 0.04 * torch.arange(10, dtype=DOUBLE)
    result = ocp.minimize(limited(), 10, AugmentedLagrangian(), integrator="rk4", stop=Stop(1e-8, feasibility=1e-8))
    assert result.success, result
    u, y, nu = result.control.path[:, 0], result.multipliers.path[:, 0], float(result.multipliers.equality)
    low, high = 0.9, 1.2
    for _ in range(60):  # the level at which the mean of u is one, by bisection
        level = (low + high) / 2
        low, high = (level, high) if torch.minimum(limit, torch.tensor(level)).mean() < 1 else (low, level)
    torch.testing.assert_close(u, limit.clamp_max(level), atol=1e-7, rtol=0)
    assert nu == pytest.approx(-level, abs=1e-6)
    torch.testing.assert_close(y, (level - limit).clamp_min(0), atol=1e-6, rtol=0)
    assert y.max() > 0.1
    assert float(y.min()) == 0
    other = ocp.minimize(limited(), 10, ocp.InteriorPoint(), integrator="rk4").multipliers
    torch.testing.assert_close(other.path[:, 0], y, atol=1e-6, rtol=0)
    assert float(other.equality) == pytest.approx(nu, abs=1e-6)


def test_a_state_that_stays_below_a_limit():
    """x' = u with the cost (u - 2 (1 - 2 t))^2 / 2, whose minimum goes up to 1/2 and back, and x <= 1/4."""
    problem = ControlProblem(
        lambda t, x, u: u.expand_as(x),
        row(0.0),
        running_cost=lambda t, x, u: 0.5 * (u - 2 * (1 - 2 * t)).square().sum(),
        control_size=1,
        path_constraint=lambda t, x, u: x[:, 0] - 0.25,
    )
    result = ocp.minimize(problem, 16, AugmentedLagrangian(), integrator="rk4")
    x = result.trajectory(problem).x[:, 0, 0]
    assert result.success, result
    assert float(x.max()) <= 0.25 * (1 + 1e-5)
    assert result.violation.nodes[0].name == "path_constraint"
    assert result.violation.finer[0].relative < 1e-3
    # The Lagrangian is stationary: u_k - 2 (1 - 2 t) + sum over later nodes of y_j h = 0.
    y, t = result.multipliers.path[:, 0], (torch.arange(16, dtype=DOUBLE) + 0.5) / 16
    later = torch.cat((y[1:].flip(0).cumsum(0).flip(0), row(0.0)[0])) / 16
    torch.testing.assert_close(result.control.path[:, 0], 2 * (1 - 2 * t) - later, atol=1e-4, rtol=0)


def test_constraints_that_exclude_each_other_are_infeasible():
    problem = least_energy(terminal_inequality=lambda x: 2 - x[:, 0])
    result = ocp.minimize(problem, 8, AugmentedLagrangian(), integrator="rk4", stop=Stop(max_iterations=300))
    assert result.status is Status.INFEASIBLE
    assert result.violation.relative > 0.1
    assert "The largest violation of a constraint is" in result.message


def test_a_target_is_not_reached_before_the_constraints():
    result = ocp.minimize(
        least_energy(),
        8,
        AugmentedLagrangian(),
        integrator="rk4",
        stop=Stop(target=ocp.Target("value", 7.0), feasibility=1e-3),
    )
    assert result.status is Status.TARGET
    assert 1e-6 < result.violation.relative <= 1e-3
    assert result.history[0].finest_value == 0.0  # without moving, at no cost
    assert not result.history[0].feasible


def test_an_interrupted_run_ends_as_without_the_interruption(tmp_path):
    method = AugmentedLagrangian(ocp.NewtonCG(), levels=2)
    whole = ocp.minimize(limited(), 8, method)
    first = Stop(max_iterations=4)
    ocp.minimize(limited(), 8, method, stop=first, checkpoint=ocp.Checkpoint(tmp_path, seconds=0.0))
    resumed = ocp.minimize(limited(), 8, method, checkpoint=ocp.Checkpoint(tmp_path, resume=True))
    assert resumed.about["resumed"] == 4
    assert torch.equal(resumed.control.flat, whole.control.flat)
    assert torch.equal(resumed.multipliers.path, whole.multipliers.path)
    assert resumed.work_units == whole.work_units
    assert [replace(r, seconds=0) for r in resumed.history] == [replace(r, seconds=0) for r in whole.history]


def test_results_keep_violation_and_multipliers(tmp_path):
    result = ocp.minimize(limited(), 4, AugmentedLagrangian())
    loaded = ocp.Result.load(result.save(tmp_path))
    assert loaded.violation == result.violation
    assert torch.equal(loaded.multipliers.path, result.multipliers.path)
    assert torch.equal(loaded.multipliers.equality, result.multipliers.equality)
    assert "violation" in str(loaded)


@pytest.mark.parametrize("steps", [3, 6, 12])
def test_multipliers_along_the_way_are_functions_of_time(steps):
    """On constant values the mean over the nodes is the same on every grid."""
    problem = ControlProblem(
        lambda t, x, u: 0 * x, row(0.5), running_cost=energy, control_size=1, path_constraint=lambda t, x, u: x[:, 0]
    )
    y = torch.arange(6, dtype=DOUBLE).view(6, 1)
    by = Augmentation({"path_constraint": y}, {"path_constraint": torch.ones(1, dtype=DOUBLE)}, 4.0)
    objective = ocp.discretize(problem, 6).augmented(by).on(steps)
    means = y.view(3, 2).mean(1) if steps == 3 else y[:, 0]
    expected = ((means + 2).square() - means.square()).mean() / 8
    assert objective.value(torch.zeros(steps, dtype=DOUBLE)) == pytest.approx(float(expected))


def test_violations_are_those_of_states_and_controls():
    problem = limited(unit=3.0)
    found = violation(ocp.discretize(problem, 4).discretization, torch.full((4,), 1.5, dtype=DOUBLE))
    path, end = found.nodes
    assert (path.name, path.entry, path.node) == ("path_constraint", 0, 3)
    assert path.value == pytest.approx(3 * (1.5 - 1.2 + 0.4 * 0.75))
    assert (end.name, end.node) == ("terminal_equality", 4)
    assert end.value == pytest.approx(0.5)
    assert found.finer[0].node == 16  # the last node, with the last control
    assert found.finer[0].value == pytest.approx(3 * (1.5 - 1.2 + 0.4))


def entangled():
    """Constraints of all kinds on states, controls, parameters and a free final time."""
    return ControlProblem(
        lambda t, x, u, q: torch.stack((x[:, 1] * q.speed, u.expand(len(x))), dim=1),
        row(0.2, 1.0),
        running_cost=energy,
        control_size=1,
        parameters={"speed": torch.tensor(1.5, dtype=DOUBLE)},
        horizon=Parameter(torch.tensor(1.3, dtype=DOUBLE)),
        path_constraint=lambda t, x, u, q: torch.stack((x[0, 0] * q.speed, u[0] * x[0, 1] + t)),
        terminal_equality=lambda x, q: q.speed * x,
        terminal_inequality=lambda x: x[:, 0].square() - 0.1,
    )


def test_derivatives_of_constraints_are_verified(monkeypatch):
    objective = ocp.discretize(entangled(), 3, "euler")
    report = ocp.verify(objective)
    assert report.passed, report
    names = [check.name for check in report.checks]
    assert "terminal_inequality: derivative against central difference" in names
    assert "augmented Lagrangian: Taylor order with the Hessian" in names
    monkeypatch.setattr(AugmentedEnd, "derivative", lambda self, x, q: (torch.zeros_like(x), torch.zeros_like(q)))
    failed = [check.name for check in ocp.verify(objective).checks if not check.passed]
    assert "augmented Lagrangian: Taylor order with the derivative" in failed
    assert all(name.startswith("augmented Lagrangian") for name in failed)


def random_terms():
    return Augmentation(
        {
            "path_constraint": torch.rand(2, 2, dtype=DOUBLE),
            "terminal_equality": torch.ones(2, dtype=DOUBLE),
            "terminal_inequality": torch.ones(1, dtype=DOUBLE),
        },
        {"path_constraint": 1.0, "terminal_equality": 1.0, "terminal_inequality": 1.0},
        2.0,
    )


def test_implicit_steps_have_costs_at_their_nodes():
    objective = ocp.discretize(entangled(), 4, "implicit_midpoint").augmented(random_terms())
    u, d = torch.linspace(-1, 1, 6, dtype=DOUBLE), torch.linspace(0, 2, 6, dtype=DOUBLE)
    assert objective.directional(u, d) == pytest.approx(float(objective.derivative(u) @ d), rel=1e-12)
    e = 1e-5
    change = (objective.derivative(u + e * d) - objective.derivative(u - e * d)) / (2 * e)
    torch.testing.assert_close(objective.hessian_product(u, d), change, rtol=1e-7, atol=1e-7)


def test_schedules_repeat_the_costs_at_the_nodes():
    by, u = random_terms(), torch.linspace(-1, 1, 10, dtype=DOUBLE)
    stored, repeated = (
        ocp.discretize(entangled(), 8, "rk4", schedule).augmented(by) for schedule in (ocp.StoreAll(), ocp.Binomial(2))
    )
    torch.testing.assert_close(stored.derivative(u), repeated.derivative(u), atol=1e-12, rtol=1e-12)
    assert stored.value(u) == pytest.approx(repeated.value(u), rel=1e-12)


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"growth": 1.0}, r"penalty, growth, iterations: expected numbers > 0, > 1 and >= 1, got 10.0, 1.0, 100"),
        ({"method": ocp.LBFGS}, r"method: expected a method such as LBFGS\(\) .*, got the class LBFGS"),
    ],
)
def test_arguments_that_do_not_fit_are_refused(arguments, message):
    with pytest.raises((TypeError, ValueError), match=message):
        AugmentedLagrangian(**arguments)


def test_uses_that_do_not_fit_are_refused():
    free = ControlProblem(lambda t, x, u: u - x, row(1.0), running_cost=energy, control_size=1)
    with pytest.raises(ValueError, match="method: AugmentedLagrangian expected a problem with constraints"):
        ocp.minimize(free, 4, AugmentedLagrangian())
    with pytest.raises(ValueError, match=r"method: expected one that begins on the grid it is given, .* got Nested"):
        ocp.minimize(limited(), 4, AugmentedLagrangian(ocp.Nested(2)))
    with pytest.raises(ValueError, match="batches, processes: expected none with constraints"):
        ocp.minimize(limited(), 4, AugmentedLagrangian(), batches=ocp.Batches(1))
