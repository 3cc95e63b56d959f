"""Plans for the memory of a sweep, run on a machine that counts, and the gradient under every plan."""

from functools import cache
from itertools import product
from math import ceil

import pytest
import torch

from ocp.checkpoints import Advance, Binomial, Keep, Memory, Restore, Reverse, StoreAll, Take
from ocp.costs import QuadraticRunning
from ocp.layers import Dense
from ocp.objective import discretize
from ocp.problem import ControlProblem

CASES = [*product((1, 2, 3, 7, 16, 50, 101), (1, 2, 3, 5, 10, 200)), (1000, 10), (1000, 50)]
BLOCKS = [*product((1, 5, 50, 101), (1, 2, 10), (2, 7, 50, 64)), (1000, 10, 64)]


def run(plan, steps):
    """Run a plan on nodes instead of states. Returns the steps taken in all; every violation of the rules raises."""
    at, slots, remembered, left, taken = 0, {}, None, steps, 0
    for action in plan.actions(steps):
        match action:
            case Advance(first, last) | Take(first, last):
                assert at == first < last <= steps
                taken += last - first
                at, remembered = last, (first, last) if isinstance(action, Take) else None
                assert last - first <= plan.span(steps) or isinstance(action, Advance)
            case Keep(node, slot):
                assert at == node
                assert slot < plan.slots_for(steps)
                slots[slot] = node
            case Restore(node, slot):
                assert slots[slot] == node
                at, remembered = node, None
            case Reverse(first, last):
                assert remembered == (first, last)
                assert left == last
                left, remembered = first, None
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
def test_a_plan_takes_as_many_steps_again_as_it_says(steps, slots):
    plan = Binomial(slots)
    assert run(plan, steps) - steps == plan.extra_steps(steps)


@pytest.mark.parametrize(("steps", "slots"), [case for case in CASES if case[0] <= 101])
def test_no_plan_takes_fewer_steps_again(steps, slots):
    assert Binomial(slots).extra_steps(steps) == fewest(steps, slots)


@pytest.mark.parametrize(("steps", "slots", "block"), BLOCKS)
def test_a_plan_in_blocks_takes_the_fewest_blocks_again(steps, slots, block):
    plan = Binomial(slots, block)
    assert run(plan, steps) - steps == plan.extra_steps(steps) == block * fewest(ceil(steps / block), slots)


@pytest.mark.parametrize(("steps", "slots", "extra"), [(1000, 10, 3636), (1000, 50, 1948), (10, 3, 15), (50, 50, 49)])
def test_the_number_of_extra_steps_is_that_of_the_formula(steps, slots, extra):
    assert Binomial(slots).extra_steps(steps) == extra


def test_a_plan_for_many_steps_takes_a_stream_of_actions():
    assert run(Binomial(50), 100_000) == 100_000 + Binomial(50).extra_steps(100_000)


def test_where_all_is_stored_no_step_is_taken_again():
    assert run(StoreAll(), 17) == 17


@pytest.mark.parametrize("slots", [0, -1, 2.5])
def test_a_plan_without_slots_is_refused(slots):
    with pytest.raises(ValueError, match=f"slots: expected an integer >= 1, got {slots}"):
        Binomial(slots)


def test_plans_are_known_by_what_they_offer():
    assert isinstance(StoreAll(), Memory)
    assert isinstance(Binomial(3), Memory)


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
def by_plan(request, rand):
    """The objective of a problem under a plan; the problem is the same at every call."""
    build, integrator = request.param
    problem = build(rand)
    return lambda memory, steps=23: discretize(problem, steps, integrator, memory)


FEW = [Binomial(1), Binomial(2), Binomial(4), Binomial(40), Binomial(2, block=5), Binomial(1, block=40)]


@pytest.mark.parametrize("memory", FEW, ids=str)
def test_the_derivative_is_the_same_under_every_plan(by_plan, memory, rand):
    all_kept, few_kept = by_plan(StoreAll()), by_plan(memory)
    u = 0.3 * rand(all_kept.space.dimension)
    assert few_kept.value(u) == pytest.approx(all_kept.value(u), rel=1e-14)
    torch.testing.assert_close(few_kept.derivative(u), all_kept.derivative(u), rtol=1e-12, atol=1e-14)


def test_states_can_be_asked_for_between_a_value_and_its_derivative(by_plan, rand):
    all_kept, few_kept = by_plan(StoreAll()), by_plan(Binomial(3))
    u, d = 0.3 * rand(all_kept.space.dimension), rand(all_kept.space.dimension)
    few_kept.value(u)
    assert few_kept.directional(u, d) == pytest.approx(all_kept.directional(u, d), rel=1e-12)
    torch.testing.assert_close(few_kept.derivative(u), all_kept.derivative(u), rtol=1e-12, atol=1e-14)
    torch.testing.assert_close(few_kept.trajectory(u).x, all_kept.trajectory(u).x, rtol=1e-14, atol=1e-14)


def test_a_plan_holds_on_every_grid_and_batch(rand):
    problem = ControlProblem(Dense(4), rand(6, 4), lambda x: x.square().sum())
    objective = discretize(problem, 16, memory=Binomial(3))
    others = (objective.on(8), objective.take(torch.arange(2)), objective.uncounted())
    assert {other.memory for other in others} == {Binomial(3)}


@pytest.mark.parametrize("memory", [10, Binomial, "all"])
def test_what_is_no_plan_is_refused(memory, rand):
    problem = ControlProblem(Dense(4), rand(6, 4), lambda x: x.square().sum())
    with pytest.raises(TypeError, match="memory: expected StoreAll\\(\\) or Binomial\\(slots\\), got"):
        discretize(problem, 16, memory=memory)
