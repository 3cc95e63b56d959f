"""An integrator that adds a cost at the first node of each step to the running cost over the step."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, cast

import torch
from torch import Tensor

from ocp.integrators.integrator import Integrator, Invertible, SecondOrderIntegrator
from ocp.problem.protocols import RunningCost, SecondOrder, StateEquation, is_traceable
from ocp.problem.shapes import BatchState, Cotangent, Scalar, StepControl

__all__ = ["AtNodes"]


@dataclass(frozen=True, eq=False)
class AtNodes:
    """Steps of another integrator, with the cost at the node where each begins.

    The sum of these costs is a function of states and controls at t_0, ..., t_{N-1}, whatever the stages of the scheme.
    Their derivatives come from the same sweeps as those of the running cost.

    Parameters
    ----------
    scheme : Integrator
    cost : callable
        From the step size h to the cost at a node, weights included: a `RunningCost` of (t_k, x_k, u_k).
    """

    scheme: Integrator
    cost: Callable[[float], RunningCost]

    @property
    def name(self) -> str:
        return self.scheme.name

    @property
    def order(self) -> int:
        return self.scheme.order

    @property
    def supports_autograd(self) -> bool:
        """Whether autograd can follow a step; the cost is a function of torch operations."""
        return is_traceable(self.scheme, "step", "pullback", "tangent")

    def step(
        self, problem: StateEquation, t: float, h: float, x: BatchState, u: StepControl
    ) -> tuple[BatchState, Scalar | None]:
        end, running = self.scheme.step(problem, t, h, x, u)
        cost = self.cost(h)(t, x, u)
        return end, cost if running is None else running + cost

    def pullback(
        self, problem: StateEquation, t: float, h: float, x: BatchState, u: StepControl, p: BatchState
    ) -> Cotangent:
        px, pu = self.scheme.pullback(problem, t, h, x, u, p)
        cx, cu = self.cost(h).derivative(t, x, u)
        return px + cx, pu + cu

    def tangent(
        self, problem: StateEquation, t: float, h: float, x: BatchState, u: StepControl, dx: BatchState, du: StepControl
    ) -> tuple[BatchState, Scalar | None]:
        dend, running = self.scheme.tangent(problem, t, h, x, u, dx, du)
        cx, cu = self.cost(h).derivative(t, x, u)
        cost = (cx * dx).sum() + torch.dot(cu, du)
        return dend, cost if running is None else running + cost

    def pullback_tangent(
        self, problem: Any, t: float, h: float, x: Tensor, u: Tensor, p: Tensor, dx: Tensor, du: Tensor, dp: Tensor
    ) -> tuple[Tensor, Tensor, Tensor]:
        scheme, cost = cast(SecondOrderIntegrator, self.scheme), self.cost(h)
        px, dpx, dpu = scheme.pullback_tangent(problem, t, h, x, u, p, dx, du, dp)
        cx, _ = cost.derivative(t, x, u)
        chx, chu = cast(SecondOrder, cost).hvp(t, x, u, dx, du)
        return px + cx, dpx + chx, dpu + chu

    def inverse(self, problem: StateEquation, t: float, h: float, x: BatchState, u: StepControl) -> BatchState:
        return cast(Invertible, self.scheme).inverse(problem, t, h, x, u)
