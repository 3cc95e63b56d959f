"""The ways a solve can end, each with the sentence that explains it."""

from __future__ import annotations

from enum import Enum
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from ocp.run.results import Result

__all__ = ["SolveError", "Status"]


class Status(Enum):
    """The outcome of a solve; ``status.value`` is the sentence that explains it.

    Examples
    --------
    >>> from ocp import Status
    >>> Status.CONVERGED.success, Status.MAX_WORK.success
    (True, False)
    """

    RUNNING = "The solver has not stopped yet."
    CONVERGED = (
        "The tolerance is met by the norm of the derivative (with bounds, of the projected derivative; with "
        "constraints, of that of the Lagrangian), relative to that at the start, or by the errors in the optimality "
        "conditions, if the method measures them."
    )
    TARGET = "The target was reached."
    STOPPED = "The callback asked to stop."
    MAX_ITERATIONS = "The iteration limit was reached before the tolerance."
    MAX_WORK = "The work limit was reached before the tolerance."
    MAX_SECONDS = "The time limit was reached before the tolerance."
    MAX_STEPS = "The tolerance was met on the finest grid allowed, whose discretization error is larger than requested."
    INFEASIBLE = "The control violates the constraints, and the method found none nearby that satisfies them."
    UNRESOLVED = (
        "The grid is too coarse for the control found, or the scheme is unstable on it. Use more steps or an implicit "
        "scheme."
    )
    SADDLE = (
        "The derivative vanishes, but the objective is lower nearby: the control is a maximum or a saddle point. Start "
        "from another one."
    )
    NO_DECREASE = "No step along the search direction decreased the objective."
    PRECISION = "The precision limit is reached: rounding or noise hides any further decrease of the objective."
    WRONG_DERIVATIVE = "Differences of the objective contradict its derivative."
    UNBOUNDED = "The objective keeps falling and seems to be unbounded below."
    NOT_FINITE = "The objective or its derivative is not finite at the control reached."
    NOT_SAVED = "A checkpoint could not be written."
    INTERRUPTED = "The run was interrupted from the keyboard."
    EXCEPTION = "An exception ended the run."

    @property
    def success(self) -> bool:
        """Whether a stated stopping test holds at the returned control."""
        return self in (Status.CONVERGED, Status.TARGET)

    @property
    def failed(self) -> bool:
        """Whether the run broke down: it ended neither by a stopping test nor by a limit, the callback or rounding."""
        return self in FAILURES


#: A shell should see these as failures.
FAILURES = frozenset(
    (
        Status.INFEASIBLE,
        Status.UNRESOLVED,
        Status.NO_DECREASE,
        Status.WRONG_DERIVATIVE,
        Status.UNBOUNDED,
        Status.NOT_FINITE,
        Status.NOT_SAVED,
        Status.INTERRUPTED,
        Status.EXCEPTION,
    )
)


class SolveError(RuntimeError):
    """A solve that did not succeed, raised by `Result.require_success`; its ``result`` holds all that was computed."""

    def __init__(self, result: Result):
        super().__init__(f"{result.status.name}: {result.message}")
        self.result = result
