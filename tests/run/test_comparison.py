"""Comparisons of methods."""

import json
from dataclasses import replace
from functools import partial
from itertools import takewhile

import pytest
import torch

from ocp import (
    Adaptive,
    Control,
    ControlProblem,
    ControlSpace,
    CrossEntropy,
    LeastSquares,
    Nested,
    Record,
    Result,
    Status,
    Study,
    Target,
    TimeGrid,
    TorchOptimizer,
    accuracy,
    residual_network,
)
from ocp.cli import words
from ocp.cli.words import SMOOTHERS
from ocp.optimize.descent import GradientDescent, NonlinearCG
from ocp.optimize.lbfgs import LBFGS
from ocp.problem.layers import Dense
from ocp.run.comparison import Comparison, RunSpec, compare, mgopt, single, solve
from ocp.run.stopping import Stop
from ocp.space.transfer import LINEAR

X0 = torch.ones(1, 1, dtype=torch.float64)
CONTROL = Study(
    ControlProblem(
        lambda t, x, u: u - x**3,
        X0,
        LeastSquares(0 * X0, 2.0),
        running_cost=lambda t, x, u: u.square().sum(),
        control_size=1,
    ),
    steps=8,
    levels=3,
    stop=Stop(tolerance=1e-5),
)


def learning(seed):
    """Points of the plane, labeled by their side of a line."""
    parts = []
    for part in range(3):
        generator = torch.Generator().manual_seed(3 * seed + part)
        x = torch.rand(15, 2, generator=generator, dtype=torch.float64) - 0.5
        parts.append(residual_network(x, CrossEntropy((x[:, 0] > x[:, 1]).long()), Dense(2)))
    return Study(parts[0], steps=4, levels=2, validation=parts[1], test=parts[2], stop=Stop(max_iterations=12))


ADAM = SMOOTHERS["adam"](1e-2)
#: For problems without constraints.
METHODS = {word: words.METHODS[word] for word in ("single", "nested", "mgopt")}
RUNS = [RunSpec(method) for method in METHODS.values()]


def tables(comparison):
    """The rows of each printed table by label, the cells by header; the tables by their first header."""
    found, lines = {}, str(comparison).splitlines()
    for k, rule in enumerate(lines):
        if rule and set(rule) <= {"-", " "}:
            starts = [i for i, c in enumerate(rule) if c == "-" and (i == 0 or rule[i - 1] == " ")]
            bounds = list(zip(starts, [*starts[1:], None], strict=True))
            header = [lines[k - 1][a:b].strip() for a, b in bounds]
            rows = takewhile(lambda line: line and not line.startswith("Medians"), lines[k + 1 :])
            cells = [[row[a:b].strip() for a, b in bounds] for row in rows]
            found[header[0]] = {row[0]: dict(zip(header, row, strict=True)) for row in cells}
    return found


def made(work, *values, seconds=0.5, **changes):
    """A result whose history takes these values, each at its cost in work."""
    history = tuple(
        Record(k, 0, 4, w, seconds * w, v, 1.0, finest_value=v)
        for k, (w, v) in enumerate(zip(work, values, strict=True))
    )
    control = Control(ControlSpace(TimeGrid(1.0, 4), 1), torch.zeros(4))
    last = history[-1]
    about = {"method": "single", "label": "single"}
    result = Result(control, last.value, 1.0, Status.MAX_WORK, "", 3, last.work_units, last.seconds, history)
    return replace(result, about=about, **changes)


TITLES = {
    "lbfgs": "LBFGS",
    "cg": "NonlinearCG",
    "newton": "NewtonCG",
    "gd": "GradientDescent",
    "adam": "Adam",
    "sgd": "SGD",
    "scipy": "SciPy",
}


@pytest.mark.parametrize("word", SMOOTHERS)
@pytest.mark.parametrize("method", METHODS.values(), ids=METHODS)
@pytest.mark.cover(1)
def test_every_method_runs_with_every_smoother(method, word):
    smoother = SMOOTHERS[word](0.1)
    result = solve("control", CONTROL, RunSpec(method, smoother, stop=Stop(max_iterations=60)))
    assert result.value < result.history[-1].value + 1e-12
    assert result.value < 0.7
    assert (result.about["method"], result.about["smoother"]) == (method.__name__, TITLES[word])


@pytest.mark.parametrize("method", ["augmented", "interior"])
def test_the_violation_of_constraints_is_in_the_table(method):
    study = replace(CONTROL, problem=replace(CONTROL.problem, terminal_equality=lambda x: x - 0.5))
    result = solve("control", study, RunSpec(words.METHODS[method]))
    assert result.success, result
    assert result.violation.relative <= 1e-6
    row = tables(Comparison({"single": (result,)}))["at the end"]["single"]
    assert float(row["violation"]) == pytest.approx(result.violation.relative, rel=0.1)


def test_a_run_takes_what_the_study_suggests_unless_it_says_otherwise():
    suggested = solve("control", CONTROL, RunSpec())
    own = solve("control", CONTROL, RunSpec(steps=12, levels=2, integrator="heun", stop=Stop(tolerance=1e-2)))
    assert [suggested.about[key] for key in ("steps", "levels", "integrator")] == [8, 3, "euler"]
    assert [own.about[key] for key in ("steps", "levels", "integrator")] == [12, 2, "heun"]
    assert suggested.derivative_norm < own.derivative_norm


def test_the_seed_is_that_of_the_batches():
    one, same, other = (
        solve("learning", learning(0), RunSpec(single, ADAM, batch_size=4, seed=seed)) for seed in (1, 1, 2)
    )
    assert torch.equal(one.control.flat, same.control.flat)
    assert not torch.equal(one.control.flat, other.control.flat)


def test_with_mini_batches_mgopt_carries_its_memory_and_makes_no_cycles():
    stop = Stop(max_iterations=60, tolerance=0.0)
    noisy, exact = (
        solve("learning", learning(0), RunSpec(mgopt, smoother, batch_size=size, stop=stop))
        for smoother, size in ((ADAM, 4), (GradientDescent(), None))
    )
    assert [min(record.level for record in result.history) for result in (noisy, exact)] == [0, 0]
    assert "corrections" not in noisy.counts
    assert exact.visits


def test_under_gradient_descent_mgopt_solves_the_coarse_grids_with_lbfgs():
    stop = Stop(max_iterations=60, tolerance=0.0)
    slow, fast = (
        solve("learning", learning(0), RunSpec(mgopt, smoother, stop=stop)) for smoother in (GradientDescent(), LBFGS())
    )
    coarse = [[record.value for record in result.history if record.level > 0] for result in (slow, fast)]
    assert coarse[0] == coarse[1]
    assert slow.value != fast.value


@pytest.mark.parametrize("wrong", ["mgopt", LBFGS(), partial(mgopt)])
def test_a_method_that_is_no_function_with_a_name_is_refused(wrong):
    with pytest.raises(TypeError, match="method: expected a function such as mgopt, got "):
        RunSpec(wrong)


def test_a_run_takes_a_function_of_ones_own_for_a_method():
    def coarse_only(levels, smoother, batches, **grids):
        return Nested(levels, smoother, **grids)

    result = solve("control", CONTROL, RunSpec(coarse_only))
    assert (result.about["method"], result.about["label"]) == ("coarse_only", "coarse_only")
    assert result.history[0].steps == 2


def test_a_smoother_that_is_no_method_is_refused():
    with pytest.raises(TypeError, match=r"smoother: expected a method such as LBFGS\(\) .*, got 'lbfgs'"):
        RunSpec(smoother="lbfgs")


def test_a_comparison_has_one_result_for_each_method_and_seed():
    comparison = compare("learning", learning, RUNS, seeds=2)
    assert {name: len(results) for name, results in comparison.runs.items()} == {"single": 2, "nested": 2, "mgopt": 2}
    assert [r.about["seed"] for r in comparison.runs["mgopt"]] == [0, 1]
    assert [r.about["problem"] for r in comparison.runs["nested"]] == ["learning"] * 2


def test_all_methods_get_the_same_study_and_start():
    asked = []
    comparison = compare("learning", lambda seed: asked.append(seed) or learning(seed), RUNS, seeds=2)
    starts = [results[0].history[0].finest_value for results in comparison.runs.values()]
    assert asked == [0, 1]
    assert starts == pytest.approx([starts[0]] * 3, rel=1e-12)


def test_methods_are_interleaved_and_results_saved_after_every_run():
    seen = []
    compare("learning", learning, RUNS, seeds=2, save=lambda c: seen.append([len(r) for r in c.runs.values()]))
    assert seen == [[1, 0, 0], [1, 1, 0], [1, 1, 1], [2, 1, 1], [2, 2, 1], [2, 2, 2]]


def test_an_incomplete_comparison_can_be_printed_and_saved(tmp_path):
    seen = []
    compare("learning", learning, RUNS, seeds=1, save=lambda c: seen.append(str(c)) or c.save(tmp_path))
    assert len(seen) == 3


def test_no_run_stops_at_the_target():
    comparison = compare("control", lambda seed: CONTROL, RUNS, seeds=1, target=Target("value", 1e9))
    assert {results[0].status for results in comparison.runs.values()} == {Status.CONVERGED}


def test_the_finest_grid_is_watched():
    comparison = compare("control", lambda seed: CONTROL, RUNS, seeds=1)
    watched = [r.finest_value is not None for results in comparison.runs.values() for r in results[0].history]
    assert all(watched)


@pytest.mark.parametrize(("given", "expected"), [(None, Target("value", 0.5)), (Target("value", 0.6),) * 2])
def test_the_target_is_that_of_the_study_unless_another_is_given(given, expected):
    study = replace(CONTROL, target=Target("value", 0.5))
    assert compare("control", lambda seed: study, RUNS[:1], seeds=1, target=given).target == expected


TARGET = Target("value", 0.5)


def test_a_seed_that_missed_the_target_is_a_failure_and_never_dropped():
    runs = {
        "single": (made([1.0, 2.0], 0.9, 0.4), made([1.0, 4.0], 0.9, 0.4)),
        "nested": (made([1.0, 2.0], 0.9, 0.4), made([1.0, 2.0], 0.9, 0.6)),
        "mgopt": (made([0.5, 1.0], 0.9, 0.4), made([0.5, 1.0], 0.9, 0.4)),
    }
    rows = tables(Comparison(runs, TARGET))["to value <= 0.5"]
    assert [rows[name]["reached"] for name in runs] == ["2 of 2", "1 of 2", "2 of 2"]
    assert [rows[name]["work"] for name in runs] == ["3.00 [2.00, 4.00]", "missed", "1.00"]
    assert [rows[name]["gain"] for name in runs] == ["1.0x", "-", "3.0x"]
    assert [rows[name]["seconds"] for name in runs] == ["1.50 [1.00, 2.00]", "missed", "0.50"]
    assert [rows[name]["on steps"] for name in runs] == ["4", "-", "4"]


def test_no_gain_is_claimed_against_a_baseline_that_missed():
    runs = {"single": (made([1.0], 0.9),), "mgopt": (made([0.5, 1.0], 0.9, 0.4),)}
    rows = tables(Comparison(runs, TARGET))["to value <= 0.5"]
    assert [rows["single"][name] for name in ("reached", "work")] == ["0 of 1", "missed"]
    assert [rows[name]["gain"] for name in runs] == ["-", "-"]


def test_a_target_that_is_reached_at_the_start_divides_by_nothing():
    runs = {"single": (made([0.0], 0.1),), "mgopt": (made([0.0], 0.1),)}
    assert tables(Comparison(runs, TARGET))["to value <= 0.5"]["mgopt"]["work"] == "0.00"


def test_without_a_target_there_is_no_table_of_it():
    assert list(tables(Comparison({"single": (made([1.0], 0.9),)}))) == ["at the end"]


def test_the_table_says_what_its_numbers_are():
    last = str(Comparison({"single": (made([1.0], 0.9),)}, TARGET)).splitlines()[-1]
    assert "Medians over seeds, [ranges]; work in gradients on the finest grid and all samples." in last


def test_the_table_at_the_end_holds_medians_and_how_the_runs_ended():
    changes = [
        {"validation_accuracy": a, "test_accuracy": a / 2, "counts": {"corrections": k}, "status": status}
        for k, (a, status) in enumerate(zip((0.5, 0.9, 0.8), 2 * [Status.MAX_WORK] + [Status.CONVERGED], strict=True))
    ]
    row = tables(Comparison({"single": tuple(made([1.0], 0.9, **c) for c in changes)}))["at the end"]["single"]
    assert row == {
        "at the end": "single",
        "objective": "0.9",
        "validation": "0.800 [0.500, 0.900]",
        "test": "0.400 [0.250, 0.450]",
        "work": "1.00",
        "corrections": "1 [0, 2]",
        "ended": "2 MAX_WORK, 1 CONVERGED",
    }


def test_the_saved_comparison_holds_the_work_to_the_target_and_null_where_it_was_missed(tmp_path):
    runs = {"single": (made([1.0, 2.0], 0.9, 0.4), made([1.0, 2.0], 0.9, 0.6))}
    folder = Comparison(runs, Target("value", 0.5)).save(tmp_path / "a" / "b")
    saved = json.loads((folder / "compare.json").read_text())
    assert [run["work_units_to_target"] for run in saved["runs"]] == [2.0, None]
    assert [run["seconds_to_target"] for run in saved["runs"]] == [1.0, None]
    assert saved["target"] == {"quantity": "value", "threshold": 0.5}


def test_a_comparison_is_the_same_after_saving_and_loading(tmp_path):
    before = compare("learning", learning, RUNS, seeds=2, target=Target("accuracy", 0.6))
    after = Comparison.load(before.save(tmp_path))
    assert after.target == before.target
    assert str(after) == str(before)
    assert {name: len(results) for name, results in after.runs.items()} == dict.fromkeys(before.runs, 2)


def test_a_run_whose_value_is_not_finite_is_saved_as_strict_json(tmp_path):
    bad = made([1.0, 2.0], float("nan"), float("inf"))
    text = (Comparison({"single": (bad,)}).save(tmp_path) / "compare.json").read_text()
    assert not {"NaN", "Infinity"} & set(text.replace(",", " ").split())


@pytest.mark.parametrize("seeds", [0, -1])
def test_a_comparison_needs_a_seed(seeds):
    with pytest.raises(ValueError, match=f"seeds: expected an integer >= 1, got {seeds}"):
        compare("control", lambda seed: CONTROL, RUNS, seeds=seeds)


@pytest.mark.parametrize(
    "runs", [[], [RunSpec(single), RunSpec(single, NonlinearCG())], [RunSpec(single), RunSpec(label="single")]]
)
def test_a_comparison_needs_runs_that_can_be_told_apart(runs):
    with pytest.raises(ValueError, match="runs: expected at least one, and every label once"):
        compare("control", lambda seed: CONTROL, runs, seeds=1)


def test_labels_tell_runs_of_one_method_apart(tmp_path):
    runs = [RunSpec(single, label="L-BFGS"), RunSpec(single, NonlinearCG(), label="CG")]
    comparison = compare("control", lambda seed: CONTROL, runs, seeds=1)
    assert {label: results[0].about["smoother"] for label, results in comparison.runs.items()} == {
        "L-BFGS": "LBFGS",
        "CG": "NonlinearCG",
    }
    assert list(Comparison.load(comparison.save(tmp_path)).runs) == ["L-BFGS", "CG"]


@pytest.mark.parametrize("text", ["", "{", "[1]", "{}", '{"runs": [{}], "target": null}', '{"runs": 3}'])
def test_a_file_that_is_no_comparison_is_refused(tmp_path, text):
    (tmp_path / "compare.json").write_text(text)
    with pytest.raises(ValueError, match="expected"):
        Comparison.load(tmp_path)


def test_a_study_is_solved_with_its_own_smoother_and_interpolation():
    study = replace(CONTROL, smoother=NonlinearCG(), interpolation=LINEAR)
    result = solve("control", study, RunSpec())
    assert result.about["smoother"] == "NonlinearCG"
    assert "smoother=NonlinearCG(" in result.about["recipe"]
    assert "interpolation=LINEAR" in result.about["recipe"]


def test_a_run_takes_its_smoother_in_place_of_that_of_the_study():
    study = replace(CONTROL, smoother=NonlinearCG(), interpolation=LINEAR)
    result = solve("control", study, RunSpec(smoother=GradientDescent()))
    assert result.about["smoother"] == "GradientDescent"
    assert "smoother=GradientDescent(" in result.about["recipe"]


def test_the_usual_study_has_lbfgs_and_constant_interpolation():
    recipe = solve("control", CONTROL, RunSpec()).about["recipe"]
    assert "smoother=LBFGS(" in recipe
    assert "interpolation=CONSTANT" in recipe


#: Steps and levels of a study, steps of a run, and the grids that are then used.
LEVELS = {
    "as suggested": ((8, 3), None, {2, 4, 8}),
    "finer": ((8, 3), 32, {2, 4, 8, 16, 32}),
    "coarser": ((8, 3), 4, {2, 4}),
    "coarser than the coarsest": ((8, 2), 2, {2}),
    "odd": ((8, 3), 7, {7}),
    "half odd": ((8, 3), 12, {3, 6, 12}),
    "one level": ((8, 1), 16, {8, 16}),
    "more levels than steps": ((8, 9), None, {1, 2, 4, 8}),
}


@pytest.mark.parametrize(("suggested", "steps", "grids"), LEVELS.values(), ids=LEVELS.keys())
def test_the_levels_fit_the_steps_down_to_the_coarsest_grid_of_the_study(suggested, steps, grids):
    study = replace(CONTROL, steps=suggested[0], levels=suggested[1])
    result = solve("control", study, RunSpec(steps=steps))
    assert {record.steps for record in result.history} == grids
    assert result.about["levels"] == len(grids)


def test_levels_of_a_single_grid_are_refused():
    with pytest.raises(ValueError, match=r"levels: expected none for the method single, .*, got 2"):
        solve("control", CONTROL, RunSpec(single, levels=2))


def test_a_comparison_by_accuracy_requires_validation_samples():
    with pytest.raises(ValueError, match="target: an accuracy requires a study with validation samples"):
        compare("control", lambda seed: CONTROL, [RunSpec(single)], 1, Target("accuracy", 0.5))


def test_levels_that_are_asked_for_must_exist():
    with pytest.raises(ValueError, match="levels: 8 steps can be coarsened"):
        solve("control", CONTROL, RunSpec(levels=5))


@pytest.mark.parametrize(
    ("wrong", "message"),
    [
        (RunSpec(levels=5), "levels: 8 steps can be coarsened"),
        (RunSpec(steps=Adaptive(0.1, first=2), levels=3), "levels: 2 steps can be coarsened"),
        (RunSpec(batch_size=1), "method: mini-batches require one such as"),
        (RunSpec(smoother=TorchOptimizer(torch.optim.SGD), batch_size=9), "batches: expected a size of at most"),
    ],
)
def test_all_methods_are_checked_before_the_first_one_runs(wrong, message):
    saved = []
    with pytest.raises(ValueError, match=message):
        compare("control", lambda seed: CONTROL, [RunSpec(single), wrong], 1, save=saved.append)
    assert not saved


@pytest.mark.parametrize("method", METHODS.values(), ids=METHODS)
def test_a_run_can_choose_its_grid(method):
    result = solve("control", CONTROL, RunSpec(method, steps=Adaptive(2e-2, first=8)))
    assert result.status is Status.CONVERGED
    assert result.about["steps"] > 8
    assert result.about["discretization_error"] <= 2e-2 * result.value
    assert result.about["levels"] == (1 if method is single else 3)


def test_runs_that_choose_their_grids_can_be_compared():
    runs = [RunSpec(method, steps=Adaptive(2e-2, first=8)) for method in METHODS.values()]
    comparison = compare("control", lambda seed: CONTROL, runs, seeds=1)
    assert {results[0].status for results in comparison.runs.values()} == {Status.CONVERGED}
    assert len({results[0].about["steps"] for results in comparison.runs.values()}) == 1


def test_the_test_accuracy_of_a_chosen_grid_is_that_on_it():
    stop = Stop(max_iterations=300, tolerance=1e-2)
    result = solve("learning", learning(0), RunSpec(single, steps=Adaptive(0.5, first=2, limit=8), stop=stop))
    assert result.about["steps"] > 2
    assert result.test_accuracy == accuracy(learning(0).test, result)


def test_a_problem_without_control_is_solved_on_one_grid_whatever_the_method():
    decay = ControlProblem(
        lambda t, x, u, q: -q.k * x,
        torch.ones(1, 1),
        lambda x: (x - 0.5).square().sum(),
        control_size=0,
        parameters={"k": 0.1},
    )
    result = solve("decay", Study(decay, steps=8), RunSpec(mgopt))
    assert result.success
    assert (result.about["method"], result.about["levels"]) == ("single", 1)
    with pytest.raises(ValueError, match=r"levels: expected none for a problem without control, .* got 2"):
        solve("decay", Study(decay, steps=8), RunSpec(mgopt, levels=2))
