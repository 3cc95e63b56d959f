"""The pieces of a problem: the methods that each must have, and optional ones.

Shapes: a state x is ``(batch, *state)``, the control u of one step ``(m,)``, the parameters q ``(s,)``; a costate p has
the shape of the state. Times are floats. ``dx``, ``du``, ``dq`` are directions, of the shapes of x, u, q.

The optional methods are protocols of their own, which ``isinstance`` recognizes; nothing has to be inherited or
registered. All pieces may be `SecondOrder`, for Hessian products; costs and initial states `Divisible`, for
mini-batches; terminal costs a `Classifier`. For faster sweeps, dynamics may be `StageWise`, running costs `Batched`,
and either of them `Traceable`.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any, Protocol, Self, runtime_checkable

import torch
from torch import Tensor, nn

from ocp.problem.shapes import BatchState, FlatControl, Parameters, Scalar, StepControl
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
    "SecondOrder",
    "StageWise",
    "Stages",
    "StateEquation",
    "TerminalCost",
    "Traceable",
]


@runtime_checkable
class Dynamics(Protocol):
    """The right-hand side f of x' = f(t, x, u)."""

    @property
    def control_size(self) -> int:
        """m, the length of u."""

    def __call__(self, t: float, x: BatchState, u: StepControl) -> BatchState:
        """f(t, x, u), of the shape of x."""

    def vjp(self, t: float, x: BatchState, u: StepControl, p: BatchState) -> tuple[BatchState, StepControl]:
        """Transposed derivatives (df/dx^T p, df/du^T p)."""

    def jvp(self, t: float, x: BatchState, u: StepControl, dx: BatchState, du: StepControl) -> BatchState:
        """Directional derivative df/dx dx + df/du du."""


@runtime_checkable
class RunningCost(Protocol):
    """The integrand L(t, x, u) of the running cost."""

    def __call__(self, t: float, x: BatchState, u: StepControl) -> Scalar:
        """The value, a tensor of shape ()."""

    def derivative(self, t: float, x: BatchState, u: StepControl) -> tuple[BatchState, StepControl]:
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
        """Share of the samples that are classified correctly, between 0 and 1."""


@runtime_checkable
class ControlCost(Protocol):
    """A cost R(u, q) of the control alone."""

    def __call__(self, space: ControlSpace, flat: FlatControl) -> Scalar:
        """The value at a flat control, a tensor of shape ()."""

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
    """A piece with second derivatives: ``hvp`` is the Hessian of one number applied to directions.

    - dynamics: ``hvp(t, x, u, p, dx, du)``, of <p, f(t, x, u)> by (x, u);
    - running cost: ``hvp(t, x, u, dx, du)``, of L(t, x, u) by (x, u);
    - terminal cost: ``hvp(x, q, dx, dq)``, of Phi(x, q) by (x, q);
    - control cost: ``hvp(space, flat, direction)``, of R by the flat control;
    - initial state: ``hvp(q, p, dq)``, of <p, X0(q)> by q.

    It returns one tensor for each argument by which it differentiates, of its shape; a tuple if there are two.
    """

    @property
    def hvp(self) -> Callable[..., Any]: ...


@runtime_checkable
class Divisible(Protocol):
    """An initial state or a cost that can be restricted to some of the samples."""

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


class StateEquation(Protocol):
    """The part of a problem that a step integrates: x' = f(t, x, u) and the running cost along the way."""

    @property
    def dynamics(self) -> Dynamics: ...

    @property
    def running_cost(self) -> RunningCost | None: ...


@runtime_checkable
class Traceable(Protocol):
    """A piece made of torch operations that autograd can follow; its own derivatives are those of autograd."""

    @property
    def supports_autograd(self) -> bool:
        """Whether a sweep may differentiate it by tapes of several steps."""


@runtime_checkable
class Bindable(Protocol):
    """Traceable dynamics whose controls can be split into tensors once for many steps."""

    def bind(self, path: Tensor) -> tuple[list[Tensor], list[Callable[[float, Tensor, Tensor], Tensor]]]:
        """The leaves to differentiate by, and f for each step with its own control bound.

        The path has the shape (S, m); each leaf has S as its first dimension, and the leaves together hold as many
        numbers as the path, in the order of the control.
        """


@runtime_checkable
class Batched(Protocol):
    """A running cost that can be evaluated at n points at once.

    Times have the shape (n,), states (n, batch, *state), controls (n, m).
    """

    def supports_batches(self, x: BatchState, u: StepControl) -> bool:
        """Whether it can be, for such a state and control."""

    def along(self, t: Tensor, x: Tensor, u: Tensor) -> Tensor:
        """The values, shape (n,)."""

    def derivative_along(self, t: Tensor, x: Tensor, u: Tensor) -> tuple[Tensor, Tensor]:
        """The derivatives at each point, of the shapes of x and u."""


@dataclass(frozen=True, eq=False)
class Stages:
    """Storage for the stages of S consecutive steps, r of them to a step: what their transposes need.

    Attributes
    ----------
    h : float
        The length of a step.
    t : Tensor
        Shape (S, r): the times of the stages.
    x, values : Tensor
        Shape (S, r, batch, *state): stage states, and the values of f there. On the way back, taking the transpose at
        a stage may overwrite its value with what the derivative by the control needs.
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

    The derivative by the control comes last, so that it can be computed for all steps at once.
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

    def supports_stages(self, x: BatchState, u: StepControl) -> bool:
        """Whether they do for such a state and control."""

    def over(self, path: Tensor, stages: Stages) -> Evaluations:
        """The evaluations for steps with the controls ``path``, shape (S, m), in the given storage."""

    def arrange(self, x: BatchState) -> BatchState:
        """The state in the memory layout that the stages should have; x itself if any layout will do."""
