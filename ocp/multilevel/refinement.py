"""When nested iteration moves to the next finer grid."""

from __future__ import annotations

from dataclasses import dataclass, replace
from math import inf
from typing import Protocol

from ocp.objective.evaluation import Evaluation

__all__ = ["Measured", "Progress", "Refinement", "Scheduled", "Settled"]


@dataclass(frozen=True)
class Progress:
    """What nested iteration knows of its work on the present grid."""

    steps: int = 0
    values: tuple[float, ...] = ()  # of the objective, on arrival and after each step
    ratios: tuple[float, ...] = (inf, inf)  # of the last two decreases to the ones before, also on the coarser grid
    looked: tuple[float, float] | None = None  # the objectives of this grid and of the next when last compared
    gap: float = 0.0  # estimated difference between these two
    left: float | None = None  # the last objective of the coarser grid

    def after(self, value: float) -> Progress:
        """The progress after one more step."""
        values, ratios = (*self.values, value), self.ratios
        if len(values) > 2:
            before, last = values[-3] - values[-2], values[-2] - values[-1]
            ratios = (ratios[-1], max(last / before, 0.0) if before > 0 else inf)
        return replace(self, steps=self.steps + 1, values=values, ratios=ratios)


class Refinement(Protocol):
    """When nested iteration moves to the next finer grid. Values of evaluations are charged when asked for."""

    def arrive(self, before: Progress, coarse: Evaluation, fine: Evaluation) -> Progress:
        """On a new grid, from evaluations on the coarser grid and on the new one."""

    def observe(self, progress: Progress, here: Evaluation, fine: Evaluation) -> tuple[Progress, bool]:
        """After a step: the new progress, and whether to refine; ``fine`` is at the prolonged control."""


@dataclass(frozen=True)
class Measured:
    """Refine when the progress on this grid is no longer real, as measured on the next finer one.

    Every few steps the objective of the finer grid is evaluated at the prolonged control, and that work is charged. It
    is time to refine when the coarse objective decreased but the finer one did not follow, or when two steps together
    decrease the objective by little compared with the difference between the two, the discretization error. Where a
    refinement has shown that difference, half of it is expected on the next grid, as for a scheme of first order. Where
    the last two decreases were both fast, the next one is predicted instead of waited for.

    Parameters
    ----------
    every : int
        Steps between two evaluations on the finer grid.
    follow, little : float
        The finer objective follows if it decreases by at least the first share of the coarse decrease; a decrease is
        little below the second share of the difference. With ``every``, tuned on the spiral, on digits and on the Van
        der Pol oscillator with N = 128.
    fast : float
        A decrease of at most this share of the one before is fast. Tuned on the Van der Pol oscillator such that it
        changes nothing on the peaks and the spiral.
    """

    every: int = 5
    follow: float = 0.5
    little: float = 0.1
    fast: float = 0.1

    def arrive(self, before: Progress, coarse: Evaluation, fine: Evaluation) -> Progress:
        value = fine.value
        return Progress(values=(value,), ratios=before.ratios, gap=0.5 * abs(value - coarse.value))

    def observe(self, progress: Progress, here: Evaluation, fine: Evaluation) -> tuple[Progress, bool]:
        progress, followed = progress.after(here.value), True
        if progress.steps % self.every == 0 and not self._little(progress):
            before, now = progress.looked, (here.value, fine.value)
            progress = replace(progress, looked=now, gap=abs(now[1] - now[0]))
            followed = before is None or before[1] - now[1] > self.follow * (before[0] - now[0])
        return progress, not followed or self._little(progress)

    def _little(self, progress: Progress) -> bool:
        """Whether the last two steps, or the next one where decreases shrink fast, do little against the gap."""
        values, little = progress.values, self.little * progress.gap
        two = len(values) > 2 and values[-3] - values[-1] <= little
        fast = len(values) > 1 and max(progress.ratios) <= self.fast
        return two or (fast and self.fast * (values[-2] - values[-1]) <= little)


@dataclass(frozen=True)
class Settled:
    """Refine when the objective has settled on this grid, without an evaluation on the next one.

    For stiff terminal costs: there a prolonged control misses the end, the objective of the finer grid jumps, and
    `Measured` takes for the discretization error what one step of the smoother mends, and refines far too early. Here
    that error is half the difference from the last objective of the coarser grid, as for a scheme of first order. The
    objective has settled when the second half of the steps decreased it by little: the longer a descent has lasted, the
    longer it has to pause.

    Parameters
    ----------
    little, first : float
        A decrease is little below the first share of the discretization error; on the first grid, where that is
        unknown, below the second share of the objective.
    least : int
        Steps on each grid, at least. The three were tuned on the pendulum with N = 1024.
    """

    little: float = 0.1
    first: float = 1e-2
    least: int = 4

    def arrive(self, before: Progress, coarse: Evaluation, fine: Evaluation) -> Progress:
        return Progress(values=(fine.value,), left=coarse.value)

    def observe(self, progress: Progress, here: Evaluation, fine: Evaluation) -> tuple[Progress, bool]:
        progress = progress.after(here.value)
        values, now, left = progress.values, here.value, progress.left
        little = self.first * abs(now) if left is None else 0.5 * self.little * abs(now - left)
        return progress, progress.steps >= self.least and values[len(values) // 2] - now <= little


@dataclass(frozen=True)
class Scheduled:
    """Refine after this number of steps on each grid; for mini-batches, whose noise hides what `Measured` looks for."""

    steps: int

    def arrive(self, before: Progress, coarse: Evaluation, fine: Evaluation) -> Progress:
        return Progress()

    def observe(self, progress: Progress, here: Evaluation, fine: Evaluation) -> tuple[Progress, bool]:
        return Progress(progress.steps + 1), progress.steps + 1 >= self.steps
