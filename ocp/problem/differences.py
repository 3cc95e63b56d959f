"""Whether the derivative of one evaluation agrees with differences of its values."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from math import isfinite

import torch
from torch import Tensor

__all__ = ["disagreement", "nearby"]

#: Lengths of two differences, in multiples of the best one for smooth functions, eps^(1/3).
LENGTHS = (8.0, 1.0)


def disagreement(
    value: Callable[..., Tensor], pullback: Callable[[Tensor], Sequence[Tensor]], arguments: Mapping[str, Tensor]
) -> str:
    """Say by which argument the derivative disagrees with central differences; nothing if it agrees.

    Their error is estimated from two lengths, and a kink between them is allowed for. Where values are not finite,
    nothing can be said.

    Parameters
    ----------
    value : callable
        Of the arguments, in their order.
    pullback : callable
        From a cotangent of the shape of the value to the derivatives by the arguments.
    """
    generator = torch.Generator().manual_seed(0)
    y = value(*arguments.values())
    eps = torch.finfo(y.dtype).eps
    if eps > 1e-6 or not bool(torch.isfinite(y).all()):
        return ""
    cotangent = _normal(y, generator)
    noise = 16 * eps * float((cotangent * y).abs().double().sum())
    for (name, argument), derivative in zip(arguments.items(), pullback(cotangent), strict=True):
        if not argument.numel():
            continue
        direction = _sizes(argument) * _normal(argument, generator)
        stated = float((derivative * direction).double().sum())

        def change(step: float, name: str = name, direction: Tensor = direction) -> float:
            moved = {n: a + step * direction if n == name else a for n, a in arguments.items()}
            return float((cotangent * (value(*moved.values()) - y)).double().sum())

        steps = [length * eps ** (1 / 3) for length in LENGTHS]
        ends = [(change(step), change(-step)) for step in steps]
        longer, quotient = ((a - b) / (2 * step) for (a, b), step in zip(ends, steps, strict=True))
        bends = [abs(a + b) / step for (a, b), step in zip(ends, steps, strict=True)]
        kink = bends[1] if bends[1] > 0.5 * bends[0] else 0.0  # a smooth function bends less on a shorter way
        bound = 10 * (abs(longer - quotient) + noise / steps[1]) + 1e-6 * abs(quotient) + kink
        if isfinite(bound) and abs(quotient - stated) > bound:
            return f"{stated:.6g} by {name} along a direction in which differences give {quotient:.6g}"
    return ""


def nearby(arguments: Mapping[str, Tensor], distance: float = 0.01) -> dict[str, Tensor]:
    """Arguments nearby, in multiples of the size of each entry, in which no zero hides a dependence."""
    generator = torch.Generator().manual_seed(1)
    return {n: a + distance * _sizes(a) * _normal(a, generator) for n, a in arguments.items()}


def _sizes(tensor: Tensor) -> Tensor:
    """The size of each entry; that of the largest one for zeros, or 1 if all are zero."""
    largest = (float(tensor.abs().max()) or 1.0) if tensor.numel() else 1.0
    return torch.where(tensor == 0, largest, tensor.abs())


def _normal(tensor: Tensor, generator: torch.Generator) -> Tensor:
    return torch.randn(tensor.shape, generator=generator, dtype=torch.float64).to(tensor)
