"""The processes that share the work: one, or several that each sweep their part of the samples."""

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
    """Processes that run the same program on parts of the same samples.

    All of them make the same calls in the same order, and get the same answers: so they decide alike.
    """

    @property
    def rank(self) -> int:
        """The number of this process; 0 is the one that writes and prints."""

    @property
    def size(self) -> int:
        """How many there are."""

    def weighted_sum(self, share: float, *tensors: Tensor) -> tuple[Tensor, ...]:
        """Sums over the processes of each tensor times the process's share, in one exchange."""

    def maximum(self, *numbers: float) -> tuple[float, ...]:
        """The maximum of each number over the processes."""

    def broadcast(self, data: bytes) -> bytes:
        """The data of the first process, on every process."""


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


#: One process, without exchanges.
SERIAL = Serial()


@dataclass(frozen=True)
class Group:
    """The processes of the initialized default group of ``torch.distributed``.

    Raises
    ------
    RuntimeError
        In an exchange, if another process has ended.
    """

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
        length = torch.tensor([len(data)])
        with _exchange():
            dist.broadcast(length, 0)
        message = torch.zeros(int(length), dtype=torch.uint8)
        if self.rank == 0 and data:
            message = torch.frombuffer(bytearray(data), dtype=torch.uint8)
        with _exchange():
            dist.broadcast(message, 0)  # of nothing, too, so that all make the same calls
        return message.numpy().tobytes()


@contextmanager
def _exchange() -> Iterator[None]:
    """Say what it means when an exchange fails."""
    try:
        yield
    except RuntimeError as error:
        raise RuntimeError(
            "processes: expected an answer from all, but one has ended or cannot be reached; "
            f"the last checkpoint is whole and can be resumed ({error})"
        ) from error


@contextmanager
def launched() -> Iterator[Processes]:
    """The processes that a launcher such as ``torchrun`` has started; a single process without a launcher.

    Tensors on the CPU are exchanged by gloo, those on a GPU by NCCL; each process takes the GPU of its local rank.
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
