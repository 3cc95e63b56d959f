"""What cycles and nested iteration have in common, in all combinations."""

import copy
from dataclasses import replace

import pytest
import torch

from ocp import (
    LBFGS,
    LINEAR,
    MGOPT,
    Always,
    Batches,
    ControlProblem,
    Cycle,
    Forgetful,
    Method,
    Nested,
    NonlinearCG,
    Scheduled,
    Status,
    Stop,
    TorchOptimizer,
    minimize,
)
from ocp.adjoint import sweeps
from ocp.run.snapshots import decode, encode

METHODS = {
    "cycle": Cycle(3),
    "nested": Nested(3),
    "forgetful nested": Nested(3, Forgetful(LBFGS())),
    "scheduled nested": Nested(3, refine=Scheduled(4)),
    "MG/OPT": MGOPT(3),
    "textbook W-cycles": Cycle(3, shape="W", visits=Always()),
    "textbook F-cycles": MGOPT(3, shape="F", visits=Always()),
    "linear interpolation": MGOPT(3, interpolation=LINEAR, visits=Always()),
    "conjugate gradients": MGOPT(3, NonlinearCG(), visits=Always()),
    "post-smoothing": Cycle(3, pre=0, post=2, visits=Always()),
    "explicit levels": MGOPT([8, 4, 1], visits=Always()),
    "factor 4": MGOPT(2, factor=4, visits=Always()),
}

every_method = pytest.mark.parametrize("method", METHODS.values(), ids=METHODS.keys())


@every_method
def test_every_combination_is_a_method(method):
    assert isinstance(method, Method)


@every_method
@pytest.mark.cover(1)
def test_every_combination_ends_at_the_optimum_of_one_grid_alone(method, problem):
    alone = minimize(problem, 8, LBFGS(), stop=Stop(tolerance=1e-4))
    many = minimize(problem, 8, method, stop=Stop(tolerance=1e-4))
    assert many.status is Status.CONVERGED
    assert many.value == pytest.approx(alone.value, rel=1e-6)


@pytest.mark.parametrize("levels", [3, [27, 9, 3]])
def test_three_steps_can_become_one(levels, lqr):
    alone, many = (minimize(lqr, 27, m) for m in (LBFGS(), MGOPT(levels, factor=3, visits=Always())))
    assert {record.steps for record in many.history} == {3, 9, 27}
    assert many.value == pytest.approx(alone.value, rel=1e-9)


ONE_LEVEL = {
    "cycle": lambda smoother: Cycle(1, smoother),
    "nested": lambda smoother: Nested(1, smoother),
    "MG/OPT": lambda smoother: MGOPT(1, smoother),
}


@pytest.mark.parametrize("make", ONE_LEVEL.values(), ids=ONE_LEVEL.keys())
def test_on_one_level_every_method_is_its_smoother_bit_for_bit(make, smoother, classification):
    a, b = (minimize(classification, 8, m, stop=Stop(max_iterations=12)) for m in (smoother, make(smoother)))
    assert torch.equal(a.control.flat, b.control.flat)
    assert [r.value for r in a.history] == [r.value for r in b.history]
    assert [r.work_units for r in a.history] == [r.work_units for r in b.history]


@pytest.mark.parametrize("make", ONE_LEVEL.values(), ids=ONE_LEVEL.keys())
def test_on_one_level_every_method_is_its_smoother_on_mini_batches_too(make, classification):
    adam = TorchOptimizer(torch.optim.Adam, {"lr": 0.01})
    a, b = (minimize(classification, 8, m, stop=Stop(max_iterations=9), batches=Batches(5)) for m in (adam, make(adam)))
    assert torch.equal(a.control.flat, b.control.flat)


@pytest.mark.parametrize("method", [Cycle(3, visits=Always()), Nested(3), MGOPT(3)], ids=["cycle", "nested", "MG/OPT"])
@pytest.mark.parametrize("through", [copy.deepcopy, lambda memory: decode(encode(memory))], ids=["copy", "file"])
def test_a_saved_state_continues_the_run_bit_for_bit(method, through, classification, started, run):
    objective, start = started(classification)
    state = run(method, objective, start, 7)[-1]
    saved, (fresh, _) = replace(state, memory=through(state.memory)), started(classification)
    saved = saved.of(fresh)
    for _ in range(7):
        state, saved = method.step(objective, state), method.step(fresh, saved)
    assert torch.equal(state.control, saved.control)
    assert state.counts == saved.counts


@every_method
def test_a_step_does_not_change_the_state_it_is_given(method, classification, started, run):
    objective, start = started(classification, steps=8)
    state = run(method, objective, start, 6)[-1]
    control, counts, fresh = state.control.clone(), dict(state.counts), started(classification, steps=8)[0]
    once, twice = method.step(objective, state), method.step(fresh, state.of(fresh))
    assert torch.equal(state.control, control)
    assert state.counts == counts
    assert torch.equal(once.control, twice.control)


OPTIMIZERS = {
    "Adam": (torch.optim.Adam, {"lr": 0.01}),
    "SGD": (torch.optim.SGD, {"lr": 0.1, "momentum": 0.9}),
    "L-BFGS": (torch.optim.LBFGS, {"line_search_fn": "strong_wolfe", "max_iter": 2}),
}

WRAPS = {
    "cycle": lambda smoother: Cycle(3, smoother, coarsest=3, visits=Always()),
    "nested": lambda smoother: Nested(3, smoother, refine=Scheduled(4)),
    "forgetful": lambda smoother: Nested(3, Forgetful(smoother), refine=Scheduled(4)),
    "MG/OPT": lambda smoother: MGOPT(3, smoother, coarsest=3, refine=Scheduled(4), visits=Always()),
}


@pytest.mark.parametrize(("optimizer", "options"), OPTIMIZERS.values(), ids=OPTIMIZERS.keys())
@pytest.mark.parametrize("wrap", WRAPS.values(), ids=WRAPS.keys())
def test_optimizers_of_torch_work_on_many_grids(wrap, optimizer, options, classification):
    result = minimize(classification, 16, wrap(TorchOptimizer(optimizer, options)), stop=Stop(max_iterations=16))
    first, *_, last = (record for record in result.history if record.level == 0)
    assert last.value < first.value


class HandCount:
    """Sweeps counted by hand: forward a third of a gradient, backward two, times the share of steps and samples."""

    def __init__(self, monkeypatch, steps, samples):
        self.units = 0.0
        for name, share in (("forward", 1 / 3), ("adjoint", 2 / 3)):
            monkeypatch.setattr(sweeps, name, self._counted(getattr(sweeps, name), share / (steps * samples)))

    def _counted(self, sweep, unit):
        def counted(discretization, control, states, *rest):
            self.units += unit * discretization.grid.steps * len(discretization.example()[0])
            return sweep(discretization, control, states, *rest)

        return counted


@every_method
def test_the_work_charged_is_that_of_all_sweeps_made(method, monkeypatch, classification, started, run):
    objective, start = started(classification, steps=8)
    counter = HandCount(monkeypatch, steps=8, samples=12)
    run(method, objective, start, 12)
    assert objective.work.units == pytest.approx(counter.units, rel=1e-12)
    assert counter.units > 1


@pytest.mark.parametrize("method", [Nested(2, refine=Scheduled(2)), Cycle(2, visits=Always()), LBFGS()])
def test_the_work_on_a_mini_batch_is_charged_by_its_size(method, monkeypatch, classification, started):
    objective, start = started(classification)
    counter = HandCount(monkeypatch, steps=16, samples=12)
    state = method.init(objective, objective.at(start))
    for part in map(objective.take, torch.arange(12).split(5)):
        state = method.step(part, state.of(part))
    assert objective.work.units == pytest.approx(counter.units, rel=1e-12)


def overflowing(steepness=50.0):
    """Explicit Euler overflows where its steps are long, and is stable where they are short."""
    return ControlProblem(
        lambda t, x, u: u - steepness * torch.sinh(x),
        torch.ones(1, 1, dtype=torch.float64),
        lambda x: (x - 0.01).square().sum(),
        running_cost=lambda t, x, u: 0.1 * u.square().sum(),
        control_size=1,
    )


@pytest.mark.parametrize(("steps", "levels", "refused"), [(128, 2, 0), (128, 4, 1), (64, 4, 2), (64, 5, 3)])
def test_grids_on_which_the_objective_is_not_finite_are_passed_over(steps, levels, refused):
    result = minimize(overflowing(), steps, MGOPT(levels), stop=Stop(tolerance=1e-4))
    assert result.counts.get("refused_grids", 0) == refused
    assert result.history[0].level == levels - 1 - refused
    assert result.success


def test_a_cycle_refuses_coarse_grids_on_which_the_objective_is_not_finite():
    result = minimize(overflowing(), 64, Cycle(4, visits=Always(), visit_ratio=0.0), stop=Stop(tolerance=1e-4))
    assert result.success
    assert result.counts["refused"] > 0


BAD_LEVELS = {
    "too many": (Cycle(4), 12, "levels: 12 steps can be coarsened by 2 only to 12, 6, 3, not to 4 levels"),
    "too many for nesting": (Nested(6), 16, "levels: 16 steps can be coarsened by 2 only to 16, 8, 4, 2, 1"),
    "none": (MGOPT(0), 16, "levels: expected an integer >= 1, got 0"),
    "factor": (Nested(2, factor=1), 16, "factor: expected an integer >= 2, got 1"),
    "wrong finest": (Nested([8, 4]), 16, "levels: expected numbers of steps that begin with 16"),
    "no divisors": (Cycle([16, 6]), 16, "levels: expected numbers of steps that begin with 16"),
    "not coarser": (Cycle([16, 16]), 16, "levels: expected numbers of steps that begin with 16"),
}


@pytest.mark.parametrize(("method", "steps", "message"), BAD_LEVELS.values(), ids=BAD_LEVELS.keys())
def test_a_hierarchy_that_does_not_exist_is_refused(method, steps, message, lqr):
    with pytest.raises(ValueError, match=message):
        minimize(lqr, steps, method)
