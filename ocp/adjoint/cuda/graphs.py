"""Sweeps as CUDA graphs: what they launch on a device, recorded once and replayed without Python."""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from typing import Any

import torch
from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves

from ocp.adjoint import sweeps
from ocp.adjoint.discretization import Discretization

__all__ = ["Graphs", "Replayed", "capture", "suits", "waits"]


def suits(record: Any, control: Tensor) -> bool:
    """Whether sweeps with this record may become graphs: on a device, with storage that is planned once."""
    return control.is_cuda and hasattr(record, "took")


class Graphs:
    """The sweeps of one discretization, from a control that is put where the graphs look for it.

    Parameters
    ----------
    discretization : Discretization
    record : Record
        One that has ``took`` and ``returned``, by which a replay tells it what happened to its storage.
    control : Tensor
        Any, for its shape, type and device.
    """

    def __init__(self, discretization: Discretization, record: Any, control: Tensor):
        self.discretization, self.record, self._control = discretization, record, torch.empty_like(control)
        out = torch.empty_like(control)
        self._forward = Replayed(partial(sweeps.forward, discretization, self._control, record))
        self._adjoint = Replayed(partial(sweeps.adjoint, discretization, self._control, record, None, out))

    def forward(self, control: Tensor) -> Tensor:
        """As `sweeps.forward`."""
        self._control.copy_(control)
        with torch.cuda.device_of(control):
            value = self._forward().clone()
        self.record.took(self.discretization.problem, 0, self.discretization.space.path(self._control))
        return value

    def adjoint(self, control: Tensor) -> Tensor:
        """As `sweeps.adjoint`, for the control of the last `forward`."""
        self._control.copy_(control)
        with torch.cuda.device_of(control):
            derivative = self._adjoint().clone()
        self.record.returned()
        return derivative


class Replayed:
    """A function without arguments, whose tensors stay where they are, as a graph from its third call on.

    At the first call libraries set themselves up, at the second it is watched. Where it waits for its own numbers, or
    where the capture fails, it stays what it is.

    Parameters
    ----------
    function : callable
        Returns a tensor, which later calls may overwrite.
    """

    def __init__(self, function: Callable[[], Tensor]):
        self.function, self._call = function, self._first

    def __call__(self) -> Tensor:
        return self._call()

    def _first(self) -> Tensor:
        self._call = self._watched
        return self.function()

    def _watched(self) -> Tensor:
        result, waited = waits(self.function)
        self._call = self.function if waited else self._captured
        return result

    def _captured(self) -> Tensor:
        try:
            self._replay, self._result = capture(self.function)
        except RuntimeError:  # nothing was computed, so nothing is lost
            self._call = self.function
            return self.function()
        self._call = self._replayed
        return self._replayed()

    def _replayed(self) -> Tensor:
        self._replay()
        return self._result


def capture(function: Callable[[], Tensor]) -> tuple[Callable[[], None], Tensor]:
    """What a function launches on the current device, as something to call, and its result, which that overwrites."""
    graph = torch.cuda.CUDAGraph()
    # The outer context: a capture that fails does not leave its stream by itself.
    with torch.cuda.stream(torch.cuda.current_stream()), torch.cuda.graph(graph, capture_error_mode="thread_local"):
        result = function()
    return graph.replay, result


def waits(function: Callable[[], Tensor]) -> tuple[Tensor, bool]:
    """The result of a function, and whether a number of a tensor decided what it did, or left its device."""
    with _Watch() as watch:
        result = function()
    return result, watch.waited


class _Watch(TorchDispatchMode):
    """Sees the operations below autograd."""

    #: What torch calls operations whose result, or its shape, the host has to know.
    ASKING = frozenset((torch.Tag.data_dependent_output, torch.Tag.dynamic_output_shape))
    waited = False

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        result = func(*args, **(kwargs or {}))
        devices = {thing.device for thing in tree_leaves((args, kwargs, result)) if isinstance(thing, Tensor)}
        self.waited = self.waited or len(devices) > 1 or not self.ASKING.isdisjoint(func.tags)
        return result
