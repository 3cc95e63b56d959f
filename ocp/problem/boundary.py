"""Checks of what users hand over: numbers, functions and modules."""

from __future__ import annotations

import copy
import inspect
from collections.abc import Callable, Mapping
from typing import Any, TypeVar

import numpy as np
import torch
from torch import Tensor, nn

from ocp.problem.inference import ordinary
from ocp.problem.protocols import Divisible

__all__ = [
    "call",
    "check_finite",
    "check_module",
    "check_order",
    "check_unchanged",
    "copied",
    "data",
    "identical",
    "plain",
    "same",
    "take",
    "uncompiled",
    "with_data",
]

Piece = TypeVar("Piece")


def check_finite(name: str, numbers: Tensor) -> None:
    """Raise a ``ValueError`` if numbers are NaN or infinite."""
    bad = int((~torch.isfinite(numbers)).sum())
    if bad:
        raise ValueError(f"{name}: expected finite numbers, got {bad} of {numbers.numel()} that are NaN or infinite")


def data(name: str, tensor: Any, expected: str = "a tensor") -> Tensor:
    """A user's tensor as data: without a tape, and an ordinary tensor if it was made in ``torch.inference_mode``.

    Raises a ``TypeError`` if it is no tensor, and a ``ValueError`` if its numbers are complex or not finite.
    """
    if not isinstance(tensor, Tensor):
        raise TypeError(f"{name}: expected {expected}, got {_kind(tensor)}")
    if tensor.is_complex():
        raise ValueError(f"{name}: expected real numbers, got {tensor.dtype}")
    check_finite(name, tensor)
    return ordinary(tensor)


def with_data(piece: Piece, **tensors: Any) -> Piece:
    """A copy of a frozen piece that holds other data, which were checked before."""
    piece = copy.copy(piece)
    vars(piece).update(tensors)
    return piece


def _kind(value: Any) -> str:
    """The type of what is no tensor, and how to make one of it if it holds numbers."""
    advice = "; torch.as_tensor(...) makes it one" if isinstance(value, np.ndarray | list | tuple) else ""
    return type(value).__name__ + advice


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


def check_order(name: str, function: Any, *names: str) -> None:
    """Raise a ``ValueError`` if a function calls its arguments by these very names, but in another order.

    Of functions of time, also if the name of another argument than the first one is t or time.
    """
    try:
        found = tuple(inspect.signature(uncompiled(function)).parameters)
    except (TypeError, ValueError):  # it has no signature, as some built-in functions
        return
    late = names[0] == "t" and bool({"t", "time"} & set(found[1 : len(names)]) - {*found[:1]})
    if found != names and (late or sorted(found) == sorted(names)):
        raise ValueError(f"{name}: expected the arguments ({', '.join(names)}), got ({', '.join(found)})")


def check_unchanged(name: str, written: str, before: Mapping[str, Tensor], after: Mapping[str, Tensor]) -> None:
    """Raise a ``ValueError`` if a method, such as ``vjp(t, x, u, p)``, has changed the numbers in its arguments."""
    changed = [argument for argument in before if not identical(before[argument], after[argument])]
    if changed:
        raise ValueError(
            f"{name}: expected {written} to leave its arguments unchanged, got {', '.join(changed)} changed"
        )


def check_module(name: str, module: nn.Module) -> None:
    """Refuse a module that is not a function of its input and its real parameters, as far as can be seen without a run.

    Raises
    ------
    TypeError
        If it is not an ``nn.Module``.
    ValueError
        If it has dropout or batch statistics in training mode, or parameters that are lazy or complex, share memory, or
        have gradient hooks.
    """
    if not isinstance(module, nn.Module):
        raise TypeError(f"{name}: expected an nn.Module, got {type(module).__name__}")
    for place, part in module.named_modules():
        if part.training and _varies(part):
            raise ValueError(
                f"{name}: expected a deterministic module, got {type(part).__name__} ({place}) in training mode; "
                "remove it or call .eval() on it"
            )
    owners: dict[int, str] = {}
    for place, p in module.named_parameters():
        if isinstance(p, nn.UninitializedParameter):
            raise ValueError(f"{name}: expected initialized parameters, got lazy {place}; run the module once")
        if p.requires_grad and not p.is_floating_point():
            raise ValueError(f"{name}: expected real parameters, got {place} of {p.dtype}")
        if p._backward_hooks or p._post_accumulate_grad_hooks:
            raise ValueError(
                f"{name}: expected parameters without gradient hooks, which would have no effect, got one on {place}; "
                "to fix entries, use torch.nn.utils.prune or a parametrization"
            )
        if p.numel() and owners.setdefault(p.data_ptr(), place) != place:
            raise ValueError(
                f"{name}: expected parameters that share no memory, got {owners[p.data_ptr()]} and {place}; "
                "to tie weights, use the same nn.Parameter"
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


def copied(name: str, module: nn.Module) -> nn.Module:
    """A deep copy of a module. Tensors computed from parameters, as by weight norm, are copied without their tape."""
    memo: dict[int, Any] = {}
    for part in module.modules():
        for value in vars(part).values():
            if isinstance(value, Tensor) and value.grad_fn is not None:
                memo[id(value)] = value.detach().clone()
    try:
        return copy.deepcopy(module, memo)
    except Exception as error:  # anything: classes define their own copies
        raise ValueError(
            f"{name}: expected a module that copy.deepcopy can copy, got {type(error).__name__}: {error}"
        ) from error


def identical(a: Tensor, b: Tensor) -> bool:
    """Whether two tensors hold the same numbers, NaN being the same as NaN."""
    return a.shape == b.shape and bool(((a == b) | ((a != a) & (b != b))).all())


def same(a: Tensor, b: Tensor) -> bool:
    """Whether two floating-point tensors agree up to rounding: sums depend on the order of their terms."""
    if a.shape != b.shape or a.dtype != b.dtype:
        return False
    rtol = torch.finfo(a.dtype).eps ** 0.75
    finite = b.nan_to_num(0.0, 0.0, 0.0).abs()
    return torch.allclose(a, b, rtol=rtol, atol=rtol * float(finite.max()) if b.numel() else 0.0, equal_nan=True)


def take(name: str, piece: object, indices: Tensor) -> Any:
    """A piece of a problem on some of the samples; a ``ValueError`` if it is not `Divisible`."""
    if not isinstance(piece, Divisible):
        raise ValueError(
            f"{name}: expected a piece with a method take(indices) for mini-batches, got {type(piece).__name__}"
        )
    return piece.take(indices)


def uncompiled(function: Any) -> Any:
    """The function or module that ``torch.compile`` was given; one that is not compiled, unchanged.

    Compiled functions support neither ``vmap``, nor forward mode, nor second derivatives.
    """
    return getattr(function, "_orig_mod", getattr(function, "_torchdynamo_orig_callable", function))


def plain(piece: Any) -> Any:
    """A piece whose function is not compiled, as second derivatives take it."""
    if not hasattr(piece, "function"):
        return piece
    piece = copy.copy(piece)
    vars(piece)["function"] = uncompiled(piece.function)
    return piece
