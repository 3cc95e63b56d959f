"""When a cycle visits the coarser grids."""

from __future__ import annotations

from dataclasses import dataclass
from math import inf
from typing import ClassVar, Protocol

__all__ = ["Always", "Earned", "Visits"]


class Visits(Protocol):
    """When a level asks the coarser ones for a correction, and how long those may work on it.

    A level lets ``wait`` opportunities pass before its next visit; ``patience`` is the wait after one that did not pay.
    """

    @property
    def patience(self) -> int:
        """The first wait, and the first patience."""

    def after(self, patience: int, paid: bool) -> tuple[int, int]:
        """(wait, patience) after a visit; it paid if it decreased the objective as fast as smoothing does."""

    def floor(self, rate: float) -> float:
        """Decrease per work unit below which a coarse solve ends, given that of the smoother above."""


@dataclass(frozen=True)
class Always:
    """A correction at every opportunity, as in the textbook."""

    patience: ClassVar[int] = 0

    def after(self, patience: int, paid: bool) -> tuple[int, int]:
        return 0, 0

    def floor(self, rate: float) -> float:
        return -inf


@dataclass(frozen=True)
class Earned:
    """Corrections as long as they decrease the objective as fast per work unit as smoothing does.

    The first visit waits for ``patience`` opportunities (4 was tuned on the spiral with N = 128). So does the next one
    after a visit that did not pay, and then the wait doubles, up to ``longest``. The solve on the coarsest grid ends
    when it earns less than the smoother above it did. So cycles cost little where they do not help.
    """

    patience: int = 4
    longest: int = 64

    def after(self, patience: int, paid: bool) -> tuple[int, int]:
        return (0, self.patience) if paid else (patience, min(2 * patience, self.longest))

    def floor(self, rate: float) -> float:
        return rate
