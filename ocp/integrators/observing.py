"""Steps that carry the costs of measurements made during them, with transposes and tangents."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from ocp.integrators.integrator import Integrator
from ocp.problem.protocols import Dynamics, is_traceable
from ocp.problem.shapes import Cotangent

__all__ = ["Motion", "Observing"]


@dataclass(frozen=True)
class Motion:
    """The equation of the state alone."""

    dynamics: Dynamics
    running_cost: None = None


@dataclass(frozen=True)
class Observing:
    """Any integrator, for equations with an `Observation`: it adds the costs of the measurements within a step.

    The state at a measurement is a step of the same scheme, from the beginning of the step to the measurement. Of an
    equation, it reads ``dynamics``, ``running_cost`` and ``observation``.
    """

    integrator: Integrator

    @property
    def name(self) -> str:
        return self.integrator.name

    @property
    def order(self) -> int:
        return self.integrator.order

    @property
    def supports_autograd(self) -> bool:
        """Whether autograd can follow a step: if it can follow those of the integrator."""
        return is_traceable(self.integrator, "step", "pullback")

    def inverse(self, problem: Any, t: float, h: float, x: Tensor, u: Tensor) -> Tensor:
        inner: Any = self.integrator
        before: Tensor = inner.inverse(problem, t, h, x, u)
        return before

    def step(self, problem: Any, t: float, h: float, x: Tensor, u: Tensor) -> tuple[Tensor, Tensor | None]:
        observation, motion = problem.observation, Motion(problem.dynamics)
        end, cost = self.integrator.step(problem, t, h, x, u)
        for after, instant in observation.within(t, h, x):
            z = end if after == h else self._short(motion, t, after, x, u)
            more = observation.cost(instant, z, u)
            cost = more if cost is None else cost + more
        return end, cost

    def pullback(self, problem: Any, t: float, h: float, x: Tensor, u: Tensor, p: Tensor) -> Cotangent:
        observation, motion, inner = problem.observation, Motion(problem.dynamics), self.integrator
        at_start, by_input = torch.zeros_like(x), torch.zeros_like(u)
        for after, instant in observation.within(t, h, x):
            z = self._short(motion, t, after, x, u)
            pz, pu = observation.derivative(instant, z, u)
            by_input += pu
            if after == h:
                p = p + pz
                continue
            px, pu = inner.pullback(motion, t, after, x, u, pz) if after else (pz, torch.zeros_like(u))
            at_start, by_input = at_start + px, by_input + pu
        px, pu = inner.pullback(problem, t, h, x, u, p)
        return px + at_start, pu + by_input

    def tangent(
        self, problem: Any, t: float, h: float, x: Tensor, u: Tensor, dx: Tensor, du: Tensor
    ) -> tuple[Tensor, Tensor | None]:
        observation, motion, inner = problem.observation, Motion(problem.dynamics), self.integrator
        dend, dcost = inner.tangent(problem, t, h, x, u, dx, du)
        for after, instant in observation.within(t, h, x):
            z, dz = self._short(motion, t, after, x, u), dend
            if after < h:
                dz = inner.tangent(motion, t, after, x, u, dx, du)[0] if after else dx
            pz, pu = observation.derivative(instant, z, u)
            more = (pz * dz).sum() + (pu * du).sum()
            dcost = more if dcost is None else dcost + more
        return dend, dcost

    def pullback_tangent(
        self, problem: Any, t: float, h: float, x: Tensor, u: Tensor, p: Tensor, dx: Tensor, du: Tensor, dp: Tensor
    ) -> tuple[Tensor, Tensor, Tensor]:
        observation, motion = problem.observation, Motion(problem.dynamics)
        inner: Any = self.integrator
        found = []
        for after, instant in observation.within(t, h, x):
            z, dz = self._short(motion, t, after, x, u), dx
            if after:
                dz = inner.tangent(motion, t, after, x, u, dx, du)[0]
            pz, _ = observation.derivative(instant, z, u)
            hz, hu = observation.hvp(instant, z, u, dz, du)
            if after == h:
                p, dp = p + pz, dp + hz
            elif after:
                found.append(inner.pullback_tangent(motion, t, after, x, u, pz, dx, du, hz))
            else:
                found.append((pz, hz, torch.zeros_like(u)))
            found.append((torch.zeros_like(x), torch.zeros_like(x), hu))
        found.append(inner.pullback_tangent(problem, t, h, x, u, p, dx, du, dp))
        px, dpx, dpu = (torch.stack(parts).sum(0) for parts in zip(*found, strict=True))
        return px, dpx, dpu

    def _short(self, motion: Motion, t: float, after: float, x: Tensor, u: Tensor) -> Tensor:
        """The state a while after the beginning of a step."""
        return self.integrator.step(motion, t, after, x, u)[0] if after else x
