"""The MG/OPT cycle: a method that corrects the work of a smoother from coarser grids."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from math import inf, isfinite
from typing import Any

import torch
from torch import Tensor

from ocp.multilevel.visits import Earned, Visits
from ocp.objective.evaluation import Evaluation, Objective, free_part
from ocp.objective.shifted import ShiftedObjective
from ocp.optimize.lbfgs import LBFGS
from ocp.optimize.line_search import Armijo, LineSearch
from ocp.optimize.method import Method, State, Visit, as_method
from ocp.optimize.status import Status
from ocp.space.bounds import Box, masked
from ocp.space.transfer import CONSTANT, Interpolation, Transfer, coarse_grids

__all__ = ["SHAPES", "CoarseModel", "Cycle", "Level", "coherent"]

#: The shape of a cycle: what its visits to the next coarser grid look like, in turn.
SHAPES: Mapping[str, tuple[str, ...]] = {"V": ("V",), "W": ("W", "W"), "F": ("F", "V")}

#: From the derivative of a fine objective, the evaluation of the next coarser objective at the restricted control, the
#: transfer between them, a radius and a box, the model that is minimized for a correction.
CoarseModel = Callable[[Tensor, Evaluation, Transfer, float, Box | None], ShiftedObjective]


def coherent(
    derivative: Tensor, origin: Evaluation, transfer: Transfer, radius: float, box: Box | None
) -> ShiftedObjective:
    """The model of Nash (2000): shifted so that its derivative at the origin is the restricted fine one."""
    shift = origin.derivative - transfer.restrict_dual(derivative)
    return ShiftedObjective(origin.objective, origin.control, shift, radius, box)


@dataclass(frozen=True, eq=False)
class Level:
    """What one level remembers between cycles; ``solved`` means that the solver works on it, not the smoother."""

    smoother: Any
    radius: float
    wait: int
    patience: int
    solved: bool = False


@dataclass
class _Scratch:
    """The levels, counts and visits of one step, while it runs."""

    levels: dict[int, Level]
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
        At most this many smoothing steps on the coarsest grid.
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
        The method on all grids but the finest, in place of the smoother, such as L-BFGS under gradient descent. A
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

    def init(self, objective: Objective, point: Evaluation) -> State:
        coarse_grids(objective.work.steps, self.levels, self.factor)  # raises where there is no such hierarchy
        return State(point, {})

    def step(self, objective: Objective, state: State) -> State:
        steps = objective.space.grid.steps
        coarser = [n for n in coarse_grids(objective.work.steps, self.levels, self.factor) if n < steps]
        if self.solver is not None and not self._solves(objective):
            coarser = coarser[:1]
        scratch = _Scratch(dict(state.memory), Counter(state.counts))
        if coarser:
            point, status = self._cycle(state.point, (steps, *coarser), self.shape, scratch)
        else:
            point, status = self._smooth(state.point, 1, scratch)
        visits = (*state.visits, *scratch.visits)
        return replace(state, point=point, memory=scratch.levels, status=status, counts=scratch.counts, visits=visits)

    def transport(self, memory: Any, transfer: Transfer) -> Any:
        level = memory.get(transfer.coarse.grid.steps)
        if level is None:
            return memory
        finer = self._on(level).transport(level.smoother, transfer)
        return {**memory, transfer.fine.grid.steps: replace(level, smoother=finer, wait=level.patience)}

    def _cycle(
        self, point: Evaluation, grids: tuple[int, ...], shape: str, scratch: _Scratch, floor: float = -inf
    ) -> tuple[Evaluation, Status]:
        """One cycle on the levels ``grids``, of the original objective or of a shifted one."""
        if len(grids) == 1:
            return self._smooth(point, self.coarsest, scratch, floor)
        children, level = SHAPES[shape], self._level(point, scratch)
        if level.wait >= len(children):
            scratch.levels[grids[0]] = replace(level, wait=level.wait - len(children))
            return self._smooth(point, self.pre + self.post, scratch)
        before, spent = point.value, point.objective.work.units
        point, status = self._smooth(point, self.pre, scratch)
        rate = _rate(before, spent, point)
        for child in children:
            corrected = self._correct(point, grids, child, scratch, rate)
            if corrected is not None:
                point, status = corrected, Status.RUNNING
        if self.post:
            point, status = self._smooth(point, self.post, scratch)
        return point, status

    def _correct(
        self, point: Evaluation, grids: tuple[int, ...], shape: str, scratch: _Scratch, rate: float
    ) -> Evaluation | None:
        """The evaluation after a correction from the coarser levels; None where there was no correction."""
        n, *coarser = grids
        level, objective = self._level(point, scratch), point.objective
        if level.wait > 0:
            scratch.levels[n] = replace(level, wait=level.wait - 1)
            return None
        before, spent = point.value, objective.work.units
        coarse, box, u = objective.on(coarser[0]), objective.box, point.control
        transfer = Transfer(objective.space, coarse.space, self.interpolation)
        derivative, free = free_part(point)
        restricted = coarse.space.dual_norm(transfer.restrict_dual(derivative))
        if not restricted >= self.visit_ratio * objective.space.dual_norm(derivative):
            scratch.counts["skipped"] += 1
            return None
        origin = coarse.at(transfer.restrict(u))
        within = None if box is None or free is None else transfer.restrict_box(box, u, free, origin.control)
        model = self.model(derivative, origin, transfer, level.radius, within)
        start = model.shifted(origin)
        expected = start.value
        end, _ = self._cycle(start, tuple(coarser), shape, scratch, self.visits.floor(rate))
        expected -= end.value
        correction = masked(transfer.prolong(end.control - origin.control), free)
        length = objective.space.norm(correction)
        trial = self.search(point, correction, 1.0) if isfinite(length) and length > 0 else None
        scratch.counts["refused" if trial is None else "corrections"] += 1
        decrease, step = (0.0, 0.0) if trial is None else (before - trial.point.value, trial.step)
        mismatch = coarse.space.dual_norm(model.shift) / max(restricted, torch.finfo(u.dtype).tiny)
        visit = Visit(n, coarser[0], spent, objective.work.units, mismatch, expected, decrease, step)
        scratch.visits.append(visit)
        paid = trial is not None and _rate(before, spent, trial.point) >= rate
        wait, patience = self.visits.after(level.patience, paid)
        least = torch.finfo(u.dtype).eps ** 0.5 * max(1.0, objective.space.norm(u))
        radius = max(_radius(level.radius, length, step), least)
        scratch.levels[n] = replace(level, radius=radius, wait=wait, patience=patience)
        return None if trial is None else trial.point

    def _smooth(
        self, point: Evaluation, steps: int, scratch: _Scratch, floor: float = -inf
    ) -> tuple[Evaluation, Status]:
        """Smoothing steps, at most.

        On a model they stay in its ball, and end at its boundary, where the model is not finite, and when one decreases
        it by less than ``floor`` per work unit.
        """
        level, objective = self._level(point, scratch), point.objective
        state = State(point, level.smoother)
        for _ in range(steps):
            spent = objective.work.units
            last, state = state, self._on(level).step(objective, state)
            if isinstance(objective, ShiftedObjective):
                state = replace(state, point=objective.confine(state.point))
                if not isfinite(state.point.value):
                    # What the smoother learned there is of no use either.
                    state = replace(last, status=Status.NO_DECREASE)
                    break
                if _rate(last.point.value, spent, state.point) < floor or objective.at_boundary(state.control):
                    break
            if state.status is not Status.RUNNING:
                break
        scratch.levels[objective.space.grid.steps] = replace(level, smoother=state.memory)
        return state.point, state.status

    def _level(self, point: Evaluation, scratch: _Scratch) -> Level:
        objective = point.objective
        n = objective.space.grid.steps
        if n not in scratch.levels:
            radius = max(1.0, objective.space.norm(point.control))
            scratch.levels[n] = self._begun(point, Level(None, radius, *self.visits.first()))
        elif scratch.levels[n].solved != self._solves(objective):
            scratch.levels[n] = self._begun(point, scratch.levels[n])
        return scratch.levels[n]

    def _begun(self, point: Evaluation, level: Level) -> Level:
        """The level with a fresh memory of the method that works on it."""
        level = replace(level, solved=self._solves(point.objective))
        return replace(level, smoother=self._on(level).init(point.objective, point).memory)

    def _solves(self, objective: Objective) -> bool:
        """Whether it is the solver that works on this grid."""
        return self.solver is not None and objective.space.grid.steps < objective.work.steps

    def _on(self, level: Level) -> Method:
        """The method that works on a level."""
        return self.solver if level.solved and self.solver is not None else self.smoother


def _rate(before: float, spent: float, point: Evaluation) -> float:
    """Decrease of the objective per work unit, since its value was ``before`` and the count stood at ``spent``."""
    return (before - point.value) / max(point.objective.work.units - spent, 1e-12)


def _radius(radius: float, length: float, step: float) -> float:
    """Radius of the next coarse solve: larger after a full step that reached it, smaller after a refused or cut one.

    The factors are the usual ones of trust regions, Conn, Gould & Toint (2000), section 6.1.
    """
    if not isfinite(length):
        return 0.25 * radius
    if step == 1.0:
        return 2 * radius if length > 0.9 * radius else radius
    return max(step, 0.25) * min(length, radius) if length > 0 else radius
