"""The only loop over iterations: stopping, records, progress, interrupts."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, replace
from math import inf, isfinite
from os import PathLike
from typing import Any

import torch
from tqdm import tqdm

from ocp.adjoint.schedules import Schedule, StoreAll
from ocp.integrators.integrator import Integrator, as_integrator
from ocp.multilevel.nested import MGOPT
from ocp.objective.processes import ALONE, Processes
from ocp.objective.reduced import ReducedObjective, discretize
from ocp.optimize.method import Method, State, as_method
from ocp.optimize.status import Status
from ocp.problem.control_problem import ControlProblem
from ocp.run.adaptive import Adaptive
from ocp.run.checkpoints import Checkpoint, identity, saving
from ocp.run.results import Record, Result, Target
from ocp.run.run import Run
from ocp.run.stopping import Stopping, blind, checked, contradiction, explain
from ocp.space.control import Control, Path
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
    start: Control | Path | None = None,
    batches: Batches | None = None,
    validation: ControlProblem | None = None,
    watch_finest: bool = False,
    tolerance: float = 1e-6,
    target: Target | None = None,
    max_iterations: int = 1000,
    max_work: float = inf,
    max_seconds: float = inf,
    record_every: int | None = None,
    callback: Callable[[Record, Control], bool | None] | None = None,
    check_derivative: bool = False,
    checkpoint: Checkpoint | str | PathLike[str] | None = None,
    resume: bool | str | PathLike[str] = False,
    processes: Processes = ALONE,
    progress: bool | None = None,
) -> Result:
    """Minimize a control problem.

    Parameters
    ----------
    problem : ControlProblem
    steps : int or Adaptive
        N, of the finest grid. With ``Adaptive(error)`` the grid is refined, with the method's memory, as long as the
        estimated discretization error of the optimum is larger than wanted; work is counted in gradients on the last
        grid.
    method : Method, optional
        For example ``MGOPT(levels=4, smoother=LBFGS())``, ``Nested(...)`` or ``LBFGS()`` alone. By default MG/OPT with
        L-BFGS on all grids that there are by halving the steps; beside mini-batches it has to be given.
    integrator : str or Integrator
    schedule : Schedule
        ``Binomial(slots)`` keeps so many states and takes the steps between them again, ``Reversible()`` undoes the
        steps of ``"verlet"``; by default all are kept.
    start : Control, Path or Tensor, optional
        In place of the problem's own, with the same choices (`ControlProblem`); the steps of a coarser control must
        divide ``steps``.
    batches : Batches, optional
        Draw a mini-batch for each iteration; it is held fixed through a cycle on all levels. Take a method without line
        searches then, such as ``Nested(levels, TorchOptimizer(torch.optim.Adam), refine=Scheduled(100))``.
    validation : ControlProblem, optional
        The same problem on other samples; its accuracy is recorded.
    watch_finest : bool
        Record the objective on the finest grid also while on a coarse one, so that runs on different grids can be
        compared. Like the accuracy it is neither counted as work nor timed. A target of value asks for it.
    tolerance : float
        Stop when the dual norm of the derivative on the finest grid, or with bounds that of the projected gradient step
        (`ocp.objective.optimality`), is at most this share of that at the start. Where the start is not finite on that
        grid, but is on a coarser one, the first control that is finite on it counts as the start.
    target : Target, optional
        Stop when it is reached.
    max_iterations : int
    max_work, max_seconds : float
        Limits; the iteration that exceeds one is finished. Looking is in none of them. With `Adaptive`, each finest
        grid in turn may take ``max_work`` gradients of its own.
    record_every : int, optional
        Iterations between two records; 1 by default, with mini-batches one epoch, since each record then evaluates the
        objective on all samples.
    callback : callable, optional
        ``callback(record, control)`` after each record, with a copy of the control; the run stops if it returns True.
    check_derivative : bool
        Before the first step, compare the derivative with differences of values at two controls (`ocp.quick_check`);
        some eight gradients, which are not counted. It ends the run if it is wrong. Where the derivative is zero at the
        start this is done in any case.
    checkpoint : Checkpoint or path, optional
        Save the run to this folder as it goes, by default every ten seconds and at its end.
    resume : bool or path
        Go on from the last checkpoint in the folder, or from the file that is named; where there is none yet, begin.
        The result is that of a run which was never interrupted, to the last bit; limits and target may differ.
    processes : Processes
        Several processes that run this same call, each on its part of the samples (`ocp.objective`). They get the same
        result; the first one writes checkpoints and shows the line. Costs have to be averages over the samples.
    progress : bool, optional
        Show a live line; by default where the output is a terminal.

    Returns
    -------
    Result
        How a run ended is its ``status``; numerical failures do not raise. Ctrl-C ends a run after the step that it is
        in; a second one raises ``KeyboardInterrupt``, whose attribute ``result`` holds what was reached.

    Raises
    ------
    TypeError, ValueError
        If an argument does not fit, before work begins. An exception in the problem's own functions is passed on; its
        attribute ``result`` holds what was reached until then.

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
            "method: expected one beside mini-batches, such as Nested(levels, TorchOptimizer(torch.optim.Adam), "
            "refine=Scheduled(100)), got none"
        )
    method = MGOPT(levels=depth(steps, 1)) if method is None else method
    stopping = Stopping(tolerance, target, max_iterations, max_work, max_seconds)
    _check_arguments(method, batches, validation, target, record_every, callback)
    if resume is not False and checkpoint is None:
        raise ValueError("resume: expected a checkpoint folder beside it, got none")
    if adaptive is not None and batches is not None:
        raise ValueError("steps: expected a number beside mini-batches, whose noise hides the discretization error")
    if adaptive is not None:
        _check_grids(method, objective, [n for n in (steps, 2 * steps) if n <= adaptive.limit])
    samples = objective.work.samples
    if batches is not None:
        objective.take(torch.arange(min(batches.size, samples)))  # raises where the problem cannot be divided
    if record_every is None:
        record_every = 1 if batches is None else batches.per_epoch(samples)
    watch_finest = watch_finest or (target is not None and target.quantity == "value")
    begin = State(objective.at(objective.discretization.start()))
    run = Run(objective, batches is None, validation, watch_finest, begin)
    status, why, own = Status.RUNNING, "", identity(method, objective, batches)
    with run.interrupts, _live(progress, processes) as line, saving(checkpoint, own, processes) as saves:
        look = _Look(stopping, adaptive, callback, method, line)
        saved = saves.load(resume, run.state.control.device)
        with _keeping(run, method, saves):
            slope = checked(run) if check_derivative and saved is None else None
            run.restore(saved) if saved is not None else run.begin(method)
            if run.stationary and saved is None:
                slope = blind(run)
            stream = None if batches is None else batches.stream(samples, run.iteration)
            while status is Status.RUNNING:
                run.look_begins()
                told = run.state.status
                if run.agree(saves.save(run) is Status.NOT_SAVED):
                    status = Status.NOT_SAVED
                elif run.iteration % record_every == 0 or stopping.limit(run) is not Status.RUNNING:
                    status, told = look(run)
                if status is Status.RUNNING and slope is None:
                    on, before = run.objective if stream is None else objective.take(next(stream)), run.state
                    with run.clock.running():
                        run.state = method.step(on, replace(before.of(on), status=told))
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
    met = None if target is None else target.first(tuple(run.history)) is not None
    about = {"tolerance": tolerance, "target": None if target is None else str(target), "target_reached": met}
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

    stopping: Stopping
    adaptive: Adaptive | None
    callback: Callable[[Record, Control], bool | None] | None
    method: Method
    line: Any

    def __call__(self, run: Run) -> tuple[Status, Status]:
        """How the run goes on, and what the method is told of its work on the present grid."""
        record = run.record()
        self.line.set_description_str(_words(record))
        stop = run.agree(self.callback is not None and bool(self.callback(record, run.copy())))
        status = self.stopping.status(run, record, stop)
        if self.adaptive is not None and status is Status.CONVERGED:
            status = run.judge(self.adaptive)
            if status is Status.RUNNING and stop:
                status = Status.STOPPED
            if status is Status.RUNNING:
                with run.clock.running():
                    run.refine(self.method)
                return self(run)
        return status, self.stopping.coarse(run, record) if record.level > 0 else run.state.status


def _live(progress: bool | None, processes: Processes) -> Any:
    """A line on the terminal; where there is none, or none is wanted, one that shows nothing."""
    progress = progress if processes.rank == 0 else False
    return tqdm(disable=None if progress is None else not progress, bar_format="{desc}", leave=False)


def _check_arguments(
    method: Any, batches: Any, validation: Any, target: Any, record_every: int | None, callback: Any
) -> None:
    """Refuse what does not fit, before work begins."""
    as_method("method", method)
    if callback is not None and not callable(callback):
        raise TypeError(f"callback: expected a function of a record and a control, got {callback!r}")
    if not isinstance(batches, Batches | None):
        raise TypeError(f"batches: expected Batches(size), got {type(batches).__name__}")
    if not isinstance(target, Target | None):
        raise TypeError(f"target: expected a Target, got {type(target).__name__}")
    if not isinstance(validation, ControlProblem | None):
        raise TypeError(f"validation: expected a ControlProblem, got {type(validation).__name__}")
    if validation is not None and not hasattr(validation.terminal_cost, "accuracy"):
        raise ValueError("validation: expected a problem whose terminal cost has an accuracy, such as CrossEntropy")
    if target is not None and target.quantity == "accuracy" and validation is None:
        raise ValueError("target: expected a validation problem beside a target of accuracy, got none")
    if record_every is not None and record_every < 1:
        raise ValueError(f"record_every: expected an integer >= 1, got {record_every}")


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
    if not hasattr(problem.terminal_cost, "accuracy"):
        raise ValueError("problem: expected a terminal cost with an accuracy, such as CrossEntropy")
    objective = discretize(problem, control.space.grid.steps, integrator)
    cost: Any = problem.terminal_cost
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
