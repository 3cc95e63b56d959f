"""How many steps are enough: the discretization error of the objective."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from itertools import pairwise
from math import inf, isfinite

__all__ = ["Adaptive", "estimate"]


@dataclass(frozen=True)
class Adaptive:
    """In place of a number of steps: double it until the discretization error of the objective is small enough.

    Where a run breaks down on a grid, it begins anew on the next one, from the start or from the best control so far if
    the objective is lower there.

    Parameters
    ----------
    error : float
        Of the optimum, relative to the optimum.
    first, limit : int
        Steps of the first grid, and the most steps of any.
    absolute : float
        Error allowed in addition, for example if the optimum is zero.
    """

    error: float
    first: int = 16
    limit: int = 4096
    absolute: float = 0.0

    def __post_init__(self) -> None:
        if not (isfinite(self.error) and self.error > 0):
            raise ValueError(f"error: expected a finite number > 0, got {self.error!r}")
        if not (isfinite(self.absolute) and self.absolute >= 0):
            raise ValueError(f"absolute: expected a finite number >= 0, got {self.absolute!r}")
        if not 1 <= self.first <= self.limit:
            raise ValueError(f"first, limit: expected 1 <= first <= limit, got {self.first!r} and {self.limit!r}")

    def enough(self, error: float, optimum: float) -> bool:
        """Whether an error is small enough against the optimum."""
        return error <= self.error * abs(optimum) + self.absolute


def estimate(optima: Sequence[float], order: int) -> float:
    """Estimated discretization error of the last of the optima on grids whose steps double, for a scheme of an order.

    Richardson extrapolation with the observed rate, which is kept between first order and that of the scheme; a control
    held on each step allows second order at most. Infinite for a single optimum.

    Examples
    --------
    >>> round(estimate([1.16, 1.04, 1.01], order=4), 6)  # the differences shrink by 4, so one third of the last
    0.01
    """
    if len(optima) < 2:
        return inf
    changes = [abs(b - a) for a, b in pairwise(optima)]
    if len(changes) < 2 or changes[-1] == 0:
        return changes[-1]
    rate = min(max(changes[-2] / changes[-1], 2.0), 2.0 ** min(order, 2))
    return changes[-1] / (rate - 1)
