"""Figures."""

from dataclasses import replace
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
    Trajectory,
    Visit,
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


@pytest.mark.parametrize("wrong", [3, "path", [3]])
def test_what_is_no_result_is_refused_with_its_label(wrong):
    with pytest.raises(TypeError, match=r"expected a Result or several for 'mine', got (int|str)"):
        plots.convergence({"mine": wrong})


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


STEPS = 9


def trajectory(n=2, m=1, samples=1, bounds=False, **changes):
    """A trajectory of waves."""
    t = torch.linspace(0, 3, STEPS + 1, dtype=torch.float64)
    x = torch.sin(t[:, None, None] + torch.arange(samples)[:, None] + 2 * torch.arange(n))
    u = torch.cos(t[:-1, None] + torch.arange(m))
    limits = {"lower": -0.5 + 0 * u, "upper": torch.where(u > 0, 2.0, torch.inf)} if bounds else {}
    return Trajectory(**{"t": t, "x": x, "p": 2 * x, "u": u, "gradient": 3 * u, **limits, **changes})


def legend(axis):
    return [text.get_text() for text in axis.get_legend().get_texts()]


def test_a_trajectory_is_drawn_as_states_control_and_costates():
    tr = trajectory()
    figure = plots.trajectory(tr)
    assert [axis.get_ylabel() for axis in figure.axes] == ["state", "control", "costate"]
    assert figure.axes[-1].get_xlabel() == "time"
    state, control, costate = drawn(figure)
    np.testing.assert_array_equal(state, tr.x[:, 0].T)
    np.testing.assert_array_equal(control[0], [*tr.u[:, 0], tr.u[-1, 0]])
    np.testing.assert_array_equal(costate, tr.p[:, 0].T)


def test_the_control_is_held_on_each_step():
    (line,) = plots.trajectory(trajectory()).axes[1].get_lines()
    assert line.get_drawstyle() == "steps-post"
    assert list(line.get_xdata()) == trajectory().t.tolist()


def test_the_components_of_a_trajectory_are_numbered():
    assert [legend(axis) for axis in plots.trajectory(trajectory()).axes] == [
        ["$x_{1}$", "$x_{2}$"],
        ["$u$"],
        ["$p_{1}$", "$p_{2}$"],
    ]


def test_the_components_of_a_trajectory_may_have_names():
    figure = plots.trajectory(trajectory(names={"x": ["angle", "speed"], "u": ["torque"]}))
    assert [legend(axis) for axis in figure.axes] == [["angle", "speed"], ["torque"], ["angle", "speed"]]


def test_bounds_are_dashed_and_the_gradient_is_drawn_below():
    figure = plots.trajectory(trajectory(bounds=True))
    assert [axis.get_ylabel() for axis in figure.axes] == ["state", "control", "costate", "gradient"]
    control, lower, upper = figure.axes[1].get_lines()
    assert [line.get_linestyle() for line in (control, lower, upper)] == ["-", "--", "--"]
    assert set(lower.get_ydata()) == {-0.5}
    assert np.array_equal(np.isnan(upper.get_ydata()), control.get_ydata() <= 0)
    assert legend(figure.axes[1]) == ["$u$", "bounds"]
    np.testing.assert_array_equal(drawn(figure)[3][0][:-1], trajectory().gradient[:, 0])


@pytest.mark.parametrize(("bound", "visible"), [(1.5, True), (100.0, False)])
def test_bounds_far_away_do_not_flatten_the_control(bound, visible):
    u = trajectory().u
    low, high = plots.trajectory(trajectory(lower=u - bound, upper=u + bound)).axes[1].get_ylim()
    assert bool(low < -bound and high > bound) is visible
    assert high - low < 8


def test_a_component_that_is_small_next_to_the_others_is_enlarged_by_a_power_of_ten():
    x = trajectory(n=3).x * torch.tensor([1000.0, 100.0, 2.0])
    axis = plots.trajectory(trajectory(n=3, x=x, names={"x": ["height", "speed", "mass"]})).axes[0]
    assert legend(axis) == ["height", "speed", r"mass $\times\,10^{2}$"]
    np.testing.assert_allclose(axis.get_lines()[2].get_ydata(), 100 * x[:, 0, 2])


@pytest.mark.parametrize("size", [0.0, 1e-12])
def test_rounding_errors_are_not_enlarged(size):
    x = trajectory().x * torch.tensor([1.0, size])
    assert legend(plots.trajectory(trajectory(x=x)).axes[0]) == ["$x_{1}$", "$x_{2}$"]


def test_twelve_components_have_looks_of_their_own():
    axis = plots.trajectory(trajectory(n=12)).axes[0]
    assert len({(line.get_color(), line.get_linestyle()) for line in axis.get_lines()}) == 12


def test_more_components_are_an_image():
    tr = trajectory(n=13, m=14)
    figure = plots.trajectory(tr)
    meshes = [axis.collections[0].get_array() for axis in figure.axes]
    for mesh, values in zip(meshes, (tr.x[:, 0], tr.u, tr.p[:, 0]), strict=True):
        np.testing.assert_array_equal(mesh, values.T)
    assert not any(axis.get_lines() for axis in figure.axes)


@pytest.mark.parametrize(("shift", "limits"), [(0.5, (-1.5, 1.5)), (3.0, (2.0, 4.0))])
def test_an_image_of_both_signs_is_white_at_zero(shift, limits):
    x = trajectory(n=20).x
    x = shift + (2 * (x - x.min()) / (x.max() - x.min()) - 1)
    assert plots.trajectory(trajectory(n=20, x=x)).axes[0].collections[0].get_clim() == pytest.approx(limits)


def test_several_samples_are_a_median_and_a_band():
    tr = trajectory(samples=21)
    axis = plots.trajectory(tr).axes[0]
    np.testing.assert_allclose([line.get_ydata() for line in axis.get_lines()], tr.x.median(dim=1).values.T)
    assert len(axis.collections) == 2
    assert axis.get_legend().get_title().get_text() == "median, 90 %\nof 21 numbers"


def test_several_samples_of_many_components_are_drawn_together():
    axis = plots.trajectory(trajectory(n=7, samples=5)).axes[0]
    assert legend(axis) == ["all components"]
    assert axis.get_legend().get_title().get_text() == "median, 90 %\nof 35 numbers"


@pytest.mark.parametrize(
    "options",
    [
        {},
        {"n": 12, "m": 12, "bounds": True},
        {"n": 40, "m": 20, "bounds": True},
        {"n": 9, "samples": 4, "m": 30},
        {"x": torch.full((STEPS + 1, 1, 2), nan)},
        {"x": torch.full((STEPS + 1, 1, 20), inf)},
        {"x": torch.full((STEPS + 1, 3, 2), inf)},
        {"u": torch.full((STEPS, 1), nan), "gradient": torch.full((STEPS, 1), nan), "bounds": True},
        {"x": torch.zeros(STEPS + 1, 1, 2), "u": torch.zeros(STEPS, 1)},
        {"x": torch.zeros(STEPS + 1, 1, 4, 5), "u": torch.zeros(STEPS, 20)},
    ],
    ids=lambda options: ", ".join(options) or "lines",
)
def test_a_trajectory_can_be_saved_as_an_image(options, tmp_path):
    assert_an_image(plots.trajectory(trajectory(**options)), tmp_path)


@pytest.fixture
def report():
    """A verification of a small problem."""
    problem = ControlProblem(
        lambda t, x, u: u - x**3, torch.ones(1, 1).double(), lambda x: x.square().sum(), control_size=1
    )
    return verify(discretize(problem, 8))


def test_a_taylor_test_is_drawn_with_lines_of_slope_one_two_and_three(report, tmp_path):
    figure = plots.taylor(report)
    (axis,) = figure.axes
    labels = [text.get_text() for text in axis.get_legend().get_texts()]
    lines = ["value alone", "slope 1", "with the derivative", "slope 2", "with the Hessian", "slope 3"]
    assert labels == [*lines, "rounding errors"]
    assert (axis.get_xscale(), axis.get_yscale()) == ("log", "log")
    assert (axis.get_xlabel(), axis.get_ylabel()) == ("step length", "remainder")
    first, _, second, _, third, _ = drawn(figure)[0]
    assert tuple(first) == report.taylor.first
    assert tuple(second) == report.taylor.second
    assert tuple(third) == report.taylor.third
    assert_an_image(figure, tmp_path)


def test_without_second_derivatives_a_taylor_test_has_no_line_of_slope_three(report):
    figure = plots.taylor(replace(report, taylor=replace(report.taylor, third=None)))
    assert len(drawn(figure)[0]) == 4


VISITS = (
    Visit(steps=16, coarse=8, begin=1.0, end=1.5, mismatch=0.1, expected=0.2, decrease=0.1, step=1.0),
    Visit(steps=16, coarse=8, begin=2.0, end=2.5, mismatch=5.0, expected=0.0, decrease=0.0, step=0.0),
)


def test_grids_shows_where_the_work_was_done_and_what_became_of_corrections():
    records = tuple(replace(r, steps=8 if r.level else 16) for r in history())
    figure = plots.grids(result(records, visits=VISITS))
    top, middle, bottom = figure.axes
    assert [line.get_label() for line in top.get_lines()] == ["8 steps", "16 steps"]
    assert [label.get_text() for label in middle.get_yticklabels()] == ["8", "16"]
    spans = [(bar.get_x(), bar.get_x() + bar.get_width()) for bar in middle.patches]
    assert spans == [(0.0, 1.0), (1.0, 5.5), (1.0, 1.5), (2.0, 2.5)]
    taken, gained, mismatch = (line.get_ydata().tolist() for line in bottom.get_lines())
    assert taken == [1.0, 0.0]
    assert gained[0] == 0.5
    assert np.isnan(gained[1])
    assert mismatch == [0.1, 2.0]


def test_grids_says_so_where_no_correction_was_asked_for():
    figure = plots.grids(result())
    assert [text.get_text() for text in figure.axes[2].texts] == ["no corrections were asked for"]


def test_grids_without_a_history_is_refused():
    with pytest.raises(ValueError, match="result: expected one with a history"):
        plots.grids(result(()))


def test_a_result_alone_is_one_curve():
    figure = plots.convergence(result())
    assert figure.axes[0].get_legend().get_texts()[0].get_text() == "run"


@pytest.mark.parametrize(
    ("draw", "message"),
    [
        (lambda: plots.convergence([result()]), "results: expected a Result, or results by their labels, got list"),
        (lambda: plots.taylor(result()), r"report: expected that of ocp.verify\(objective\), got Result"),
        (lambda: plots.trajectory(result()), r"trajectory: expected .* result.trajectory\(problem\), got Result"),
    ],
    ids=["convergence", "taylor", "trajectory"],
)
def test_what_cannot_be_drawn_is_refused(draw, message):
    with pytest.raises(TypeError, match=message):
        draw()


def test_results_of_several_problems_are_not_drawn_together():
    one, other = (result().describe(problem=name) for name in ("lqr", "pendulum"))
    message = r"results: expected those of one problem, got lqr \(a\) and pendulum \(b\)"
    with pytest.raises(ValueError, match=message):
        plots.convergence({"a": one, "b": other, "c": result()})
    assert plots.convergence({"a": one, "c": result()}).axes
