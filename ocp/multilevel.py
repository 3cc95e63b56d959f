"""Many grids at once: the MG/OPT cycle and nested iteration. Both are methods, and so are their smoothers."""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

import torch
from torch import Tensor

from ocp.linesearch import Armijo, LineSearch
from ocp.methods import LBFGS, Method, State
from ocp.objective import ReducedObjective, ShiftedObjective
from ocp.status import Status
from ocp.transfer import CONSTANT, Interpolation, Transfer, coarse_grids

__all__ = ["Cycle"]

#: The coarse visits of a cycle, by its shape: what each visit does in turn.
SHAPES: Mapping[str, tuple[str, ...]] = {"V": ("V",), "W": ("W", "W"), "F": ("F", "V")}

Memory = dict[int, dict[str, Any]]


@dataclass(frozen=True)
class Cycle:
    levels: int | Sequence[int] = 4
    smoother: Method = LBFGS()
    factor: int = 2
    shape: str = "V"
    pre: int = 1
    post: int = 0
    coarsest: int = 10
    interpolation: Interpolation = CONSTANT
    visit: float = 0.5
    earn: bool = True
    first: int = 0
    jump: int = 1
    search: LineSearch = Armijo(trials=5)

    def init(self, objective, control):
        return State(control, {}, counts={"corrections": 0, "refused": 0, "notworth": 0})

    def _memory(self, memory, objective, control):
        n = objective.space.grid.steps
        if n not in memory:
            memory = {**memory, n: {"smoother": self.smoother.init(objective, control).memory, "radius": max(1.0, objective.space.norm(control)), "wait": self.first, "patience": max(self.first,1)}}
        return memory

    def step(self, objective, state):
        n = objective.space.grid.steps
        grids = tuple(g for g in self._grids(objective) if g <= n)[::self.jump]
        counts = Counter(state.counts)
        memory = self._memory(state.memory, objective, state.control)
        if len(grids) == 1:
            control, memory, status = self._smooth(objective, state.control, memory, 1)
            return State(control, memory, status, counts)
        control, memory, status = self._cycle(objective, state.control, memory, grids, self.shape, counts)
        return State(control, memory, status, counts)

    def _grids(self, objective):
        return coarse_grids(objective.finest, self.levels, self.factor)

    def _smooth(self, objective, control, memory, count, floor=0.0):
        n = objective.space.grid.steps
        memory = self._memory(memory, objective, control)
        s = State(control, memory[n]["smoother"])
        for _ in range(count):
            J0,w0=objective.value(s.control),objective.work.units
            s = self.smoother.step(objective, s)
            if (J0-objective.value(s.control))<floor*(objective.work.units-w0): break
            if s.status is not Status.RUNNING:
                break
        return s.control, {**memory, n: {**memory[n], "smoother": s.memory}}, s.status

    def _cycle(self, objective, control, memory, grids, shape, counts, floor=0.0):
        n, *coarser = grids
        memory = self._memory(memory, objective, control)
        if not coarser:
            return self._smooth(objective, control, memory, self.coarsest, floor)
        J0, w0 = objective.value(control), objective.work.units
        control, memory, status = self._smooth(objective, control, memory, self.pre)
        rate = (J0 - objective.value(control)) / max(objective.work.units - w0, 1e-12)
        for child in SHAPES[shape]:
            if self.earn and memory[n]["wait"] > 0:
                memory = {**memory, n: {**memory[n], "wait": memory[n]["wait"] - 1}}
                continue
            control, memory, status = self._correct(objective, control, memory, grids, child, counts, rate, status)
        if self.post:
            control, memory, status = self._smooth(objective, control, memory, self.post)
        return control, memory, status

    def _correct(self, objective, control, memory, grids, shape, counts, rate, status):
        n, *coarser = grids
        J0, w0 = objective.value(control), objective.work.units
        base = objective.on(coarser[0])
        t = Transfer(objective.space, base.space, self.interpolation)
        d = objective.derivative(control)
        dH = t.restrict_dual(d)
        if base.space.dual_norm(dH) < self.visit * objective.space.dual_norm(d):
            return control, memory, status
        v0 = t.restrict(control)
        memory = self._memory(memory, base, v0)
        mine = memory[n]
        shifted = ShiftedObjective(base, v0, base.derivative(v0) - dH, mine["radius"])
        v, memory, _ = self._cycle(shifted, v0, memory, coarser, shape, counts, rate if self.earn else 0.0)
        e = t.prolong(v - v0)
        length = objective.space.norm(e)
        slope = float(torch.dot(d, e))
        trial = self.search(objective, control, e, 1.0) if slope < 0 else None
        if trial is None:
            counts["refused"] += 1
            mine = {**mine, "radius": 0.5 * length if length > 0 else mine["radius"]}
            gain = 0
        else:
            counts["corrections"] += 1
            control = trial.control
            status = Status.RUNNING
            gain = (J0 - objective.value(control)) / max(objective.work.units - w0, 1e-12)
            if trial.step == 1.0 and length > 0.9 * mine["radius"]:
                mine = {**mine, "radius": 2 * mine["radius"]}
            elif trial.step < 1:
                mine = {**mine, "radius": max(trial.step * length, 1e-3 * mine["radius"])}
        if gain < rate:
            counts["notworth"] += 1
            mine = {**mine, "wait": mine["patience"], "patience": min(2 * mine["patience"],64)}
        else:
            mine = {**mine, "patience": 1}
        memory = {**memory, n: mine | {"smoother": memory[n]["smoother"]}}
        return control, memory, status

    def transport(self, memory, transfer):
        n, N = transfer.coarse.grid.steps, transfer.fine.grid.steps
        m = memory.get(n)
        if m is None: return memory
        return {**memory, N: {"smoother": self.smoother.transport(m["smoother"], transfer), "radius": m["radius"], "wait": m["patience"], "patience": m["patience"]}}
