"""Checkpointing schedules: which steps to remember, which to take again, which to undo."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from functools import lru_cache
from math import ceil, comb
from typing import Any, NamedTuple, Protocol, runtime_checkable

from ocp.integrators.integrator import Integrator, Invertible

__all__ = [
    "Advance",
    "Binomial",
    "Keep",
    "Needs",
    "Restore",
    "Reverse",
    "Reversible",
    "Schedule",
    "StoreAll",
    "Undo",
    "as_schedule",
]


@dataclass(frozen=True)
class Advance:
    """Take the steps from node ``first``, where the sweep is, to node ``last`` and remember nothing of them."""

    first: int
    last: int


@dataclass(frozen=True)
class Reverse:
    """Take the steps from node ``first``, where the sweep is, to node ``last``, and transpose them."""

    first: int
    last: int


@dataclass(frozen=True)
class Undo:
    """Take the steps from node ``last``, where the sweep is, back to node ``first`` by the inverse of each."""

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


#: One thing that a schedule asks for.
Action = Advance | Reverse | Undo | Keep | Restore


class Needs(NamedTuple):
    """What a schedule needs for a number of steps."""

    slots: int
    span: int  # the largest number of steps remembered at a time
    host: int = 0  # how many of the slots, the first ones, are in host memory
    inverse: bool = False  # whether the integrator has to be `Invertible`


@runtime_checkable
class Schedule(Protocol):
    """What to do on the way to the final time and back. The first `Reverse` ends at the last node."""

    def needs(self, steps: int) -> Needs:
        """What it needs for this number of steps."""

    def actions(self, steps: int) -> Iterator[Action]:
        """The actions in order, beginning with the state at node 0."""


def as_schedule(schedule: Any, integrator: Integrator) -> Schedule:
    """The schedule itself.

    Raises
    ------
    TypeError
        If it is not a schedule, or if the integrator cannot follow it.
    """
    if isinstance(schedule, type) or not isinstance(schedule, Schedule):
        raise TypeError(f"schedule: expected StoreAll(), Binomial(slots) or Reversible(), got {schedule!r}")
    if schedule.needs(1).inverse and not isinstance(integrator, Invertible):
        raise TypeError(
            'integrator: expected one whose steps can be undone, such as "verlet", for the schedule '
            f"{type(schedule).__name__}, got {integrator.name}, which has no method inverse"
        )
    return schedule


@dataclass(frozen=True)
class StoreAll:
    """Remember all steps.

    Examples
    --------
    >>> list(StoreAll().actions(8))
    [Reverse(first=0, last=8)]
    """

    def needs(self, steps: int) -> Needs:
        return Needs(0, steps)

    def actions(self, steps: int) -> Iterator[Action]:
        yield Reverse(0, steps)


@dataclass(frozen=True)
class Binomial:
    """Keep a fixed number of states and take the steps between them again: binomial checkpointing.

    No schedule with as many slots takes fewer steps: Griewank & Walther (2000), "Algorithm 799: revolve". With r the
    least number such that N <= (s + r choose s), no step is taken more than r + 1 times. If blocks of steps are
    remembered, the same holds for the ceil(N / block) blocks in place of the steps.

    Parameters
    ----------
    slots : int
        s, including the one for the initial state.
    block : int
        How many steps are remembered at a time; larger blocks are faster and need more memory.
    host : int
        How many of the slots, those that wait longest, are in host memory, for sweeps on a device; copies overlap with
        the steps that follow.

    Raises
    ------
    ValueError
        If ``slots`` or ``block`` is less than 1, or if ``host`` is not between 0 and ``slots``.

    Examples
    --------
    >>> Binomial(slots=10).extra_steps(1000), Binomial(slots=10, block=50).extra_steps(1000)
    (3636, 1400)
    >>> list(Binomial(slots=1).actions(2))  # doctest: +NORMALIZE_WHITESPACE
    [Keep(node=0, slot=0), Advance(first=0, last=1), Reverse(first=1, last=2),
     Restore(node=0, slot=0), Reverse(first=0, last=1)]
    """

    slots: int
    block: int = 1
    host: int = 0

    def __post_init__(self) -> None:
        _at_least_one(slots=self.slots, block=self.block)
        if not isinstance(self.host, int) or not 0 <= self.host <= self.slots:
            raise ValueError(f"host: expected an integer between 0 and the {self.slots} slots, got {self.host!r}")

    def needs(self, steps: int) -> Needs:
        slots = min(self.slots, ceil(steps / self.block))
        return Needs(slots, min(self.block, steps), min(self.host, slots))

    def extra_steps(self, steps: int) -> int:
        """Steps taken beyond one sweep forward: r N - (s + r choose r - 1), equation (2) of Griewank & Walther.

        For blocks, times their size: the last one, which may be shorter, is taken once.
        """
        blocks = ceil(steps / self.block)
        r = _repetitions(blocks, self.slots)
        return self.block * (r * blocks - _reach(self.slots + 1, r - 1))

    def actions(self, steps: int) -> Iterator[Action]:
        nodes = [*range(0, steps, self.block), steps]
        kept = [0]
        yield Keep(0, 0)
        for last in range(len(nodes) - 1, 0, -1):
            begin = kept[-1]
            while last - begin > 1 and len(kept) < self.slots:
                after = begin + _first_part(last - begin, self.slots - len(kept) + 1)
                yield Advance(nodes[begin], nodes[after])
                yield Keep(nodes[after], len(kept))
                kept.append(after)
                begin = after
            if last - begin > 1:
                yield Advance(nodes[begin], nodes[last - 1])
            yield Reverse(nodes[last - 1], nodes[last])
            if kept[-1] == last - 1:
                kept.pop()
            if kept:
                yield Restore(nodes[kept[-1]], len(kept) - 1)


@dataclass(frozen=True)
class Reversible:
    """Undo steps on the way back instead of storing states; for `Invertible` integrators such as `Verlet`.

    A block of steps is undone, then taken again from the state at its beginning, to be remembered. So each step is
    undone once and taken twice, and the memory does not depend on the number of steps. Undone states differ from the
    original ones by rounding errors, which grow with the number of steps undone in a row, exponentially if nearby
    trajectories diverge; `drift` measures them, and anchors bound them, at the cost of one state each. Gomez, Ren,
    Urtasun & Grosse (2017), "The reversible residual network", treat layers this way.

    Parameters
    ----------
    every : int, optional
        Keep an anchor, the state of the way forward, every ``every`` steps; by default only the initial state.
    block : int
        How many steps are remembered at a time.

    Raises
    ------
    ValueError
        If one of them is not an integer of at least 1.

    Examples
    --------
    >>> list(Reversible(block=2).actions(4))  # doctest: +NORMALIZE_WHITESPACE
    [Keep(node=0, slot=0), Advance(first=0, last=2), Keep(node=2, slot=1), Reverse(first=2, last=4),
     Restore(node=0, slot=0), Reverse(first=0, last=2)]
    >>> Reversible().needs(1000).slots, Reversible(every=100).needs(1000).slots
    (2, 11)
    """

    every: int | None = None
    block: int = 64

    def __post_init__(self) -> None:
        _at_least_one(every=1 if self.every is None else self.every, block=self.block)

    def _anchors(self, steps: int) -> range:
        return range(0, steps, self.every or steps)

    def needs(self, steps: int) -> Needs:
        return Needs(len(self._anchors(steps)) + 1, min(self.block, steps), inverse=True)

    def actions(self, steps: int) -> Iterator[Action]:
        # A slot for each anchor, in the order of time, and a spare one for the state at which the last block began.
        anchors = self._anchors(steps)
        spare = len(anchors)
        for slot, node in enumerate(anchors):
            yield Keep(node, slot)
            if slot + 1 < spare:
                yield Advance(node, anchors[slot + 1])
        for slot, anchor in reversed(list(enumerate(anchors))):
            end = min(anchor + anchors.step, steps)
            for first in reversed(range(anchor, end, self.block)):
                last = min(first + self.block, end)
                if last == steps:  # the way forward is not over yet
                    if first > anchor:
                        yield Advance(anchor, first)
                elif first == anchor:
                    yield Restore(anchor, slot)
                else:
                    yield Restore(last, slot + 1 if last == end else spare)
                    yield Undo(first, last)
                if first > anchor:
                    yield Keep(first, spare)
                yield Reverse(first, last)


def _at_least_one(**numbers: int) -> None:
    for name, number in numbers.items():
        if isinstance(number, bool) or not isinstance(number, int) or number < 1:
            raise ValueError(f"{name}: expected an integer >= 1, got {number!r}")


def _reach(slots: int, repetitions: int) -> int:
    """How many steps can be reversed with this many slots if none is repeated more often than this."""
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
