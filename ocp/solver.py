"""The only loop over iterations: stopping, records, progress, interrupts."""

from __future__ import annotations

import re
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager, nullcontext, suppress
from dataclasses import dataclass, field, replace
from math import inf, isfinite, nan
from typing import Any

import torch
from torch import Tensor
from tqdm import tqdm

from ocp.adaptive import Adaptive, resolved
from ocp.batches import Batches
from ocp.bounds import feasible
from ocp.checkpoints import Memory, StoreAll
from ocp.control import Control, Path
from ocp.integrators import Integrator, as_integrator
from ocp.methods import Method, State
from ocp.multilevel import MGOPT
from ocp.objective import ReducedObjective, discretize, optimality
from ocp.problem import ControlProblem
from ocp.result import Record, Result, Target
from ocp.status import Status
from ocp.transfer import LINEAR, Transfer, depth

__all__ = ["accuracy", "minimize"]


def minimize(
    problem: ControlProblem,
    steps: int | Adaptive,
    method: Method | None = None,
    *,
    integrator: Integrator | str = "euler",
    memory: Memory = StoreAll(),
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
        L-BFGS on all grids that there are by halving the steps.
    integrator : str or Integrator
    memory : Memory
        ``Checkpoints(slots)`` keeps so many states and takes the steps between them again; by default all are kept.
    start : Control, Path or Tensor, optional
        In place of the problem's own, with the same choices (`ControlProblem`); the steps of a coarser control must
        divide ``steps``.
    batches : Batches, optional
        Draw a mini-batch for each iteration; it is held fixed through a cycle on all levels. Give `Nested` and `MGOPT`
        the rule ``refine=Scheduled(...)`` then.
    validation : ControlProblem, optional
        The same problem on other samples; its accuracy is recorded.
    watch_finest : bool
        Record the objective on the finest grid also while on a coarse one, so that runs on different grids can be
        compared. Like the accuracy it is neither counted as work nor timed. A target of value asks for it.
    tolerance : float
        Stop when the dual norm of the derivative on the finest grid, or with bounds that of the projected gradient step
        (`ocp.objective.optimality`), is at most this share of that at the start.
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
        ``callback(record, control)`` after each record; the run stops if it returns True.
    progress : bool, optional
        Show a live line; by default where the output is a terminal.

    Returns
    -------
    Result
        How a run ended is its ``status``; numerical failures do not raise.

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
    adaptive = steps if isinstance(steps, Adaptive) else None
    steps = steps.first if isinstance(steps, Adaptive) else steps
    objective = discretize(problem, steps, as_integrator(integrator), memory)
    method = MGOPT(levels=depth(steps, 1)) if method is None else method
    stopping = _Stopping(tolerance, target, max_iterations, max_work, max_seconds)
    _check_arguments(method, batches, validation, target, record_every)
    if adaptive is not None and batches is not None:
        raise ValueError("steps: expected a number beside mini-batches, whose noise hides the discretization error")
    if adaptive is not None:
        _check_grids(method, objective, [n for n in (steps, 2 * steps) if n <= adaptive.limit])
    samples = objective.work.samples
    if batches is not None:
        objective.take(torch.arange(min(batches.size, samples)))  # raises where the problem cannot be divided
    if record_every is None:
        record_every = 1 if batches is None else batches.per_epoch(samples)
    stream = None if batches is None else batches.stream(samples)
    watch_finest = watch_finest or (target is not None and target.quantity == "value")
    run = _Run(objective, batches is None, validation, watch_finest, State(objective.discretization.start().flat))
    status = Status.RUNNING
    with tqdm(disable=None if progress is None else not progress, bar_format="{desc}", leave=False) as line:
        try:
            with run.clock.running():
                state = method.init(objective, run.state.control)
            run.begin(state)
            while status is Status.RUNNING:
                if run.iteration % record_every == 0 or stopping.limit(run) is not Status.RUNNING:
                    record = run.record()
                    line.set_description_str(_line(record))
                    stop = callback is not None and callback(record, run.control())
                    status = stopping.status(run, record, stop)
                    if record.level > 0:
                        state = replace(state, status=stopping.coarse(run, record))
                    if adaptive is not None and status is Status.CONVERGED:
                        status = run.judge(adaptive)
                        if status is Status.RUNNING and stop:
                            status = Status.STOPPED
                        if status is Status.RUNNING:
                            with run.clock.running():
                                state = run.refine(method)
                            continue
                if status is Status.RUNNING:
                    on = run.objective if stream is None else objective.take(next(stream))
                    with run.clock.running():
                        state = method.step(on, state)
                    run.state, run.iteration = state, run.iteration + 1
            if status.success and not run.resolved():
                status = Status.UNRESOLVED
        except KeyboardInterrupt:
            status = Status.INTERRUPTED
        except Exception as error:
            if run.history:
                error.result = run.result(Status.RUNNING, method)  # type: ignore[attr-defined]
            raise
    met = None if target is None else target.first(tuple(run.history)) is not None
    about = {"tolerance": tolerance, "target": None if target is None else str(target), "target_reached": met}
    return run.result(status, method).describe(**about)


def _check_arguments(method: Any, batches: Any, validation: Any, target: Any, record_every: int | None) -> None:
    """Refuse what does not fit, before work begins."""
    if isinstance(method, type) or not isinstance(method, Method):
        got = f"the class {method.__name__}" if isinstance(method, type) else type(method).__name__
        raise TypeError(f"method: expected a method such as MGOPT(levels=4), got {got}")
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


def _check_grids(method: Method, objective: ReducedObjective, grids: Sequence[int]) -> None:
    """Refuse a method that has a finest grid of its own; the work of looking is counted nowhere."""
    for steps in grids:
        look = ReducedObjective(objective.discretization.on(steps))
        method.init(look, look.discretization.start().flat)


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


@dataclass
class _Clock:
    """Seconds spent inside `running`."""

    seconds: float = 0.0

    @contextmanager
    def running(self) -> Iterator[None]:
        begin = time.perf_counter()
        try:
            yield
        finally:
            self.seconds += time.perf_counter() - begin


@dataclass(frozen=True)
class _Point:
    """A recorded control, with its level and value by which it is ranked, and the norm of its derivative."""

    rank: tuple[int, float]
    norm: float
    flat: Tensor


@dataclass
class _Run:
    """One run of the loop: where it is, what it has recorded, its best control on the finest grid."""

    objective: ReducedObjective
    full_batch: bool
    validation: ControlProblem | None
    watch_finest: bool
    state: State
    iteration: int = 0
    history: list[Record] = field(default_factory=list)
    clock: _Clock = field(default_factory=_Clock)
    best: _Point | None = None
    reference: float = 0.0
    optima: list[float] = field(default_factory=list)
    error: float | None = None
    stationary: bool = False
    before: float = 0.0  # work done before the present finest grid

    def __post_init__(self) -> None:
        self.look = self.objective.uncounted()
        if self.validation is not None:
            steps, integrator = self.objective.space.grid.steps, self.objective.discretization.integrator
            self.look_validation = discretize(self.validation, steps, integrator, self.objective.memory)

    def judge(self, adaptive: Adaptive) -> Status:
        """Whether the grid on which the tolerance was met is fine enough; RUNNING if it is to be refined."""
        self.optima.append(self.history[-1].value)
        self.error = adaptive.estimate(self.optima, self.objective.discretization.integrator.order)
        if adaptive.enough(self.error, self.optima[-1]):
            return Status.CONVERGED
        return Status.RUNNING if 2 * self.objective.space.grid.steps <= adaptive.limit else Status.MAX_STEPS

    def resolved(self) -> bool:
        """Whether the grid resolves the states at all; looking is not counted."""
        units, flat = self.objective.work.units, self.state.control
        try:
            return resolved(self.objective, flat if self.state.level == 0 else self.control().flat)
        finally:
            self.objective.work.units = units

    def refine(self, method: Method) -> State:
        """Go on from here with a finest grid of twice the steps, to which all that was recorded now refers."""
        coarse, work = self.objective, self.objective.work
        fine = coarse.on(2 * coarse.space.grid.steps)
        transfer = Transfer(fine.space, coarse.space, LINEAR)
        control = feasible(transfer.prolong(self.state.control), fine.box)
        memory = method.transport(self.state.memory, transfer)
        self.state = replace(self.state, control=control, memory=memory, status=Status.RUNNING)
        self.objective, self.look = fine, self.look.on(fine.space.grid.steps)
        if self.validation is not None:
            self.look_validation = self.look_validation.on(fine.space.grid.steps)
        work.steps, work.units = 2 * work.steps, work.units / 2
        self.before = work.units
        self.history = [replace(r, level=r.level + 1, work_units=r.work_units / 2) for r in self.history]
        if self.best is not None:
            self.best = replace(self.best, rank=(self.best.rank[0] + 1, self.best.rank[1]))
        return self.state

    def begin(self, state: State) -> None:
        """Take the first state, and the norm by which the tolerance is measured: that of the start, on the finest grid.

        A method that begins on a coarse grid has not computed it; then it is looked up, uncounted.
        """
        self.state = state
        objective = self.objective if state.level == 0 and self.full_batch else self.look
        with self.clock.running() if objective is self.objective else nullcontext():
            start = state.control if state.level == 0 else self.look.discretization.start().flat
            _, norm = _evaluate(objective, start)
        self.reference = norm if isfinite(norm) else 0.0  # by infinity everything would be small
        self.stationary = norm == 0

    def control(self, flat: Tensor | None = None) -> Control:
        """A control, by default the current one, on the finest grid."""
        space, flat = self.objective.space, self.state.control if flat is None else flat
        coarse = self.objective.on(space.steps_of(flat)).space
        if coarse != space:
            flat = feasible(Transfer(space, coarse).prolong(flat), self.objective.box)
        return Control(space, flat)

    def _notes(self) -> Iterator[str]:
        """What there is to say besides why the run ended."""
        if self.state.level > 0:
            yield f"It was still on level {self.state.level}; its control was prolonged."
        if self.stationary:
            yield "The derivative is zero at the start, which need not be a minimum; another start may do better."
        if self.error is not None:
            steps, error = self.objective.space.grid.steps, self.error / max(abs(self.optima[-1]), 1e-300)
            yield f"The grid was refined to {steps} steps; the estimated relative discretization error is {error:.1e}."

    def record(self) -> Record:
        """Evaluate where the run is and note it; on a full batch the method needs that next, so it is charged."""
        u, level = self.state.control, self.state.level
        steps = self.objective.space.steps_of(u)
        if self.full_batch:
            with self.clock.running():
                value, norm = _evaluate(self.objective.on(steps), u)
        else:
            value, norm = _evaluate(self.look.on(steps), u)
        if isfinite(value) and isfinite(norm) and (self.best is None or (level, value) < self.best.rank):
            self.best = _Point((level, value), norm, u)
        control = self.control()
        finest = value if level == 0 else self.look.value(control) if self.watch_finest else None
        spent = (self.objective.work.units, self.clock.seconds)
        self.history.append(Record(self.iteration, level, steps, *spent, value, norm, finest, self._accuracy(control)))
        return self.history[-1]

    def _accuracy(self, control: Control) -> float | None:
        if self.validation is None:
            return None
        cost: Any = self.validation.terminal_cost
        return cost.accuracy(self.look_validation.final_state(control), control.parameters)

    def result(self, status: Status, method: Method) -> Result:
        """What was recorded, with the last control if a stopping test holds there, else with the best finite one."""
        objective, x = self.objective, self.objective.discretization.example()[0]
        last = self.history[-1] if self.history else None
        if status.success and last is not None:
            point: _Point | None = _Point((last.level, last.value), last.derivative_norm, self.state.control)
        else:
            point = self.best
        control = self.control() if point is None else self.control(point.flat)
        accuracy, value, norm = None, nan, nan
        if point is not None and point.rank[0] == 0:
            value, norm = point.rank[1], point.norm
        # After an exception in the user's functions these may fail again; nothing else may be lost by that.
        with suppress(Exception) if status is Status.RUNNING else nullcontext():
            accuracy = self._accuracy(control)
            if point is None or point.rank[0] > 0:
                value, norm = _evaluate(self.look, control.flat)
        why = " ".join([status.value, *self._notes()])
        return Result(
            control,
            value,
            norm,
            status,
            f"{why} After {self.iteration} iterations and {objective.work.units:.2f} "
            f"work units the objective is {value:.6g} and the dual norm of its derivative {norm:.2e}.",
            self.iteration,
            objective.work.units,
            self.clock.seconds,
            tuple(self.history),
            dict(self.state.counts),
            accuracy,
            about={
                "steps": objective.space.grid.steps,
                "integrator": objective.discretization.integrator.name,
                "recipe": re.sub(r"<function (\w+) at \w+>", r"\1", repr(method)),
                "dtype": str(x.dtype).removeprefix("torch."),
                "device": str(x.device),
                "start_norm": self.reference or None,
                **({} if self.error is None else {"discretization_error": self.error}),
            },
        )


@dataclass(frozen=True)
class _Stopping:
    """When a run ends."""

    tolerance: float
    target: Target | None
    max_iterations: int
    max_work: float
    max_seconds: float

    def __post_init__(self) -> None:
        for name in ("tolerance", "max_iterations", "max_work", "max_seconds"):
            if not getattr(self, name) >= 0:
                raise ValueError(f"{name}: expected a number >= 0, got {getattr(self, name)!r}")

    def converged(self, run: _Run, record: Record) -> bool:
        """Whether the tolerance is met on the grid of the record."""
        return record.derivative_norm <= self.tolerance * run.reference

    def coarse(self, run: _Run, record: Record) -> Status:
        """What a method is told of its work on a coarse grid, so that it refines the grid unless it is RUNNING."""
        if not _finite(record):
            return Status.NOT_FINITE
        return Status.CONVERGED if self.converged(run, record) else run.state.status

    def limit(self, run: _Run) -> Status:
        """Why the run cannot go on, or RUNNING."""
        limits = (
            (run.state.status is not Status.RUNNING, run.state.status),
            (run.iteration >= self.max_iterations, Status.MAX_ITERATIONS),
            (run.objective.work.units - run.before >= self.max_work, Status.MAX_WORK),
            (run.clock.seconds >= self.max_seconds, Status.MAX_SECONDS),
        )
        return next((status for reached, status in limits if reached), Status.RUNNING)

    def status(self, run: _Run, record: Record, stop: bool | None) -> Status:
        """Why to stop after a record, or RUNNING."""
        if record.level == 0 and not _finite(record):
            return Status.NOT_FINITE
        if record.level == 0 and self.converged(run, record):
            return Status.CONVERGED
        if self.target is not None and self.target.reached(record):
            return Status.TARGET
        return Status.STOPPED if stop else self.limit(run)


def _finite(record: Record) -> bool:
    return isfinite(record.value) and isfinite(record.derivative_norm)


def _evaluate(objective: ReducedObjective, u: Tensor) -> tuple[float, float]:
    value = objective.value(u)
    return value, optimality(objective, u) if isfinite(value) else inf


def _line(record: Record) -> str:
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
