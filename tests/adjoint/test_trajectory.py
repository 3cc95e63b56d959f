"""Trajectories: what they hold, and their table."""

import csv

import numpy as np
import pytest
import torch

from ocp import ControlProblem, QuadraticRunning, Trajectory, discretize

N, HORIZON = 6, 1.5


def objective(batch=1, bounds=None, dtype=torch.float64):
    """Two states and two controls that depend on each other."""
    x = torch.linspace(-1, 1, 2 * batch, dtype=dtype).reshape(batch, 2)
    return discretize(
        ControlProblem(
            lambda t, x, u: u - x**3 + t,
            x,
            running_cost=QuadraticRunning(),
            horizon=HORIZON,
            control_size=2,
            bounds=bounds,
        ),
        N,
        "rk4",
    )


def made(dtype=torch.float64, **changes):
    u = torch.linspace(-0.3, 0.7, 2 * N, dtype=dtype)
    return objective(dtype=dtype, **changes).trajectory(u)


def table(path):
    with path.open() as file:
        return list(csv.reader(file))


def test_a_trajectory_holds_the_control_of_each_step_and_its_gradient():
    u = torch.linspace(-1, 1, 2 * N, dtype=torch.float64)
    trajectory = objective().trajectory(u)
    assert torch.equal(trajectory.u, u.reshape(N, 2))
    assert trajectory.t.tolist() == list(objective().space.grid.nodes)
    torch.testing.assert_close(trajectory.gradient * HORIZON / N, objective().derivative(u).reshape(N, 2))


def test_a_trajectory_is_not_changed_with_its_control():
    u = torch.zeros(2 * N, dtype=torch.float64)
    trajectory = objective().trajectory(u)
    u += 1.0
    assert not trajectory.u.any()


def test_the_gradient_approximates_the_derivative_of_the_hamiltonian_by_the_control():
    trajectory = made()
    costate = (trajectory.p[1:] + trajectory.p[:-1])[:, 0] / 2
    torch.testing.assert_close(trajectory.gradient, costate + trajectory.u, rtol=0, atol=0.02)


def test_a_trajectory_holds_the_bounds_of_each_step():
    trajectory = made(bounds=(torch.tensor([-1.0, -2.0]), lambda t: t))
    midpoints = (trajectory.t[1:] + trajectory.t[:-1]) / 2
    torch.testing.assert_close(trajectory.lower, torch.tensor([[-1.0, -2.0]]).double().expand(N, 2))
    torch.testing.assert_close(trajectory.upper, midpoints[:, None].expand(N, 2))


def test_without_bounds_there_are_none():
    assert made().lower is made().upper is None


def test_some_samples_are_taken_with_the_control_of_all():
    whole = made(batch=4)
    part = whole.take(torch.tensor([2, 0]))
    assert torch.equal(part.x, whole.x[:, [2, 0]])
    assert torch.equal(part.p, whole.p[:, [2, 0]])
    assert torch.equal(part.u, whole.u)


def test_the_table_has_one_row_for_each_node_and_one_column_for_each_component(tmp_path):
    header, *rows = table(made().save(tmp_path / "trajectory.csv"))
    assert header == ["t", "u1", "u2", "x1", "x2", "p1", "p2"]
    assert [len(row) for row in rows] == [7] * (N + 1)


def test_the_table_gives_the_same_numbers_back(tmp_path):
    trajectory = made()
    numbers = np.genfromtxt(trajectory.save(tmp_path / "trajectory.csv"), delimiter=",", skip_header=1)
    expected = (trajectory.t[:, None], trajectory.x[:, 0], trajectory.p[:, 0])
    assert np.array_equal(numbers[:, [0, 3, 4, 5, 6]], torch.cat(expected, dim=1).numpy())
    assert np.array_equal(numbers[:-1, 1:3], trajectory.u.numpy())


def test_the_control_stands_where_its_step_begins_and_not_at_the_end(tmp_path):
    *_, last = table(made().save(tmp_path / "trajectory.csv"))
    assert last[:3] == ["1.5", "", ""]


def test_numbers_in_single_precision_are_not_longer_than_they_need_be(tmp_path):
    rows = table(made(dtype=torch.float32).save(tmp_path / "trajectory.csv"))
    assert rows[1][1:3] == ["-0.3", "-0.20909092"]


def test_a_state_of_several_dimensions_is_flattened(tmp_path):
    t, u = torch.arange(3.0), torch.zeros(2, 1)
    x = torch.arange(12.0).reshape(3, 1, 2, 2)
    header, first, *_ = table(Trajectory(t, x, x, u, u).save(tmp_path / "trajectory.csv"))
    assert header == ["t", "u1", "x1", "x2", "x3", "x4", "p1", "p2", "p3", "p4"]
    assert first[2:6] == ["0.0", "1.0", "2.0", "3.0"]


def test_the_folder_of_a_table_is_made_where_it_is_missing(tmp_path):
    assert made().save(tmp_path / "a" / "b.csv").exists()


def test_a_table_of_several_samples_is_refused_and_one_of_them_is_not(tmp_path):
    trajectory = made(batch=3)
    with pytest.raises(ValueError, match=r"trajectory: expected a single sample for a table, got 3; take one"):
        trajectory.save(tmp_path / "trajectory.csv")
    assert trajectory.take(torch.tensor([1])).save(tmp_path / "one.csv").exists()
