"""Mini-batches as sets of sample numbers."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

import torch
from torch import Tensor

__all__ = ["Batches"]


@dataclass(frozen=True)
class Batches:
    """Batches drawn without replacement, shuffled anew in every epoch.

    Parameters
    ----------
    size : int
        Samples in a batch; the last batch of an epoch may be smaller.
    seed : int
        The order is a function of the seed alone.

    Examples
    --------
    >>> stream = Batches(size=2, seed=0).stream(5)
    >>> sorted(int(i) for _ in range(3) for i in next(stream))
    [0, 1, 2, 3, 4]
    """

    size: int
    seed: int = 0

    def __post_init__(self) -> None:
        if not isinstance(self.size, int) or self.size < 1:
            raise ValueError(f"size: expected an integer >= 1, got {self.size!r}")

    def per_epoch(self, samples: int) -> int:
        """Number of batches in an epoch."""
        return -(-samples // self.size)

    def stream(self, samples: int, drawn: int = 0) -> Iterator[Tensor]:
        """Batches of sample numbers, without end, after those that were ``drawn`` before."""
        generator = torch.Generator().manual_seed(self.seed)
        epochs, drawn = divmod(drawn, self.per_epoch(samples))
        for _ in range(epochs):
            torch.randperm(samples, generator=generator)
        while True:
            yield from torch.randperm(samples, generator=generator).split(self.size)[drawn:]
            drawn = 0
