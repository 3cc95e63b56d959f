"""When a cycle visits the coarser grids."""

from __future__ import annotations

from dataclasses import dataclass
from math import inf
from typing import Protocol

__all__ = ["Always", "Earned", "Visits"]


class Visits(Protocol):
    """When a level asks the coarser ones for a correction, and how long those may work on it.

    A level waits ``wait`` times before the next visit; ``patience`` is the wait after a visit that did not pay.
    """

    def first(self) -> tuple[int, int]:
        """(wait, patience) of a level that has made no visit yet."""

    def after(self, patience: int, paid: bool) -> tuple[int, int]:
        """(wait, patience) after a visit that did or did not decrease the objective as fast as smoothing does."""

    def floor(self, rate: float) -> float:
        """Decrease per work unit below which a coarse solve ends, given that of the smoother above."""


@dataclass(frozen=True)
class Always:
    """A correction at every opportunity, as in the textbook."""

    def first(self) -> tuple[int, int]:
        return 0, 0

    def after(self, patience: int, paid: bool) -> tuple[int, int]:
        return 0, 0

    def floor(self, rate: float) -> float:
        return -inf


@dataclass(frozen=True)
class Earned:
    """Corrections as long as they decrease the objective faster per work unit than smoothing does.

    Each visit that does not pay is followed by a wait twice as long as the one before, and the solve on the coarsest
    grid ends when it earns less than the smoother above it did. So cycles cost little where they do not help.

    Parameters
    ----------
    patience : int
        Opportunities that pass before the first visit, and after one that did not pay; 4 was tuned on the spiral with
        N = 128.
    longest : int
        The wait doubles up to this.
    """

    patience: int = 4
    longest: int = 64

    def first(self) -> tuple[int, int]:
        return self.patience, self.patience

    def after(self, patience: int, paid: bool) -> tuple[int, int]:
        return (0, self.patience) if paid else (patience, min(2 * patience, self.longest))

    def floor(self, rate: float) -> float:
        return rate
