"""When a cycle visits the coarser grids, and what it learns from each visit."""

from __future__ import annotations

from collections import Counter
from dataclasses import dataclass, replace
from math import inf, isfinite
from typing import Any, ClassVar, Protocol

from ocp.optimize.method import Visit

__all__ = ["Always", "Earned", "Level", "Notes", "Visits", "rate"]


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


@dataclass(frozen=True, eq=False)
class Level:
    """What one grid remembers between cycles."""

    smoother: Any
    radius: float
    wait: int
    patience: int
    solved: bool = False  # by the solver, whose memory takes the place of the smoother's


@dataclass
class Notes:
    """What changes during one step of a cycle: the levels by their numbers of steps, the counts and the visits."""

    levels: dict[int, Level]
    counts: Counter[str]
    visits: list[Visit]

    def waits(self, n: int, opportunities: int = 1) -> bool:
        """Whether a level lets its next opportunities pass, all of them."""
        level = self.levels[n]
        if level.wait < opportunities:
            return False
        self.levels[n] = replace(level, wait=level.wait - opportunities)
        return True

    def learn(self, visit: Visit, visits: Visits, pace: float, length: float, least: float) -> None:
        """Note a visit with a correction of some length, compared with the pace of smoothing."""
        level = self.levels[visit.steps]
        paid = visit.step > 0 and rate(visit.decrease, visit.end - visit.begin) >= pace
        wait, patience = visits.after(level.patience, paid)
        radius = max(_radius(level.radius, length, visit.step), least)
        self.levels[visit.steps] = replace(level, radius=radius, wait=wait, patience=patience)
        self.counts["corrections" if visit.step > 0 else "refused"] += 1
        self.visits.append(visit)


def rate(decrease: float, work: float) -> float:
    """Decrease of the objective per work unit."""
    return decrease / max(work, 1e-12)


def _radius(radius: float, length: float, step: float) -> float:
    """The next radius, with the usual factors of trust regions: Conn, Gould & Toint (2000), section 6.1."""
    if not isfinite(length):
        return 0.25 * radius
    if step == 1.0:
        return 2 * radius if length > 0.9 * radius else radius
    return max(step, 0.25) * min(length, radius) if length > 0 else radius
