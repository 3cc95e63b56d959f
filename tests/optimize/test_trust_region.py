"""Truncated conjugate gradients and the trust region."""

from itertools import pairwise
from math import inf, log, nan

import pytest
import torch

from ocp import ControlSpace, TimeGrid, TrustRegion
from ocp.objective.evaluation import optimality
from ocp.optimize.newton_cg import steihaug
from ocp.space.bounds import Box


def space(dimension, horizon=1.0):
    return ControlSpace(TimeGrid(horizon, dimension), 1)


def rosenbrock(u):
    return (1 - u[0]) ** 2 + 100 * (u[1] - u[0] ** 2) ** 2


def quadratic(A, b):
    return lambda u: 0.5 * torch.dot(u, A @ u) - torch.dot(b, u)


@pytest.fixture
def definite(rand):
    """Space, Hessian and derivative of a convex model in 12 dimensions."""
    B = rand(12, 12)
    return space(12), B @ B.T + torch.eye(12, dtype=torch.float64), rand(12)


@pytest.fixture
def indefinite(rand):
    """Space, Hessian and derivative of a model that is unbounded below."""
    B = rand(12, 12)
    return space(12), B + B.T, rand(12)


def model(H, d, s):
    return float(torch.dot(d, s) + 0.5 * torch.dot(s, H @ s))


@pytest.mark.parametrize("tolerance", [0.5, 1e-2, 1e-10])
def test_conjugate_gradients_end_when_the_residual_meets_the_tolerance(definite, tolerance):
    where, H, d = definite
    path = steihaug(lambda s: H @ s, d, where, 1e3, tolerance, 50)
    assert where.dual_norm(H @ path.within(1e3).displacement + d) <= tolerance * where.dual_norm(d) * (1 + 1e-9)


def test_as_many_conjugate_gradients_as_dimensions_solve_a_convex_model(definite):
    where, H, d = definite
    path = steihaug(lambda s: H @ s, d, where, 1e3, 1e-8, 12)
    torch.testing.assert_close(path.within(1e3).displacement, torch.linalg.solve(H, -d), rtol=1e-6, atol=1e-6)


@pytest.mark.parametrize("radius", [1e-3, 0.03, 0.1, 0.3, 1.0])
@pytest.mark.parametrize("kind", ["definite", "indefinite"])
@pytest.mark.cover(1)
def test_the_step_of_a_shorter_radius_lies_on_the_same_path(request, kind, radius):
    where, H, d = request.getfixturevalue(kind)
    long = steihaug(lambda s: H @ s, d, where, 1.0, 1e-8, 50).within(radius)
    short = steihaug(lambda s: H @ s, d, where, radius, 1e-8, 50).within(radius)
    torch.testing.assert_close(long.displacement, short.displacement, rtol=1e-10, atol=1e-12)
    assert where.norm(long.displacement) <= radius * (1 + 1e-12)


@pytest.mark.parametrize("radius", [1e-3, 0.03, 0.1, 0.3, 1.0])
@pytest.mark.parametrize("kind", ["definite", "indefinite"])
@pytest.mark.cover(1)
def test_the_change_that_a_step_predicts_is_that_of_the_model(request, kind, radius):
    where, H, d = request.getfixturevalue(kind)
    step = steihaug(lambda s: H @ s, d, where, 1.0, 1e-8, 50).within(radius)
    assert step.change < 0
    assert step.change == pytest.approx(model(H, d, step.displacement), rel=1e-10)


@pytest.mark.parametrize("kind", ["definite", "indefinite"])
def test_the_model_decreases_and_the_distance_grows_along_the_path(request, kind):
    where, H, d = request.getfixturevalue(kind)
    path = steihaug(lambda s: H @ s, d, where, 0.5, 1e-8, 50)
    steps = [path.within(0.01 * k) for k in range(1, 51)]
    assert all(b.change <= a.change for a, b in pairwise(steps))
    assert all(where.norm(b.displacement) >= where.norm(a.displacement) * (1 - 1e-12) for a, b in pairwise(steps))


@pytest.mark.parametrize("radius", [1e-6, 1.0, 1e6])
def test_negative_curvature_is_followed_to_the_boundary(indefinite, radius):
    where, _, d = indefinite
    path = steihaug(lambda s: -s, d, where, radius, 1e-8, 50)
    assert where.norm(path.within(radius).displacement) == pytest.approx(radius, rel=1e-12)


def test_conjugate_gradients_end_at_the_boundary(definite):
    where, H, d = definite
    path = steihaug(lambda s: H @ s, d, where, 1e-3, 1e-8, 50)
    assert where.norm(path.within(1e-3).displacement) == pytest.approx(1e-3, rel=1e-12)


@pytest.mark.parametrize("most", [1, 2, 5])
def test_no_more_products_are_computed_than_allowed(definite, most):
    where, H, d = definite
    asked = []
    steihaug(lambda s: asked.append(s) or H @ s, d, where, 1e3, 0.0, most)
    assert len(asked) == most


@pytest.mark.parametrize("bad", [nan, inf, -inf])
def test_a_later_product_that_is_not_finite_ends_the_conjugate_gradients(definite, bad):
    where, H, d = definite
    asked = []

    def product(s):
        asked.append(s)
        return H @ s if len(asked) < 3 else s * bad

    path = steihaug(product, d, where, 1e3, 1e-8, 50)
    assert torch.equal(
        path.within(1e3).displacement, steihaug(lambda s: H @ s, d, where, 1e3, 0, 2).within(1e3).displacement
    )


@pytest.mark.parametrize("bad", [nan, inf, -inf])
def test_a_first_product_that_is_not_finite_leaves_the_linear_model(definite, bad):
    where, _, d = definite
    step = steihaug(lambda s: s * bad, d, where, 2.0, 1e-8, 50).within(2.0)
    torch.testing.assert_close(step.displacement, -2.0 * where.gradient(d) / where.dual_norm(d))
    assert step.change == pytest.approx(-2.0 * where.dual_norm(d))


def test_conjugate_gradients_leave_the_derivative_as_it_was(definite, unchanged):
    where, H, d = definite
    with unchanged(d):
        steihaug(lambda s: H @ s, d, where, 1.0, 1e-8, 50).within(0.1)


def polygon(point, radius):
    """What conjugate gradients make of the model at a point."""
    return steihaug(point.hessian_product, point.derivative, point.objective.space, radius, 0.1, 50)


def searched(objective, u, radius):
    """What a trust region makes of the polygon that begins at a control."""
    point = objective.at(u)
    return TrustRegion()(point, polygon(point, radius), radius)


def test_the_radius_grows_after_a_good_step_that_reached_it(definite, objective_of):
    where, H, b = definite
    objective = objective_of(quadratic(H, b), where)
    point, radius = searched(objective, torch.zeros_like(b), 1e-3)
    assert radius == 4e-3
    assert where.norm(point.control) == pytest.approx(1e-3)


def test_the_radius_stays_after_a_good_step_within(definite, objective_of):
    where, H, b = definite
    assert searched(objective_of(quadratic(H, b), where), torch.zeros_like(b), 50.0)[1] == 50.0


START = torch.tensor([-1.2, 1.1], dtype=torch.float64)


def test_a_shorter_step_costs_a_value_and_no_product(objective_of):
    objective = objective_of(lambda u: (1 + u.square().sum()).sqrt())  # nearly linear: Newton goes too far
    start, radius = objective.at(START), 100.0
    path = polygon(start, radius)
    spent = objective.products
    point, shorter = TrustRegion()(start, path, radius)
    assert shorter < radius
    assert len(objective.asked) > 2
    assert objective.products == spent
    assert point.value < start.value


@pytest.mark.parametrize("outside", [nan, inf, -inf])
def test_a_value_that_is_not_finite_is_backed_off(outside, objective_of):
    def inside_a_ball(u):
        return (u - 10).square().sum() + (0.0 if u.norm() <= 2 else outside)

    objective = objective_of(inside_a_ball)
    u = torch.zeros(2, dtype=torch.float64)
    point, _ = searched(objective, u, 50.0)
    assert 0 < point.control.norm() <= 2
    assert objective.value(point.control) < objective.value(u)


@pytest.mark.parametrize("limit", [1e-3, 0.3])
def test_no_point_beyond_the_step_limit_of_the_objective_is_tried(limit, objective_of):
    objective = objective_of(lambda u: (u - 10).square().sum(), limit=limit)
    point, _ = searched(objective, torch.zeros(2, dtype=torch.float64), 100.0)
    torch.testing.assert_close(point.control, torch.full((2,), 10 * limit, dtype=torch.float64))


def test_where_no_step_is_allowed_there_is_none(objective_of):
    objective = objective_of(lambda u: (u - 10).square().sum(), limit=0.0)
    assert searched(objective, torch.zeros(2, dtype=torch.float64), 100.0) is None


def test_where_rounding_hides_the_decrease_the_derivative_decides(objective_of):
    objective = objective_of(lambda u: 1e8 + 0.5 * u.square().sum())
    point, radius = searched(objective, 1e-6 * START, 1.0)
    assert radius == 1.0
    assert optimality(point) < 1e-3 * optimality(objective.at(1e-6 * START))


@pytest.mark.parametrize("dtype", [torch.float64, torch.float32])
def test_the_search_ends_where_the_radius_can_no_longer_be_resolved(dtype, objective_of):
    objective = objective_of(rosenbrock, change=lambda u, derivative: -derivative)
    assert searched(objective, START.to(dtype), 1.0) is None
    assert len(objective.asked) <= 2 - log(torch.finfo(dtype).eps, 2)


def test_a_step_that_bounds_cut_is_projected(objective_of):
    box = Box(torch.tensor([-0.1, -inf], dtype=torch.float64), torch.tensor([0.1, inf], dtype=torch.float64))
    objective = objective_of(lambda u: (u - 1).square().sum(), box=box)
    point, _ = searched(objective, torch.zeros(2, dtype=torch.float64), 100.0)
    torch.testing.assert_close(point.control, torch.tensor([0.1, 1.0], dtype=torch.float64))
