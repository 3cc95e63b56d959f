"""The MG/OPT cycle: a method that corrects the work of a smoother from coarser grids."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from math import inf, isfinite
from typing import Any

import torch
from torch import Tensor

from ocp.multilevel.visits import Earned, Level, Notes, Visits, rate
from ocp.objective.evaluation import Evaluation, Objective, free_part
from ocp.objective.shifted import ShiftedObjective
from ocp.optimize.lbfgs import LBFGS
from ocp.optimize.line_search import Armijo, LineSearch
from ocp.optimize.method import Method, State, Visit, as_method
from ocp.optimize.status import Status
from ocp.space.bounds import Box, masked
from ocp.space.transfer import CONSTANT, Interpolation, Transfer, coarse_grids

__all__ = ["SHAPES", "CoarseModel", "Cycle", "coherent"]

#: The shape of a cycle: the shapes of its visits to the next coarser grid.
SHAPES: Mapping[str, tuple[str, ...]] = {"V": ("V",), "W": ("W", "W"), "F": ("F", "V")}

#: From fine derivative, coarse evaluation at the restricted control, transfer, radius and box to a model to minimize.
CoarseModel = Callable[[Tensor, Evaluation, Transfer, float, Box | None], ShiftedObjective]


def coherent(
    derivative: Tensor, origin: Evaluation, transfer: Transfer, radius: float, box: Box | None
) -> ShiftedObjective:
    """The model of Nash (2000): its shift makes its derivative at the origin the restricted fine one."""
    shift = origin.derivative - transfer.restrict_dual(derivative)
    return ShiftedObjective(origin.objective, origin.control, shift, radius, box)


@dataclass(frozen=True)
class Cycle:
    """One MG/OPT cycle as a method: smooth, correct from the coarser grids, smooth.

    The coarse problem is J_H(v) - <tau, v> with tau = dJ_H(R u) - P^T dJ_h(u), whose derivative at R u is the
    restricted fine one; the fine control moves along P (v - R u) by a line search. With bounds, entries that a bound
    holds back take no part, and the coarse problem has bounds that keep the fine control in its own
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
        Ratio of the steps of neighboring grids, where ``levels`` is a number.
    shape : str
        ``"V"``, ``"W"`` or ``"F"``.
    pre, post, coarsest : int
        Smoothing steps before and after the correction, and on the coarsest grid, there at most.
    visits : Visits
        `Earned` or `Always`.
    visit_ratio : float
        A visit needs a restricted derivative of at least this share of the fine one, in the dual norms of the two
        grids (at most 1 for `CONSTANT`): Gratton, Sartenaer & Toint (2008), "Recursive trust-region methods for
        multiscale nonlinear optimization", equation 2.14.
    interpolation : callable
    search : LineSearch
        For the length of the correction.
    model : CoarseModel
        What is minimized for a correction: `coherent`, or another one, to see what coherence is worth.
    solver : Method, optional
        Replaces the smoother on all grids but the finest, such as L-BFGS under gradient descent. The finest grid is
        then corrected by at most ``coarsest`` of its steps on the next coarser one.
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

    def check(self, objective: Objective) -> None:
        objective.space.check_path()
        coarse_grids(objective.space.grid.steps, self.levels, self.factor)  # raises where there is no such hierarchy

    def init(self, objective: Objective, point: Evaluation) -> State:
        return State(point, {})

    def step(self, objective: Objective, state: State) -> State:
        steps = objective.space.grid.steps
        coarser = [n for n in coarse_grids(objective.work.steps, self.levels, self.factor) if n < steps]
        if self.solver is not None and steps == objective.work.steps:
            coarser = coarser[:1]
        notes = Notes(dict(state.memory), Counter(state.counts), list(state.visits))
        if coarser:
            point, status = self._cycle(state.point, (steps, *coarser), self.shape, notes)
        else:
            point, status = self._smooth(state.point, 1, notes)
        visits = tuple(notes.visits)
        return replace(state, point=point, memory=notes.levels, status=status, counts=notes.counts, visits=visits)

    def transport(self, memory: Any, transfer: Transfer) -> Any:
        level = memory.get(transfer.coarse.grid.steps)
        if level is None:
            return memory
        finer = self._method(level.solved).transport(level.smoother, transfer)
        return {**memory, transfer.fine.grid.steps: replace(level, smoother=finer, wait=level.patience)}

    def _cycle(
        self, point: Evaluation, grids: tuple[int, ...], shape: str, notes: Notes, floor: float = -inf
    ) -> tuple[Evaluation, Status]:
        """One cycle on the levels ``grids``, of the original objective or of a shifted one."""
        if len(grids) == 1:
            return self._smooth(point, self.coarsest, notes, floor)
        self._level(point, notes)
        if notes.waits(grids[0], len(SHAPES[shape])):
            return self._smooth(point, self.pre + self.post, notes)
        before, spent = point.value, point.objective.work.units
        point, status = self._smooth(point, self.pre, notes)
        pace = rate(before - point.value, point.objective.work.units - spent)
        for child in SHAPES[shape]:
            corrected = None if notes.waits(grids[0]) else self._correct(point, grids, child, notes, pace)
            if corrected is not None:
                point, status = corrected, Status.RUNNING
        return self._smooth(point, self.post, notes) if self.post else (point, status)

    def _correct(
        self, point: Evaluation, grids: tuple[int, ...], shape: str, notes: Notes, pace: float
    ) -> Evaluation | None:
        """The evaluation after a correction from the coarser levels; None where there was no correction."""
        fine, coarse, spent = point.objective, point.objective.on(grids[1]), point.objective.work.units
        transfer = Transfer(fine.space, coarse.space, self.interpolation)
        derivative, free = free_part(point)
        size = coarse.space.dual_norm(transfer.restrict_dual(derivative))
        if not size >= self.visit_ratio * fine.space.dual_norm(derivative):
            notes.counts["skipped"] += 1
            return None
        # Restrict, and shift to agree to first order.
        origin, box = coarse.at(transfer.restrict(point.control)), None
        if fine.box is not None and free is not None:
            box = transfer.restrict_box(fine.box, point.control, free, origin.control)
        model = self.model(derivative, origin, transfer, notes.levels[grids[0]].radius, box)
        start = model.shifted(origin)
        # Solve on the coarser levels, prolong, and search along the correction.
        end, _ = self._cycle(start, grids[1:], shape, notes, self.visits.floor(pace))
        correction = masked(transfer.prolong(end.control - origin.control), free)
        length = fine.space.norm(correction)
        trial = self.search(point, correction, 1.0) if 0 < length < inf else None
        decrease, step = (0.0, 0.0) if trial is None else (point.value - trial.point.value, trial.step)
        mismatch = coarse.space.dual_norm(model.shift) / max(size, torch.finfo(derivative.dtype).tiny)
        expected = start.value - end.value
        visit = Visit(grids[0], grids[1], spent, fine.work.units, mismatch, expected, decrease, step)
        least = torch.finfo(derivative.dtype).eps ** 0.5 * max(1.0, fine.space.norm(point.control))
        notes.learn(visit, self.visits, pace, length, least)
        return None if trial is None else trial.point

    def _smooth(self, point: Evaluation, steps: int, notes: Notes, floor: float = -inf) -> tuple[Evaluation, Status]:
        """At most ``steps`` smoothing steps.

        On a model they stay in its ball. They end at its boundary, where the model is not finite, and when one
        decreases it by less than ``floor`` per work unit.
        """
        level, objective = self._level(point, notes), point.objective
        method, state = self._method(level.solved), State(point, level.smoother)
        for _ in range(steps):
            last, spent = state, objective.work.units
            state = method.step(objective, state)
            if isinstance(objective, ShiftedObjective):
                state = replace(state, point=objective.confine(state.point))
                decrease = last.point.value - state.point.value
                if not isfinite(state.point.value):
                    # What the smoother learned there is of no use either.
                    state = replace(last, status=Status.NO_DECREASE)
                elif rate(decrease, objective.work.units - spent) < floor or objective.at_boundary(state.control):
                    break
            if state.status is not Status.RUNNING:
                break
        notes.levels[objective.space.grid.steps] = replace(level, smoother=state.memory)
        return state.point, state.status

    def _level(self, point: Evaluation, notes: Notes) -> Level:
        """The level of an evaluation, with a fresh memory where another method worked on it, or none."""
        objective, n = point.objective, point.objective.space.grid.steps
        solved = self.solver is not None and n < objective.work.steps
        if n not in notes.levels or notes.levels[n].solved != solved:
            patience = self.visits.patience
            fresh = Level(None, max(1.0, objective.space.norm(point.control)), patience, patience)
            memory = self._method(solved).init(objective, point).memory
            notes.levels[n] = replace(notes.levels.get(n, fresh), smoother=memory, solved=solved)
        return notes.levels[n]

    def _method(self, solved: bool) -> Method:
        return self.solver if solved and self.solver is not None else self.smoother
