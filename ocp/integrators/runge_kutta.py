"""Runge-Kutta steps, explicit or diagonally implicit, with their transposes and tangents."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from ocp.integrators.linear_solvers import DenseLU, Factorization, LinearSolver
from ocp.integrators.stages import advance, combine, retreat
from ocp.integrators.systems import check_systems
from ocp.integrators.tableaus import Tableau
from ocp.problem.protocols import Dynamics, StateEquation
from ocp.problem.shapes import Cotangent

__all__ = ["RungeKutta"]

#: The most iterations of Newton's method. When it converges, about five are enough.
NEWTON_STEPS = 25
#: How many times the sampled effect of rounding an update may be: a sample is rarely 1 % of what is typical.
ROUNDING = 100.0


def _newton(solver: LinearSolver, f: Dynamics, t: float, r: Tensor, u: Tensor, scale: float) -> Tensor:
    """The solution X of X = r + scale f(t, X, u), starting from X = r; NaN if Newton's method does not converge.

    Each entry is judged by its own size, however large the others are, unless only rounding moves it any more.
    """
    info, x, start, rounding = torch.finfo(r.dtype), r, None, None
    enough = info.eps**0.5  # each iteration doubles the correct digits, so the next one would end in rounding
    for iteration in range(NEWTON_STEPS):
        residual = torch.sub(x - r, f(t, x, u), alpha=scale)
        factors = solver.factor(f, t, x, u, scale)
        update = factors.solve(residual)
        x, change = x - update, update.abs()
        excess = change.sub_(x.abs(), alpha=enough)
        largest = float(excess.max())
        if largest <= info.tiny:
            return x
        if not largest < float("inf"):
            break
        # Rounding is expensive to sample, and has no say before updates are small compared with the whole state.
        start = _norms(r) if start is None else start
        if bool((_norms(update) <= enough * (start + _norms(x))).all()):
            sample = _rounding(factors, f, t, x, r, u, scale, iteration)
            rounding = sample if rounding is None else torch.maximum(rounding, sample)
            if bool((excess <= (ROUNDING * rounding).clamp_min(info.tiny)).all()):
                return x
    return torch.full_like(r, float("nan"))


def _norms(x: Tensor) -> Tensor:
    """The norm of each sample."""
    norms: Tensor = x.flatten(1).norm(dim=1)
    return norms


def _rounding(
    factors: Factorization, f: Dynamics, t: float, x: Tensor, r: Tensor, u: Tensor, scale: float, seed: int
) -> Tensor:
    """How much rounding moves an update, entry by entry: a random sample, from how f changes where x is rounded."""
    eps, generator = torch.finfo(x.dtype).eps, torch.Generator().manual_seed(seed)
    first, second = (torch.randn(x.shape, generator=generator).to(x) for _ in range(2))
    change = f(t, x + 2 * eps * first * x, u) - f(t, x, u)
    error = eps * (x.abs() + r.abs()) + abs(scale) * change.abs()
    return factors.solve(error * second).abs()


@dataclass(frozen=True, eq=False)
class _Stage:
    """One stage X = r + h a K, K = f(t, X, u), with its derivatives; it is explicit if a is zero."""

    f: Dynamics
    t: float
    h: float
    x: Tensor
    u: Tensor
    a: float
    matrix: Factorization | None  # I - h a f_x, of an implicit stage

    def tangent(self, dr: Tensor, du: Tensor) -> tuple[Tensor, Tensor]:
        """(dX, dK) for a change of r and u."""
        if self.matrix is None:
            return dr, self.f.jvp(self.t, self.x, self.u, dr, du)
        scale, by_control = self.h * self.a, self.f.jvp(self.t, self.x, self.u, torch.zeros_like(dr), du)
        dx = self.matrix.solve(torch.add(dr, by_control, alpha=scale))
        return dx, (dx - dr) / scale

    def transpose(self, kappa: Tensor, source: Tensor | None) -> tuple[Tensor, Tensor, Tensor]:
        """(kappa + a xi, xi, f_u^T (kappa + a xi)) for xi = h f_x^T (kappa + a xi) + source."""
        if self.matrix is None:
            xi, pu = self.f.vjp(self.t, self.x, self.u, kappa)
            return kappa, self.h * xi if source is None else torch.add(source, xi, alpha=self.h), pu
        total = self.matrix.solve_transposed(kappa if source is None else torch.add(kappa, source, alpha=self.a))
        _, pu = self.f.vjp(self.t, self.x, self.u, total)
        return total, (total - kappa) / self.a, pu


@dataclass(frozen=True)
class RungeKutta:
    """Runge-Kutta, explicit or diagonally implicit, with the control held over all stages of a step.

    The transpose is exact for the discrete problem: Hager (2000), "Runge-Kutta methods in optimal control and the
    transformed adjoint system". Implicit stages are solved by Newton's method to rounding errors; if it fails, the next
    state is NaN.

    Parameters
    ----------
    tableau : Tableau
    solver : LinearSolver
        For implicit stages; an explicit scheme takes no other than the default.

    Examples
    --------
    >>> from ocp.integrators.tableaus import RK4
    >>> RungeKutta(RK4).order
    4
    """

    tableau: Tableau
    solver: LinearSolver = DenseLU()

    def __post_init__(self) -> None:
        if self.tableau.explicit and self.solver != DenseLU():
            got = type(self.solver).__name__
            raise ValueError(f"solver: expected none for {self.name}, which has no implicit stage, got {got}")

    @property
    def name(self) -> str:
        return self.tableau.name

    @property
    def order(self) -> int:
        return self.tableau.order

    @property
    def explicit_tableau(self) -> Tableau | None:
        """The tableau; None if stages are implicit."""
        return self.tableau if self.tableau.explicit else None

    @property
    def supports_autograd(self) -> bool:
        """Whether autograd can follow a step: if no stage is implicit."""
        return self.tableau.explicit

    def check(self, problem: StateEquation, t: float, h: float, x: Tensor, u: Tensor) -> None:
        """Check that implicit stages can be solved: their linear systems are those of the dynamics.

        Raises
        ------
        ValueError
            If they are not, or if the state is in half precision.
        """
        if self.tableau.explicit:
            return
        if torch.finfo(x.dtype).bits < 32:
            raise ValueError(f"initial_state: expected float32 or float64 for implicit steps, got {x.dtype}")
        check_systems(self.solver, problem.dynamics, t, x, u, h * max(self.tableau.diagonal, key=abs))

    def _stages(
        self, f: Dynamics, t: float, h: float, x: Tensor, u: Tensor, last: bool = True
    ) -> tuple[list[Tensor], list[Tensor]]:
        """Stage states and slopes; the last slope may be left out, since the transpose does not need it."""
        states: list[Tensor] = []
        diagonal, stages = self.tableau.diagonal, len(self.tableau.b)

        def slope(i: int, time: float, r: Tensor) -> Tensor:
            scale = h * diagonal[i]
            x = _newton(self.solver, f, time, r, u, scale) if scale else r
            states.append(x)
            # Not f(x), which is inaccurate for stiff f: Hairer & Wanner (1996), "Solving Ordinary Differential
            # Equations II", section IV.8.
            if scale:
                return (x - r) / scale
            return f(time, x, u) if last or i < stages - 1 else r

        return states, advance(self.tableau, t, h, x, slope)

    def _linearized(self, f: Dynamics, t: float, h: float, x: Tensor, u: Tensor) -> list[_Stage]:
        stages = []
        states, _ = self._stages(f, t, h, x, u, last=False)
        for state, c, a in zip(states, self.tableau.c, self.tableau.diagonal, strict=True):
            matrix = self.solver.factor(f, t + c * h, state, u, h * a) if a else None
            stages.append(_Stage(f, t + c * h, h, state, u, a, matrix))
        return stages

    def step(self, problem: StateEquation, t: float, h: float, x: Tensor, u: Tensor) -> tuple[Tensor, Tensor | None]:
        states, slopes = self._stages(problem.dynamics, t, h, x, u)
        end, L, c = combine(x, h, self.tableau.weights, slopes), problem.running_cost, self.tableau.c
        if L is None:
            return end, None
        first, *rest = [h * b * L(t + c[i] * h, states[i], u) for i, b in self.tableau.weights]
        return end, sum(rest, first)

    def pullback(self, problem: StateEquation, t: float, h: float, x: Tensor, u: Tensor, p: Tensor) -> Cotangent:
        px, derivative, _ = self._transpose(problem, self._linearized(problem.dynamics, t, h, x, u), h, u, p)
        return px, derivative

    def _transpose(
        self, problem: StateEquation, stages: Sequence[_Stage], h: float, u: Tensor, p: Tensor
    ) -> tuple[Tensor, Tensor, list[Tensor]]:
        """The costate at the start, the derivative by u, and the cotangents kappa_i + a xi_i of the slopes."""
        b, L, derivative, kappas = self.tableau.b, problem.running_cost, torch.zeros_like(u), [p] * len(stages)

        def pull(i: int, kappa: Tensor, into: Tensor | None) -> Tensor:
            stage, source = stages[i], None
            if L is not None and b[i]:
                Lx, Lu = L.derivative(stage.t, stage.x, u)
                source = h * b[i] * Lx
                derivative.add_(Lu, alpha=h * b[i])
            kappas[i], xi, pu = stage.transpose(kappa, source)
            derivative.add_(pu, alpha=h)
            return xi if into is None else into + xi

        return retreat(self.tableau, p, pull), derivative, kappas

    def tangent(
        self, problem: StateEquation, t: float, h: float, x: Tensor, u: Tensor, dx: Tensor, du: Tensor
    ) -> tuple[Tensor, Tensor | None]:
        L, stages = problem.running_cost, self._linearized(problem.dynamics, t, h, x, u)
        dstates, slopes = self._tangents(stages, h, dx, du)
        dend = combine(dx, h, self.tableau.weights, slopes)
        if L is None:
            return dend, None
        dcost = x.new_zeros(())
        for i, b in self.tableau.weights:
            Lx, Lu = L.derivative(stages[i].t, stages[i].x, u)
            dcost += h * b * ((Lx * dstates[i]).sum() + (Lu * du).sum())
        return dend, dcost

    def _tangents(
        self, stages: Sequence[_Stage], h: float, dx: Tensor, du: Tensor, last: bool = True
    ) -> tuple[list[Tensor], list[Tensor]]:
        """Tangents of the stage states and of the slopes; that of the last slope may be left out."""
        dstates: list[Tensor] = []

        def slope(i: int, _: float, dr: Tensor) -> Tensor:
            needed = last or i < len(stages) - 1 or stages[i].matrix is not None
            dstate, dslope = stages[i].tangent(dr, du) if needed else (dr, dr)
            dstates.append(dstate)
            return dslope

        return dstates, advance(self.tableau, 0.0, h, dx, slope)

    def pullback_tangent(
        self, problem: Any, t: float, h: float, x: Tensor, u: Tensor, p: Tensor, dx: Tensor, du: Tensor, dp: Tensor
    ) -> tuple[Tensor, Tensor, Tensor]:
        f, L = problem.dynamics, problem.running_cost
        b, stages, dderivative = self.tableau.b, self._linearized(f, t, h, x, u), torch.zeros_like(u)
        dstates, _ = self._tangents(stages, h, dx, du, last=False)
        px, _, kappas = self._transpose(problem, stages, h, u, p)

        def pull(i: int, dkappa: Tensor, into: Tensor | None) -> Tensor:
            stage, dstate = stages[i], dstates[i]
            hx, hu = f.hvp(stage.t, stage.x, u, kappas[i], dstate, du)
            if L is not None and b[i]:
                Lhx, Lhu = L.hvp(stage.t, stage.x, u, dstate, du)
                hx, hu = torch.add(hx, Lhx, alpha=b[i]), torch.add(hu, Lhu, alpha=b[i])
            _, dxi, dpu = stage.transpose(dkappa, h * hx)
            dderivative.add_(dpu + hu, alpha=h)
            return dxi if into is None else into + dxi

        return px, retreat(self.tableau, dp, pull), dderivative
