"""Nested iteration: begin on the coarsest grid, refine, and take along what was learned."""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass, fields, replace
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
    """What nested iteration remembers on one grid: the method's memory, and the control and value it began with."""

    memory: Any
    progress: Progress
    start: Tensor
    value: float


@dataclass(frozen=True)
class Nested:
    """Nested iteration: begin on the coarsest grid, refine when there is no more to gain on it.

    The method's memory goes along to the finer grid, and the control is prolonged. The grid is refined, too, when the
    method cannot go on, and when the state comes back with the status CONVERGED, by which a solver says that its
    tolerance is met on this grid, or NOT_FINITE, that the work on it went astray. A grid on which the start has no
    finite value is passed over, and what was found on a grid is refused where the finer grid finds it worse than the
    control with which the work began there: coarse grids can have optima that the fine ones do not have. Both are
    counted as ``refused_grids``.

    Parameters
    ----------
    levels : int or sequence of int
        Number of grids, or their numbers of steps, the finest first.
    method : Method
        What works on each grid: a smoother, or a `Cycle` with the same levels.
    factor : int
    interpolation : callable
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

    def init(self, objective: Objective, point: Evaluation) -> State:
        grids = list(coarse_grids(objective.space.grid.steps, self.levels, self.factor))
        refused, start = 0, point
        while len(grids) > 1:
            coarse = objective.on(grids[-1])
            restricted = Transfer(objective.space, coarse.space).restrict(point.control)
            start = coarse.at(feasible(restricted, coarse.box))
            if isfinite(start.value):
                break
            grids.pop()
            refused, start = refused + 1, point
        inner = self.method.init(start.objective, start)
        counts = Counter(inner.counts) + Counter(refused_grids=refused)
        stay = Stay(inner.memory, Progress(), start.control, start.value if len(grids) > 1 else nan)
        return State(start, stay, inner.status, counts, level=len(grids) - 1)

    def step(self, objective: Objective, state: State) -> State:
        stay: Stay = state.memory
        inner = replace(state, memory=stay.memory)
        if state.status not in (Status.CONVERGED, Status.NOT_FINITE):
            inner = self.method.step(state.point.objective, inner)
        stay = replace(stay, memory=inner.memory)
        if state.level == 0:
            return replace(inner, memory=stay)
        fine = objective.on(coarse_grids(objective.space.grid.steps, self.levels, self.factor)[state.level - 1])
        transfer = Transfer(fine.space, state.point.objective.space, self.interpolation)
        prolonged = fine.at(feasible(transfer.prolong(inner.control), fine.box))
        progress, refine = self.refine.observe(stay.progress, inner.point, prolonged)
        if not refine and inner.status is Status.RUNNING:
            return replace(inner, memory=replace(stay, progress=progress))
        return self._refined(transfer, inner, replace(stay, progress=progress), prolonged)

    def _refined(self, transfer: Transfer, inner: State, stay: Stay, fine: Evaluation) -> State:
        """The state on the finer grid: what was found on the coarse one, or how that began where that is better.

        A grid on which neither has a finite value is passed over.

        Parameters
        ----------
        transfer : Transfer
            Between the grid of ``inner`` and that of ``fine``, or from a coarser one whose successors were passed over.
        inner : State
            On the coarse grid.
        stay : Stay
            There.
        fine : Evaluation
            At the prolonged control.
        """
        memory, counts = self.method.transport(stay.memory, transfer), Counter(inner.counts)
        objective, coarse = fine.objective, inner.point
        if not (isfinite(fine.value) and fine.value <= stay.value):
            start = objective.at(feasible(transfer.prolong(stay.start), objective.box))
            if inner.level > 1 and not (isfinite(fine.value) or isfinite(start.value)):
                finer = objective.on(coarse_grids(objective.work.steps, self.levels, self.factor)[inner.level - 2])
                inner = replace(inner, level=inner.level - 1, counts=counts + Counter(refused_grids=1))
                transfer = Transfer(finer.space, transfer.coarse, self.interpolation)
                prolonged = finer.at(feasible(transfer.prolong(coarse.control), finer.box))
                return self._refined(transfer, inner, stay, prolonged)
            if not isfinite(fine.value) or start.value < fine.value:
                memory, coarse, fine = self.method.init(objective, start).memory, coarse.objective.at(stay.start), start
                counts["refused_grids"] += 1
        progress = self.refine.arrive(stay.progress, coarse, fine)
        stay = Stay(memory, progress, fine.control, fine.value)
        return replace(inner, point=fine, memory=stay, counts=counts, status=Status.RUNNING, level=inner.level - 1)

    def transport(self, memory: Any, transfer: Transfer) -> Any:
        inner, start = self.method.transport(memory.memory, transfer), transfer.prolong(memory.start)
        return Stay(inner, Progress(), start, memory.value)


def MGOPT(
    levels: int | Sequence[int] = 4,
    smoother: Method = LBFGS(),
    factor: int = 2,
    interpolation: Interpolation = CONSTANT,
    refine: Refinement = Measured(),
    **cycle: Any,
) -> Nested:
    """MG/OPT as a whole: nested iteration whose method on each grid is a coherent cycle over the coarser ones.

    Parameters
    ----------
    levels, factor, interpolation, refine
        See `Nested`.
    smoother : Method
        What works on each grid; its memory goes along when the grid is refined.
    **cycle
        Further arguments of `Cycle`, such as ``shape="W"`` or ``visits=Always()``.

    Examples
    --------
    >>> MGOPT(levels=3, shape="F").method.shape
    'F'
    """
    unknown = set(cycle) - {each.name for each in fields(Cycle)}
    if unknown:
        raise TypeError(f"MGOPT: expected arguments of its own or of Cycle, got {', '.join(sorted(unknown))}")
    cycles = Cycle(levels, smoother, factor, interpolation=interpolation, **cycle)
    return Nested(levels, cycles, factor, interpolation, refine)
