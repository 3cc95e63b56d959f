"""The MG/OPT cycle: its coarse models, corrections and smoothing steps."""

import pytest
import torch

from ocp import (
    CONSTANT,
    LBFGS,
    LINEAR,
    MGOPT,
    Always,
    ControlProblem,
    Cycle,
    GradientDescent,
    Nested,
    NonlinearCG,
    Scheduled,
    ShiftedObjective,
    Status,
    TorchOptimizer,
    Transfer,
)


def visited(models, objective):
    """The visits to coarser grids, as the number of times that each is coarser than the finest."""
    return [objective.space.grid.steps // model.space.grid.steps for model in models]


@pytest.mark.parametrize("levels", [2, 3, 4])
@pytest.mark.parametrize(
    ("shape", "smoother"),
    [("V", LBFGS()), ("W", LBFGS()), ("F", LBFGS()), ("V", GradientDescent()), ("W", NonlinearCG())],
    ids=["V, L-BFGS", "W, L-BFGS", "F, L-BFGS", "V, gradient descent", "W, conjugate gradients"],
)
def test_the_fine_optimum_is_a_fixed_point_of_the_cycle(smoother, shape, levels, lqr, started, run):
    """The optimum of the quadratic problem solves a linear system; its matrix is taken column by column."""
    objective, zero = started(lqr, steps=8)
    b = objective.derivative(zero)
    A = torch.stack([objective.derivative(e) - b for e in torch.eye(8, dtype=torch.float64)])
    optimum = torch.linalg.solve(A, -b)
    cycle = Cycle(levels, smoother, shape=shape, coarsest=4, visits=Always(), visit_ratio=0.0)
    after = run(cycle, objective, optimum, 2)[-1].control
    assert objective.space.norm(after - optimum) <= 1e-13 * objective.space.norm(optimum)


@pytest.mark.parametrize("interpolation", [CONSTANT, LINEAR])
def test_the_restriction_acts_on_the_shifted_derivative_on_every_level(
    problem, interpolation, models, started, run, on_shifted
):
    objective, start = started(problem, move=0.1)
    method = on_shifted(GradientDescent())
    cycle = Cycle(4, method, visits=Always(), visit_ratio=0.0, interpolation=interpolation)
    run(cycle, objective, start, 1)
    assert visited(models, objective) == [2, 4, 8]
    finer = [objective.at(start)] + [after_presmoothing(model, method) for model in models[:-1]]
    mismatches = [mismatch(model, above, interpolation) for model, above in zip(models, finer, strict=True)]
    assert max(mismatches) <= 1e-12


def after_presmoothing(model, method):
    """A model after the one smoothing step that comes before its correction."""
    return model.confine(method.step(model, method.init(model, model.at(model.origin))).point)


def mismatch(model, finer, interpolation):
    """How far a model's derivative at its origin is from the restricted derivative of a finer evaluation."""
    restricted = Transfer(finer.objective.space, model.space, interpolation).restrict_dual(finer.derivative)
    space = model.space
    return space.dual_norm(model.at(model.origin).derivative - restricted) / space.dual_norm(restricted)


@pytest.mark.parametrize(("shape", "visits"), [("V", [2, 4]), ("W", [2, 4, 4, 2, 4, 4]), ("F", [2, 4, 4, 2, 4])])
def test_the_shape_says_how_often_each_grid_is_visited(shape, visits, models, classification, started, run):
    objective, start = started(classification)
    run(Cycle(3, shape=shape, visits=Always(), visit_ratio=0.0), objective, start, 1)
    assert visited(models, objective) == visits


def test_an_accepted_correction_never_raises_the_fine_objective(problem, smoother, started, run, watched):
    search = watched()
    objective, start = started(problem, move=0.1)
    last = run(Cycle(3, smoother, visits=Always(), search=search), objective, start, 8)[-1]
    changes = [trial.point.value - start.value for start, _, trial in search.log if trial is not None]
    assert last.counts["corrections"] == len(changes) > 0
    assert max(changes) <= 1e-15


def test_a_correction_without_smoothing_decreases_the_fine_objective(lqr, started, run, on_shifted):
    objective, start = started(lqr)
    before, after = run(Cycle(2, on_shifted(LBFGS()), visits=Always()), objective, start, 1)
    assert after.counts["corrections"] == 1
    assert objective.value(after.control) < 0.8 * objective.value(before.control)


def test_a_refused_correction_is_counted_and_leaves_the_control_as_it_was(
    wrong_corrections, lqr, started, run, on_shifted
):
    objective, start = started(lqr)
    after = run(Cycle(2, on_shifted(), visits=Always()), objective, start, 3)[-1]
    assert after.counts["refused"] == 3
    assert after.counts["corrections"] == 0
    assert torch.equal(after.control, start)
    assert after.status is Status.RUNNING


def test_a_correction_that_is_not_finite_is_refused(lqr, started, run, on_shifted):
    nowhere = TorchOptimizer(torch.optim.SGD, {"lr": float("inf")})
    objective, start = started(lqr)
    after = run(Cycle(2, on_shifted(nowhere), visits=Always()), objective, start, 2)[-1]
    assert after.counts["refused"] == 2
    assert torch.equal(after.control, start)


def saturating():
    """Its cost is bounded, and so is its derivative: minus a linear term it has no minimum."""
    return ControlProblem(
        lambda t, x, u: u - x,
        torch.zeros(1, 1, dtype=torch.float64),
        lambda x: torch.tanh(x - 2).sum(),
        control_size=1,
    )


BOLD = {
    "L-BFGS": LBFGS(),
    "gradient descent": GradientDescent(first=1e6),
    "SGD": TorchOptimizer(torch.optim.SGD, {"lr": 1e9}),
}


@pytest.mark.parametrize("smoother", BOLD.values(), ids=BOLD.keys())
def test_a_coarse_solve_without_a_minimum_stays_within_its_radius(smoother, models, started, run, on_shifted, watched):
    search = watched()
    objective, start = started(saturating(), move=0.5)
    run(Cycle(2, on_shifted(smoother), visits=Always(), search=search, visit_ratio=0), objective, start, 1)
    (model,), ((_, correction, _),) = models, search.log
    far = 1e9 * model.space.gradient(model.shift)
    unlimited = ShiftedObjective(model.base, model.origin, model.shift)
    assert unlimited.at(model.origin + far).value < -1e3
    assert 0.99 * model.radius <= objective.space.norm(correction) <= model.radius * (1 + 1e-12)


def distant():
    """A problem whose optimum is far away from its start."""
    x = torch.zeros(1, 1, dtype=torch.float64)
    return ControlProblem(lambda t, x, u: u + 0 * x, x, lambda x: 0.5 * (x - 100).square().sum(), control_size=1)


def test_a_coarse_solve_ends_where_it_reaches_its_radius(models, started, run, on_shifted, recorded):
    method = recorded(GradientDescent())
    objective, start = started(distant())
    run(Cycle(2, on_shifted(method), visits=Always(), visit_ratio=0, coarsest=50), objective, start, 1)
    *within, last = [models[0].at_boundary(models[0].confine(after.point).control) for _, _, after in method.log]
    assert last
    assert not any(within)


def test_the_radius_grows_where_full_steps_reach_it(models, started, run, on_shifted):
    objective, start = started(distant())
    run(Cycle(2, on_shifted(), visits=Always()), objective, start, 3)
    assert [model.radius for model in models] == [1.0, 2.0, 4.0]


def test_the_radius_shrinks_where_corrections_are_refused(models, wrong_corrections, lqr, started, run, on_shifted):
    objective, start = started(lqr)
    run(Cycle(2, on_shifted(), visits=Always()), objective, start, 3)
    assert models[0].radius > models[1].radius > models[2].radius > 0


def test_the_radius_does_not_shrink_to_the_rounding_errors_of_the_control(
    models, wrong_corrections, lqr, started, run, on_shifted
):
    objective, start = started(lqr, move=1.0)
    run(Cycle(2, on_shifted(), visits=Always()), objective, start, 30)
    assert models[-1].radius >= 1e-9 * objective.space.norm(start)


def test_no_more_than_the_stated_smoothing_steps_are_made(classification, started, run, recorded):
    method = recorded(LBFGS())
    objective, start = started(classification)
    run(
        Cycle(2, method, pre=2, post=3, coarsest=7, visits=Always(), visit_ratio=0.0),
        objective,
        start,
        1,
    )
    assert [o.space.grid.steps for o, _, _ in method.log] == [16] * 2 + [8] * 7 + [16] * 3


def test_a_solver_works_on_all_grids_but_the_finest(classification, started, run, recorded):
    smoother, solver = recorded(GradientDescent()), recorded(LBFGS())
    objective, start = started(classification)
    method = MGOPT(3, smoother, solver=solver, refine=Scheduled(2), visits=Always(), visit_ratio=0.0, coarsest=3)
    run(method, objective, start, 5)
    assert [o.space.grid.steps for o, _, _ in smoother.log] == [16]
    # Two steps on the coarsest grid, two cycles on the next one, and the correction of the finest grid.
    assert [o.space.grid.steps for o, _, _ in solver.log] == [4] * 2 + [8, 4, 4, 4] * 2 + [8] * 3


def test_the_memory_of_a_solver_is_carried_to_finer_grids_but_not_to_the_smoother_of_the_finest(
    classification, started, run, recorded
):
    smoother, solver = recorded(LBFGS()), recorded(LBFGS())
    objective, start = started(classification)
    run(Nested(3, Cycle(3, smoother, solver=solver), refine=Scheduled(2)), objective, start, 5)
    assert [len(before.memory) for o, before, _ in solver.log if o.space.grid.steps == 8] == [2, 3]
    assert [len(before.memory) for _, before, _ in smoother.log] == [0]


def test_where_the_finest_grid_is_refined_its_smoother_keeps_its_memory(classification, started, run):
    objective, start = started(classification, steps=8)
    method = Cycle(2, LBFGS(), solver=GradientDescent(), visits=Always())
    last, fine = run(method, objective, start, 3)[-1], objective.on(16)
    memory = method.transport(last.memory, Transfer(fine.space, objective.space))
    assert (len(memory[16].smoother), memory[4].smoother) == (3, last.memory[4].smoother)


def test_a_smoother_keeps_its_memory_from_cycle_to_cycle(classification, started, run, recorded):
    method = recorded(LBFGS())
    objective, start = started(classification)
    run(Cycle(2, method, coarsest=2, visits=Always(), visit_ratio=0.0), objective, start, 3)
    pairs = [(o.space.grid.steps, len(before.memory)) for o, before, _ in method.log]
    assert pairs == [(16, 0), (8, 0), (8, 1), (16, 1), (8, 2), (8, 3), (16, 2), (8, 4), (8, 5)]


def test_a_batch_is_held_fixed_through_a_cycle(classification, started, recorded):
    method = recorded(TorchOptimizer(torch.optim.SGD, {"lr": 0.1}))
    objective, start = started(classification)
    cycle = Cycle(3, method, visits=Always(), visit_ratio=0.0)
    batch = objective.take(torch.tensor([1, 7, 8]))
    cycle.step(batch, cycle.init(objective, objective.at(start)).of(batch))
    samples = {reduced(o).discretization.problem.initial_state.inputs.shape[0] for o, _, _ in method.log}
    assert samples == {3}


def reduced(objective):
    """The objective under its shifts."""
    return reduced(objective.base) if isinstance(objective, ShiftedObjective) else objective


def test_a_cycle_on_a_coarse_grid_goes_on_to_the_grids_that_are_coarser_still(models, classification, started, run):
    objective, start = started(classification)
    run(MGOPT(3, visits=Always(), visit_ratio=0.0, refine=Scheduled(2)), objective, start, 5)
    assert visited(models, objective) == [4, 4, 2, 4]


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"shape": "Z"}, "shape: expected one of V, W, F, got 'Z'"),
        ({"pre": 0, "post": 0}, "expected at least one smoothing step in all"),
        ({"pre": -1, "post": 3}, "expected at least one smoothing step in all"),
        ({"coarsest": 0}, "one on the coarsest grid"),
    ],
)
def test_a_cycle_that_makes_no_sense_is_refused(arguments, message):
    with pytest.raises(ValueError, match=message):
        Cycle(**arguments)
