"""When a run ends, and why."""

from __future__ import annotations

from contextlib import suppress
from dataclasses import dataclass
from math import inf, isfinite
from numbers import Real

import torch
from torch import Tensor

from ocp.adjoint.diagnosis import locate
from ocp.objective.evaluation import free_part
from ocp.objective.reduced import ReducedObjective
from ocp.optimize.method import State
from ocp.optimize.status import Status
from ocp.run.results import Record, Target
from ocp.run.run import Run
from ocp.verification.slopes import Slope, measure_slope, quick_check

__all__ = ["Stop", "blind", "checked", "contradiction", "explain"]


#: After this many records on the finest grid in which the value changed by its rounding errors alone, and the smallest
#: norm of the derivative was not halved, the precision is exhausted.
STALL = 60


@dataclass(frozen=True)
class Stop:
    """When `minimize` ends a run.

    Parameters
    ----------
    tolerance : float
        Stop when the dual norm of the derivative on the finest grid, or with bounds that of the projected gradient step
        (`ocp.objective.evaluation.optimality`), is at most this fraction of its value at the start. If the start is not
        finite on that grid, but is on a coarser one, the first control that is finite on it takes the place of the
        start.
    target : Target, optional
        Stop when it is reached.
    max_iterations : int
    max_work : float
        In gradients on the finest grid and all samples. With `Adaptive`, each finest grid in turn has this limit.
    max_seconds : float
        The iteration that exceeds a limit is completed. Looking (`Watch`) counts toward none of them.

    Raises
    ------
    TypeError, ValueError
        If an argument does not fit.
    """

    tolerance: float = 1e-6
    target: Target | None = None
    max_iterations: int = 1000
    max_work: float = inf
    max_seconds: float = inf

    def __post_init__(self) -> None:
        if not isinstance(self.target, Target | None):
            raise TypeError(f"target: expected a Target, got {type(self.target).__name__}")
        for name in ("tolerance", "max_iterations", "max_work", "max_seconds"):
            value = getattr(self, name)
            if not (isinstance(value, Real) and float(value) >= 0):
                raise ValueError(f"{name}: expected a number >= 0, got {value!r}")

    def converged(self, run: Run, record: Record) -> bool:
        """Whether the tolerance is met on the grid of the record."""
        return record.derivative_norm <= self.tolerance * run.reference

    def coarse(self, run: Run, record: Record) -> Status:
        """The status of a method's work on a coarse grid; unless it is RUNNING, the method refines the grid."""
        if not _finite(record) or record.value < run.floor:
            return Status.NOT_FINITE
        return Status.CONVERGED if self.converged(run, record) else run.state.status

    def limit(self, run: Run) -> Status:
        """Why the run cannot go on, or RUNNING."""
        limits = (
            (run.state.status is not Status.RUNNING, run.state.status),
            (run.interrupted, Status.INTERRUPTED),
            (run.iteration >= self.max_iterations, Status.MAX_ITERATIONS),
            (run.objective.work.units - run.before >= self.max_work, Status.MAX_WORK),
            (run.seconds >= self.max_seconds, Status.MAX_SECONDS),
        )
        return next((status for reached, status in limits if reached), Status.RUNNING)

    def status(self, run: Run, record: Record, stop: bool | None) -> Status:
        """Why to stop after a record, or RUNNING."""
        if record.level == 0 and record.value < run.floor:
            return Status.UNBOUNDED
        if record.level == 0 and not _finite(record):
            return Status.NOT_FINITE
        if record.level == 0 and self.converged(run, record):
            return Status.CONVERGED
        if self.target is not None and self.target.reached(record):
            return Status.TARGET
        if run.full_batch and _stalled(run):
            return Status.PRECISION
        return Status.STOPPED if stop else self.limit(run)


def _stalled(run: Run) -> bool:
    """Whether nothing but rounding errors has changed for a while."""
    last = run.history[-STALL:]
    if len(last) < STALL or any(record.level for record in last):
        return False
    values, norms = [r.value for r in last], [r.derivative_norm for r in last]
    rounding = 8 * torch.finfo(run.state.control.dtype).eps * max(map(abs, values))
    return max(values) - min(values) <= rounding and min(norms[STALL // 2 :]) > 0.5 * min(norms[: STALL // 2])


def explain(run: Run, status: Status, why: str = "") -> tuple[Status, str]:
    """Why a run ended as it did, where that takes a closer look, and a sentence about it.

    A search that fails on the finest grid can mean that the derivative is wrong, or that rounding or noise hides what
    is left to gain; differences of values tell. A number that is not finite is traced to its step. The looks are not
    counted as work.
    """
    with suppress(ArithmeticError, LookupError, RuntimeError, TypeError, ValueError), run.objective.work.looking():
        if status is Status.NO_DECREASE and run.state.level == 0:
            slope = _slope_of_descent(run.viewed, run.state.control)
            if slope.contradicted:
                return Status.WRONG_DERIVATIVE, f" Along the gradient {slope}."
            if isfinite(slope.error) and slope.decrease <= 0:
                status = Status.PRECISION
        if status in (Status.NO_DECREASE, Status.NOT_FINITE):
            why = _trace(run, run.state.control) if status is Status.NOT_FINITE else ""
            why = why or _trace(run, run.objective.work.failed)
    return status, why


def _slope_of_descent(objective: ReducedObjective, u: Tensor) -> Slope:
    """The slope against the gradient of the entries that no bound holds, by differences of all lengths."""
    point = objective.at(u)
    return measure_slope(point, -objective.space.gradient(free_part(point)[0]), LENGTHS)


#: From the size of the control down to where differences lose half their digits to rounding, in double precision.
LENGTHS = tuple(8.0**-k for k in range(8))


def _trace(run: Run, control: Tensor | None) -> str:
    """A sentence that names the place where a control causes a number that is not finite."""
    if control is None:
        return ""
    objective = run.viewed.on(run.objective.space.steps_of(control))
    place, steps = locate(objective.discretization, control), objective.space.grid.steps
    return f" Not finite is {place}, on the grid of {steps} steps." if place else ""


def checked(run: Run) -> Slope | None:
    """The slope at the start, or near it, where values contradict the derivative."""
    with run.objective.work.looking():
        slope = quick_check(run.viewed, run.start())
    return slope if slope.contradicted else None


def blind(run: Run) -> Slope | None:
    """The same where the derivative is zero in all its entries, as that of a cost which autograd cannot follow is."""
    start = run.start()
    if bool(run.look.derivative(start).any()):
        return None
    slope = quick_check(run.look, start)
    return slope if slope.contradicted else None


def contradiction(run: Run, before: State) -> Slope | None:
    """The slope at the control after a step, if that step led up and values contradict the derivative there."""
    u, space = run.state.control, run.objective.space
    if u.shape != before.control.shape or run.state.status is not Status.RUNNING:
        return None
    here = run.viewed.on(space.steps_of(u))
    value = run.state.of(here).point.value  # on a full batch the run needs it next, so it is charged
    with run.objective.work.looking():
        if not value > before.of(here).point.value:
            return None
        slope = quick_check(here, u)
        if run.point is not None:
            run.point.store_states()  # so that its derivative is not charged for the states again
    return slope if slope.contradicted else None


def _finite(record: Record) -> bool:
    return isfinite(record.value) and isfinite(record.derivative_norm)
