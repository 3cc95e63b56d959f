"""The count of work, in gradients on the finest grid and all samples."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass

from torch import Tensor

__all__ = ["FORWARD_SHARE", "Work"]

#: Share of a forward sweep in one work unit; the adjoint sweep has the rest. A convention: a step costs one product
#: with its weights forward and two backward (by state and by control), Griewank & Walther (2008), "Evaluating
#: Derivatives", chapter 3. Steps that an adjoint sweep repeats are not charged, so forward sweeps are charged in full.
FORWARD_SHARE = 1 / 3


@dataclass(eq=False)
class Work:
    """A running count of work, shared by all grids and batches of one solve.

    One of the ``units`` is a forward and an adjoint sweep over all ``steps`` of the finest grid and all ``samples``.
    ``failures`` counts values that were not finite; ``failed`` is the last control with such a value.
    """

    steps: int
    samples: int
    units: float = 0.0
    failures: int = 0
    failed: Tensor | None = None

    def charge(self, share: float, steps: int, samples: int) -> None:
        """Add a share of a gradient on some steps and samples."""
        self.units += share * (steps / self.steps) * (samples / self.samples)

    def fail(self, control: Tensor) -> None:
        """Note a control whose value is not finite."""
        self.failures, self.failed = self.failures + 1, control

    @contextmanager
    def looking(self) -> Iterator[None]:
        """Count nothing while this context is open."""
        counted = self.units, self.failures, self.failed
        try:
            yield
        finally:
            self.units, self.failures, self.failed = counted
