"""Time integrators: the methods that each must have and may offer, and the integrators known by name."""

from __future__ import annotations

from typing import Protocol, runtime_checkable

from ocp.integrators.runge_kutta import RungeKutta
from ocp.integrators.tableaus import TABLEAUS, Tableau
from ocp.integrators.verlet import Verlet
from ocp.problem.protocols import StateEquation
from ocp.problem.shapes import BatchState, Cotangent, Scalar, StepControl

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

    It may also be a `SecondOrderIntegrator`, for Hessian products, an `Invertible` one, for the schedule `Reversible`,
    or a `SelectiveIntegrator`; for faster sweeps, `Traceable` or a `StageWiseIntegrator`.
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
    ) -> Cotangent:
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
        """The transpose and its tangent: costate at the start, its tangent, and that of the derivative by u.

        Here p and dp are the costate at the end and its tangent, dx and du the tangents of x and u.
        """


@runtime_checkable
class Invertible(Integrator, Protocol):
    """An integrator whose steps can be undone."""

    def inverse(self, problem: StateEquation, t: float, h: float, x: BatchState, u: StepControl) -> BatchState:
        """The state from which the step from time t arrives at x, up to rounding."""


@runtime_checkable
class SelectiveIntegrator(Integrator, Protocol):
    """An integrator that is made for some problems only."""

    def check(self, problem: StateEquation, t: float, h: float, x: BatchState, u: StepControl) -> None:
        """Raise ``ValueError`` if it is not made for this problem, given what a step is given."""


@runtime_checkable
class StageWiseIntegrator(Integrator, Protocol):
    """A Runge-Kutta scheme whose stages a sweep may evaluate in storage of its own."""

    @property
    def explicit_tableau(self) -> Tableau | None:
        """The coefficients; None if stages are implicit."""


#: Integrators by name.
INTEGRATORS: dict[str, Integrator] = {**{each.name: RungeKutta(each) for each in TABLEAUS}, "verlet": Verlet()}


def as_integrator(integrator: Integrator | str) -> Integrator:
    """The integrator itself, or that of a name.

    Raises
    ------
    ValueError
        If no integrator has this name, or one of your own has the name of another scheme in `INTEGRATORS`: results and
        checkpoints know integrators by their names.
    TypeError
        If it is something else.
    """
    if isinstance(integrator, str):
        if integrator not in INTEGRATORS:
            raise ValueError(f"integrator: expected one of {', '.join(INTEGRATORS)}, got {integrator!r}")
        return INTEGRATORS[integrator]
    if isinstance(integrator, type) or not isinstance(integrator, Integrator):
        got = f"the class {integrator.__name__}" if isinstance(integrator, type) else type(integrator).__name__
        raise TypeError(f"integrator: expected an integrator such as RungeKutta(tableau), or a name, got {got}")
    known = INTEGRATORS.get(integrator.name)
    if known is not None and _scheme(known) != _scheme(integrator):
        raise ValueError(f"integrator: expected a name of its own for another scheme than ours, got {known.name!r}")
    return integrator


def _scheme(integrator: Integrator) -> object:
    """What two integrators of one scheme have in common."""
    return integrator.tableau if isinstance(integrator, RungeKutta) else type(integrator)
