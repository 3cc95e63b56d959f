"""The processes that share the work: one, or several that each sweep their share of the samples."""

from __future__ import annotations

import os
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Protocol

import torch
import torch.distributed as dist
from torch import Tensor

__all__ = ["SERIAL", "Group", "Processes", "Serial", "launched"]


class Processes(Protocol):
    """Processes that run the same program, each on its part of the samples.

    All of them make the same calls in the same order and get the same answers, so they decide alike.
    """

    @property
    def rank(self) -> int:
        """The number of this process; process 0 writes and prints."""

    @property
    def size(self) -> int:
        """The number of processes."""

    def weighted_sum(self, share: float, *tensors: Tensor) -> tuple[Tensor, ...]:
        """The sum of each tensor over the processes, weighted by their shares, in one exchange."""

    def maximum(self, *numbers: float) -> tuple[float, ...]:
        """The maximum of each number over the processes."""

    def broadcast(self, data: bytes) -> bytes:
        """The data of process 0, on every process."""


@dataclass(frozen=True)
class Serial:
    """One process."""

    rank: int = 0
    size: int = 1

    def weighted_sum(self, share: float, *tensors: Tensor) -> tuple[Tensor, ...]:
        return tensors

    def maximum(self, *numbers: float) -> tuple[float, ...]:
        return numbers

    def broadcast(self, data: bytes) -> bytes:
        return data


#: A single process, without exchanges.
SERIAL = Serial()


@dataclass(frozen=True)
class Group:
    """The default group of ``torch.distributed``; exchanges raise RuntimeError if another process has ended."""

    @property
    def rank(self) -> int:
        return dist.get_rank()

    @property
    def size(self) -> int:
        return dist.get_world_size()

    def weighted_sum(self, share: float, *tensors: Tensor) -> tuple[Tensor, ...]:
        flat = torch.cat([t.reshape(-1) for t in tensors]).mul_(share)
        with _exchange():
            dist.all_reduce(flat)
        parts = flat.split_with_sizes([t.numel() for t in tensors])
        return tuple(part.reshape(t.shape) for part, t in zip(parts, tensors, strict=True))

    def maximum(self, *numbers: float) -> tuple[float, ...]:
        values = torch.tensor(numbers, dtype=torch.float64)
        with _exchange():
            dist.all_reduce(values, dist.ReduceOp.MAX)
        return tuple(values.tolist())

    def broadcast(self, data: bytes) -> bytes:
        message = [data]
        with _exchange():
            dist.broadcast_object_list(message, device=torch.device("cpu"))
        return message[0]


@contextmanager
def _exchange() -> Iterator[None]:
    """Explain what it means when an exchange fails."""
    try:
        yield
    except RuntimeError as error:
        raise RuntimeError(
            "processes: expected an answer from all, but one has ended or cannot be reached; "
            f"the last checkpoint is whole and can be resumed ({error})"
        ) from error


@contextmanager
def launched() -> Iterator[Processes]:
    """The processes that a launcher such as ``torchrun`` has started; a single one without a launcher.

    Gloo exchanges tensors on the CPU and NCCL those on a GPU; each process takes the GPU of its local rank.
    """
    if int(os.environ.get("WORLD_SIZE", "1")) <= 1:
        yield SERIAL
        return
    cuda = torch.cuda.is_available()
    if cuda:
        torch.cuda.set_device(int(os.environ.get("LOCAL_RANK", "0")))
    dist.init_process_group("cpu:gloo,cuda:nccl" if cuda else "gloo")
    try:
        yield Group()
    finally:
        dist.destroy_process_group()
