"""The filter and the rules of the barrier, which know nothing of control."""

import numpy as np
import pytest

from ocp.optimize.interior_point.barrier import probe, reach, restrained
from ocp.optimize.interior_point.filters import Filter, Measure

FILTER = Filter(most=1e4, small=1e-4, noise=1e-15)
START = Measure(1.0, 5.0)


@pytest.mark.parametrize(
    ("trial", "accepted"),
    [
        (Measure(0.9, 99.0), True),  # less infeasible
        (Measure(2.0, 4.9), True),  # less merit
        (Measure(1.0, 5.0), False),
        (Measure(2e4, 0.0), False),
        (Measure(0.0, float("inf")), False),
        (Measure(float("nan"), 0.0), False),
    ],
)
def test_either_infeasibility_or_merit_has_to_improve(trial, accepted):
    assert FILTER.accepts(START, slope=-1e-3, step=1.0, trial=trial) is accepted


def test_near_feasibility_the_merit_has_to_fall_as_its_slope_says():
    feasible = Measure(0.0, 5.0)
    assert FILTER.accepts(feasible, -1.0, 0.5, Measure(0.0, 4.9))
    assert not FILTER.accepts(feasible, -1.0, 0.5, Measure(0.0, 4.99999))
    assert not FILTER.accepts(feasible, 1.0, 0.5, Measure(0.0, 5.1))


def test_no_point_returns_to_what_the_filter_holds():
    after = FILTER.after(START, slope=-1e-3, step=1.0, trial=Measure(0.5, 9.0))
    assert not after.accepts(Measure(0.5, 9.0), 1.0, 1.0, Measure(1.1, 5.1))
    assert after.accepts(Measure(0.5, 9.0), 1.0, 1.0, Measure(1.1, 4.9))
    assert after.emptied().accepts(Measure(0.5, 9.0), 1.0, 1.0, Measure(0.4, 5.1))


def test_steps_that_decrease_the_merit_leave_no_trace():
    assert FILTER.after(Measure(0.0, 5.0), -1.0, 1.0, Measure(0.0, 4.0)) is FILTER


def test_rounding_of_the_merit_is_no_increase():
    large = Measure(0.0, 1e8)
    assert Filter(1e4, 1e-4, noise=1e-15).accepts(large, -1e-9, 1.0, Measure(0.0, 1e8 + 1e-8))
    assert not Filter(1e4, 1e-4, noise=0.0).accepts(large, -1e-9, 1.0, Measure(0.0, 1e8 + 1e-7))


def test_steps_end_before_the_boundary():
    values, step = np.array([1.0, 2.0, 3.0]), np.array([-4.0, 1.0, -3.0])
    assert reach(values, step, 0.99) == pytest.approx(0.99 / 4)
    assert reach(values, 0.1 * step, 0.99) == 1.0
    assert reach(np.empty(0), np.empty(0), 0.99) == 1.0


def test_the_parameter_of_the_barrier_falls_as_far_as_a_probe_gets():
    slacks, y = np.ones(4), np.full(4, 0.5)
    assert probe(slacks, y, (0 * slacks, -y), 1.0, total=4.0) == 0.0
    assert probe(slacks, y, (0 * slacks, -0.5 * y), 1.0, total=4.0) == pytest.approx(0.5 * 0.5**3)
    assert probe(slacks, y, (slacks, y), 1.0, total=4.0) == 0.5


def test_multipliers_stay_near_those_of_the_barrier():
    y = restrained(np.array([1e-30, 1.0, 1e30]), np.ones(3), np.full(3, 1e-3))
    np.testing.assert_allclose(y, [1e-13, 1.0, 1e7])
