"""The only loop over iterations: stopping, records, progress, interrupts."""

from __future__ import annotations

import re
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field, replace
from math import inf, isfinite
from typing import Any

from torch import Tensor
from tqdm import tqdm

from ocp.batches import Batches
from ocp.control import Control
from ocp.integrators import Integrator, as_integrator
from ocp.methods import Method, State
from ocp.multilevel import MGOPT
from ocp.objective import ReducedObjective, discretize
from ocp.problem import ControlProblem
from ocp.result import Record, Result, Target
from ocp.status import Status
from ocp.transfer import Transfer

__all__ = ["accuracy", "minimize"]


def minimize(
    problem: ControlProblem,
    steps: int,
    method: Method | None = None,
    *,
    integrator: Integrator | str = "euler",
    start: Control | None = None,
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
    steps : int
        N, of the finest grid.
    method : Method, optional
        For example ``MGOPT(levels=4, smoother=LBFGS())``, which is the default, ``Nested(...)`` or ``LBFGS()`` alone.
    integrator : str or Integrator
    start : Control, optional
        In place of the problem's own; it may live on a grid whose steps divide ``steps``.
    batches : Batches, optional
        Draw a mini-batch for each iteration; it is held fixed through a cycle on all levels. Give `Nested` and `MGOPT`
        the rule ``refine=Scheduled(...)`` then.
    validation : ControlProblem, optional
        The same problem on other samples; its accuracy is recorded.
    watch_finest : bool
        Record the objective on the finest grid also while on a coarse one, so that runs on different grids can be
        compared. Like the accuracy it is neither counted as work nor timed.
    tolerance : float
        Stop when the dual norm of the derivative on the finest grid is at most this share of the first one recorded,
        which a multilevel method has on its coarsest grid.
    target : Target, optional
        Stop when it is reached.
    max_iterations : int
    max_work, max_seconds : float
        Limits; the iteration that exceeds one is finished.
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
    objective = discretize(problem, steps, as_integrator(integrator))
    method = MGOPT() if method is None else method
    if not isinstance(method, Method):
        raise TypeError(f"method: expected a method such as MGOPT(levels=4), got {type(method).__name__}")
    for name, limit in (("tolerance", tolerance), ("max_work", max_work), ("max_seconds", max_seconds)):
        if not limit >= 0:
            raise ValueError(f"{name}: expected a number >= 0, got {limit!r}")
    if validation is not None and not hasattr(validation.terminal_cost, "accuracy"):
        raise ValueError("validation: expected a problem whose terminal cost has an accuracy, such as CrossEntropy")
    samples = objective.work.samples
    if record_every is None:
        record_every = 1 if batches is None else batches.per_epoch(samples)
    if record_every < 1:
        raise ValueError(f"record_every: expected an integer >= 1, got {record_every}")
    stream = None if batches is None else batches.stream(samples)
    run = _Run(objective, batches is None, validation, watch_finest)
    status = Status.RUNNING
    with tqdm(disable=None if progress is None else not progress, bar_format="{desc}", leave=False) as line:
        try:
            with run.clock.running():
                state = method.init(objective, objective.discretization.start().flat)
            run.state = state
            while status is Status.RUNNING:
                if state.status is not Status.RUNNING or run.iteration % record_every == 0:
                    record = run.record()
                    line.set_description_str(_line(record, run.iteration))
                    stop = callback is not None and callback(record, run.control())
                    converged = record.derivative_norm <= tolerance * run.history[0].derivative_norm
                    if converged and record.level > 0:
                        state = replace(state, status=Status.CONVERGED)  # so that the method refines the grid
                    status = _status(run, record, converged, stop, target, max_iterations, max_work, max_seconds)
                if status is Status.RUNNING:
                    on = objective if stream is None else objective.take(next(stream))
                    with run.clock.running():
                        state = method.step(on, state)
                    run.state, run.iteration = state, run.iteration + 1
        except KeyboardInterrupt:
            status = Status.INTERRUPTED
        except Exception as error:
            if run.history:
                error.result = run.result(Status.RUNNING, method)  # type: ignore[attr-defined]
            raise
    return run.result(status, method)


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


@dataclass
class _Run:
    """One run of the loop: where it is, what it has recorded, its best control on the finest grid."""

    objective: ReducedObjective
    full_batch: bool
    validation: ControlProblem | None
    watch_finest: bool
    state: State = None  # type: ignore[assignment]
    iteration: int = 0
    history: list[Record] = field(default_factory=list)
    clock: _Clock = field(default_factory=_Clock)
    best: tuple[float, Tensor] | None = None

    def __post_init__(self) -> None:
        self.look = self.objective.uncounted()
        if self.validation is not None:
            steps, integrator = self.objective.space.grid.steps, self.objective.discretization.integrator
            self.look_validation = discretize(self.validation, steps, integrator)

    def control(self) -> Control:
        """The current control on the finest grid."""
        space, flat = self.objective.space, self.state.control
        coarse = self.objective.on(space.steps_of(flat)).space
        return Control(space, flat if coarse == space else Transfer(space, coarse).prolong(flat))

    def record(self) -> Record:
        """Evaluate where the run is and note it; on a full batch the method needs that next, so it is charged."""
        u, level = self.state.control, self.state.level
        steps = self.objective.space.steps_of(u)
        if self.full_batch:
            with self.clock.running():
                value, norm = _evaluate(self.objective.on(steps), u)
        else:
            value, norm = _evaluate(self.look.on(steps), u)
        if level == 0 and isfinite(value) and (self.best is None or value < self.best[0]):
            self.best = (value, u)
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
        """The best control on the finest grid, and all that was recorded."""
        objective, x = self.objective, self.objective.discretization.example()[0]
        control = self.control() if self.best is None else Control(objective.space, self.best[1])
        value, norm = _evaluate(self.look, control.flat)
        note = "" if self.state.level == 0 else f" It was still on level {self.state.level}; its control was prolonged."
        return Result(
            control,
            value,
            norm,
            status,
            f"{status.value}{note} After {self.iteration} iterations and {objective.work.units:.2f} work units "
            f"the objective is {value:.6g} and the dual norm of its derivative {norm:.2e}.",
            objective.work.units,
            self.clock.seconds,
            tuple(self.history),
            dict(self.state.counts),
            self._accuracy(control),
            about={
                "steps": objective.space.grid.steps,
                "integrator": objective.discretization.integrator.name,
                "recipe": re.sub(r"<function (\w+) at \w+>", r"\1", repr(method)),
                "dtype": str(x.dtype).removeprefix("torch."),
                "device": str(x.device),
            },
        )


def _evaluate(objective: ReducedObjective, u: Tensor) -> tuple[float, float]:
    value = objective.value(u)
    return value, objective.space.dual_norm(objective.derivative(u)) if isfinite(value) else inf


def _status(
    run: _Run,
    record: Record,
    converged: bool,
    stop: bool | None,
    target: Target | None,
    max_iterations: int,
    max_work: float,
    max_seconds: float,
) -> Status:
    """Why to stop after this record, or RUNNING."""
    if not (isfinite(record.value) and isfinite(record.derivative_norm)):
        return Status.NOT_FINITE
    if record.level == 0 and converged:
        return Status.CONVERGED
    if target is not None and target.reached(record):
        return Status.TARGET
    if stop:
        return Status.STOPPED
    limits = (
        (run.state.status is not Status.RUNNING, run.state.status),
        (run.iteration >= max_iterations, Status.MAX_ITERATIONS),
        (record.work_units >= max_work, Status.MAX_WORK),
        (record.seconds >= max_seconds, Status.MAX_SECONDS),
    )
    return next((status for reached, status in limits if reached), Status.RUNNING)


def _line(record: Record, iteration: int) -> str:
    parts = [
        f"level {record.level} ({record.steps} steps)",
        f"iteration {iteration}",
        f"work {record.work_units:.1f}",
        f"objective {record.value:.4e}",
        f"derivative {record.derivative_norm:.1e}",
        f"{record.seconds:.1f} s",
    ]
    if record.validation_accuracy is not None:
        parts.insert(-1, f"accuracy {record.validation_accuracy:.3f}")
    return "  ".join(parts)
