"""When nested iteration goes to the next finer grid."""

from dataclasses import dataclass

import pytest

from ocp import Measured, Settled
from ocp.multilevel.refinement import Progress


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
