"""One step of a time integrator, its exact transpose and its tangent."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Protocol

import torch
from torch import Tensor

from ocp.problem import ControlProblem
from ocp.tableaus import EULER, HEUN, MIDPOINT, RK4, Tableau

__all__ = ["INTEGRATORS", "ExplicitRungeKutta", "Integrator", "as_integrator"]


class Integrator(Protocol):
    """The step x_{k+1} = Psi_h(t_k, x_k, u_k) of a problem, together with the running cost over the step."""

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


def _combine(x: Tensor, h: float, weights: Sequence[float], slopes: Sequence[Tensor], out: Tensor | None) -> Tensor:
    """x + h sum_i weights_i slopes_i, without a temporary for the zero weights."""
    terms = [(w, s) for w, s in zip(weights, slopes, strict=True) if w]
    if not terms:
        return x if out is None or out is x else out.copy_(x)
    (w, s), *rest = terms
    out = torch.add(x, s, alpha=h * w, out=out)
    for w, s in rest:
        out.add_(s, alpha=h * w)
    return out


@dataclass(frozen=True)
class ExplicitRungeKutta:
    """Explicit Runge-Kutta with the control held over all stages of a step.

    The transpose follows the stages backward; it is the discrete adjoint of Hager (2000), "Runge-Kutta methods in
    optimal control and the transformed adjoint system", exact for the discrete problem.

    Examples
    --------
    >>> ExplicitRungeKutta(RK4).order
    4
    """

    tableau: Tableau

    @property
    def name(self) -> str:
        return self.tableau.name

    @property
    def order(self) -> int:
        return self.tableau.order

    def _stages(
        self, problem: ControlProblem, t: float, h: float, x: Tensor, u: Tensor, last: bool
    ) -> tuple[list[Tensor], list[Tensor]]:
        """Stage states and slopes; the last slope only on request, since the transpose does not need it."""
        states: list[Tensor] = []
        slopes: list[Tensor] = []
        stages = len(self.tableau.b)
        for i, (row, c) in enumerate(zip(self.tableau.A, self.tableau.c, strict=True)):
            states.append(_combine(x, h, row, slopes, None))
            if last or i < stages - 1:
                slopes.append(problem.dynamics(t + c * h, states[-1], u))
        return states, slopes

    def step(self, problem: ControlProblem, t: float, h: float, x: Tensor, u: Tensor, out: Tensor) -> Tensor | None:
        states, slopes = self._stages(problem, t, h, x, u, last=True)
        _combine(x, h, self.tableau.b, slopes, out)
        if problem.running_cost is None:
            return None
        cost = x.new_zeros(())
        for b, c, state in zip(self.tableau.b, self.tableau.c, states, strict=True):
            if b:
                cost += h * b * problem.running_cost(t + c * h, state, u)
        return cost

    def pullback(
        self, problem: ControlProblem, t: float, h: float, x: Tensor, u: Tensor, p: Tensor
    ) -> tuple[Tensor, Tensor]:
        A, b, c = self.tableau.A, self.tableau.b, self.tableau.c
        states, _ = self._stages(problem, t, h, x, u, last=False)
        derivative = torch.zeros_like(u)
        later: list[Tensor] = []  # what the stages after this one give back to their states, last stage first
        for i in reversed(range(len(b))):
            weights = [b[i], *(A[j][i] for j in reversed(range(i + 1, len(b))))]
            kappa = (h * weights[0]) * p
            kappa = _combine(kappa, h, weights[1:], later, kappa)
            xi, pu = problem.dynamics.vjp(t + c[i] * h, states[i], u, kappa)
            derivative += pu
            if problem.running_cost is not None and b[i]:
                Lx, Lu = problem.running_cost.derivative(t + c[i] * h, states[i], u)
                xi = torch.add(xi, Lx, alpha=h * b[i])
                derivative.add_(Lu, alpha=h * b[i])
            later.append(xi)
        return _combine(p, 1.0, [1.0] * len(later), later, None), derivative

    def tangent(
        self, problem: ControlProblem, t: float, h: float, x: Tensor, u: Tensor, dx: Tensor, du: Tensor
    ) -> tuple[Tensor, Tensor | None]:
        A, b, c = self.tableau.A, self.tableau.b, self.tableau.c
        states, _ = self._stages(problem, t, h, x, u, last=False)
        slopes: list[Tensor] = []
        dcost = x.new_zeros(())
        for i, state in enumerate(states):
            dstate = _combine(dx, h, A[i], slopes, None)
            slopes.append(problem.dynamics.jvp(t + c[i] * h, state, u, dstate, du))
            if problem.running_cost is not None and b[i]:
                Lx, Lu = problem.running_cost.derivative(t + c[i] * h, state, u)
                dcost = dcost + h * b[i] * ((Lx * dstate).sum() + (Lu * du).sum())
        return _combine(dx, h, b, slopes, None), None if problem.running_cost is None else dcost


#: The integrators that have a name.
INTEGRATORS: dict[str, Integrator] = {
    tableau.name: ExplicitRungeKutta(tableau) for tableau in (EULER, MIDPOINT, HEUN, RK4)
}


def as_integrator(integrator: Integrator | str) -> Integrator:
    """An integrator, or the name of one.

    Raises
    ------
    ValueError
        If no integrator has that name.
    """
    if not isinstance(integrator, str):
        return integrator
    if integrator not in INTEGRATORS:
        raise ValueError(f"integrator: expected one of {', '.join(INTEGRATORS)}, got {integrator!r}")
    return INTEGRATORS[integrator]
