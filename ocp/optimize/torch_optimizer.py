"""Any ``torch.optim`` class as a method."""

from __future__ import annotations

import copy
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field, replace
from typing import Any

import torch
from torch import Tensor, nn

from ocp.objective.evaluation import Evaluation, Objective
from ocp.optimize.method import State
from ocp.optimize.status import Status
from ocp.space.bounds import feasible
from ocp.space.transfer import Transfer

__all__ = ["TorchOptimizer"]


@dataclass(frozen=True)
class TorchOptimizer:
    """Any ``torch.optim`` class as a method.

    It gets the gradient, not the derivative, so that a learning rate means the same on every grid. With bounds, it sees
    the objective at the projected control, and the control is projected after each step. Its state dictionary is the
    memory; on a finer grid it begins anew.

    Parameters
    ----------
    optimizer : callable
        For example ``torch.optim.Adam``.
    options : mapping
        Its keyword arguments, such as ``{"lr": 1e-2}``.

    Examples
    --------
    >>> adam = TorchOptimizer(torch.optim.Adam, {"lr": 1e-2})
    """

    optimizer: Callable[..., torch.optim.Optimizer]
    options: Mapping[str, Any] = field(default_factory=dict)

    def __post_init__(self) -> None:
        if isinstance(self.optimizer, torch.optim.Optimizer) or not callable(self.optimizer):
            got = type(self.optimizer).__name__
            raise TypeError(f"optimizer: expected a class such as torch.optim.Adam, got one of type {got}")

    def init(self, objective: Objective, point: Evaluation) -> State:
        return State(point)

    def step(self, objective: Objective, state: State) -> State:
        parameter = nn.Parameter(state.control.clone())
        optimizer = self.optimizer([parameter], **self.options)
        if state.memory is not None:
            optimizer.load_state_dict(_copied(state.memory))  # it would change the tensors in place
        finite: list[bool] = []

        def closure() -> float:
            point = objective.at(feasible(parameter.detach().clone(), objective.box)) if finite else state.point
            parameter.grad = objective.space.gradient(point.derivative)
            finite.append(bool(parameter.grad.isfinite().all()))
            return point.value

        optimizer.step(closure)
        if not all(finite):  # such numbers would stay in the moments for good
            return replace(state, status=Status.NOT_FINITE)
        control = feasible(parameter.detach(), objective.box)
        return replace(state, point=objective.at(control), memory=optimizer.state_dict(), status=Status.RUNNING)

    def transport(self, memory: Any, transfer: Transfer) -> None:
        """None: with its moments carried along, Adam ended higher on the spiral, the peaks, the digits and MNIST.

        The squares remember a thousand gradients, including the large ones of the beginning, and keep the steps small.
        """


def _copied(memory: Any) -> Any:
    """As ``copy.deepcopy``, which takes longer than a step on a coarse grid."""
    if isinstance(memory, Tensor):
        return memory.clone()
    if isinstance(memory, dict):
        return {key: _copied(value) for key, value in memory.items()}
    return [_copied(value) for value in memory] if isinstance(memory, list) else copy.deepcopy(memory)
