"""What the steps of an integrator see of a problem: pieces that take all that is fixed during a step in one vector.

That vector is the control u of the step or, where dynamics or running cost depend on the parameters q or the final time
is free, (u, q). So integrators and sweeps know one kind of argument. A free final time T turns x' = f(t, x, u, q) on
[0, T] into x' = T f(T s, x, u, q) on [0, 1], which has the same steps.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from ocp.problem.costs import RunningFunction
from ocp.problem.dynamics import FunctionDynamics
from ocp.problem.functions import jacobian
from ocp.problem.measurements import Observation
from ocp.problem.parameters import ParameterSet, takes_parameters
from ocp.problem.protocols import (
    Checked,
    Dynamics,
    Evaluations,
    RunningCost,
    SampleWise,
    Stages,
    StageWise,
    capability_applies,
    is_traceable,
)
from ocp.problem.shapes import BatchState, Cotangent, Scalar, StepControl

__all__ = ["Equation", "OfPart", "as_equation", "with_parameters"]


@dataclass(frozen=True, eq=False)
class Equation:
    """A `StateEquation` on the vector that is fixed during a step.

    Attributes
    ----------
    dynamics, running_cost
        The pieces.
    control_size, parameter_size : int
        The numbers of u and q in the vector; 0 for q if the pieces do not depend on it.
    observation : Observation, optional
        Of measurements, if there are any.
    """

    dynamics: Dynamics
    running_cost: RunningCost | None
    control_size: int
    parameter_size: int = 0
    observation: Observation | None = None


def as_equation(
    dynamics: Dynamics,
    running_cost: RunningCost | None,
    parameters: ParameterSet,
    more: Callable[..., Any] | None,
    observation: Observation | None = None,
) -> Equation:
    """The equation of a problem; ``more`` is a path constraint, which may depend on the parameters, too.

    Raises
    ------
    ValueError
        If the final time is free and a piece is neither a plain function nor made of torch operations.
    """
    m, f, L, shared = dynamics.control_size, dynamics, running_cost, isinstance(dynamics, OfPart)
    given = {"dynamics": _function(f), "running_cost": _function(L), "path_constraint": more}
    depends = any(takes_parameters(function, 3) for function in given.values() if function is not None)
    depends = depends or (observation is not None and observation.measurements.takes_parameters)
    if not ((depends and parameters.size) or shared or parameters.free_horizon):
        return Equation(f, L, m, observation=observation)
    size = m + parameters.size
    if parameters.free_horizon:
        if shared:
            raise ValueError("horizon: expected a number for dynamics whose weights all steps share, got a Parameter")
        given |= {name: _traced(name, piece) for name, piece in (("dynamics", f), ("running_cost", L))}
    elif given["dynamics"] is not None and is_traceable(L, "__call__", "derivative"):
        given["running_cost"] = _traced("running_cost", L)
    function, integrand = given["dynamics"], given["running_cost"]
    if function is not None:
        f = FunctionDynamics(_rate(function, m, parameters), size)
    elif not shared:
        f = OfPart(f)
    if L is not None:
        rate = None if integrand is None else _rate(integrand, m, parameters)
        L = _CostOfControl(L, m) if rate is None else RunningFunction(rate)
    return Equation(f, L, m, parameters.size, observation)


def with_parameters(
    function: Callable[..., Tensor], control_size: int, parameters: ParameterSet
) -> Callable[[Any, Tensor, Tensor], Tensor]:
    """A function of (t, x, u) or (t, x, u, q) as one of (t, x, (u, q)); t is a part of the final time if that is free.

    ``control_size`` is m.
    """
    takes = takes_parameters(function, 3)

    def joined(t: Any, x: Tensor, v: Tensor) -> Tensor:
        u, q = v[:control_size], v[control_size:]
        t = t * parameters.duration(q) if parameters.free_horizon else t
        return function(t, x, u, parameters(q)) if takes else function(t, x, u)

    return joined


def _rate(function: Callable[..., Tensor], m: int, parameters: ParameterSet) -> Callable[..., Tensor]:
    """The same for a function that is integrated over time."""
    joined = with_parameters(function, m, parameters)
    if not parameters.free_horizon:
        return joined
    return lambda t, x, v: parameters.duration(v[m:]) * joined(t, x, v)


def _function(piece: object) -> Callable[..., Tensor] | None:
    return piece.function if isinstance(piece, FunctionDynamics | RunningFunction) else None


def _traced(name: str, piece: Any) -> Callable[..., Tensor] | None:
    """A piece as a function that autograd can follow, so that it can be differentiated by the final time."""
    if piece is None or _function(piece) is not None:
        return _function(piece)
    methods = ("__call__", "vjp") if isinstance(piece, Dynamics) else ("__call__", "derivative")
    if not is_traceable(piece, *methods):
        raise ValueError(
            f"{name}: expected a function with a free horizon, since derivatives by the final time are needed, "
            f"got {type(piece).__name__}"
        )
    return lambda t, x, u: piece(t, x, u)


@dataclass(frozen=True, eq=False)
class OfPart:
    """Dynamics that depend on a part of a longer vector, with derivatives of their own.

    As the dynamics of a problem, they are on parameters alone: weights that all steps share.
    """

    dynamics: Any
    begin: int = 0
    control_size = 0

    def part(self, v: Tensor) -> Tensor:
        """The part, of a vector or of several, along the last dimension."""
        part: Tensor = v[..., self.begin : self.begin + self.dynamics.control_size]
        return part

    def _with_zeros(self, part: Tensor, v: Tensor) -> Tensor:
        whole = torch.zeros_like(v)
        self.part(whole).copy_(part)
        return whole

    def __call__(self, t: float, x: BatchState, u: StepControl) -> BatchState:
        value: Tensor = self.dynamics(t, x, self.part(u))
        return value

    def vjp(self, t: float, x: BatchState, u: StepControl, p: BatchState) -> Cotangent:
        px, pu = self.dynamics.vjp(t, x, self.part(u), p)
        return px, self._with_zeros(pu, u)

    def jvp(self, t: float, x: BatchState, u: StepControl, dx: BatchState, du: StepControl) -> BatchState:
        tangent: Tensor = self.dynamics.jvp(t, x, self.part(u), dx, self.part(du))
        return tangent

    def hvp(self, t: float, x: BatchState, u: StepControl, p: BatchState, dx: BatchState, du: StepControl) -> Cotangent:
        hx, hu = self.dynamics.hvp(t, x, self.part(u), p, dx, self.part(du))
        return hx, self._with_zeros(hu, u)

    def jacobian(self, t: float, x: BatchState, u: StepControl) -> Tensor:
        if isinstance(self.dynamics, SampleWise):
            return self.dynamics.jacobian(t, x, self.part(u))
        return jacobian(lambda p: self.dynamics.vjp(t, x, self.part(u), p)[0], x)

    @property
    def supports_autograd(self) -> bool:
        return is_traceable(self.dynamics, "__call__", "vjp")

    def check(self, t: float, x: BatchState, u: StepControl) -> None:
        if isinstance(self.dynamics, Checked):
            self.dynamics.check(t, x, self.part(u))

    def stage_layout(self, x: BatchState, u: StepControl) -> BatchState | None:
        f = self.dynamics
        applies = isinstance(f, StageWise) and capability_applies(f, "over", "__call__", "vjp")
        return f.stage_layout(x, self.part(u)) if applies else None

    def over(self, path: Tensor, stages: Stages) -> Evaluations:
        return _PartOver(self, self.dynamics.over(self.part(path).contiguous(), stages))


class _PartOver:
    """Evaluations of dynamics that depend on a part of a longer vector."""

    def __init__(self, of: OfPart, evaluations: Evaluations):
        self._of, self._evaluations = of, evaluations
        self.value, self.linearize, self.transpose = (
            evaluations.value,
            evaluations.linearize,
            evaluations.transpose,
        )

    def by_control(self, out: Tensor) -> None:
        by_part = torch.empty_like(self._of.part(out), memory_format=torch.contiguous_format)
        self._evaluations.by_control(by_part)
        self._of.part(out.zero_()).copy_(by_part)


@dataclass(frozen=True, eq=False)
class _CostOfControl:
    """A running cost with derivatives of its own, on (u, q) although it depends only on u."""

    cost: Any
    control_size: int

    def _split(self, v: Tensor) -> tuple[Tensor, Tensor]:
        return v[: self.control_size], v[self.control_size :]

    def __call__(self, t: float, x: BatchState, u: StepControl) -> Scalar:
        value: Tensor = self.cost(t, x, self._split(u)[0])
        return value

    def derivative(self, t: float, x: BatchState, u: StepControl) -> Cotangent:
        u, q = self._split(u)
        Lx, Lu = self.cost.derivative(t, x, u)
        return Lx, torch.cat((Lu, torch.zeros_like(q)))

    def hvp(self, t: float, x: BatchState, u: StepControl, dx: BatchState, du: StepControl) -> Cotangent:
        u, q = self._split(u)
        Lhx, Lhu = self.cost.hvp(t, x, u, dx, self._split(du)[0])
        return Lhx, torch.cat((Lhu, torch.zeros_like(q)))

    def check(self, t: float, x: BatchState, u: StepControl) -> None:
        if isinstance(self.cost, Checked):
            self.cost.check(t, x, self._split(u)[0])

    def take(self, indices: Tensor) -> _CostOfControl:
        return _CostOfControl(self.cost.take(indices), self.control_size)
