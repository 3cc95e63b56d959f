"""Runge-Kutta steps, explicit or diagonally implicit, with their transposes and tangents."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import Any

import torch
from torch import Tensor

from ocp.adjoint.tapes import Record, explicit
from ocp.integrators.linear_solvers import DenseLU, Factorization, LinearSolver
from ocp.integrators.tableaus import Tableau
from ocp.problem.control_problem import ControlProblem
from ocp.problem.costs import RunningCost
from ocp.problem.dynamics import Dynamics
from ocp.space.grid import TimeGrid

__all__ = ["RungeKutta"]


def _combine(x: Tensor, h: float, weights: Sequence[float], slopes: Sequence[Tensor], out: Tensor | None) -> Tensor:
    """x + h sum_i weights_i slopes_i, without a temporary for the zero weights."""
    terms = [(w, s) for w, s in zip(weights, slopes, strict=True) if w]
    if not terms:
        return x if out is None or out is x else out.copy_(x)
    (w, s), *rest = terms
    out = torch.add(x, s, alpha=h * w, out=out)
    for w, s in rest:
        out.add_(s, alpha=h * w)
    return out


#: Iterations of Newton's method before it is given up. From a start where it converges at all it needs about five.
NEWTON_STEPS = 25


def _newton(solver: LinearSolver, f: Dynamics, t: float, r: Tensor, u: Tensor, scale: float) -> Tensor:
    """The solution X of X = r + scale f(t, X, u), from X = r on; NaN where Newton's method does not find it.

    The number of correct digits doubles with each iteration, so that an update below the square root of the rounding
    errors leaves a solution at rounding errors.
    """
    info = torch.finfo(r.dtype)
    x, start = r, r.flatten(1).norm(dim=1)
    for _ in range(NEWTON_STEPS):
        residual = torch.sub(x - r, f(t, x, u), alpha=scale)
        update = solver.factor(f, t, x, u, scale).solve(residual)
        x = x - update
        size = (start + x.flatten(1).norm(dim=1)).clamp_min(info.tiny)
        change = float((update.flatten(1).norm(dim=1) / size).max())
        if change <= info.eps**0.5:
            return x
        if not change < float("inf"):
            break
    return torch.full_like(r, float("nan"))


@dataclass(frozen=True)
class _Stage:
    """One stage X = r + scale K, K = f(t, X, u), linearized where it stands; it is explicit where scale is zero.

    In an implicit stage, K is always (X - r) / scale and never another evaluation of f, for the sake of stiff f:
    Hairer & Wanner (1996), "Solving Ordinary Differential Equations II", section IV.8.
    """

    f: Dynamics
    t: float
    x: Tensor
    u: Tensor
    scale: float
    matrix: Factorization | None  # I - scale f_x, of an implicit stage

    def tangent(self, dr: Tensor, du: Tensor) -> tuple[Tensor, Tensor]:
        """(dX, dK) for a change of r and u."""
        if self.matrix is None:
            return dr, self.f.jvp(self.t, self.x, self.u, dr, du)
        by_control = self.f.jvp(self.t, self.x, self.u, torch.zeros_like(dr), du)
        dx = self.matrix.solve(torch.add(dr, by_control, alpha=self.scale))
        return dx, (dx - dr) / self.scale

    def transpose(self, kappa: Tensor, s: Tensor | None, weight: float) -> tuple[Tensor, Tensor, Tensor]:
        """(kappa, xi, f_u^T kappa) for xi = f_x^T kappa + weight s, where kappa = (the one given) + scale xi."""
        if self.matrix is None:
            xi, pu = self.f.vjp(self.t, self.x, self.u, kappa)
            return kappa, xi if s is None else torch.add(xi, s, alpha=weight), pu
        r = kappa if s is None else torch.add(kappa, s, alpha=self.scale * weight)
        total = self.matrix.solve_transposed(r)
        _, pu = self.f.vjp(self.t, self.x, self.u, total)
        return total, (total - kappa) / self.scale, pu


@dataclass(frozen=True)
class RungeKutta:
    """Runge-Kutta, explicit or diagonally implicit, with the control held over all stages of a step.

    The transpose follows the stages backward; it is the discrete adjoint of Hager (2000), "Runge-Kutta methods in
    optimal control and the transformed adjoint system", exact for the discrete problem. Implicit stages are solved by
    Newton's method to rounding errors, and transposed by a solve with the transposed matrix. Where Newton's method
    fails, the next state is NaN.

    Parameters
    ----------
    tableau : Tableau
    solver : LinearSolver
        For implicit stages; explicit ones do without.

    Examples
    --------
    >>> from ocp.integrators.tableaus import RK4
    >>> RungeKutta(RK4).order
    4
    """

    tableau: Tableau
    solver: LinearSolver = DenseLU()

    @property
    def name(self) -> str:
        return self.tableau.name

    @property
    def order(self) -> int:
        return self.tableau.order

    def _stages(
        self, problem: ControlProblem, t: float, h: float, x: Tensor, u: Tensor, last: bool
    ) -> tuple[list[Tensor], list[Tensor]]:
        """Stage states and slopes; the last slope only on request, since the transpose does not need it."""
        states: list[Tensor] = []
        slopes: list[Tensor] = []
        stages = len(self.tableau.b)
        for i, (row, c) in enumerate(zip(self.tableau.A, self.tableau.c, strict=True)):
            state, scale = _combine(x, h, row[:i], slopes, None), h * self.tableau.diagonal[i]
            if scale:
                r, state = state, _newton(self.solver, problem.dynamics, t + c * h, state, u, scale)
            states.append(state)
            if last or i < stages - 1:
                slopes.append((state - r) / scale if scale else problem.dynamics(t + c * h, state, u))
        return states, slopes

    def _linearized(self, problem: ControlProblem, t: float, h: float, x: Tensor, u: Tensor) -> list[_Stage]:
        states, _ = self._stages(problem, t, h, x, u, last=False)
        f, stages = problem.dynamics, []
        for state, c, a in zip(states, self.tableau.c, self.tableau.diagonal, strict=True):
            matrix = self.solver.factor(f, t + c * h, state, u, h * a) if a else None
            stages.append(_Stage(f, t + c * h, state, u, h * a, matrix))
        return stages

    def _gather(self, i: int, h: float, p: Tensor, later: Sequence[Tensor]) -> Tensor:
        """h b_i p + h sum_{j > i} a_ji xi_j, what the end of the step and later stages give to the slope of stage i."""
        A, b = self.tableau.A, self.tableau.b
        kappa = (h * b[i]) * p
        return _combine(kappa, h, [A[j][i] for j in reversed(range(i + 1, len(b)))], later, kappa)

    def step(self, problem: ControlProblem, t: float, h: float, x: Tensor, u: Tensor, out: Tensor) -> Tensor | None:
        states, slopes = self._stages(problem, t, h, x, u, last=True)
        _combine(x, h, self.tableau.b, slopes, out)
        return None if problem.running_cost is None else self._cost(problem.running_cost, t, h, states, u)

    def _cost(self, L: RunningCost, t: float, h: float, states: Sequence[Tensor], u: Tensor) -> Tensor:
        tableau = zip(self.tableau.b, self.tableau.c, states, strict=True)
        first, *rest = [h * b * L(t + c * h, state, u) for b, c, state in tableau if b]
        return sum(rest, first)

    def advance(self, problem: Any, t: float, h: float, x: Tensor, u: Tensor) -> tuple[Tensor, Tensor | None]:
        """The next state and the running cost over an explicit step, by operations that autograd can follow."""
        f, L, add, end = problem.dynamics, problem.running_cost, torch.add, x
        states: list[Tensor] = []
        slopes: list[Tensor] = []
        for (row, c), b in zip(self._rows, self.tableau.b, strict=True):
            state = x
            for j, a in row:
                state = add(state, slopes[j], alpha=h * a)
            slope = f(t + c * h, state, u)
            if b:
                end = add(end, slope, alpha=h * b)
            states.append(state)
            slopes.append(slope)
        return end, None if L is None else self._cost(L, t, h, states, u)

    @cached_property
    def _rows(self) -> list[tuple[list[tuple[int, float]], float]]:
        """The weights of a stage's predecessors that are not zero, and its node c."""
        rows = [[(j, a) for j, a in enumerate(row[:i]) if a] for i, row in enumerate(self.tableau.A)]
        return list(zip(rows, self.tableau.c, strict=True))

    def record(self, problem: ControlProblem, grid: TimeGrid, steps: int, x: Tensor, u: Tensor) -> Record | None:
        """Room for steps that are remembered for their transposes; None where implicit stages have to be solved."""
        if any(self.tableau.diagonal):
            return None
        return explicit(self, self.tableau, problem, grid, steps, x, u)

    def pullback(
        self, problem: ControlProblem, t: float, h: float, x: Tensor, u: Tensor, p: Tensor
    ) -> tuple[Tensor, Tensor]:
        b, L = self.tableau.b, problem.running_cost
        stages, derivative = self._linearized(problem, t, h, x, u), torch.zeros_like(u)
        later: list[Tensor] = []  # the xi of the stages after this one, last stage first
        for i, stage in reversed(list(enumerate(stages))):
            Lx, Lu = (None, None) if L is None or not b[i] else L.derivative(stage.t, stage.x, u)
            _, xi, pu = stage.transpose(self._gather(i, h, p, later), Lx, h * b[i])
            derivative += pu
            if Lu is not None:
                derivative.add_(Lu, alpha=h * b[i])
            later.append(xi)
        return _combine(p, 1.0, [1.0] * len(later), later, None), derivative

    def tangent(
        self, problem: ControlProblem, t: float, h: float, x: Tensor, u: Tensor, dx: Tensor, du: Tensor
    ) -> tuple[Tensor, Tensor | None]:
        b, L = self.tableau.b, problem.running_cost
        stages = self._linearized(problem, t, h, x, u)
        dstates, slopes = self._tangents(stages, h, dx, du, last=True)
        dend = _combine(dx, h, b, slopes, None)
        if L is None:
            return dend, None
        dcost = x.new_zeros(())
        for weight, stage, dstate in zip(b, stages, dstates, strict=True):
            if weight:
                Lx, Lu = L.derivative(stage.t, stage.x, u)
                dcost = dcost + h * weight * ((Lx * dstate).sum() + (Lu * du).sum())
        return dend, dcost

    def _tangents(
        self, stages: Sequence[_Stage], h: float, dx: Tensor, du: Tensor, last: bool
    ) -> tuple[list[Tensor], list[Tensor]]:
        """Tangents of the stage states and of the slopes; of the last slope only on request."""
        dstates: list[Tensor] = []
        slopes: list[Tensor] = []
        for i, (row, stage) in enumerate(zip(self.tableau.A, stages, strict=True)):
            dr = _combine(dx, h, row[:i], slopes, None)
            if not last and i == len(stages) - 1 and stage.matrix is None:
                return [*dstates, dr], slopes
            dstate, slope = stage.tangent(dr, du)
            dstates.append(dstate)
            slopes.append(slope)
        return dstates, slopes

    def pullback_tangent(
        self,
        problem: ControlProblem,
        t: float,
        h: float,
        x: Tensor,
        u: Tensor,
        p: Tensor,
        dx: Tensor,
        du: Tensor,
        dp: Tensor,
    ) -> tuple[Tensor, Tensor, Tensor]:
        """Tangent of the transpose: the costate at the start, its tangent, and the tangent of the derivative by u.

        Parameters
        ----------
        p, dp : Tensor
            Costate at the end of the step and its tangent.
        dx, du : Tensor
            Tangents of the state at the start and of the control.
        """
        f: Any = problem.dynamics  # with hvp, as whoever asks for second derivatives has made sure
        L: Any = problem.running_cost
        b = self.tableau.b
        stages, dderivative = self._linearized(problem, t, h, x, u), torch.zeros_like(u)
        dstates, _ = self._tangents(stages, h, dx, du, last=False)
        later: list[Tensor] = []
        dlater: list[Tensor] = []
        for i, (stage, dstate) in reversed(list(enumerate(zip(stages, dstates, strict=True)))):
            Lx = None if L is None or not b[i] else L.derivative(stage.t, stage.x, u)[0]
            kappa, xi, _ = stage.transpose(self._gather(i, h, p, later), Lx, h * b[i])
            hx, hu = f.hvp(stage.t, stage.x, u, kappa, dstate, du)
            if Lx is not None:
                Lhx, Lhu = L.hvp(stage.t, stage.x, u, dstate, du)
                hx, hu = torch.add(hx, Lhx, alpha=h * b[i]), torch.add(hu, Lhu, alpha=h * b[i])
            _, dxi, dpu = stage.transpose(self._gather(i, h, dp, dlater), hx, 1.0)
            dderivative += dpu + hu
            later.append(xi)
            dlater.append(dxi)
        ones = [1.0] * len(later)
        return _combine(p, 1.0, ones, later, None), _combine(dp, 1.0, ones, dlater, None), dderivative
