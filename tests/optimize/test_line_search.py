"""The line searches."""

from collections.abc import Callable
from dataclasses import dataclass, field
from math import inf, nan

import pytest
import torch
from torch import Tensor

from ocp.optimize.line_search import Armijo, StrongWolfe
from ocp.space.bounds import Box

EPS = torch.finfo(torch.float64).eps


@dataclass
class Function:
    """A function of a vector as an objective; it keeps the vectors at which its value was asked for."""

    function: Callable[[Tensor], Tensor]
    asked: list[Tensor] = field(default_factory=list)
    limit: float = inf
    box: Box | None = None

    def room(self, u, direction):
        return self.limit

    def value(self, u):
        self.asked.append(u)
        return float(self.function(u))

    def derivative(self, u):
        v = u.clone().requires_grad_()
        return torch.autograd.grad(self.function(v), v)[0]


def quadratic(u):
    return 0.5 * u[0] ** 2 + 50 * u[1] ** 2


def rosenbrock(u):
    return (1 - u[0]) ** 2 + 100 * (u[1] - u[0] ** 2) ** 2


def saturating(u):
    return torch.tanh(u[0] - 3) + torch.tanh(u[1] ** 2)


def wavy(u):
    return 0.1 * u.square().sum() + torch.cos(3 * u).sum()


FUNCTIONS = [quadratic, rosenbrock, saturating, wavy]
FIRST_STEPS = [1e-3, 1.0, 30.0]
SEARCHES = [Armijo(), StrongWolfe(), StrongWolfe(c2=0.1)]
START = torch.tensor([-1.2, 1.1], dtype=torch.float64)


def descent(function, start=START):
    """The objective with its direction of steepest descent at the start."""
    objective = Function(function)
    return objective, start, -objective.derivative(start)


@pytest.mark.parametrize("step", FIRST_STEPS)
@pytest.mark.parametrize("function", FUNCTIONS)
@pytest.mark.parametrize("search", SEARCHES)
@pytest.mark.cover(2)
def test_an_accepted_step_decreases_the_objective_sufficiently(search, function, step):
    objective, u, d = descent(function)
    trial = search(objective, u, d, step)
    slope = float(objective.derivative(u) @ d)
    rounding = 4 * EPS * abs(objective.value(u))
    assert objective.value(trial.control) <= objective.value(u) + search.c1 * trial.step * slope + rounding


@pytest.mark.parametrize("c2", [0.9, 0.5, 0.1])
@pytest.mark.parametrize("step", FIRST_STEPS)
@pytest.mark.parametrize("function", FUNCTIONS)
@pytest.mark.cover(2)
def test_strong_wolfe_accepts_only_where_the_slope_has_become_flat(function, step, c2):
    objective, u, d = descent(function)
    trial = StrongWolfe(c2=c2)(objective, u, d, step)
    before, after = float(objective.derivative(u) @ d), float(objective.derivative(trial.control) @ d)
    assert abs(after) <= c2 * abs(before)


@pytest.mark.parametrize("function", FUNCTIONS)
@pytest.mark.parametrize("search", SEARCHES)
@pytest.mark.cover(1)
def test_the_trial_lies_on_the_line_at_its_step(search, function):
    objective, u, d = descent(function)
    trial = search(objective, u, d, 1.0)
    assert torch.equal(trial.control, torch.add(u, d, alpha=trial.step))


@pytest.mark.parametrize("function", FUNCTIONS)
@pytest.mark.parametrize("search", SEARCHES)
@pytest.mark.cover(1)
def test_a_search_leaves_control_and_direction_as_they_were(search, function, unchanged):
    objective, u, d = descent(function)
    with unchanged(u, d):
        search(objective, u, d, 1.0)


def test_armijo_takes_a_first_step_that_suffices():
    objective, u, d = descent(lambda u: 0.5 * u.square().sum())
    assert Armijo()(objective, u, d, 1.0).step == 1.0
    assert len(objective.asked) == 2


def test_armijo_interpolates_a_parabola_exactly():
    objective, u, d = descent(lambda u: 0.5 * u.square().sum())
    trial = Armijo()(objective, u, d, 4.0)
    assert trial.step == pytest.approx(1.0, rel=1e-14)
    assert len(objective.asked) == 3


@pytest.mark.parametrize("c2", [0.9, 0.1])
def test_strong_wolfe_goes_on_while_the_slope_is_steep(c2):
    objective, u, d = descent(lambda u: 0.5 * u.square().sum())
    assert 1 - c2 <= StrongWolfe(c2=c2)(objective, u, d, 1e-6).step <= 1 + c2


@pytest.mark.parametrize("outside", [nan, inf, -inf])
@pytest.mark.parametrize("search", SEARCHES)
def test_a_value_that_is_not_finite_is_backed_off(search, outside):
    def inside_a_ball(u):
        return 0.5 * u.square().sum() if u.norm() <= 2 else u.sum() * outside

    objective, u, d = descent(inside_a_ball)
    trial = search(objective, u, d, 100.0)
    assert trial.control.norm() <= 2
    assert objective.value(trial.control) < objective.value(u)


def test_strong_wolfe_backs_off_where_the_value_is_finite_and_the_derivative_is_not():
    class Half(Function):
        def derivative(self, u):
            return super().derivative(u) * (1.0 if u[0] < 0 else nan)

    objective = Half(lambda u: (u - 1).square().sum())
    u = torch.tensor([-1.0], dtype=torch.float64)
    trial = StrongWolfe(c2=0.1)(objective, u, torch.ones_like(u), 1.5)
    assert trial.control[0] < 0
    assert objective.value(trial.control) < objective.value(u)


@pytest.mark.parametrize("search", SEARCHES)
@pytest.mark.parametrize("factor", [-1.0, 0.0, nan], ids=["ascent", "nowhere", "nan"])
def test_a_direction_that_does_not_descend_is_not_searched(search, factor):
    objective, u, d = descent(quadratic)
    assert search(objective, u, factor * d, 1.0) is None
    assert all(asked is u for asked in objective.asked)


class Lie(Function):
    """Its derivative points the wrong way."""

    def derivative(self, u):
        return -super().derivative(u)


@pytest.mark.parametrize("trials", [1, 3, 20])
@pytest.mark.parametrize("kind", [Armijo, StrongWolfe])
def test_a_search_that_finds_no_decrease_ends_after_its_trials_with_none(kind, trials):
    objective = Lie(quadratic)
    d = -objective.derivative(START)
    assert kind(trials=trials)(objective, START, d, 1.0) is None
    assert len(objective.asked) == 1 + trials


@pytest.mark.parametrize("trials", [1, 2, 3])
def test_strong_wolfe_out_of_trials_returns_the_best_point_that_decreases_sufficiently(trials):
    objective, u, d = descent(lambda u: 0.5 * u.square().sum())
    trial = StrongWolfe(trials=trials)(objective, u, d, 1e-6)
    assert trial.step == 1e-6 * 4 ** (trials - 1)
    assert objective.value(trial.control) == min(float(objective.function(v)) for v in objective.asked)


@pytest.mark.parametrize("limit", [1e-3, 0.3, 1.0])
@pytest.mark.parametrize("search", SEARCHES)
def test_no_point_beyond_the_room_of_the_objective_is_tried(search, limit):
    objective, u, d = descent(lambda u: 0.5 * (u - 100).square().sum())
    objective.limit = limit
    trial = search(objective, u, 0.01 * d, 1.0)
    assert trial.step == limit
    assert max((v - u).norm() for v in objective.asked) <= limit * (0.01 * d).norm() * (1 + 1e-12)


@pytest.mark.parametrize("search", SEARCHES)
def test_without_room_nothing_is_tried(search):
    objective, u, d = descent(quadratic)
    objective.limit = 0.0
    assert search(objective, u, d, 1.0) is None
    assert all(asked is u for asked in objective.asked)


@pytest.mark.parametrize("c2", [0.9, 0.1])
def test_strong_wolfe_trusts_the_slope_where_rounding_hides_the_decrease(c2):
    objective, u, d = descent(lambda u: 1e8 + 0.5 * u.square().sum(), 1e-6 * START)
    assert StrongWolfe(c2=c2)(objective, u, d, 1.0).step == 1.0


def test_armijo_which_sees_no_slope_refuses_what_rounding_hides():
    objective, u, d = descent(lambda u: 1e8 + 0.5 * u.square().sum(), 1e-6 * START)
    assert Armijo()(objective, u, d, 1.0) is None


@pytest.mark.parametrize("search", SEARCHES)
def test_single_precision_works_as_well(search):
    objective, u, d = descent(rosenbrock, START.float())
    trial = search(objective, u, d, 1.0)
    assert trial.control.dtype == torch.float32
    assert objective.value(trial.control) < objective.value(u)


@pytest.mark.parametrize("search", SEARCHES)
def test_steps_that_vanish_in_rounding_are_no_steps(search):
    """Not even the next floating-point number has a finite value."""
    objective = Function(lambda u: torch.where(u == START, 0.0, nan).sum() + u.square().sum())
    d = -objective.derivative(START)
    assert search(objective, START, d, 1.0) is None


INFINITE = torch.full_like(START, inf)
BOXES = {
    "far away": Box(-100 * torch.ones_like(START), 100 * torch.ones_like(START)),
    "none": Box(-INFINITE, INFINITE),
    "on one side": Box(-INFINITE, torch.tensor([inf, 1.15], dtype=torch.float64)),
    "near": Box(START - 0.01, START + 0.02),
    "at the start": Box(START - torch.tensor([0.0, 0.3]).double(), START + 0.3),
    "one entry held": Box(START - torch.tensor([0.0, 9.0]).double(), START + torch.tensor([0.0, 9.0]).double()),
}
every_box = pytest.mark.parametrize("box", BOXES.values(), ids=BOXES.keys())


def bounded(function, box, start=START):
    """The objective with bounds, and a direction that descends within them, though it may leave them later."""
    objective = Function(function, box=box)
    return objective, start, -objective.derivative(start)


@every_box
@pytest.mark.parametrize("step", FIRST_STEPS)
@pytest.mark.parametrize("function", FUNCTIONS)
@pytest.mark.parametrize("search", SEARCHES)
@pytest.mark.cover(2)
def test_every_candidate_lies_within_the_bounds(search, function, step, box):
    objective, u, d = bounded(function, box)
    search(objective, u, d, step)
    assert all(((v >= box.lower) & (v <= box.upper)).all() for v in objective.asked)


@every_box
@pytest.mark.parametrize("step", FIRST_STEPS)
@pytest.mark.parametrize("function", FUNCTIONS)
@pytest.mark.parametrize("search", SEARCHES)
@pytest.mark.cover(2)
def test_an_accepted_step_decreases_the_objective_sufficiently_along_the_projected_path(search, function, step, box):
    objective, u, d = bounded(function, box)
    trial = search(objective, u, d, step)
    change = float(objective.derivative(u) @ (trial.control - u))
    rounding = 4 * EPS * abs(objective.value(u))
    assert change < 0
    assert objective.value(trial.control) <= objective.value(u) + search.c1 * change + rounding


@pytest.mark.parametrize("function", FUNCTIONS)
@pytest.mark.parametrize("search", SEARCHES)
@pytest.mark.cover(1)
def test_the_trial_is_the_projection_of_the_point_on_the_line(search, function):
    box = BOXES["near"]
    objective, u, d = bounded(function, box)
    trial = search(objective, u, d, 1.0)
    assert torch.equal(trial.control, box.project(torch.add(u, d, alpha=trial.step)))


@pytest.mark.parametrize("box", [BOXES["far away"], BOXES["none"]], ids=["far away", "none"])
@pytest.mark.parametrize("step", [1e-3, 1e-2])
@pytest.mark.parametrize("function", FUNCTIONS)
@pytest.mark.parametrize("search", SEARCHES)
@pytest.mark.cover(2)
def test_bounds_that_are_not_met_change_nothing(search, function, step, box):
    free, u, d = descent(function)
    held, _, _ = bounded(function, box)
    one, other = search(free, u, d, step), search(held, u, d, step)
    assert other.step == pytest.approx(one.step, rel=1e-9)
    assert len(held.asked) == len(free.asked)


@pytest.mark.parametrize("search", SEARCHES)
def test_a_direction_that_leads_out_of_the_box_only_is_not_searched(search):
    objective, u, d = bounded(lambda u: u.square().sum(), Box(START, START + 1), START)
    outward = torch.tensor([-1.0, -1.0], dtype=torch.float64) * d.abs()
    assert search(objective, u, outward, 1.0) is None
    assert all(asked is u for asked in objective.asked)


@pytest.mark.parametrize("c2", [0.9, 0.1])
@pytest.mark.parametrize("first", [1e-3, 1.0, 1e3])
@pytest.mark.parametrize("seed", range(5))
@pytest.mark.cover(2)
def test_kinks_of_the_path_do_not_exhaust_the_trials_of_strong_wolfe(first, c2, seed):
    """Each of thirty entries meets its bound at another step, and the slope jumps there."""
    generator = torch.Generator().manual_seed(seed)
    goal, room = (torch.randn(30, generator=generator, dtype=torch.float64) for _ in range(2))
    zero = torch.zeros(30, dtype=torch.float64)
    objective = Function(lambda u: 0.5 * (u - 3 * goal).square().sum(), box=Box(-room.abs(), room.abs()))
    trial = StrongWolfe(c2=c2)(objective, zero, 3 * goal, first)
    assert trial is not None
    assert len(objective.asked) <= 10


def test_strong_wolfe_takes_a_kink_over_which_the_slope_jumps():
    """The minimum along the path is at the kink, where the first entry stops and the second one goes on uphill."""
    box = Box(torch.tensor([-9.0, -9.0]).double(), torch.tensor([1.0, 9.0]).double())
    objective = Function(lambda u: -10 * u[0] + 5 * u[1], box=box)
    zero, d = torch.zeros(2, dtype=torch.float64), torch.ones(2, dtype=torch.float64)
    trial = StrongWolfe(c2=0.1)(objective, zero, d, 1.5)
    assert objective.value(trial.control) < -1
    assert len(objective.asked) <= 3


@pytest.mark.parametrize("first", FIRST_STEPS)
@pytest.mark.parametrize("search", SEARCHES)
def test_a_region_beyond_a_bound_is_never_evaluated(search, first):
    """The square root is not a number below zero, which is the bound."""
    objective = Function(lambda u: (u + 1e-12).sqrt().sum(), box=Box(0 * START, INFINITE))
    u = torch.tensor([2.0, 0.5], dtype=torch.float64)
    trial = search(objective, u, -100 * objective.derivative(u), first)
    assert objective.value(trial.control) < objective.value(u)
    assert all(torch.isfinite(objective.function(v)) for v in objective.asked)


def test_a_finite_value_with_an_infinite_slope_is_a_failed_trial():
    # sqrt(u) is smallest at 0, where it has no derivative; the first trial would go there exactly.
    function = Function(lambda u: torch.sqrt(u[0].clamp_min(0)) + 0 * u[1])
    start = torch.tensor([4.0, 0.0], dtype=torch.float64)
    trial = Armijo()(function, start, torch.tensor([-4.0, 0.0], dtype=torch.float64), 1.0)
    assert 0 < trial.step < 1
