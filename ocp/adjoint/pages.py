"""Large tensors that are made again and again, in memory that is there already."""

from __future__ import annotations

import weakref

import torch
from torch import Tensor

__all__ = ["Pages"]

#: Bytes from which on malloc hands memory back to the system at once, and asks for fresh pages the next time: the
#: largest value to which glibc lets its threshold grow (``mallopt``, M_MMAP_THRESHOLD).
LARGE = 2**25


class Pages:
    """Makes tensors; when nobody holds a large one any longer, the next one takes its memory.

    The system clears a fresh page when it is first touched, which costs more than a pass over the memory: a fifth of a
    gradient for dense layers of width 1024 and 64 samples. Devices have allocators of their own that keep their memory.

    Examples
    --------
    >>> pages = Pages()
    >>> pages.empty_like(torch.zeros(3)).shape
    torch.Size([3])
    """

    def __init__(self) -> None:
        self._free: list[Tensor] = []

    def empty_like(self, tensor: Tensor) -> Tensor:
        """A tensor that nobody else holds, of the shape, type and place of another one; what is in it is arbitrary."""
        size = tensor.nbytes
        if tensor.device.type != "cpu" or size < LARGE:
            return torch.empty_like(tensor)
        memory = next((free for free in self._free if free.nbytes == size), None)
        self._free.clear()  # so that no more is kept than is used
        memory = torch.empty(size, dtype=torch.uint8) if memory is None else memory
        array = memory.numpy()  # lives as long as any tensor that is made of it
        weakref.finalize(array, self._free.append, memory).atexit = False
        return torch.from_numpy(array).view(tensor.dtype).view(tensor.shape)
