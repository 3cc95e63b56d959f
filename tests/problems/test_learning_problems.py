"""The learning problems: their points and classes, their seeds, and that their training begins well."""

import pytest
import torch
from ocp.problems import digits, lqr, mnist, peaks, spiral, swiss_roll, van_der_pol

from ocp import Stop, Watch, discretize, minimize
from ocp.optimize.lbfgs import LBFGS
from ocp.problem.layers import Antisymmetric, Free

POINT_SETS = {"spiral": spiral, "swiss roll": swiss_roll, "peaks": peaks}
LEARNING = POINT_SETS | {"digits": digits, "mnist": mnist}


@pytest.fixture(params=POINT_SETS.values(), ids=POINT_SETS.keys())
def point_set(request):
    return request.param


@pytest.fixture(params=LEARNING.values(), ids=LEARNING.keys())
def learning(request):
    return request.param


def inputs(problem):
    return problem.initial_state.inputs


def labels(problem):
    return problem.terminal_cost.cost.labels


def rows(x):
    """The samples as bytes, so that equal means bitwise equal."""
    return {row.numpy().tobytes() for row in x}


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
@pytest.mark.parametrize("data_seed", [0, 1])
def test_no_point_occurs_twice_in_training_validation_and_test(point_set, dtype, data_seed):
    study = point_set.problem(dtype=dtype, data_seed=data_seed)
    parts = [inputs(part) for part in (study.problem, study.validation, study.test)]
    assert len(rows(torch.cat(parts))) == sum(map(len, parts))


@pytest.mark.parametrize(("module", "sizes"), [(digits, [1078, 360, 359]), (mnist, [3000, 1000, 1000])])
def test_handwritten_digits_are_divided_at_60_20_20(module, sizes):
    study = module.problem()
    assert [len(inputs(part)) for part in (study.problem, study.validation, study.test)] == sizes


@pytest.mark.parametrize(("points", "classes"), [(spiral.points, 5), (swiss_roll.points, 2), (peaks.points, 5)])
def test_all_classes_have_the_same_number_of_points(points, classes):
    x, y = points(60)
    assert x.shape == (60 * classes, 2)
    assert y.bincount().tolist() == [60] * classes


def test_the_spiral_has_its_points_in_the_unit_disk_and_its_arms_turned_by_a_fifth():
    x, y = spiral.points(200)
    r, phi = x.norm(dim=1), torch.atan2(x[:, 1], x[:, 0])
    noise = torch.remainder(phi - 4 * r - 2 * torch.pi / 5 * y + torch.pi, 2 * torch.pi) - torch.pi
    assert 0 < float(r.min()) < float(r.max()) <= 1 + 1e-12
    assert float(noise.mean()) == pytest.approx(0, abs=0.02)
    assert float(noise.std()) == pytest.approx(0.1, rel=0.1)


def test_the_swiss_roll_lies_on_two_curves_whose_radii_differ_by_a_fifth():
    x, y = swiss_roll.points(513)
    inner, outer = x[y == 0], x[y == 1]
    r = torch.linspace(0, 1, 513, dtype=torch.float64)
    torch.testing.assert_close(inner.norm(dim=1), r)
    torch.testing.assert_close(outer.norm(dim=1), r + 0.2)
    torch.testing.assert_close(outer[1:] / (r[1:, None] + 0.2), inner[1:] / r[1:, None])


@pytest.mark.parametrize(
    ("x", "y", "z"), [(0.0, 0.0, 0.9810118431), (-0.0093, 1.5814, 8.1062), (0.2283, -1.6255, -6.5511)]
)
def test_the_peaks_are_as_high_as_in_matlab(x, y, z):
    # 3/e - 1/(3e) at the origin; highest and lowest value as MATLAB's documentation plots them.
    assert float(peaks.height(torch.tensor(x), torch.tensor(y))) == pytest.approx(z, abs=1e-4)


def test_the_classes_of_the_peaks_are_bands_of_equal_height():
    x, y = peaks.points(400)
    z = peaks.height(*x.T)
    edges = torch.linspace(-6.5511, 8.1062, 6, dtype=torch.float64)
    assert float(x.abs().max()) <= 3
    assert bool((z >= edges[y] - 1e-2).all())
    assert bool((z <= edges[y + 1] + 1e-2).all())


def test_more_points_than_the_smallest_band_has_are_refused():
    with pytest.raises(ValueError, match=r"samples: expected at most 1798 points for each class, got 1799"):
        peaks.points(1799)


@pytest.mark.parametrize("points", [spiral.points, peaks.points])
def test_random_points_follow_their_seed(points):
    assert torch.equal(points(50, 3)[0], points(50, 3)[0])
    assert not torch.equal(points(50, 3)[0], points(50, 4)[0])


def test_the_same_seed_gives_the_same_problem(learning):
    first, again = learning.problem(seed=5), learning.problem(seed=5)
    assert torch.equal(first.problem.start.flat, again.problem.start.flat)
    assert torch.equal(inputs(first.problem), inputs(again.problem))
    assert torch.equal(labels(first.problem), labels(again.problem))


def test_another_seed_changes_all_weights_and_no_sample(learning):
    first, other = learning.problem(seed=0), learning.problem(seed=1)
    biases = learning.problem().problem.dynamics.width  # of the layer, which begin as zeros
    assert int((first.problem.start.flat == other.problem.start.flat).sum()) == biases
    assert torch.equal(inputs(first.problem), inputs(other.problem))
    assert torch.equal(inputs(first.test), inputs(other.test))


def test_another_data_seed_changes_the_samples_and_no_weight(learning):
    first, other = learning.problem(), learning.problem(data_seed=1)
    assert torch.equal(first.problem.start.flat, other.problem.start.flat)
    assert not torch.equal(inputs(first.problem), inputs(other.problem))


def test_the_global_random_state_is_left_alone(learning):
    before = torch.random.get_rng_state()
    learning.problem(seed=7)
    assert torch.equal(torch.random.get_rng_state(), before)


def test_training_validation_and_test_share_network_and_start(learning):
    study = learning.problem()
    for part in (study.validation, study.test):
        assert part.dynamics is study.problem.dynamics
        assert part.start is study.problem.start


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_the_precision_is_that_asked_for(learning, dtype):
    problem = learning.problem(dtype=dtype).problem
    assert {inputs(problem).dtype, problem.start.flat.dtype} == {dtype}


@pytest.mark.parametrize(
    ("module", "weight"),
    [(spiral, Free()), (swiss_roll, Antisymmetric()), (peaks, Antisymmetric()), (digits, Free()), (mnist, Free())],
)
def test_the_layer_is_the_stated_one(module, weight):
    assert module.problem(width=6).problem.dynamics.weight == weight


def test_what_is_suggested_fits_the_solver(learning):
    study = learning.problem()
    assert study.steps % 2 ** (study.levels - 1) == 0
    assert study.target.quantity == "accuracy"
    assert study.stop.max_work < float("inf")


@pytest.mark.parametrize("module", [*LEARNING.values(), lqr, van_der_pol])
def test_each_file_begins_with_a_summary_in_one_line(module):
    summary, gap, *_ = module.__doc__.splitlines()
    assert summary.endswith(".")
    assert gap == ""


def test_a_few_steps_of_training_beat_guessing(learning):
    study = learning.problem()
    result = minimize(
        study.problem,
        16,
        LBFGS(),
        watch=Watch(validation=study.validation, progress=False),
        stop=Stop(max_iterations=8),
    )
    first, last = result.history[0], result.history[-1]
    assert last.value < 0.95 * first.value
    assert last.validation_accuracy > 1.1 / len(labels(study.problem).unique())


def test_the_digits_reach_their_target_on_few_steps():
    study = digits.problem()
    result = minimize(
        study.problem,
        8,
        LBFGS(),
        watch=Watch(validation=study.validation, progress=False),
        stop=Stop(max_iterations=25),
    )
    assert result.validation_accuracy >= study.target.threshold


def test_mnist_is_read_from_a_folder(tmp_path):
    with pytest.raises(FileNotFoundError, match="folder: expected a directory with the MNIST files"):
        mnist.problem(folder=tmp_path / "nowhere")


def test_the_finest_grid_of_a_study_can_be_evaluated(learning):
    study = learning.problem()
    objective = discretize(study.problem.take(torch.arange(4)), study.steps, study.integrator)
    assert objective.value(objective.discretization.start()) > 0
