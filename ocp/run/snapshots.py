"""A snapshot of a run as bytes: a header with version and checksum, then what ``torch.save`` writes.

Reading one executes nothing: ``torch.load`` with ``weights_only`` and the classes of `ALLOWED`.
"""

from __future__ import annotations

import hashlib
import io
import json
import pickle
from typing import Any

import torch
from torch.serialization import get_unsafe_globals_in_checkpoint, safe_globals

from ocp.multilevel.cycle import Level
from ocp.multilevel.nested import Stay
from ocp.multilevel.refinement import Progress
from ocp.optimize.method import Visit
from ocp.run.results import Record
from ocp.run.run import Best

__all__ = ["ALLOWED", "VERSION", "decode", "encode"]

#: Of the format; files of other versions are refused.
VERSION = 2

#: What a snapshot may hold besides tensors, numbers, strings and containers of them.
ALLOWED = (Best, Level, Progress, Record, Stay, Visit)


def encode(snapshot: Any) -> bytes:
    """A snapshot as bytes.

    Raises
    ------
    TypeError
        If there is something in it that could not be read again.
    """
    buffer = io.BytesIO()
    try:
        torch.save(snapshot, buffer)
        buffer.seek(0)
        with safe_globals(list(ALLOWED)):
            refused = get_unsafe_globals_in_checkpoint(buffer)
    except (AttributeError, pickle.PicklingError, TypeError) as error:
        refused = [str(error)]
    if refused:
        raise TypeError(
            "checkpoint: expected a method that remembers tensors, numbers, strings and containers of them, "
            f"got {', '.join(map(str, refused))}"
        )
    body = buffer.getvalue()
    return json.dumps({"format": "ocp", "version": VERSION, "checksum": _checksum(body)}).encode() + b"\n" + body


def decode(data: bytes, device: torch.device | str = "cpu") -> Any:
    """Inverse of `encode`.

    Parameters
    ----------
    data : bytes
    device : torch.device or str
        For tensors that were not on the CPU.

    Raises
    ------
    ValueError
        If the data are incomplete, have been changed, come from another version, or hold something unknown.
    """
    line, _, body = data.partition(b"\n")
    try:
        head = json.loads(line)
    except (ValueError, RecursionError):
        head = None
    if not isinstance(head, dict) or head.get("format") != "ocp" or not isinstance(head.get("version"), int):
        raise ValueError(f"expected a checkpoint, got {len(data)} bytes of something else")
    if head["version"] != VERSION:
        age = "a newer" if head["version"] > VERSION else "an older"
        raise ValueError(f"expected version {VERSION}, got version {head['version']}, written by {age} ocp")
    if head.get("checksum") != _checksum(body):
        raise ValueError("expected a complete checkpoint, got one that was cut off or changed: its checksum is wrong")

    def place(storage: Any, location: str) -> Any:
        return storage if location == "cpu" else storage.to(device=torch.device(device))

    try:
        with safe_globals(list(ALLOWED)):
            return torch.load(io.BytesIO(body), map_location=place, weights_only=True)
    except Exception as error:  # whatever forged bytes provoke
        raise ValueError(f"expected what was saved, got {type(error).__name__}: {error}") from error


def _checksum(body: bytes) -> str:
    return hashlib.sha256(b"%d\n" % VERSION + body).hexdigest()
