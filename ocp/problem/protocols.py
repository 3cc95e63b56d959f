"""The methods each piece of a problem must have, and those it may have.

Shapes: a state x is ``(batch, *state)``, the control u of one step ``(m,)``, the parameters q ``(s,)``; a costate p has
the shape of the state. Times are floats. ``dx``, ``du``, ``dq`` are directions, of the shapes of x, u, q.

The optional methods are protocols, which ``isinstance`` recognizes; nothing has to be inherited or registered. Every
piece may be `SecondOrder`, for Hessian products; costs and initial states `Divisible`, for mini-batches; terminal costs
a `Classifier`. For faster sweeps, dynamics may be `Vectorized`, `StageWise`, `Bindable` or `SampleWise`,
running costs `Batched`, and both `Traceable`.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any, Protocol, Self, runtime_checkable

import torch
from torch import Tensor, nn

from ocp.problem.shapes import BatchState, Cotangent, FlatControl, Parameters, Scalar, StepControl
from ocp.space.control import ControlSpace

__all__ = [
    "Batched",
    "Bindable",
    "Checked",
    "Classifier",
    "ControlCost",
    "Divisible",
    "Dynamics",
    "Evaluations",
    "Exportable",
    "InitialState",
    "Initializable",
    "RunningCost",
    "SampleWise",
    "SecondOrder",
    "StageWise",
    "Stages",
    "StateEquation",
    "TerminalCost",
    "Traceable",
    "Vectorized",
    "capability_applies",
    "is_traceable",
]


@runtime_checkable
class Dynamics(Protocol):
    """The right-hand side f of x' = f(t, x, u)."""

    @property
    def control_size(self) -> int:
        """m, the length of u."""

    def __call__(self, t: float, x: BatchState, u: StepControl) -> BatchState:
        """f(t, x, u), of the shape of x."""

    def vjp(self, t: float, x: BatchState, u: StepControl, p: BatchState) -> Cotangent:
        """Transposed derivatives (df/dx^T p, df/du^T p)."""

    def jvp(self, t: float, x: BatchState, u: StepControl, dx: BatchState, du: StepControl) -> BatchState:
        """Directional derivative df/dx dx + df/du du."""


@runtime_checkable
class RunningCost(Protocol):
    """The integrand L(t, x, u) of the running cost."""

    def __call__(self, t: float, x: BatchState, u: StepControl) -> Scalar:
        """The value, of shape ()."""

    def derivative(self, t: float, x: BatchState, u: StepControl) -> Cotangent:
        """(dL/dx, dL/du)."""


@runtime_checkable
class TerminalCost(Protocol):
    """The cost Phi(x, q) of the final state."""

    def __call__(self, x: BatchState, q: Parameters) -> Scalar:
        """The value, a tensor of shape ()."""

    def derivative(self, x: BatchState, q: Parameters) -> tuple[BatchState, Parameters]:
        """(dPhi/dx, dPhi/dq)."""


@runtime_checkable
class Classifier(TerminalCost, Protocol):
    """A terminal cost that compares final states with labels."""

    def accuracy(self, x: BatchState, q: Parameters) -> float:
        """The share of the samples that are classified correctly."""


@runtime_checkable
class ControlCost(Protocol):
    """A cost R(u, q) of the control alone."""

    def __call__(self, space: ControlSpace, flat: FlatControl) -> Scalar:
        """The value at a flat control, of shape ()."""

    def derivative(self, space: ControlSpace, flat: FlatControl) -> FlatControl:
        """The derivative, a dual vector of the shape of ``flat``."""


@runtime_checkable
class InitialState(Protocol):
    """The map X0 from the parameters q to the initial state."""

    def __call__(self, q: Parameters) -> BatchState:
        """The initial state, shape (batch, *state)."""

    def vjp(self, q: Parameters, p: BatchState) -> Parameters:
        """Transposed derivative dX0/dq^T p."""

    def jvp(self, q: Parameters, dq: Parameters) -> BatchState:
        """Directional derivative dX0/dq dq."""


@runtime_checkable
class SecondOrder(Protocol):
    """A piece with second derivatives."""

    @property
    def hvp(self) -> Callable[..., Any]:
        """The Hessian of a number applied to directions: a tensor, or a tuple of two, of the shapes of the directions.

        - dynamics: ``hvp(t, x, u, p, dx, du)`` for <p, f(t, x, u)>;
        - running cost: ``hvp(t, x, u, dx, du)``;
        - terminal cost: ``hvp(x, q, dx, dq)``;
        - control cost: ``hvp(space, flat, direction)``;
        - initial state: ``hvp(q, p, dq)`` for <p, X0(q)>.
        """


@runtime_checkable
class Divisible(Protocol):
    """A piece that can be restricted to some of the samples."""

    def take(self, indices: Tensor) -> Self:
        """The same piece on the samples with these indices, in this order."""


@runtime_checkable
class Checked(Protocol):
    """A piece that can tell whether it is what it has to be."""

    def check(self, *arguments: Any) -> None:
        """Raise ValueError if not, as far as can be seen at the arguments of one evaluation."""


@runtime_checkable
class Initializable(Dynamics, Protocol):
    """A layer with random initial weights."""

    def initial(self, generator: torch.Generator, **like: Any) -> StepControl:
        """Random weights for one layer; ``like`` may hold a dtype and a device."""


@runtime_checkable
class Exportable(Dynamics, Protocol):
    """Dynamics that are a torch module once the control is fixed."""

    def to_module(self, u: StepControl) -> nn.Module:
        """The module x -> f(x, u)."""


@runtime_checkable
class SampleWise(Dynamics, Protocol):
    """Dynamics with a fast way to the Jacobians that implicit steps need."""

    def jacobian(self, t: float, x: BatchState, u: StepControl) -> Tensor:
        """df/dx of each sample, shape (batch, n, n) for states of n numbers, by entry of f and by entry of x."""


class StateEquation(Protocol):
    """The part of a problem that a step integrates: x' = f(t, x, u) and the running cost along the way."""

    @property
    def dynamics(self) -> Dynamics: ...

    @property
    def running_cost(self) -> RunningCost | None: ...


@runtime_checkable
class Vectorized(Dynamics, Protocol):
    """Dynamics that can be evaluated at n points at once, in torch operations that autograd can follow."""

    def supports_points(self, t: Tensor, x: BatchState, u: StepControl) -> bool:
        """Whether they can, at these times, for such a state and control."""

    def along(self, t: Tensor, x: Tensor, u: Tensor) -> Tensor:
        """f at n points: times of shape (n,), states (n, batch, *state), controls (n, m)."""


@runtime_checkable
class Traceable(Protocol):
    """A piece made of torch operations, whose own derivatives are those of autograd."""

    @property
    def supports_autograd(self) -> bool:
        """Whether a sweep may differentiate it by tapes of several steps."""


@runtime_checkable
class Bindable(Protocol):
    """Traceable dynamics whose controls can be split into tensors once for many steps."""

    def bind(self, path: Tensor) -> tuple[list[Tensor], list[Callable[[float, Tensor, Tensor], Tensor]]]:
        """The leaves to differentiate by, and f for each step with its own control bound.

        The path has the shape (S, m). Each leaf has S as its first dimension; together they hold the numbers of the
        path, in the order of the control.
        """


@runtime_checkable
class Batched(Protocol):
    """A running cost that can be evaluated at n points at once.

    Times have the shape (n,), states (n, batch, *state), controls (n, m).
    """

    def supports_batches(self, x: BatchState, u: StepControl) -> bool:
        """Whether it can, for such a state and control."""

    def along(self, t: Tensor, x: Tensor, u: Tensor) -> Tensor:
        """The values, shape (n,)."""

    def derivative_along(self, t: Tensor, x: Tensor, u: Tensor) -> tuple[Tensor, Tensor]:
        """The derivatives at each point, of the shapes of x and u."""


@dataclass(frozen=True, eq=False)
class Stages:
    """Storage for S consecutive steps with r stages each: what their transposes need.

    Attributes
    ----------
    h : float
        The length of a step.
    t : Tensor
        Shape (S, r): the times of the stages.
    x, values : Tensor
        Shape (S, r, batch, *state): stage states, and the values of f there. On the way back, the transpose at a stage
        may overwrite its value with what the derivative by the control needs.
    state, value : sequences of Tensor
        Views on each of the S r stage states and values, in the order of time.
    """

    h: float
    t: Tensor
    x: Tensor
    values: Tensor
    state: Sequence[Tensor]
    value: Sequence[Tensor]

    @property
    def number(self) -> int:
        """r, the number of stages in a step."""
        return self.x.shape[1]


class Evaluations(Protocol):
    """f at the stages of consecutive steps: values one by one forward, transposes one by one backward.

    The derivative by the control comes last, for all steps at once.
    """

    def value(self, j: int, t: float, x: Tensor) -> Tensor:
        """Write f at stage j, time t and state x, to ``stages.value[j]``, and return it."""

    def linearize(self) -> None:
        """Prepare the transposes; all values and stage states are in place."""

    def transpose(self, j: int, p: Tensor, out: Tensor) -> Tensor:
        """Add h f_x^T p at stage j to ``out``, which may be p itself, and return it."""

    def by_control(self, out: Tensor) -> None:
        """Write h f_u^T p, summed over the stages of each step, to ``out`` of shape (S, m)."""


@runtime_checkable
class StageWise(Protocol):
    """Dynamics that keep the values of f at the stages of many steps and need nothing else for the way back."""

    def stage_layout(self, x: BatchState, u: StepControl) -> BatchState | None:
        """The state in the memory layout that stages should have; None if they do not support such a state."""

    def over(self, path: Tensor, stages: Stages) -> Evaluations:
        """The evaluations for steps with the controls ``path``, shape (S, m), in the given storage."""


def capability_applies(piece: object, capability: str, *methods: str) -> bool:
    """Whether a capability was declared for the very methods that a piece has now.

    A subclass that overrides a method, such as ``__call__`` or ``vjp``, and inherits the capability would give values
    by its own function and derivatives by that of its parent. So the class that declares the capability must have, or
    inherit, all of these methods.
    """
    kinds = type(piece).__mro__
    declared, *defined = (next((k for k in kinds if n in vars(k)), None) for n in (capability, *methods))
    return declared is not None and all(kind is not None and issubclass(declared, kind) for kind in defined)


def is_traceable(piece: object, *methods: str) -> bool:
    """Whether a piece is `Traceable`, with derivatives that are those of autograd, in the methods that it has now."""
    applies = capability_applies(piece, "supports_autograd", *methods)
    return isinstance(piece, Traceable) and applies and piece.supports_autograd
