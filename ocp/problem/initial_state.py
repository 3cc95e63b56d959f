"""Initial states: a tensor, a function of the parameters, or a module on given inputs."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor

from ocp.problem.boundary import call, data, uncompiled, with_data
from ocp.problem.functions import hvp, jvp, pullback
from ocp.problem.inference import outside
from ocp.problem.modules import FlatModule
from ocp.problem.parameters import Named, ParameterSet
from ocp.problem.protocols import InitialState
from ocp.problem.shapes import BatchState, Parameters

__all__ = ["FixedState", "Opening", "StateFunction", "as_initial_state"]


@dataclass(frozen=True, eq=False)
class FixedState:
    """An initial state that depends on no parameters."""

    x: Tensor

    @outside
    def __post_init__(self) -> None:
        x = data("initial_state", self.x, "a tensor or a function of the parameters")
        if x.ndim < 2 or not x.is_floating_point():
            advice = "; a single state of n numbers has the shape (1, n)" if x.ndim < 2 else ""
            advice += "" if x.is_floating_point() else "; x.float() or x.double() has the right type"
            raise ValueError(
                "initial_state: expected a floating-point tensor of shape (batch, *state), "
                f"got shape {tuple(x.shape)} of {x.dtype}{advice}"
            )
        object.__setattr__(self, "x", x.contiguous())

    def __call__(self, q: Parameters) -> BatchState:
        return self.x

    def vjp(self, q: Parameters, p: BatchState) -> Parameters:
        return torch.zeros_like(q)

    def jvp(self, q: Parameters, dq: Parameters) -> BatchState:
        return torch.zeros_like(self.x)

    def hvp(self, q: Parameters, p: BatchState, dq: Parameters) -> Parameters:
        return torch.zeros_like(q)

    def take(self, indices: Tensor) -> FixedState:
        return with_data(self, x=self.x[indices])


@dataclass(frozen=True)
class StateFunction:
    """A plain function q -> x_0 as initial state."""

    function: Callable[[Any], Tensor]
    parameters: ParameterSet | None = field(default=None, repr=False)

    def __call__(self, q: Parameters) -> BatchState:
        return call("initial_state", self.function, q=self._named(q))

    def vjp(self, q: Parameters, p: BatchState) -> Parameters:
        return pullback(self, (q,), p)[0]

    def jvp(self, q: Parameters, dq: Parameters) -> BatchState:
        return jvp(self._plain, (q,), (dq,))[1]

    def hvp(self, q: Parameters, p: BatchState, dq: Parameters) -> Parameters:
        return hvp(self._plain, (q,), (dq,), p)[0]

    def _plain(self, q: Tensor) -> Tensor:
        value: Tensor = uncompiled(self.function)(self._named(q))
        return value

    def _named(self, q: Tensor) -> Tensor | Named:
        return q if self.parameters is None else self.parameters(q)


@dataclass(frozen=True, eq=False)
class Opening:
    """An opening module on given inputs: X0(q) = module(inputs; q)."""

    module: FlatModule
    inputs: Tensor

    def __post_init__(self) -> None:
        object.__setattr__(self, "inputs", data("inputs", self.inputs))

    def __call__(self, q: Parameters) -> BatchState:
        return self.module(q, self.inputs)

    def vjp(self, q: Parameters, p: BatchState) -> Parameters:
        return self.module.by_parameters(q, self.inputs, p)

    def jvp(self, q: Parameters, dq: Parameters) -> BatchState:
        return jvp(self, (q,), (dq,))[1]

    def hvp(self, q: Parameters, p: BatchState, dq: Parameters) -> Parameters:
        return hvp(self, (q,), (dq,), p)[0]

    def check(self, q: Parameters) -> None:
        self.module.check(q, self.inputs)

    def take(self, indices: Tensor) -> Opening:
        return with_data(self, inputs=self.inputs[indices])


def as_initial_state(x: Any, parameters: ParameterSet) -> InitialState:
    """The initial state from a tensor, a function of the parameters, or an `InitialState`.

    Raises
    ------
    TypeError, ValueError
        If it is something else, a tensor of the wrong kind or with numbers that are not finite, or a function although
        there are no parameters.
    """
    if isinstance(x, StateFunction):
        return with_data(x, parameters=parameters)
    if isinstance(x, InitialState):
        return x
    if callable(x):
        if not parameters.size:
            raise ValueError("parameters: expected some for an initial state that is a function of them, got none")
        return StateFunction(x, parameters)
    return FixedState(x)
