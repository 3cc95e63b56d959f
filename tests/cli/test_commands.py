"""The command line."""

import json

import click
import pytest
from click.testing import CliRunner
from matplotlib.figure import Figure

from ocp import Result, Status
from ocp.cli import catalog
from ocp.cli.commands import main
from ocp.cli.help import GROUPS
from ocp.run.comparison import Comparison

CONTROL = '''
"""Steer a scalar to zero."""
import torch
from ocp import ControlProblem, LeastSquares, Study, Target

def problem(dtype=torch.float32, device="cpu", weight=1.0):
    x = torch.ones(1, 1, dtype=dtype, device=device)
    problem = ControlProblem(
        lambda t, x, u: u - x**3,
        x,
        LeastSquares(0 * x, weight),
        running_cost=lambda t, x, u: u.square().sum(),
        control_size=1,
    )
    return Study(problem, steps=8, levels=3, target=Target("value", 0.25))
'''
LEARNING = """
import torch
from ocp import CrossEntropy, Study, residual_network
from ocp.problem.layers import Dense

def points(seed):
    x = torch.rand(15, 2, generator=torch.Generator().manual_seed(seed), dtype=torch.float64) - 0.5
    return residual_network(x, CrossEntropy((x[:, 0] > x[:, 1]).long()), Dense(2))

def problem(seed=0):
    parts = (points(3 * seed + k) for k in range(3))
    return Study(next(parts), steps=4, levels=2, validation=next(parts), test=next(parts))
"""
CORRUPTED = """
import torch
from ocp import ControlProblem, FunctionDynamics

class Wrong(FunctionDynamics):
    def vjp(self, t, x, u, p):
        px, pu = super().vjp(t, x, u, p)
        return px, 1.01 * pu

def problem():
    dynamics = Wrong(lambda t, x, u: u - x**3, control_size=1)
    return ControlProblem(dynamics, torch.ones(1, 1).double(), lambda x: x.square().sum())
"""
SHAPES = """
import torch
from ocp import ControlProblem

def problem():
    return ControlProblem(lambda t, x, u: u, torch.ones(5, 2), lambda x: x.square().sum(), control_size=1)
"""
PRODUCT = """
import torch
from ocp import ControlProblem

def problem():
    weight = torch.ones(3, 3)
    return ControlProblem(lambda t, x, u: x @ weight, torch.ones(5, 2), lambda x: x.sum(), control_size=1)
"""
LABELS = """
import torch
from ocp import CrossEntropy, residual_network
from ocp.problem.layers import Dense

def problem():
    return residual_network(torch.rand(5, 2), CrossEntropy(torch.tensor([0, 1, 1])), Dense(2))
"""
NOT_A_NUMBER = """
import torch
from ocp import CrossEntropy, residual_network
from ocp.problem.layers import Dense

def problem():
    x = torch.rand(5, 2)
    x[3, 1] = float("nan")
    return residual_network(x, CrossEntropy(torch.tensor([0, 1, 1, 0, 0])), Dense(2))
"""
COUNTED = """
calls = []

def f(t, x, u):
    calls.append({}["missing"] if len(calls) > 300 else t)
    return u - x**3

def problem"""
SIMPLE = """
import torch
from ocp import ControlProblem

def problem():
    return ControlProblem(lambda t, x, u: u - x, torch.ones(1, 1).double(), lambda x: x.square().sum(), control_size=1)
"""
SEVEN_STEPS = CONTROL.replace("steps=8", "steps=7")
BROKEN = """
def problem():
    return {}["missing"]
"""


def invoke(*arguments):
    return CliRunner().invoke(main, [str(argument) for argument in arguments])


def leave_figures_empty(patch):
    """Let figures be composed and saved, but not drawn, which takes longer than all the rest."""
    patch.setattr(Figure, "draw", lambda figure, renderer: None)


@pytest.fixture
def call_and_draw(tmp_path, monkeypatch):
    """Call the command in an empty folder."""
    monkeypatch.chdir(tmp_path)
    return invoke


@pytest.fixture
def call(call_and_draw, monkeypatch):
    """Call the command in an empty folder, in which it saves empty figures."""
    leave_figures_empty(monkeypatch)
    return call_and_draw


def complaint(result):
    """What a mistake leaves on the terminal, which has to be one line of its own making."""
    assert isinstance(result.exception, SystemExit), repr(result.exception)
    assert result.exit_code != 0
    assert "Traceback" not in result.output
    errors = [line for line in result.output.splitlines() if line.startswith("Error:")]
    assert len(errors) == 1
    assert result.output.splitlines()[-1] == errors[0]
    return errors[0]


def test_list_shows_every_problem_with_its_summary(call):
    result = call("list")
    assert result.exit_code == 0
    assert [line.split(maxsplit=1)[0] for line in result.output.splitlines()] == list(catalog.names())
    assert [line.split(maxsplit=1)[1] for line in result.output.splitlines()] == list(catalog.summaries().values())


@pytest.mark.parametrize("command", [(), ("list",), ("verify",), ("solve",), ("compare",), ("plot",)])
def test_every_command_explains_itself(call, command):
    result = call(*command, "--help")
    assert result.exit_code == 0
    assert result.output.startswith("Usage:")


def test_the_version_is_printed(call):
    assert call("--version").exit_code == 0


@pytest.mark.parametrize("text", [CONTROL, LEARNING], ids=["control", "learning"])
def test_verify_prints_the_report_and_passes_what_is_right(call, write, text):
    result = call("verify", write(text), "--steps", 4)
    assert result.exit_code == 0
    assert result.output.splitlines()[-1] == "All checks passed."


def test_verify_exits_with_one_where_a_derivative_is_wrong(call, write):
    result = call("verify", write(CORRUPTED), "--steps", 4)
    assert result.exit_code == 1
    assert "checks FAILED." in result.output.splitlines()[-1]
    assert "Traceback" not in result.output


@pytest.mark.parametrize(("text", "passed"), [(CONTROL, True), (CORRUPTED, False)])
def test_verify_writes_its_report_whatever_the_verdict(call, write, tmp_path, text, passed):
    file = write(text)
    for _ in range(2):  # an earlier report is replaced
        call("verify", file, "--steps", 4, "--json", tmp_path / "report.json")
    saved = json.loads((tmp_path / "report.json").read_text())
    assert saved["passed"] is passed
    assert saved["problem"] == file
    assert {"name", "measured", "expected", "passed"} == set(saved["checks"][0])


def test_verify_uses_double_precision_where_it_can_be_chosen(call, write):
    assert "<= 1e-11" in call("verify", write(CONTROL)).output


def test_verify_takes_steps_integrator_seed_and_arguments(call, write):
    one, other = (
        call("verify", write(CONTROL), "--steps", 4, "--integrator", "rk4", "--seed", 1, "--set", f"weight={weight}")
        for weight in (1.0, 2.0)
    )
    assert one.exit_code == other.exit_code == 0
    assert one.output != other.output


@pytest.mark.parametrize("method", ["single", "nested", "mgopt"])
def test_solve_writes_result_control_and_figure(call, write, tmp_path, method):
    out = tmp_path / "a" / "out"
    result = call("solve", write(CONTROL), "--method", method, "--out", out)
    assert result.exit_code == 0, result.output
    files = ["control.pt", "convergence.png", "grids.png", "result.json", "trajectory.csv", "trajectory.png"]
    assert sorted(path.name for path in out.iterdir()) == files
    saved = Result.load(out)
    assert saved.success
    assert saved.about["method"] == method
    assert saved.control.space.grid.steps == 8
    assert f"written to: {out}" in result.output


def test_the_figures_of_a_run_can_be_drawn(call_and_draw, write, tmp_path):
    result = call_and_draw("solve", write(CONTROL), "--max-iterations", 3, "--out", tmp_path)
    assert result.exit_code == 0, result.output
    for name in ("convergence", "grids", "trajectory"):
        assert (tmp_path / f"{name}.png").stat().st_size > 20_000


def test_results_go_to_a_folder_named_after_the_problem(call, write, tmp_path):
    assert call("solve", write(CONTROL), "--max-iterations", 2).exit_code == 0
    assert call("compare", write(CONTROL), "--max-iterations", 2, "--methods", "single").exit_code == 0
    assert (tmp_path / "ocp-out" / "mine" / "mgopt" / "result.json").exists()
    assert (tmp_path / "ocp-out" / "mine" / "compare" / "compare.json").exists()


def test_solve_writes_the_trajectory_of_a_single_sample(call, write, tmp_path):
    out = tmp_path / "out"
    result = call("solve", write(CONTROL), "--out", out)
    header, *rows = (out / "trajectory.csv").read_text().splitlines()
    assert header == "t,u1,x1,p1"
    assert len(rows) == 9
    assert (out / "trajectory.png").read_bytes().startswith(b"\x89PNG")
    assert "trajectory.csv, trajectory.png" in result.output


def test_solve_leaves_no_trajectory_of_another_problem_behind(call, write, tmp_path):
    options = ["--max-iterations", 1, "--overwrite", "--out", tmp_path / "out"]
    call("solve", write(CONTROL), *options)
    result = call("solve", write(LEARNING, "other.py"), *options)
    assert sorted(path.name for path in (tmp_path / "out").iterdir()) == [
        "control.pt",
        "convergence.png",
        "grids.png",
        "result.json",
    ]
    assert "trajectory" not in result.output


def test_solve_compares_the_value_with_the_known_optimum(call, write, tmp_path):
    file = write(CONTROL.replace("levels=3", "levels=3, optimum=0.125"))
    result = call("solve", file, "--out", tmp_path / "out")
    assert "known optimum: 0.125 (of the continuous problem)" in result.output
    assert f"value - optimum: {Result.load(tmp_path / 'out').value - 0.125:.2e}" in result.output


def test_solve_prints_its_tests(call, write):
    result = call("solve", write(CONTROL), "--tolerance", 1e-4, "--target", "value=0.001")
    assert "of the start's (tolerance 0.0001)" in result.output
    assert "target: value <= 0.001" in result.output


def test_solve_prints_how_the_run_ended_and_the_accuracies(call, write):
    result = call("solve", write(LEARNING), "--max-iterations", 20)
    assert "status: MAX_ITERATIONS" in result.output
    assert "validation accuracy: " in result.output
    assert "test accuracy: " in result.output


def test_solve_takes_its_options(call, write, tmp_path):
    options = {
        "--method": "nested",
        "--smoother": "adam",
        "--learning-rate": 0.05,
        "--steps": 12,
        "--levels": 2,
        "--integrator": "heun",
        "--max-work": 20,
        "--max-iterations": 1000,
        "--tolerance": 1e-3,
        "--dtype": "float64",
        "--device": "cpu",
        "--set": "weight=3",
        "--out": tmp_path / "out",
    }
    result = call("solve", write(CONTROL), "--quiet", *(part for pair in options.items() for part in pair))
    assert result.exit_code == 0, result.output
    about = Result.load(tmp_path / "out").about
    expected = {"steps": 12, "levels": 2, "integrator": "heun", "dtype": "float64", "smoother": "Adam", "seed": 0}
    assert {key: about[key] for key in expected} == expected


@pytest.mark.parametrize("method", ["single", "mgopt"])
def test_solve_refines_the_grid_until_the_error_asked_for(call, write, tmp_path, method):
    options = ["--grid-error", 2e-2, "--steps", 8, "--dtype", "float64", "--method", method]
    result = call("solve", write(CONTROL), *options, "--out", tmp_path / "out")
    assert result.exit_code == 0, result.output
    saved = Result.load(tmp_path / "out")
    error, steps = saved.about["discretization_error"], saved.about["steps"]
    assert saved.history[0].steps <= 8 < steps == saved.control.space.grid.steps
    assert error <= 2e-2 * saved.value
    assert f"discretization error: {error:.2e} (estimated, on {steps} steps)" in result.output


def test_the_first_grid_is_that_of_the_study(call, write, tmp_path):
    call("solve", write(CONTROL), "--grid-error", 0.5, "--method", "single", "--out", tmp_path / "out")
    assert Result.load(tmp_path / "out").history[0].steps == 8


def test_without_a_grid_error_none_is_printed(call, write):
    assert "discretization error" not in call("solve", write(CONTROL)).output


@pytest.mark.parametrize("error", [0, -1.0, "nan", "inf"])
def test_a_grid_error_that_makes_no_sense_is_refused(call, write, error):
    result = call("solve", write(CONTROL), "--grid-error", error)
    assert "error: expected a finite number > 0" in complaint(result)


def test_a_grid_error_with_mini_batches_is_refused(call, write):
    options = ["--grid-error", 0.1, "--smoother", "adam", "--batch-size", 4]
    assert "steps: mini-batches require a number of steps" in complaint(call("solve", write(LEARNING), *options))


def test_solve_stops_at_its_target(call, write, tmp_path):
    call("solve", write(CONTROL), "--target", "value=0.3", "--out", tmp_path / "out")
    saved = Result.load(tmp_path / "out")
    assert saved.status.name == "TARGET"
    assert saved.value <= 0.3


def test_solve_stops_at_its_target_of_accuracy(call, write, tmp_path):
    call("solve", write(LEARNING), "--target", "accuracy=0.7", "--out", tmp_path / "out")
    saved = Result.load(tmp_path / "out")
    assert saved.status.name == "TARGET"
    assert saved.validation_accuracy >= 0.7


def test_solve_takes_mini_batches(call, write, tmp_path):
    options = ["--smoother", "adam", "--batch-size", 4, "--max-iterations", 30, "--out", tmp_path / "out"]
    result = call("solve", write(LEARNING), *options)
    assert result.exit_code == 0, result.output
    assert Result.load(tmp_path / "out").history[-1].iteration == 30


def test_a_run_without_success_is_no_error(call, write):
    result = call("solve", write(CONTROL), "--max-iterations", 1)
    assert result.exit_code == 0
    assert "success: False" in result.output


def test_compare_prints_a_table_and_writes_what_it_found(call, write, tmp_path):
    options = ["--seeds", 2, "--target", "accuracy=0.4", "--max-iterations", 30, "--out", tmp_path / "out"]
    result = call("compare", write(LEARNING), *options)
    assert result.exit_code == 0, result.output
    assert sorted(path.name for path in (tmp_path / "out").iterdir()) == ["compare.json", "convergence.png"]
    rows = [line.split()[0] for line in result.output.splitlines() if "2 of 2" in line]
    assert rows == ["single", "nested", "mgopt"]
    assert "accuracy >= 0.4" in result.output


def test_compare_takes_the_target_of_the_study_and_one_run_where_there_is_no_seed(call, write, tmp_path):
    result = call("compare", write(CONTROL), "--methods", "single", "--out", tmp_path / "out")
    assert result.exit_code == 0, result.output
    assert "value <= 0.25" in result.output
    assert "1 of 1" in result.output


def test_compare_shows_a_missed_target_as_a_failure(call, write, tmp_path):
    options = ["--methods", "single, mgopt", "--seeds", 1, "--target", "value=0.001", "--out", tmp_path / "out"]
    result = call("compare", write(CONTROL), *options)
    assert result.exit_code == 0, result.output
    rows = [line for line in result.output.splitlines() if "0 of 1" in line]
    assert [(row.split()[0], row.count("missed")) for row in rows] == [("single", 2), ("mgopt", 2)]
    saved = json.loads((tmp_path / "out" / "compare.json").read_text())
    assert [run["method"] for run in saved["runs"]] == ["single", "mgopt"]
    assert {run["work_units_to_target"] for run in saved["runs"]} == {None}


def test_compare_keeps_the_finished_runs_when_a_later_one_fails(call, write, tmp_path):
    text = LEARNING.replace("parts = (", "assert seed == 0, 'only the first seed'\n    parts = (")
    options = ["--methods", "single", "--seeds", 2, "--max-iterations", 3, "--out", tmp_path / "out"]
    assert call("compare", write(text), *options).exit_code != 0
    assert len(Comparison.load(tmp_path / "out").runs["single"]) == 1


@pytest.fixture(scope="module")
def saved(tmp_path_factory):
    """Folders with saved results: of one run, of another, of a comparison."""
    folder = tmp_path_factory.mktemp("saved")
    (folder / "mine.py").write_text(CONTROL)
    commands = {"one": ("solve", "--method", "single"), "two": ("solve",), "three": ("compare", "--seeds", "1")}
    with pytest.MonkeyPatch.context() as patch:
        leave_figures_empty(patch)
        for name, (command, *options) in commands.items():
            invoke(command, folder / "mine.py", *options, "--out", folder / name)
    return tuple(folder / name for name in commands)


@pytest.mark.parametrize("which", [(0,), (2,), (0, 1), (0, 1, 2)])
def test_plot_draws_saved_results_into_one_figure(call, saved, tmp_path, which):
    result = call("plot", *(saved[k] for k in which), "--out", tmp_path / "figure.png")
    assert result.exit_code == 0, result.output
    assert (tmp_path / "figure.png").read_bytes().startswith(b"\x89PNG")


MISTAKES = {
    "shapes": ("solve", SHAPES, [], "dynamics: expected"),
    "shapes of a product": ("solve", PRODUCT, [], "dynamics: expected"),
    "labels": ("solve", LABELS, [], "labels: expected one for each row"),
    "data": ("solve", NOT_A_NUMBER, [], "inputs: expected finite numbers, got 1 of 10"),
    "steps": (
        "solve",
        SEVEN_STEPS,
        ["--levels", "3"],
        "levels: 7 steps can be coarsened by 2 only to 7, not to 3 levels",
    ),
    "steps of a comparison": ("compare", SEVEN_STEPS, ["--levels", "3"], "levels: 7 steps can be coarsened"),
    "steps for verify": ("verify", SHAPES, [], "dynamics: expected"),
    "no function": ("solve", "x = 1", [], "to define a function problem()"),
    "nothing returned": ("verify", "def problem(): pass", [], "got NoneType"),
    "nonsense returned": ("compare", "def problem(): return 7", [], "got int"),
    "arguments": ("solve", "def problem(width): return width", [], "mine.py: expected a value for width, got none"),
    "target": ("solve", CONTROL, ["--target", "fast"], "target: expected accuracy=NUMBER or value=NUMBER"),
    "target of a comparison": ("compare", CONTROL, ["--target", "value=low"], "target: expected"),
    "accuracy without data": ("solve", CONTROL, ["--target", "accuracy=0.9"], "target: an accuracy requires"),
    "method": ("solve", CONTROL, ["--method", "newton"], "'newton' is not one of"),
    "methods": ("compare", CONTROL, ["--methods", "single,newton"], "method: expected one of single, nested, mgopt"),
    "methods twice": ("compare", CONTROL, ["--methods", "single,single"], "runs: expected"),
    "smoother": ("solve", CONTROL, ["--smoother", "newtonn"], "'newtonn' is not one of"),
    "integrator": ("verify", CONTROL, ["--integrator", "leapfrog"], "'leapfrog' is not one of"),
    "device": ("solve", CONTROL, ["--device", "abacus"], "device: expected an available device, got 'abacus'"),
    "device number": ("solve", CONTROL, ["--device", "cuda:99"], "device: expected an available device, got 'cuda:99'"),
    "device not taken": ("solve", LEARNING, ["--device", "cpu"], "expected options among seed, got device"),
    "dtype": ("solve", CONTROL, ["--dtype", "float16"], "'float16' is not one of"),
    "dtype not taken": ("solve", LEARNING, ["--dtype", "float64"], "expected options among seed, got dtype"),
    "argument not taken": (
        "solve",
        CONTROL,
        ["--set", "width=3"],
        "expected options among dtype, device, weight, got width",
    ),
    "no argument": ("solve", CONTROL, ["--set", "weight"], "set: expected KEY=VALUE"),
    "seed as an argument": ("solve", LEARNING, ["--set", "seed=3"], "set: expected KEY=VALUE, and no seed"),
    "no Python": ("solve", "def problem(:", [], "to be Python"),
    "number": ("solve", CONTROL, ["--steps", "0"], "0 is not in the range"),
    "seeds": ("compare", CONTROL, ["--seeds", "0"], "0 is not in the range"),
}


@pytest.mark.parametrize(("command", "text", "options", "message"), MISTAKES.values(), ids=MISTAKES.keys())
def test_a_mistake_gives_one_clear_line(call, write, command, text, options, message):
    assert message in complaint(call(command, write(text), *options))


@pytest.mark.parametrize("command", ["solve", "verify", "compare"])
@pytest.mark.parametrize(
    ("name", "message"),
    [("missing.py", "problem: expected an existing file"), ("spyral", "did you mean spiral?")],
)
def test_a_problem_that_is_not_there_gives_one_clear_line(call, command, name, message):
    assert message in complaint(call(command, name))


def test_an_unknown_command_gives_one_clear_line(call):
    assert "No such command 'train'" in complaint(call("train"))


@pytest.mark.parametrize(
    ("name", "setting", "message"),
    [
        ("spiral", "width=abc", "width: expected an integer >= 1, got 'abc'"),
        ("spiral", "width=0", "width: expected an integer >= 1, got 0"),
        ("peaks", "samples=2.5", "samples: expected an integer >= 1, got 2.5"),
        ("digits", "data_seed=-1", "data_seed: expected an integer >= 0, got -1"),
        ("burgers", "alpha=small", "alpha: expected a number, as its default is 0.05, got 'small'"),
    ],
)
def test_an_argument_that_does_not_fit_a_problem_of_ours_gives_one_clear_line(call, name, setting, message):
    assert message in complaint(call("solve", name, "--set", setting))


@pytest.mark.parametrize(
    ("command", "options", "got"),
    [
        ("solve", ["--method", "single"], "single"),
        ("solve", ["--smoother", "newton"], "mgopt"),
        ("compare", ["--methods", "interior,nested"], "nested"),
    ],
)
def test_a_method_that_keeps_no_constraints_gives_one_clear_line(call, command, options, got):
    message = f"method: the problem has constraints; expected interior or augmented, got {got}"
    assert message in complaint(call(command, "goddard", *options))


OUTPUTS = {
    "solve into a file": ("solve", "--out", "file"),
    "solve below a file": ("solve", "--out", "file/below"),
    "solve with checkpoints into a file": ("solve", "--checkpoint", "file"),
    "solve with checkpoints below a file": ("solve", "--checkpoint", "file/below"),
    "compare below a file": ("compare", "--out", "file/below"),
    "verify into a folder": ("verify", "--json", "folder"),
    "verify below a file": ("verify", "--json", "file/below/report.json"),
}


@pytest.mark.parametrize(("command", "option", "path"), OUTPUTS.values(), ids=OUTPUTS.keys())
def test_an_output_that_cannot_be_written_gives_one_clear_line(call, write, tmp_path, command, option, path):
    (tmp_path / "file").write_text("in the way")
    (tmp_path / "folder").mkdir()
    assert path.split("/")[0] in complaint(call(command, write(CONTROL), option, tmp_path / path))


@pytest.mark.parametrize("command", ["solve", "compare"])
def test_an_output_that_cannot_be_written_is_reported_before_the_run(call, write, tmp_path, monkeypatch, command):
    monkeypatch.setattr("ocp.run.comparison.minimize", lambda *arguments, **options: pytest.fail("it ran"))
    (tmp_path / "file").write_text("in the way")
    place = tmp_path / "file" / "below"
    message = f"out: expected a folder that can be written to, got {place} (Not a directory)"
    assert message in complaint(call(command, write(CONTROL), "--out", place))


@pytest.mark.parametrize(("command", "option", "work"), [("verify", "--json", "verify"), ("plot", "--out", "Result")])
def test_a_file_that_cannot_be_written_is_reported_before_the_work(
    call, write, saved, tmp_path, monkeypatch, command, option, work
):
    monkeypatch.setattr(f"ocp.cli.commands.{work}", None)
    (tmp_path / "file").write_text("in the way")
    place = tmp_path / "file" / "below"
    what = write(CONTROL) if command == "verify" else saved[0]
    message = f"{option[2:]}: expected a path in an existing folder, got {place}; there is no folder {place}"
    assert message in complaint(call(command, what, option, place / "name"))


def test_an_empty_folder_for_checkpoints_gives_one_clear_line(call, write):
    assert "folder: expected a path, got ''" in complaint(call("solve", write(CONTROL), "--checkpoint", ""))


def test_the_default_output_in_the_way_gives_one_clear_line(call, write, tmp_path):
    (tmp_path / "ocp-out").write_text("in the way")
    assert "ocp-out" in complaint(call("solve", write(CONTROL), "--max-iterations", 1))


@pytest.mark.parametrize(
    ("name", "content"),
    [("result.json", "{"), ("result.json", "{}"), ("result.json", "[1]"), ("compare.json", "nonsense"), ("other", "")],
)
def test_a_folder_without_results_gives_one_clear_line(call, tmp_path, name, content):
    (tmp_path / "folder").mkdir()
    (tmp_path / "folder" / name).write_text(content)
    assert "expected" in complaint(call("plot", tmp_path / "folder")).lower()


def test_a_folder_that_is_missing_gives_one_clear_line(call, tmp_path):
    assert "does not exist" in complaint(call("plot", tmp_path / "missing"))


def test_a_figure_of_an_unknown_kind_gives_one_clear_line(call, saved, tmp_path):
    assert "xyz" in complaint(call("plot", saved[0], "--out", tmp_path / "figure.xyz"))


USER_ERRORS = {
    "a missing package": ("import torch\nimport nowhere_to_be_found\n", "line 2: ModuleNotFoundError: No module named"),
    "an exception at import": ("x = 1\nassert x == 2, 'mine'\n", "line 2: AssertionError: mine"),
    "an exit at import": ("import sys\nsys.exit(0)\n", "line 2: SystemExit: 0"),
    "a key": (BROKEN, "line 3, in problem(): KeyError: 'missing'"),
    "a value": ("def problem():\n    raise ValueError('mine')\n", "line 2, in problem(): ValueError: mine"),
}


@pytest.mark.parametrize("command", ["solve", "verify", "compare"])
@pytest.mark.parametrize(("text", "message"), USER_ERRORS.values(), ids=USER_ERRORS.keys())
def test_an_error_in_a_users_file_gives_one_line_with_its_place(call, write, command, text, message):
    assert f"Error: mine.py, {message}" in complaint(call(command, write(text)))


@pytest.mark.parametrize("folder", ["", "ocp", "problems"])
def test_a_users_file_may_lie_in_any_folder(call, tmp_path, write, folder):
    (tmp_path / folder).mkdir(exist_ok=True)
    file = write(USER_ERRORS["a value"][0], f"{folder}/mine.py".lstrip("/"))
    assert "Error: mine.py, line 2, in problem(): ValueError: mine" in complaint(call("solve", file))


def test_an_error_below_a_users_file_comes_with_the_way_there(call, write):
    result = call("solve", write("import json\n\ndef problem():\n    return json.loads('{')\n"))
    assert result.exit_code == 1
    assert result.output.startswith("Traceback (most recent call last):\n  File")
    assert "mine.py" in result.output.splitlines()[1]  # our own frames come before, and are left out
    assert result.output.splitlines()[-1].startswith("Error: mine.py, line 4, in problem(): json.decoder.JSONDecode")


def test_an_argument_that_a_users_function_cannot_take_is_named(call, write):
    text = "def problem(weight=None):\n    return weight + 1\n"
    message = "Error: mine.py, line 2, in problem(weight='abc'): TypeError: can only concatenate str"
    assert message in complaint(call("solve", write(text), "--set", "weight=abc"))


KINDS = {
    "a text for a number": ("weight=abc", "weight: expected a number, as its default is 1.0, got 'abc'"),
    "a text for a truth value": ("flag=false", "flag: expected True or False, as its default is False, got 'false'"),
    "a number for a truth value": ("flag=0", "flag: expected True or False, as its default is False, got 0"),
}


@pytest.mark.parametrize(("setting", "message"), KINDS.values(), ids=KINDS.keys())
def test_an_argument_of_another_kind_than_its_default_gives_one_clear_line(call, write, setting, message):
    text = CONTROL.replace("weight=1.0", "weight=1.0, flag=False")
    assert message in complaint(call("solve", write(text), "--set", setting))


def test_an_error_in_the_users_functions_in_a_run_keeps_its_traceback(call, write):
    text = CONTROL.replace("\ndef problem", COUNTED).replace("lambda t, x, u: u - x**3", "f")
    result = call("solve", write(text), "--smoother", "gd", "--tolerance", 0, "--max-iterations", 1000)
    assert isinstance(result.exception, KeyError)


def flat(folder):
    return Result.load(folder).control.flat


def test_a_solve_goes_on_from_its_checkpoint_to_the_same_end(call, write, tmp_path):
    name, saves = write(CONTROL), tmp_path / "saves"
    call("solve", name, "--out", tmp_path / "whole")
    call("solve", name, "--max-iterations", 3, "--checkpoint", saves, "--every", 1, "--out", tmp_path / "part")
    assert sorted(path.name for path in saves.glob("*.ocp")) == [f"{k:09d}.ocp" for k in (1, 2, 3)]
    resumed = call("solve", name, "--checkpoint", saves, "--resume", "--out", tmp_path / "rest")
    assert resumed.exit_code == 0, resumed.output
    assert flat(tmp_path / "rest").equal(flat(tmp_path / "whole"))
    first = call(
        "solve", name, "--checkpoint", saves, "--resume-from", saves / "000000001.ocp", "--out", tmp_path / "rest"
    )
    assert first.exit_code == 1  # it is no longer there
    assert "resume:" in first.output


def test_a_new_solve_on_a_folder_with_checkpoints_is_refused_in_one_line(call, write, tmp_path):
    name = write(CONTROL)
    call("solve", name, "--checkpoint", tmp_path / "saves", "--out", tmp_path)
    result = call("solve", name, "--checkpoint", tmp_path / "saves", "--out", tmp_path)
    assert result.exit_code == 1
    assert result.output.startswith("Error: checkpoint: expected a folder without checkpoints for a new run")


def test_a_checkpoint_of_another_problem_is_named(call, write, tmp_path):
    options = ["--checkpoint", tmp_path / "saves", "--resume", "--max-iterations", 1]
    call("solve", write(CONTROL), *options, "--out", tmp_path / "one")
    message = complaint(call("solve", write(CONTROL, "other.py"), *options, "--out", tmp_path / "two"))
    one, other, path = tmp_path / "mine.py", tmp_path / "other.py", tmp_path / "saves" / "000000001.ocp"
    assert message.endswith(f"expected the name as in {path}, {one}, seed 0, got {other}, seed 0")


def test_an_earlier_result_of_other_options_is_kept(call, write, tmp_path):
    file, out = write(CONTROL), tmp_path / "out"
    call("solve", file, "--max-iterations", 2, "--out", out)
    before = (out / "result.json").read_bytes()
    message = complaint(call("solve", file, "--max-iterations", 3, "--steps", 4, "--out", out))
    assert f"out: expected a folder of this run, got {out}, which has a result with other options" in message
    assert "(max-iterations: 2, not 3, steps: default, not 4); use --overwrite or another --out" in message
    assert (out / "result.json").read_bytes() == before
    assert call("solve", file, "--max-iterations", 3, "--overwrite", "--out", out).exit_code == 0
    assert Result.load(out).iterations == 3


def test_the_same_options_replace_an_earlier_result(call, write, tmp_path):
    for watched in ((), ("--quiet", "--check")):
        result = call("solve", write(CONTROL), "--max-iterations", 2, *watched, "--out", tmp_path / "out")
        assert result.exit_code == 0, result.output


def test_a_resumed_run_with_another_limit_replaces_its_result(call, write, tmp_path):
    file, saves = write(CONTROL), ["--checkpoint", tmp_path / "saves", "--resume", "--out", tmp_path / "out"]
    for limit in (2, 3):
        assert call("solve", file, "--max-iterations", limit, *saves).exit_code == 0
    assert "steps: default, not 4" in complaint(call("solve", file, "--steps", 4, *saves))


def test_an_earlier_comparison_of_other_options_is_kept(call, write, tmp_path):
    options = ["compare", write(CONTROL), "--methods", "single", "--out", tmp_path / "out", "--max-iterations"]
    assert call(*options, 2).exit_code == call(*options, 2).exit_code == 0
    assert "max-iterations: 2, not 3" in complaint(call(*options, 3))
    assert Comparison.load(tmp_path / "out").runs["single"][0].iterations == 2
    assert call(*options, 3, "--overwrite").exit_code == 0


@pytest.mark.parametrize("name", ["trajectory.csv", "convergence.png"])
def test_files_that_are_not_ours_are_kept(call, write, tmp_path, name):
    (tmp_path / name).write_text("mine")
    message = complaint(call("solve", write(CONTROL), "--max-iterations", 1, "--out", tmp_path))
    assert f"which has {name} from elsewhere" in message
    assert (tmp_path / name).read_text() == "mine"


def test_a_report_replaces_nothing_but_a_report(call, write):
    file = write(CONTROL)
    assert "json: expected a new file or an earlier report" in complaint(call("verify", file, "--json", file))


FAR = {
    "verify": ("verify", "--json", "report.json"),
    "solve": ("solve", "--out", "out"),
    "checkpoints": ("solve", "--checkpoint", "saves"),
    "compare": ("compare", "--out", "out"),
}


@pytest.mark.parametrize(("command", "option", "name"), FAR.values(), ids=FAR.keys())
def test_no_folder_is_created_for_a_path_that_leads_elsewhere(call, write, tmp_path, command, option, name):
    missing = tmp_path.parent / "mistyped"
    message = complaint(call(command, write(CONTROL), option, missing / name))
    assert f"{option[2:]}: expected a path in an existing folder, got" in message
    assert f"there is no folder {missing}" in message
    assert not missing.exists()


def test_a_plot_of_several_problems_is_refused_with_their_names(call, write, saved, tmp_path):
    other = write(CONTROL, "other.py")
    call("solve", other, "--max-iterations", 1, "--out", tmp_path / "out")
    message = complaint(call("plot", saved[0], saved[2], tmp_path / "out"))
    assert "results: expected those of one problem, got" in message
    assert f"{saved[0].parent / 'mine.py'} (" in message
    assert f"{other} ({tmp_path / 'out'}: mgopt)" in message


def test_a_plot_of_one_problem_with_other_settings_is_refused(call, write, tmp_path):
    for weight in (1, 2):
        options = ["--max-iterations", 1, "--set", f"weight={weight}", "--out", tmp_path / f"{weight}"]
        call("compare", write(CONTROL), *options, "--methods", "single")
    assert "mine.py, weight=2" in complaint(call("plot", tmp_path / "1", tmp_path / "2"))


def test_results_below_a_folder_are_plotted(call, write, tmp_path):
    call("solve", write(CONTROL), "--max-iterations", 1)
    call("compare", write(CONTROL), "--max-iterations", 1, "--methods", "single")
    for folder in ("ocp-out/mine", "ocp-out"):
        assert call("plot", folder, "--out", "figure.png").exit_code == 0
        assert (tmp_path / "figure.png").exists()
        (tmp_path / "figure.png").unlink()
    (tmp_path / "empty").mkdir()
    message = "folder: expected results of ocp solve or ocp compare, got empty, which has none"
    assert message in complaint(call("plot", "empty"))


WITHOUT_EFFECT = {
    "a rate without a smoother": (
        "solve",
        CONTROL,
        ["--learning-rate", "0.1"],
        "learning-rate: requires --smoother adam",
    ),
    "a rate of a search": (
        "compare",
        CONTROL,
        ["--smoother", "lbfgs", "--learning-rate", "0.1"],
        "learning-rate: requires --smoother adam or sgd, got lbfgs",
    ),
    "a batch with a search": ("solve", LEARNING, ["--batch-size", "4"], "method: mini-batches require one such as"),
    "a batch with Newton": (
        "compare",
        LEARNING,
        ["--batch-size", "4", "--smoother", "newton"],
        "got NewtonCG, which compares the objectives of successive steps",
    ),
    "a batch larger than the data": (
        "solve",
        LEARNING,
        ["--smoother", "adam", "--batch-size", "16"],
        "batches: expected a size of at most the 15 samples, got 16",
    ),
    "levels of one grid": ("solve", CONTROL, ["--method", "single", "--levels", "2"], "levels: expected none for"),
    "levels of one grid, compared": (
        "compare",
        CONTROL,
        ["--methods", "single", "--levels", "2"],
        "levels: expected none for the method single",
    ),
    "a seed that is not taken": ("solve", CONTROL, ["--seed", "1"], "seed: without effect, since problem() of"),
    "seeds that are not taken": ("compare", CONTROL, ["--seeds", "2"], "seeds: without effect, since problem() of"),
    "every without checkpoints": ("solve", CONTROL, ["--every", "2"], "every: --every requires --checkpoint FOLDER"),
    "resume without checkpoints": ("solve", CONTROL, ["--resume"], "resume: --resume and --resume-from require"),
    "resume in two ways": (
        "solve",
        CONTROL,
        ["--checkpoint", "saves", "--resume", "--resume-from", "saves/1.ocp"],
        "resume: expected --resume or --resume-from, got both",
    ),
    "a setting twice": (
        "verify",
        CONTROL,
        ["--set", "weight=1", "--set", "weight=2"],
        "set: expected each key once, got 'weight=2' after another value",
    ),
    "a type as a setting": ("solve", CONTROL, ["--set", "dtype=float64"], "set: expected KEY=VALUE, and no dtype"),
    "an accuracy without data": (
        "compare",
        CONTROL,
        ["--target", "accuracy=0.9"],
        "target: an accuracy requires a study with validation samples",
    ),
    "steps in words": (
        "solve",
        CONTROL,
        ["--steps", "ten"],
        "Invalid value for '--steps': 'ten' is not a valid integer.",
    ),
    "a tolerance in words": ("solve", CONTROL, ["--tolerance", "low"], "'low' is not a valid number."),
}


@pytest.mark.parametrize(("command", "text", "options", "message"), WITHOUT_EFFECT.values(), ids=WITHOUT_EFFECT.keys())
def test_an_option_without_effect_gives_one_clear_line(call, write, tmp_path, command, text, options, message):
    assert message in complaint(call(command, write(text), *options))
    assert [path.name for path in tmp_path.iterdir() if path.name != "ocp-out"] == ["mine.py"]


def test_seeds_of_mini_batches_are_used(call, write, tmp_path):
    text = LEARNING.replace("def problem(seed=0):", "def problem():\n    seed = 0")
    options = ["--smoother", "adam", "--batch-size", 4, "--max-iterations", 4, "--methods", "single", "--seeds", 2]
    assert call("compare", write(text), *options, "--out", tmp_path / "out").exit_code == 0
    one, two = Comparison.load(tmp_path / "out").runs["single"]
    assert one.value != two.value


EXITS = {
    "converged": ("lambda t, x, u: u - x", [], "CONVERGED", 0),
    "limit": ("lambda t, x, u: u - x", ["--max-iterations", "1"], "MAX_ITERATIONS", 0),
    "not finite": ("lambda t, x, u: u + 0 * x + float('inf') * (x > 1)", ["--set", "size=2"], "NOT_FINITE", 1),
    "unbounded": ("lambda t, x, u: 0 * x - u.square()", ["--set", "power=1"], "UNBOUNDED", 1),
    "unresolved": ("lambda t, x, u: u - 1000 * x", [], "UNRESOLVED", 1),
    "unresolved at a limit": ("lambda t, x, u: u - 1000 * x", ["--max-iterations", "2"], "UNRESOLVED", 1),
}


@pytest.mark.parametrize(("dynamics", "options", "status", "code"), EXITS.values(), ids=EXITS.keys())
def test_the_exit_code_says_whether_the_run_failed(call, write, dynamics, options, status, code):
    text = f"""
import torch
from ocp import ControlProblem

def problem(size=1.0, power=2):
    x = torch.full((1, 1), size).double()
    return ControlProblem({dynamics}, x, lambda x: (x**power).sum(), control_size=1, start=0.1)
"""
    result = call("solve", write(text), "--steps", 16, *options)
    assert f"status: {status}" in result.output
    assert result.exit_code == code


def test_the_exit_code_of_a_failed_search_is_one():
    assert Status.NO_DECREASE.failed
    assert not any(status.failed for status in Status if status.success or status.name.startswith("MAX"))


def test_the_scheme_is_said_where_the_problem_suggests_none(call, write):
    for command in ("solve", "verify", "compare"):
        limits = () if command == "verify" else ("--max-iterations", 1)
        assert "mine.py suggests no scheme: 128 steps of euler" in call(command, write(SIMPLE), *limits).output
        again = ("--steps", 4) if command == "verify" else ("--overwrite",)
        assert "suggests" not in call(command, write(SIMPLE), *limits, *again, "--integrator", "rk4").output


def test_solve_can_check_the_derivative_first(call, write, tmp_path):
    assert call("solve", write(CONTROL), "--check", "--out", tmp_path).exit_code == 0
    result = call("solve", write(CORRUPTED, "wrong.py"), "--check", "--out", tmp_path / "wrong")
    assert result.exit_code == 1
    assert "WRONG_DERIVATIVE" in result.output


def test_help_shows_options_in_the_groups_of_minimize(call):
    text = call("solve", "--help").output
    titles = ["Problem:", "Method and grids:", "Stopping:", "Watching:", "Checkpoints:", "Output:", "Example:"]
    assert [text.index(title) for title in titles] == sorted(text.index(title) for title in titles)
    assert text.index("Stopping:") < text.index("--tolerance") < text.index("Watching:")


@pytest.mark.parametrize("name", ["list", "verify", "solve", "compare"])
def test_every_option_belongs_to_a_group_of_the_help(name):
    grouped = {parameter for group in GROUPS.values() for parameter in group}
    assert {option.name for option in main.commands[name].params if isinstance(option, click.Option)} <= grouped


def test_the_example_of_each_command_works(call):
    for name in ("list", "verify", "solve", "compare", "plot"):
        assert call(*main.commands[name].example.split()[1:]).exit_code == 0, name
