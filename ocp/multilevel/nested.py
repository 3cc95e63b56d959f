"""Nested iteration: begin on the coarsest grid, refine, and take along what was learned."""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass, replace
from math import isfinite, nan
from typing import Any

from torch import Tensor

from ocp.multilevel.cycle import Cycle
from ocp.multilevel.refinement import Measured, Progress, Refinement
from ocp.objective.evaluation import Evaluation, Objective
from ocp.optimize.lbfgs import LBFGS
from ocp.optimize.method import Method, State, as_method
from ocp.optimize.status import Status
from ocp.space.bounds import feasible
from ocp.space.transfer import CONSTANT, Interpolation, Transfer, coarse_grids

__all__ = ["MGOPT", "Forgetful", "Nested", "Stay"]


@dataclass(frozen=True)
class Forgetful:
    """A method that forgets everything when the grid is refined."""

    method: Method

    def __post_init__(self) -> None:
        as_method("method", self.method)

    def init(self, objective: Objective, point: Evaluation) -> State:
        return self.method.init(objective, point)

    def step(self, objective: Objective, state: State) -> State:
        if state.memory is None:
            state = replace(state, memory=self.method.init(objective, state.point).memory)
        return self.method.step(objective, state)

    def transport(self, memory: Any, transfer: Transfer) -> None:
        return None


@dataclass(frozen=True, eq=False)
class Stay:
    """What nested iteration remembers on one grid: the method's memory, its progress, and where and how it began.

    ``origin`` and ``worth`` are the start on the finest grid and its value there.
    """

    memory: Any
    progress: Progress
    start: Tensor
    value: float
    origin: Tensor
    worth: float


@dataclass(frozen=True)
class Nested:
    """Nested iteration: begin on the coarsest grid, and refine when there is no more to gain on it.

    The control is prolonged, and the method's memory goes along. The grid is refined, too, when the method cannot go
    on, and when the state comes back as CONVERGED on this grid or as NOT_FINITE. Grids on which the start has no finite
    value are passed over. What was found on a grid is refused where it is worse on the finer grid than what the work
    began with: coarse grids can have optima of their own. Both are counted as ``refused_grids``.

    Parameters
    ----------
    levels, factor, interpolation
        The hierarchy of grids; see `Cycle`.
    method : Method
        What works on each grid: a smoother, or a `Cycle` with the same levels.
    refine : Refinement
        `Measured`, `Settled` or `Scheduled`.
    """

    levels: int | Sequence[int] = 4
    method: Method = LBFGS()
    factor: int = 2
    interpolation: Interpolation = CONSTANT
    refine: Refinement = Measured()

    def __post_init__(self) -> None:
        as_method("method", self.method)

    def check(self, objective: Objective) -> None:
        objective.space.check_path()
        self._grids(objective)  # raises where there is no such hierarchy

    def init(self, objective: Objective, point: Evaluation) -> State:
        grids = self._grids(objective)
        for level in range(len(grids) - 1, 0, -1):
            coarse = objective.on(grids[level])
            restricted = Transfer(objective.space, coarse.space).restrict(point.control)
            start = coarse.at(feasible(restricted, coarse.box))
            if isfinite(start.value):
                break
        else:
            level, start = 0, point
        inner = self.method.init(start.objective, start)
        counts = Counter(inner.counts) + Counter(refused_grids=len(grids) - 1 - level)
        value = start.value if level > 0 else nan
        stay = Stay(inner.memory, Progress(), start.control, value, point.control, point.value)
        return State(start, stay, inner.status, counts, level)

    def step(self, objective: Objective, state: State) -> State:
        stay, inner = state.memory, replace(state, memory=state.memory.memory)
        if state.status not in (Status.CONVERGED, Status.NOT_FINITE):
            inner = self.method.step(state.point.objective, inner)
        stay, coarse, level = replace(stay, memory=inner.memory), inner.point, state.level - 1
        if state.level == 0:
            return replace(inner, memory=stay)
        found = self._prolonged(objective, level, coarse.control)
        progress, refine = self.refine.observe(stay.progress, coarse, found)
        if not refine and inner.status is Status.RUNNING:
            return replace(inner, memory=replace(stay, progress=progress))
        # Pass over grids on which neither what was found here nor what the work here began with has a finite value.
        start, counts = self._prolonged(objective, level, stay.start), Counter(inner.counts)
        while level > 0 and not (isfinite(found.value) or isfinite(start.value)):
            level -= 1
            counts["refused_grids"] += 1
            found, start = (self._prolonged(objective, level, control) for control in (coarse.control, stay.start))
        if isfinite(found.value) and (found.value <= stay.value or not start.value < found.value):
            transfer = Transfer(found.objective.space, coarse.objective.space, self.interpolation)
            memory = self.method.transport(stay.memory, transfer)
        else:
            counts["refused_grids"] += 1
            coarse, found = coarse.objective.at(stay.start), start
            memory = self.method.init(start.objective, start).memory
        if level == 0 and stay.worth < found.value:  # the work on coarse grids was in vain
            counts["refused_grids"] += 1
            found = found.objective.at(stay.origin)
            memory = self.method.init(found.objective, found).memory
        progress = self.refine.arrive(progress, coarse, found)
        stay = replace(stay, memory=memory, progress=progress, start=found.control, value=found.value)
        return replace(inner, point=found, memory=stay, counts=counts, status=Status.RUNNING, level=level)

    def transport(self, memory: Stay, transfer: Transfer) -> Stay:
        inner = self.method.transport(memory.memory, transfer)
        start, origin = transfer.prolong(memory.start), transfer.prolong(memory.origin)
        return replace(memory, memory=inner, progress=Progress(), start=start, origin=origin, worth=nan)

    def _grids(self, objective: Objective) -> tuple[int, ...]:
        return coarse_grids(objective.space.grid.steps, self.levels, self.factor)

    def _prolonged(self, objective: Objective, level: int, control: Tensor) -> Evaluation:
        """The evaluation on a level at the prolongation of a coarser control."""
        fine, coarse = objective.on(self._grids(objective)[level]), objective.on(objective.space.steps_of(control))
        transfer = Transfer(fine.space, coarse.space, self.interpolation)
        return fine.at(feasible(transfer.prolong(control), fine.box))


def MGOPT(
    levels: int | Sequence[int] = 4,
    smoother: Method = LBFGS(),
    factor: int = 2,
    interpolation: Interpolation = CONSTANT,
    refine: Refinement = Measured(),
    **cycle: Any,
) -> Nested:
    """MG/OPT as a whole: nested iteration (`Nested`) whose method on each grid is a cycle over the coarser ones.

    ``cycle`` holds further arguments of `Cycle`, such as ``shape="W"`` or ``visits=Always()``.

    Examples
    --------
    >>> MGOPT(levels=3, shape="F").method.shape
    'F'
    """
    cycles = Cycle(levels, smoother, factor, interpolation=interpolation, **cycle)
    return Nested(levels, cycles, factor, interpolation, refine)
