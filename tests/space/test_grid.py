"""The time grid."""

from math import inf, nan

import pytest

from ocp.space.grid import TimeGrid


def test_nodes_and_midpoints_are_where_the_definition_puts_them():
    grid = TimeGrid(horizon=2.0, steps=4)
    assert grid.h == 0.5
    assert grid.nodes == (0.0, 0.5, 1.0, 1.5, 2.0)
    assert grid.midpoints == (0.25, 0.75, 1.25, 1.75)


@pytest.mark.parametrize("steps", [3, 7, 49, 1000])
def test_the_last_node_is_the_horizon(steps):
    assert TimeGrid(0.1, steps).nodes[-1] == pytest.approx(0.1, rel=1e-15)


@pytest.mark.parametrize("factor", [1, 2, 3, 6])
def test_coarse_nodes_are_fine_nodes(factor):
    assert TimeGrid(3.0, 12 // factor).nodes == pytest.approx(TimeGrid(3.0, 12).nodes[::factor])


@pytest.mark.parametrize("horizon", [0.0, -1.0, inf, nan])
def test_a_horizon_that_is_not_finite_and_positive_is_refused(horizon):
    with pytest.raises(ValueError, match=f"horizon: expected a finite number > 0, got {horizon}"):
        TimeGrid(horizon, 4)


@pytest.mark.parametrize("steps", [0, -4, 2.0, True, "4"])
def test_a_number_of_steps_must_be_a_positive_integer(steps):
    with pytest.raises(ValueError, match=f"steps: expected an integer >= 1, got {steps!r}"):
        TimeGrid(1.0, steps)
