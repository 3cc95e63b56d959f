"""What a sweep remembers of its steps: the protocol; `ocp.adjoint.paths` chooses among the implementations."""

from __future__ import annotations

from typing import Protocol

from ocp.problem.protocols import StateEquation
from ocp.problem.shapes import BatchState, ControlPath, NodeStates, Scalar

__all__ = ["Tape"]


class Tape(Protocol):
    """Storage for consecutive steps of a grid, S at a time: taken forward, remembered, and gone back through."""

    def forward(self, problem: StateEquation, first: int, x: BatchState, path: ControlPath) -> Scalar | None:
        """Take steps from node ``first`` and the state x with the controls ``path``, shape (S, m).

        Returns the running cost over them, which is None if the problem has none.
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
