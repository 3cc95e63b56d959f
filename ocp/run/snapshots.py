"""A snapshot of a run as bytes: a header with version and checksum, then what ``torch.save`` writes.

Reading one executes nothing: ``torch.load`` with ``weights_only`` and the classes of `ALLOWED`.
"""

from __future__ import annotations

import hashlib
import io
import pickle
import re
from threading import Lock
from typing import Any

import torch
from torch.serialization import get_unsafe_globals_in_checkpoint, safe_globals

from ocp.multilevel.nested import Stay
from ocp.multilevel.refinement import Progress
from ocp.multilevel.visits import Level
from ocp.optimize.augmented_lagrangian import Outer
from ocp.optimize.interior_point.filters import Filter
from ocp.optimize.interior_point.method import Memory
from ocp.optimize.method import KKT, Visit
from ocp.problem.augmented import Augmentation
from ocp.problem.constraints import Multipliers
from ocp.run.measures import Scale
from ocp.run.results import Record

__all__ = ["ALLOWED", "VERSION", "decode", "encode", "header"]

#: Of the format; files of other versions are refused.
VERSION = 4

#: What a snapshot may hold in addition to tensors, numbers, strings and containers of them.
ALLOWED = (KKT, Augmentation, Filter, Level, Memory, Multipliers, Outer, Progress, Record, Scale, Stay, Visit)

#: ``safe_globals`` extends and restores a list that all threads share.
_ALLOWING = Lock()


def encode(snapshot: Any) -> bytes:
    """A snapshot as bytes; TypeError if it holds something that could not be read again."""
    buffer = io.BytesIO()
    try:
        torch.save(snapshot, buffer)
        buffer.seek(0)
        with _ALLOWING, safe_globals(list(ALLOWED)):
            refused = get_unsafe_globals_in_checkpoint(buffer)
    except (AttributeError, pickle.PicklingError, TypeError) as error:
        refused = [str(error)]
    if refused:
        what = "a method that remembers tensors, numbers, strings and containers of them"
        raise TypeError(f"checkpoint: expected {what}, got {', '.join(map(str, refused))}")
    return header(buffer.getvalue()) + buffer.getvalue()


def decode(data: bytes, device: torch.device | str = "cpu") -> Any:
    """Inverse of `encode`; tensors that were not on the CPU come to a device. ValueError for all other data."""
    line, newline, body = data.partition(b"\n")
    found = re.fullmatch(rb"ocp (\d{1,9}) \w+", line)
    if found is None:
        raise ValueError(f"expected a checkpoint, got {len(data)} bytes of something else")
    version = int(found[1])
    if version != VERSION:
        age = "a newer" if version > VERSION else "an older"
        raise ValueError(f"expected version {VERSION}, got version {version}, written by {age} ocp")
    if line + newline != header(body):
        raise ValueError("expected a complete checkpoint, got one that was cut off or changed: its checksum is wrong")

    def place(storage: Any, location: str) -> Any:
        return storage if location == "cpu" else storage.to(device=torch.device(device))

    try:
        with _ALLOWING, safe_globals(list(ALLOWED)):
            return torch.load(io.BytesIO(body), map_location=place, weights_only=True)
    except Exception as error:  # forged bytes can provoke any
        raise ValueError(f"expected what was saved, got {type(error).__name__}: {error}") from error


def header(body: bytes) -> bytes:
    """The line before what ``torch.save`` wrote."""
    return b"ocp %d %s\n" % (VERSION, hashlib.sha256(body).hexdigest().encode())
