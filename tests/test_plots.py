"""Figures."""

from math import inf, nan

import numpy as np
import pytest
import torch
from matplotlib.image import imread

from ocp import (
    Control,
    ControlProblem,
    ControlSpace,
    Record,
    Result,
    Status,
    Target,
    TimeGrid,
    discretize,
    plots,
    verify,
)


def history(count=12, levels=2, shift=0.0, accuracy=None, **changes):
    """Records that begin on a coarse grid and converge."""
    return tuple(
        Record(
            iteration=k,
            level=max(levels - 1 - k // 3, 0),
            steps=8,
            work_units=0.5 * k,
            seconds=0.01 * k,
            value=shift + 2.0**-k,
            derivative_norm=3.0**-k,
            validation_accuracy=None if accuracy is None else accuracy * k / count,
            **changes,
        )
        for k in range(count)
    )


def result(records=None, **changes):
    control = Control(ControlSpace(TimeGrid(1.0, 4), 1), torch.zeros(4))
    records = history() if records is None else records
    return Result(control, 0.1, 0.1, Status.CONVERGED, "", 9, 1.0, 1.0, records, **changes)


def drawn(figure):
    """The numbers of all lines of a figure, axis by axis."""
    return [[np.asarray(line.get_ydata(), dtype=float) for line in axis.get_lines()] for axis in figure.axes]


def test_convergence_has_two_quantities_against_two_costs():
    figure = plots.convergence({"mgopt": result()})
    assert len(figure.axes) == 4
    assert [axis.get_ylabel() for axis in figure.axes] == ["objective", "", "dual norm of the derivative", ""]
    work, seconds = (axis.get_xlabel() for axis in figure.axes[2:])
    assert work.startswith("work units")
    assert seconds == "seconds"


def test_accuracy_takes_the_place_of_the_derivative_where_it_is_known():
    figure = plots.convergence({"mgopt": result(history(accuracy=0.9)), "single": result()})
    assert [axis.get_ylabel() for axis in figure.axes] == ["objective", "", "validation accuracy", ""]


def test_the_legend_has_one_entry_for_each_label():
    results = {"single": result(), "nested": [result(), result()], "mgopt": (result(),)}
    (legend,) = (axis.get_legend() for axis in plots.convergence(results).axes if axis.get_legend())
    assert [text.get_text() for text in legend.get_texts()] == ["single", "nested", "mgopt", "on coarse grids"]


def test_the_legend_is_silent_on_coarse_grids_where_there_are_none():
    legend = plots.convergence({"single": result(history(levels=1))}).axes[0].get_legend()
    assert [text.get_text() for text in legend.get_texts()] == ["single"]


def test_labels_have_colors_of_their_own():
    figure = plots.convergence({"single": result(), "mgopt": result()})
    assert len({line.get_color() for line in figure.axes[0].get_lines()}) == 2


def test_the_values_drawn_are_those_of_the_history():
    values = np.array([record.value for record in history()])
    for lines in drawn(plots.convergence({"mgopt": result()}))[:2]:
        assert np.isin(values, np.concatenate(lines)).all()


def test_the_value_on_the_finest_grid_is_drawn_where_it_is_known():
    figure = plots.convergence({"mgopt": result(history(finest_value=0.7))})
    assert {float(y) for lines in drawn(figure)[:2] for line in lines for y in line} == {0.7}


def test_work_on_coarse_grids_is_drawn_lighter():
    coarse, fine, _ = plots.convergence({"mgopt": result()}).axes[0].get_lines()
    assert coarse.get_alpha() < fine.get_alpha()
    assert coarse.get_xdata()[-1] == fine.get_xdata()[0]


@pytest.mark.parametrize(("shift", "scale"), [(0.0, "log"), (-3.0, "linear")])
def test_the_objective_is_drawn_in_logarithms_where_it_is_positive(shift, scale):
    figure = plots.convergence({"mgopt": result(history(shift=shift))})
    assert figure.axes[0].get_yscale() == scale


@pytest.mark.parametrize(("target", "row"), [(Target("value", 0.1), 0), (Target("accuracy", 0.8), 1)])
def test_the_target_is_a_dashed_line_in_its_row(target, row):
    figure = plots.convergence({"mgopt": result(history(accuracy=0.9))}, target)
    rows = [k // 2 for k, axis in enumerate(figure.axes) for line in axis.get_lines() if line.get_linestyle() == "--"]
    assert rows == [row, row]


def test_a_figure_is_drawn_from_what_was_saved(tmp_path):
    before = result(history(accuracy=0.9))
    loaded = Result.load(before.save(tmp_path))
    one, two = (drawn(plots.convergence({"mgopt": r})) for r in (before, loaded))
    assert all(np.array_equal(a, b) for x, y in zip(one, two, strict=True) for a, b in zip(x, y, strict=True))


@pytest.mark.parametrize(
    "records",
    [
        history(count=1),
        history(count=2, levels=1),
        history(levels=9),
        (*history(), Record(12, 0, 8, 6.0, 0.12, nan, inf)),
        (Record(0, 0, 8, 0.0, 0.0, nan, nan),),
        (Record(0, 0, 8, 1.0, 0.1, 0.0, 0.0), Record(1, 0, 8, 2.0, 0.2, 0.0, 0.0)),
    ],
    ids=["one record", "no coarse grid", "no fine grid", "not finite at the end", "nothing finite", "zeros"],
)
def test_odd_histories_are_drawn_as_well(records, tmp_path):
    assert_an_image(plots.convergence({"odd": result(records)}), tmp_path)


def test_a_run_that_was_interrupted_before_its_first_record_does_not_spoil_the_figure(tmp_path):
    assert_an_image(plots.convergence({"whole": result(), "empty": result(())}), tmp_path)


def assert_an_image(figure, folder):
    """The figure can be saved, and is not blank."""
    figure.savefig(folder / "figure.png", dpi=50)
    pixels = imread(folder / "figure.png")
    assert pixels.shape[0] > 100
    assert pixels.std() > 0.01


def test_convergence_can_be_saved_as_an_image(tmp_path):
    assert_an_image(plots.convergence({"mgopt": [result(), result(history(20))]}, Target("value", 0.1)), tmp_path)


@pytest.mark.parametrize("results", [{}, {"mgopt": []}, {"mgopt": (), "single": ()}])
def test_nothing_to_draw_is_refused(results):
    with pytest.raises(ValueError, match="results: expected at least one labeled result, got none"):
        plots.convergence(results)


@pytest.fixture
def report():
    """A verification of a small problem."""
    problem = ControlProblem(
        lambda t, x, u: u - x**3, torch.ones(1, 1).double(), lambda x: x.square().sum(), control_size=1
    )
    return verify(discretize(problem, 8))


def test_a_taylor_test_is_drawn_with_lines_of_slope_one_and_two(report, tmp_path):
    figure = plots.taylor(report)
    (axis,) = figure.axes
    labels = [text.get_text() for text in axis.get_legend().get_texts()]
    assert labels == ["value alone", "slope 1", "with the derivative", "slope 2", "rounding errors"]
    assert (axis.get_xscale(), axis.get_yscale()) == ("log", "log")
    assert (axis.get_xlabel(), axis.get_ylabel()) == ("step length", "remainder")
    first, _, second, _ = drawn(figure)[0]
    assert tuple(first) == report.taylor.first
    assert tuple(second) == report.taylor.second
    assert_an_image(figure, tmp_path)
