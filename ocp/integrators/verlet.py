"""Stoermer-Verlet steps for separable dynamics, with their transpose and tangents."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from ocp.problem.protocols import Dynamics, StateEquation
from ocp.problem.shapes import BatchState, Scalar, StepControl

__all__ = ["Verlet"]

_POSITIONS, _MOMENTA = 0, 1


def _half(x: BatchState, half: int) -> Tensor:
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
        _half(masked, self.half).copy_(_half(f, self.half)).mul_(h * self.w)
        return masked

    def step(self, f: Dynamics, t: float, h: float, x: BatchState, u: StepControl) -> BatchState:
        return x + self._mask(h, f(t + self.c * h, x, u))

    def inverse(self, f: Dynamics, t: float, h: float, x: BatchState, u: StepControl) -> BatchState:
        """The state before the step: f does not depend on the half that it changes."""
        return x - self._mask(h, f(t + self.c * h, x, u))

    def pullback(
        self, f: Dynamics, t: float, h: float, x: BatchState, u: StepControl, p: BatchState
    ) -> tuple[BatchState, StepControl]:
        px, pu = f.vjp(t + self.c * h, x, u, self._mask(h, p))
        return p + px, pu

    def tangent(
        self, f: Dynamics, t: float, h: float, x: BatchState, u: StepControl, dx: BatchState, du: StepControl
    ) -> Tensor:
        return dx + self._mask(h, f.jvp(t + self.c * h, x, u, dx, du))

    def curvature(
        self, f: Any, t: float, h: float, x: BatchState, u: StepControl, p: BatchState, dx: BatchState, du: StepControl
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

    @property
    def supports_autograd(self) -> bool:
        """True: every step is explicit."""
        return True

    def check(self, problem: StateEquation, x: BatchState, u: StepControl) -> None:
        """Check the derivatives of the dynamics at a random point near (x, u).

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

    def _states(self, f: Dynamics, t: float, h: float, x: BatchState, u: StepControl) -> list[Tensor]:
        """The states before each substep and after the last."""
        states = [x]
        for part in _SUBSTEPS:
            states.append(part.step(f, t, h, states[-1], u))
        return states

    def step(
        self, problem: StateEquation, t: float, h: float, x: BatchState, u: StepControl
    ) -> tuple[BatchState, Scalar | None]:
        L, end = problem.running_cost, self._states(problem.dynamics, t, h, x, u)[-1]
        return end, None if L is None else 0.5 * h * (L(t, x, u) + L(t + h, end, u))

    def inverse(self, problem: StateEquation, t: float, h: float, x: BatchState, u: StepControl) -> BatchState:
        """The state at time t from which the step arrives at x, up to rounding."""
        for part in reversed(_SUBSTEPS):
            x = part.inverse(problem.dynamics, t, h, x, u)
        return x

    def pullback(
        self, problem: StateEquation, t: float, h: float, x: BatchState, u: StepControl, p: BatchState
    ) -> tuple[BatchState, StepControl]:
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
        self, problem: StateEquation, t: float, h: float, x: BatchState, u: StepControl, dx: BatchState, du: StepControl
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
        self, f: Dynamics, t: float, h: float, states: Sequence[Tensor], u: StepControl, dx: BatchState, du: StepControl
    ) -> list[Tensor]:
        """Tangents of the states before each substep and after the last."""
        tangents = [dx]
        for part, state in zip(_SUBSTEPS, states, strict=False):
            tangents.append(part.tangent(f, t, h, state, u, tangents[-1], du))
        return tangents

    def pullback_tangent(
        self,
        problem: StateEquation,
        t: float,
        h: float,
        x: BatchState,
        u: StepControl,
        p: BatchState,
        dx: BatchState,
        du: StepControl,
        dp: BatchState,
    ) -> tuple[BatchState, BatchState, StepControl]:
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
