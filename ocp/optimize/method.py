"""What a method is: a frozen recipe whose memory travels in its state."""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field, fields, is_dataclass, replace
from typing import Any, Protocol, runtime_checkable

from torch import Tensor

from ocp.objective.evaluation import Evaluation, Objective
from ocp.optimize.status import Status
from ocp.problem.constraints import Multipliers
from ocp.space.transfer import Transfer

__all__ = [
    "KKT",
    "ForConstraints",
    "FullBatch",
    "Method",
    "SelectiveMethod",
    "State",
    "Visit",
    "as_method",
    "check_method",
    "keeps_constraints",
    "on_full_batches",
    "recipe",
]


@dataclass(frozen=True)
class Visit:
    """One visit of a cycle to a coarser grid, and what its correction was worth.

    Attributes
    ----------
    steps, coarse : int
        Numbers of steps of the grid to be corrected, and of the coarser one.
    begin, end : float
        Work units before the visit and after the line search.
    mismatch : float
        |tau| relative to the restricted derivative: how far the coarse objective was from coherence.
    expected, decrease, step : float
        Decrease of the coarse model, that of the fine objective, and the share of the correction that was taken; the
        last two are 0 if it was refused.
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
class KKT:
    """How far a control is from the first-order conditions of a constrained problem (Karush, Kuhn and Tucker).

    Attributes
    ----------
    multipliers : Multipliers
    stationarity : float
        The dual norm of the derivative of the Lagrangian, or with bounds that of the projected gradient step.
    violation : float
        The largest violation at the nodes, relative to the size of its constraint (`ocp.objective.feasibility`).
    complementarity : float
        The most room, relative as well, that a constraint has whose multiplier is not zero.
    minimum : bool
        False if second derivatives show that the control is no minimum, however small the other numbers are.
    """

    multipliers: Multipliers
    stationarity: float
    violation: float
    complementarity: float = 0.0
    minimum: bool = True


@dataclass(frozen=True, eq=False)
class State:
    """Where a method is.

    Attributes
    ----------
    point : Evaluation
        At the current control. A multilevel method begins on a coarse grid.
    memory : Any
        What the method remembers: tensors, numbers and containers of them.
    status : Status
        RUNNING, or why the method cannot go on.
    counts, visits : mapping, tuple of Visit
        Events worth reporting, such as refused corrections, and the visits to coarser grids so far.
    level : int
        Level of the control's grid; 0 is the finest.
    kkt : KKT, optional
        What a method that keeps constraints knows about them at its point, whose value is J; a run ends as CONVERGED if
        these numbers are small.
    """

    point: Evaluation
    memory: Any = None
    status: Status = Status.RUNNING
    counts: Mapping[str, int] = field(default_factory=dict)
    level: int = 0
    visits: tuple[Visit, ...] = ()
    kkt: KKT | None = None

    @property
    def control(self) -> Tensor:
        """The flat control; its length determines its grid."""
        return self.point.control

    def of(self, objective: Objective) -> State:
        """The same state with its control evaluated by ``objective``, on the grid of the control."""
        here = objective.on(objective.space.steps_of(self.control))
        return self if self.point.objective is here else replace(self, point=here.at(self.control))


@runtime_checkable
class Method(Protocol):
    """An optimization method; a smoother and a multigrid cycle are methods, too.

    Classes that inherit from it begin without a memory, and keep theirs on a finer grid.
    """

    def init(self, objective: Objective, point: Evaluation) -> State:
        """State before the first step, from the evaluation at the start."""
        return State(point)

    def step(self, objective: Objective, state: State) -> State:
        """One step from an evaluation by this objective, whose batch or shift may have changed since the last step."""

    def transport(self, memory: Any, transfer: Transfer) -> Any:
        """The memory on the finer grid of a transfer."""
        return memory


@runtime_checkable
class FullBatch(Protocol):
    """A method that compares numbers of successive steps, as line searches and L-BFGS do.

    Where each step has a mini-batch of its own, they are those of different objectives.
    """

    @property
    def full_batch(self) -> bool:
        """Whether it does."""


@runtime_checkable
class ForConstraints(Protocol):
    """A method that keeps path and terminal constraints."""

    @property
    def keeps_constraints(self) -> bool:
        """Whether it does."""


def keeps_constraints(method: object) -> bool:
    """Whether a method keeps path and terminal constraints."""
    return isinstance(method, ForConstraints) and method.keeps_constraints


@runtime_checkable
class SelectiveMethod(Protocol):
    """A method that is made for some objectives only."""

    def check(self, objective: Objective) -> None:
        """Raise ``ValueError`` if it is not made for this objective on the finest grid; no step is taken."""


def check_method(method: Method, objective: Objective) -> None:
    """Raise ``ValueError`` if some part of a method is not made for an objective."""
    for part in _parts(method):
        if isinstance(part, SelectiveMethod):
            part.check(objective)


def on_full_batches(method: Any) -> Any:
    """The part of a method, or the method itself, that needs all samples in every step; None if no part does."""
    return next((part for part in _parts(method) if isinstance(part, FullBatch) and part.full_batch), None)


def _parts(method: Any) -> Iterator[Any]:
    """A method and the methods it is made of."""
    yield method
    for each in fields(method) if is_dataclass(method) else ():
        part = getattr(method, each.name)
        if isinstance(part, Method):
            yield from _parts(part)


def as_method(name: str, method: Any) -> Method:
    """The method itself; a TypeError that begins with ``name`` if it is not a method."""
    if isinstance(method, type) or not isinstance(method, Method):
        got = f"the class {method.__name__}" if isinstance(method, type) else repr(method)
        raise TypeError(f"{name}: expected a method such as LBFGS() or MGOPT(levels=4), got {got}")
    return method


def recipe(part: Any) -> str:
    """A method, or a part of one, in words that are the same in every process."""
    return re.sub(r" at 0x\w+", "", re.sub(r"<function (\w+) at \w+>", r"\1", repr(part)))
