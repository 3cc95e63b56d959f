"""One step of a time integrator, its exact transpose, its tangent, and the tangent of the transpose."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, Protocol

import torch
from torch import Tensor

from ocp.dynamics import Dynamics
from ocp.linearsolve import DenseLU, Factorization, LinearSolver
from ocp.problem import ControlProblem
from ocp.tableaus import (
    BACKWARD_EULER,
    CRANK_NICOLSON,
    DOPRI5,
    EULER,
    HEUN,
    IMPLICIT_MIDPOINT,
    MIDPOINT,
    RK4,
    Tableau,
)

__all__ = ["INTEGRATORS", "Integrator", "RungeKutta", "Verlet", "as_integrator"]


class Integrator(Protocol):
    """The step x_{k+1} = Psi_h(t_k, x_k, u_k) of a problem, together with the running cost over the step.

    Two methods more are optional: ``pullback_tangent``, for second derivatives, and ``check(problem, x, u)``, which
    raises ``ValueError`` for problems that the scheme is not made for, given a state and the control of a step.
    """

    @property
    def name(self) -> str: ...

    @property
    def order(self) -> int: ...

    def step(self, problem: ControlProblem, t: float, h: float, x: Tensor, u: Tensor, out: Tensor) -> Tensor | None:
        """Write the next state to ``out`` and return the running cost over the step, None where there is none."""

    def pullback(
        self, problem: ControlProblem, t: float, h: float, x: Tensor, u: Tensor, p: Tensor
    ) -> tuple[Tensor, Tensor]:
        """Transpose of the step: from the costate at its end to the costate at its start and the derivative by u."""

    def tangent(
        self, problem: ControlProblem, t: float, h: float, x: Tensor, u: Tensor, dx: Tensor, du: Tensor
    ) -> tuple[Tensor, Tensor | None]:
        """Directional derivative of the next state and of the running cost."""


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
        if problem.running_cost is None:
            return None
        cost = x.new_zeros(())
        for b, c, state in zip(self.tableau.b, self.tableau.c, states, strict=True):
            if b:
                cost += h * b * problem.running_cost(t + c * h, state, u)
        return cost

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


_POSITIONS, _MOMENTA = 0, 1


def _half(x: Tensor, half: int) -> Tensor:
    """A view on the positions or on the momenta."""
    n = x.shape[1] // 2
    return x[:, n:] if half else x[:, :n]


@dataclass(frozen=True)
class _Substep:
    """The Euler step x + h w M f(t + c h, x, u), where M keeps one half of f and puts zeros in the other."""

    half: int
    w: float
    c: float

    def _mask(self, h: float, f: Tensor) -> Tensor:
        """h w M f; M is its own transpose."""
        masked = torch.zeros_like(f)
        torch.mul(_half(f, self.half), h * self.w, out=_half(masked, self.half))
        return masked

    def step(self, f: Dynamics, t: float, h: float, x: Tensor, u: Tensor) -> Tensor:
        return x + self._mask(h, f(t + self.c * h, x, u))

    def pullback(self, f: Dynamics, t: float, h: float, x: Tensor, u: Tensor, p: Tensor) -> tuple[Tensor, Tensor]:
        px, pu = f.vjp(t + self.c * h, x, u, self._mask(h, p))
        return p + px, pu

    def tangent(self, f: Dynamics, t: float, h: float, x: Tensor, u: Tensor, dx: Tensor, du: Tensor) -> Tensor:
        return dx + self._mask(h, f.jvp(t + self.c * h, x, u, dx, du))

    def curvature(
        self, f: Any, t: float, h: float, x: Tensor, u: Tensor, p: Tensor, dx: Tensor, du: Tensor
    ) -> tuple[Tensor, Tensor]:
        """The Hessian of <p, step> by (x, u) applied to (dx, du)."""
        hx, hu = f.hvp(t + self.c * h, x, u, self._mask(h, p), dx, du)
        return hx, hu


_SUBSTEPS = (_Substep(_MOMENTA, 0.5, 0.0), _Substep(_POSITIONS, 1.0, 0.5), _Substep(_MOMENTA, 0.5, 1.0))


@dataclass(frozen=True)
class Verlet:
    """Stoermer-Verlet, also known as leapfrog, for separable dynamics: kick, drift, kick.

    The state is halved along its first dimension after the batch, positions first and momenta second; the derivative
    of the positions may depend on the momenta only, that of the momenta on the positions only. For such dynamics it
    is explicit, reversible and, where they are Hamiltonian, symplectic: Hairer, Lubich & Wanner (2003), "Geometric
    numerical integration illustrated by the Stoermer-Verlet method". The running cost is taken by the trapezoidal
    rule.

    Each substep evaluates all of f and uses half of it.

    Examples
    --------
    >>> Verlet().name
    'verlet'
    """

    @property
    def name(self) -> str:
        return "verlet"

    @property
    def order(self) -> int:
        return 2

    def check(self, problem: ControlProblem, x: Tensor, u: Tensor) -> None:
        """Look at the derivatives of the dynamics at a random point near (x, u).

        Raises
        ------
        ValueError
            If the state cannot be halved or the dynamics are not separable.
        """
        if x.shape[1] % 2:
            raise ValueError(f"verlet: expected a state of even size, positions and momenta, got {x.shape[1]}")
        generator = torch.Generator().manual_seed(0)

        def random(like: Tensor) -> Tensor:
            return torch.randn(like.shape, generator=generator, dtype=torch.float64).to(like)

        near, control, direction = x + 0.1 * random(x), u + 0.1 * random(u), random(x)
        for half, name in ((_POSITIONS, "positions"), (_MOMENTA, "momenta")):
            dx = torch.zeros_like(x)
            _half(dx, half).copy_(_half(direction, half))
            df = problem.dynamics.jvp(0.0, near, control, dx, torch.zeros_like(u))
            own, size = float(_half(df, half).norm()), float(df.norm() + dx.norm())
            if own > torch.finfo(x.dtype).eps ** 0.5 * size:
                raise ValueError(
                    f"verlet: expected separable dynamics, where the derivative of the {name} does not depend on the "
                    f"{name}, got a change of {own:.1g} along a random direction"
                )

    def _states(self, f: Dynamics, t: float, h: float, x: Tensor, u: Tensor) -> list[Tensor]:
        """The states before each substep and after the last."""
        states = [x]
        for part in _SUBSTEPS:
            states.append(part.step(f, t, h, states[-1], u))
        return states

    def step(self, problem: ControlProblem, t: float, h: float, x: Tensor, u: Tensor, out: Tensor) -> Tensor | None:
        L = problem.running_cost
        out.copy_(self._states(problem.dynamics, t, h, x, u)[-1])
        return None if L is None else 0.5 * h * (L(t, x, u) + L(t + h, out, u))

    def pullback(
        self, problem: ControlProblem, t: float, h: float, x: Tensor, u: Tensor, p: Tensor
    ) -> tuple[Tensor, Tensor]:
        f, L = problem.dynamics, problem.running_cost
        *states, end = self._states(f, t, h, x, u)
        derivative = torch.zeros_like(u)
        if L is not None:
            p, derivative = _add((p, derivative), L.derivative(t + h, end, u), 0.5 * h)
        for part, state in zip(reversed(_SUBSTEPS), reversed(states), strict=True):
            p, pu = part.pullback(f, t, h, state, u, p)
            derivative = derivative + pu
        if L is not None:
            p, derivative = _add((p, derivative), L.derivative(t, x, u), 0.5 * h)
        return p, derivative

    def tangent(
        self, problem: ControlProblem, t: float, h: float, x: Tensor, u: Tensor, dx: Tensor, du: Tensor
    ) -> tuple[Tensor, Tensor | None]:
        L = problem.running_cost
        states = self._states(problem.dynamics, t, h, x, u)
        tangents = self._tangents(problem.dynamics, t, h, states, u, dx, du)
        if L is None:
            return tangents[-1], None
        dcost = x.new_zeros(())
        for time, k in ((t, 0), (t + h, -1)):
            Lx, Lu = L.derivative(time, states[k], u)
            dcost = dcost + 0.5 * h * ((Lx * tangents[k]).sum() + (Lu * du).sum())
        return tangents[-1], dcost

    def _tangents(
        self, f: Dynamics, t: float, h: float, states: Sequence[Tensor], u: Tensor, dx: Tensor, du: Tensor
    ) -> list[Tensor]:
        """Tangents of the states before each substep and after the last."""
        tangents = [dx]
        for part, state in zip(_SUBSTEPS, states, strict=False):
            tangents.append(part.tangent(f, t, h, state, u, tangents[-1], du))
        return tangents

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
        """Tangent of the transpose, as that of `RungeKutta`."""
        f: Any = problem.dynamics
        L: Any = problem.running_cost
        *states, end = self._states(f, t, h, x, u)
        *tangents, dend = self._tangents(f, t, h, states, u, dx, du)
        dderivative = torch.zeros_like(u)
        if L is not None:
            p = torch.add(p, L.derivative(t + h, end, u)[0], alpha=0.5 * h)
            dp, dderivative = _add((dp, dderivative), L.hvp(t + h, end, u, dend, du), 0.5 * h)
        for part, state, dstate in zip(reversed(_SUBSTEPS), reversed(states), reversed(tangents), strict=True):
            curvature = part.curvature(f, t, h, state, u, p, dstate, du)
            p, _ = part.pullback(f, t, h, state, u, p)
            dp, dpu = part.pullback(f, t, h, state, u, dp)
            dp, dderivative = _add((dp, dderivative + dpu), curvature, 1.0)
        if L is not None:
            p = torch.add(p, L.derivative(t, x, u)[0], alpha=0.5 * h)
            dp, dderivative = _add((dp, dderivative), L.hvp(t, x, u, dx, du), 0.5 * h)
        return p, dp, dderivative


def _add(pair: tuple[Tensor, Tensor], other: tuple[Tensor, Tensor], weight: float) -> tuple[Tensor, Tensor]:
    """A pair plus a multiple of another, entry by entry."""
    return torch.add(pair[0], other[0], alpha=weight), torch.add(pair[1], other[1], alpha=weight)


_TABLEAUS = (EULER, MIDPOINT, HEUN, RK4, DOPRI5, BACKWARD_EULER, IMPLICIT_MIDPOINT, CRANK_NICOLSON)

#: The integrators that have a name.
INTEGRATORS: dict[str, Integrator] = {
    **{tableau.name: RungeKutta(tableau) for tableau in _TABLEAUS},
    "verlet": Verlet(),
}


def as_integrator(integrator: Integrator | str) -> Integrator:
    """An integrator, or the name of one.

    Raises
    ------
    ValueError
        If no integrator has that name.
    """
    if not isinstance(integrator, str):
        return integrator
    if integrator not in INTEGRATORS:
        raise ValueError(f"integrator: expected one of {', '.join(INTEGRATORS)}, got {integrator!r}")
    return INTEGRATORS[integrator]
