"""A control together with the integrator with which it was found."""

from __future__ import annotations

from typing import Protocol, runtime_checkable

from ocp.integrators.integrator import Integrator, as_integrator
from ocp.space.control import Control

__all__ = ["Solution", "control_and_scheme"]


@runtime_checkable
class Solution(Protocol):
    """A control that knows its scheme, such as the `Result` of `minimize`."""

    @property
    def control(self) -> Control | None: ...

    def scheme(self, integrator: Integrator | str | None = None) -> Integrator:
        """The integrator with which the control was found; ValueError if another one is given."""


def control_and_scheme(solution: Solution | Control, integrator: Integrator | str | None) -> tuple[Control, Integrator]:
    """The control and the integrator of a solution, or of a control given together with its integrator.

    Raises
    ------
    TypeError, ValueError
        If it is neither, if a control comes without an integrator, or a solution without a control or with another
        integrator than its own.
    """
    if isinstance(solution, Control):
        if integrator is None:
            raise TypeError(
                "integrator: expected the one with which the control was found, got None; pass the result in place of "
                "its control, or name the integrator"
            )
        return solution, as_integrator(integrator)
    if not isinstance(solution, Solution):
        raise TypeError(f"control: expected a Result, or a Control with its grid, got {type(solution).__name__}")
    if solution.control is None:
        raise ValueError("control: expected a result with its control, got none")
    return solution.control, solution.scheme(integrator)
