"""The only loop over iterations: stopping, records, progress, interrupts."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, replace
from math import isfinite
from os import PathLike
from typing import Any

import torch
from tqdm import tqdm

from ocp.adjoint.schedules import Schedule, StoreAll
from ocp.integrators.integrator import Integrator, as_integrator
from ocp.multilevel.nested import MGOPT
from ocp.objective.processes import SERIAL, Processes
from ocp.objective.reduced import ReducedObjective, discretize
from ocp.optimize.method import Method, State, as_method
from ocp.optimize.status import Status
from ocp.problem.control_problem import ControlProblem
from ocp.problem.protocols import Classifier
from ocp.run.adaptive import Adaptive
from ocp.run.checkpoints import Checkpoint, identity, saving
from ocp.run.results import Record, Result
from ocp.run.run import Run
from ocp.run.stopping import Stop, blind, checked, contradiction, explain
from ocp.run.watching import Watch
from ocp.space.control import Control, TimeFunction
from ocp.space.transfer import depth
from ocp.training.batches import Batches

__all__ = ["accuracy", "minimize"]


def minimize(
    problem: ControlProblem,
    steps: int | Adaptive,
    method: Method | None = None,
    *,
    integrator: Integrator | str = "euler",
    schedule: Schedule = StoreAll(),
    start: Control | TimeFunction | None = None,
    batches: Batches | None = None,
    stop: Stop = Stop(),
    watch: Watch = Watch(),
    checkpoint: Checkpoint | str | PathLike[str] | None = None,
    processes: Processes = SERIAL,
) -> Result:
    """Minimize a control problem.

    Parameters
    ----------
    problem : ControlProblem
    steps : int or Adaptive
        N, the number of steps of the finest grid. ``Adaptive(error)`` refines the grid, and takes along what the method
        remembers, until the estimated discretization error of the optimum is small enough; work is then counted in
        gradients on the last grid.
    method : Method, optional
        For example ``MGOPT(levels=4, smoother=LBFGS())``, ``Nested(...)`` or ``LBFGS()`` alone. The default is MG/OPT
        with L-BFGS on all grids that halving the steps gives. Mini-batches require a method.
    integrator : str or Integrator
    schedule : Schedule
        Which states are stored: all of them by default, as many as ``Binomial(slots)`` says, which repeats the steps
        between them, or the last one, with ``Reversible()``, which undoes the steps of ``"verlet"``.
    start : Control, TimeFunction or Tensor, optional
        Replaces the problem's own start, with the same choices (`ControlProblem`). The steps of a coarser control must
        divide ``steps``.
    batches : Batches, optional
        Draw a mini-batch for each iteration; it is fixed during a cycle, on all levels. Use a method without line
        searches, such as ``Nested(levels, TorchOptimizer(torch.optim.Adam), refine=Scheduled(100))``.
    stop : Stop
        Tolerance, target and limits.
    watch : Watch
        What is recorded and reported: validation samples, a callback, a live line.
    checkpoint : Checkpoint or path, optional
        Save the run to this folder as it goes, by default every ten seconds and at the end;
        ``Checkpoint(folder, resume=True)`` also resumes it.
    processes : Processes
        Several processes that make this same call, each for its part of the samples (`ocp.objective.processes`). All
        get the same result; the first one writes checkpoints and shows the live line. Costs must be averages over the
        samples.

    Returns
    -------
    Result
        Its ``status`` says how the run ended; numerical failures do not raise. Ctrl-C ends a run after the current
        step; a second one raises ``KeyboardInterrupt``, whose attribute ``result`` holds what was reached.

    Raises
    ------
    TypeError, ValueError
        If an argument does not fit, before work begins. An exception in the problem's own functions is passed on, with
        what was reached in its attribute ``result``.

    Examples
    --------
    >>> import torch
    >>> problem = ControlProblem(
    ...     dynamics=lambda t, x, u: u + 0 * x,
    ...     initial_state=torch.ones(1, 1, dtype=torch.float64),
    ...     running_cost=lambda t, x, u: 0.5 * (x.square().sum() + u.square().sum()),
    ...     control_size=1,
    ... )
    >>> result = minimize(problem, steps=64, integrator="rk4")
    >>> result.success, round(result.value, 4)
    (True, 0.3808)
    """
    if start is not None and isinstance(problem, ControlProblem):
        problem = replace(problem, start=start)
    if not isinstance(steps, int | Adaptive):
        raise ValueError(f"steps: expected an integer >= 1, or Adaptive(error) to have it chosen, got {steps!r}")
    adaptive = steps if isinstance(steps, Adaptive) else None
    steps = steps.first if isinstance(steps, Adaptive) else steps
    objective = discretize(problem, steps, as_integrator(integrator), schedule)
    if processes.size > 1:
        objective = _shared(objective, processes)
    if method is None and batches is not None:
        raise ValueError(
            "method: mini-batches require a method, such as Nested(levels, TorchOptimizer(torch.optim.Adam), "
            "refine=Scheduled(100)), got None"
        )
    method = MGOPT(levels=depth(steps, 1)) if method is None else method
    _check_arguments(method, batches, stop, watch)
    if adaptive is not None and batches is not None:
        raise ValueError(
            "steps: mini-batches require a number of steps, since their noise hides the discretization error, "
            f"got {adaptive}"
        )
    if adaptive is not None:
        _check_grids(method, objective, [n for n in (steps, 2 * steps) if n <= adaptive.limit])
    samples = objective.work.samples
    if batches is not None:
        objective.take(torch.arange(min(batches.size, samples)))  # raises where the problem cannot be divided
    every = watch.every or (1 if batches is None else batches.per_epoch(samples))
    finest = watch.finest or (stop.target is not None and stop.target.quantity == "value")
    begin = State(objective.at(objective.discretization.start()))
    run = Run(objective, batches is None, watch.validation, finest, begin)
    status, why, own = Status.RUNNING, "", identity(method, objective, batches)
    with run.interrupts, _live(watch.progress, processes) as line, saving(checkpoint, own, processes) as saves:
        look = _Look(stop, adaptive, watch.callback, method, line)
        saved = saves.load(checkpoint.resume if isinstance(checkpoint, Checkpoint) else False, run.state.control.device)
        with _keeping(run, method, saves):
            slope = checked(run) if watch.check_derivative and saved is None else None
            run.restore(saved) if saved is not None else run.begin(method)
            if run.stationary and saved is None:
                slope = blind(run)
            stream = None if batches is None else batches.stream(samples, run.iteration)
            while status is Status.RUNNING:
                run.look_begins()
                seen = run.state.status
                if run.agree(saves.save(run) is Status.NOT_SAVED):
                    status = Status.NOT_SAVED
                elif run.iteration % every == 0 or stop.limit(run) is not Status.RUNNING:
                    status, seen = look(run)
                if status is Status.RUNNING and slope is None:
                    on, before = run.objective if stream is None else objective.take(next(stream)), run.state
                    with run.clock.running():
                        run.state = method.step(on, replace(before.of(on), status=seen))
                    run.iteration += 1
                    slope = contradiction(run, before) if run.iteration == 1 else None
                if slope is not None:
                    status, why = Status.WRONG_DERIVATIVE, f" At a control near the start {slope}."
            if run.agree(saves.end(run) is Status.NOT_SAVED):
                status = Status.NOT_SAVED
            if (status.success or status is Status.UNBOUNDED) and not run.resolved():
                status = Status.UNRESOLVED
            status, why = explain(run, status, why)
    status = Status.INTERRUPTED if status is Status.RUNNING else status
    met = None if stop.target is None else stop.target.first(tuple(run.history)) is not None
    goal = None if stop.target is None else str(stop.target)
    about = {"tolerance": stop.tolerance, "target": goal, "target_reached": met}
    return run.result(status, method, why).describe(**about)


@contextmanager
def _keeping(run: Run, method: Method, saves: Any) -> Iterator[None]:
    """Let no exception lose what was reached: an interrupt ends the run, a second one and all others carry a result.

    Of a run that an exception ended what came before the step, or the look, that failed is saved.
    """
    try:
        yield
    except KeyboardInterrupt as interrupt:
        run.part()
        if run.interrupts.count > 1:
            interrupt.result = run.result(Status.INTERRUPTED, method)  # type: ignore[attr-defined]
            raise
    except Exception as error:
        run.part()
        if run.history:
            error.result = run.result(Status.EXCEPTION, method)  # type: ignore[attr-defined]
            saves.end(run)
        raise


@dataclass(frozen=True)
class _Look:
    """What happens between steps: a record, the live line, the callback, the decision to end or to refine the grid."""

    stop: Stop
    adaptive: Adaptive | None
    callback: Callable[[Record, Control], bool | None] | None
    method: Method
    line: Any

    def __call__(self, run: Run) -> tuple[Status, Status]:
        """The status of the run, and that of the method on the current grid."""
        record = run.record()
        self.line.set_description_str(_words(record))
        wish = run.agree(self.callback is not None and bool(self.callback(record, run.copy())))
        status = self.stop.status(run, record, wish)
        if self.adaptive is not None and status is Status.CONVERGED:
            status = run.judge(self.adaptive)
            if status is Status.RUNNING and wish:
                status = Status.STOPPED
            if status is Status.RUNNING:
                with run.clock.running():
                    run.refine(self.method)
                return self(run)
        return status, self.stop.coarse(run, record) if record.level > 0 else run.state.status


def _live(progress: bool | None, processes: Processes) -> Any:
    """A line on the terminal; one that shows nothing if there is no terminal or the line is not wanted."""
    progress = progress if processes.rank == 0 else False
    return tqdm(disable=None if progress is None else not progress, bar_format="{desc}", leave=False)


def _check_arguments(method: Any, batches: Any, stop: Any, watch: Any) -> None:
    """Refuse what does not fit, before work begins."""
    as_method("method", method)
    for name, value, kind in (("batches", batches, Batches | None), ("stop", stop, Stop), ("watch", watch, Watch)):
        if not isinstance(value, kind):
            raise TypeError(f"{name}: expected {name.capitalize()}(...), got {type(value).__name__}")
    if stop.target is not None and stop.target.quantity == "accuracy" and watch.validation is None:
        raise ValueError("target: an accuracy requires watch=Watch(validation=problem), got None")


def _shared(objective: ReducedObjective, processes: Processes) -> ReducedObjective:
    """The objective among several processes; refused where the mean of the parts is not the whole, on one step."""
    samples = objective.work.samples
    if samples < processes.size:
        raise ValueError(f"processes: expected at most one for each of the {samples} samples, got {processes.size}")
    shared = ReducedObjective(objective.discretization, schedule=objective.schedule, processes=processes)
    start, one = objective.discretization.start(), objective.discretization.on(1)
    u = one.space.join(start.path.mean(0), start.parameters)
    whole, mean = ReducedObjective(one).value(u), ReducedObjective(one, processes=processes).value(u)
    if isfinite(whole) and not abs(whole - mean) <= 1e-3 * max(abs(whole), abs(mean)):
        raise ValueError(
            f"processes: expected costs that are averages over the samples, got {whole:.6g} on all of them and "
            f"{mean:.6g} as the mean of the parts"
        )
    return shared


def _check_grids(method: Method, objective: ReducedObjective, grids: Sequence[int]) -> None:
    """Refuse a method that has a finest grid of its own; the work of looking is counted nowhere."""
    for steps in grids:
        look = ReducedObjective(objective.discretization.on(steps))
        method.init(look, look.at(look.discretization.start()))


def accuracy(problem: ControlProblem, control: Control, integrator: Integrator | str = "euler") -> float:
    """Share of the problem's samples whose class a control predicts.

    Raises
    ------
    ValueError
        If the terminal cost knows no accuracy.
    """
    cost = problem.terminal_cost
    if not isinstance(cost, Classifier):
        raise ValueError("problem: expected a terminal cost with an accuracy, such as CrossEntropy")
    objective = discretize(problem, control.space.grid.steps, integrator)
    return cost.accuracy(objective.final_state(control), control.parameters)


def _words(record: Record) -> str:
    parts = [
        f"level {record.level} ({record.steps} steps)",
        f"iteration {record.iteration}",
        f"work {record.work_units:.1f}",
        f"objective {record.value:.4e}",
        f"derivative {record.derivative_norm:.1e}",
        f"{record.seconds:.1f} s",
    ]
    if record.validation_accuracy is not None:
        parts.insert(-1, f"accuracy {record.validation_accuracy:.3f}")
    return "  ".join(parts)
