"""What a time integrator is, and those that have a name."""

from __future__ import annotations

from typing import Protocol, runtime_checkable

from torch import Tensor

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
)
from ocp.integrators.verlet import Verlet
from ocp.problem.control_problem import ControlProblem

__all__ = ["INTEGRATORS", "Integrator", "as_integrator"]


@runtime_checkable
class Integrator(Protocol):
    """The step x_{k+1} = Psi_h(t_k, x_k, u_k) of a problem, together with the running cost over the step.

    Three methods more are optional: ``pullback_tangent``, for second derivatives; ``check(problem, x, u)``, which
    raises ``ValueError`` for problems that the scheme is not made for, given a state and the control of a step; and
    ``inverse(problem, t, h, x, u, out)``, for the plan `Reversible`: it writes to ``out``, which may be x, the state
    from which the step from time t arrives at x.
    """

    @property
    def name(self) -> str: ...

    @property
    def order(self) -> int: ...

    def step(self, problem: ControlProblem, t: float, h: float, x: Tensor, u: Tensor, out: Tensor) -> Tensor | None:
        """Write the next state to ``out`` and return the running cost over the step, None where there is none."""

    def pullback(
        self, problem: ControlProblem, t: float, h: float, x: Tensor, u: Tensor, p: Tensor
    ) -> tuple[Tensor, Tensor]:
        """Transpose of the step: from the costate at its end to the costate at its start and the derivative by u."""

    def tangent(
        self, problem: ControlProblem, t: float, h: float, x: Tensor, u: Tensor, dx: Tensor, du: Tensor
    ) -> tuple[Tensor, Tensor | None]:
        """Directional derivative of the next state and of the running cost."""


_TABLEAUS = (EULER, MIDPOINT, HEUN, RK4, DOPRI5, BACKWARD_EULER, IMPLICIT_MIDPOINT, CRANK_NICOLSON, SDIRK2)

#: The integrators that have a name.
INTEGRATORS: dict[str, Integrator] = {
    **{tableau.name: RungeKutta(tableau) for tableau in _TABLEAUS},
    "verlet": Verlet(),
}


def as_integrator(integrator: Integrator | str) -> Integrator:
    """An integrator, or the name of one.

    Raises
    ------
    ValueError
        If no integrator has that name.
    TypeError
        If it is neither.
    """
    if isinstance(integrator, type) or not isinstance(integrator, str | Integrator):
        got = f"the class {integrator.__name__}" if isinstance(integrator, type) else type(integrator).__name__
        raise TypeError(f"integrator: expected an integrator such as RungeKutta(tableau), or a name, got {got}")
    if not isinstance(integrator, str):
        return integrator
    if integrator not in INTEGRATORS:
        raise ValueError(f"integrator: expected one of {', '.join(INTEGRATORS)}, got {integrator!r}")
    return INTEGRATORS[integrator]
