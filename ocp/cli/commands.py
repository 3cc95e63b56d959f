"""The command ``ocp``."""

from __future__ import annotations

import ast
from collections.abc import Callable, Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

import click
import torch
from tabulate import tabulate

import ocp
from ocp.cli import catalog
from ocp.cli.help import Grouped
from ocp.cli.outputs import COMPARISON, RESULT, claim, given, place, replaceable, results_below
from ocp.cli.words import DTYPES, METHODS, RATED, SMOOTHERS
from ocp.integrators.integrator import INTEGRATORS
from ocp.objective.processes import launched
from ocp.objective.reduced import discretize
from ocp.optimize.status import Status
from ocp.problem.control_problem import ControlProblem
from ocp.run.adaptive import Adaptive
from ocp.run.checkpoints import Checkpoint
from ocp.run.comparison import Comparison, RunSpec, compare, solve
from ocp.run.json_files import write
from ocp.run.results import Result, Target
from ocp.run.study import Study
from ocp.run.watching import Watch
from ocp.verification.verify import verify

__all__ = ["main"]


class _Integer(click.IntRange):
    """An integer, which messages call by its name."""

    name = "integer"


class _Number(click.FloatRange):
    """A number, which messages call by its name."""

    name = "number"


_COUNT, _LIMIT = _Integer(1), _Number(0)
_FOLDER = click.Path(file_okay=False, path_type=Path)
_FILE = click.Path(dir_okay=False, path_type=Path)

_STEPS = click.option("--steps", type=_COUNT, help="Steps of the finest grid; the default is the problem's own.")
_SCHEME = click.option(
    "--integrator",
    type=click.Choice(list(INTEGRATORS)),
    help="The default is the problem's own; euler for a file whose problem() returns a ControlProblem.",
)
_OVERWRITE = click.option("--overwrite", is_flag=True, help="Replace a result of other options.")
_SET = click.option(
    "--set", "sets", multiple=True, metavar="KEY=VALUE", help="An argument for problem(), such as width=32."
)
# Digits (width 16, two cores): two threads took 1.3 times as long as one on an idle machine, 25 times on a busy one.
_THREADS = click.option(
    "--threads",
    type=_COUNT,
    default=1,
    show_default=True,
    expose_value=False,
    callback=lambda context, parameter, threads: torch.set_num_threads(threads),
    help="Torch threads on the CPU; more threads speed up wide states and slow down narrow ones.",
)


def _shared(command: Callable[..., Any]) -> Callable[..., Any]:
    """The options that ``solve`` and ``compare`` share."""
    options = (
        click.option("--smoother", type=click.Choice(list(SMOOTHERS)), help="Method on each grid."),
        click.option("--learning-rate", type=_Number(0, min_open=True), help="For adam and sgd; the default is 0.01."),
        _STEPS,
        click.option("--levels", type=_COUNT, help="Grids of nested and mgopt; the default is the problem's own."),
        _SCHEME,
        click.option(
            "--batch-size", type=_COUNT, help="Samples in a mini-batch, with adam or sgd; the default is all."
        ),
        click.option("--max-work", type=_LIMIT, help="Limit of work, in gradients on the finest grid."),
        click.option("--max-iterations", type=_Integer(0), help="Limit of iterations."),
        click.option("--tolerance", type=_LIMIT, help="Norm of the derivative to stop at, relative to the start."),
        click.option("--device", help="Device, such as cpu or cuda."),
        click.option("--dtype", type=click.Choice(list(DTYPES)), help="Precision; the default is the problem's own."),
        _THREADS,
        _SET,
        click.option("--quiet", is_flag=True, help="Do not show the progress line."),
        _OVERWRITE,
    )
    for option in reversed(options):
        command = option(command)
    return command


def _arguments(sets: tuple[str, ...]) -> dict[str, Any]:
    """KEY=VALUE pairs, the values as Python literals where possible, else as text."""
    arguments: dict[str, Any] = {}
    for pair in sets:
        key, found, text = pair.partition("=")
        if key in ("seed", "dtype", "device"):
            raise ValueError(f"set: expected KEY=VALUE, and no {key}, which has an option of its own, got {pair!r}")
        if not (found and key.isidentifier()):
            raise ValueError(f"set: expected KEY=VALUE, got {pair!r}")
        if key in arguments:
            raise ValueError(f"set: expected each key once, got {pair!r} after another value")
        try:
            arguments[key] = ast.literal_eval(text)
        except (ValueError, SyntaxError):
            arguments[key] = text
    return arguments


def _load(name: str, seed: int, options: Mapping[str, Any]) -> tuple[Study, str]:
    """The study of a problem, which stops as the options say, and a note if nobody has chosen a scheme."""
    device, dtype = options["device"], options["dtype"]
    if device is not None:
        try:
            torch.empty(0, device=device)
        except (RuntimeError, AssertionError) as error:
            raise ValueError(f"device: expected an available device, got {device!r} ({error})") from error
    chosen = {"seed": seed, "device": device, "dtype": None if dtype is None else DTYPES[dtype]}
    made = catalog.make(name, **{**chosen, **_arguments(options["sets"])})
    study = Study(made) if isinstance(made, ControlProblem) else made
    note = ""
    if isinstance(made, ControlProblem) and options["integrator"] is None:
        steps = options["steps"] or study.steps
        note = f"{name} suggests no scheme: {steps} steps of {study.integrator}; see --integrator.\n"
    limits = {key: options.get(key) for key in ("max_work", "max_iterations", "tolerance", "target")}
    stop = replace(study.stop, **{key: n for key, n in limits.items() if n is not None})
    return replace(study, stop=stop), note


def _spec(method: str, options: Mapping[str, Any]) -> RunSpec:
    if method not in METHODS:
        raise ValueError(f"method: expected one of {', '.join(METHODS)}, got {method!r}")
    name, rate = options["smoother"], options["learning_rate"]
    if rate is not None and name not in RATED:
        raise ValueError(f"learning-rate: requires --smoother {' or '.join(RATED)}, got {name or 'no --smoother'}")
    smoother = name and SMOOTHERS[name](1e-2 if rate is None else rate)
    watch = Watch(progress=False if options["quiet"] else None, check_derivative=options.get("check", False))
    chosen = {name: options[name] for name in ("steps", "levels", "integrator", "batch_size")}
    return RunSpec(METHODS[method], smoother, watch=watch, **chosen)


@click.group()
@click.version_option(package_name="ocp")
def main() -> None:
    """Training and control as discrete optimal control, solved on many time grids at once."""


@main.command("list", cls=Grouped, example="ocp list")
def list_() -> None:
    """List the problems."""
    click.echo(tabulate(catalog.summaries().items(), tablefmt="plain"))


@main.command("verify", cls=Grouped, example="ocp verify van_der_pol --steps 32")
@click.argument("name")
@_STEPS
@_SCHEME
@click.option("--seed", type=_Integer(0), default=0, show_default=True, help="Seed of the problem and of the checks.")
@click.option("--json", "file", type=_FILE, help="Also write the report to this file, in an existing folder.")
@_SET
def verify_(name: str, seed: int, file: Path | None, **options: Any) -> None:
    """Verify the derivative of a problem, given by name or as a file, in float64 if problem() takes a dtype.

    Exit codes: 0 if all checks pass, 1 if one fails or an argument does not fit, 2 if an option is unknown.
    """
    if file is not None:
        replaceable(file, "checks")
    dtype = "float64" if catalog.takes(name, "dtype") else None
    study, note = _load(name, seed, {**options, "device": None, "dtype": dtype})
    click.echo(note, err=True, nl=False)
    steps, integrator = options["steps"] or study.steps, options["integrator"] or study.integrator
    report = verify(discretize(study.problem, steps, integrator), seed=seed)
    click.echo(f"{name}, {steps} steps of {integrator if isinstance(integrator, str) else integrator.name}")
    click.echo(str(report))
    if file is not None:
        write(file, {"problem": name, **report.to_dict()})
    if not report.passed:
        raise SystemExit(1)


@main.command("solve", cls=Grouped, example="ocp solve pendulum --max-work 20 --out pendulum-out")
@click.argument("name")
@click.option(
    "--method",
    type=click.Choice(list(METHODS)),
    help="How to use the grids: mgopt by default, nested iteration with mini-batches; for constraints interior, "
    "the default then, or augmented.",
)
@click.option("--seed", type=_Integer(0), help="Seed of the initial weights and the batches; the default is 0.")
@click.option("--target", help="Stop at this target: accuracy=0.95 or value=0.1.")
@click.option(
    "--grid-error",
    type=float,
    help="Refine the grid until the estimated relative discretization error is below it; --steps is the first grid.",
)
@click.option("--out", type=_FOLDER, help="Folder; the default is ocp-out/NAME/METHOD.")
@click.option("--checkpoint", type=click.Path(file_okay=False), help="Save the run to this folder.")
@click.option("--every", type=_COUNT, help="Iterations between two checkpoints; the default is ten seconds.")
@click.option("--resume", is_flag=True, help="Resume from the last checkpoint; start afresh if there is none.")
@click.option("--resume-from", type=_FILE, help="Resume from this checkpoint of the folder.")
@click.option("--check", is_flag=True, help="First check the derivative against finite differences.")
@_shared
def solve_(name: str, method: str | None, target: str | None, out: Path | None, **options: Any) -> None:
    """Solve a problem, given by name or as a file; write result.json, control.pt, convergence.png and grids.png.

    For a problem with a single sample, such as those of classical control, also write the states, control and costates
    as trajectory.png and trajectory.csv.

    Exit codes: 0 if a test was met, or if a limit or the precision ended the run, as the printed status says; 1 if the
    run failed, with one of the statuses INFEASIBLE, NOT_FINITE, UNBOUNDED, UNRESOLVED, NO_DECREASE, WRONG_DERIVATIVE,
    NOT_SAVED and INTERRUPTED, or if an argument does not fit; 2 if an option is unknown or its value is of the wrong
    kind.
    """
    goal = None if target is None else Target.parse(target)
    own = given({"problem": str(Path(name)), "method": method, "target": target, **options})
    seed, resumed = options.pop("seed"), bool(options["resume"] or options["resume_from"])
    if seed is not None and options["batch_size"] is None and not catalog.takes(name, "seed"):
        raise ValueError(f"seed: without effect, since problem() of {name} takes no seed and there are no mini-batches")
    study, note = _load(name, seed or 0, {**options, "target": goal})
    if method is None:
        method = "interior" if study.problem.constraints and options["smoother"] is None else "mgopt"
        note += "" if method == "mgopt" else "method: interior, since the problem has constraints.\n"
    run = replace(_spec(method, options), seed=seed or 0, checkpoint=_checkpoint(name, seed or 0, options))
    if options["grid_error"] is not None:
        run = replace(run, steps=Adaptive(options["grid_error"], options["steps"] or study.steps))
    folder = out or Path("ocp-out", Path(name).stem, method)
    with launched() as processes:
        first = processes.rank == 0
        if first:
            claim(folder, RESULT, own, options["overwrite"], resumed)
            if options["checkpoint"]:
                place("checkpoint", Path(options["checkpoint"]))
            click.echo(note, err=True, nl=False)
        result = solve(name, study, replace(run, processes=processes))
    if first:
        _report(study, method, result.describe(options=own), goal, folder)
    if result.status.failed:
        raise SystemExit(1)


def _checkpoint(name: str, seed: int, options: Mapping[str, Any]) -> Checkpoint | None:
    folder, every, resume = options["checkpoint"], options["every"], options["resume_from"] or options["resume"]
    if folder is None and resume:
        raise ValueError("resume: --resume and --resume-from require --checkpoint FOLDER")
    if folder is None and every is not None:
        raise ValueError("every: --every requires --checkpoint FOLDER")
    if options["resume"] and options["resume_from"]:
        raise ValueError("resume: expected --resume or --resume-from, got both")
    if folder is None:
        return None
    often = {} if every is None else {"every": every, "seconds": 0.0}
    return Checkpoint(folder, name=", ".join((name, f"seed {seed}", *options["sets"])), resume=resume, **often)


def _report(study: Study, method: str, result: Result, goal: Target | None, folder: Path) -> None:
    """Write a result to a folder and print it."""
    result.save(folder)
    ocp.plots.convergence({method: result}, goal).savefig(folder / "convergence.png", dpi=150)
    ocp.plots.grids(result).savefig(folder / "grids.png", dpi=150)
    click.echo(str(result))
    if study.optimum is not None:
        click.echo(f"{'known optimum':>20}: {study.optimum:.10g} (of the continuous problem)")
        click.echo(f"{'value - optimum':>20}: {result.value - study.optimum:.2e}")
    written = ["result.json", "control.pt", "convergence.png", "grids.png"]
    for name in ("trajectory.csv", "trajectory.png"):  # of an earlier result in this folder
        (folder / name).unlink(missing_ok=True)
    if discretize(study.problem, 1).work.samples == 1:
        trajectory = result.trajectory(study.problem)
        trajectory.save(folder / "trajectory.csv")
        ocp.plots.trajectory(trajectory).savefig(folder / "trajectory.png", dpi=150)
        written += ["trajectory.csv", "trajectory.png"]
    click.echo(f"{'written to':>20}: {folder} ({', '.join(written)})")


@main.command("compare", cls=Grouped, example="ocp compare lqr --methods single,mgopt --seeds 1")
@click.argument("name")
@click.option("--methods", default="single,nested,mgopt", show_default=True, help="Methods, separated by commas.")
@click.option("--seeds", type=_COUNT, help="Number of seeds, counted from 0; the default is 3.")
@click.option("--target", help="accuracy=0.95 or value=0.1; the default is the problem's own.")
@click.option("--out", type=_FOLDER, help="Folder; the default is ocp-out/NAME/compare.")
@_shared
def compare_(name: str, methods: str, seeds: int | None, target: str | None, out: Path | None, **options: Any) -> None:
    """Compare methods on a problem from the same starts; write compare.json and convergence.png.

    Exit codes: 0 if the comparison is complete, whatever its runs found; 1 if it was interrupted, if every run failed,
    or if an argument does not fit; 2 if an option is unknown or its value is of the wrong kind.
    """
    own = given({"problem": str(Path(name)), "methods": methods, "seeds": seeds, "target": target, **options})
    goal = None if target is None else Target.parse(target)
    chosen = [method.strip() for method in methods.split(",")]
    if options["levels"] is not None and set(chosen) == {"single"}:
        raise ValueError("levels: expected none for the method single, which works on one grid")
    one_grid = {**options, "levels": None}
    runs = [_spec(method, one_grid if method == "single" else options) for method in chosen]
    if options["batch_size"] is None and not catalog.takes(name, "seed"):
        if seeds is not None and seeds > 1:
            raise ValueError(f"seeds: without effect, since problem() of {name} takes no seed; leave it out")
        if seeds is None:
            click.echo("problem() takes no seed: one run of each method.", err=True)
        seeds = 1
    study, note = _load(name, 0, options)
    folder = claim(out or Path("ocp-out", Path(name).stem, "compare"), COMPARISON, own, options["overwrite"])

    def save(so_far: Comparison) -> None:
        replace(so_far, about={"options": own}).save(folder)

    def make(seed: int) -> Study:
        return study if seed == 0 else _load(name, seed, options)[0]

    click.echo(note, err=True, nl=False)
    comparison = compare(name, make, runs, seeds or 3, goal, save)
    ocp.plots.convergence(comparison.runs, comparison.target).savefig(folder / "convergence.png", dpi=150)
    click.echo(str(comparison))
    click.echo(f"written to {folder}")
    results = [result for group in comparison.runs.values() for result in group]
    interrupted = any(result.status is Status.INTERRUPTED for result in results)
    if interrupted or all(result.status.failed for result in results):
        raise SystemExit(1)


@main.command("plot", cls=Grouped, example="ocp plot ocp-out/lqr/compare --out convergence.png")
@click.argument("folders", nargs=-1, required=True, type=click.Path(exists=True, file_okay=False, path_type=Path))
@click.option("--out", type=_FILE, default="convergence.png", show_default=True)
def plot_(folders: tuple[Path, ...], out: Path) -> None:
    """Draw the saved results of FOLDERS into one figure.

    Each folder was written by solve or by compare, or has such folders below it, as ocp-out/NAME has. All results must
    be of one problem.
    """
    place("out", out.parent, create=False)
    groups: dict[str, tuple[Result, ...]] = {}
    target, found = None, [path for folder in folders for path in results_below(folder)]
    for folder in found:
        if (folder / COMPARISON[0]).exists():
            saved = Comparison.load(folder)
            about = {"options": saved.about.get("options")}
            target, runs = saved.target, saved.runs
            runs = {label: tuple(result.describe(**about) for result in group) for label, group in runs.items()}
        else:
            result = Result.load(folder)
            runs = {str(result.about.get("label", folder.name)): (result,)}
        for label, results in runs.items():
            name = label if len(found) == 1 else f"{folder}: {label}"
            groups[name] = groups.get(name, ()) + results
    ocp.plots.convergence(groups, target).savefig(out, dpi=150)
    click.echo(f"written to {out}")
