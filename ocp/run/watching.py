"""What a run records and reports as it goes."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

from ocp.problem.control_problem import ControlProblem
from ocp.problem.protocols import Classifier
from ocp.run.results import Record
from ocp.space.control import Control

__all__ = ["Watch"]


@dataclass(frozen=True, eq=False)
class Watch:
    """What `minimize` looks at and reports. None of it counts as work or changes the control that is found.

    Parameters
    ----------
    validation : ControlProblem, optional
        The same problem on other samples; its accuracy is recorded.
    finest : bool
        Also record the objective on the finest grid while working on a coarse one, as with a target value.
    every : int, optional
        Iterations between two records; by default 1, or an epoch of mini-batches, since each record then evaluates the
        objective on all samples.
    callback : callable, optional
        ``callback(record, control)`` after each record, with a copy of the control. The run stops if it returns True.
    check_derivative : bool
        Compare the derivative with finite differences before the first step (`ocp.quick_check`), and end the run if
        they disagree. It takes about eight gradients. A derivative of zero at the start is always checked.
    progress : bool, optional
        Show a live line; by default on a terminal.
    """

    validation: ControlProblem | None = None
    finest: bool = False
    every: int | None = None
    callback: Callable[[Record, Control], bool | None] | None = None
    check_derivative: bool = False
    progress: bool | None = None

    def __post_init__(self) -> None:
        if not isinstance(self.validation, ControlProblem | None):
            raise TypeError(f"validation: expected a ControlProblem, got {type(self.validation).__name__}")
        if self.validation is not None and not isinstance(self.validation.terminal_cost, Classifier):
            raise ValueError("validation: expected a problem whose terminal cost has an accuracy, such as CrossEntropy")
        if self.every is not None and not (isinstance(self.every, int) and self.every >= 1):
            raise ValueError(f"every: expected an integer >= 1, got {self.every!r}")
        if self.callback is not None and not callable(self.callback):
            raise TypeError(f"callback: expected a function of a record and a control, got {self.callback!r}")
