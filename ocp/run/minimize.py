"""The only loop over iterations: stopping, records, progress, interrupts."""

from __future__ import annotations

import signal
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import replace
from functools import partial
from os import PathLike
from types import FrameType
from typing import Any

from torch import Tensor
from tqdm import tqdm

from ocp.adjoint.schedules import Schedule, StoreAll
from ocp.integrators.integrator import Integrator
from ocp.multilevel.nested import MGOPT
from ocp.objective.processes import SERIAL, Processes
from ocp.objective.reduced import ReducedObjective, discretize
from ocp.objective.solution import control_and_scheme
from ocp.optimize.augmented_lagrangian import AugmentedLagrangian
from ocp.optimize.interior_point.method import InteriorPoint
from ocp.optimize.lbfgs import LBFGS
from ocp.optimize.method import Method, State, as_method, check_method, keeps_constraints, on_full_batches
from ocp.optimize.status import Status
from ocp.problem.control_problem import ControlProblem
from ocp.problem.inference import outside
from ocp.run.adaptive import Adaptive
from ocp.run.bookkeeping import Run
from ocp.run.checkpoints import Checkpoint, Saves, saving
from ocp.run.ending import explained, result_of
from ocp.run.measures import classified
from ocp.run.results import Record, Result
from ocp.run.stopping import Stop
from ocp.run.watching import Watch
from ocp.space.control import Control, TimeFunction
from ocp.space.transfer import depth
from ocp.training.batches import Batches
from ocp.verification.slopes import quick_check

__all__ = ["accuracy", "minimize", "prepare"]

#: Ends on a grid of `Adaptive` that may be due to long steps, so that a finer grid is tried.
CURABLE = (Status.NOT_FINITE, Status.NO_DECREASE, Status.UNBOUNDED)


@outside
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
        N, the number of steps of the finest grid. ``Adaptive(error)`` refines the grid until the estimated
        discretization error of the optimum is small enough; work is then counted in gradients on the last grid.
    method : Method, optional
        For example ``MGOPT(levels=4, smoother=LBFGS())``, ``Nested(...)`` or ``LBFGS()``. The default is MG/OPT with
        L-BFGS on all grids that halving the steps gives, or L-BFGS if there are parameters only; with constraints,
        `InteriorPoint`, or `AugmentedLagrangian` where that does not apply. Mini-batches require a method.
    integrator : str or Integrator
    schedule : Schedule
        Which states are stored: all by default; a few with ``Binomial(slots)``, which repeats the steps between them;
        the last one with ``Reversible()``, which undoes the steps of ``"verlet"``.
    start : Control, TimeFunction or Tensor, optional
        Replaces the problem's own start (`ControlProblem`). The steps of a coarser control must divide ``steps``.
    batches : Batches, optional
        Draw a mini-batch for each iteration, the same on all levels of a cycle. Methods that compare values or
        derivatives of successive steps, as line searches do, are refused; take one such as
        ``Nested(levels, TorchOptimizer(torch.optim.Adam), refine=Scheduled(100))``.
    stop : Stop
        Tolerance, target and limits.
    watch : Watch
        What is recorded and reported: validation samples, a callback, a live line.
    checkpoint : Checkpoint or path, optional
        A folder to save the run to, and to resume it from with ``Checkpoint(folder, resume=True)``.
    processes : Processes
        Several processes that make this same call, each for its part of the samples (`ocp.objective.processes`), and
        get the same result.

    Mini-batches and processes require terminal and running costs that are averages over the samples.

    Returns
    -------
    Result
        Its ``status`` says how the run ended; numerical failures do not raise. Ctrl-C ends a run after the current
        step. A second one raises ``KeyboardInterrupt``; this and exceptions in the problem's own functions hold what
        was reached in their attribute ``result``.

    Raises
    ------
    TypeError, ValueError
        If an argument does not fit, before work begins.

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
    begin = time.perf_counter()
    run = prepare(problem, steps, method, integrator, schedule, start, batches, stop, watch, processes)
    progress = run.watch.progress
    hidden = True if processes.rank > 0 else None if progress is None else not progress
    line = tqdm(disable=hidden, bar_format="{desc}", leave=False)
    with _counting(run), line, saving(checkpoint, run) as saves:
        try:
            status, why = _solve(run, saves, line)
        except KeyboardInterrupt as interrupt:
            status, why, run.parted = Status.INTERRUPTED, "", processes.size > 1
            if run.interrupts > 1:
                interrupt.result = result_of(run, status)  # type: ignore[attr-defined]
                raise
        except Exception as error:
            run.parted = processes.size > 1
            if run.history:
                error.result = result_of(run, Status.EXCEPTION)  # type: ignore[attr-defined]
                saves.save(last=True)
            raise
    return result_of(run, status, why).describe(clock=time.perf_counter() - begin)


def _suitable(objective: ReducedObjective) -> Method:
    """The method for a problem if none is given."""
    problem, interior = objective.discretization.problem, InteriorPoint()
    if problem.constraints:
        try:
            interior.check(objective)
        except ValueError:
            return AugmentedLagrangian()
        return interior
    return MGOPT(levels=depth(objective.space.grid.steps, 1)) if problem.control_size else LBFGS()


def prepare(
    problem: ControlProblem,
    steps: int | Adaptive,
    method: Method | None,
    integrator: Integrator | str,
    schedule: Schedule = StoreAll(),
    start: Control | TimeFunction | None = None,
    batches: Batches | None = None,
    stop: Stop = Stop(),
    watch: Watch = Watch(),
    processes: Processes = SERIAL,
) -> Run:
    """A run that has not begun, with the arguments of `minimize`; raises if one does not fit."""
    if start is not None and isinstance(problem, ControlProblem):
        problem = replace(problem, start=start)
    adaptive = steps if isinstance(steps, Adaptive) else None
    steps = steps.first if isinstance(steps, Adaptive) else steps
    objective = discretize(problem, steps, integrator, schedule)
    if problem.constraints and (batches is not None or processes.size > 1):
        raise ValueError("batches, processes: expected none with constraints, which may join all samples")
    if batches is not None or processes.size > 1:
        objective.discretization.check_division()
    if processes.size > 1:
        if objective.work.samples < processes.size:
            got = f"the {objective.work.samples} samples, got {processes.size}"
            raise ValueError(f"processes: expected at most one for each of {got}")
        objective = ReducedObjective(objective.discretization, schedule=schedule, processes=processes)
    _check_arguments(method, batches, stop, watch, adaptive)
    method = _suitable(objective) if method is None else method
    if problem.constraints and not keeps_constraints(method):
        expected = "one that keeps constraints, InteriorPoint() or AugmentedLagrangian(...)"
        raise ValueError(f"method: expected {expected}, got {type(method).__name__}")
    check_method(method, objective)
    if adaptive is not None and 2 * steps <= adaptive.limit:  # the method may have a finest grid of its own
        check_method(method, objective.on(2 * steps))
    samples = objective.work.samples
    if batches is not None and batches.size > samples:
        raise ValueError(f"batches: expected a size of at most the {samples} samples, got {batches.size}")
    every = watch.every or (1 if batches is None else batches.per_epoch(samples))
    finest = watch.finest or (stop.target is not None and stop.target.quantity == "value")
    watch = replace(watch, every=every, finest=finest)
    state = State(objective.at(objective.discretization.start()))
    return Run(objective, method, stop, watch, adaptive, batches, state)


def _solve(run: Run, saves: Saves, line: Any) -> tuple[Status, str]:
    """Begin or resume a run, and iterate until it ends: why it does, and a sentence about that."""
    status, why = Status.RUNNING, ""
    saved = saves.load()
    if saved is not None:
        run.restore(saved)
    else:
        start = run.state.control
        why = _contradiction(run.viewed, start) if run.watch.check_derivative else ""
        run.begin()
        if run.stationary and not run.look.derivative(start).any():  # as if autograd could not follow the cost
            why = why or _contradiction(run.look, start)
    stream = None if run.batches is None else run.batches.stream(run.objective.work.samples, run.iteration)
    while status is Status.RUNNING:
        if run.agree(saves.save()):
            status = Status.NOT_SAVED
        elif run.iteration % (run.watch.every or 1) == 0 or run.limit() is not Status.RUNNING:
            status = _look(run, line)
        if status is Status.RUNNING and not why:
            on, before = run.objective if stream is None else run.objective.take(next(stream)), run.state
            with run.timed():
                run.state = run.method.step(on, replace(before.of(on), status=run.coarse()))
            run.iteration += 1
            why = _uphill(run, before) if run.iteration == 1 else ""
        if why:
            status = Status.WRONG_DERIVATIVE
    if run.agree(saves.save(last=True)):
        status = Status.NOT_SAVED
    return (status, why) if why else explained(run, status)


def _look(run: Run, line: Any) -> Status:
    """Record and report the current control, and decide whether to end the run or to refine the grid."""
    record, callback, wish = run.record(), run.watch.callback, False
    line.set_description_str(_words(record))
    if callback is not None:
        control = run.control()
        wish = bool(callback(record, replace(control, flat=control.flat.clone())))
    wish = run.agree(wish)
    status = run.verdict(wish)
    if run.adaptive is None:
        return status
    if status is Status.CONVERGED:
        status, onward = run.judge(run.adaptive), run.refine
    elif status in CURABLE and 2 * run.steps <= run.adaptive.limit:
        status, onward = Status.RUNNING, partial(run.retry, status)
    else:
        return status
    if status is Status.RUNNING and wish:
        return Status.STOPPED
    if status is Status.RUNNING:
        with run.timed():
            onward()
        return _look(run, line)
    return status


def _contradiction(objective: ReducedObjective, control: Tensor) -> str:
    """A sentence about the values that contradict the derivative at a control, or near it; empty if they agree."""
    with objective.work.looking():
        slope = quick_check(objective, control)
    return f" At a control near the start {slope}." if slope.contradicted else ""


def _uphill(run: Run, before: State) -> str:
    """A contradiction at the control after a step that led up, if there is one."""
    u = run.state.control
    # With constraints, the way to a feasible control may lead up.
    if u.shape != before.control.shape or run.state.status is not Status.RUNNING or run.constrained:
        return ""
    here = run.viewed.on(run.objective.space.steps_of(u))
    value = run.state.of(here).point.value  # on a full batch the run needs it next, so it is charged
    with run.objective.work.looking():
        if not value > before.of(here).point.value:
            return ""
        why = _contradiction(here, u)
        if run.point is not None:
            run.point.store_states()  # so that its derivative is not charged for the states again
    return why


@contextmanager
def _counting(run: Run) -> Iterator[None]:
    """Count Ctrl-C in the main thread, unless another handler is installed; the second time raises an exception."""

    def note(number: int, frame: FrameType | None) -> None:
        run.interrupts += 1
        if run.interrupts > 1:
            raise KeyboardInterrupt

    before = signal.getsignal(signal.SIGINT)
    ours = threading.current_thread() is threading.main_thread() and before is signal.default_int_handler
    if ours:
        signal.signal(signal.SIGINT, note)
    try:
        yield
    finally:
        if ours:
            signal.signal(signal.SIGINT, before)


def _check_arguments(method: Any, batches: Any, stop: Any, watch: Any, adaptive: Adaptive | None) -> None:
    """Refuse what does not fit, before work begins."""
    for name, value, kind in (("batches", batches, Batches | None), ("stop", stop, Stop), ("watch", watch, Watch)):
        if not isinstance(value, kind):
            raise TypeError(f"{name}: expected {name.capitalize()}(...), got {type(value).__name__}")
    if method is not None:
        as_method("method", method)
    elif batches is not None:
        raise ValueError("method: mini-batches require a method, such as TorchOptimizer(torch.optim.Adam), got None")
    if adaptive is not None and batches is not None:
        raise ValueError(f"steps: mini-batches require a number of steps, as noise hides the error, got {adaptive}")
    if batches is not None and (part := on_full_batches(method)) is not None:
        raise ValueError(
            "method: mini-batches require one such as TorchOptimizer(torch.optim.Adam), "
            f"got {type(part).__name__}, which compares the objectives of successive steps"
        )
    if stop.target is not None and stop.target.quantity == "accuracy" and watch.validation is None:
        raise ValueError("target: an accuracy requires watch=Watch(validation=problem), got None")


def accuracy(problem: ControlProblem, solution: Result | Control, integrator: Integrator | str | None = None) -> float:
    """Fraction of the problem's samples whose class a trained network predicts.

    Parameters
    ----------
    problem : ControlProblem
        With the same network, possibly on other samples.
    solution : Result or Control
    integrator : str or Integrator, optional
        The one with which the control was found. A result knows it; with a `Control` alone it is required.

    Raises
    ------
    TypeError, ValueError
        If the cost of the problem has no classes, the control belongs to another problem, or the integrator is missing
        or not that of the result.
    """
    control, scheme = control_and_scheme(solution, integrator)
    return classified(discretize(problem, control.space.grid.steps, scheme), control)


def _words(record: Record) -> str:
    accuracy = "" if record.validation_accuracy is None else f"  accuracy {record.validation_accuracy:.3f}"
    accuracy += "" if record.violation is None else f"  violation {record.violation:.1e}"
    return (
        f"level {record.level} ({record.steps} steps)  iteration {record.iteration}  work {record.work_units:.1f}  "
        f"objective {record.value:.4e}  derivative {record.derivative_norm:.1e}{accuracy}  {record.seconds:.1f} s"
    )
