"""Which steps to remember on the way to the end, and which to take again: plans as streams of actions."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from functools import lru_cache
from math import comb
from typing import Protocol, runtime_checkable

__all__ = ["Advance", "Binomial", "Keep", "Memory", "Restore", "Reverse", "StoreAll", "Take"]


@dataclass(frozen=True)
class Advance:
    """Take the steps from node ``first`` to node ``last`` and remember nothing of them."""

    first: int
    last: int


@dataclass(frozen=True)
class Take:
    """Take the steps from node ``first`` to node ``last`` and remember what their transposes need."""

    first: int
    last: int


@dataclass(frozen=True)
class Reverse:
    """Go back through the steps that were taken last, from node ``last`` to node ``first``."""

    first: int
    last: int


@dataclass(frozen=True)
class Keep:
    """Copy the state at ``node``, where the sweep is, to a slot."""

    node: int
    slot: int


@dataclass(frozen=True)
class Restore:
    """Go to ``node``, whose state is in a slot."""

    node: int
    slot: int


#: What a plan asks for.
Action = Advance | Take | Reverse | Keep | Restore


@runtime_checkable
class Memory(Protocol):
    """A plan for one sweep forward and one back. Its first `Take` ends at the last node."""

    def slots_for(self, steps: int) -> int:
        """How many slots are used."""

    def span(self, steps: int) -> int:
        """How many steps at most are remembered at a time."""

    def actions(self, steps: int) -> Iterator[Action]:
        """What to do, in this order, beginning with the state at node 0."""


@dataclass(frozen=True)
class StoreAll:
    """Remember all steps.

    Examples
    --------
    >>> list(StoreAll().actions(8))
    [Take(first=0, last=8), Reverse(first=0, last=8)]
    """

    def slots_for(self, steps: int) -> int:
        return 0

    def span(self, steps: int) -> int:
        return steps

    def actions(self, steps: int) -> Iterator[Action]:
        yield Take(0, steps)
        yield Reverse(0, steps)


@dataclass(frozen=True)
class Binomial:
    """Keep at most so many states and take the steps between them again: binomial checkpointing.

    No plan with as many slots takes fewer steps: Griewank & Walther (2000), "Algorithm 799: revolve". With r the
    least number such that N <= (s + r choose s), no step is taken more than r + 1 times.

    Parameters
    ----------
    slots : int
        s, the state at the start included.

    Raises
    ------
    ValueError
        If there is no slot.

    Examples
    --------
    >>> Binomial(slots=10).extra_steps(1000)
    3636
    >>> list(Binomial(slots=1).actions(2))  # doctest: +NORMALIZE_WHITESPACE
    [Keep(node=0, slot=0), Advance(first=0, last=1), Take(first=1, last=2), Reverse(first=1, last=2),
     Restore(node=0, slot=0), Take(first=0, last=1), Reverse(first=0, last=1)]
    """

    slots: int

    def __post_init__(self) -> None:
        if not isinstance(self.slots, int) or self.slots < 1:
            raise ValueError(f"slots: expected an integer >= 1, got {self.slots!r}")

    def slots_for(self, steps: int) -> int:
        return min(self.slots, steps)

    def span(self, steps: int) -> int:
        return 1

    def extra_steps(self, steps: int) -> int:
        """Steps taken beyond one sweep forward: r N - (s + r choose r - 1), equation (2) of Griewank & Walther."""
        r = _repetitions(steps, self.slots)
        return r * steps - _reach(self.slots + 1, r - 1)

    def actions(self, steps: int) -> Iterator[Action]:
        kept = [0]
        yield Keep(0, 0)
        for last in range(steps, 0, -1):
            node = kept[-1]
            while last - node > 1 and len(kept) < self.slots:
                after = node + _first_part(last - node, self.slots - len(kept) + 1)
                yield Advance(node, after)
                yield Keep(after, len(kept))
                kept.append(after)
                node = after
            if last - node > 1:
                yield Advance(node, last - 1)
            yield Take(last - 1, last)
            yield Reverse(last - 1, last)
            if kept[-1] == last - 1:
                kept.pop()
            if kept:
                yield Restore(kept[-1], len(kept) - 1)


def _reach(slots: int, repetitions: int) -> int:
    """So many steps can be reversed with so many slots if each is taken again so many times at most."""
    return comb(slots + repetitions, slots) if repetitions >= 0 else 0


def _repetitions(steps: int, slots: int) -> int:
    """r, the least number of repetitions that suffices."""
    r = 0
    while _reach(slots, r) < steps:
        r += 1
    return r


@lru_cache(maxsize=4096)
def _first_part(steps: int, slots: int) -> int:
    """How far ahead to keep the next state: the nearest of the best places.

    What lies behind it is reversed with a slot less and r repetitions, what lies before with r - 1 repetitions.
    """
    r = _repetitions(steps, slots)
    return max(1, _reach(slots, r - 2), steps - _reach(slots - 1, r))
