"""The interior-point method as a method of `minimize`: from coarse grids to the finest one, with a state to resume."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable
from dataclasses import dataclass, replace
from math import inf
from typing import Any, ClassVar

import numpy as np
import torch
from torch import Tensor

from ocp.objective.evaluation import Evaluation, Objective, optimality
from ocp.objective.feasibility import excesses, worst
from ocp.objective.reduced import ReducedEvaluation, ReducedObjective
from ocp.optimize.interior_point.banded import BandedLU
from ocp.optimize.interior_point.filters import Filter
from ocp.optimize.interior_point.iterate import Iterate
from ocp.optimize.interior_point.kkt import Array, Solver
from ocp.optimize.interior_point.loop import Iteration, Iterations
from ocp.optimize.interior_point.nesting import prolonged
from ocp.optimize.interior_point.program import Program
from ocp.optimize.interior_point.rollout import rolled_out
from ocp.optimize.interior_point.scaling import scaled
from ocp.optimize.interior_point.statement import check, first_states, program_of
from ocp.optimize.method import KKT, Method, State
from ocp.optimize.status import Status
from ocp.problem.constraints import Multipliers
from ocp.space.bounds import feasible
from ocp.space.transfer import Transfer

__all__ = ["InteriorPoint", "Memory"]

#: The arrays of an iterate.
ARRAYS = ("x", "u", "q", "costates", "nu", "slacks", "y")


@dataclass(frozen=True, eq=False)
class Memory:
    """What it takes to go on.

    The start, the factor of all costs, and the iterate and the globalization on the grid of ``steps`` steps.
    """

    start: Tensor
    scale: float
    steps: int
    iterate: dict[str, Tensor]
    mu: float
    filter: Filter | None = None
    shift: float = 0.0
    number: int = 0
    short: int = 0
    escapes: int = 0


@dataclass(frozen=True)
class InteriorPoint(Method):
    """Newton's method on all optimality conditions at once, with states, controls and multipliers as unknowns.

    A primal-dual interior-point method with a filter line search, Wächter & Biegler (2006), "On the implementation of
    an interior-point filter line-search algorithm for large-scale nonlinear programming", for discrete optimal control:
    one band matrix per iteration. It is the fastest method for problems with few states. It needs second derivatives
    and double precision, and takes functions or modules made of torch operations, bounds, constraints, and `Tikhonov`
    as control cost. States need not belong to the control before the end, so it can begin far from any trajectory.

    It works through grids: the first has at least ``coarsest`` steps; each later one begins with all that was found,
    multipliers included, and mostly needs one to three iterations. One step of the method is up to ``iterations``
    iterations, and at most 50 more where it has to restore feasibility. Its records show the control, rolled out on the
    same grid. The count ``newton_iterations`` is reported with the result.

    An iteration is charged as 2 (n + m) + 2 (n + 1) / 3 + 1/3 gradients, for n numbers in the state: as many Hessian
    products as there are columns, as many adjoint sweeps as there are rows, and a forward sweep. This counts
    arithmetic. Since no step waits for another one, it takes a small fraction of the time.

    Parameters
    ----------
    tolerance : float
        Of the largest error in the optimality conditions, relative to the terms that have to cancel, to the states, and
        to the cost.
    iterations : int
        At most this many in one step of the method.
    coarsest, factor : int
        The least number of steps of a coarse grid, and the ratio between two grids. Grids are coarsened while
        ``factor`` divides the steps.
    coarse_tolerance : float
        On all grids but the finest.
    solver : callable
        Makes the `Solver` of the linear systems: `BandedLU`, or `Riccati` for exact inertia, which is slower. Any
        solution is checked by exact inertia; from a saddle point the method goes on with `Riccati`.

    Examples
    --------
    >>> from ocp import ControlProblem, minimize
    >>> problem = ControlProblem(
    ...     lambda t, x, u: torch.stack((x[:, 1], torch.sin(x[:, 0]) + u), dim=1),
    ...     torch.ones(1, 2, dtype=torch.float64),
    ...     running_cost=lambda t, x, u: x.square().sum() + u.square().sum(),
    ...     control_size=1,
    ... )
    >>> minimize(problem, 64, InteriorPoint(), integrator="rk4").status.name
    'CONVERGED'
    """

    tolerance: float = 1e-8
    iterations: int = 50
    coarsest: int = 64
    factor: int = 4
    coarse_tolerance: float = 1e-5
    solver: Callable[[], Solver] = BandedLU
    full_batch: ClassVar[bool] = True
    keeps_constraints: ClassVar[bool] = True

    def __post_init__(self) -> None:
        if not (0 < self.tolerance < inf and 0 < self.coarse_tolerance < inf):
            got = f"{self.tolerance}, {self.coarse_tolerance}"
            raise ValueError(f"tolerance, coarse_tolerance: expected numbers > 0, got {got}")
        if not (self.iterations >= 1 and self.coarsest >= 1 and self.factor >= 2):
            got = f"{self.iterations}, {self.coarsest}, {self.factor}"
            raise ValueError(f"iterations, coarsest, factor: expected integers >= 1, >= 1 and >= 2, got {got}")

    def check(self, objective: Objective) -> None:
        check(_plain(objective).discretization)

    def init(self, objective: Objective, point: Evaluation) -> State:
        self.check(objective)  # as a smoother it may meet other objectives than the one on the finest grid
        return State(point)

    def step(self, objective: Objective, state: State) -> State:
        fine, memory, left, counts = _plain(objective), state.memory, self.iterations, Counter(state.counts)
        start, scale = (state.control, None) if memory is None else (memory.start, memory.scale)
        grids, before = self._grids(fine.space.grid.steps, memory), None
        for steps in grids:
            here, last = fine.on(steps), steps == grids[-1]
            u = start if last else Transfer(fine.space, here.space).restrict(start)
            program = program_of(here.discretization, here.space.parameters(u))
            path, q = here.space.path(u).numpy().copy(), here.space.parameters(u).numpy().copy()
            x = first_states(program, path, q, lambda: _trajectory(here, u))  # noqa: B023
            program = scaled(program, x, path, q) if scale is None else replace(program, scale=scale)
            scale = program.scale
            iterations = Iterations(program, self.solver(), self.tolerance if last else self.coarse_tolerance)
            if before is not None:
                at = iterations.resume(prolonged(before[1], before[0].inequalities, iterations.inequalities))
            elif memory is not None and memory.steps == steps:
                at = _recalled(memory, iterations)
            else:
                at = iterations.begin(x, path, q)
            done = at.number
            at = iterations.run(at, done + left)
            left, done = left - at.number + done, at.number - done
            fine.work.charge(done * _cost(program), steps, fine.work.samples)
            counts["newton_iterations"] += done
            if last or (at.status is Status.RUNNING and left <= 0):
                break
            before = (iterations, at.point) if at.status is Status.CONVERGED else None
            counts.update(["refused_grids"] if before is None else [])
        (found, kkt), level = _evaluation(here, iterations, at), sum(finer > steps for finer in grids)
        return replace(
            state,
            point=found,
            kkt=kkt,
            memory=_remembered(at, start, iterations.program.scale, steps),
            status=at.status if last else Status.RUNNING,
            counts=counts,
            level=level,
        )

    def transport(self, memory: Any, transfer: Transfer) -> Any:
        """The memory as it is; the iterate is prolonged from its own grid in the next step."""
        return None if memory is None else replace(memory, start=transfer.prolong(memory.start))

    def _grids(self, steps: int, memory: Memory | None) -> list[int]:
        """Numbers of steps, from the grid of the memory or the coarsest one to the finest."""
        grids = [steps]
        while grids[0] % self.factor == 0 and grids[0] // self.factor >= self.coarsest:
            grids.insert(0, grids[0] // self.factor)
        return grids if memory is None else [memory.steps, *(n for n in grids if n > memory.steps)]


def _plain(objective: Objective) -> ReducedObjective:
    if not isinstance(objective, ReducedObjective):
        raise ValueError(f"method: InteriorPoint expected the objective of a problem, got {type(objective).__name__}")
    return objective


def _trajectory(objective: ReducedObjective, control: Tensor) -> Array:
    """The states of a control, shape (N + 1, n)."""
    with objective.work.looking():
        states: Array = objective.at(feasible(control, objective.box)).states.flatten(1).numpy().copy()
    return states


def _cost(program: Program) -> float:
    """Of an iteration, in gradients."""
    return 2 * (program.n + program.m + program.s) + 2 * (program.n + 1) / 3 + 1 / 3


def _evaluation(objective: ReducedObjective, iterations: Iterations, at: Iteration) -> tuple[Evaluation, KKT | None]:
    """The control of an iterate, with value and derivative where all steps at once give them, and its constraints."""
    space, there, program = objective.space, objective.discretization, replace(iterations.program, scale=1.0)
    point = at.point
    flat = feasible(space.join(torch.from_numpy(point.u), torch.from_numpy(point.q)).clone(), objective.box)
    u, q, scale = space.path(flat).numpy(), space.parameters(flat).numpy(), iterations.program.scale
    nu, y = point.nu / scale, point.y[iterations.inequalities.bounds :] / scale
    found = rolled_out(program, point.x, u, q, nu, y)
    if found is None:
        return objective.at(flat), None
    value = found.value
    derivative, lagrangian = (
        space.join(*(torch.from_numpy(part) for part in parts)) for parts in (found.derivative, found.lagrangian)
    )
    for cost in there.problem.control_cost:
        value += float(cost(space, flat))
        by_control = cost.derivative(space, flat)
        derivative, lagrangian = derivative + by_control, lagrangian + by_control
    kkt = None
    if there.problem.constraints:
        states = torch.from_numpy(found.x).view(-1, *there.example()[0].shape)
        kkt = KKT(
            _multipliers(objective, program, nu, y, q),
            optimality(ReducedEvaluation(objective, flat, value, lagrangian)),
            worst(excesses(there, flat, states)).relative,
            inf if at.errors is None else at.errors.complementarity,
            at.status is Status.CONVERGED or iterations.is_minimum(at),
        )
    return ReducedEvaluation(objective, flat, value, derivative), kkt


def _multipliers(objective: ReducedObjective, program: Program, nu: Array, y: Array, q: Array) -> Multipliers:
    """The multipliers of the constraints, those along the way as densities in time."""
    steps, duration = objective.space.grid.steps, objective.discretization.problem.duration(torch.from_numpy(q))
    path, end = y[: steps * program.c].reshape(steps, program.c), y[steps * program.c :]
    return Multipliers(
        torch.from_numpy(path * (steps / duration)) if program.c else None,
        torch.from_numpy(nu) if len(nu) else None,
        torch.from_numpy(end) if len(end) else None,
    )


def _remembered(at: Iteration, start: Tensor, scale: float, steps: int) -> Memory:
    arrays = {name: torch.from_numpy(np.ascontiguousarray(getattr(at.point, name))) for name in ARRAYS}
    return Memory(start, scale, steps, arrays, at.point.mu, at.filter, at.shift, at.number, at.short, at.escapes)


def _recalled(memory: Memory, iterations: Iterations) -> Iteration:
    point = Iterate(**{name: tensor.numpy() for name, tensor in memory.iterate.items()}, mu=memory.mu)
    values = iterations.program.values(point.x, point.u, point.q)
    return Iteration(
        point, values, memory.filter, memory.shift, memory.number, memory.short, memory.escapes, primed=True
    )
