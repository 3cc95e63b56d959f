"""Values as bytes: plain containers, numbers, tensors and a few known records. To read them executes nothing."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Iterator, Mapping
from dataclasses import fields, is_dataclass
from enum import Enum
from math import isfinite, prod
from typing import Any

import torch
from torch import Tensor

__all__ = ["VERSION", "decode", "encode", "tensors"]

#: Of the format; a file with a greater one is refused.
VERSION = 1

_FORMAT = "ocp"
_DTYPES = {
    str(dtype).removeprefix("torch."): dtype
    for dtype in (
        *(torch.float64, torch.float32, torch.float16, torch.bfloat16),
        *(torch.int64, torch.int32, torch.int16, torch.int8, torch.uint8, torch.bool),
    )
}


def encode(value: Any, known: Mapping[str, type] | None = None) -> bytes:
    """A value as bytes: a line of JSON that has version and checksum, a tree of JSON, and the numbers of its tensors.

    A tensor that occurs twice is written once, and is one tensor again when it is read.

    Parameters
    ----------
    value : Any
        Of None, numbers, texts, tensors, tuples, lists, mappings, and the known classes.
    known : mapping
        Dataclasses and enumerations by name.

    Raises
    ------
    TypeError
        If there is something else in it; the message says where.

    Examples
    --------
    >>> decode(encode({"steps": (1, 2.5), 3: torch.ones(2)}))
    {'steps': (1, 2.5), 3: tensor([1., 1.])}
    """
    kept: dict[int, int] = {}
    parts: list[Tensor] = []
    names = {cls: name for name, cls in (known or {}).items()}

    def plain(value: Any, where: str) -> Any:
        if value is None or type(value) in (bool, int, str):
            return value
        if isinstance(value, float):
            return float(value) if isfinite(value) else {"float": str(float(value))}
        if isinstance(value, Tensor):
            if id(value) not in kept:
                kept[id(value)] = len(parts)
                parts.append(value)
            return {"tensor": kept[id(value)]}
        if type(value) is list:
            return [plain(entry, f"{where}[{k}]") for k, entry in enumerate(value)]
        if type(value) is tuple:
            return {"tuple": [plain(entry, f"{where}[{k}]") for k, entry in enumerate(value)]}
        if isinstance(value, Mapping):
            return {"dict": [[plain(k, where), plain(v, f"{where}[{k!r}]")] for k, v in value.items()]}
        if type(value) in names and isinstance(value, Enum):
            return {"enum": [names[type(value)], value.name]}
        if type(value) in names:
            entries = [[f.name, plain(getattr(value, f.name), f"{where}.{f.name}")] for f in fields(value)]
            return {"record": [names[type(value)], entries]}
        raise TypeError(
            f"{where}: expected None, numbers, texts, tensors, and tuples, lists and mappings of them, "
            f"got {type(value).__name__}"
        )

    tree = plain(value, "value")
    table = [
        {"dtype": str(t.dtype).removeprefix("torch."), "shape": list(t.shape), "cpu": t.device.type == "cpu"}
        for t in parts
    ]
    body = json.dumps({"tree": tree, "tensors": table}, allow_nan=False).encode() + b"\n" + b"".join(map(_bytes, parts))
    head = {"format": _FORMAT, "version": VERSION, "checksum": _checksum(VERSION, body)}
    return json.dumps(head).encode() + b"\n" + body


def _checksum(version: int, body: bytes) -> str:
    return hashlib.sha256(b"%d\n" % version + body).hexdigest()


def _bytes(tensor: Tensor) -> bytes:
    # Of a copy: who shares memory with NumPy can be written to unnoticed, and is trusted less.
    copied = tensor.detach().cpu().clone(memory_format=torch.contiguous_format)
    return copied.reshape(-1).view(torch.uint8).numpy().tobytes()


def decode(data: bytes, known: Mapping[str, type] | None = None, device: torch.device | str = "cpu") -> Any:
    """Inverse of `encode`.

    Parameters
    ----------
    data : bytes
    known : mapping
        As in `encode`.
    device : torch.device or str
        Where tensors go that were not on the CPU.

    Raises
    ------
    ValueError
        If the data are not whole, have been changed, are of a newer version, or hold something unknown.
    """
    try:
        return _decode(data, known or {}, device)
    except ValueError:
        raise
    except (
        ArithmeticError,
        AttributeError,
        LookupError,
        MemoryError,
        RecursionError,
        RuntimeError,
        TypeError,
    ) as error:
        raise ValueError(f"expected what was saved, got {type(error).__name__}: {error}") from error


def _decode(data: bytes, known: Mapping[str, type], device: torch.device | str) -> Any:
    line, _, body = data.partition(b"\n")
    try:
        head = json.loads(line)
    except (ValueError, RecursionError):
        head = None
    if not isinstance(head, dict) or head.get("format") != _FORMAT or not isinstance(head.get("version"), int):
        raise ValueError(f"expected a checkpoint, got {len(data)} bytes of something else")
    if head["version"] > VERSION:
        raise ValueError(f"expected version {VERSION} or older, got version {head['version']}, written by a newer ocp")
    if head.get("checksum") != _checksum(head["version"], body):
        raise ValueError(
            "expected a whole checkpoint, got one that was cut off or changed: its checksum does not match"
        )
    text, _, numbers = body.partition(b"\n")
    content = json.loads(text)
    parts = list(_tensors(content["tensors"], numbers, device))

    def value(tree: Any) -> Any:
        if isinstance(tree, list):
            return [value(entry) for entry in tree]
        if not isinstance(tree, dict):
            return tree
        ((kind, entry),) = tree.items()
        if kind == "float":
            return float(entry)
        if kind == "tensor":
            return parts[entry]
        if kind == "tuple":
            return tuple(value(part) for part in entry)
        if kind == "dict":
            return {value(k): value(v) for k, v in entry}
        if kind == "enum":
            return known[entry[0]][entry[1]]  # type: ignore[index]
        if kind == "record":
            return known[entry[0]](**{name: value(part) for name, part in entry[1]})
        raise ValueError(f"expected a known kind of value, got {kind!r}")

    return value(content["tree"])


def _tensors(table: list[dict[str, Any]], numbers: bytes, device: torch.device | str) -> Iterator[Tensor]:
    at = 0
    for entry in table:
        dtype, shape = _DTYPES[entry["dtype"]], tuple(entry["shape"])
        size = prod(shape) * dtype.itemsize
        if min(shape, default=0) < 0 or at + size > len(numbers):
            raise ValueError(f"expected numbers for a tensor of shape {shape}, got too few")
        raw = torch.frombuffer(bytearray(numbers[at : at + size]), dtype=torch.uint8) if size else torch.empty(0)
        tensor = raw.view(dtype).reshape(shape) if size else torch.empty(shape, dtype=dtype)
        yield tensor if entry["cpu"] else tensor.to(device)
        at += size


def tensors(value: Any) -> Iterator[Tensor]:
    """All tensors in a value, wherever they stand."""
    if isinstance(value, Tensor):
        yield value
    elif isinstance(value, list | tuple):
        for entry in value:
            yield from tensors(entry)
    elif isinstance(value, Mapping):
        yield from tensors(list(value.values()))
    elif is_dataclass(value) and not isinstance(value, type):
        yield from tensors([getattr(value, f.name) for f in fields(value)])
