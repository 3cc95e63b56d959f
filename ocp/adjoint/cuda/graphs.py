"""Steps as CUDA graphs: what they launch on a device is recorded once and replayed without Python."""

from __future__ import annotations

from collections.abc import Callable
from contextlib import suppress
from typing import Any, Protocol, cast

import torch
from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves

from ocp.adjoint.tapes import Tape
from ocp.problem.protocols import StateEquation

__all__ = ["Graphed", "Replayable", "Replayed", "capture", "waits"]


class Replayable(Tape, Protocol):
    """A tape with storage that is allocated once, so that its operations can be replayed."""

    def took(self, problem: StateEquation, first: int, path: Tensor) -> None:
        """Set what `forward` sets besides its storage."""

    def returned(self) -> None:
        """Set what `backward` sets besides its storage."""


class Graphed:
    """A `Tape` that replays the steps of another one as CUDA graphs, once it has taken them twice.

    States, controls and costates are copied to where the graphs read them. Graphs serve one problem: with other
    dynamics or another running cost, as a batch may have, recording starts over.
    """

    def __init__(self, tape: Replayable):
        self.tape = tape
        self._pieces: tuple[object, object] = None, None
        self._shapes: tuple[object, ...] = ()

    @property
    def end(self) -> Tensor:
        return self.tape.end

    @property
    def states(self) -> Tensor:
        return self.tape.states

    def forward(self, problem: StateEquation, first: int, x: Tensor, path: Tensor) -> Tensor | None:
        pieces, shapes = (problem.dynamics, problem.running_cost), (first, x.shape, path.shape)
        if shapes != self._shapes or any(a is not b for a, b in zip(pieces, self._pieces, strict=True)):
            self._pieces, self._shapes = pieces, shapes
            self._x, self._p, self._path, self._derivative = (torch.empty_like(a) for a in (x, x, path, path))
            self._forward = Replayed(lambda: self.tape.forward(problem, first, self._x, self._path))
            self._backward = Replayed(lambda: self.tape.backward(self._p, self._derivative))
        self._x.copy_(x)
        self._path.copy_(path)
        with torch.cuda.device_of(x):
            cost = self._forward()
        self.tape.took(problem, first, self._path)
        return None if cost is None else cost.clone()

    def backward(self, p: Tensor, derivative: Tensor) -> Tensor:
        self._p.copy_(p)
        with torch.cuda.device_of(p):
            p = cast(Tensor, self._backward())
        self.tape.returned()
        derivative.copy_(self._derivative)
        return p.clone()


class Replayed:
    """A function whose tensors stay in place, as a graph from its third call on.

    The first call initializes libraries; the second is watched. If the function waits for numbers of its own, or if the
    capture fails, it is called as it is. Later calls may overwrite the tensor that it returns.
    """

    def __init__(self, function: Callable[[], Tensor | None]):
        self.function, self._calls, self._waited = function, 0, True
        self._replay: Callable[[], None] | None = None
        self._result: Tensor | None = None

    def __call__(self) -> Tensor | None:
        self._calls += 1
        if self._calls == 2:
            result, self._waited = waits(self.function)
            return result
        if self._calls == 3 and not self._waited:
            with suppress(RuntimeError):  # the capture failed: nothing was computed, so nothing is lost
                self._replay, self._result = capture(self.function)
        if self._replay is None:
            return self.function()
        self._replay()
        return self._result


def capture(function: Callable[[], Tensor | None]) -> tuple[Callable[[], None], Tensor | None]:
    """A call that repeats what a function launches on the current device, and its result, which the call overwrites."""
    graph = torch.cuda.CUDAGraph()
    # The outer context: a capture that fails does not leave its stream by itself.
    with torch.cuda.stream(torch.cuda.current_stream()), torch.cuda.graph(graph, capture_error_mode="thread_local"):
        result = function()
    return graph.replay, result


def waits(function: Callable[[], Tensor | None]) -> tuple[Tensor | None, bool]:
    """The result of a function, and whether it read a number of a tensor or moved one to another device."""
    with _Watch() as watch:  # type: ignore[no-untyped-call]
        result = function()
    return result, watch.waited


class _Watch(TorchDispatchMode):
    """Sees the operations below autograd."""

    #: Torch's tags for operations whose result, or its shape, the host has to know.
    ASKING = frozenset((torch.Tag.data_dependent_output, torch.Tag.dynamic_output_shape))
    waited = False

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        result = func(*args, **(kwargs or {}))
        devices = {thing.device for thing in tree_leaves((args, kwargs, result)) if isinstance(thing, Tensor)}
        self.waited = self.waited or len(devices) > 1 or not self.ASKING.isdisjoint(func.tags)
        return result
