"""The line searches."""

from math import inf, nan

import pytest
import torch

from ocp.optimize.line_search import Armijo, StrongWolfe
from ocp.space.bounds import Box

EPS = torch.finfo(torch.float64).eps


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


@pytest.fixture
def descent(objective_of):
    """Makes an objective with its direction of steepest descent at the start, which may lead out of its bounds."""

    def make(function, start=START, box=None):
        objective = objective_of(function, box=box)
        return objective, start, -objective.derivative(start)

    return make


@pytest.mark.parametrize("step", FIRST_STEPS)
@pytest.mark.parametrize("function", FUNCTIONS)
@pytest.mark.parametrize("search", SEARCHES)
@pytest.mark.cover(2)
def test_an_accepted_step_decreases_the_objective_sufficiently(search, function, step, descent):
    objective, u, d = descent(function)
    trial = search(objective.at(u), d, step)
    slope = float(objective.derivative(u) @ d)
    rounding = 4 * EPS * abs(objective.value(u))
    assert objective.value(trial.point.control) <= objective.value(u) + search.c1 * trial.step * slope + rounding


@pytest.mark.parametrize("c2", [0.9, 0.5, 0.1])
@pytest.mark.parametrize("step", FIRST_STEPS)
@pytest.mark.parametrize("function", FUNCTIONS)
@pytest.mark.cover(2)
def test_strong_wolfe_accepts_only_where_the_slope_has_become_flat(function, step, c2, descent):
    objective, u, d = descent(function)
    trial = StrongWolfe(c2=c2)(objective.at(u), d, step)
    before, after = float(objective.derivative(u) @ d), float(objective.derivative(trial.point.control) @ d)
    assert abs(after) <= c2 * abs(before)


@pytest.mark.parametrize("function", FUNCTIONS)
@pytest.mark.parametrize("search", SEARCHES)
@pytest.mark.cover(1)
def test_the_trial_lies_on_the_line_at_its_step(search, function, descent):
    objective, u, d = descent(function)
    trial = search(objective.at(u), d, 1.0)
    assert torch.equal(trial.point.control, torch.add(u, d, alpha=trial.step))


@pytest.mark.parametrize("function", FUNCTIONS)
@pytest.mark.parametrize("search", SEARCHES)
@pytest.mark.cover(1)
def test_a_search_leaves_control_and_direction_as_they_were(search, function, unchanged, descent):
    objective, u, d = descent(function)
    with unchanged(u, d):
        search(objective.at(u), d, 1.0)


@pytest.mark.parametrize("function", FUNCTIONS)
@pytest.mark.parametrize("search", SEARCHES)
@pytest.mark.cover(1)
def test_the_trial_brings_its_value_and_derivative_along(search, function, descent):
    objective, u, d = descent(function)
    point = search(objective.at(u), d, 1.0).point
    spent = len(objective.asked), len(objective.differentiated)
    assert (point.value, len(point.derivative)) == (objective.value(point.control), 2)
    assert (len(objective.asked), len(objective.differentiated)) == spent


@pytest.mark.parametrize("search", SEARCHES)
def test_a_search_computes_nothing_that_its_start_brings_along(search, descent):
    objective, u, d = descent(rosenbrock)
    start = objective.at(u)
    _ = start.value, start.derivative
    search(start, d, 1.0)
    assert [sum(v is u for v in seen) for seen in (objective.asked, objective.differentiated)] == [1, 1]


def test_armijo_takes_a_first_step_that_suffices(descent):
    objective, u, d = descent(lambda u: 0.5 * u.square().sum())
    assert Armijo()(objective.at(u), d, 1.0).step == 1.0
    assert len(objective.asked) == 2


def test_armijo_interpolates_a_parabola_exactly(descent):
    objective, u, d = descent(lambda u: 0.5 * u.square().sum())
    trial = Armijo()(objective.at(u), d, 4.0)
    assert trial.step == pytest.approx(1.0, rel=1e-14)
    assert len(objective.asked) == 3


@pytest.mark.parametrize("c2", [0.9, 0.1])
def test_strong_wolfe_goes_on_while_the_slope_is_steep(c2, descent):
    objective, u, d = descent(lambda u: 0.5 * u.square().sum())
    assert 1 - c2 <= StrongWolfe(c2=c2)(objective.at(u), d, 1e-6).step <= 1 + c2


@pytest.mark.parametrize("outside", [nan, inf, -inf])
@pytest.mark.parametrize("search", SEARCHES)
@pytest.mark.cover(1)
def test_a_value_that_is_not_finite_is_backed_off(search, outside, descent):
    def inside_a_ball(u):
        return 0.5 * u.square().sum() if u.norm() <= 2 else u.sum() * outside

    objective, u, d = descent(inside_a_ball)
    trial = search(objective.at(u), d, 100.0)
    assert trial.point.control.norm() <= 2
    assert objective.value(trial.point.control) < objective.value(u)


def test_strong_wolfe_backs_off_where_the_value_is_finite_and_the_derivative_is_not(objective_of):
    def half(u, derivative):
        return derivative * (1.0 if u[0] < 0 else nan)

    objective = objective_of(lambda u: (u - 1).square().sum(), change=half)
    u = torch.tensor([-1.0], dtype=torch.float64)
    trial = StrongWolfe(c2=0.1)(objective.at(u), torch.ones_like(u), 1.5)
    assert trial.point.control[0] < 0
    assert objective.value(trial.point.control) < objective.value(u)


@pytest.mark.parametrize("search", SEARCHES)
@pytest.mark.parametrize("factor", [-1.0, 0.0, nan], ids=["ascent", "nowhere", "nan"])
def test_a_direction_that_does_not_descend_is_not_searched(search, factor, descent):
    objective, u, d = descent(quadratic)
    assert search(objective.at(u), factor * d, 1.0) is None
    assert all(asked is u for asked in objective.asked)


@pytest.mark.parametrize("trials", [1, 3, 20])
@pytest.mark.parametrize("kind", [Armijo, StrongWolfe])
def test_a_search_that_finds_no_decrease_ends_after_its_trials_with_none(kind, trials, objective_of):
    objective = objective_of(quadratic, change=lambda u, derivative: -derivative)
    d = -objective.derivative(START)
    assert kind(trials=trials)(objective.at(START), d, 1.0) is None
    assert len(objective.asked) == 1 + trials


@pytest.mark.parametrize("trials", [1, 2, 3])
def test_strong_wolfe_out_of_trials_returns_the_best_point_that_decreases_sufficiently(trials, descent):
    objective, u, d = descent(lambda u: 0.5 * u.square().sum())
    trial = StrongWolfe(trials=trials)(objective.at(u), d, 1e-6)
    assert trial.step == 1e-6 * 4 ** (trials - 1)
    assert objective.value(trial.point.control) == min(float(objective.function(v)) for v in objective.asked)


@pytest.mark.parametrize("limit", [1e-3, 0.3, 1.0])
@pytest.mark.parametrize("search", SEARCHES)
@pytest.mark.cover(1)
def test_no_point_beyond_the_step_limit_of_the_objective_is_tried(search, limit, descent):
    objective, u, d = descent(lambda u: 0.5 * (u - 100).square().sum())
    objective.limit = limit
    trial = search(objective.at(u), 0.01 * d, 1.0)
    assert trial.step == limit
    assert max((v - u).norm() for v in objective.asked) <= limit * (0.01 * d).norm() * (1 + 1e-12)


@pytest.mark.parametrize("search", SEARCHES)
def test_where_no_step_is_allowed_nothing_is_tried(search, descent):
    objective, u, d = descent(quadratic)
    objective.limit = 0.0
    assert search(objective.at(u), d, 1.0) is None
    assert all(asked is u for asked in objective.asked)


@pytest.mark.parametrize("c2", [0.9, 0.1])
def test_strong_wolfe_trusts_the_slope_where_rounding_hides_the_decrease(c2, descent):
    objective, u, d = descent(lambda u: 1e8 + 0.5 * u.square().sum(), 1e-6 * START)
    assert StrongWolfe(c2=c2)(objective.at(u), d, 1.0).step == 1.0


def rounded(value):
    """The tiny slope of a parabola, with values that are 1 at the start and another number elsewhere."""

    def function(u):
        parabola = 1e-20 * u.square().sum()
        noise = torch.where((u == START).all(), u.new_tensor(1.0), u.new_tensor(value))
        return noise + (parabola - parabola.detach())

    return function


@pytest.mark.parametrize(("rise", "found"), [(2, True), (8, False)])
def test_strong_wolfe_accepts_a_rise_by_rounding_where_the_slope_is_flat(rise, found, objective_of):
    trial = StrongWolfe(trials=1)(objective_of(rounded(1 + rise * EPS)).at(START), -START, 1.0)
    assert (trial is not None) == found


@pytest.mark.parametrize(("fall", "found"), [(2, False), (8, True)])
def test_strong_wolfe_refuses_a_fall_by_rounding_where_the_slope_stays_steep(fall, found, objective_of):
    objective = objective_of(rounded(1 - fall * EPS), change=lambda u, derivative: 1e-20 * START)
    trial = StrongWolfe(trials=3)(objective.at(START), -START, 0.01)
    assert (trial is not None) == found


def test_strong_wolfe_never_goes_on_to_a_point_above_the_best(objective_of):
    """It falls with slope -1 to 2, and rises from there to a hilltop at 4, the second trial."""
    objective = objective_of(lambda u: torch.where(u < 2, -u, -0.5 - 0.375 * (u - 4) ** 2).sum())
    zero = torch.zeros(1, dtype=torch.float64)
    trial = StrongWolfe()(objective.at(zero), torch.ones_like(zero), 1.0)
    assert [float(u) for u in objective.asked[:3]] == [0.0, 1.0, 4.0]
    assert trial.point.value <= -1


def test_armijo_which_sees_no_slope_refuses_what_rounding_hides(descent):
    objective, u, d = descent(lambda u: 1e8 + 0.5 * u.square().sum(), 1e-6 * START)
    assert Armijo()(objective.at(u), d, 1.0) is None


@pytest.mark.parametrize("search", SEARCHES)
def test_single_precision_works_as_well(search, descent):
    objective, u, d = descent(rosenbrock, START.float())
    trial = search(objective.at(u), d, 1.0)
    assert trial.point.control.dtype == torch.float32
    assert objective.value(trial.point.control) < objective.value(u)


@pytest.mark.parametrize("search", SEARCHES)
def test_steps_that_vanish_in_rounding_are_no_steps(search, objective_of):
    """Not even the next floating-point number has a finite value."""
    objective = objective_of(lambda u: torch.where(u == START, 0.0, nan).sum() + u.square().sum())
    d = -objective.derivative(START)
    assert search(objective.at(START), d, 1.0) is None


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


@every_box
@pytest.mark.parametrize("step", FIRST_STEPS)
@pytest.mark.parametrize("function", FUNCTIONS)
@pytest.mark.parametrize("search", SEARCHES)
@pytest.mark.cover(2)
def test_every_candidate_lies_within_the_bounds(search, function, step, box, descent):
    objective, u, d = descent(function, box=box)
    search(objective.at(u), d, step)
    assert all(((v >= box.lower) & (v <= box.upper)).all() for v in objective.asked)


@every_box
@pytest.mark.parametrize("step", FIRST_STEPS)
@pytest.mark.parametrize("function", FUNCTIONS)
@pytest.mark.parametrize("search", SEARCHES)
@pytest.mark.cover(2)
def test_an_accepted_step_decreases_the_objective_sufficiently_along_the_projected_path(
    search, function, step, box, descent
):
    objective, u, d = descent(function, box=box)
    trial = search(objective.at(u), d, step)
    change = float(objective.derivative(u) @ (trial.point.control - u))
    rounding = 4 * EPS * abs(objective.value(u))
    assert change < 0
    assert objective.value(trial.point.control) <= objective.value(u) + search.c1 * change + rounding


@pytest.mark.parametrize("function", FUNCTIONS)
@pytest.mark.parametrize("search", SEARCHES)
@pytest.mark.cover(1)
def test_the_trial_is_the_projection_of_the_point_on_the_line(search, function, descent):
    box = BOXES["near"]
    objective, u, d = descent(function, box=box)
    trial = search(objective.at(u), d, 1.0)
    assert torch.equal(trial.point.control, box.project(torch.add(u, d, alpha=trial.step)))


@pytest.mark.parametrize("box", [BOXES["far away"], BOXES["none"]], ids=["far away", "none"])
@pytest.mark.parametrize("step", [1e-3, 1e-2])
@pytest.mark.parametrize("function", FUNCTIONS)
@pytest.mark.parametrize("search", SEARCHES)
@pytest.mark.cover(2)
def test_bounds_that_are_not_met_change_nothing(search, function, step, box, descent):
    free, u, d = descent(function)
    held, _, _ = descent(function, box=box)
    one, other = search(free.at(u), d, step), search(held.at(u), d, step)
    assert other.step == pytest.approx(one.step, rel=1e-9)
    assert len(held.asked) == len(free.asked)


@pytest.mark.parametrize("search", SEARCHES)
def test_a_direction_that_leads_out_of_the_box_only_is_not_searched(search, descent):
    objective, u, d = descent(lambda u: u.square().sum(), box=Box(START, START + 1))
    outward = torch.tensor([-1.0, -1.0], dtype=torch.float64) * d.abs()
    assert search(objective.at(u), outward, 1.0) is None
    assert all(asked is u for asked in objective.asked)


@pytest.mark.parametrize("c2", [0.9, 0.1])
@pytest.mark.parametrize("first", [1e-3, 1.0, 1e3])
@pytest.mark.parametrize("seed", range(3))
@pytest.mark.cover(2)
def test_kinks_of_the_path_do_not_exhaust_the_trials_of_strong_wolfe(first, c2, seed, objective_of):
    """Each of thirty entries meets its bound at another step, and the slope jumps there."""
    generator = torch.Generator().manual_seed(seed)
    goal, room = (torch.randn(30, generator=generator, dtype=torch.float64) for _ in range(2))
    zero = torch.zeros(30, dtype=torch.float64)
    objective = objective_of(lambda u: 0.5 * (u - 3 * goal).square().sum(), box=Box(-room.abs(), room.abs()))
    trial = StrongWolfe(c2=c2)(objective.at(zero), 3 * goal, first)
    assert trial is not None
    assert len(objective.asked) <= 10


def test_strong_wolfe_takes_a_kink_over_which_the_slope_jumps(objective_of):
    """The minimum along the path is at the kink, where the first entry stops and the second one goes on uphill."""
    box = Box(torch.tensor([-9.0, -9.0]).double(), torch.tensor([1.0, 9.0]).double())
    objective = objective_of(lambda u: -10 * u[0] + 5 * u[1], box=box)
    zero, d = torch.zeros(2, dtype=torch.float64), torch.ones(2, dtype=torch.float64)
    trial = StrongWolfe(c2=0.1)(objective.at(zero), d, 1.5)
    assert objective.value(trial.point.control) < -1
    assert len(objective.asked) <= 3


@pytest.mark.parametrize("first", FIRST_STEPS)
@pytest.mark.parametrize("search", SEARCHES)
@pytest.mark.cover(1)
def test_a_region_beyond_a_bound_is_never_evaluated(search, first, objective_of):
    """The square root is not a number below zero, which is the bound."""
    objective = objective_of(lambda u: (u + 1e-12).sqrt().sum(), box=Box(0 * START, INFINITE))
    u = torch.tensor([2.0, 0.5], dtype=torch.float64)
    trial = search(objective.at(u), -100 * objective.derivative(u), first)
    assert objective.value(trial.point.control) < objective.value(u)
    assert all(torch.isfinite(objective.function(v)) for v in objective.asked)


def test_a_finite_value_with_an_infinite_slope_is_a_failed_trial(objective_of):
    # sqrt(u) is smallest at 0, where it has no derivative; the first trial would go there exactly.
    objective = objective_of(lambda u: torch.sqrt(u[0].clamp_min(0)) + 0 * u[1])
    start = torch.tensor([4.0, 0.0], dtype=torch.float64)
    trial = Armijo()(objective.at(start), torch.tensor([-4.0, 0.0], dtype=torch.float64), 1.0)
    assert 0 < trial.step < 1
