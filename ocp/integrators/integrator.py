"""Time integrators: the methods that each must have and may offer, and the integrators known by name."""

from __future__ import annotations

from typing import Protocol, runtime_checkable

from ocp.integrators.runge_kutta import RungeKutta
from ocp.integrators.tableaus import (
    BACKWARD_EULER,
    CRANK_NICOLSON,
    DOPRI5,
    EULER,
    HEUN,
    IMPLICIT_MIDPOINT,
    MIDPOINT,
    RK4,
    SDIRK2,
    Tableau,
)
from ocp.integrators.verlet import Verlet
from ocp.problem.protocols import StateEquation
from ocp.problem.shapes import BatchState, Scalar, StepControl

__all__ = [
    "INTEGRATORS",
    "Integrator",
    "Invertible",
    "SecondOrderIntegrator",
    "SelectiveIntegrator",
    "StageWiseIntegrator",
    "as_integrator",
]


@runtime_checkable
class Integrator(Protocol):
    """The step x_{k+1} = Psi_h(t_k, x_k, u_k) of a problem, together with the running cost over the step.

    An integrator knows one step; the loops over time are in `ocp.adjoint`. It may also be a `SecondOrderIntegrator`,
    for Hessian products, an `Invertible` one, for the schedule `Reversible`, or a `SelectiveIntegrator`; for faster
    sweeps, `Traceable` or a `StageWiseIntegrator`.
    """

    @property
    def name(self) -> str: ...

    @property
    def order(self) -> int: ...

    def step(
        self, problem: StateEquation, t: float, h: float, x: BatchState, u: StepControl
    ) -> tuple[BatchState, Scalar | None]:
        """The next state and the running cost over the step, which is None if the problem has none."""

    def pullback(
        self, problem: StateEquation, t: float, h: float, x: BatchState, u: StepControl, p: BatchState
    ) -> tuple[BatchState, StepControl]:
        """Transpose of the step: from the costate at its end to the costate at its start and the derivative by u."""

    def tangent(
        self, problem: StateEquation, t: float, h: float, x: BatchState, u: StepControl, dx: BatchState, du: StepControl
    ) -> tuple[BatchState, Scalar | None]:
        """Directional derivatives of the next state and of the running cost."""


@runtime_checkable
class SecondOrderIntegrator(Integrator, Protocol):
    """An integrator with second derivatives."""

    def pullback_tangent(
        self,
        problem: StateEquation,
        t: float,
        h: float,
        x: BatchState,
        u: StepControl,
        p: BatchState,
        dx: BatchState,
        du: StepControl,
        dp: BatchState,
    ) -> tuple[BatchState, BatchState, StepControl]:
        """Tangent of the transpose: the costate at the start, its tangent, and the tangent of the derivative by u.

        Parameters
        ----------
        p, dp : Tensor
            Costate at the end of the step and its tangent.
        dx, du : Tensor
            Tangents of the state at the start and of the control.
        """


@runtime_checkable
class Invertible(Integrator, Protocol):
    """An integrator whose steps can be undone."""

    def inverse(self, problem: StateEquation, t: float, h: float, x: BatchState, u: StepControl) -> BatchState:
        """The state from which the step from time t arrives at x, up to rounding."""


@runtime_checkable
class SelectiveIntegrator(Integrator, Protocol):
    """An integrator that is made for some problems only."""

    def check(self, problem: StateEquation, x: BatchState, u: StepControl) -> None:
        """Raise ``ValueError`` if it is not made for this problem, given a state and the control of a step."""


@runtime_checkable
class StageWiseIntegrator(Integrator, Protocol):
    """A Runge-Kutta scheme whose stages a sweep may evaluate in storage of its own."""

    @property
    def explicit_tableau(self) -> Tableau | None:
        """The coefficients; None if stages are implicit."""


_TABLEAUS = (EULER, MIDPOINT, HEUN, RK4, DOPRI5, BACKWARD_EULER, IMPLICIT_MIDPOINT, CRANK_NICOLSON, SDIRK2)

#: Integrators by name.
INTEGRATORS: dict[str, Integrator] = {
    **{tableau.name: RungeKutta(tableau) for tableau in _TABLEAUS},
    "verlet": Verlet(),
}


def as_integrator(integrator: Integrator | str) -> Integrator:
    """The integrator from what a user may give: an integrator, or the name of one.

    Raises
    ------
    ValueError
        If no integrator has this name.
    TypeError
        If it is something else.
    """
    if isinstance(integrator, type) or not isinstance(integrator, str | Integrator):
        got = f"the class {integrator.__name__}" if isinstance(integrator, type) else type(integrator).__name__
        raise TypeError(f"integrator: expected an integrator such as RungeKutta(tableau), or a name, got {got}")
    if not isinstance(integrator, str):
        return integrator
    if integrator not in INTEGRATORS:
        raise ValueError(f"integrator: expected one of {', '.join(INTEGRATORS)}, got {integrator!r}")
    return INTEGRATORS[integrator]
