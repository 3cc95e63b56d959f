"""How many steps are enough."""

from math import inf, nan

import pytest
import torch

from ocp import Adaptive, ControlProblem, discretize
from ocp.run.adaptive import estimate
from ocp.run.verdicts import unresolved


def optima(rate, grids, exact=1.0, first=0.1):
    return [exact + first / rate**k for k in range(grids)]


@pytest.mark.parametrize("grids", [2, 3, 6])
def test_an_error_of_first_order_is_estimated_exactly(grids):
    values = optima(2.0, grids)
    assert estimate(values, order=1) == pytest.approx(values[-1] - 1.0)


@pytest.mark.parametrize("sign", [-1, 1])
@pytest.mark.parametrize("order", [2, 4])
def test_an_error_of_second_order_is_estimated_exactly_from_three_grids(order, sign):
    values = optima(4.0, 3, first=sign * 0.1)
    assert estimate(values, order) == pytest.approx(abs(values[-1] - 1.0))


@pytest.mark.parametrize(("order", "observed", "taken"), [(1, 4.0, 2.0), (2, 16.0, 4.0), (4, 16.0, 4.0), (4, 1.1, 2.0)])
def test_the_rate_lies_between_first_order_and_what_scheme_and_held_control_allow(order, observed, taken):
    values = optima(observed, 3)
    assert estimate(values, order) == pytest.approx(abs(values[1] - values[2]) / (taken - 1))


@pytest.mark.parametrize("values", [[], [1.0]])
def test_from_one_grid_nothing_is_known(values):
    assert estimate(values, order=1) == inf


@pytest.mark.parametrize("values", [[1.0, 1.0], [2.0, 1.0, 1.0], [1.0, 1.0, 1.0]])
def test_optima_that_agree_have_no_error(values):
    assert estimate(values, order=4) == 0.0


def test_a_change_after_none_is_taken_as_it_is():
    assert estimate([1.0, 1.0, 1.5], order=4) == 0.5


def test_only_the_last_three_optima_count():
    values = [9.0, -3.0, *optima(4.0, 3)]
    assert estimate(values, order=2) == estimate(values[2:], order=2)


@pytest.mark.parametrize(
    ("error", "optimum", "enough"),
    [
        (0.09, 1.0, True),
        (0.11, 1.0, False),
        (0.9, -10.0, True),
        (1.1, -10.0, False),
        (inf, 1.0, False),
        (0.0, 0.0, True),
    ],
)
def test_an_error_is_compared_with_the_size_of_the_optimum(error, optimum, enough):
    assert Adaptive(0.1).enough(error, optimum) is enough


@pytest.mark.parametrize(("error", "enough"), [(1e-7, True), (1e-5, False)])
def test_where_the_optimum_is_zero_an_absolute_error_counts(error, enough):
    assert Adaptive(0.1, absolute=1e-6).enough(error, 0.0) is enough


@pytest.mark.parametrize("absolute", [-1e-3, nan, inf])
def test_an_absolute_error_that_makes_no_sense_is_refused(absolute):
    with pytest.raises(ValueError, match=f"absolute: expected a finite number >= 0, got {absolute!r}"):
        Adaptive(0.1, absolute=absolute)


@pytest.mark.parametrize("error", [0.0, -1e-3, nan, inf])
def test_a_wanted_error_that_makes_no_sense_is_refused(error):
    with pytest.raises(ValueError, match=f"error: expected a finite number > 0, got {error!r}"):
        Adaptive(error)


@pytest.mark.parametrize(("first", "limit"), [(0, 8), (-1, 8), (16, 8)])
def test_grids_that_make_no_sense_are_refused(first, limit):
    with pytest.raises(ValueError, match=f"expected 1 <= first <= limit, got {first} and {limit}"):
        Adaptive(1e-3, first, limit)


def decay(rate, x0=1.0):
    x = torch.full((1, 1), x0, dtype=torch.float64)
    return ControlProblem(lambda t, x, u: u - rate * x, x, lambda x: x.sum(), control_size=1)


@pytest.mark.parametrize(
    ("rate", "scheme", "expected"),
    [
        (1.0, "euler", True),
        (-9.0, "rk4", True),
        (1e3, "euler", False),
        (1e3, "rk4", False),
        (1e3, "backward_euler", True),
        (1e3, "sdirk2", True),
        (1e16, "euler", False),
    ],
)
def test_states_that_explode_by_the_scheme_are_told_from_those_that_grow(rate, scheme, expected):
    # The growth exp(9) = 8e3 is real; explicit steps of size 1/32 with the rate 1e3 multiply the state by 30 or more.
    point = discretize(decay(rate), 32, scheme).at(torch.zeros(32).double())
    assert bool(unresolved(point, point.objective.space.dual_norm(point.derivative), 0.0)) is not expected


def test_costates_that_explode_are_seen_where_the_state_stands_still():
    objective = discretize(decay(1e3, x0=1e-3), 32, "rk4")
    assert float(objective.final_state(torch.ones(32).double())) == pytest.approx(1e-3)
    point = objective.at(torch.ones(32).double())
    assert "norm of the derivative" in unresolved(point, objective.space.dual_norm(point.derivative), 0.0)
