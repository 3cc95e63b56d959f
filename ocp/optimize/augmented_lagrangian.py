"""The augmented Lagrangian method: any method, on a sequence of problems without path and terminal constraints."""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from math import inf, isfinite
from typing import Any, ClassVar

import torch
from torch import Tensor

from ocp.objective.evaluation import Evaluation, Objective, optimality
from ocp.objective.feasibility import constraint_scales, constraint_values, excesses, worst
from ocp.objective.reduced import ReducedEvaluation, ReducedObjective
from ocp.optimize.lbfgs import LBFGS
from ocp.optimize.method import KKT, Method, State, as_method
from ocp.optimize.status import Status
from ocp.problem.augmented import EQUALITY, Augmentation
from ocp.space.bounds import feasible
from ocp.space.transfer import Transfer, coarse_grids

__all__ = ["AugmentedLagrangian", "Outer"]

#: A coarse grid is left when the constraints are satisfied to this share of their sizes: its own error is larger.
COARSE = 1e-2
#: After this many increases of the penalty that did not halve the violation, it has a minimum that is not zero.
HOPELESS = 5
#: After this many outer iterations in which the inner method found no better control, there is none.
STUCK = 3


@dataclass(frozen=True, eq=False)
class Outer:
    """What the method remembers from step to step.

    Attributes
    ----------
    augmentation : Augmentation
    unit, norm : float
        Of the penalty, and of the derivative: both tolerances are relative.
    optimal, allowed : float
        omega, at which an inner solve ends, and eta, at which the multipliers are updated.
    inner : Any
        The memory of the inner method.
    value, derivative
        Of the augmented Lagrangian at the control; None if they have to be computed.
    taken, stuck, hopeless, least
        Inner steps since the last outer one; outer iterations without progress; increases of the penalty in vain, and
        the violation with which they are compared.
    """

    augmentation: Augmentation
    unit: float
    norm: float
    optimal: float
    allowed: float
    inner: Any = None
    value: float | None = None
    derivative: Tensor | None = None
    taken: int = 0
    stuck: int = 0
    hopeless: int = 0
    least: float = inf


@dataclass(frozen=True)
class AugmentedLagrangian:
    """Path and terminal constraints for any method, by multipliers and a penalty.

    The method minimizes the objective with the terms of `ocp.problem.augmented.Augmentation` for fixed multipliers and
    penalty, with the exact derivative, and the exact Hessian for methods that use it, from the same sweeps. When the
    norm of its derivative is small enough, the multipliers are updated if the constraints are satisfied well enough,
    and otherwise the penalty grows: Conn, Gould & Toint (1991), "A globally convergent augmented Lagrangian algorithm
    for optimization with general constraints and simple bounds", algorithm 1, with the constants of Nocedal & Wright
    (2006), algorithm 17.4. Bounds stay bounds. The first penalty weighs what it costs to satisfy the constraints, to
    first order, against their violation, so that units do not matter.

    It takes problems of any size, such as networks, and states that belong to the control throughout. For problems with
    few states `InteriorPoint` is faster; on state constraints of higher order, which the control reaches only through
    two or more integrations, the multipliers are impulses, which this method finds slowly or not at all.

    Parameters
    ----------
    method : Method
        The inner method: `LBFGS`, `NewtonCG`, a `Cycle`, or another one that begins on the grid that it is given.
    levels, factor : int or sequence of int, int
        The grids of nested iteration; see `Cycle`. The control, the multipliers and the memory of the method pass to
        the next grid after an update of the multipliers that finds the constraints satisfied to a percent.
    penalty, growth : float
        The first penalty, in units of what is estimated, and the factor by which it grows.
    iterations : int
        The most inner steps between two outer ones.

    Examples
    --------
    >>> from ocp import ControlProblem, minimize
    >>> problem = ControlProblem(
    ...     lambda t, x, u: u.expand_as(x),
    ...     torch.zeros(1, 1, dtype=torch.float64),
    ...     running_cost=lambda t, x, u: 0.5 * u.square().sum(),
    ...     control_size=1,
    ...     terminal_equality=lambda x: x - 1,
    ... )
    >>> result = minimize(problem, 8, AugmentedLagrangian())
    >>> result.status.name, round(result.value, 5), round(float(result.multipliers.equality), 4)
    ('CONVERGED', 0.5, -1.0)
    """

    method: Method = LBFGS()
    levels: int | Sequence[int] = 1
    factor: int = 2
    penalty: float = 10.0
    growth: float = 10.0
    iterations: int = 100
    full_batch: ClassVar[bool] = True
    keeps_constraints: ClassVar[bool] = True

    def __post_init__(self) -> None:
        as_method("method", self.method)
        if not (0 < self.penalty < inf and 1 < self.growth < inf and self.iterations >= 1):
            got = f"{self.penalty}, {self.growth}, {self.iterations}"
            raise ValueError(f"penalty, growth, iterations: expected numbers > 0, > 1 and >= 1, got {got}")

    def check(self, objective: Objective) -> None:
        """Raise ``ValueError`` if there are no constraints, or no such grids."""
        fine = _plain(objective)
        if not fine.discretization.problem.constraints:
            raise ValueError("method: AugmentedLagrangian expected a problem with constraints, got one without")
        if len(self._grids(fine)) > 1:
            fine.space.check_path()

    def init(self, objective: Objective, point: Evaluation) -> State:
        fine = _plain(objective)
        grids = self._grids(fine)
        for level in range(len(grids) - 1, -1, -1):
            coarse = fine.on(grids[level])
            control = Transfer(fine.space, coarse.space).restrict(point.control) if level else point.control
            start = coarse.at(feasible(control, coarse.box)) if level else fine.at(control)
            if isfinite(start.value):
                break
        else:
            return State(point, status=Status.NOT_FINITE)
        there = start.objective.discretization
        values = constraint_values(there, start.control, start.states)
        zero = {name: torch.zeros_like(value) for name, value in values.items()}
        sizes = constraint_scales(there, start.control, start.states)
        unit = _unit(start, fine, Augmentation(zero, sizes, 1.0), values)
        mu, augmentation = self.penalty, Augmentation(zero, sizes, self.penalty * unit)
        first = fine.augmented(augmentation).on(there.grid.steps).at(start.control)
        inner = self.method.init(first.objective, first)
        if inner.level:
            name = type(self.method).__name__
            raise ValueError(f"method: expected one that begins on the grid it is given, and levels=..., got {name}")
        outer = Outer(augmentation, unit, optimality(first), 1 / mu, mu**-0.1, inner.memory)
        outer = replace(outer, value=first.value, derivative=first.derivative)
        return _state(State(point, counts=inner.counts, level=level), fine, first, outer)

    def step(self, objective: Objective, state: State) -> State:
        fine, outer = _plain(objective), state.memory
        here = fine.augmented(outer.augmentation).on(fine.space.steps_of(state.control))
        point = ReducedEvaluation(here, state.control, outer.value, outer.derivative)
        inner = self.method.step(here, replace(state, point=point, memory=outer.inner, status=Status.RUNNING))
        found = inner.point
        if not (isinstance(found, ReducedEvaluation) and isfinite(found.value)):
            return replace(inner, memory=outer, status=Status.NOT_FINITE, point=state.point)
        stuck = outer.stuck + 1 if torch.equal(found.control, state.control) else 0
        changes = {"value": found.value, "derivative": found.derivative, "taken": outer.taken + 1, "stuck": stuck}
        outer = replace(outer, inner=inner.memory, **changes)
        after = _state(inner, fine, found, outer)
        ended = inner.status is not Status.RUNNING or outer.taken >= self.iterations
        if not ended and optimality(found) > outer.optimal * outer.norm:
            return after
        return self._outer(fine, after, found)

    def _outer(self, fine: ReducedObjective, state: State, point: ReducedEvaluation) -> State:
        """An outer iteration: new multipliers, or a larger penalty."""
        outer, counts, by = state.memory, Counter(state.counts), state.memory.augmentation
        values = constraint_values(point.objective.discretization, point.control, point.states)
        residual, mu = max(_residuals(by, values)), by.penalty / outer.unit
        fresh = {"value": None, "derivative": None, "taken": 0}
        if residual <= outer.allowed:
            counts["multiplier_updates"] += 1
            by = replace(by, multipliers=by.updated(values))
            changes = {"optimal": outer.optimal / mu, "allowed": outer.allowed / mu**0.9}
            outer = replace(outer, augmentation=by, **changes, **fresh)
            state = replace(state, memory=outer, counts=counts)
            if state.level and residual <= COARSE:
                state = self._refined(fine, state)
        else:
            counts["penalty_increases"] += 1
            mu *= self.growth
            by = replace(by, multipliers={n: by.on(n, v) for n, v in values.items()}, penalty=mu * outer.unit)
            halved = residual <= outer.least / 2
            hopeless, least = (0, residual) if halved else (outer.hopeless + 1, outer.least)
            outer = replace(outer, augmentation=by, optimal=1 / mu, allowed=mu**-0.1, hopeless=hopeless, least=least)
            here = fine.augmented(by).on(point.objective.space.grid.steps)
            inner = self.method.init(here, here.at(point.control)).memory
            state = replace(state, memory=replace(outer, inner=inner, **fresh), counts=counts)
        status = Status.RUNNING
        if outer.hopeless >= HOPELESS:
            status = Status.INFEASIBLE
        elif outer.stuck >= STUCK:
            status = Status.NO_DECREASE
        return replace(state, status=status)

    def _refined(self, fine: ReducedObjective, state: State) -> State:
        """The same on the next finer grid; multipliers along the way are functions of time on any grid."""
        level = state.level - 1
        next_, coarse = fine.on(self._grids(fine)[level]), fine.on(fine.space.steps_of(state.control))
        transfer = Transfer(next_.space, coarse.space)
        prolonged = next_.at(feasible(transfer.prolong(state.control), next_.box))
        outer = replace(state.memory, inner=self.method.transport(state.memory.inner, transfer))
        first = fine.augmented(outer.augmentation).on(next_.space.grid.steps).at(prolonged.control)
        if not isfinite(first.value):
            return state
        outer = replace(outer, value=first.value, derivative=first.derivative)
        return _state(replace(state, level=level), fine, first, outer)

    def transport(self, memory: Outer, transfer: Transfer) -> Outer:
        inner = self.method.transport(memory.inner, transfer)
        return replace(memory, inner=inner, value=None, derivative=None)

    def _grids(self, objective: ReducedObjective) -> tuple[int, ...]:
        return coarse_grids(objective.space.grid.steps, self.levels, self.factor)


def _plain(objective: Objective) -> ReducedObjective:
    if not isinstance(objective, ReducedObjective):
        got = type(objective).__name__
        raise ValueError(f"method: AugmentedLagrangian expected the objective of a problem, got {got}")
    return objective


def _unit(start: ReducedEvaluation, fine: ReducedObjective, plain: Augmentation, values: Mapping[str, Tensor]) -> float:
    """The penalty with which the violation at the start costs as much as it takes to satisfy the constraints.

    A steepest descent step on the violation, of the length that is right for a linear constraint, shows the price.
    """
    violated, space, box = plain.total(values), start.objective.space, start.objective.box
    size = max(abs(start.value), space.dual_norm(start.derivative) * max(1.0, space.norm(start.control))) or 1.0
    slope = fine.augmented(plain).on(space.grid.steps).at(start.control).derivative - start.derivative
    square = space.dual_norm(slope) ** 2
    if not (violated > 0 and 0 < square < inf):
        return size
    step = -2 * violated / square * space.gradient(slope)
    after = start.objective.at(feasible(start.control + step, box)).value - start.value
    price = max(abs(after) if isfinite(after) else 0.0, abs(float(torch.dot(start.derivative, step))))
    return (price or size) / violated


def _residuals(by: Augmentation, values: Mapping[str, Tensor]) -> tuple[float, float]:
    """The largest violation, and the most room of an inequality whose multiplier is not zero, in its own sizes.

    With the slack that minimizes the augmented Lagrangian, an inequality is an equation with the residual
    max(c, -y / rho); here both signs of it are reported.
    """
    violated, loose = 0.0, 0.0
    for name, value in values.items():
        residual = value / by.sizes[name]
        if name != EQUALITY:
            residual = torch.maximum(residual, -by.on(name, value) / by.penalty)
            loose = max(loose, -float(residual.min()))
        violated = max(violated, float(residual.abs().max() if name == EQUALITY else residual.max()))
    return violated, loose


def _state(state: State, fine: ReducedObjective, point: ReducedEvaluation, outer: Outer) -> State:
    """The state at an evaluation of the augmented Lagrangian, whose derivative is that of the Lagrangian."""
    there, control, by = point.objective.discretization, point.control, outer.augmentation
    values, base = constraint_values(there, control, point.states), fine.on(there.grid.steps)
    terms = by.total(values)
    value = point.value - terms
    if abs(value) < 1e-6 * abs(terms):  # digits are lost
        with fine.work.looking():
            value = base.at(control).value
    duration = there.problem.duration(there.space.parameters(control))
    kkt = KKT(
        by.unscaled(by.updated(values), duration),
        optimality(point),
        worst(excesses(there, control, point.states)).relative,
        _residuals(by, values)[1],
    )
    return replace(state, point=ReducedEvaluation(base, control, value), memory=outer, status=Status.RUNNING, kkt=kkt)
