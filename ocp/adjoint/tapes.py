"""What a sweep remembers of its steps: the protocol; `ocp.adjoint.paths` chooses among the implementations."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Protocol

import torch

from ocp.problem.protocols import StateEquation
from ocp.problem.shapes import BatchState, ControlPath, NodeStates, Scalar

__all__ = ["Tape", "total"]


class Tape(Protocol):
    """Storage for S consecutive steps of a grid, taken forward and then back."""

    def forward(self, problem: StateEquation, first: int, x: BatchState, path: ControlPath) -> Scalar | None:
        """Take steps from node ``first`` and the state x with the controls ``path``, shape (S, m).

        Returns the running cost over them; None if the problem has none.
        """

    @property
    def end(self) -> BatchState:
        """The state after the last step."""

    @property
    def states(self) -> NodeStates:
        """The states of the steps of the last `forward`, shape (S + 1, batch, *state)."""

    def backward(self, p: BatchState, derivative: ControlPath) -> BatchState:
        """Transpose of the last `forward`, at most once for each: from the costate at the end to that at the start.

        Writes the derivative by the controls, shape (S, m), to ``derivative``. May overwrite p.
        """


def total(costs: Iterable[Scalar | None]) -> Scalar | None:
    """The sum of the costs that are not None; None if all are."""
    found = [cost for cost in costs if cost is not None]
    return torch.stack(found).sum() if found else None
