"""Checkpointing schedules, run on a machine that counts, and the gradient under every schedule."""

import gc
from functools import cache
from itertools import accumulate, product
from math import ceil

import pytest
import torch

from ocp.adjoint.paths import choose
from ocp.adjoint.schedules import Advance, Binomial, Keep, Restore, Reverse, Reversible, Schedule, StoreAll, Undo
from ocp.multilevel.nested import MGOPT
from ocp.objective.reduced import discretize
from ocp.optimize.lbfgs import LBFGS
from ocp.problem.control_problem import ControlProblem
from ocp.problem.costs import QuadraticRunning
from ocp.problem.dynamics import FunctionDynamics
from ocp.problem.layers import Dense
from ocp.run.minimize import minimize
from ocp.run.stopping import Stop
from ocp.run.watching import Watch
from ocp.verification.drift import drift
from ocp.verification.verify import verify

CASES = [*product((1, 2, 3, 7, 16, 50, 101), (1, 2, 3, 5, 10, 200)), (1000, 10), (1000, 50)]
BLOCKS = [*product((1, 5, 50, 101), (1, 2, 10), (2, 7, 50, 64)), (1000, 10, 64)]
REVERSIBLE = [*product((1, 2, 7, 50, 101), (None, 1, 4, 50, 200), (1, 3, 50, 64))]


def run(schedule, steps):
    """Run a schedule on nodes instead of states and return the number of steps; violations of the rules raise."""
    at, slots, left, taken, needs = 0, {}, steps, 0, schedule.needs(steps)
    for action in schedule.actions(steps):
        match action:
            case Advance(first, last):
                assert at == first < last <= left
                taken += last - first
                at = last
            case Reverse(first, last):
                assert at == first < last == left
                assert last - first <= needs.span
                taken += last - first
                at, left = last, first
            case Keep(node, slot):
                assert at == node
                assert slot < needs.slots
                slots[slot] = node
            case Restore(node, slot):
                assert slots[slot] == node
                at = node
            case Undo(first, last):
                assert 0 <= first < at == last
                at = first
    assert left == 0
    return taken


@cache
def fewest(steps, slots):
    """The least number of extra steps, by trying all places for the next state: Griewank & Walther, equation (1)."""
    if steps == 1:
        return 0
    if slots == 1:
        return steps * (steps - 1) // 2
    return min(m + fewest(steps - m, slots - 1) + fewest(m, slots) for m in range(1, steps))


@pytest.mark.parametrize(("steps", "slots"), CASES)
def test_a_schedule_takes_as_many_steps_again_as_it_says(steps, slots):
    schedule = Binomial(slots)
    assert run(schedule, steps) - steps == schedule.extra_steps(steps)


@pytest.mark.parametrize(("steps", "slots"), [case for case in CASES if case[0] <= 101])
def test_no_schedule_takes_fewer_steps_again(steps, slots):
    assert Binomial(slots).extra_steps(steps) == fewest(steps, slots)


@pytest.mark.parametrize(("steps", "slots", "block"), BLOCKS)
def test_a_schedule_in_blocks_takes_the_fewest_blocks_again(steps, slots, block):
    schedule = Binomial(slots, block)
    assert run(schedule, steps) - steps == schedule.extra_steps(steps) == block * fewest(ceil(steps / block), slots)


@pytest.mark.parametrize(("steps", "every", "block"), REVERSIBLE)
def test_no_step_is_taken_more_than_twice_where_steps_are_undone(steps, every, block):
    assert run(Reversible(every, block), steps) <= 2 * steps


def test_without_anchors_two_states_are_kept_for_any_number_of_steps():
    assert {Reversible().needs(steps).slots for steps in (1, 100, 100_000)} == {2}


def test_no_more_steps_are_undone_in_a_row_than_lie_between_anchors():
    """What is undone begins at an anchor, whose state is exact."""
    undone = [(a.first, a.last) for a in Reversible(every=10, block=4).actions(30) if isinstance(a, Undo)]
    assert undone == [(24, 28), (18, 20), (14, 18), (8, 10), (4, 8)]


@pytest.mark.parametrize(("steps", "slots", "extra"), [(1000, 10, 3636), (1000, 50, 1948), (10, 3, 15), (50, 50, 49)])
def test_the_number_of_extra_steps_is_that_of_the_formula(steps, slots, extra):
    assert Binomial(slots).extra_steps(steps) == extra


def test_a_schedule_for_many_steps_takes_a_stream_of_actions():
    assert run(Binomial(50), 100_000) == 100_000 + Binomial(50).extra_steps(100_000)


def test_where_all_is_stored_no_step_is_taken_again():
    assert run(StoreAll(), 17) == 17


@pytest.mark.parametrize("slots", [0, -1, 2.5])
def test_a_schedule_without_slots_is_refused(slots):
    with pytest.raises(ValueError, match=f"slots: expected an integer >= 1, got {slots}"):
        Binomial(slots)


@pytest.mark.parametrize(
    ("schedule", "arguments", "message"),
    [
        (Binomial, {"slots": 2, "block": 0}, "block: expected an integer >= 1, got 0"),
        (Reversible, {"block": 1.5}, "block: expected an integer >= 1, got 1.5"),
        (Reversible, {"every": 0}, "every: expected an integer >= 1, got 0"),
        (Binomial, {"slots": 2, "host": 3}, "host: expected an integer between 0 and the 2 slots, got 3"),
        (Binomial, {"slots": 2, "host": 0.5}, "host: expected an integer between 0 and the 2 slots, got 0.5"),
    ],
)
def test_a_schedule_that_cannot_be_is_refused(schedule, arguments, message):
    with pytest.raises(ValueError, match=message):
        schedule(**arguments)


def test_schedules_are_known_by_what_they_offer():
    assert isinstance(StoreAll(), Schedule)
    assert isinstance(Binomial(3), Schedule)
    assert isinstance(Reversible(), Schedule)


def wave(t, x, u):
    return torch.cat((x[:, 8:], u[0] - torch.sinh(x[:, :8]) * t), dim=1)


PROBLEMS = {
    "layer": (lambda x: ControlProblem(Dense(4), x(5, 4), lambda x: x.pow(3).sum(), QuadraticRunning()), "euler"),
    "layer by stages": (lambda x: ControlProblem(Dense(4), x(5, 4), lambda x: x.sum(), QuadraticRunning()), "rk4"),
    "oscillator": (
        lambda x: ControlProblem(
            lambda t, x, u: torch.stack((x[:, 1], u[0] - torch.sin(x[:, 0])), 1),
            x(1, 2),
            lambda x: x.pow(3).sum(),
            lambda t, x, u: t * x.square().sum() + u.pow(4).sum(),
            control_size=1,
        ),
        "heun",
    ),
    "tape": (
        lambda x: ControlProblem(wave, x(3, 16), lambda x: x.square().sum(), QuadraticRunning(), control_size=1),
        "verlet",
    ),
    "implicit": (
        lambda x: ControlProblem(lambda t, x, u: u[0] - x**3, x(1, 2), lambda x: x.sum(), control_size=1),
        "crank_nicolson",
    ),
}


@pytest.fixture(params=PROBLEMS.values(), ids=PROBLEMS.keys())
def by_schedule(request, rand):
    """The objective of a problem under a schedule; the problem is the same at every call."""
    build, integrator = request.param
    problem = build(rand)
    return lambda schedule, steps=23: discretize(problem, steps, integrator, schedule)


FEW = [Binomial(1), Binomial(2), Binomial(4), Binomial(40), Binomial(2, block=5), Binomial(1, block=40)]
FEW += [Binomial(4, host=3), Binomial(40, block=2, host=40)]


@pytest.mark.parametrize("schedule", FEW, ids=str)
@pytest.mark.cover(1)
def test_the_derivative_is_the_same_under_every_schedule(by_schedule, schedule, rand):
    all_kept, few_kept = by_schedule(StoreAll()), by_schedule(schedule)
    u = 0.3 * rand(all_kept.space.dimension)
    assert few_kept.value(u) == pytest.approx(all_kept.value(u), rel=1e-14)
    torch.testing.assert_close(few_kept.derivative(u), all_kept.derivative(u), rtol=1e-12, atol=1e-14)


@pytest.mark.gpu
@pytest.mark.parametrize("host", [0, 2, 5])
def test_slots_in_host_memory_are_pinned_and_give_the_same_derivative_on_a_device(host, rand):
    x = rand(5, 4).cuda()
    problem = ControlProblem(Dense(4), x, lambda x: x.pow(3).sum())
    few, kept = (discretize(problem, 23, "rk4", schedule) for schedule in (Binomial(5, host=host), StoreAll()))
    u = 0.3 * rand(kept.space.dimension).cuda()
    torch.testing.assert_close(few.derivative(u), kept.derivative(u), rtol=1e-12, atol=1e-14)
    steps = choose(few.discretization, few.schedule, x, u[:20])
    assert [slot.is_pinned() for slot in steps._slots] == [True] * host + [False] * (5 - host)


def test_states_can_be_asked_for_between_a_value_and_its_derivative(by_schedule, rand):
    all_kept, few_kept = by_schedule(StoreAll()), by_schedule(Binomial(3))
    u, d = 0.3 * rand(all_kept.space.dimension), rand(all_kept.space.dimension)
    few_kept.value(u)
    assert few_kept.directional(u, d) == pytest.approx(all_kept.directional(u, d), rel=1e-12)
    torch.testing.assert_close(few_kept.derivative(u), all_kept.derivative(u), rtol=1e-12, atol=1e-14)
    torch.testing.assert_close(few_kept.trajectory(u).x, all_kept.trajectory(u).x, rtol=1e-14, atol=1e-14)


def test_a_schedule_holds_on_every_grid_and_batch(rand):
    problem = ControlProblem(Dense(4), rand(6, 4), lambda x: x.square().sum())
    objective = discretize(problem, 16, schedule=Binomial(3))
    others = (objective.on(8), objective.take(torch.arange(2)), objective.uncounted())
    assert {other.schedule for other in others} == {Binomial(3)}


@pytest.mark.parametrize("schedule", [10, Binomial, "all"])
def test_what_is_no_schedule_is_refused(schedule, rand):
    problem = ControlProblem(Dense(4), rand(6, 4), lambda x: x.square().sum())
    with pytest.raises(TypeError, match=r"schedule: expected StoreAll\(\), Binomial\(slots\) or Reversible\(\), got"):
        discretize(problem, 16, schedule=schedule)


def swing(t, x, u):
    """Separable, and unstable: nearby trajectories part."""
    n = x.shape[1] // 2
    return torch.cat((x[:, n:], x[:, :n] + u[0] * torch.cos(t + x[:, :n])), dim=1)


class Own(FunctionDynamics):
    """Dynamics that know their transpose, so that steps are taken one by one."""

    def vjp(self, t, x, u, p):
        return super().vjp(t, x, u, p)


@pytest.fixture
def undoable(rand):
    """The objective of a problem under a schedule, with steps that can be undone."""

    x = 0.1 * rand(1, 2)

    def build(schedule, steps=50, kind=FunctionDynamics, horizon=3.0, dtype=torch.float64):
        running = QuadraticRunning()
        problem = ControlProblem(kind(swing, 1), x.to(dtype), lambda x: x.pow(3).sum(), running, horizon=horizon)
        return discretize(problem, steps, "verlet", schedule)

    return build


@pytest.mark.parametrize("kind", [FunctionDynamics, Own])
@pytest.mark.parametrize("schedule", [Reversible(), Reversible(block=1), Reversible(7, 3), Reversible(30, 8)], ids=str)
def test_the_derivative_is_the_same_where_steps_are_undone(undoable, kind, schedule, rand):
    all_kept, undone = undoable(StoreAll(), kind=kind), undoable(schedule, kind=kind)
    u = 0.3 * rand(50)
    assert undone.value(u) == pytest.approx(all_kept.value(u), rel=1e-14)
    torch.testing.assert_close(undone.derivative(u), all_kept.derivative(u), rtol=1e-12, atol=1e-14)
    torch.testing.assert_close(undone.trajectory(u).x, all_kept.trajectory(u).x, rtol=1e-14, atol=1e-14)


def test_a_step_undone_is_the_state_before_it(undoable, rand):
    objective = undoable(StoreAll())
    integrator, problem = objective.discretization.integrator, objective.discretization.problem
    x, u = rand(1, 2), rand(1)
    end, _ = integrator.step(problem, 0.3, 0.1, x, u)
    torch.testing.assert_close(integrator.inverse(problem, 0.3, 0.1, end, u), x, rtol=1e-14, atol=1e-14)


def test_states_undone_drift_exponentially_where_trajectories_part_and_anchors_bound_it(undoable):
    u = torch.zeros(200)
    far, near = (
        drift(undoable(schedule, 200, horizon=20.0, dtype=torch.float32), u)
        for schedule in (Reversible(block=5), Reversible(every=10, block=5))
    )
    assert far > 1e-3
    assert near < 1e-5


def test_where_no_step_is_undone_there_is_no_drift(undoable, rand):
    assert drift(undoable(Reversible(every=64), 200), rand(200)) < 1e-15


@pytest.mark.parametrize("schedule", [StoreAll(), Binomial(3)], ids=str)
def test_the_drift_of_a_schedule_that_undoes_nothing_is_not_asked_for(undoable, schedule, rand):
    with pytest.raises(ValueError, match=r"objective: expected one from discretize with the schedule Reversible, got"):
        drift(undoable(schedule, 200), rand(200))


@pytest.mark.slow
def test_a_drift_that_spoils_the_derivative_does_not_pass_verification(undoable):
    report = verify(undoable(Reversible(block=16), 64, horizon=40.0))
    assert "adjoint sweep against tangent sweep" in {check.name for check in report.checks if not check.passed}


def peak(call):
    """Bytes of tensors at the same time during a call."""
    gc.collect()  # or what is freed meanwhile would be subtracted
    with torch.profiler.profile(activities=[torch.profiler.ProfilerActivity.CPU], profile_memory=True) as profile:
        call()
    events = [e for e in profile.profiler.kineto_results.events() if e.name() == "[memory]"]
    return max(accumulate(e.nbytes() for e in sorted(events, key=lambda e: e.start_ns())))


@pytest.mark.parametrize(("schedule", "grows"), [(StoreAll(), True), (Reversible(block=8), False)], ids=str)
@pytest.mark.slow
def test_what_is_kept_does_not_grow_with_the_number_of_steps_where_they_are_undone(schedule, grows, rand):
    x = rand(1, 2000)
    problem = ControlProblem(swing, x, lambda x: x.square().sum(), control_size=1)

    def needs(steps):
        return peak(lambda: discretize(problem, steps, "verlet", schedule).derivative(torch.ones(steps).double()))

    states = (needs(200) - needs(100)) / (x.numel() * x.element_size())
    assert (states > 100) is grows
    assert grows or states < 3


@pytest.mark.parametrize("integrator", ["euler", "implicit_midpoint"])
def test_steps_that_cannot_be_undone_are_refused(integrator, rand):
    problem = ControlProblem(swing, rand(6, 4), lambda x: x.square().sum(), control_size=1)
    expected = f'integrator: expected one whose steps can be undone, such as "verlet", .* got {integrator}'
    with pytest.raises(TypeError, match=expected):
        discretize(problem, 16, integrator, Reversible())


@pytest.mark.parametrize("method", [LBFGS(), MGOPT(2, LBFGS())], ids=["one grid", "two grids"])
def test_a_run_where_steps_are_undone_ends_at_the_same_value(method, rand):
    problem = ControlProblem(swing, rand(1, 2), lambda x: x.square().sum(), QuadraticRunning(), control_size=1)
    kept, undone = (
        minimize(
            problem,
            32,
            method,
            integrator="verlet",
            schedule=schedule,
            stop=Stop(max_iterations=3),
            watch=Watch(progress=False),
        )
        for schedule in (StoreAll(), Reversible(block=8))
    )
    assert undone.value == pytest.approx(kept.value, rel=1e-10)
