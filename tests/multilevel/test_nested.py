"""Nested iteration: how it begins, refines, and refuses what a coarse grid found."""

import math
from dataclasses import dataclass, field, replace
from typing import Any

import pytest
import torch

from ocp import (
    CONSTANT,
    LBFGS,
    LINEAR,
    MGOPT,
    Always,
    Control,
    ControlProblem,
    ControlSpace,
    Forgetful,
    GradientDescent,
    Measured,
    Nested,
    NonlinearCG,
    Scheduled,
    SciPy,
    Settled,
    Status,
    Stop,
    TimeGrid,
    TorchOptimizer,
    Transfer,
    discretize,
    minimize,
)


@pytest.mark.parametrize("method", [Nested(4), MGOPT(4), Nested(4, refine=Scheduled(3))])
def test_nested_iteration_begins_on_the_coarsest_grid_and_ends_on_the_finest(method, problem):
    levels = [record.level for record in minimize(problem, 16, method, stop=Stop(max_iterations=200)).history]
    assert (levels[0], levels[-1]) == (3, 0)
    assert set(levels) == {0, 1, 2, 3}
    assert levels == sorted(levels, reverse=True)


@pytest.mark.parametrize("steps", [1, 3, 5])
def test_a_schedule_refines_after_its_number_of_steps(steps, classification):
    result = minimize(classification, 16, Nested(3, refine=Scheduled(steps)), stop=Stop(max_iterations=12))
    levels = [record.level for record in result.history]
    assert [levels.count(2), levels.count(1)] == [steps, steps]


@pytest.mark.parametrize("interpolation", [CONSTANT, LINEAR])
def test_a_refined_control_is_the_prolonged_one(interpolation, classification, started, run):
    objective, start = started(classification)
    states = run(Nested(2, interpolation=interpolation, refine=Scheduled(3)), objective, start, 3)
    alone = run(LBFGS(), objective.on(8), states[0].control, 3)[-1]
    transfer = Transfer(objective.space, objective.on(8).space, interpolation)
    assert torch.equal(states[-1].control, transfer.prolong(alone.control))
    assert [state.level for state in states] == [1, 1, 1, 0]


@pytest.mark.parametrize(("wrap", "pairs"), [(lambda m: m, 4), (Forgetful, 0)], ids=["carried", "forgotten"])
def test_a_memory_is_carried_to_the_finer_grid_unless_the_method_is_forgetful(
    wrap, pairs, classification, started, run, recorded
):
    method = recorded(LBFGS())
    objective, start = started(classification)
    run(Nested(2, wrap(method), refine=Scheduled(4)), objective, start, 5)
    grid, before = method.log[4][0].space.grid.steps, method.log[4][1]
    assert grid == 16
    assert len(before.memory) == pairs


def test_a_start_on_a_coarser_grid_is_restricted_to_the_coarsest(lqr):
    space = ControlSpace(TimeGrid(2.0, 4), 1)
    start = Control(space, torch.arange(4, dtype=torch.float64))
    objective = discretize(replace(lqr, start=start), 16)
    state = Nested(4).init(objective, objective.at(objective.discretization.start().flat))
    assert torch.equal(state.control, torch.tensor([0.5, 2.5], dtype=torch.float64))


def test_the_counts_of_a_cycle_survive_refinement(classification):
    result = minimize(classification, 16, MGOPT(3, visits=Always(), refine=Scheduled(3)), stop=Stop(max_iterations=9))
    assert result.counts["corrections"] + result.counts.get("refused", 0) + result.counts.get("skipped", 0) >= 6


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


def test_what_a_grid_found_is_refused_where_the_finer_one_finds_it_worse(started, run):
    objective, start = started(sinking(x0=0.0), steps=64)
    states = run(Nested([64, 2], Thrown(), refine=Scheduled(1)), objective, start, 1)
    found = start[:2] + 100
    assert objective.on(2).value(found) < -1e5
    assert objective.value(Transfer(objective.space, objective.on(2).space).prolong(found)) > 1e3
    assert states[-1].counts["refused_grids"] == 1
    assert torch.equal(states[-1].control, start)


@pytest.mark.parametrize("smoother", [LBFGS(), NonlinearCG(), GradientDescent(first=1e3)])
def test_a_refused_grid_leaves_no_memory_behind(smoother, started, run):
    objective, start = started(sinking(x0=0.0), steps=64)
    states = run(Nested([64, 2], Thrown(smoother), refine=Scheduled(1)), objective, start, 1)
    assert states[-1].memory.memory == smoother.init(objective, objective.at(start)).memory


def test_a_run_goes_on_from_where_a_refused_grid_began():
    problem = sinking(x0=0.0)
    alone, many = (minimize(problem, 64, m, stop=Stop(tolerance=1e-7)) for m in (LBFGS(), Nested([64, 2], Thrown())))
    assert many.value == pytest.approx(alone.value, rel=1e-8)
    assert "1 coarse grid refused" in str(many)


def test_what_a_grid_found_is_kept_where_the_finer_one_finds_it_better(classification, started, run):
    objective, start = started(classification)
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
def test_coarse_grids_whose_values_stop_being_finite_midway_are_refused(value, refine, lqr):
    alone = minimize(lqr, 16, LBFGS(), stop=Stop(tolerance=1e-7))
    many = minimize(lqr, 16, Nested(3, Lost(LBFGS(), value, 16), refine=refine), stop=Stop(tolerance=1e-7))
    lost = [record.level for record in many.history if not math.isfinite(record.value)]
    assert many.status is Status.CONVERGED
    assert many.value == pytest.approx(alone.value, rel=1e-8)
    assert lost == [2, 1]
    assert many.counts["refused_grids"] == 2


def test_a_finest_grid_whose_values_stop_being_finite_ends_the_run_with_the_best_control(lqr):
    wild = TorchOptimizer(torch.optim.SGD, {"lr": 1e200})
    result = minimize(lqr, 16, Nested(2, wild, refine=Scheduled(1)), stop=Stop(max_iterations=50))
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
