"""Measurements at given times, against autograd through a loop written out."""

from math import nan

import pytest
import torch

import ocp
from ocp import ControlProblem, Measurements, Parameter, discretize
from ocp.problem.augmented import Augmentation

STEPS, T = 5, 1.5
X0 = torch.tensor([[0.3, -0.2], [1.0, 0.5]], dtype=torch.float64)
#: At 0, within steps, at a node, twice in a step, at T; each experiment has its own times, and one has one less.
TIMES = torch.tensor([[0.0, 0.1, 0.3, 0.95, 1.0, 1.5], [0.2, 0.6, 1.2, 1.2, 1.45, nan]], dtype=torch.float64)
VALUES = torch.sin(torch.arange(24, dtype=torch.float64)).view(2, 6, 2)
VALUES[0, 2, 1] = VALUES[1, 5, 0] = VALUES[1, 5, 1] = nan
WEIGHT = torch.tensor([2.0, 0.5], dtype=torch.float64)


def swing(t, x, u, q):
    force = u[0] * torch.cos(torch.as_tensor(t, dtype=x.dtype)) - q["spring"] * torch.sin(x[:, 0]) - 0.3 * x[:, 1]
    return torch.stack((x[:, 1], force), dim=1)


def seen(x, q):
    return torch.stack((q["gain"] * x[:, 0], x[:, 0] * x[:, 1]), dim=1)


def problem(**changes):
    pieces = {
        "dynamics": swing,
        "initial_state": lambda q: X0 * q["gain"],
        "running_cost": lambda t, x, u: 0.5 * u.square().sum() + x.square().sum() / len(x),
        "horizon": T,
        "control_size": 1,
        "parameters": {"spring": torch.tensor(0.7).double(), "gain": torch.tensor(1.3).double()},
        "measurements": Measurements(TIMES, VALUES, seen, WEIGHT),
    }
    return ControlProblem(**{**pieces, **changes})


def step(scheme, f, t, h, x):
    return x + h * (f(t, x) if scheme == "euler" else f(t + h / 2, x + h / 2 * f(t, x)))


def reference(flat, scheme):
    u, q = flat[:STEPS].view(STEPS, 1), {"spring": flat[STEPS], "gain": flat[STEPS + 1]}
    x, cost, h = X0 * q["gain"], 0.0, T / STEPS
    for k in range(STEPS):
        f = lambda t, x, k=k: swing(t, x, u[k], q)  # noqa: E731
        for b in range(2):
            for i, t in enumerate(TIMES[b].tolist()):
                if k * h < t <= (k + 1) * h or t == k == 0:
                    y, present = seen(step(scheme, f, k * h, t - k * h, x), q)[b], ~VALUES[b, i].isnan()
                    cost = cost + 0.25 * (WEIGHT[present] * (y[present] - VALUES[b, i][present]).square()).sum()
        z = x if scheme == "euler" else x + h / 2 * f(k * h, x)
        cost = cost + h * (0.5 * u[k].square().sum() + z.square().sum() / 2)
        x = step(scheme, f, k * h, h, x)
    return cost


@pytest.mark.parametrize(
    ("scheme", "schedule"), [("euler", ocp.StoreAll()), ("midpoint", ocp.StoreAll()), ("midpoint", ocp.Binomial(2))]
)
def test_value_derivative_and_hessian_products_are_those_of_autograd_through_the_loop(scheme, schedule, rand):
    objective = discretize(problem(), STEPS, scheme, schedule)
    flat = torch.cat((rand(STEPS), torch.tensor([0.7, 1.3]).double()))
    u, direction = flat.clone().requires_grad_(), rand(len(flat))
    expected = reference(u, scheme)
    (derivative,) = torch.autograd.grad(expected, u, create_graph=True)
    (product,) = torch.autograd.grad((derivative * direction).sum(), u)
    point = objective.at(flat)
    assert point.value == pytest.approx(float(expected.detach()), rel=1e-13)
    torch.testing.assert_close(point.derivative, derivative.detach(), rtol=1e-11, atol=1e-12)
    torch.testing.assert_close(point.hessian_product(direction), product, rtol=1e-11, atol=1e-12)
    slope = float(torch.dot(derivative.detach(), direction))
    assert objective.directional(flat, direction) == pytest.approx(slope, rel=1e-11)
    trajectory = objective.trajectory(flat)  # by steps one by one
    torch.testing.assert_close(objective.space.path(derivative.detach()) / (T / STEPS), trajectory.gradient)


def test_the_objective_is_the_mean_of_those_of_the_experiments(rand):
    objective = discretize(problem(initial_state=X0), STEPS, "midpoint")
    flat = torch.cat((rand(STEPS), torch.tensor([0.7, 1.3]).double()))
    parts = [objective.take(torch.tensor([k])).at(flat) for k in range(2)]
    whole = objective.at(flat)
    assert sum(part.value for part in parts) / 2 == pytest.approx(whole.value, rel=1e-13)
    torch.testing.assert_close(sum(part.derivative for part in parts) / 2, whole.derivative)
    objective.discretization.check_division()


def test_times_at_the_nodes_of_a_grid_are_found_whatever_their_rounding():
    """0.1, 0.2, ..., 1 in single precision, on grids of which they are nodes; x = 1, so that each of them costs 2."""
    times = torch.arange(1, 11) / 10
    at_rest = ControlProblem(
        lambda t, x, u: 0 * x + u,
        torch.ones(1, 1),
        control_size=1,
        measurements=Measurements(times, 3 * torch.ones(10)),
    )
    for steps in (1, 3, 10, 20):
        objective = discretize(at_rest, steps)
        plan = [
            objective.discretization.problem.equation.observation.within(t, 1 / steps, torch.ones(1, 1))
            for t in objective.space.grid.nodes[:-1]
        ]
        lengths = [length for within in plan for length, _ in within]
        assert objective.value(torch.zeros(steps)) == 20
        assert sum(length == 1 / steps for length in lengths) == {1: 1, 3: 1, 10: 10, 20: 10}[steps]
        assert all(length > 0.01 for length in lengths)


D = torch.tensor([0.5, 1.0], dtype=torch.float64)


@pytest.mark.parametrize(
    ("arguments", "error", "message"),
    [
        (([0.1], D), TypeError, r"times: expected a tensor, got list; torch.as_tensor"),
        ((D, D[:1]), ValueError, r"values: expected shape \(batch, count, k\), .* got \(1,\)"),
        (
            (D.expand(3, 2), D.expand(2, 2)),
            ValueError,
            r"values: expected shape .* of the times \(3, 2\), got \(2, 2\)",
        ),
        ((D[None, None], D), ValueError, r"times: expected shape \(count,\) or \(batch, count\), got \(1, 1, 2\)"),
        ((D, torch.tensor([1.0, torch.inf])), ValueError, r"values: expected finite numbers"),
        ((D * nan, D), ValueError, r"times: expected a time for each measurement, got NaN"),
        ((D, D * nan), ValueError, r"values: expected at least one number with a positive weight, got none"),
        ((D, D, None, -1.0), ValueError, r"weight: expected numbers >= 0, got -1"),
        ((D, D, None, torch.ones(3)), ValueError, r"weight: expected a number, shape \(1,\) or .* got \(3,\)"),
        ((D, D, 1.0), TypeError, r"observe: expected a function y\(x\) or y\(x, q\), got float"),
        ((D, D, lambda q, x: x), ValueError, r"observe: expected the arguments \(x, q\), got \(q, x\)"),
    ],
)
def test_data_that_do_not_fit_are_refused(arguments, error, message):
    with pytest.raises(error, match=message):
        Measurements(*arguments)


@pytest.mark.parametrize(
    ("changes", "error", "message"),
    [
        ({"measurements": Measurements(2 * D, VALUES[:, :2])}, ValueError, r"between 0 and the horizon 1.5, got 2"),
        ({"measurements": Measurements(D - 1, VALUES[:, :2])}, ValueError, r"between 0 and the horizon 1.5, got -0.5"),
        ({"measurements": (D, D)}, TypeError, r"measurements: expected Measurements\(times, values\), got tuple"),
        ({"horizon": Parameter(1.5)}, ValueError, r"measurements: expected a fixed horizon, .* got a free one"),
        ({"measurements": Measurements(D, D.expand(3, 2, 2))}, ValueError, r"each of the 2 samples .* values for 3"),
        ({"measurements": Measurements(D, D)}, ValueError, r"observe: expected shape \(2, 1\), .* got \(2, 2\)"),
        (
            {"measurements": Measurements(D, D, lambda x: x[:, 0].detach())},
            ValueError,
            r"observe: expected operations that autograd can follow",
        ),
        (
            {"measurements": Measurements(D, D, lambda x, q: x[:, 0] * q.mass)},
            ValueError,
            r"observe: .* expected one of the parameters spring, gain, got 'mass'",
        ),
    ],
)
def test_measurements_that_do_not_fit_the_problem_are_refused(changes, error, message):
    with pytest.raises(error, match=message):
        discretize(problem(**changes), STEPS)


def test_what_is_observed_of_a_sample_must_not_depend_on_others():
    sums = Measurements(D, torch.ones(2), lambda x: x.sum() * x[:, 0])
    with pytest.raises(ValueError, match=r"observe: expected samples that do not depend on each other"):
        discretize(problem(initial_state=X0, measurements=sums), STEPS).discretization.check_division()


def test_interior_point_refuses_measurements():
    with pytest.raises(ValueError, match=r"InteriorPoint expected a problem without measurements"):
        ocp.minimize(problem(), STEPS, ocp.InteriorPoint())


def test_measurements_and_an_augmented_lagrangian_add_up(rand):
    """The terms of a path constraint belong to the nodes, however many measurements there are in a step."""
    path = {"path_constraint": lambda t, x, u, q: x[:, 0] - q.spring}
    flat, direction = torch.cat((rand(STEPS), torch.tensor([0.7, 1.3]).double())), rand(STEPS + 2)
    by = Augmentation({"path_constraint": rand(STEPS, 2).abs()}, {"path_constraint": torch.ones(2).double()}, 2.0)
    objectives = [discretize(problem(**changes, **path), STEPS, "midpoint") for changes in ({}, {"measurements": None})]
    (both, plain), (augmented, terms) = (
        [each(o).at(flat) for o in objectives] for each in (lambda o: o, lambda o: o.augmented(by))
    )
    assert augmented.value - both.value == pytest.approx(terms.value - plain.value, rel=1e-12)
    torch.testing.assert_close(augmented.derivative - both.derivative, terms.derivative - plain.derivative)
    products = [point.hessian_product(direction) for point in (augmented, both, terms, plain)]
    torch.testing.assert_close(products[0] - products[1], products[2] - products[3])
    slope = augmented.objective.directional(flat, direction)
    assert slope == pytest.approx(float(torch.dot(augmented.derivative, direction)), rel=1e-11)
