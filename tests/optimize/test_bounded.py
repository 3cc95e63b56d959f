"""Methods within bounds, and the measure of optimality there."""

from dataclasses import replace

import pytest
import torch

from ocp import (
    LBFGS,
    Armijo,
    ControlSpace,
    GradientDescent,
    NonlinearCG,
    SciPy,
    Status,
    StrongWolfe,
    TimeGrid,
    TorchOptimizer,
    discretize,
    minimize,
)
from ocp.objective.evaluation import optimality
from ocp.run.stopping import Stop
from ocp.run.watching import Watch
from ocp.space.bounds import Box, as_bounds

METHODS = {
    "gradient descent": GradientDescent(),
    "gradient descent, strong Wolfe": GradientDescent(StrongWolfe()),
    "conjugate gradients": NonlinearCG(),
    "L-BFGS": LBFGS(),
    "L-BFGS, Armijo": LBFGS(search=Armijo()),
    "Adam": TorchOptimizer(torch.optim.Adam, {"lr": 0.1}),
    "SciPy L-BFGS-B": SciPy(),
}
every_method = pytest.mark.parametrize("method", METHODS.values(), ids=METHODS.keys())
ONES = torch.ones(14, dtype=torch.float64)


def tensor(*numbers):
    return torch.tensor(numbers, dtype=torch.float64)


@every_method
def test_every_method_keeps_to_the_bounds_and_finds_the_optimum_within(method, bounds, convex_within):
    objective, optimum = convex_within(bounds)
    state = method.init(objective, objective.at(objective.box.project(ONES)))
    controls = []
    for _ in range(500 if isinstance(method, TorchOptimizer) else 100):
        state = method.step(objective, state)
        controls.append(state.control)
        if state.status is not Status.RUNNING:
            break
    visited = torch.stack(controls)
    assert ((visited >= objective.box.lower) & (visited <= objective.box.upper)).all()
    torch.testing.assert_close(state.control, optimum, rtol=0, atol=1e-6)
    assert optimality(state.point) <= 1e-6


@every_method
def test_bounds_that_are_never_met_change_nothing(method, convex_within, run):
    far, _ = convex_within("inactive")
    free = replace(far, box=None)
    torch.testing.assert_close(run(method, far.at(ONES), 6).control, run(method, free.at(ONES), 6).control)


LIMITS = {
    "active": (-0.4, 0.1),
    "on one side": (None, -0.2),
    "varying in time": (lambda t: -0.6 + 0.2 * t, lambda t: -0.1 * t),
    "equal on the first half": (lambda t: -0.3 if t < 1 else -9.0, lambda t: -0.3 if t < 1 else 9.0),
    "inactive": (-50.0, 50.0),
}


@pytest.mark.parametrize("limits", LIMITS.values(), ids=LIMITS.keys())
@every_method
@pytest.mark.cover(1)
def test_a_bounded_control_problem_is_solved_by_every_method(method, limits, lqr, bounded_optimum):
    problem, seen = replace(lqr, bounds=as_bounds(limits)), []
    result = minimize(
        problem,
        16,
        method,
        stop=Stop(tolerance=1e-7),
        watch=Watch(callback=lambda record, control: seen.append(control.flat)),
    )
    objective = discretize(problem, 16)
    b = -objective.derivative(torch.zeros(16).double())
    A = torch.stack([objective.derivative(e) + b for e in torch.eye(16).double()])
    assert result.status is Status.CONVERGED
    torch.testing.assert_close(result.control.flat, bounded_optimum(A, b, objective.box), rtol=0, atol=2e-6)
    assert all(torch.equal(objective.box.project(u), u) for u in seen)


def test_optimality_without_bounds_is_the_dual_norm(convex_within, rand):
    objective = replace(convex_within("inactive")[0], box=None)
    point = objective.at(rand(14))
    assert optimality(point) == objective.space.dual_norm(point.derivative)


@pytest.mark.parametrize("name", ["inactive", "far"])
def test_optimality_far_from_bounds_is_the_dual_norm(convex_within, rand, name):
    objective, _ = convex_within(name)
    point = objective.at(0.1 * rand(14))
    assert optimality(point) == pytest.approx(objective.space.dual_norm(point.derivative), rel=1e-12)


def test_optimality_is_zero_at_the_optimum_and_nowhere_else(convex_within, bounds, rand):
    objective, optimum = convex_within(bounds)
    other = objective.box.project(optimum + 0.1 * rand(14))
    assert optimality(objective.at(optimum)) <= 1e-12
    assert optimality(objective.at(other)) >= 0.1 * objective.space.norm(other - optimum) > 0


@pytest.mark.parametrize(("slope", "expected"), [(-1.0, 0.5), (0.0, 0.0), (1.0, 0.0)])
def test_optimality_at_a_bound_counts_what_leads_inside_only(slope, expected, objective_of):
    """At a lower bound, 0.5 from the upper one; the gradient is the derivative by the length of the step, 0.1."""
    box = Box(tensor(0, 0, 0), tensor(0.5, 1, 1))
    objective = objective_of(lambda u: slope * u[0], ControlSpace(TimeGrid(0.1, 1), 1, 2), box)
    assert optimality(objective.at(tensor(0, 0, 0))) == pytest.approx(expected * 0.1**0.5)
