"""Several methods on one problem: the same starts, the same budget, several seeds, one table."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path
from statistics import median
from typing import Any

from tabulate import tabulate

from ocp.integrators.integrator import Integrator
from ocp.multilevel.nested import MGOPT, Forgetful, Nested
from ocp.multilevel.refinement import Scheduled
from ocp.objective.processes import SERIAL, Processes
from ocp.objective.reduced import discretize
from ocp.optimize.gradient_descent import GradientDescent
from ocp.optimize.lbfgs import LBFGS
from ocp.optimize.method import Method, as_method
from ocp.optimize.status import Status
from ocp.optimize.torch_optimizer import TorchOptimizer
from ocp.run.adaptive import Adaptive
from ocp.run.checkpoints import Checkpoint
from ocp.run.json_files import read, write
from ocp.run.minimize import accuracy, minimize
from ocp.run.results import Record, Result, Target
from ocp.run.stopping import Stop
from ocp.run.study import Study
from ocp.run.watching import Watch
from ocp.space.transfer import depth
from ocp.training.batches import Batches

__all__ = ["METHODS", "Comparison", "RunSpec", "compare", "solve", "title"]

#: Ways to use the grids by name, as functions of the levels and the smoother, the interpolation and the rule to refine.
METHODS: Mapping[str, Callable[..., Method]] = {
    "single": lambda levels, smoother, **grids: smoother,
    "nested": lambda levels, smoother, **grids: Nested(levels, Forgetful(smoother), **grids),
    "mgopt": MGOPT,
}

#: What MG/OPT takes on all grids but the finest under gradient descent, which is slow even there. It took 4 to more
#: than 10 times less work than nested iteration to tight objectives, N = 128.
SOLVER = LBFGS()

#: Epochs on each coarse grid with mini-batches. On the spiral and the peaks with Adam and SGD, 5 ended at
#: objectives up to twice as high; 20 gained little and took half as long again.
EPOCHS = 10


@dataclass(frozen=True, eq=False)
class RunSpec:
    """How to solve a study. Where something is left out, the study's suggestion is taken.

    Parameters
    ----------
    method : str
        A key of `METHODS`.
    smoother : Method, optional
    steps : int or Adaptive, optional
    levels : int, optional
        The default is as many as the coarsest grid that the study suggests allows.
    integrator : str or Integrator, optional
    batch_size : int, optional
        Mini-batches of this size.
    seed : int
        Of the batches.
    stop : Stop, optional
    watch : Watch
        Validation samples are those of the study, unless it has others.
    checkpoint : Checkpoint, optional
    processes : Processes
    label : str
        In tables and figures; by default the method.
    """

    method: str = "mgopt"
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
        if not self.label:
            object.__setattr__(self, "label", self.method)
        if self.method not in METHODS:
            raise ValueError(f"method: expected one of {', '.join(METHODS)}, got {self.method!r}")
        if self.smoother is not None:
            as_method("smoother", self.smoother)


def solve(name: str, study: Study, run: RunSpec) -> Result:
    """Solve a study; the result says what was run, and holds the test accuracy where there are test samples.

    Parameters
    ----------
    name : str
        Of the problem, for the result.
    study : Study
    run : RunSpec
    """
    steps, smoother = run.steps or study.steps, run.smoother or study.smoother
    finest = steps.first if isinstance(steps, Adaptive) else steps
    levels = run.levels or depth(finest, max(study.steps >> (study.levels - 1), 1))
    batches, refine, integrator = None, study.refine, run.integrator or study.integrator
    if run.batch_size is not None:
        batches = Batches(run.batch_size, run.seed)
        samples = discretize(study.problem, 1).work.samples
        refine = Scheduled(EPOCHS * batches.per_epoch(samples))
    make = METHODS[run.method]
    if run.method == "mgopt":
        # A correction fits the batch it was made from: with mini-batches, MG/OPT is better off without.
        solver = SOLVER if isinstance(smoother, GradientDescent) else None
        make = Nested if batches is not None else partial(MGOPT, solver=solver)
    result = minimize(
        study.problem,
        steps,
        make(levels, smoother, interpolation=study.interpolation, refine=refine),
        integrator=integrator,
        batches=batches,
        stop=run.stop or study.stop,
        watch=replace(run.watch, validation=run.watch.validation or study.validation),
        checkpoint=run.checkpoint,
        processes=run.processes,
    )
    if study.test is not None:
        assert result.control is not None
        result = replace(result, test_accuracy=accuracy(study.test, result.control, integrator))
    about: dict[str, Any] = {"problem": name, "label": run.label, "method": run.method, "smoother": title(smoother)}
    about |= {"levels": 1 if run.method == "single" else levels, "seed": run.seed}
    return result.describe(**about)


def title(method: Method) -> str:
    """A short name for a method: that of its class, or of the optimizer that it wraps."""
    return method.optimizer.__name__ if isinstance(method, TorchOptimizer) else type(method).__name__


@dataclass(frozen=True)
class Comparison:
    """Results of several methods and seeds.

    Attributes
    ----------
    runs : mapping
        From the label of a run to its results, one for each seed.
    target : Target or None
    """

    runs: Mapping[str, tuple[Result, ...]]
    target: Target | None = None

    def __str__(self) -> str:
        """Two tables with medians over the seeds and ranges in brackets; a seed that missed the target is a failure."""
        headers: tuple[str, ...] = ("at the end", "objective", "validation", "test", "work", "corrections", "ended")
        rows = [self._at_end(*item) for item in self.runs.items()]
        at_end = tabulate(rows, headers=headers, disable_numparse=True)
        note = "Medians over seeds, [ranges]; work in gradients on the finest grid and all samples."
        if self.target is None:
            return f"{at_end}\n{note}"
        headers = (f"to {self.target}", "reached", "work", "gain", "seconds", "on steps")
        rows = [self._at_target(*item) for item in self.runs.items()]
        return f"{tabulate(rows, headers=headers, disable_numparse=True)}\n\n{at_end}\n{note} Gain: against single."

    def _met(self, result: Result) -> Record | None:
        """The first record that met the target, None if it was missed or there is no target."""
        return self.target.first(result.history) if self.target else None

    def _at_target(self, name: str, results: Sequence[Result]) -> list[str]:
        reached = [record for record in map(self._met, results) if record is not None]
        if len(reached) < len(results) or not results:
            return [name, f"{len(reached)} of {len(results)}", "missed", "-", "missed", "-"]
        return [
            name,
            f"{len(reached)} of {len(results)}",
            _summary([record.work_units for record in reached], ".2f"),
            self._gain(name),
            _summary([record.seconds for record in reached], ".2f"),
            _summary([record.steps for record in reached], ".0f"),
        ]

    def _at_end(self, name: str, results: Sequence[Result]) -> list[str]:
        ended = Counter(result.status.name for result in results)
        return [
            name,
            _summary([r.value for r in results], ".4g"),
            _summary([r.validation_accuracy for r in results], ".3f"),
            _summary([r.test_accuracy for r in results], ".3f"),
            _summary([r.work_units for r in results], ".2f"),
            _summary([r.counts.get("corrections", 0) for r in results], ".0f"),
            ", ".join(f"{count} {status}" for status, count in ended.items()),
        ]

    def _gain(self, name: str) -> str:
        """Median over the seeds of the ratio of the single-level method's work to this one's."""
        pairs = [
            (self._met(single), self._met(result))
            for single, result in zip(self.runs.get("single", ()), self.runs[name], strict=False)
        ]
        ratios = [single.work_units / own.work_units for single, own in pairs if single and own and own.work_units > 0]
        return f"{median(ratios):.1f}x" if pairs and len(ratios) == len(pairs) else "-"

    def to_dict(self) -> dict[str, Any]:
        """The comparison as JSON can hold it."""
        runs = []
        for results in self.runs.values():
            for result in results:
                met = self._met(result)
                reached = {
                    "work_units_to_target": met.work_units if met else None,
                    "seconds_to_target": met.seconds if met else None,
                }
                runs.append({**result.to_dict(), **reached})
        target = {"quantity": self.target.quantity, "threshold": self.target.threshold} if self.target else None
        return {"target": target, "runs": runs}

    def save(self, folder: str | Path) -> Path:
        """Write ``compare.json`` to a folder, which is made where it is missing."""
        write(Path(folder) / "compare.json", self.to_dict())
        return Path(folder)

    @classmethod
    def load(cls, folder: str | Path) -> Comparison:
        """Inverse of `save`."""
        saved = read(Path(folder) / "compare.json")
        runs: dict[str, tuple[Result, ...]] = {}
        try:
            for values in saved["runs"]:
                runs[values["label"]] = (*runs.get(values["label"], ()), Result.from_dict(values))
            return cls(runs, Target(**saved["target"]) if saved["target"] else None)
        except (KeyError, TypeError) as error:
            raise ValueError(f"{folder}: expected a saved comparison, got {type(error).__name__}: {error}") from error


def compare(
    name: str,
    make: Callable[[int], Study],
    runs: Sequence[RunSpec],
    seeds: int = 3,
    target: Target | None = None,
    save: Callable[[Comparison], Any] | None = None,
) -> Comparison:
    """Solve the studies of several seeds with several methods.

    The seeds are the outer loop and the methods the inner one, so that a machine's changing speed meets all methods
    alike. The finest grid is watched, and no run stops at the target: what it took is read off the history. An
    interrupt ends the comparison; the interrupted run is its last.

    Parameters
    ----------
    name : str
    make : callable
        From a seed to a study; all methods get the same one.
    runs : sequence of Run
        One for each method.
    seeds : int
    target : Target, optional
        By default that of the first study.
    save : callable, optional
        Called with the comparison so far after every run, so that nothing is lost.
    """
    if seeds < 1:
        raise ValueError(f"seeds: expected an integer >= 1, got {seeds}")
    labels = [run.label for run in runs]
    if not labels or len(set(labels)) < len(labels):
        raise ValueError(f"runs: expected at least one, and every label once, got {', '.join(labels) or 'none'}")
    comparison = Comparison(dict.fromkeys(labels, ()), target)
    for seed in range(seeds):
        study = make(seed)
        target = study.target if target is None else target
        if seed == 0:
            _warm_up(study, runs[0])
        for run in runs:
            result = solve(name, study, replace(run, seed=seed, watch=replace(run.watch, finest=True)))
            results = {**comparison.runs, run.label: (*comparison.runs[run.label], result)}
            comparison = Comparison(results, target)
            if save is not None:
                save(comparison)
            if result.status is Status.INTERRUPTED:
                return comparison
    return comparison


def _warm_up(study: Study, run: RunSpec) -> None:
    """A gradient before the clock runs, so that the first method does not pay for torch's start."""
    steps = study.steps if run.steps is None or isinstance(run.steps, Adaptive) else run.steps
    objective = discretize(study.problem, steps, run.integrator or study.integrator)
    objective.derivative(objective.discretization.start().flat)


def _summary(values: Sequence[float | None], form: str) -> str:
    numbers = [value for value in values if value is not None]
    if not numbers:
        return "-"
    middle, low, high = (format(v, form) for v in (median(numbers), min(numbers), max(numbers)))
    return middle if low == high else f"{middle} [{low}, {high}]"
