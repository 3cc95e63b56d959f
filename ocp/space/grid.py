"""A uniform time grid: its nodes, its step, its coarsening."""

from __future__ import annotations

from dataclasses import dataclass
from functools import cached_property
from math import isfinite

__all__ = ["TimeGrid"]


@dataclass(frozen=True)
class TimeGrid:
    """``steps`` equal steps on the time interval from 0 to ``horizon``.

    Parameters
    ----------
    horizon : float
        Final time T > 0.
    steps : int
        Number of steps N >= 1; the step size is h = T / N.

    Examples
    --------
    >>> TimeGrid(horizon=2.0, steps=8).coarsen(2)
    TimeGrid(horizon=2.0, steps=4)
    """

    horizon: float
    steps: int

    def __post_init__(self) -> None:
        if not (isfinite(self.horizon) and self.horizon > 0):
            raise ValueError(f"horizon: expected a finite number > 0, got {self.horizon!r}")
        if isinstance(self.steps, bool) or not isinstance(self.steps, int) or self.steps < 1:
            raise ValueError(f"steps: expected an integer >= 1, got {self.steps!r}")

    @property
    def h(self) -> float:
        """Step size."""
        return self.horizon / self.steps

    @cached_property
    def nodes(self) -> tuple[float, ...]:
        """The N + 1 times t_k = k h at which states live."""
        return tuple(k * self.horizon / self.steps for k in range(self.steps + 1))

    @property
    def midpoints(self) -> tuple[float, ...]:
        """The N midpoints of the steps, on which controls are centered."""
        return tuple((k + 0.5) * self.horizon / self.steps for k in range(self.steps))

    def coarsen(self, factor: int) -> TimeGrid:
        """The grid that joins ``factor`` neighboring steps into one.

        Raises
        ------
        ValueError
            If ``factor`` does not divide the number of steps.
        """
        if factor < 1 or self.steps % factor:
            raise ValueError(f"factor: expected a divisor of {self.steps} steps, got {factor}")
        return TimeGrid(self.horizon, self.steps // factor)
