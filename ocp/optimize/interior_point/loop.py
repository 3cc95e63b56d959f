"""One iteration of the interior-point method, and all of them."""

from __future__ import annotations

from dataclasses import dataclass, replace

import numpy as np

from ocp.optimize.interior_point.barrier import probe, share_kept
from ocp.optimize.interior_point.border import Bordered
from ocp.optimize.interior_point.curvature import beyond, is_minimum
from ocp.optimize.interior_point.direction import NewtonSystem
from ocp.optimize.interior_point.feasibility import feasibility, forces, violations
from ocp.optimize.interior_point.filters import Filter
from ocp.optimize.interior_point.inequalities import Inequalities
from ocp.optimize.interior_point.iterate import Errors, Iterate, errors, gap
from ocp.optimize.interior_point.kkt import Array, Model, Solver
from ocp.optimize.interior_point.nesting import settled, shifted, with_slacks
from ocp.optimize.interior_point.program import Derivatives, Program, Values
from ocp.optimize.interior_point.riccati import Riccati
from ocp.optimize.interior_point.scaling import scaled
from ocp.optimize.interior_point.search import measure, search
from ocp.optimize.status import Status

__all__ = ["Iteration", "Iterations"]

#: The first parameter of the barrier, for costs of size 1: of 0.01, 0.1, ..., 100 the best on twelve problems of
#: control, by little.
MU = 1.0

#: Starts are moved this share of the distance between two bounds into the interior: Wächter & Biegler (2006),
#: section 3.6.
PUSH = 1e-2

#: Estimates of multipliers above this are dropped, as in that section.
LARGEST = 1e3

#: The most saddle points that are left for a lower point.
ESCAPES = 10

#: The most iterations of a restoration, and the share of the violation at which it ends.
RESTORATION, RESTORED = 50, 0.1

#: A restoration has come to its end if the violations stay the same in this many iterations.
STALL = 25


@dataclass(frozen=True, eq=False)
class Iteration:
    """Where the iterations are: all that the next one depends on.

    Attributes
    ----------
    point : Iterate
    values : Values
    filter : Filter, optional
        None before the first step.
    shift : float
        The last one of the Hessian.
    number : int
        Iterations so far.
    short : int
        Failed searches in a row.
    escapes : int
        Saddle points left so far. From the first one on, the solver is one that knows the inertia.
    primed : bool
        Whether the multipliers are estimates worth using.
    errors : Errors, optional
        Of the last point that was linearized.
    status : Status
    """

    point: Iterate
    values: Values
    filter: Filter | None = None
    shift: float = 0.0
    number: int = 0
    short: int = 0
    escapes: int = 0
    primed: bool = False
    errors: Errors | None = None
    status: Status = Status.RUNNING


class Iterations:
    """The interior-point method on one program, whose costs are `scaled`.

    ``restores`` says whether it may leave off to restore feasibility, ``forces`` how large terms are that cancel within
    the derivatives of its cost.
    """

    def __init__(
        self, program: Program, solver: Solver, tolerance: float = 1e-8, restores: bool = True, forces: float = 0.0
    ):
        self.program, self.tolerance, self.restores, self.forces = program, tolerance, restores, forces
        self.inequalities, self.system, self.exact = Inequalities(program), Bordered(solver), Bordered(Riccati())

    def begin(self, x: Array, u: Array, q: Array, mu: float = MU) -> Iteration:
        """The first iterate, from states that need not belong to the control; bounds move it into the interior."""
        program, inequalities = self.program, self.inequalities
        u, q = shifted(u, program.lower, program.upper, PUSH), shifted(q, program.least, program.most, PUSH)
        values = program.values(x, u, q)
        slacks = np.concatenate((inequalities.distances(u, q), np.maximum(-values.limits, PUSH)))
        point = Iterate(x, u, q, np.zeros_like(x), np.zeros(program.g), slacks, mu * inequalities.weights / slacks, mu)
        return Iteration(point, values)

    def resume(self, point: Iterate) -> Iteration:
        """Go on from a prolonged iterate, whose multipliers are used."""
        point = settled(point, self.program)
        values = self.program.values(point.x, point.u, point.q)
        return Iteration(with_slacks(point, self.inequalities, values), values, primed=True)

    def run(self, at: Iteration, limit: int) -> Iteration:
        """Iterate until the errors are within the tolerance, or up to a limit."""
        while at.status is Status.RUNNING and at.number < limit:
            at = self.step(at)
        return at

    def is_minimum(self, at: Iteration) -> bool:
        """Whether the curvature at an iterate is that of a minimum, which `Status.CONVERGED` implies."""
        return is_minimum(self._system(at, self._derivatives(at.point, at.values), self.exact))

    def step(self, at: Iteration) -> Iteration:
        """One iteration, and those of a restoration that has to follow."""
        program, inequalities, point, values = self.program, self.inequalities, at.point, at.values
        derivatives = self._derivatives(point, values)
        if not at.primed:
            point = self._with_costates(point, derivatives)
            derivatives = self._derivatives(point, values)
        found = errors(program, inequalities, point, values, derivatives, self.forces)
        at = replace(at, point=point, primed=True, errors=found)
        if not np.isfinite(found.largest):
            return replace(at, status=Status.NOT_FINITE)
        if found.largest <= self.tolerance:
            return self._arrived(at, derivatives)
        system = self._system(at, derivatives, self.exact if at.escapes else self.system)
        shift, direction = system.factor(at.shift)
        if direction is None:
            return replace(at, status=Status.NO_DECREASE)
        mu = self._next_mu(system, found, at.number)
        filter = at.filter
        if mu != point.mu:
            if filter is not None and abs(mu - point.mu) > 0.01 * point.mu:
                filter = filter.emptied()
            point = system.point = replace(point, mu=mu)
            direction = system.direction(mu)
        if filter is None:
            theta = max(1.0, measure(inequalities, values, point.slacks, mu).theta)
            filter = Filter(1e4 * theta, 1e-4 * theta, 10 * float(np.finfo(float).eps))
        tau = share_kept(mu)
        reached = search(system, direction, values, filter, tau)
        number, shift = at.number + 1, shift or at.shift
        if reached is not None:
            return replace(
                at,
                point=reached.point,
                values=reached.values,
                filter=reached.filter,
                shift=shift,
                number=number,
                short=0,
            )
        if self.restores and found.primal > self.tolerance:
            return self._restored(replace(at, filter=filter, number=number), forces(program, values, derivatives))
        if at.short >= 8:
            return replace(at, status=Status.NO_DECREASE, number=number)
        return replace(at, filter=filter.emptied(), shift=max(10 * shift, 1e-4), number=number, short=at.short + 1)

    def _system(self, at: Iteration, derivatives: Derivatives, solver: Bordered) -> NewtonSystem:
        return NewtonSystem(self.program, self.inequalities, solver, at.point, at.values, derivatives)

    def _arrived(self, at: Iteration, derivatives: Derivatives) -> Iteration:
        """The end at a minimum; at a saddle point, which band LU cannot tell from one, a start from beyond it."""
        system = self._system(at, derivatives, self.exact)
        if is_minimum(system):
            return replace(at, status=Status.CONVERGED)
        point = beyond(system, 1 - 2 * (at.escapes % 2)) if at.escapes < ESCAPES else None
        if point is None:
            return replace(at, status=Status.SADDLE)
        values, bounds = self.program.values(point.x, point.u, point.q), self.inequalities.bounds
        point.slacks[bounds:] = np.fmax(point.slacks[bounds:], -values.limits)
        return replace(
            at,
            point=point,
            values=values,
            filter=None,
            shift=0.0,
            number=at.number + 1,
            short=0,
            escapes=at.escapes + 1,
        )

    def _restored(self, at: Iteration, forces: float) -> Iteration:
        """Go on from a point that violates the constraints less, or say that there is none."""
        program, point = self.program, at.point
        before = _violation(program, at.values)
        other = scaled(feasibility(program), point.x, point.u, point.q)
        inner = Iterations(other, self.system.solver, self.tolerance, restores=False, forces=other.scale * forces)
        there = inner.begin(point.x, point.u, point.q)
        costs = [there.values.cost]
        while there.status is Status.RUNNING and there.number < RESTORATION:
            there = inner.step(there)
            costs.append(there.values.cost)
            values = program.values(there.point.x, there.point.u, there.point.q)
            if _violation(program, values) <= RESTORED * before:
                break
        number, found = at.number + there.number, there.point
        # Where a valley is flat, the violations converge long before the point does.
        still = np.ptp(costs[-STALL:]) <= self.tolerance * abs(costs[-1]) and there.number == RESTORATION
        ended = there.status is Status.CONVERGED or (still and there.short == 0 and inner.is_minimum(there))
        if ended and _violation(program, values) > max(self.tolerance, RESTORED * before):
            return replace(
                at,
                point=replace(point, x=found.x, u=found.u, q=found.q),
                values=values,
                number=number,
                status=Status.INFEASIBLE,
            )
        if at.short >= 8 or there.status not in (Status.RUNNING, Status.CONVERGED):
            return replace(at, number=number, status=Status.NO_DECREASE)
        again = self.begin(found.x, found.u, found.q, point.mu)
        return replace(again, number=number, short=at.short + 1, escapes=at.escapes)

    def _derivatives(self, point: Iterate, values: Values) -> Derivatives:
        y = point.y[self.inequalities.bounds :]
        return self.program.derivatives(point.x, point.u, point.q, values.taken, point.costates, point.nu, y)

    def _next_mu(self, system: NewtonSystem, found: Errors, number: int) -> float:
        point, inequalities = system.point, self.inequalities
        if not inequalities.number or number == 0:
            return point.mu
        ahead = system.direction(0.0)
        mu = probe(point.slacks, point.y, (ahead.slacks, ahead.y), share_kept(point.mu), inequalities.total)
        least = self.tolerance * gap(system.values) / 10
        mu = min(max(mu, least, 0.1 * min(point.mu, found.primal)), 10 * point.mu, 1e2)
        return mu if mu < 0.99 * point.mu or max(found.dual, found.primal) > 0.1 * point.mu else point.mu

    def _with_costates(self, point: Iterate, at: Derivatives) -> Iterate:
        """The multipliers of equations that come nearest to stationarity of the costs, in the norm of x and u.

        What holds inequalities off is left out: at the start it says nothing about the solution.
        """
        program = self.program
        n, m, s, N = program.n, program.m, program.s, len(program.times)
        H = np.zeros_like(at.H)
        for i in range(n + m + s):
            H[i, i] = program.h
        model = Model(at.J, H, np.eye(n + s), at.G, at.start, np.zeros((s, s)), program.h)
        self.system.assemble(program.layout, model)
        if not self.system.factor(0.0, 1e-12):
            return point
        by_parameters = at.gradient[n + m :].sum(1) + at.end_gradient[n:] + at.parameter_gradient
        by_step, by_end = at.gradient[: n + m].T, at.end_gradient[:n]
        right = program.layout.pack(np.zeros((N + 1, n)), -by_step, -by_end, np.zeros(program.g))
        costates, _, _, nu = program.layout.unpack(self.system.solve(right, -by_parameters)[0])
        if not max(np.abs(costates).max(), np.abs(nu).max(initial=0.0)) <= LARGEST:
            return point
        return replace(point, costates=costates, nu=nu)


def _violation(program: Program, values: Values) -> float:
    """The largest violation of an equation or limit, that of the steps included."""
    return float(np.max((np.abs(values.defects).max(), *violations(program, values).values())))
