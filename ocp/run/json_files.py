"""Standard JSON files: numbers that are not finite become null."""

from __future__ import annotations

import json
import os
from collections.abc import Mapping
from math import isfinite
from pathlib import Path
from typing import Any

__all__ = ["plain", "read", "write"]


def plain(value: Any) -> Any:
    """Mappings, sequences, texts and numbers as strict JSON can hold them.

    Examples
    --------
    >>> plain({"value": float("nan"), "range": (1.0, 2)})
    {'value': None, 'range': [1.0, 2]}
    """
    if isinstance(value, Mapping):
        return {key: plain(entry) for key, entry in value.items()}
    if isinstance(value, list | tuple):
        return [plain(entry) for entry in value]
    return None if isinstance(value, float) and not isfinite(value) else value


def write(path: Path, value: Any) -> None:
    """Write a value to a file, and make its folder if needed; an old file stays until the new one is whole."""
    path.parent.mkdir(parents=True, exist_ok=True)
    part = path.with_name(path.name + ".part")
    part.write_text(json.dumps(plain(value), indent=1, allow_nan=False) + "\n")
    os.replace(part, path)


def read(path: Path) -> Any:
    """The value in a file; ValueError if it is not JSON."""
    try:
        return json.loads(path.read_text())
    except ValueError as error:
        raise ValueError(f"{path}: expected JSON, got {error}") from error
