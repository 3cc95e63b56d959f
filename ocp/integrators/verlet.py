"""Stoermer-Verlet steps for separable dynamics, with their transpose and tangents."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, NamedTuple

import torch
from torch import Tensor

from ocp.integrators.runge_kutta import RungeKutta
from ocp.integrators.tableaus import EULER
from ocp.problem.protocols import RunningCost, StateEquation
from ocp.problem.shapes import Cotangent

__all__ = ["Verlet"]

_POSITIONS, _MOMENTA, _NOTHING = 0, 1, 2
_EULER = RungeKutta(EULER)


def _half(x: Tensor, half: int) -> Tensor:
    """A view on the positions or on the momenta."""
    n = x.shape[1] // 2
    return x[:, n:] if half else x[:, :n]


class _Substep(NamedTuple):
    """An explicit Euler step of length h from time t with the dynamics M f, where M keeps one half of f, or nothing."""

    f: Any
    running_cost: RunningCost | None
    half: int
    t: float
    h: float

    @property
    def dynamics(self) -> Any:
        return self

    def _mask(self, f: Tensor) -> Tensor:
        masked = torch.zeros_like(f)
        _half(masked, self.half).copy_(_half(f, self.half))
        return masked

    def __call__(self, t: float, x: Tensor, u: Tensor) -> Tensor:
        return torch.zeros_like(x) if self.half == _NOTHING else self._mask(self.f(t, x, u))

    def jvp(self, t: float, x: Tensor, *others: Tensor) -> Tensor:
        return torch.zeros_like(x) if self.half == _NOTHING else self._mask(self.f.jvp(t, x, *others))

    def vjp(self, t: float, x: Tensor, u: Tensor, p: Tensor) -> Any:
        nothing = self.half == _NOTHING
        return (torch.zeros_like(x), torch.zeros_like(u)) if nothing else self.f.vjp(t, x, u, self._mask(p))

    def hvp(self, t: float, x: Tensor, u: Tensor, p: Tensor, *directions: Tensor) -> Any:
        nothing = self.half == _NOTHING
        return (
            (torch.zeros_like(x), torch.zeros_like(u)) if nothing else self.f.hvp(t, x, u, self._mask(p), *directions)
        )

    def end(self, x: Tensor, u: Tensor, sign: int = 1) -> Tensor:
        """The state after the step; for sign -1, that before it, since M f does not depend on the half that changes."""
        return x if self.half == _NOTHING else torch.add(x, self(self.t, x, u), alpha=sign * self.h)


def _substeps(problem: StateEquation, t: float, h: float) -> list[_Substep]:
    """Kick, drift, kick; the first and the last step have the running cost of the trapezoidal rule."""
    f, L = problem.dynamics, problem.running_cost
    substeps = [
        _Substep(f, L, _MOMENTA, t, 0.5 * h),
        _Substep(f, None, _POSITIONS, t + 0.5 * h, h),
        _Substep(f, None, _MOMENTA, t + h, 0.5 * h),
    ]
    return substeps if L is None else [*substeps, _Substep(f, L, _NOTHING, t + h, 0.5 * h)]


@dataclass(frozen=True)
class Verlet:
    """Stoermer-Verlet, also known as leapfrog, for separable dynamics: kick, drift, kick.

    The state is halved along its first dimension after the batch, positions first and momenta second; the derivative
    of the positions may depend on the momenta only, that of the momenta on the positions only. For such dynamics it
    is explicit, reversible and, where they are Hamiltonian, symplectic: Hairer, Lubich & Wanner (2003), "Geometric
    numerical integration illustrated by the Stoermer-Verlet method". The running cost is integrated by the trapezoidal
    rule. Each of the three substeps evaluates all of f and uses half of it.

    Examples
    --------
    >>> Verlet().name
    'verlet'
    """

    name = "verlet"
    order = 2
    supports_autograd = True  # every step is explicit

    def check(self, problem: StateEquation, t: float, h: float, x: Tensor, u: Tensor) -> None:
        """Check the derivatives of the dynamics.

        Raises
        ------
        ValueError
            If the state cannot be halved or the dynamics are not separable.
        """
        if x.shape[1] % 2:
            raise ValueError(f"verlet: expected a state of even size, positions and momenta, got {x.shape[1]}")
        generator = torch.Generator().manual_seed(0)
        cotangent = torch.randn(x.shape, generator=generator, dtype=torch.float64).to(x)
        for half, name in ((_POSITIONS, "positions"), (_MOMENTA, "momenta")):
            p = torch.zeros_like(x)
            _half(p, half).copy_(_half(cotangent, half))
            change = x * problem.dynamics.vjp(t, x, u, p)[0]  # for relative changes of the state, whatever its units
            own, size = float(_half(change, half).norm()), float(change.norm())
            if own > torch.finfo(x.dtype).eps ** 0.5 * size:
                raise ValueError(
                    f"verlet: expected separable dynamics, where the derivative of the {name} does not depend on the "
                    f"{name}, got a dependence of {own / size:.1g}, relative to that on the whole state"
                )

    def step(self, problem: StateEquation, t: float, h: float, x: Tensor, u: Tensor) -> tuple[Tensor, Tensor | None]:
        total = None
        for s in _substeps(problem, t, h):
            if s.running_cost is not None:
                cost = s.h * s.running_cost(s.t, x, u)
                total = cost if total is None else total + cost
            x = s.end(x, u)
        return x, total

    def inverse(self, problem: StateEquation, t: float, h: float, x: Tensor, u: Tensor) -> Tensor:
        """The state at time t from which the step arrives at x, up to rounding."""
        for s in reversed(_substeps(problem, t, h)[:3]):
            x = s.end(x, u, -1)
        return x

    def pullback(self, problem: StateEquation, t: float, h: float, x: Tensor, u: Tensor, p: Tensor) -> Cotangent:
        substeps, states, derivative = _substeps(problem, t, h), [x], torch.zeros_like(u)
        for s in substeps[:-1]:
            states.append(s.end(states[-1], u))
        for s, state in zip(reversed(substeps), reversed(states), strict=True):
            px, pu = s.vjp(s.t, state, u, p)
            if s.running_cost is not None:
                Lx, Lu = s.running_cost.derivative(s.t, state, u)
                px, pu = px + Lx, pu + Lu
            p, derivative = torch.add(p, px, alpha=s.h), torch.add(derivative, pu, alpha=s.h)
        return p, derivative

    def tangent(
        self, problem: StateEquation, t: float, h: float, x: Tensor, u: Tensor, dx: Tensor, du: Tensor
    ) -> tuple[Tensor, Tensor | None]:
        total = None
        for s in _substeps(problem, t, h):
            dend, dcost = _EULER.tangent(s, s.t, s.h, x, u, dx, du)
            x, dx = s.end(x, u), dend
            if dcost is not None:
                total = dcost if total is None else total + dcost
        return dx, total

    def pullback_tangent(
        self, problem: Any, t: float, h: float, x: Tensor, u: Tensor, p: Tensor, dx: Tensor, du: Tensor, dp: Tensor
    ) -> tuple[Tensor, Tensor, Tensor]:
        visited, dderivative = [], torch.zeros_like(u)
        for s in _substeps(problem, t, h):
            visited.append((s, x, dx))
            x, dx = s.end(x, u), torch.add(dx, s.jvp(s.t, x, u, dx, du), alpha=s.h)
        for s, x, dx in reversed(visited):
            p, dp, dpu = _EULER.pullback_tangent(s, s.t, s.h, x, u, p, dx, du, dp)
            dderivative += dpu
        return p, dp, dderivative
