"""When nested iteration goes to the next finer grid."""

from __future__ import annotations

from dataclasses import dataclass, replace
from itertools import pairwise
from math import inf
from typing import Protocol

from ocp.objective.evaluation import Evaluation

__all__ = ["Measured", "Progress", "Refinement", "Scheduled", "Settled"]


@dataclass(frozen=True)
class Progress:
    """What nested iteration knows of its work on the present grid.

    Attributes
    ----------
    steps : int
        Taken on this grid.
    values : tuple of float
        The last values of its objective, four at most; the first is that on arrival.
    ratios : tuple of float
        Of the last two decreases, each to the decrease before; those of the coarser grid count, too.
    looked : (float, float) or None
        The objectives of this grid and of the next finer one at the last look.
    gap : float
        Estimated difference between these two.
    left : float or None
        The last objective of the coarser grid, where it was noted.
    """

    steps: int = 0
    values: tuple[float, ...] = ()
    ratios: tuple[float, ...] = (inf, inf)
    looked: tuple[float, float] | None = None
    gap: float = 0.0
    left: float | None = None

    def after(self, value: float) -> Progress:
        """The progress after one more step."""
        values = (*self.values, value)[-4:]
        decreases = [a - b for a, b in pairwise(values)]
        ratios = self.ratios
        if len(decreases) > 1:
            ratios = (ratios[-1], max(decreases[-1] / decreases[-2], 0.0) if decreases[-2] > 0 else inf)
        return replace(self, steps=self.steps + 1, values=values, ratios=ratios)


class Refinement(Protocol):
    """When nested iteration goes to the next finer grid."""

    def arrive(self, before: Progress, coarse: Evaluation, fine: Evaluation) -> Progress:
        """On a new grid, from evaluations on the grid left and on the new one; only what is asked for is charged."""

    def observe(self, progress: Progress, here: Evaluation, fine: Evaluation) -> tuple[Progress, bool]:
        """After a step: what is known now, and whether to refine; ``fine`` is at the prolonged control."""


@dataclass(frozen=True)
class Measured:
    """Refine when the progress on this grid is no longer real, as measured on the next finer one.

    Every few steps the objective of the finer grid is evaluated at the prolonged control, and that work is charged. It
    is time to refine when the coarse objective decreased but the finer one did not follow, or when two steps together
    decrease the objective by little against the difference between the two, which is the discretization error; where
    a refinement has shown that difference already, half of it is expected for the next, as for a scheme of first order.
    Where the last decreases shrank fast, one after the other, the next one is expected to, and is not waited for.

    Parameters
    ----------
    every : int
        Steps between two looks at the finer grid.
    follow : float
        The finer objective follows if it decreases by at least this share of the coarse decrease.
    little : float
        A decrease is little below this share of the difference between the two objectives. These three were tuned on
        the spiral, on digits and on the Van der Pol oscillator with N = 128.
    fast : float
        A decrease of at most this share of the one before is fast. Tuned on the Van der Pol oscillator, so that the
        peaks and the spiral never notice: a single fast decrease is no sign there.
    """

    every: int = 5
    follow: float = 0.5
    little: float = 0.1
    fast: float = 0.1

    def arrive(self, before: Progress, coarse: Evaluation, fine: Evaluation) -> Progress:
        value = fine.value
        return Progress(values=(value,), ratios=before.ratios, gap=0.5 * abs(value - coarse.value))

    def observe(self, progress: Progress, here: Evaluation, fine: Evaluation) -> tuple[Progress, bool]:
        progress = progress.after(here.value)
        if progress.steps % self.every or self._little(progress):
            return progress, self._little(progress)
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
    """Refine when the objective has settled on this grid, without a look at the next one.

    For problems with a stiff terminal cost: there a prolonged control misses the end, the objective of the finer grid
    jumps, and `Measured` takes the jump for the discretization error and refines far too early; a step of the smoother
    mends it. Here the discretization error is estimated by the difference from what the coarser grid settled at, of
    which half is expected for the next, as for a scheme of first order. The objective has settled when the second half
    of the steps decreased it by little: the longer a descent has lasted, the longer it has to pause.

    Parameters
    ----------
    little : float
        A decrease is little below this share of the expected difference.
    first : float
        On the first grid, where no difference is known, below this share of the objective.
    least : int
        Steps on each grid, at least. The three were tuned on the pendulum with N = 1024.
    """

    little: float = 0.1
    first: float = 1e-2
    least: int = 4

    def arrive(self, before: Progress, coarse: Evaluation, fine: Evaluation) -> Progress:
        return Progress(values=(fine.value,), left=coarse.value)

    def observe(self, progress: Progress, here: Evaluation, fine: Evaluation) -> tuple[Progress, bool]:
        values, left = (*progress.values, here.value), progress.left
        progress = replace(progress, steps=progress.steps + 1, values=values)
        little = self.first * abs(values[-1]) if left is None else 0.5 * self.little * abs(values[-1] - left)
        return progress, progress.steps >= self.least and values[len(values) // 2] - values[-1] <= little


@dataclass(frozen=True)
class Scheduled:
    """Refine after a number of steps; for mini-batches, whose noise hides what `Measured` looks for.

    Parameters
    ----------
    steps : int
        On each coarse grid.
    """

    steps: int

    def arrive(self, before: Progress, coarse: Evaluation, fine: Evaluation) -> Progress:
        return Progress()

    def observe(self, progress: Progress, here: Evaluation, fine: Evaluation) -> tuple[Progress, bool]:
        return Progress(progress.steps + 1), progress.steps + 1 >= self.steps
