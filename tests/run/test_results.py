"""Results: what they hold, and how they are saved."""

import json
import pickle
from dataclasses import replace
from math import inf, isnan, nan

import pytest
import torch

from ocp import (
    LBFGS,
    MGOPT,
    Control,
    ControlProblem,
    ControlSpace,
    CrossEntropy,
    LeastSquares,
    Record,
    Result,
    RungeKutta,
    SolveError,
    Status,
    Stop,
    Study,
    Tableau,
    Target,
    TimeGrid,
    discretize,
    minimize,
    residual_network,
)
from ocp.optimize.descent import NonlinearCG
from ocp.problem.layers import Dense
from ocp.run.comparison import RunSpec, nested, solve
from ocp.space.transfer import depth

KEYS = {
    "problem",
    "method",
    "smoother",
    "steps",
    "levels",
    "seed",
    "dtype",
    "device",
    "status",
    "message",
    "value",
    "derivative_norm",
    "work_units",
    "seconds",
    "validation_accuracy",
    "test_accuracy",
    "history",
}
HISTORY_KEYS = {
    "iteration",
    "level",
    "work_units",
    "seconds",
    "value",
    "derivative_norm",
    "validation_accuracy",
}


def points(count, seed):
    x = torch.rand(count, 2, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)
    return residual_network(x, CrossEntropy((x[:, 0] > 0.5).long()), Dense(2))


LEARNING = Study(points(12, 0), steps=4, levels=2, validation=points(9, 1), test=points(9, 2))
CONTROL = Study(
    ControlProblem(
        lambda t, x, u: u - x**3,
        torch.ones(1, 1, dtype=torch.float32),
        LeastSquares(torch.zeros(1, 1), 2.0),
        running_cost=lambda t, x, u: u.square().sum(),
        control_size=1,
    ),
    steps=8,
    levels=3,
)
RALSTON = RungeKutta(Tableau("ralston", ((), (2 / 3,)), (1 / 4, 3 / 4), 2))
STUDIES = {"learning": LEARNING, "control": CONTROL}


@pytest.fixture(params=STUDIES.items(), ids=STUDIES.keys())
def solved(request):
    """The results of small runs."""
    name, study = request.param
    return solve(name, study, RunSpec(seed=3, stop=Stop(max_iterations=12)))


def record(**changes):
    fields = {"iteration": 0, "level": 0, "steps": 4, "work_units": 1.0, "seconds": 0.1, "value": 2.0}
    return Record(**{**fields, "derivative_norm": 3.0, **changes})


def made(**changes):
    """A result made by hand."""
    control = Control(ControlSpace(TimeGrid(2.0, 4), 1, 2), torch.arange(6, dtype=torch.float64))
    fields = {
        "control": control,
        "value": 2.0,
        "derivative_norm": 3.0,
        "status": Status.MAX_WORK,
        "message": "It is over.",
        "iterations": 7,
        "work_units": 1.0,
        "seconds": 0.1,
        "history": (record(),),
        "counts": {"corrections": 2, "refused": 0},
        "about": {"method": "mgopt", "steps": 4},
    }
    return Result(**{**fields, **changes})


def strict(path):
    """JSON without the words that JSON does not know."""

    def refuse(word):
        raise AssertionError(f"not JSON: {word}")

    return json.loads(path.read_text(), parse_constant=refuse)


def test_a_saved_result_has_the_keys_that_comparisons_rely_on(solved, tmp_path):
    saved = strict(solved.save(tmp_path) / "result.json")
    assert set(saved) >= KEYS
    assert all(set(line) >= HISTORY_KEYS for line in saved["history"])


def test_a_saved_result_says_what_was_run(tmp_path):
    result = solve("control", CONTROL, RunSpec(nested, NonlinearCG(), seed=3, stop=Stop(max_iterations=4)))
    saved = strict(result.save(tmp_path) / "result.json")
    said = {key: saved[key] for key in ("problem", "method", "smoother", "steps", "levels", "seed", "dtype", "device")}
    assert said == {
        "problem": "control",
        "method": "nested",
        "smoother": "NonlinearCG",
        "steps": 8,
        "levels": 3,
        "seed": 3,
        "dtype": "float32",
        "device": "cpu",
    }


def test_accuracies_are_there_for_learning_and_null_for_control(tmp_path):
    learning, control = (
        strict(solve(name, study, RunSpec(stop=Stop(max_iterations=3))).save(tmp_path / name) / "result.json")
        for name, study in STUDIES.items()
    )
    assert 0 < learning["validation_accuracy"] <= 1
    assert 0 < learning["test_accuracy"] <= 1
    assert 0 < learning["history"][0]["validation_accuracy"] <= 1
    assert control["validation_accuracy"] is control["test_accuracy"] is None
    assert control["history"][0]["validation_accuracy"] is None


def test_a_loaded_result_is_the_saved_one(solved, tmp_path):
    loaded = Result.load(solved.save(tmp_path))
    assert torch.equal(loaded.control.flat, solved.control.flat)
    assert loaded.control.space == solved.control.space
    assert replace(loaded, control=None) == replace(solved, control=None)


def test_a_folder_is_made_where_it_is_missing(tmp_path):
    folder = made().save(tmp_path / "a" / "b")
    assert sorted(path.name for path in folder.iterdir()) == ["control.pt", "result.json"]


def test_a_result_without_control_is_saved_and_loaded(tmp_path):
    result = made(control=None)
    folder = result.save(tmp_path)
    assert [path.name for path in folder.iterdir()] == ["result.json"]
    assert Result.load(folder) == result


def test_a_result_saved_over_another_replaces_it_whole(tmp_path):
    made().save(tmp_path)
    made(control=None).save(tmp_path)
    assert Result.load(tmp_path).control is None


@pytest.mark.parametrize("bad", [nan, inf, -inf])
@pytest.mark.parametrize("name", ["value", "derivative_norm"])
def test_numbers_that_are_not_finite_become_null_in_json_and_nan_again(name, bad, tmp_path):
    result = made(**{name: bad, "history": (record(), record(**{name: bad}))})
    folder = result.save(tmp_path)
    saved, loaded = strict(folder / "result.json"), Result.load(folder)
    assert saved[name] is saved["history"][1][name] is None
    assert isnan(getattr(loaded, name))
    assert isnan(getattr(loaded.history[1], name))
    assert loaded.history[0] == result.history[0]


@pytest.mark.parametrize("bad", [nan, inf])
def test_what_is_said_of_a_run_is_strict_json_too(bad, tmp_path):
    folder = made().describe(learning_rate=bad, limits={"max_work": bad}).save(tmp_path)
    assert strict(folder / "result.json")["learning_rate"] is None


def test_loading_executes_no_code(tmp_path):
    class Harm:
        def __reduce__(self):
            return (tmp_path.joinpath("harm").touch, ())

    folder = made().save(tmp_path)
    torch.save({"flat": Harm()}, folder / "control.pt")
    with pytest.raises(pickle.UnpicklingError):
        Result.load(folder)
    assert not (tmp_path / "harm").exists()


@pytest.mark.parametrize("name", ["status", "value", "history", "counts"])
def test_a_saved_result_with_a_field_missing_is_refused(name):
    values = made().to_dict()
    del values[name]
    with pytest.raises(ValueError, match=f"result: expected the fields of a saved result, got none for {name}"):
        Result.from_dict(values)


def test_more_can_be_said_of_a_run():
    result = made().describe(seed=3, method="nested")
    assert result.about == {"method": "nested", "steps": 4, "seed": 3}
    assert made().about == {"method": "mgopt", "steps": 4}


@pytest.mark.parametrize("status", list(Status))
def test_success_is_that_of_the_status(status):
    assert made(status=status).success is (status in (Status.CONVERGED, Status.TARGET))


@pytest.mark.parametrize("status", [Status.CONVERGED, Status.TARGET])
def test_a_success_that_is_required_is_the_result_itself(status):
    result = made(status=status)
    assert result.require_success() is result


@pytest.mark.parametrize("status", [s for s in Status if s not in (Status.CONVERGED, Status.TARGET)])
def test_a_success_that_is_required_and_missing_raises_with_the_result(status):
    result = made(status=status)
    with pytest.raises(SolveError, match=f"{status.name}: It is over.") as caught:
        result.require_success()
    assert caught.value.result is result


def test_every_status_has_a_sentence_of_its_own():
    sentences = [status.value for status in Status]
    assert len(set(sentences)) == len(sentences)
    assert all(sentence.endswith(".") and sentence[0].isupper() for sentence in sentences)


def test_a_result_prints_its_numbers():
    text = str(made())
    assert [line.split(":")[0].strip() for line in text.splitlines()] == [
        "status",
        "message",
        "value",
        "derivative norm",
        "work",
        "events",
    ]
    assert "MAX_WORK (success: False)" in text
    assert "events: 2 coarse corrections taken" in text
    assert "7 iterations" in text
    assert "refused" not in text


def test_the_norm_of_the_derivative_is_printed_relative_to_the_start_with_the_tolerance():
    text = str(made().describe(start_norm=6e3, tolerance=1e-6))
    assert "derivative norm: 3.000e+00, 5.0e-04 of the start's (tolerance 1e-06)" in text


@pytest.mark.parametrize("about", [{"start_norm": None, "tolerance": 1e-6}, {"start_norm": 2.0}, {"tolerance": 1.0}])
def test_only_the_norm_of_the_derivative_is_printed_where_nothing_else_is_known(about):
    assert "derivative norm: 3.000e+00\n" in str(made().describe(**about))


def test_the_target_is_printed_where_there_is_one():
    assert "target: value <= 2" in str(made().describe(target="value <= 2"))
    assert "target" not in str(made().describe(target=None))


def test_a_result_says_by_what_its_derivative_was_measured():
    result = minimize(CONTROL.problem, 8, LBFGS(), stop=Stop(tolerance=1e-3, target=Target("value", -1.0)))
    assert result.about["start_norm"] == result.history[0].derivative_norm
    assert (result.about["tolerance"], result.about["target"]) == (1e-3, "value <= -1")


def test_a_trajectory_is_that_of_the_control(solved):
    study = STUDIES[solved.about["problem"]]
    trajectory = solved.trajectory(study.problem)
    objective = discretize(study.problem, solved.about["steps"], solved.about["integrator"])
    assert torch.equal(trajectory.u, solved.control.path)
    assert torch.equal(trajectory.x, objective.trajectory(solved.control).x)
    assert objective.space.dual_norm(objective.derivative(solved.control)) == solved.derivative_norm


def test_a_trajectory_of_a_loaded_result_is_the_same(solved, tmp_path):
    problem = STUDIES[solved.about["problem"]].problem
    loaded = Result.load(solved.save(tmp_path))
    assert torch.equal(loaded.trajectory(problem).p, solved.trajectory(problem).p)


def test_a_result_knows_an_integrator_of_ones_own_until_it_is_saved(tmp_path):
    result = minimize(CONTROL.problem, 8, integrator=RALSTON)
    loaded = Result.load(result.save(tmp_path))
    expected = discretize(CONTROL.problem, 8, RALSTON).trajectory(result.control).x
    assert torch.equal(result.trajectory(CONTROL.problem).x, expected)
    assert torch.equal(loaded.trajectory(CONTROL.problem, RALSTON).x, expected)
    with pytest.raises(ValueError, match=r"integrator: expected the one with .* found \(ralston\), got None"):
        loaded.trajectory(CONTROL.problem)


@pytest.mark.parametrize("loaded", [False, True])
def test_a_trajectory_with_another_scheme_is_refused(loaded, tmp_path):
    result = minimize(CONTROL.problem, 8, integrator="heun")
    result = Result.load(result.save(tmp_path)) if loaded else result
    with pytest.raises(ValueError, match="integrator: expected heun, with which the result was found, got euler"):
        result.trajectory(CONTROL.problem, "euler")


@pytest.mark.parametrize("loaded", [False, True])
def test_a_problem_with_states_of_another_shape_has_no_trajectory(loaded, tmp_path):
    result = minimize(CONTROL.problem, 8)
    result = Result.load(result.save(tmp_path)) if loaded else result
    other = replace(CONTROL.problem, initial_state=torch.ones(1, 3), terminal_cost=lambda x: x.sum())
    with pytest.raises(ValueError, match=r"problem: expected one with states of shape \(1,\), got \(3,\)"):
        result.trajectory(other)


def test_a_trajectory_has_the_precision_of_the_problem():
    result = minimize(CONTROL.problem, 8)
    double = replace(CONTROL.problem, initial_state=torch.ones(1, 1).double(), terminal_cost=lambda x: x.sum())
    assert result.control.flat.dtype == torch.float32
    assert result.trajectory(double).x.dtype == torch.float64


@pytest.mark.parametrize(
    "problem",
    [
        ControlProblem(lambda t, x, u: x, torch.ones(1, 1).double(), lambda x: x.sum(), control_size=1),
        ControlProblem(lambda t, x, u: x, torch.ones(1, 1).double(), lambda x: x.sum(), horizon=2.0, control_size=1),
        ControlProblem(
            lambda t, x, u: x, torch.ones(1, 1).double(), lambda x, q: x.sum(), control_size=1, parameters=2
        ),
    ],
    ids=["parameters and horizon", "parameters", "horizon"],
)
def test_a_problem_that_does_not_fit_the_control_has_no_trajectory(problem):
    message = "problem: expected one with control size 1, parameter size 2 and horizon 2, got control size 1"
    with pytest.raises(ValueError, match=message):
        made().trajectory(problem, "euler")


def test_a_result_without_control_has_no_trajectory():
    with pytest.raises(ValueError, match="control: expected a result with its control, got none"):
        made(control=None).trajectory(CONTROL.problem)


def test_a_result_without_history_prints_as_well():
    assert "MAX_WORK" in str(made(history=()))


@pytest.mark.parametrize(
    ("text", "target"),
    [
        ("accuracy=0.95", Target("accuracy", 0.95)),
        ("value=-1.5", Target("value", -1.5)),
        ("value=1e-3", Target("value", 1e-3)),
    ],
)
def test_a_target_is_read_from_text(text, target):
    assert Target.parse(text) == target


@pytest.mark.parametrize(
    "text", ["", "accuracy", "accuracy=", "accuracy=high", "speed=3", "0.95", "=1", "value=1=2", "accuracy=nan"]
)
def test_text_that_is_no_target_is_refused(text):
    with pytest.raises(ValueError, match="target: expected accuracy=NUMBER or value=NUMBER"):
        Target.parse(text)


@pytest.mark.parametrize(
    ("target", "values", "first"),
    [
        (Target("accuracy", 0.9), [{"validation_accuracy": a} for a in (None, 0.5, 0.9, 0.7, 1.0)], 2),
        (Target("value", 0.5), [{"finest_value": v} for v in (None, nan, 0.6, 0.5, 0.1)], 3),
        (Target("value", 0.5), [{"value": 0.1, "finest_value": None}, {"finest_value": 0.4}], 1),
    ],
)
def test_a_target_is_reached_first_where_it_is_reached_on_the_finest_grid(target, values, first):
    history = tuple(record(iteration=k, **changes) for k, changes in enumerate(values))
    assert target.first(history).iteration == first


def test_a_target_that_is_not_reached_has_no_first_record():
    assert Target("accuracy", 0.9).first((record(), record(validation_accuracy=0.8))) is None


@pytest.mark.parametrize(
    ("target", "text"), [(Target("accuracy", 0.95), "accuracy >= 0.95"), (Target("value", 0.1), "value <= 0.1")]
)
def test_a_target_prints_as_an_inequality(target, text):
    assert str(target) == text


@pytest.mark.parametrize(
    ("counts", "said"),
    [
        ({"corrections": 1}, "1 coarse correction taken"),
        ({"refused": 2, "skipped": 1}, "2 coarse corrections refused, 1 coarse correction skipped"),
        ({"refused_grids": 1, "not_finite": 2}, "1 coarse grid refused, 2 values not finite"),
        ({"not_saved": 1, "hiccups": 3}, "1 checkpoint not written, 3 hiccups"),
        ({"corrections": 0}, "none"),
    ],
)
def test_events_are_printed_in_words(counts, said):
    assert f"events: {said}" in str(made(counts=counts))


@pytest.mark.parametrize(
    ("steps", "levels", "said"),
    [
        (97, depth(97, 1), "grid: 97 steps of euler"),
        (8, 3, "grids: 8, 4, 2 steps of euler"),
        (32, 6, "grids: 32, 16, ..., 1 steps of euler"),
        (1, 1, "grid: 1 step of euler"),
    ],
)
def test_the_grids_that_were_used_are_printed(steps, levels, said):
    assert f"{said}\n" in str(minimize(CONTROL.problem, steps, MGOPT(levels)))


def test_the_grid_on_which_a_run_ended_is_named_in_the_message():
    message = minimize(CONTROL.problem, 8, MGOPT(3), stop=Stop(max_iterations=0)).message
    assert "The run ended on a grid of 2 steps; from there its control was prolonged to the finest grid." in message


def test_an_accuracy_above_one_is_refused():
    with pytest.raises(ValueError, match="target: expected an accuracy of at most 1, got 95"):
        Target.parse("accuracy=95")
