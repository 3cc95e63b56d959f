"""Newton's method by truncated conjugate gradients."""

from __future__ import annotations

from dataclasses import dataclass, replace
from math import inf
from typing import Any

from ocp.objective.evaluation import Evaluation, Objective, free_part, optimality
from ocp.optimize.method import State
from ocp.optimize.status import Status
from ocp.optimize.trust_region import TrustRegion, steihaug
from ocp.space.bounds import masked
from ocp.space.transfer import Transfer

__all__ = ["NewtonCG"]


@dataclass(frozen=True)
class NewtonCG:
    """Newton's method by truncated conjugate gradients in a trust region, Nocedal & Wright (2006), section 7.1.

    It needs second derivatives. The conjugate gradients end when the residual is at most
    min(forcing, (|d| / |d_0|)^exponent) |d|, where d is the derivative and d_0 that of the first step: early far from
    the optimum, and near it late enough for convergence of order 1 + exponent (theorem 7.2 there). With bounds, they
    run in the subspace of the free entries, and the step is projected (see `TrustRegion`).

    Parameters
    ----------
    forcing, exponent : float
        The defaults are those of Nocedal & Wright, algorithm 7.1.
    iterations : int
        At most this many Hessian products per step.
    region : TrustRegion
    first : float
        The first radius, in multiples of max(1, norm of the control). On Van der Pol, Rayleigh's oscillator and the
        pendulum 0.1, 1 and 10 made little difference.

    Raises
    ------
    ValueError
        If a number is out of its range; in `step`, if the problem has no second derivatives.
    """

    forcing: float = 0.5
    exponent: float = 0.5
    iterations: int = 50
    region: TrustRegion = TrustRegion()
    first: float = 1.0

    def __post_init__(self) -> None:
        if not (0 < self.forcing < 1 and self.iterations >= 1 and 0 < self.first < inf):
            raise ValueError(
                "forcing, iterations, first: expected a number between 0 and 1, an integer >= 1 and a positive number, "
                f"got {self.forcing}, {self.iterations}, {self.first}"
            )

    def init(self, objective: Objective, point: Evaluation) -> State:
        return State(point)

    def step(self, objective: Objective, state: State) -> State:
        point, space = state.point, objective.space
        d, free = free_part(point)
        norm = optimality(point)
        if not (0 < norm < inf and space.dual_norm(d) > 0):
            return replace(state, status=Status.NO_DECREASE)
        radius, start = state.memory or (self.first * max(1.0, space.norm(point.control)), norm)
        tolerance = min(self.forcing, (norm / start) ** self.exponent)
        path = steihaug(lambda s: masked(point.hessian_product(s), free), d, space, radius, tolerance, self.iterations)
        accepted = self.region(point, path, radius)
        if accepted is None:
            return replace(state, status=Status.NO_DECREASE)
        after, radius = accepted
        return replace(state, point=after, memory=(radius, start), status=Status.RUNNING)

    def transport(self, memory: Any, transfer: Transfer) -> Any:
        return memory
