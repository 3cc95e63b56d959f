"""What a method is: a frozen recipe whose memory travels in its state."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from typing import Any, Protocol, runtime_checkable

from torch import Tensor

from ocp.objective.evaluation import Evaluation, Objective
from ocp.optimize.status import Status
from ocp.space.transfer import Transfer

__all__ = ["Method", "State", "Visit", "as_method"]


@dataclass(frozen=True)
class Visit:
    """What became of one correction that a cycle asked of a coarser grid.

    Attributes
    ----------
    steps, coarse : int
        Of the grid that asked, and of the one that was asked.
    begin, end : float
        Work units when the visit began and when its outcome was known.
    mismatch : float
        |tau| by the size of the restricted derivative: what the coarse objective had to be corrected for.
    expected, decrease : float
        Decrease of the coarse model, and of the objective that asked; 0 where the correction was refused.
    step : float
        Share of the correction that was taken; 0 where it was refused.
    """

    steps: int
    coarse: int
    begin: float
    end: float
    mismatch: float
    expected: float
    decrease: float
    step: float


@dataclass(frozen=True, eq=False)
class State:
    """Where a method is.

    Attributes
    ----------
    point : Evaluation
        At the current control, with what has been computed there. A multilevel method begins on a coarse grid.
    memory : Any
        What the method remembers: tensors, numbers and containers of them.
    status : Status
        RUNNING, or why the method cannot go on.
    counts : mapping
        Events worth reporting, such as refused coarse corrections.
    level : int
        Of the grid that the control lives on; 0 is the finest.
    visits : tuple of Visit
        All that cycles have made so far.
    """

    point: Evaluation
    memory: Any = None
    status: Status = Status.RUNNING
    counts: Mapping[str, int] = field(default_factory=dict)
    level: int = 0
    visits: tuple[Visit, ...] = ()

    @property
    def control(self) -> Tensor:
        """Flat; its length tells the grid it lives on."""
        return self.point.control

    def of(self, objective: Objective) -> State:
        """The same state, with its point evaluated by an objective, on the grid of its control."""
        here = objective.on(objective.space.steps_of(self.control))
        return self if self.point.objective is here else replace(self, point=here.at(self.control))


@runtime_checkable
class Method(Protocol):
    """An optimization method; a smoother and a multigrid cycle are methods, too."""

    def init(self, objective: Objective, point: Evaluation) -> State:
        """State before the first step, from the evaluation at the start."""

    def step(self, objective: Objective, state: State) -> State:
        """One step, from an evaluation by this objective.

        The objective may differ from that of the last step, by its batch or its shift.
        """

    def transport(self, memory: Any, transfer: Transfer) -> Any:
        """The memory on the finer grid of a transfer."""


def as_method(name: str, method: Any) -> Method:
    """The method itself, where it is one.

    Raises
    ------
    TypeError
        If it is not a method; the error begins with ``name``.
    """
    if isinstance(method, type) or not isinstance(method, Method):
        got = f"the class {method.__name__}" if isinstance(method, type) else repr(method)
        raise TypeError(f"{name}: expected a method such as LBFGS() or MGOPT(levels=4), got {got}")
    return method
