"""A filter: trial points are acceptable if they improve infeasibility or merit over all that it holds.

Wächter & Biegler (2006), "On the implementation of an interior-point filter line-search algorithm for large-scale
nonlinear programming", section 2.3, with its constants. It sees two numbers and a slope, nothing of the problem.
"""

from __future__ import annotations

from dataclasses import dataclass, replace

__all__ = ["Filter", "Measure"]

GAMMA_THETA, GAMMA_PHI = 1e-5, 1e-8
ETA, POWER_THETA, POWER_PHI = 1e-4, 1.1, 2.3


@dataclass(frozen=True)
class Measure:
    """Infeasibility theta and merit phi of a point."""

    theta: float
    phi: float


@dataclass(frozen=True)
class Filter:
    """Pairs that no new point may be worse than in both respects.

    Attributes
    ----------
    most : float
        The largest infeasibility allowed.
    small : float
        Below this infeasibility a sufficient decrease of the merit may be asked for.
    noise : float
        What rounding may change the merit by, relative to its size.
    entries : tuple of pairs
    """

    most: float
    small: float
    noise: float
    entries: tuple[tuple[float, float], ...] = ()

    def emptied(self) -> Filter:
        """Without entries, as for a new merit function."""
        return replace(self, entries=())

    def extended(self, start: Measure) -> Filter:
        """With the surroundings of a point, so that no later one returns there."""
        entry = ((1 - GAMMA_THETA) * start.theta, start.phi - GAMMA_PHI * start.theta)
        return replace(self, entries=(*self.entries, entry))

    def descends(self, start: Measure, slope: float, step: float) -> bool:
        """Whether the merit, along a slope, is expected to fall enough to be judged by itself."""
        return slope < 0 and step * (-slope) ** POWER_PHI > start.theta**POWER_THETA

    def decreased(self, start: Measure, slope: float, step: float, trial: Measure) -> bool:
        """Armijo's condition."""
        return trial.phi <= start.phi + ETA * step * slope + self._rounding(start)

    def accepts(self, start: Measure, slope: float, step: float, trial: Measure) -> bool:
        """Whether a trial point is acceptable, after a step from ``start``."""
        rounding = self._rounding(start)
        if not (trial.theta <= self.most and trial.phi < float("inf")):
            return False
        if any(trial.theta >= theta and trial.phi - rounding >= phi for theta, phi in self.entries):
            return False
        if start.theta <= self.small and self.descends(start, slope, step):
            return self.decreased(start, slope, step, trial)
        return trial.theta <= (1 - GAMMA_THETA) * start.theta > 0 or (
            trial.phi - rounding <= start.phi - GAMMA_PHI * start.theta
        )

    def after(self, start: Measure, slope: float, step: float, trial: Measure) -> Filter:
        """The filter after a step, extended unless the merit decreased as its slope let expect."""
        kept = self.descends(start, slope, step) and self.decreased(start, slope, step, trial)
        return self if kept else self.extended(start)

    def _rounding(self, start: Measure) -> float:
        return self.noise * abs(start.phi)
