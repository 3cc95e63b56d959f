"""A uniform time grid: its nodes and its step size."""

from __future__ import annotations

from dataclasses import dataclass
from functools import cached_property
from math import isfinite

__all__ = ["TimeGrid"]


@dataclass(frozen=True)
class TimeGrid:
    """N = ``steps`` equal steps of size h = T / N on the time interval from 0 to T = ``horizon``.

    Examples
    --------
    >>> TimeGrid(horizon=2.0, steps=4).nodes
    (0.0, 0.5, 1.0, 1.5, 2.0)
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
        """The step size."""
        return self.horizon / self.steps

    @cached_property
    def nodes(self) -> tuple[float, ...]:
        """The N + 1 times t_k = k h at which states live."""
        return tuple(k * self.horizon / self.steps for k in range(self.steps + 1))

    @property
    def midpoints(self) -> tuple[float, ...]:
        """The N midpoints of the steps, at which functions of time are sampled for controls."""
        return tuple((k + 0.5) * self.horizon / self.steps for k in range(self.steps))
