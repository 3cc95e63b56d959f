"""Checks of what users hand over: numbers, functions and modules."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor, nn

__all__ = ["call", "check_finite", "check_module", "uncompiled"]


def check_finite(name: str, numbers: Tensor) -> None:
    """Raise a ``ValueError`` if numbers are NaN or infinite."""
    bad = int((~torch.isfinite(numbers)).sum())
    if bad:
        raise ValueError(f"{name}: expected finite numbers, got {bad} of {numbers.numel()} that are NaN or infinite")


def call(name: str, function: Callable[..., Tensor], **arguments: Any) -> Tensor:
    """The value of a user's function, which must not change its arguments.

    Raises
    ------
    ValueError
        If it writes to one of them; the message begins with ``name``.
    """
    versions = {n: a._version for n, a in arguments.items() if isinstance(a, Tensor)}
    try:
        value = function(*arguments.values())
    except RuntimeError as error:
        if "in-place" in str(error) or "inplace" in str(error):  # from torch, if autograd was recording
            raise ValueError(f"{name}: expected it to leave its arguments unchanged, got: {error}") from error
        raise
    changed = [n for n, version in versions.items() if arguments[n]._version != version]
    if changed:
        at = f" at t = {arguments['t']:g}" if "t" in arguments else ""
        raise ValueError(f"{name}: expected it to leave its arguments unchanged, got {', '.join(changed)} changed{at}")
    return value


def check_module(module: nn.Module) -> None:
    """Refuse what is not a module, and a module whose value and derivative would belong to different functions.

    Raises
    ------
    TypeError
        If it is not an ``nn.Module``.
    ValueError
        If it holds dropout or batch statistics in training mode.
    """
    if not isinstance(module, nn.Module):
        raise TypeError(f"module: expected an nn.Module, got {type(module).__name__}")
    for name, part in module.named_modules():
        if part.training and _varies(part):
            raise ValueError(
                f"module: expected a deterministic module, got {type(part).__name__} ({name}) in training mode; "
                "remove it or call .eval() on it"
            )


def _varies(part: nn.Module) -> bool:
    """Whether two evaluations in training mode can differ, or change the module."""
    if isinstance(part, nn.modules.dropout._DropoutNd):
        return part.p > 0
    if isinstance(part, nn.MultiheadAttention | nn.RNNBase):
        return part.dropout > 0
    if isinstance(part, nn.modules.instancenorm._InstanceNorm):
        return part.track_running_stats
    return isinstance(part, nn.RReLU | nn.modules.batchnorm._BatchNorm)


def uncompiled(function: Any) -> Any:
    """The function or module that ``torch.compile`` was given; one that is not compiled, unchanged.

    Compiled functions support neither ``vmap``, nor forward mode, nor second derivatives.
    """
    return getattr(function, "_orig_mod", getattr(function, "_torchdynamo_orig_callable", function))
