"""Large tensors in recycled memory."""

from __future__ import annotations

import weakref

import torch
from torch import Tensor

__all__ = ["Pages"]

#: The size from which malloc returns freed memory to the system, and asks for fresh pages the next time: the largest
#: value to which glibc lets its threshold grow (``mallopt``, M_MMAP_THRESHOLD).
RECYCLED_BYTES = 2**25


class Pages:
    """Allocates tensors; once a large one is no longer referenced, the next one takes its memory.

    The system clears a fresh page when it is first touched, which costs more than a pass over the memory: a fourth of a
    gradient for dense layers of width 1024 and 64 samples. Devices have allocators that keep their memory.
    """

    def __init__(self) -> None:
        self._free: list[Tensor] = []

    def empty_like(self, tensor: Tensor) -> Tensor:
        """An uninitialized tensor of the shape, type and device of another one."""
        size = tensor.nbytes
        if tensor.device.type != "cpu" or size < RECYCLED_BYTES:
            return torch.empty_like(tensor)
        memory = next((free for free in self._free if free.nbytes == size), None)
        self._free.clear()  # keep no more than is in use
        memory = torch.empty(size, dtype=torch.uint8) if memory is None else memory
        array = memory.numpy()  # lives as long as any tensor that is made of it
        weakref.finalize(array, self._free.append, memory).atexit = False
        return torch.from_numpy(array).view(tensor.dtype).view(tensor.shape)
