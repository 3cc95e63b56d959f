"""Cycles and nested iteration where the control has bounds."""

from dataclasses import replace

import pytest
import torch

from ocp import (
    CONSTANT,
    LBFGS,
    LINEAR,
    MGOPT,
    Always,
    Cycle,
    Earned,
    Forgetful,
    GradientDescent,
    Nested,
    NonlinearCG,
    Scheduled,
    Status,
    Stop,
    TorchOptimizer,
    Transfer,
    Watch,
    discretize,
    minimize,
)
from ocp.space.bounds import as_bounds


@pytest.fixture(scope="module")
def bounded(lqr):
    """The linear problem, whose optimal control goes from -1.6 to 1, with bounds."""
    return lambda bounds: replace(lqr, bounds=as_bounds(bounds))


LIMITS = {
    "active": (-0.9, 0.9),
    "on one side": (-0.7, None),
    "varying in time": (lambda t: -1.2 + 0.4 * t, lambda t: 0.3 + 0.3 * t),
    "stepping in time": (lambda t: -1.0 if t < 0.2 else -0.4, lambda t: 0.5 if t < 1.1 else 9.0),
    "equal for a while": (lambda t: -0.5 if t < 0.5 else -0.8, lambda t: -0.5 if t < 0.5 else 0.8),
}

every_limit = pytest.mark.parametrize("bounds", LIMITS.values(), ids=LIMITS.keys())

BOUNDED = {
    "V-cycles": Cycle(3, visits=Always()),
    "W-cycles": Cycle(3, shape="W", visits=Always()),
    "F-cycles": Cycle(3, shape="F", visits=Always()),
    "V-cycles, linear": Cycle(3, interpolation=LINEAR, visits=Always()),
    "W-cycles, linear": MGOPT(3, shape="W", interpolation=LINEAR, visits=Always()),
    "F-cycles, linear": MGOPT(3, shape="F", interpolation=LINEAR, visits=Always()),
    "earned cycles": Cycle(3, visits=Earned(patience=1)),
    "earned cycles, linear": Cycle(3, interpolation=LINEAR, visits=Earned(patience=1)),
    "MG/OPT": MGOPT(3),
    "MG/OPT, linear": MGOPT(3, interpolation=LINEAR),
    "nested": Nested(3),
    "nested, linear": Nested(3, interpolation=LINEAR),
    "forgetful nested": Nested(3, Forgetful(LBFGS())),
    "gradient descent": MGOPT(3, GradientDescent(), visits=Always()),
    "conjugate gradients": MGOPT(3, NonlinearCG(), visits=Always()),
    "post-smoothing": Cycle(2, pre=0, post=2, visits=Always()),
}

every_bounded = pytest.mark.parametrize("method", BOUNDED.values(), ids=BOUNDED.keys())


@pytest.fixture(scope="module")
def alone(bounded):
    """The bounded optima by L-BFGS on the finest grid alone, each computed once."""
    known = {}

    def optimum(bounds):
        if bounds not in known:
            known[bounds] = minimize(bounded(bounds), 8, LBFGS(), stop=Stop(tolerance=1e-9))
        return known[bounds]

    return optimum


@every_limit
@every_bounded
@pytest.mark.cover(1)
def test_a_bounded_optimum_is_that_of_one_grid_alone(method, bounds, alone, bounded):
    found = minimize(bounded(bounds), 8, method, stop=Stop(tolerance=1e-6))
    assert found.status is Status.CONVERGED
    assert found.value == pytest.approx(alone(bounds).value, rel=1e-8)
    torch.testing.assert_close(found.control.flat, alone(bounds).control.flat, rtol=0, atol=1e-4)


@every_limit
def test_the_bounds_of_these_problems_are_met(bounds, alone, bounded):
    box, u = discretize(bounded(bounds), 8).box, alone(bounds).control.flat
    assert int(((u == box.lower) | (u == box.upper)).sum()) >= 1
    assert int(((u > box.lower) & (u < box.upper)).sum()) >= 1


@every_limit
@pytest.mark.parametrize("name", ["V-cycles", "W-cycles, linear", "MG/OPT, linear", "nested", "gradient descent"])
@pytest.mark.cover(1)
def test_every_iterate_lies_within_the_bounds_of_its_grid(name, bounds, started, run, bounded):
    objective, start = started(bounded(bounds))
    states = run(BOUNDED[name], objective, start, 8)
    boxes = [objective.on(len(state.control)).box for state in states]
    assert all(torch.equal(box.project(state.control), state.control) for box, state in zip(boxes, states, strict=True))


@every_limit
def test_the_callback_sees_controls_within_the_bounds_of_the_finest_grid(bounds, bounded):
    seen = []
    minimize(
        bounded(bounds),
        16,
        MGOPT(4),
        watch=Watch(callback=lambda record, control: seen.append((record.steps, control.flat))),
    )
    box = discretize(bounded(bounds), 16).box
    assert {steps for steps, _ in seen} == {2, 4, 8, 16}
    assert all(torch.equal(box.project(u), u) for _, u in seen)


SMOOTHING = {
    "L-BFGS": LBFGS(),
    "gradient descent": GradientDescent(),
    "conjugate gradients": NonlinearCG(),
    "Adam": TorchOptimizer(torch.optim.Adam, {"lr": 0.03}),
}


@every_limit
@pytest.mark.parametrize("interpolation", [CONSTANT, LINEAR])
@pytest.mark.parametrize("smoother", SMOOTHING.values(), ids=SMOOTHING.keys())
@pytest.mark.cover(1)
def test_corrections_within_bounds_happen_and_need_no_projection(
    smoother, interpolation, bounds, started, run, on_shifted, watched, bounded
):
    """From a start near the bounds; the line search gets controls that the coarse bounds keep feasible."""
    search = watched()
    objective, start = started(bounded(bounds), move=-0.5)
    start = objective.box.project(start)
    cycle = Cycle(3, on_shifted(smoother), interpolation=interpolation, visits=Always(), visit_ratio=0.0, search=search)
    counts = run(cycle, objective, start, 3)[-1].counts
    fine = [at.control + d for at, d, trial in search.log if at.objective is objective and trial is not None]
    box = objective.box
    assert counts["corrections"] >= 1
    assert all(((v >= box.lower - 1e-12) & (v <= box.upper + 1e-12)).all() for v in fine)
    assert len(fine) >= 1


@pytest.mark.parametrize("levels", [2, 3, 4])
@pytest.mark.parametrize("interpolation", [CONSTANT, LINEAR])
@pytest.mark.parametrize("shape", ["V", "W", "F"])
@pytest.mark.cover(2)
def test_a_bounded_optimum_is_a_fixed_point_of_the_cycle(shape, interpolation, levels, alone, started, run, bounded):
    bounds = LIMITS["active"]
    cycle = Cycle(levels, shape=shape, interpolation=interpolation, visits=Always(), visit_ratio=0.0)
    objective, _ = started(bounded(bounds), steps=8)
    optimum = alone(bounds).control.flat
    after = run(cycle, objective, optimum, 2)[-1].control
    assert objective.space.norm(after - optimum) <= 1e-6 * objective.space.norm(optimum)
    assert torch.equal(after == objective.box.lower, optimum == objective.box.lower)


def test_the_model_of_a_bounded_problem_agrees_with_it_to_first_order_in_what_is_free(
    models, started, run, on_shifted, bounded
):
    objective, start = started(bounded(LIMITS["active"]), move=9.0)
    start = objective.box.project(start)
    run(Cycle(2, on_shifted(), visits=Always(), visit_ratio=0.0), objective, start, 1)
    derivative = objective.derivative(start)
    free = derivative * objective.box.free(start, derivative)
    expected = Transfer(objective.space, models[0].space).restrict_dual(free)
    torch.testing.assert_close(models[0].at(models[0].origin).derivative, expected)
    assert not torch.equal(free, derivative)


def test_adam_smooths_a_bounded_problem_within_its_bounds(bounded):
    bounds = LIMITS["active"]
    method = MGOPT(3, SMOOTHING["Adam"], visits=Always(), refine=Scheduled(10))
    result = minimize(bounded(bounds), 16, method, stop=Stop(tolerance=1e-3, max_iterations=150))
    assert result.value == pytest.approx(minimize(bounded(bounds), 16, LBFGS()).value, rel=1e-4)
    assert result.counts["corrections"] >= 5
