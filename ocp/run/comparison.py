"""Several methods on one problem: the same starts, the same budget, several seeds, one table."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass, field, replace
from pathlib import Path
from statistics import median
from typing import Any

from tabulate import tabulate

from ocp.integrators.integrator import Integrator
from ocp.multilevel.nested import MGOPT, Forgetful, Nested
from ocp.multilevel.refinement import Scheduled
from ocp.objective.processes import SERIAL, Processes
from ocp.objective.reduced import discretize
from ocp.optimize.adapters import TorchOptimizer
from ocp.optimize.augmented_lagrangian import AugmentedLagrangian
from ocp.optimize.descent import GradientDescent
from ocp.optimize.interior_point.method import InteriorPoint
from ocp.optimize.lbfgs import LBFGS
from ocp.optimize.method import Method, as_method, keeps_constraints
from ocp.optimize.status import Status
from ocp.run.adaptive import Adaptive
from ocp.run.checkpoints import Checkpoint
from ocp.run.json_files import read, write
from ocp.run.minimize import accuracy, minimize, prepare
from ocp.run.results import Record, Result, Target
from ocp.run.stopping import Stop
from ocp.run.study import Study
from ocp.run.watching import Watch
from ocp.space.transfer import depth
from ocp.training.batches import Batches

__all__ = [
    "Comparison",
    "RunSpec",
    "augmented",
    "compare",
    "interior",
    "mgopt",
    "nested",
    "single",
    "solve",
]

#: Epochs on each coarse grid with mini-batches. On the spiral and the peaks with Adam and SGD, 5 ended at
#: objectives up to twice as high; 20 gained little and took half as long again.
EPOCHS = 10


def single(levels: int, smoother: Method, batches: Batches | None, **grids: Any) -> Method:
    """The smoother on the finest grid alone."""
    return smoother


def nested(levels: int, smoother: Method, batches: Batches | None, **grids: Any) -> Method:
    """Nested iteration that forgets the smoother's memory at each refinement."""
    return Nested(levels, Forgetful(smoother), **grids)


def mgopt(levels: int, smoother: Method, batches: Batches | None, **grids: Any) -> Method:
    """MG/OPT; with mini-batches nested iteration that carries the smoother's memory along."""
    if batches is not None:  # a correction fits the batch it was made from: MG/OPT does better without
        return Nested(levels, smoother, **grids)
    # Gradient descent is slow even on coarse grids. With L-BFGS there MG/OPT took 4 to more than 10 times less work
    # than nested iteration to tight objectives, N = 128.
    solver = LBFGS() if isinstance(smoother, GradientDescent) else None
    return MGOPT(levels, smoother, solver=solver, **grids)


def augmented(levels: int, smoother: Method, batches: Batches | None, **grids: Any) -> Method:
    """Path and terminal constraints kept by an augmented Lagrangian, from the coarsest grid to the finest one."""
    return AugmentedLagrangian(smoother, levels)


def interior(levels: int, smoother: Method, batches: Batches | None, **grids: Any) -> Method:
    """All steps at once, on grids of its own."""
    return InteriorPoint()


@dataclass(frozen=True, eq=False)
class RunSpec:
    """How to solve a study. What is left out is as the study suggests.

    Parameters
    ----------
    method : callable
        How to use the grids: `single`, `nested`, `mgopt`, `augmented`, `interior`, or another function of the levels,
        the smoother, the batches, and ``interpolation`` and ``refine``, which returns a `Method`. It goes by its name.
        Without a control, `nested` and `mgopt` are `single`.
    smoother, steps, integrator, stop, checkpoint, processes : optional
        As in `minimize`, where the smoother is the method on each grid.
    levels : int, optional
        By default as many as lead down to the coarsest grid that the study suggests. Not for `single`.
    batch_size : int, optional
        Mini-batches of this size, drawn with ``seed``. Requires a smoother without line searches.
    watch : Watch
        By default with the validation samples of the study.
    label : str
        In tables and figures; by default the name of the method.
    """

    method: Callable[..., Method] = mgopt
    smoother: Method | None = None
    steps: int | Adaptive | None = None
    levels: int | None = None
    integrator: Integrator | str | None = None
    batch_size: int | None = None
    seed: int = 0
    stop: Stop | None = None
    watch: Watch = Watch()
    checkpoint: Checkpoint | None = None
    processes: Processes = SERIAL
    label: str = ""

    def __post_init__(self) -> None:
        if not hasattr(self.method, "__name__"):
            raise TypeError(f"method: expected a function such as mgopt, got {self.method!r}")
        if self.smoother is not None:
            as_method("smoother", self.smoother)
        if not self.label:
            object.__setattr__(self, "label", self.method.__name__)


def solve(name: str, study: Study, run: RunSpec) -> Result:
    """Solve a study. The result says what was run, calls the problem ``name``, and has the test accuracy, if any."""
    result = minimize(**_arguments(study, run), checkpoint=run.checkpoint)
    if study.test is not None:
        result = replace(result, test_accuracy=accuracy(study.test, result))
    smoother = run.smoother or study.smoother
    return result.describe(
        problem=name,
        label=run.label,
        method=_way(study, run).__name__,
        smoother=(smoother.optimizer if isinstance(smoother, TorchOptimizer) else type(smoother)).__name__,
        levels=_levels(study, run),
        seed=run.seed,
    )


def _arguments(study: Study, run: RunSpec) -> dict[str, Any]:
    """Those of `minimize`."""
    return {
        "problem": study.problem,
        "steps": run.steps or study.steps,
        "method": _method(study, run),
        "integrator": run.integrator or study.integrator,
        "batches": _batches(run),
        "stop": run.stop or study.stop,
        "watch": replace(run.watch, validation=run.watch.validation or study.validation),
        "processes": run.processes,
    }


def _way(study: Study, run: RunSpec) -> Callable[..., Method]:
    """How to use the grids: one of them where there are parameters only, which are the same on all."""
    return single if run.method in (nested, mgopt) and not study.problem.dynamics.control_size else run.method


def _levels(study: Study, run: RunSpec) -> int:
    """The number of grids."""
    if _way(study, run) in (single, interior):
        return 1
    steps = run.steps or study.steps
    finest = steps.first if isinstance(steps, Adaptive) else steps
    return run.levels or depth(finest, max(study.steps >> (study.levels - 1), 1))


def _batches(run: RunSpec) -> Batches | None:
    return None if run.batch_size is None else Batches(run.batch_size, run.seed)


def _method(study: Study, run: RunSpec) -> Method:
    """The method with which a run solves a study."""
    way = _way(study, run)
    if way is single and run.levels is not None:
        why = "the method single" if run.method is single else "a problem without control"
        raise ValueError(f"levels: expected none for {why}, which works on one grid, got {run.levels}")
    if run.method is interior and (run.levels is not None or run.smoother is not None):
        raise ValueError("levels, smoother: expected none for the method interior, which has its own, got one of them")
    batches, refine = _batches(run), study.refine
    if batches is not None:
        refine = Scheduled(EPOCHS * batches.per_epoch(discretize(study.problem, 1).work.samples))
    smoother = run.smoother or study.smoother
    method = way(_levels(study, run), smoother, batches, interpolation=study.interpolation, refine=refine)
    if study.problem.constraints and not keeps_constraints(method):
        got = run.method.__name__
        raise ValueError(f"method: the problem has constraints; expected interior or augmented, got {got}")
    return method


@dataclass(frozen=True)
class Comparison:
    """Results of several methods and seeds: from the label of each run to its results, one for each seed.

    What the caller adds in ``about`` is saved with them.
    """

    runs: Mapping[str, tuple[Result, ...]]
    target: Target | None = None
    about: Mapping[str, Any] = field(default_factory=dict)

    def __str__(self) -> str:
        """Two tables with medians over the seeds and ranges in brackets; a seed that missed the target is a failure."""
        headers = ["at the end", "objective", "validation", "test", "work", "corrections", "ended"]
        rows = [(label, *_at_end(results)) for label, results in self.runs.items()]
        if any(result.violation is not None for results in self.runs.values() for result in results):
            headers.append("violation")
            rows = [(*row, _violation(results)) for row, results in zip(rows, self.runs.values(), strict=True)]
        note = "Medians over seeds, [ranges]; work in gradients on the finest grid and all samples."
        text = f"{tabulate(rows, headers=headers, disable_numparse=True)}\n{note}"
        if self.target is None:
            return text
        headers = [f"to {self.target}", "reached", "work", "gain", "seconds", "on steps"]
        rows = [(label, *self._at_target(label)) for label in self.runs]
        return f"{tabulate(rows, headers=headers, disable_numparse=True)}\n\n{text} Gain: against single."

    def _met(self, label: str) -> list[Record | None]:
        """The first record of each seed that met the target, None if it was missed or there is no target."""
        return [self.target.first(r.history) if self.target else None for r in self.runs.get(label, ())]

    def _at_target(self, label: str) -> tuple[str, ...]:
        met = self._met(label)
        reached = [record for record in met if record is not None]
        count = f"{len(reached)} of {len(met)}"
        if len(reached) < len(met) or not met:
            return (count, "missed", "-", "missed", "-")
        pairs = list(zip(self._met("single"), reached, strict=False))
        gains = [one.work_units / own.work_units for one, own in pairs if one is not None and own.work_units > 0]
        return (
            count,
            _summary([record.work_units for record in reached], ".2f"),
            f"{median(gains):.1f}x" if gains and len(gains) == len(pairs) else "-",
            _summary([record.seconds for record in reached], ".2f"),
            _summary([record.steps for record in reached], ".0f"),
        )

    def save(self, folder: str | Path) -> Path:
        """Write ``compare.json`` to a folder, which is created if necessary."""
        runs = []
        for label, results in self.runs.items():
            for result, met in zip(results, self._met(label), strict=True):
                work, seconds = (met.work_units, met.seconds) if met else (None, None)
                runs.append({**result.to_dict(), "work_units_to_target": work, "seconds_to_target": seconds})
        target = None if self.target is None else asdict(self.target)
        write(Path(folder) / "compare.json", {**self.about, "target": target, "runs": runs})
        return Path(folder)

    @classmethod
    def load(cls, folder: str | Path) -> Comparison:
        """Inverse of `save`."""
        saved = read(Path(folder) / "compare.json")
        runs: dict[str, tuple[Result, ...]] = {}
        try:
            for values in saved["runs"]:
                runs[values["label"]] = (*runs.get(values["label"], ()), Result.from_dict(values))
            about = {name: value for name, value in saved.items() if name not in ("target", "runs")}
            return cls(runs, Target(**saved["target"]) if saved["target"] else None, about)
        except (AttributeError, KeyError, TypeError) as error:
            raise ValueError(f"{folder}: expected a saved comparison, got {type(error).__name__}: {error}") from error


def _at_end(results: Sequence[Result]) -> tuple[str, ...]:
    ended = Counter(result.status.name for result in results)
    return (
        _summary([r.value for r in results], ".4g"),
        _summary([r.validation_accuracy for r in results], ".3f"),
        _summary([r.test_accuracy for r in results], ".3f"),
        _summary([r.work_units for r in results], ".2f"),
        _summary([r.counts.get("corrections", 0) for r in results], ".0f"),
        ", ".join(f"{count} {status}" for status, count in ended.items()),
    )


def _violation(results: Sequence[Result]) -> str:
    return _summary([None if r.violation is None else r.violation.relative for r in results], ".1e")


def _summary(values: Sequence[float | None], form: str) -> str:
    numbers = [value for value in values if value is not None]
    if not numbers:
        return "-"
    middle, low, high = (format(v, form) for v in (median(numbers), min(numbers), max(numbers)))
    return middle if low == high else f"{middle} [{low}, {high}]"


def compare(
    name: str,
    make: Callable[[int], Study],
    runs: Sequence[RunSpec],
    seeds: int = 3,
    target: Target | None = None,
    save: Callable[[Comparison], Any] | None = None,
) -> Comparison:
    """Solve the studies of several seeds with several methods, which are all checked before the first run.

    The seeds are the outer loop and the methods the inner one, so that all methods meet the same changes of a machine's
    speed. The finest grid is watched, and no run stops at the target: what it took is read off the history. An
    interrupt ends the comparison; the interrupted run is its last.

    Parameters
    ----------
    name : str
    make : callable
        From a seed to a study; all methods get the same one.
    runs : sequence of RunSpec
        One for each method.
    seeds : int
        How many, counted from 0.
    target : Target, optional
        By default that of the first study.
    save : callable, optional
        Called with the comparison so far after every run, so that nothing is lost.

    Raises
    ------
    ValueError
        If a method is not made for the study, before the first run.
    """
    if seeds < 1:
        raise ValueError(f"seeds: expected an integer >= 1, got {seeds}")
    labels = [run.label for run in runs]
    if not labels or len(set(labels)) < len(labels):
        raise ValueError(f"runs: expected at least one, and every label once, got {', '.join(labels) or 'none'}")
    found: dict[str, tuple[Result, ...]] = dict.fromkeys(labels, ())
    for seed in range(seeds):
        study = make(seed)
        target = study.target if target is None else target
        if target is not None and target.quantity == "accuracy" and study.validation is None:
            raise ValueError(f"target: an accuracy requires a study with validation samples, got {target} without them")
        if seed == 0:
            for run in runs:
                prepare(**_arguments(study, run))  # raises if an argument does not fit
            # A gradient before the clock runs, so that the first method does not pay for torch's start.
            objective = discretize(study.problem, study.steps, study.integrator)
            objective.derivative(objective.discretization.start().flat)
        for run in runs:
            result = solve(name, study, replace(run, seed=seed, watch=replace(run.watch, finest=True)))
            found[run.label] += (result,)
            comparison = Comparison(dict(found), target)
            if save is not None:
                save(comparison)
            if result.status is Status.INTERRUPTED:
                return comparison
    return comparison
