"""Many grids at once: the MG/OPT cycle and nested iteration. Both are methods, and so are their smoothers."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field, fields, replace
from math import inf, isfinite, nan
from typing import Any, Protocol

import torch
from torch import Tensor

from ocp.multilevel.refinement import Measured, Progress, Refinement
from ocp.objective.reduced import Objective, ReducedObjective, ShiftedObjective, free_part
from ocp.optimize.line_search import Armijo, LineSearch
from ocp.optimize.methods import LBFGS, Method, State, Visit, as_method
from ocp.optimize.status import Status
from ocp.space.bounds import Box, feasible, masked
from ocp.space.transfer import CONSTANT, Interpolation, Transfer, coarse_grids

__all__ = [
    "MGOPT",
    "SHAPES",
    "Always",
    "CoarseModel",
    "Cycle",
    "Earned",
    "Forgetful",
    "Nested",
    "Visits",
    "coherent",
]

#: The shape of a cycle: what its visits to the next coarser grid look like, in turn.
SHAPES: Mapping[str, tuple[str, ...]] = {"V": ("V",), "W": ("W", "W"), "F": ("F", "V")}


class Visits(Protocol):
    """When a level asks the coarser ones for a correction, and how long those may work on it.

    A level waits ``wait`` times before the next visit; ``patience`` is the wait after a visit that did not pay.
    """

    def first(self) -> tuple[int, int]:
        """(wait, patience) of a level that has made no visit yet."""

    def after(self, patience: int, paid: bool) -> tuple[int, int]:
        """(wait, patience) after a visit that did or did not decrease the objective as fast as smoothing does."""

    def floor(self, rate: float) -> float:
        """Decrease per work unit below which a coarse solve ends, given that of the smoother above."""


@dataclass(frozen=True)
class Always:
    """A correction at every opportunity, as in the textbook."""

    def first(self) -> tuple[int, int]:
        return 0, 0

    def after(self, patience: int, paid: bool) -> tuple[int, int]:
        return 0, 0

    def floor(self, rate: float) -> float:
        return -inf


@dataclass(frozen=True)
class Earned:
    """Corrections as long as they decrease the objective faster per work unit than smoothing does.

    Each visit that does not pay is followed by a wait twice as long as the one before, and the solve on the coarsest
    grid ends when it earns less than the smoother above it did. So cycles cost little where they do not help.

    Parameters
    ----------
    patience : int
        Opportunities that pass before the first visit, and after one that did not pay; 4 was tuned on the spiral with
        N = 128.
    longest : int
        The wait doubles up to this.
    """

    patience: int = 4
    longest: int = 64

    def first(self) -> tuple[int, int]:
        return self.patience, self.patience

    def after(self, patience: int, paid: bool) -> tuple[int, int]:
        return (0, self.patience) if paid else (patience, min(2 * patience, self.longest))

    def floor(self, rate: float) -> float:
        return rate


#: From the derivative of a fine objective, the next coarser objective, the transfer between them, the restricted
#: control, a radius and a box, the model that is minimized for a correction.
CoarseModel = Callable[[Tensor, Objective, Transfer, Tensor, float, Box | None], ShiftedObjective]


def coherent(
    derivative: Tensor, coarse: Objective, transfer: Transfer, origin: Tensor, radius: float, box: Box | None
) -> ShiftedObjective:
    """The model of Nash (2000): shifted so that its derivative at the origin is the restricted fine one."""
    return ShiftedObjective(coarse, origin, coarse.derivative(origin) - transfer.restrict_dual(derivative), radius, box)


@dataclass(frozen=True)
class _Level:
    """What one level remembers between cycles; ``solved`` says that the solver works on it, not the smoother."""

    smoother: Any
    radius: float
    wait: int
    patience: int
    solved: bool = False


@dataclass
class _Scratch:
    """The levels, counts and visits of one step, while it runs."""

    levels: dict[int, _Level]
    counts: Counter[str] = field(default_factory=Counter)
    visits: list[Visit] = field(default_factory=list)


@dataclass(frozen=True)
class Cycle:
    """One MG/OPT cycle as a method: smooth, correct from the coarser grids, smooth.

    The coarse problem is J_H(v) - <tau, v> with tau = dJ_H(R u) - P^T dJ_h(u), whose derivative at R u is the
    restricted fine one; the fine control moves along P (v - R u) by a line search. Where there are bounds, entries that
    a bound holds back take no part, and the coarse problem has bounds that keep the fine control in its own
    (`Transfer.restrict_box`). Nash (2000), "A multigrid approach to discretized optimization problems"; Lewis & Nash
    (2005), "Model problems for the multigrid optimization of systems governed by differential equations". A cycle of
    one level is its smoother.

    Parameters
    ----------
    levels : int or sequence of int
        Number of grids counted from the finest, or their numbers of steps.
    smoother : Method
        Its memory of each level survives from cycle to cycle.
    factor : int
        Ratio of the steps of neighboring grids.
    shape : str
        ``"V"``, ``"W"`` or ``"F"``.
    pre, post : int
        Smoothing steps before and after the correction; the smoothing of the next cycle follows anyway.
    coarsest : int
        At most so many smoothing steps on the coarsest grid.
    visits : Visits
        `Earned` or `Always`.
    visit_ratio : float
        A visit needs a restricted derivative of at least this share of the fine one, in the dual norms of the two
        grids, where it is at most 1 for `CONSTANT`: Gratton, Sartenaer & Toint (2008), "Recursive trust-region methods
        for multiscale nonlinear optimization", equation 2.14.
    interpolation : callable
    search : LineSearch
        For the length of the correction.
    model : CoarseModel
        What is minimized for a correction: `coherent`, or another one, to see what coherence is worth.
    solver : Method, optional
        What works on all grids but the finest in place of the smoother, such as L-BFGS under gradient descent. A
        correction of the finest grid is then what ``coarsest`` steps of it, at most, find on the next coarser one.
    """

    levels: int | Sequence[int] = 4
    smoother: Method = LBFGS()
    factor: int = 2
    shape: str = "V"
    pre: int = 1
    post: int = 0
    coarsest: int = 10
    visits: Visits = Earned()
    visit_ratio: float = 0.5
    interpolation: Interpolation = CONSTANT
    search: LineSearch = Armijo(trials=5)
    model: CoarseModel = coherent
    solver: Method | None = None

    def __post_init__(self) -> None:
        as_method("smoother", self.smoother)
        if self.solver is not None:
            as_method("solver", self.solver)
        if self.shape not in SHAPES:
            raise ValueError(f"shape: expected one of {', '.join(SHAPES)}, got {self.shape!r}")
        if min(self.pre, self.post) < 0 or self.pre + self.post < 1 or self.coarsest < 1:
            raise ValueError(
                "pre, post, coarsest: expected at least one smoothing step in all and one on the coarsest grid, "
                f"got {self.pre}, {self.post}, {self.coarsest}"
            )

    def init(self, objective: Objective, control: Tensor) -> State:
        coarse_grids(objective.work.steps, self.levels, self.factor)  # raises where there is no such hierarchy
        return State(control, {})

    def step(self, objective: Objective, state: State) -> State:
        steps = objective.space.grid.steps
        coarser = [n for n in coarse_grids(objective.work.steps, self.levels, self.factor) if n < steps]
        if self.solver is not None and not self._solves(objective):
            coarser = coarser[:1]
        scratch = _Scratch(dict(state.memory), Counter(state.counts))
        if coarser:
            control, status = self._cycle(objective, state.control, (steps, *coarser), self.shape, scratch)
        else:
            control, status = self._smooth(objective, state.control, 1, scratch)
        visits = (*state.visits, *scratch.visits)
        return replace(
            state, control=control, memory=scratch.levels, status=status, counts=scratch.counts, visits=visits
        )

    def transport(self, memory: Any, transfer: Transfer) -> Any:
        level = memory.get(transfer.coarse.grid.steps)
        if level is None:
            return memory
        finer = self._on(level).transport(level.smoother, transfer)
        return {**memory, transfer.fine.grid.steps: replace(level, smoother=finer, wait=level.patience)}

    def _cycle(
        self,
        objective: Objective,
        u: Tensor,
        grids: tuple[int, ...],
        shape: str,
        scratch: _Scratch,
        floor: float = -inf,
    ) -> tuple[Tensor, Status]:
        """One cycle on the levels ``grids``; the objective is the original one or shifted."""
        if len(grids) == 1:
            return self._smooth(objective, u, self.coarsest, scratch, floor)
        children, level = SHAPES[shape], self._level(objective, u, scratch)
        if level.wait >= len(children):
            scratch.levels[grids[0]] = replace(level, wait=level.wait - len(children))
            return self._smooth(objective, u, self.pre + self.post, scratch)
        before, spent = objective.value(u), objective.work.units
        u, status = self._smooth(objective, u, self.pre, scratch)
        rate = _rate(objective, before, spent, u)
        for child in children:
            corrected = self._correct(objective, u, grids, child, scratch, rate)
            if corrected is not None:
                u, status = corrected, Status.RUNNING
        if self.post:
            u, status = self._smooth(objective, u, self.post, scratch)
        return u, status

    def _correct(
        self, objective: Objective, u: Tensor, grids: tuple[int, ...], shape: str, scratch: _Scratch, rate: float
    ) -> Tensor | None:
        """The control after a correction from the coarser levels, or None where there was none."""
        n, *coarser = grids
        level = self._level(objective, u, scratch)
        if level.wait > 0:
            scratch.levels[n] = replace(level, wait=level.wait - 1)
            return None
        before, spent = objective.value(u), objective.work.units
        coarse, box = objective.on(coarser[0]), objective.box
        transfer = Transfer(objective.space, coarse.space, self.interpolation)
        derivative, free = free_part(objective, u)
        restricted = coarse.space.dual_norm(transfer.restrict_dual(derivative))
        if not restricted >= self.visit_ratio * objective.space.dual_norm(derivative):
            scratch.counts["skipped"] += 1
            return None
        origin = transfer.restrict(u)
        room = None if box is None or free is None else transfer.restrict_box(box, u, free, origin)
        model = self.model(derivative, coarse, transfer, origin, level.radius, room)
        expected = model.value(origin)
        v, _ = self._cycle(model, origin, tuple(coarser), shape, scratch, self.visits.floor(rate))
        expected -= model.value(v)
        correction = masked(transfer.prolong(v - origin), free)
        length = objective.space.norm(correction)
        trial = self.search(objective, u, correction, 1.0) if isfinite(length) and length > 0 else None
        scratch.counts["refused" if trial is None else "corrections"] += 1
        decrease, step = (0.0, 0.0) if trial is None else (before - objective.value(trial.control), trial.step)
        mismatch = coarse.space.dual_norm(model.shift) / max(restricted, torch.finfo(u.dtype).tiny)
        end = objective.work.units
        scratch.visits.append(Visit(n, coarser[0], spent, end, mismatch, expected, decrease, step))
        wait, patience = self.visits.after(
            level.patience, trial is not None and _rate(objective, before, spent, trial.control) >= rate
        )
        least = torch.finfo(u.dtype).eps ** 0.5 * max(1.0, objective.space.norm(u))
        radius = max(_radius(level.radius, length, step), least)
        scratch.levels[n] = replace(level, radius=radius, wait=wait, patience=patience)
        return None if trial is None else trial.control

    def _smooth(
        self, objective: Objective, u: Tensor, steps: int, scratch: _Scratch, floor: float = -inf
    ) -> tuple[Tensor, Status]:
        """Smoothing steps, at most.

        On a model they stay in its ball, and end at its boundary, where the model is not finite, and when one decreases
        it by less than ``floor`` per work unit.
        """
        level = self._level(objective, u, scratch)
        state = State(u, level.smoother)
        for _ in range(steps):
            spent = objective.work.units
            last, state = state, self._on(level).step(objective, state)
            if isinstance(objective, ShiftedObjective):
                state = replace(state, control=objective.confine(state.control))
                if not isfinite(objective.value(state.control)):
                    state = replace(last, status=Status.NO_DECREASE)  # nor is what the smoother learned there of use
                    break
                rate = _rate(objective, objective.value(last.control), spent, state.control)
                if rate < floor or objective.at_boundary(state.control):
                    break
            if state.status is not Status.RUNNING:
                break
        scratch.levels[objective.space.grid.steps] = replace(level, smoother=state.memory)
        return state.control, state.status

    def _level(self, objective: Objective, u: Tensor, scratch: _Scratch) -> _Level:
        n = objective.space.grid.steps
        if n not in scratch.levels:
            radius = max(1.0, objective.space.norm(u))
            scratch.levels[n] = self._begun(objective, u, _Level(None, radius, *self.visits.first()))
        elif scratch.levels[n].solved != self._solves(objective):
            scratch.levels[n] = self._begun(objective, u, scratch.levels[n])
        return scratch.levels[n]

    def _begun(self, objective: Objective, u: Tensor, level: _Level) -> _Level:
        """The level with a fresh memory, of whatever works on it."""
        level = replace(level, solved=self._solves(objective))
        return replace(level, smoother=self._on(level).init(objective, u).memory)

    def _solves(self, objective: Objective) -> bool:
        """Whether it is the solver that works on this grid."""
        return self.solver is not None and objective.space.grid.steps < objective.work.steps

    def _on(self, level: _Level) -> Method:
        """What works on a level."""
        return self.solver if level.solved and self.solver is not None else self.smoother


def _rate(objective: Objective, before: float, spent: float, u: Tensor) -> float:
    """Decrease of the objective per work unit, since its value was ``before`` and the count stood at ``spent``."""
    decrease = before - objective.value(u)
    return decrease / max(objective.work.units - spent, 1e-12)


def _radius(radius: float, length: float, step: float) -> float:
    """Radius of the next coarse solve: larger after a full step that reached it, smaller after a refused or cut one.

    The factors are the usual ones of trust regions, Conn, Gould & Toint (2000), section 6.1.
    """
    if not isfinite(length):
        return 0.25 * radius
    if step == 1.0:
        return 2 * radius if length > 0.9 * radius else radius
    return max(step, 0.25) * min(length, radius) if length > 0 else radius


@dataclass(frozen=True)
class Forgetful:
    """A method that forgets everything when the grid is refined."""

    method: Method

    def __post_init__(self) -> None:
        as_method("method", self.method)

    def init(self, objective: Any, control: Tensor) -> State:
        return self.method.init(objective, control)

    def step(self, objective: Any, state: State) -> State:
        if state.memory is None:
            state = replace(state, memory=self.method.init(objective, state.control).memory)
        return self.method.step(objective, state)

    def transport(self, memory: Any, transfer: Transfer) -> None:
        return None


@dataclass(frozen=True)
class _Stay:
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

    def init(self, objective: ReducedObjective, control: Tensor) -> State:
        grids = list(coarse_grids(objective.space.grid.steps, self.levels, self.factor))
        refused = 0
        while True:
            coarse = objective.on(grids[-1])
            start = Transfer(objective.space, coarse.space).restrict(control) if len(grids) > 1 else control
            start = feasible(start, coarse.box)
            value = coarse.value(start) if len(grids) > 1 else nan
            if len(grids) == 1 or isfinite(value):
                break
            grids.pop()
            refused += 1
        inner = self.method.init(coarse, start)
        counts = Counter(inner.counts) + Counter(refused_grids=refused)
        stay = _Stay(inner.memory, Progress(), start, value)
        return State(start, stay, inner.status, counts, level=len(grids) - 1)

    def step(self, objective: ReducedObjective, state: State) -> State:
        stay: _Stay = state.memory
        here = objective.on(objective.space.steps_of(state.control))
        inner = replace(state, memory=stay.memory)
        if state.status not in (Status.CONVERGED, Status.NOT_FINITE):
            inner = self.method.step(here, inner)
        stay = replace(stay, memory=inner.memory)
        if state.level == 0:
            return replace(inner, memory=stay)
        fine = objective.on(coarse_grids(objective.space.grid.steps, self.levels, self.factor)[state.level - 1])
        transfer = Transfer(fine.space, here.space, self.interpolation)
        prolonged = feasible(transfer.prolong(inner.control), fine.box)
        values = (lambda: here.value(inner.control), lambda: fine.value(prolonged))
        progress, refine = self.refine.observe(stay.progress, *values)
        if not refine and inner.status is Status.RUNNING:
            return replace(inner, memory=replace(stay, progress=progress))
        return self._refined(fine, transfer, inner, replace(stay, progress=progress), prolonged)

    def _refined(self, fine: Objective, transfer: Transfer, inner: State, stay: _Stay, prolonged: Tensor) -> State:
        """The state on the finer grid: what was found on the coarse one, or how that began where that is better.

        A grid on which neither has a finite value is passed over.
        """
        memory, counts = self.method.transport(stay.memory, transfer), Counter(inner.counts)
        coarse, value = inner.control, fine.value(prolonged)
        if not (isfinite(value) and value <= stay.value):
            start = feasible(transfer.prolong(stay.start), fine.box)
            if inner.level > 1 and not (isfinite(value) or isfinite(fine.value(start))):
                counts["refused_grids"] += 1
                finer = fine.on(coarse_grids(fine.work.steps, self.levels, self.factor)[inner.level - 2])
                transfer = Transfer(finer.space, transfer.coarse, self.interpolation)
                inner = replace(inner, level=inner.level - 1, counts=counts)
                return self._refined(finer, transfer, inner, stay, feasible(transfer.prolong(coarse), finer.box))
            if not isfinite(value) or fine.value(start) < value:
                memory, coarse, prolonged = self.method.init(fine, start).memory, stay.start, start
                counts["refused_grids"] += 1
        here = fine.on(transfer.coarse.grid.steps)
        progress = self.refine.arrive(stay.progress, lambda: here.value(coarse), lambda: fine.value(prolonged))
        stay = _Stay(memory, progress, prolonged, fine.value(prolonged))
        return replace(
            inner, control=prolonged, memory=stay, counts=counts, status=Status.RUNNING, level=inner.level - 1
        )

    def transport(self, memory: Any, transfer: Transfer) -> Any:
        inner, start = self.method.transport(memory.memory, transfer), transfer.prolong(memory.start)
        return _Stay(inner, Progress(), start, memory.value)


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
