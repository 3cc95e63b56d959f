"""The state of a run: where it is, what it has recorded, its best control on the finest grid."""

from __future__ import annotations

import re
import time
from collections.abc import Iterator, Mapping
from contextlib import contextmanager, nullcontext, suppress
from dataclasses import dataclass, field, replace
from math import inf, isfinite, nan
from typing import Any

import torch
from torch import Tensor

from ocp.objective.evaluation import Evaluation, optimality
from ocp.objective.reduced import ReducedEvaluation, ReducedObjective, discretize
from ocp.optimize.method import Method, State
from ocp.optimize.status import Status
from ocp.problem.control_problem import ControlProblem
from ocp.problem.protocols import Classifier
from ocp.run.adaptive import Adaptive, resolved
from ocp.run.interrupts import Interrupts
from ocp.run.results import Record, Result
from ocp.space.bounds import feasible
from ocp.space.control import Control
from ocp.space.transfer import LINEAR, Transfer

__all__ = ["Best", "Clock", "Run", "recipe"]


#: An objective that has fallen so far, against its start and its slope there, is called unbounded.
DEEP = 1e10

#: A problem whose objective differs by more than this share from what was saved is another one; noise differs by less.
SAME = 1e-3

#: What a snapshot takes as it is.
PLAIN = ("iteration", "best", "reference", "begun", "floor", "error", "stationary", "before", "unsaved")


@dataclass
class Clock:
    """Seconds spent inside `running`."""

    seconds: float = 0.0

    @contextmanager
    def running(self) -> Iterator[None]:
        begin = time.perf_counter()
        try:
            yield
        finally:
            self.seconds += time.perf_counter() - begin


@dataclass(frozen=True, eq=False)
class Best:
    """A recorded control, with the level and value by which it is ranked, and the norm of its derivative."""

    rank: tuple[int, float]
    norm: float
    flat: Tensor


@dataclass(eq=False)
class Run:
    """One run of the loop."""

    objective: ReducedObjective
    full_batch: bool
    validation: ControlProblem | None
    watch_finest: bool
    state: State
    iteration: int = 0
    history: list[Record] = field(default_factory=list)
    clock: Clock = field(default_factory=Clock)
    best: Best | None = None
    reference: float = 0.0
    begun: int = 0  # the iteration by whose control the tolerance is measured
    floor: float = -inf
    optima: list[float] = field(default_factory=list)
    error: float | None = None
    stationary: bool = False
    before: float = 0.0  # work done before the present finest grid
    interrupts: Interrupts = field(default_factory=Interrupts)
    unsaved: int = 0
    mark: tuple[int, int] = (0, 0)
    interrupted: bool = False
    parted: bool = False
    resumed: int | None = None  # the iteration at which it was taken up again
    seconds: float = 0.0

    def __post_init__(self) -> None:
        self.look = self.objective.uncounted()
        if self.validation is not None:
            steps, integrator = self.objective.space.grid.steps, self.objective.discretization.integrator
            self.look_validation = discretize(self.validation, steps, integrator, self.objective.schedule)

    @property
    def viewed(self) -> ReducedObjective:
        """The objective on all samples, where the run has storage for it already."""
        return self.objective if self.full_batch else self.look

    def start(self) -> Tensor:
        """The start of the problem on the finest grid."""
        return self.objective.discretization.start().flat

    @property
    def point(self) -> ReducedEvaluation | None:
        """The evaluation at the current control on all samples; None where that is on a mini-batch."""
        point = self.state.point
        return point if self.full_batch and isinstance(point, ReducedEvaluation) else None

    def look_begins(self) -> None:
        """Mark where the records are before a look: a run that is taken up again looks again."""
        self.mark = (len(self.history), len(self.optima))

    def snapshot(self) -> dict[str, Any]:
        """All that is needed to go on from before the present look, to the last bit: containers, numbers and tensors.

        It includes what has been computed at the current control, so that nothing is computed twice.
        """
        work, state, point = self.objective.work, self.state, self.point
        known = (None, None, False) if point is None else point.known
        random = {"cpu": torch.get_rng_state()}
        if self.state.control.is_cuda:
            random["cuda"] = torch.cuda.get_rng_state(self.state.control.device)
        return {
            **{name: getattr(self, name) for name in PLAIN},
            "history": self.history[: self.mark[0]],
            "optima": self.optima[: self.mark[1]],
            "seconds": self.clock.seconds,
            "work": (work.steps, work.units, work.failures),
            "control": state.control,
            "known": known,
            "memory": state.memory,
            "status": state.status.name,
            "counts": dict(state.counts),
            "level": state.level,
            "visits": state.visits,
            "random": random,
        }

    def restore(self, saved: Mapping[str, Any]) -> None:
        """Go on from a `snapshot`.

        Raises
        ------
        ValueError
            If the objective at the best control is not the one that was saved: it is another problem.
        """
        try:
            self._take(saved)
        except (AttributeError, LookupError, RuntimeError, TypeError) as error:
            raise ValueError(f"resume: expected the state of a run, got {type(error).__name__}: {error}") from error
        self.resumed = self.iteration

    def _take(self, saved: Mapping[str, Any]) -> None:
        for name in (*PLAIN, "history", "optima"):
            setattr(self, name, saved[name])
        self.clock.seconds, work = saved["seconds"], self.objective.work
        self._finest(saved["work"][0])
        work.steps, work.units, work.failures = saved["work"]
        value, derivative, in_storage = saved["known"]
        here = self.objective.on(self.objective.space.steps_of(saved["control"]))
        Control(here.space, saved["control"])  # raises where it is no control of this problem
        point = ReducedEvaluation(here, saved["control"], value, derivative)
        self.state = State(
            point, saved["memory"], Status[saved["status"]], saved["counts"], saved["level"], saved["visits"]
        )
        if self.best is not None:
            steps, expected = self.objective.space.steps_of(self.best.flat), self.best.rank[1]
            with self.objective.work.looking():
                found = self.viewed.on(steps).value(self.best.flat)
            if not abs(found - expected) <= SAME * abs(expected):
                raise ValueError(
                    f"resume: expected the problem that was saved, of value {expected:.6g}, got {found:.6g}"
                )
        if in_storage:
            point.store_states()  # last, since every sweep overwrites the storage
        torch.set_rng_state(saved["random"]["cpu"])
        if "cuda" in saved["random"]:
            torch.cuda.set_rng_state(saved["random"]["cuda"], self.state.control.device)

    def _finest(self, steps: int) -> None:
        """Let another grid be the finest one."""
        self.objective, self.look = self.objective.on(steps), self.look.on(steps)
        if self.validation is not None:
            self.look_validation = self.look_validation.on(steps)

    def part(self) -> None:
        """After an exception in this process the others of several are elsewhere: ask them for nothing more."""
        self.parted = self.objective.processes.size > 1

    def agree(self, wish: bool | None = False) -> bool:
        """Let all processes know of an interrupt, of the time and of a wish that one has, so that they decide alike."""
        noted, self.seconds, wished = self.objective.processes.maximum(
            float(self.interrupts.count > 0), self.clock.seconds, float(wish or False)
        )
        self.interrupted = self.interrupted or noted > 0
        return wished > 0

    def judge(self, adaptive: Adaptive) -> Status:
        """Whether the grid on which the tolerance was met is fine enough; RUNNING if it is to be refined."""
        self.optima.append(self.history[-1].value)
        self.error = adaptive.estimate(self.optima, self.objective.discretization.integrator.order)
        if adaptive.enough(self.error, self.optima[-1]):
            return Status.CONVERGED
        return Status.RUNNING if 2 * self.objective.space.grid.steps <= adaptive.limit else Status.MAX_STEPS

    def resolved(self) -> bool:
        """Whether the grid resolves the states at all, as far as they can be compared; looking is not counted."""
        if not isfinite(self.history[-1].derivative_norm):
            return True
        with self.objective.work.looking():
            return resolved(self.point if self.state.level == 0 and self.point else self.objective.at(self.control()))

    def refine(self, method: Method) -> None:
        """Go on from here with a finest grid of twice the steps, to which all that was recorded now refers."""
        coarse, work = self.objective, self.objective.work
        fine = coarse.on(2 * coarse.space.grid.steps)
        transfer = Transfer(fine.space, coarse.space, LINEAR)
        point = fine.at(feasible(transfer.prolong(self.state.control), fine.box))
        memory = method.transport(self.state.memory, transfer)
        visits = tuple(replace(v, begin=v.begin / 2, end=v.end / 2) for v in self.state.visits)
        self.state = replace(self.state, point=point, memory=memory, status=Status.RUNNING, visits=visits)
        self._finest(fine.space.grid.steps)
        self.error = None  # not known yet on this grid
        work.steps, work.units = 2 * work.steps, work.units / 2
        self.before = work.units
        self.history = [replace(r, level=r.level + 1, work_units=r.work_units / 2) for r in self.history]
        if self.best is not None:
            self.best = replace(self.best, rank=(self.best.rank[0] + 1, self.best.rank[1]))
        self.look_begins()

    def begin(self, method: Method) -> None:
        """Take the first state, and the norm by which the tolerance is measured: that of the start, on the finest grid.

        A method that begins on a coarse grid has not computed it; then it is looked up, uncounted. Where it is not
        finite on the finest grid, but on a coarse one, the first record on the finest grid that is finite takes its
        place.
        """
        with self.clock.running():
            self.state = state = method.init(self.objective, self.state.point)
        counted = state.level == 0 and self.full_batch
        start = state.point if counted else self.look.at(state.control if state.level == 0 else self.start())
        with self.clock.running() if counted else nullcontext():
            value, norm = _evaluate(start)
        self.stationary = norm == 0
        self._refer(value, norm, start.control)

    def _refer(self, value: float, norm: float, control: Tensor) -> None:
        """Measure the tolerance, and what is too deep to be a minimum, by a control on the finest grid."""
        if not (isfinite(value) and isfinite(norm)):
            return  # by infinity everything would be small
        self.reference, self.begun = norm, self.iteration
        # What a unit of the control can change, many times over: no minimum is as deep as that.
        self.floor = -DEEP * max(1.0, abs(value) + norm * max(1.0, self.objective.space.norm(control)))

    def control(self, flat: Tensor | None = None) -> Control:
        """A control, by default the current one, on the finest grid."""
        space, flat = self.objective.space, self.state.control if flat is None else flat
        coarse = self.objective.on(space.steps_of(flat)).space
        if coarse != space:
            flat = feasible(Transfer(space, coarse).prolong(flat), self.objective.box)
        return Control(space, flat)

    def copy(self) -> Control:
        """A copy of the current control on the finest grid, for others to do with as they like."""
        control = self.control()
        return replace(control, flat=control.flat.clone())

    def _notes(self, status: Status) -> Iterator[str]:
        """What there is to say besides why the run ended."""
        if self.state.level > 0:
            steps = self.objective.space.steps_of(self.state.control)
            yield f"The run ended on {_steps(steps)}; from there its control was prolonged to the finest grid."
        if self.begun > 0:
            yield f"The start is not finite on the finest grid; iteration {self.begun} takes its place."
        if self.stationary and status.success and self.objective.box is None:
            yield "The derivative is zero at the start, which need not be a minimum; another start may do better."
        if self.error is not None:
            steps, error = self.objective.space.grid.steps, self.error / max(abs(self.optima[-1]), 1e-300)
            yield f"The grid was refined to {steps} steps; the estimated relative discretization error is {error:.1e}."

    def record(self) -> Record:
        """Evaluate where the run is and note it; on a full batch the method needs that next, so it is charged."""
        u, level = self.state.control, self.state.level
        steps = self.objective.space.steps_of(u)
        with self.clock.running() if self.full_batch else nullcontext():
            value, norm = _evaluate(self.state.point if self.full_batch else self.look.on(steps).at(u))
        if isfinite(value) and isfinite(norm) and (self.best is None or (level, value) < self.best.rank):
            self.best = Best((level, value), norm, u)
        if level == 0 and self.reference == 0 and not self.stationary:
            self._refer(value, norm, u)
        control = self.control()
        finest = value if level == 0 else self.look.value(control) if self.watch_finest else None
        spent = (self.objective.work.units, self.clock.seconds)
        self.history.append(Record(self.iteration, level, steps, *spent, value, norm, finest, self._accuracy(control)))
        return self.history[-1]

    def _accuracy(self, control: Control) -> float | None:
        cost = None if self.validation is None else self.validation.terminal_cost
        if not isinstance(cost, Classifier):
            return None
        return cost.accuracy(self.look_validation.final_state(control), control.parameters)

    def counts(self) -> dict[str, int]:
        """Events worth telling: those of the method, and values that were not finite."""
        own = {"not_finite": self.objective.work.failures, "not_saved": self.unsaved}
        return {**self.state.counts, **{name: count for name, count in own.items() if count}}

    def result(self, status: Status, method: Method, why: str = "") -> Result:
        """What was recorded, with the last control if a stopping test holds there, else with the best finite one."""
        objective, x = self.objective, self.objective.discretization.example()[0]
        last = self.history[-1] if self.history else None
        if status.success and last is not None:
            point: Best | None = Best((last.level, last.value), last.derivative_norm, self.state.control)
        else:
            point = self.best
        control = self.control() if point is None else self.control(point.flat)
        accuracy, value, norm = None, nan, nan
        if point is not None and point.rank[0] == 0:
            value, norm = point.rank[1], point.norm
        # After an exception in the user's functions these may fail again; nothing else may be lost by that.
        with suppress(Exception) if status is Status.EXCEPTION else nullcontext():
            accuracy = self._accuracy(control)
            if (point is None or point.rank[0] > 0) and not self.parted:
                value, norm = _evaluate(self.look.at(control))
        kind = "derivative" if objective.box is None else "projected derivative"
        where = f"the objective is {value:.6g} and the dual norm of its {kind} {norm:.2e}"
        if last is not None and not isfinite(value) and isfinite(last.value):
            where = f"the last record has the objective {last.value:.6g} on {_steps(last.steps)}"
        reason = " ".join([status.value + why, *self._notes(status)])
        return Result(
            control,
            value,
            norm,
            status,
            f"{reason} After {self.iteration} iterations and {objective.work.units:.2f} work units {where}.",
            self.iteration,
            objective.work.units,
            self.clock.seconds,
            tuple(self.history),
            self.counts(),
            accuracy,
            about={
                "steps": objective.space.grid.steps,
                "integrator": objective.discretization.integrator.name,
                "recipe": recipe(method),
                "dtype": str(x.dtype).removeprefix("torch."),
                "device": str(x.device),
                "start_norm": self.reference or None,
                **({} if self.error is None else {"discretization_error": self.error}),
                **({} if self.resumed is None else {"resumed": self.resumed}),
            },
            visits=self.state.visits,
        )


def recipe(part: Any) -> str:
    """A method, or a part of one, in words, the same in every process."""
    return re.sub(r" at 0x\w+", "", re.sub(r"<function (\w+) at \w+>", r"\1", repr(part)))


def _steps(number: int) -> str:
    return "a grid of one step" if number == 1 else f"a grid of {number} steps"


def _evaluate(point: Evaluation) -> tuple[float, float]:
    return point.value, optimality(point) if isfinite(point.value) else inf
