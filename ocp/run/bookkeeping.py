"""The state of a run: where it is, what it has recorded, its best control on the finest grid."""

from __future__ import annotations

import time
from collections import Counter
from collections.abc import Iterator
from contextlib import contextmanager, nullcontext
from dataclasses import dataclass, field, replace
from math import inf, isfinite
from typing import Any

import torch
from torch import Tensor

from ocp.objective.feasibility import Excess, excesses, worst
from ocp.objective.reduced import ReducedEvaluation, ReducedObjective, discretize
from ocp.optimize.method import KKT, Method, State
from ocp.optimize.status import Status
from ocp.run.adaptive import Adaptive, estimate
from ocp.run.measures import Scale, classified, evaluate
from ocp.run.results import Record
from ocp.run.stopping import Stop
from ocp.run.verdicts import curvature, premature
from ocp.run.watching import Watch
from ocp.space.bounds import feasible
from ocp.space.control import Control
from ocp.space.transfer import LINEAR, Transfer
from ocp.training.batches import Batches

__all__ = ["Run"]

#: An objective that has fallen this far, relative to its value and slope at the start, is called unbounded.
DEEP = 1e10

#: If the objective differs by more than this fraction from the saved value, the problem is another one; noise is less.
SAME = 1e-3

#: After this many records on the finest grid in which the value changed by its rounding errors alone, and the smallest
#: norm of the derivative was not halved, the precision is exhausted.
STALL = 60

#: What a snapshot takes as it is.
PLAIN = ("iteration", "seconds", "history", "best", "origin", "scale", "optima", "simulated", "before", "unsaved")

#: An optimum on an adaptive grid is simulated with this many times the steps before it is accepted.
FINER = 64

#: A start is close to an optimum below this estimated distance, as a share of its size. Then the tolerance is relative
#: to the derivative at that distance, which it has as good as reached already.
CLOSE = 1e-3


@dataclass(eq=False)
class Run:
    """One run of the loop; its seconds do not include looking."""

    objective: ReducedObjective
    method: Method
    stop: Stop
    watch: Watch
    adaptive: Adaptive | None
    batches: Batches | None
    state: State
    iteration: int = 0
    seconds: float = 0.0
    history: list[Record] = field(default_factory=list)
    # A record with its control, and what is known of its constraints: least level first, then violation, then value.
    best: tuple[Record, Tensor, KKT | None] | None = None
    origin: tuple[float, float, Tensor] | None = None  # value, norm of the derivative, and control at the start
    scale: Scale = field(default_factory=Scale)
    optima: dict[int, float] = field(default_factory=dict)  # by the steps of the finest grids so far
    simulated: float = 0.0  # the change of the last optimum on a much finer grid
    before: float = 0.0  # work units spent before the current finest grid
    unsaved: int = 0
    resumed: int | None = None  # the iteration from which the run was resumed
    interrupts: int = 0
    interrupted: bool = False  # this process or another
    elapsed: float = 0.0  # seconds of the slowest process
    parted: bool = False  # after an exception: other processes are elsewhere, and asked for nothing more

    def __post_init__(self) -> None:
        self.look = self.objective.uncounted()
        # On all samples, with the storage that the run has already if possible.
        self.viewed = self.objective if self.batches is None else self.look
        scheme, schedule = self.objective.discretization.integrator, self.objective.schedule
        problem = self.watch.validation
        self.validated = None if problem is None else discretize(problem, self.steps, scheme, schedule)

    @property
    def steps(self) -> int:
        """Of the finest grid."""
        return self.objective.space.grid.steps

    @property
    def point(self) -> ReducedEvaluation | None:
        """The evaluation at the current control on all samples; None if it is on a mini-batch."""
        point = self.state.point
        return point if self.batches is None and isinstance(point, ReducedEvaluation) else None

    @property
    def current(self) -> Record | None:
        """The record of the current control, if it was made."""
        here = (self.iteration, self.objective.space.steps_of(self.state.control))
        return next((r for r in self.history[-1:] if (r.iteration, r.steps) == here), None)

    @property
    def stationary(self) -> bool:
        """Whether the derivative is zero at the start."""
        return self.scale.iteration == 0 and self.scale.norm == 0

    @property
    def constrained(self) -> bool:
        """Whether there are constraints other than bounds: then neither a small derivative nor a low value will do."""
        return bool(self.objective.discretization.problem.constraints)

    @property
    def error(self) -> float | None:
        """The estimated discretization error; None unless the tolerance was met on the current finest grid."""
        order, known = self.objective.discretization.integrator.order, self.steps in self.optima
        return max(estimate(tuple(self.optima.values()), order), self.simulated) if known else None

    @contextmanager
    def timed(self) -> Iterator[None]:
        """Add the seconds spent in this context to those of the run."""
        begin = time.perf_counter()
        try:
            yield
        finally:
            self.seconds += time.perf_counter() - begin

    def snapshot(self) -> dict[str, Any]:
        """What it takes to go on from before the current record, to the last bit, and to compute nothing twice."""
        work, state = self.objective.work, self.state
        return {
            **{name: getattr(self, name) for name in PLAIN},
            "history": self.history if self.current is None else self.history[:-1],
            "work": (work.steps, work.units, work.failures),
            "control": state.control,
            "known": (None, None, False) if self.point is None else self.point.known,
            "state": (state.memory, state.status.name, dict(state.counts), state.level, state.visits, state.kkt),
            "random": torch.get_rng_state(),
            "cuda": torch.cuda.get_rng_state(state.control.device) if state.control.is_cuda else None,
        }

    def restore(self, saved: dict[str, Any]) -> None:
        """Go on from a `snapshot`, unless it has another value at its best control: then the problem is another one."""
        try:
            control, work, space = saved["control"], self.objective.work, self.objective.space
            work.steps, work.units, work.failures = saved["work"]
            self.objective = self.objective.on(work.steps)
            here = self.objective.on(space.steps_of(control))
            Control(here.space, control)  # raises if it is not a control of this problem
            value, derivative, in_storage = saved["known"]
            point = ReducedEvaluation(here, control, value, derivative)
            memory, status, counts, level, visits, kkt = saved["state"]
            self.state = State(point, memory, Status[status], counts, level, visits, kkt)
            if saved["best"] is not None:
                record, flat, _ = saved["best"]
                with work.looking():
                    found = self.viewed.on(space.steps_of(flat)).value(flat)
                if not abs(found - record.value) <= SAME * abs(record.value):
                    values = f"of value {record.value:.6g}, got {found:.6g}"
                    raise ValueError(f"resume: expected the problem that was saved, {values}")
            if in_storage:
                point.store_states()  # after all other sweeps, which overwrite the storage
            torch.set_rng_state(saved["random"])
            if saved["cuda"] is not None:
                torch.cuda.set_rng_state(saved["cuda"], control.device)
            vars(self).update({name: saved[name] for name in PLAIN}, resumed=saved["iteration"])
        except (AttributeError, LookupError, RuntimeError, TypeError) as error:
            raise ValueError(f"resume: expected the state of a run, got {type(error).__name__}: {error}") from error

    def look_at(self, flat: Tensor) -> ReducedEvaluation:
        """The evaluation at a control on its own grid and all samples, which is not counted as work."""
        return self.look.on(self.objective.space.steps_of(flat)).at(flat)

    def excess(self, flat: Tensor) -> Excess:
        """The largest violation of the constraints at the nodes, by a control on its own grid; not counted."""
        point = self.look_at(flat)
        return worst(excesses(point.objective.discretization, flat, point.states))

    def agree(self, wish: bool) -> bool:
        """Whether any process has a wish. All learn of interrupts and the slowest clock, so that they decide alike."""
        mine = float(self.interrupts > 0), self.seconds, float(wish)
        noted, self.elapsed, wished = self.objective.processes.maximum(*mine)
        self.interrupted = self.interrupted or noted > 0
        return wished > 0

    def limit(self) -> Status:
        """Why the run cannot go on, or RUNNING."""
        limits = (
            (self.state.status is not Status.RUNNING, self.state.status),
            (self.interrupted, Status.INTERRUPTED),
            (self.iteration >= self.stop.max_iterations, Status.MAX_ITERATIONS),
            (self.objective.work.units - self.before >= self.stop.max_work, Status.MAX_WORK),
            (self.elapsed >= self.stop.max_seconds, Status.MAX_SECONDS),
        )
        return next((status for reached, status in limits if reached), Status.RUNNING)

    def verdict(self, wish: bool) -> Status:
        """Why to stop after a record, or RUNNING; ``wish`` is that of the callback."""
        record, target = self.history[-1], self.stop.target
        outcome = self._outcome(record) if record.level == 0 else Status.RUNNING
        if outcome is not Status.RUNNING and (
            self.constrained or not (outcome is Status.CONVERGED and self._premature())
        ):
            return outcome
        if target is not None and target.reached(record):
            return Status.TARGET
        if self.batches is None and self._stalled():
            return Status.PRECISION
        return Status.STOPPED if wish else self.limit()

    def coarse(self) -> Status:
        """The status for the next step of the method; unless it is RUNNING, the method refines a coarse grid."""
        record = self.current
        outcome = Status.RUNNING if record is None or record.level == 0 else self._outcome(record)
        return self.state.status if outcome is Status.RUNNING else outcome

    def _outcome(self, record: Record) -> Status:
        """What a record says about the work on its own grid."""
        if record.value < self.scale.floor and not record.derivative_norm < 0.5 * self.scale.norm:
            return Status.UNBOUNDED if record.level == 0 else Status.NOT_FINITE
        if not isfinite(record.derivative_norm):
            return Status.NOT_FINITE
        small, kkt = self.small(record.derivative_norm), self.state.kkt
        if self.constrained:  # elsewhere the derivative is that of the objective alone, and need not vanish
            small = small and kkt is not None and max(kkt.violation, kkt.complementarity) <= self.stop.feasibility
            small = small and kkt is not None and kkt.minimum
        return Status.CONVERGED if small and self.state.status is not Status.SADDLE else Status.RUNNING

    def small(self, norm: float) -> bool:
        """Whether the norm of a derivative meets the tolerance."""
        return norm <= self.stop.tolerance * self.scale.norm

    def _premature(self) -> bool:
        """Whether the tolerance is met far from an optimum; from now on it is relative to the derivative here."""
        point = self.point
        if point is None or self.scale.norm == 0:
            return False
        with self.objective.work.looking():
            far = premature(point, max(self.scale.size, self.objective.space.norm(point.control)))
            point.store_states()  # so that the method does not compute them again
        if not far:
            return False
        norm = self.history[-1].derivative_norm
        self.scale = replace(self.scale, norm=norm, iteration=self.iteration, steep=True)
        return True

    def _stalled(self) -> bool:
        """Whether only rounding errors have changed for a while."""
        last = self.history[-STALL:]
        if len(last) < STALL or any(record.level for record in last):
            return False
        values, norms = [r.value for r in last], [r.derivative_norm for r in last]
        rounding = 8 * torch.finfo(self.state.control.dtype).eps * max(map(abs, values))
        return max(values) - min(values) <= rounding and min(norms[STALL // 2 :]) > 0.5 * min(norms[: STALL // 2])

    def judge(self, adaptive: Adaptive) -> Status:
        """Whether the grid is fine enough now that the tolerance is met; RUNNING if it is to be refined."""
        value = self.optima[self.steps] = self.history[-1].value
        self.simulated = 0.0
        if self.error is not None and adaptive.enough(self.error, value):
            # Two grids can agree on what both of them miss, such as a short pulse.
            finer = min(FINER, 2 ** ((adaptive.limit // self.steps).bit_length() - 1))  # a power of two, as in `refine`
            space, fine = self.objective.space, self.look.on(finer * self.steps)
            prolonged = Transfer(fine.space, space).prolong(self.state.control) if fine.space != space else None
            self.simulated = 0.0 if prolonged is None else abs(fine.value(prolonged) - value)
            if adaptive.enough(self.error, value):
                return Status.CONVERGED
        return Status.RUNNING if 2 * self.steps <= adaptive.limit else Status.MAX_STEPS

    def refine(self) -> None:
        """Go on with a finest grid of twice the steps, to which all records refer from now on."""
        point = self._finer(self.state.control)
        transfer = Transfer(point.objective.space, self.objective.space, LINEAR)
        memory = self.method.transport(self.state.memory, transfer)
        self._move(replace(self.state, point=point, memory=memory, status=Status.RUNNING, kkt=None))

    def retry(self, status: Status) -> None:
        """Begin anew with a finest grid of twice the steps, from the start or the best control, if that is lower there.

        Where a grid is too coarse, a run can fall without bound or into numbers that are not finite.
        """
        found = [] if self.best is None or status is Status.UNBOUNDED else [self.best[1]]
        start = self.state.control if self.origin is None else self.origin[2]
        points = [self._finer(self.control(flat).flat) for flat in (start, *found)]
        point = min(points, key=lambda p: p.value if isfinite(p.value) else inf)
        origin, counts = self.origin, Counter(self.state.counts)
        self._move(State(point, visits=self.state.visits))
        visits, self.scale = self.state.visits, Scale()
        self.optima.clear()
        self.begin()
        counts.update(self.state.counts, refused_grids=1)
        self.origin, self.state = origin, replace(self.state, counts=counts, visits=visits)

    def _finer(self, flat: Tensor) -> ReducedEvaluation:
        """The evaluation on a grid of twice the steps at the prolongation of a control on the finest one."""
        coarse = self.objective
        fine = coarse.on(2 * self.steps)
        return fine.at(feasible(Transfer(fine.space, coarse.space, LINEAR).prolong(flat), fine.box))

    def _move(self, state: State) -> None:
        """Make the grid of twice the steps the finest one, on which the state is."""
        work = self.objective.work
        visits = tuple(replace(v, begin=v.begin / 2, end=v.end / 2) for v in state.visits)
        self.state, self.objective = replace(state, visits=visits), self.objective.on(2 * self.steps)
        work.steps, work.units = 2 * work.steps, work.units / 2
        self.before = work.units
        self.history = [_one_level_lower(record) for record in self.history]
        if self.best is not None:
            self.best = (_one_level_lower(self.best[0]), *self.best[1:])

    def begin(self) -> None:
        """Take the first state, and the scale from the start on the finest grid, or else from the first finite record.

        An evaluation that the method does not need, since it begins on a coarse grid, is not counted. A run ends at a
        start that meets the tolerance.
        """
        work, full = self.objective.work, self.batches is None
        start = self.state.point if full else self.look_at(self.state.control)
        with self.timed():
            if full:
                start.value  # noqa: B018  a method that begins on a coarse grid compares with it in the end
            spent = work.units, work.failures
            self.state = state = self.method.init(self.objective, start)
        counted = state.level == 0 and full
        if full and not counted:
            work.units, work.failures = work.units - spent[0], work.failures - spent[1]
        point = state.point if counted else start
        with self.timed() if counted else work.looking():
            value, norm = evaluate(point, state.kkt)
            self._measure(value, norm, point.control)
        self.origin = (value, norm, point.control)
        if self.constrained:
            return
        size = self.scale.size
        if self.batches is None and isfinite(norm) and 0 < norm * size <= CLOSE * abs(value):
            with self.objective.work.looking():
                self.scale = replace(self.scale, norm=max(norm, CLOSE * curvature(point, size) * size))
                if counted and point is self.point:
                    self.point.store_states()
        if self.batches is None and self.adaptive is None and state.level > 0 and self.small(norm):
            self.state = State(start)

    def _measure(self, value: float, norm: float, control: Tensor) -> None:
        """Take the scale from a control on the finest grid."""
        if isfinite(norm):  # compared with infinity everything would be small
            # What a unit of the control can change, many times over: no minimum is as deep as that.
            size = self.objective.space.norm(control)
            deep = DEEP * max(1.0, abs(value) + norm * max(1.0, size))
            self.scale = Scale(norm, -deep, self.iteration, value, size)

    def control(self, flat: Tensor | None = None) -> Control:
        """A control, by default the current one, on the finest grid."""
        space, flat = self.objective.space, self.state.control if flat is None else flat
        coarse = self.objective.on(space.steps_of(flat)).space
        if coarse != space:
            flat = feasible(Transfer(space, coarse).prolong(flat), self.objective.box)
        return Control(space, flat)

    def record(self) -> Record:
        """Evaluate the current control and record it; on a full batch the method needs that next, so it is charged."""
        u, level, work = self.state.control, self.state.level, self.objective.work
        steps, full = self.objective.space.steps_of(u), self.batches is None
        kkt = self.state.kkt
        with self.timed() if full else nullcontext():
            value, norm = evaluate(self.state.point if full else self.look_at(u), kkt)
        if level == 0 and self.scale.norm == 0 and not self.stationary:
            self._measure(value, norm, u)
        control = self.control()
        finest = value if level == 0 else self.look_at(control.flat).value if self.watch.finest else None
        accuracy, violation, feasible = self.accuracy(control), None, None
        if self.constrained:
            violation = self.excess(u).relative if kkt is None else kkt.violation
            if level == 0 or self.watch.finest:
                feasible = (violation if level == 0 else self.excess(control.flat).relative) <= self.stop.feasibility
        record = Record(
            *(self.iteration, level, steps, work.units, self.seconds, value, norm, finest, accuracy),
            violation=violation,
            feasible=feasible,
        )
        if isfinite(norm) and (self.best is None or self._rank(record) < self._rank(self.best[0])):
            self.best = (record, u, kkt)
        self.history.append(record)
        return record

    def _rank(self, record: Record) -> tuple[float, ...]:
        return record.level, max(record.violation or 0.0, self.stop.feasibility), record.value

    def accuracy(self, control: Control) -> float | None:
        """On the validation samples, if there are any."""
        return None if self.validated is None else classified(self.validated.on(self.steps), control)


def _one_level_lower(record: Record) -> Record:
    return replace(record, level=record.level + 1, work_units=record.work_units / 2)
