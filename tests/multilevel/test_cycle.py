"""MG/OPT cycles and nested iteration."""

import copy
import math
from dataclasses import dataclass, field, replace
from itertools import pairwise
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from ocp import (
    CONSTANT,
    LBFGS,
    LINEAR,
    MGOPT,
    Always,
    Armijo,
    Batches,
    Control,
    ControlProblem,
    ControlSpace,
    CrossEntropy,
    Cycle,
    Earned,
    Forgetful,
    GradientDescent,
    LeastSquares,
    Measured,
    Method,
    Nested,
    NonlinearCG,
    QuadraticRunning,
    Scheduled,
    SciPy,
    Settled,
    ShiftedObjective,
    Status,
    Stop,
    Tikhonov,
    TimeGrid,
    TorchOptimizer,
    Transfer,
    Watch,
    discretize,
    minimize,
    residual_network,
)
from ocp.adjoint import sweeps
from ocp.multilevel import cycle as cycles
from ocp.multilevel.refinement import Progress
from ocp.problem.layers import Dense
from ocp.run.snapshots import decode, encode
from ocp.space.bounds import as_bounds


@dataclass(frozen=True)
class Linear:
    """x' = F x + G u."""

    F: Tensor
    G: Tensor

    @property
    def control_size(self):
        return self.G.shape[1]

    def __call__(self, t, x, u):
        return x @ self.F.T + self.G @ u

    def vjp(self, t, x, u, p):
        return p @ self.F, (p @ self.G).sum(0)

    def jvp(self, t, x, u, dx, du):
        return dx @ self.F.T + self.G @ du


X0 = torch.tensor([[1.0, 0.5]], dtype=torch.float64)
LQR = ControlProblem(
    Linear(
        torch.tensor([[0.0, 1.0], [-1.0, 0.0]], dtype=torch.float64),
        torch.tensor([[0.0], [1.0]], dtype=torch.float64),
    ),
    X0,
    LeastSquares(torch.zeros_like(X0), 2.0),
    QuadraticRunning(1.0, 0.5),
    horizon=2.0,
)


def classification():
    """Twelve points on two spiral arms, regularized so much that there is one optimum."""
    t = torch.linspace(0.3, 1.5, 6, dtype=torch.float64)
    arms = [torch.stack((t * torch.cos(3 * t + a), t * torch.sin(3 * t + a)), dim=1) for a in (0.0, math.pi)]
    with torch.random.fork_rng():
        torch.manual_seed(0)
        opening, closing = nn.Linear(2, 3), nn.Linear(3, 2)
    labels = CrossEntropy(torch.arange(2).repeat_interleave(6))
    return residual_network(
        torch.cat(arms), labels, Dense(3), opening, closing, horizon=2.0, control_cost=Tikhonov(0.04)
    )


CLASSIFICATION = classification()
PROBLEMS = {"LQR": LQR, "classification": CLASSIFICATION}
every_problem = pytest.mark.parametrize("problem", PROBLEMS.values(), ids=PROBLEMS.keys())


def started(problem, steps=16, move=0.0):
    """The objective and its start, moved by a constant."""
    objective = discretize(problem, steps)
    return objective, objective.discretization.start().flat + move


def run(method, objective, control, steps):
    """The states from the first on."""
    states = [method.init(objective, objective.at(control))]
    for _ in range(steps):
        states.append(method.step(objective, states[-1]))
    return states


@dataclass(frozen=True)
class Recorded:
    """A method that notes the objective and the state of each of its steps."""

    method: Any
    log: list = field(default_factory=list)

    def init(self, objective, point):
        return self.method.init(objective, point)

    def step(self, objective, state):
        after = self.method.step(objective, state)
        self.log.append((objective, state, after))
        return after

    def transport(self, memory, transfer):
        return self.method.transport(memory, transfer)


@dataclass(frozen=True)
class OnShifted:
    """Works on shifted objectives only, so that a cycle changes the fine control by corrections alone."""

    method: Any = field(default_factory=GradientDescent)

    def init(self, objective, point):
        return self.method.init(objective, point)

    def step(self, objective, state):
        return self.method.step(objective, state) if isinstance(objective, ShiftedObjective) else state

    def transport(self, memory, transfer):
        return self.method.transport(memory, transfer)


@dataclass(frozen=True)
class Watched:
    """A line search that notes what it was given and what it found."""

    search: Any = field(default_factory=lambda: Armijo(trials=5))
    log: list = field(default_factory=list)

    def __call__(self, start, direction, step):
        trial = self.search(start, direction, step)
        self.log.append((start, direction, trial))
        return trial


@pytest.fixture
def models(monkeypatch):
    """The shifted objectives that are made, in this order."""
    made = []

    @dataclass(frozen=True)
    class Noted(ShiftedObjective):
        def __post_init__(self):
            made.append(self)

    monkeypatch.setattr(cycles, "ShiftedObjective", Noted)
    return made


@pytest.fixture
def wrong_corrections(monkeypatch):
    """Prolongation with the wrong sign, so that corrections lead uphill."""
    prolong = Transfer.prolong
    monkeypatch.setattr(Transfer, "prolong", lambda self, v: -prolong(self, v))


def visited(models, objective):
    """The visits to coarser grids, as the number of times that each is coarser than the finest."""
    return [objective.space.grid.steps // model.space.grid.steps for model in models]


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


@every_problem
@every_method
@pytest.mark.cover(1)
def test_every_combination_ends_at_the_optimum_of_one_grid_alone(method, problem):
    alone = minimize(problem, 8, LBFGS(), stop=Stop(tolerance=1e-4))
    many = minimize(problem, 8, method, stop=Stop(tolerance=1e-4))
    assert many.status is Status.CONVERGED
    assert many.value == pytest.approx(alone.value, rel=1e-6)


@pytest.mark.parametrize("levels", [3, [27, 9, 3]])
def test_three_steps_can_become_one(levels):
    alone, many = (minimize(LQR, 27, m) for m in (LBFGS(), MGOPT(levels, factor=3, visits=Always())))
    assert {record.steps for record in many.history} == {3, 9, 27}
    assert many.value == pytest.approx(alone.value, rel=1e-9)


@pytest.mark.parametrize("levels", [2, 3, 4])
@pytest.mark.parametrize(
    ("shape", "smoother"),
    [("V", LBFGS()), ("W", LBFGS()), ("F", LBFGS()), ("V", GradientDescent()), ("W", NonlinearCG())],
    ids=["V, L-BFGS", "W, L-BFGS", "F, L-BFGS", "V, gradient descent", "W, conjugate gradients"],
)
def test_the_fine_optimum_is_a_fixed_point_of_the_cycle(smoother, shape, levels):
    """The optimum of the quadratic problem solves a linear system; its matrix is taken column by column."""
    objective, zero = started(LQR, steps=8)
    b = objective.derivative(zero)
    A = torch.stack([objective.derivative(e) - b for e in torch.eye(8, dtype=torch.float64)])
    optimum = torch.linalg.solve(A, -b)
    cycle = Cycle(levels, smoother, shape=shape, coarsest=4, visits=Always(), visit_ratio=0.0)
    after = run(cycle, objective, optimum, 2)[-1].control
    assert objective.space.norm(after - optimum) <= 1e-13 * objective.space.norm(optimum)


SMOOTHERS = {
    "L-BFGS": LBFGS(),
    "gradient descent": GradientDescent(),
    "conjugate gradients": NonlinearCG(),
    "Adam": TorchOptimizer(torch.optim.Adam, {"lr": 0.01}),
}
ONE_LEVEL = {
    "cycle": lambda smoother: Cycle(1, smoother),
    "nested": lambda smoother: Nested(1, smoother),
    "MG/OPT": lambda smoother: MGOPT(1, smoother),
}


@pytest.mark.parametrize("smoother", SMOOTHERS.values(), ids=SMOOTHERS.keys())
@pytest.mark.parametrize("make", ONE_LEVEL.values(), ids=ONE_LEVEL.keys())
def test_on_one_level_every_method_is_its_smoother_bit_for_bit(make, smoother):
    a, b = (minimize(CLASSIFICATION, 8, m, stop=Stop(max_iterations=12)) for m in (smoother, make(smoother)))
    assert torch.equal(a.control.flat, b.control.flat)
    assert [r.value for r in a.history] == [r.value for r in b.history]
    assert [r.work_units for r in a.history] == [r.work_units for r in b.history]


@pytest.mark.parametrize("make", ONE_LEVEL.values(), ids=ONE_LEVEL.keys())
def test_on_one_level_every_method_is_its_smoother_on_mini_batches_too(make):
    a, b = (
        minimize(CLASSIFICATION, 8, m, stop=Stop(max_iterations=9), batches=Batches(5))
        for m in (SMOOTHERS["Adam"], make(SMOOTHERS["Adam"]))
    )
    assert torch.equal(a.control.flat, b.control.flat)


@every_problem
@pytest.mark.parametrize("interpolation", [CONSTANT, LINEAR])
def test_the_restriction_acts_on_the_shifted_derivative_on_every_level(problem, interpolation, models):
    objective, start = started(problem, move=0.1)
    method = OnShifted(GradientDescent())
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
    return space.dual_norm(model.derivative(model.origin) - restricted) / space.dual_norm(restricted)


@pytest.mark.parametrize(("shape", "visits"), [("V", [2, 4]), ("W", [2, 4, 4, 2, 4, 4]), ("F", [2, 4, 4, 2, 4])])
def test_the_shape_says_how_often_each_grid_is_visited(shape, visits, models):
    objective, start = started(CLASSIFICATION)
    run(Cycle(3, shape=shape, visits=Always(), visit_ratio=0.0), objective, start, 1)
    assert visited(models, objective) == visits


@every_problem
@pytest.mark.parametrize("smoother", SMOOTHERS.values(), ids=SMOOTHERS.keys())
def test_an_accepted_correction_never_raises_the_fine_objective(problem, smoother):
    search = Watched()
    objective, start = started(problem, move=0.1)
    last = run(Cycle(3, smoother, visits=Always(), search=search), objective, start, 8)[-1]
    changes = [trial.point.value - start.value for start, _, trial in search.log if trial is not None]
    assert last.counts["corrections"] == len(changes) > 0
    assert max(changes) <= 1e-15


def test_a_correction_without_smoothing_decreases_the_fine_objective():
    objective, start = started(LQR)
    before, after = run(Cycle(2, OnShifted(LBFGS()), visits=Always()), objective, start, 1)
    assert after.counts["corrections"] == 1
    assert objective.value(after.control) < 0.8 * objective.value(before.control)


def test_a_refused_correction_is_counted_and_leaves_the_control_as_it_was(wrong_corrections):
    objective, start = started(LQR)
    after = run(Cycle(2, OnShifted(), visits=Always()), objective, start, 3)[-1]
    assert after.counts["refused"] == 3
    assert after.counts["corrections"] == 0
    assert torch.equal(after.control, start)
    assert after.status is Status.RUNNING


def test_a_correction_that_is_not_finite_is_refused():
    nowhere = TorchOptimizer(torch.optim.SGD, {"lr": float("inf")})
    objective, start = started(LQR)
    after = run(Cycle(2, OnShifted(nowhere), visits=Always()), objective, start, 2)[-1]
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
def test_a_coarse_solve_without_a_minimum_stays_within_its_radius(smoother, models):
    search = Watched()
    objective, start = started(saturating(), move=0.5)
    run(Cycle(2, OnShifted(smoother), visits=Always(), search=search, visit_ratio=0), objective, start, 1)
    (model,), ((_, correction, _),) = models, search.log
    far = 1e9 * model.space.gradient(model.shift)
    unlimited = ShiftedObjective(model.base, model.origin, model.shift)
    assert unlimited.value(model.origin + far) < -1e3
    assert 0.99 * model.radius <= objective.space.norm(correction) <= model.radius * (1 + 1e-12)


def test_the_radius_grows_where_full_steps_reach_it(models):
    problem = ControlProblem(
        lambda t, x, u: u + 0 * x,
        torch.zeros(1, 1, dtype=torch.float64),
        lambda x: 0.5 * (x - 100).square().sum(),
        control_size=1,
    )
    objective, start = started(problem)
    run(Cycle(2, OnShifted(), visits=Always()), objective, start, 3)
    assert [model.radius for model in models] == [1.0, 2.0, 4.0]


def test_the_radius_shrinks_where_corrections_are_refused(models, wrong_corrections):
    objective, start = started(LQR)
    run(Cycle(2, OnShifted(), visits=Always()), objective, start, 3)
    assert models[0].radius > models[1].radius > models[2].radius > 0


def test_the_radius_does_not_shrink_to_the_rounding_errors_of_the_control(models, wrong_corrections):
    objective, start = started(LQR, move=1.0)
    run(Cycle(2, OnShifted(), visits=Always()), objective, start, 30)
    assert models[-1].radius >= 1e-9 * objective.space.norm(start)


def test_always_visits_at_once_and_does_not_wait():
    assert Always().first()[0] == 0
    assert [Always().after(0, paid)[0] for paid in (True, False)] == [0, 0]
    assert Always().floor(3.0) == -math.inf


def test_earned_waits_first_then_twice_as_long_after_each_visit_that_did_not_pay():
    visits = Earned(patience=2, longest=10)
    wait, patience = visits.first()
    waits = [wait]
    wait, patience = visits.after(patience, paid=False)
    waits.append(wait)
    wait, patience = visits.after(patience, paid=False)
    waits.append(wait)
    wait, patience = visits.after(patience, paid=False)
    waits.append(wait)
    wait, patience = visits.after(patience, paid=False)
    waits.append(wait)
    assert waits == [2, 2, 4, 8, 10]
    assert visits.after(patience, paid=True)[0] == 0


def steps_with_visits(cycle, objective, start, steps):
    """The numbers of the cycle's steps that visited a coarser grid."""
    visits = [state.counts.get("refused", 0) for state in run(cycle, objective, start, steps)]
    return [k for k, (before, after) in enumerate(pairwise(visits)) if after > before]


@pytest.mark.parametrize(
    ("visits", "expected"),
    [
        (Always(), list(range(20))),
        (Earned(patience=2), [2, 5, 10, 19]),
        (Earned(patience=2, longest=3), [2, 5, 9, 13, 17]),
        (Earned(patience=100), []),
    ],
)
def test_visits_that_do_not_pay_become_rare(visits, expected, wrong_corrections):
    objective, start = started(LQR)
    assert steps_with_visits(Cycle(2, OnShifted(), visits=visits), objective, start, 20) == expected


@pytest.mark.parametrize(("ratio", "visits", "skipped"), [(0.0, 4, 0), (1.01, 0, 4)])
def test_a_derivative_that_is_rough_in_time_is_not_worth_a_visit(ratio, visits, skipped, models):
    objective, start = started(LQR)
    last = run(Cycle(2, visits=Always(), visit_ratio=ratio), objective, start, 4)[-1]
    assert (len(models), last.counts["skipped"]) == (visits, skipped)


def test_no_more_than_the_stated_smoothing_steps_are_made():
    method = Recorded(LBFGS())
    objective, start = started(CLASSIFICATION)
    run(
        Cycle(2, method, pre=2, post=3, coarsest=7, visits=Always(), visit_ratio=0.0),
        objective,
        start,
        1,
    )
    assert [o.space.grid.steps for o, _, _ in method.log] == [16] * 2 + [8] * 7 + [16] * 3


def test_a_solver_works_on_all_grids_but_the_finest():
    smoother, solver = Recorded(GradientDescent()), Recorded(LBFGS())
    objective, start = started(CLASSIFICATION)
    method = MGOPT(3, smoother, solver=solver, refine=Scheduled(2), visits=Always(), visit_ratio=0.0, coarsest=3)
    run(method, objective, start, 5)
    assert [o.space.grid.steps for o, _, _ in smoother.log] == [16]
    # Two steps on the coarsest grid, two cycles on the next one, and the correction of the finest grid.
    assert [o.space.grid.steps for o, _, _ in solver.log] == [4] * 2 + [8, 4, 4, 4] * 2 + [8] * 3


def test_the_memory_of_a_solver_is_carried_to_finer_grids_but_not_to_the_smoother_of_the_finest():
    smoother, solver = Recorded(LBFGS()), Recorded(LBFGS())
    objective, start = started(CLASSIFICATION)
    run(Nested(3, Cycle(3, smoother, solver=solver), refine=Scheduled(2)), objective, start, 5)
    assert [len(before.memory) for o, before, _ in solver.log if o.space.grid.steps == 8] == [2, 3]
    assert [len(before.memory) for _, before, _ in smoother.log] == [0]


def test_where_the_finest_grid_is_refined_its_smoother_keeps_its_memory():
    objective, start = started(CLASSIFICATION, steps=8)
    method = Cycle(2, LBFGS(), solver=GradientDescent(), visits=Always())
    last, fine = run(method, objective, start, 3)[-1], objective.on(16)
    memory = method.transport(last.memory, Transfer(fine.space, objective.space))
    assert (len(memory[16].smoother), memory[4].smoother) == (3, last.memory[4].smoother)


def test_a_smoother_keeps_its_memory_from_cycle_to_cycle():
    method = Recorded(LBFGS())
    objective, start = started(CLASSIFICATION)
    run(Cycle(2, method, coarsest=2, visits=Always(), visit_ratio=0.0), objective, start, 3)
    pairs = [(o.space.grid.steps, len(before.memory)) for o, before, _ in method.log]
    assert pairs == [(16, 0), (8, 0), (8, 1), (16, 1), (8, 2), (8, 3), (16, 2), (8, 4), (8, 5)]


@pytest.mark.parametrize("method", [Cycle(3, visits=Always()), Nested(3), MGOPT(3)], ids=["cycle", "nested", "MG/OPT"])
@pytest.mark.parametrize("through", [copy.deepcopy, lambda memory: decode(encode(memory))], ids=["copy", "file"])
def test_a_saved_state_continues_the_run_bit_for_bit(method, through):
    objective, start = started(CLASSIFICATION)
    state = run(method, objective, start, 7)[-1]
    saved, (fresh, _) = replace(state, memory=through(state.memory)), started(CLASSIFICATION)
    saved = saved.of(fresh)
    for _ in range(7):
        state, saved = method.step(objective, state), method.step(fresh, saved)
    assert torch.equal(state.control, saved.control)
    assert state.counts == saved.counts


@every_method
def test_a_step_does_not_change_the_state_it_is_given(method):
    objective, start = started(CLASSIFICATION, steps=8)
    state = run(method, objective, start, 6)[-1]
    control, counts, fresh = state.control.clone(), dict(state.counts), started(CLASSIFICATION, steps=8)[0]
    once, twice = method.step(objective, state), method.step(fresh, state.of(fresh))
    assert torch.equal(state.control, control)
    assert state.counts == counts
    assert torch.equal(once.control, twice.control)


@every_problem
@pytest.mark.parametrize("method", [Nested(4), MGOPT(4), Nested(4, refine=Scheduled(3))])
def test_nested_iteration_begins_on_the_coarsest_grid_and_ends_on_the_finest(method, problem):
    levels = [record.level for record in minimize(problem, 16, method, stop=Stop(max_iterations=200)).history]
    assert (levels[0], levels[-1]) == (3, 0)
    assert set(levels) == {0, 1, 2, 3}
    assert levels == sorted(levels, reverse=True)


@pytest.mark.parametrize("steps", [1, 3, 5])
def test_a_schedule_refines_after_its_number_of_steps(steps):
    result = minimize(CLASSIFICATION, 16, Nested(3, refine=Scheduled(steps)), stop=Stop(max_iterations=12))
    levels = [record.level for record in result.history]
    assert [levels.count(2), levels.count(1)] == [steps, steps]


@dataclass(frozen=True)
class Known:
    """An evaluation of which nothing but the value is known."""

    value: float


class Unseen:
    """An evaluation at which nobody should look."""

    @property
    def value(self):
        pytest.fail("nobody looks")


def test_measured_refinement_leaves_a_grid_whose_progress_the_finer_one_does_not_follow():
    rule = Measured(every=2)
    progress = rule.arrive(Progress(), Known(10.0), Known(10.0))
    values = iter([(9.0, 20.0), (8.0, 20.0), (7.0, 20.0), (6.0, 20.0)])
    decisions = []
    for here, fine in values:
        progress, refine = rule.observe(progress, Known(here), Known(fine))
        decisions.append(refine)
    assert decisions == [False, False, False, True]


def test_measured_refinement_stays_while_the_finer_grid_follows():
    rule = Measured(every=2, little=0.0)
    progress = rule.arrive(Progress(), Known(10.0), Known(10.0))
    decisions = []
    for k in range(8):
        progress, refine = rule.observe(progress, Known(9.0 - k), Known(20.0 - k))
        decisions.append(refine)
    assert decisions == [False] * 8


def refines(rule, values, left=None):
    """What a rule decides after each of these values, which no look at the finer grid tells."""
    progress = Progress(values=values[:1])
    if left is not None:
        progress = rule.arrive(Progress(), Known(left), Known(values[0]))
    decisions = []
    for value in values[1:]:
        progress, refine = rule.observe(progress, Known(value), Unseen())
        decisions.append(refine)
    return decisions


@pytest.mark.parametrize("steps", [8, 20, 40])
def test_a_descent_that_lasted_has_to_pause_as_long_before_it_has_settled(steps):
    values = (*(float(steps - k) for k in range(steps)), *[1.0] * (2 * steps))
    assert refines(Settled(), values).index(True) == 2 * steps - 4


@pytest.mark.parametrize(("left", "expected"), [(2.0, False), (20.0, True)])
def test_what_is_little_is_measured_by_the_difference_from_the_coarser_grid(left, expected):
    assert any(refines(Settled(), tuple(2.0 - 0.1 * k for k in range(8)), left)) is expected


def test_a_jump_by_prolongation_that_the_first_step_mends_does_not_count():
    assert refines(Settled(), (500.0, 1.5, 1.4, 1.3, 1.2, 1.1, 1.0), left=1.2) == [False] * 6


def test_a_refined_control_is_the_prolonged_one():
    objective, start = started(CLASSIFICATION)
    states = run(Nested(2, refine=Scheduled(3)), objective, start, 3)
    alone = run(LBFGS(), objective.on(8), states[0].control, 3)[-1]
    transfer = Transfer(objective.space, objective.on(8).space)
    assert torch.equal(states[-1].control, transfer.prolong(alone.control))
    assert [state.level for state in states] == [1, 1, 1, 0]


@pytest.mark.parametrize(("wrap", "pairs"), [(lambda m: m, 4), (Forgetful, 0)], ids=["carried", "forgotten"])
def test_a_memory_is_carried_to_the_finer_grid_unless_the_method_is_forgetful(wrap, pairs):
    method = Recorded(LBFGS())
    objective, start = started(CLASSIFICATION)
    run(Nested(2, wrap(method), refine=Scheduled(4)), objective, start, 5)
    grid, before = method.log[4][0].space.grid.steps, method.log[4][1]
    assert grid == 16
    assert len(before.memory) == pairs


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
def test_optimizers_of_torch_work_on_many_grids(wrap, optimizer, options):
    result = minimize(CLASSIFICATION, 16, wrap(TorchOptimizer(optimizer, options)), stop=Stop(max_iterations=16))
    first, *_, last = (record for record in result.history if record.level == 0)
    assert last.value < first.value


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
def test_the_work_charged_is_that_of_all_sweeps_made(method, monkeypatch):
    objective, start = started(CLASSIFICATION, steps=8)
    counter = HandCount(monkeypatch, steps=8, samples=12)
    run(method, objective, start, 12)
    assert objective.work.units == pytest.approx(counter.units, rel=1e-12)
    assert counter.units > 1


@pytest.mark.parametrize("method", [Nested(2, refine=Scheduled(2)), Cycle(2, visits=Always()), LBFGS()])
def test_the_work_on_a_mini_batch_is_charged_by_its_size(method, monkeypatch):
    objective, start = started(CLASSIFICATION)
    counter = HandCount(monkeypatch, steps=16, samples=12)
    state = method.init(objective, objective.at(start))
    for part in map(objective.take, torch.arange(12).split(5)):
        state = method.step(part, state.of(part))
    assert objective.work.units == pytest.approx(counter.units, rel=1e-12)


def test_a_batch_is_held_fixed_through_a_cycle():
    method = Recorded(TorchOptimizer(torch.optim.SGD, {"lr": 0.1}))
    objective, start = started(CLASSIFICATION)
    cycle = Cycle(3, method, visits=Always(), visit_ratio=0.0)
    batch = objective.take(torch.tensor([1, 7, 8]))
    cycle.step(batch, cycle.init(objective, objective.at(start)).of(batch))
    samples = {reduced(o).discretization.problem.initial_state.inputs.shape[0] for o, _, _ in method.log}
    assert samples == {3}


def reduced(objective):
    """The objective under its shifts."""
    return reduced(objective.base) if isinstance(objective, ShiftedObjective) else objective


def test_a_cycle_on_a_coarse_grid_goes_on_to_the_grids_that_are_coarser_still(models):
    objective, start = started(CLASSIFICATION)
    run(MGOPT(3, visits=Always(), visit_ratio=0.0, refine=Scheduled(2)), objective, start, 5)
    assert visited(models, objective) == [4, 4, 2, 4]


@every_problem
def test_every_correction_is_told_as_a_visit_with_what_it_cost_and_gained(problem):
    objective, start = started(problem, move=0.1)
    before = objective.work.units
    last = run(Cycle(3, visits=Always(), visit_ratio=0.0), objective, start, 4)[-1]
    assert len(last.visits) == last.counts["corrections"] + last.counts["refused"] > 0
    assert {(v.steps, v.coarse) for v in last.visits} == {(16, 8), (8, 4)}
    for v in last.visits:
        assert before <= v.begin < v.end <= objective.work.units
        assert (v.step > 0) == (v.decrease > 0)
        assert v.expected >= 0


def test_the_mismatch_of_a_visit_is_what_the_coarse_derivative_misses():
    objective, start = started(LQR)
    (visit,) = run(Cycle(2, OnShifted(LBFGS()), visits=Always()), objective, start, 1)[-1].visits
    coarse = objective.on(visit.coarse)
    transfer = Transfer(objective.space, coarse.space)
    restricted = transfer.restrict_dual(objective.derivative(start))
    missed = coarse.space.dual_norm(coarse.derivative(transfer.restrict(start)) - restricted)
    assert visit.mismatch == pytest.approx(missed / coarse.space.dual_norm(restricted), rel=1e-12)


def test_visits_of_a_run_are_in_its_result_in_the_order_of_work():
    result = minimize(CLASSIFICATION, 16, MGOPT(3, visits=Always(), refine=Scheduled(3)), stop=Stop(max_iterations=9))
    ends = [visit.end for visit in result.visits]
    assert len(ends) == result.counts["corrections"] + result.counts.get("refused", 0)
    assert ends == sorted(ends)


def test_the_counts_of_a_cycle_survive_refinement():
    result = minimize(CLASSIFICATION, 16, MGOPT(3, visits=Always(), refine=Scheduled(3)), stop=Stop(max_iterations=9))
    assert result.counts["corrections"] + result.counts.get("refused", 0) + result.counts.get("skipped", 0) >= 6


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
def test_a_hierarchy_that_does_not_exist_is_refused(method, steps, message):
    with pytest.raises(ValueError, match=message):
        minimize(LQR, steps, method)


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


def test_a_start_on_a_coarser_grid_is_restricted_to_the_coarsest():
    space = ControlSpace(TimeGrid(2.0, 4), 1)
    start = Control(space, torch.arange(4, dtype=torch.float64))
    objective = discretize(replace(LQR, start=start), 16)
    state = Nested(4).init(objective, objective.at(objective.discretization.start().flat))
    assert torch.equal(state.control, torch.tensor([0.5, 2.5], dtype=torch.float64))


def bounded(bounds):
    """The linear problem, whose optimal control goes from -1.6 to 1, with bounds."""
    return replace(LQR, bounds=as_bounds(bounds))


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
def alone():
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
def test_a_bounded_optimum_is_that_of_one_grid_alone(method, bounds, alone):
    found = minimize(bounded(bounds), 8, method, stop=Stop(tolerance=1e-6))
    assert found.status is Status.CONVERGED
    assert found.value == pytest.approx(alone(bounds).value, rel=1e-8)
    torch.testing.assert_close(found.control.flat, alone(bounds).control.flat, rtol=0, atol=1e-4)


@every_limit
def test_the_bounds_of_these_problems_are_met(bounds, alone):
    box, u = discretize(bounded(bounds), 8).box, alone(bounds).control.flat
    assert int(((u == box.lower) | (u == box.upper)).sum()) >= 1
    assert int(((u > box.lower) & (u < box.upper)).sum()) >= 1


@every_limit
@pytest.mark.parametrize("name", ["V-cycles", "W-cycles, linear", "MG/OPT, linear", "nested", "gradient descent"])
@pytest.mark.cover(1)
def test_every_iterate_lies_within_the_bounds_of_its_grid(name, bounds):
    objective, start = started(bounded(bounds))
    states = run(BOUNDED[name], objective, start, 8)
    boxes = [objective.on(len(state.control)).box for state in states]
    assert all(torch.equal(box.project(state.control), state.control) for box, state in zip(boxes, states, strict=True))


@every_limit
def test_the_callback_sees_controls_within_the_bounds_of_the_finest_grid(bounds):
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
@pytest.mark.cover(2)
def test_corrections_within_bounds_happen_and_need_no_projection(smoother, interpolation, bounds):
    """From a start near the bounds; the line search gets controls that the coarse bounds keep feasible."""
    search = Watched()
    objective, start = started(bounded(bounds), move=-0.5)
    start = objective.box.project(start)
    cycle = Cycle(3, OnShifted(smoother), interpolation=interpolation, visits=Always(), visit_ratio=0.0, search=search)
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
def test_a_bounded_optimum_is_a_fixed_point_of_the_cycle(shape, interpolation, levels, alone):
    bounds = LIMITS["active"]
    cycle = Cycle(levels, shape=shape, interpolation=interpolation, visits=Always(), visit_ratio=0.0)
    objective, _ = started(bounded(bounds), steps=8)
    optimum = alone(bounds).control.flat
    after = run(cycle, objective, optimum, 2)[-1].control
    assert objective.space.norm(after - optimum) <= 1e-6 * objective.space.norm(optimum)
    assert torch.equal(after == objective.box.lower, optimum == objective.box.lower)


def test_the_model_of_a_bounded_problem_agrees_with_it_to_first_order_in_what_is_free(models):
    objective, start = started(bounded(LIMITS["active"]), move=9.0)
    start = objective.box.project(start)
    run(Cycle(2, OnShifted(), visits=Always(), visit_ratio=0.0), objective, start, 1)
    derivative = objective.derivative(start)
    free = derivative * objective.box.free(start, derivative)
    expected = Transfer(objective.space, models[0].space).restrict_dual(free)
    torch.testing.assert_close(models[0].derivative(models[0].origin), expected)
    assert not torch.equal(free, derivative)


def test_adam_smooths_a_bounded_problem_within_its_bounds():
    bounds = LIMITS["active"]
    method = MGOPT(3, SMOOTHING["Adam"], visits=Always(), refine=Scheduled(10))
    result = minimize(bounded(bounds), 16, method, stop=Stop(tolerance=1e-3, max_iterations=150))
    assert result.value == pytest.approx(minimize(bounded(bounds), 16, LBFGS()).value, rel=1e-4)
    assert result.counts["corrections"] >= 5


def sinking(stiffness=20.0, x0=1.0):
    """Sink as far as a stiff spring allows, whose optimum is near -0.07.

    Explicit Euler is unstable on coarse grids, where the state runs off to either infinity: from the same start it
    has a value of 1e25 on 4 steps, none on 8, and the one of fine grids from 16 steps on.
    """
    return ControlProblem(
        lambda t, x, u: u - stiffness * x**3,
        torch.full((1, 1), x0, dtype=torch.float64),
        lambda x: x.sum(),
        running_cost=lambda t, x, u: 0.5 * u.square().sum(),
        control_size=1,
    )


ASTRAY = {
    "nested": Nested(5),
    "forgetful nested": Nested(5, Forgetful(LBFGS())),
    "scheduled nested": Nested(5, refine=Scheduled(4)),
    "linear interpolation": Nested(5, interpolation=LINEAR),
    "MG/OPT": MGOPT(5),
    "textbook MG/OPT": MGOPT(5, visits=Always()),
    "gradient descent": Nested(5, GradientDescent()),
    "conjugate gradients": Nested(5, NonlinearCG()),
    "SciPy": Nested(5, SciPy()),
}
every_astray = pytest.mark.parametrize("method", ASTRAY.values(), ids=ASTRAY.keys())
STIFF = {"stiffness 20": (20.0, 1.0), "from 2": (10.0, 2.0)}


@pytest.mark.parametrize("settings", STIFF.values(), ids=STIFF.keys())
@every_astray
@pytest.mark.cover(1)
def test_the_fine_optimum_is_found_where_coarse_grids_have_none(method, settings):
    problem = sinking(*settings)
    alone, many = (minimize(problem, 64, m, stop=Stop(tolerance=1e-7, max_iterations=200)) for m in (LBFGS(), method))
    assert many.status is Status.CONVERGED
    assert many.value == pytest.approx(alone.value, rel=1e-6)
    assert many.counts["refused_grids"] >= 1
    assert f"{many.counts['refused_grids']} coarse grid" in str(many)


@dataclass(frozen=True)
class Thrown:
    """On a coarse grid of two steps it takes one that Euler's instability makes a great success, and remembers that."""

    smoother: Any = field(default_factory=LBFGS)

    def init(self, objective, point):
        return self.smoother.init(objective, point)

    def step(self, objective, state):
        if objective.space.grid.steps > 2:
            return self.smoother.step(objective, state)
        return replace(state, point=objective.at(state.control + 100.0), memory="of the coarse grid")

    def transport(self, memory, transfer):
        return memory


def test_what_a_grid_found_is_refused_where_the_finer_one_finds_it_worse():
    objective, start = started(sinking(x0=0.0), steps=64)
    states = run(Nested([64, 2], Thrown(), refine=Scheduled(1)), objective, start, 1)
    found = start[:2] + 100
    assert objective.on(2).value(found) < -1e5
    assert objective.value(Transfer(objective.space, objective.on(2).space).prolong(found)) > 1e3
    assert states[-1].counts["refused_grids"] == 1
    assert torch.equal(states[-1].control, start)


@pytest.mark.parametrize("smoother", [LBFGS(), NonlinearCG(), GradientDescent(first=1e3)])
def test_a_refused_grid_leaves_no_memory_behind(smoother):
    objective, start = started(sinking(x0=0.0), steps=64)
    states = run(Nested([64, 2], Thrown(smoother), refine=Scheduled(1)), objective, start, 1)
    assert states[-1].memory.memory == smoother.init(objective, objective.at(start)).memory


def test_a_run_goes_on_from_where_a_refused_grid_began():
    problem = sinking(x0=0.0)
    alone, many = (minimize(problem, 64, m, stop=Stop(tolerance=1e-7)) for m in (LBFGS(), Nested([64, 2], Thrown())))
    assert many.value == pytest.approx(alone.value, rel=1e-8)
    assert "1 coarse grid refused" in str(many)


def test_what_a_grid_found_is_kept_where_the_finer_one_finds_it_better():
    objective, start = started(CLASSIFICATION)
    states = run(Nested(2, refine=Scheduled(3)), objective, start, 3)
    assert states[-1].counts["refused_grids"] == 0
    assert objective.value(states[-1].control) < objective.value(start)


@dataclass(frozen=True)
class Lost:
    """A method whose control is lost on coarse grids, after some steps."""

    method: Any
    value: float
    finest: int

    def init(self, objective, point):
        return self.method.init(objective, point)

    def step(self, objective, state):
        after = self.method.step(objective, state)
        if objective.space.grid.steps == self.finest or after.point.value > 2.2:
            return after
        return replace(after, point=objective.at(after.control * self.value))

    def transport(self, memory, transfer):
        return self.method.transport(memory, transfer)


@pytest.mark.parametrize("value", [math.nan, math.inf, -math.inf])
@pytest.mark.parametrize("refine", [Measured(), Scheduled(30), Settled()], ids=["measured", "scheduled", "settled"])
def test_coarse_grids_whose_values_stop_being_finite_midway_are_refused(value, refine):
    alone = minimize(LQR, 16, LBFGS(), stop=Stop(tolerance=1e-7))
    many = minimize(LQR, 16, Nested(3, Lost(LBFGS(), value, 16), refine=refine), stop=Stop(tolerance=1e-7))
    lost = [record.level for record in many.history if not math.isfinite(record.value)]
    assert many.status is Status.CONVERGED
    assert many.value == pytest.approx(alone.value, rel=1e-8)
    assert lost == [2, 1]
    assert many.counts["refused_grids"] == 2


def test_a_finest_grid_whose_values_stop_being_finite_ends_the_run_with_the_best_control():
    wild = TorchOptimizer(torch.optim.SGD, {"lr": 1e200})
    result = minimize(LQR, 16, Nested(2, wild, refine=Scheduled(1)), stop=Stop(max_iterations=50))
    assert result.status is Status.NOT_FINITE
    assert math.isfinite(result.value)


def test_a_grid_between_others_without_a_finite_value_is_passed_over():
    result = minimize(sinking(), 64, Nested(5), stop=Stop(tolerance=1e-7))
    assert [math.isfinite(discretize(sinking(), n).value(torch.zeros(n).double())) for n in (4, 8, 16)] == [
        True,
        False,
        True,
    ]
    assert {record.steps for record in result.history} == {4, 16, 32, 64}
    assert result.success
