"""Whether the derivative of one evaluation agrees with differences of its values."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from itertools import pairwise
from math import isfinite

import torch
from torch import Tensor

__all__ = ["disagreement", "nearby", "normal"]

#: Lengths of differences, in multiples of the best one for smooth functions, eps^(1/3).
LENGTHS = (8.0, 1.0)
#: Parts of a step at whose ends the derivative is evaluated.
PARTS = 8


def disagreement(
    value: Callable[..., Tensor], pullback: Callable[..., Sequence[Tensor]], arguments: Mapping[str, Tensor]
) -> str:
    """Say by which argument the derivative disagrees with differences; nothing if it agrees.

    Where values are not finite, nothing can be said.

    Parameters
    ----------
    value : callable
        Of the arguments, in their order.
    pullback : callable
        From a cotangent of the shape of the value, and the arguments, to the derivatives by the arguments.
    """
    generator = torch.Generator().manual_seed(0)
    y = value(*arguments.values())
    eps = torch.finfo(y.dtype).eps
    if eps > 1e-6 or not bool(torch.isfinite(y).all()):
        return ""
    cotangent = normal(y, generator)
    noise = 160 * eps * float((cotangent * y).abs().double().sum())
    for k, (name, argument) in enumerate(arguments.items()):
        if not argument.numel():
            continue
        direction = _sizes(argument) * normal(argument, generator)

        def moved(step: float, name: str = name, direction: Tensor = direction) -> list[Tensor]:
            return [a + step * direction if n == name else a for n, a in arguments.items()]

        def change(step: float, moved: Callable[[float], list[Tensor]] = moved) -> float:
            return float((cotangent * (value(*moved(step)) - y)).double().sum())

        def stated(
            step: float, k: int = k, direction: Tensor = direction, moved: Callable[[float], list[Tensor]] = moved
        ) -> float:
            return float((pullback(cotangent, *moved(step))[k] * direction).double().sum())

        step = eps ** (1 / 3)
        quotient, slope = (change(step) - change(-step)) / (2 * step), stated(0.0)
        if abs(quotient - slope) > noise / step + 1e-6 * abs(quotient):
            steps = [sign * length * step for length in LENGTHS for sign in (1, -1)]
            if _off(change, stated, steps, noise):
                return f"{slope:.6g} by {name} along a direction in which differences give {quotient:.6g}"
    return ""


def _off(
    change: Callable[[float], float], stated: Callable[[float], float], steps: Sequence[float], noise: float
) -> bool:
    """Whether along each of several steps, the change differs from the integral of the stated slopes.

    So kinks do no harm, wherever they are: the slopes to both sides of them enter the integral by the trapezoidal rule,
    whose error is at most their variation from node to node, for slopes that are monotone in between. Since a missing
    term has about the same slope along all steps, the differences must be alike; jumps and rounding are not.
    """
    differences = []
    for step in steps:
        quotient, slopes = change(step) / step, [stated(step * k / PARTS) for k in range(PARTS + 1)]
        mean = (sum(slopes) - (slopes[0] + slopes[-1]) / 2) / PARTS
        variation = sum(abs(b - a) for a, b in pairwise(slopes)) / PARTS
        difference = quotient - mean
        if not abs(difference) > variation + noise / abs(step) + 1e-6 * abs(quotient):  # also where one is not finite
            return False
        differences.append(difference)
    low, high = min(differences), max(differences)
    return isfinite(high - low) and (low > 0 or high < 0) and high - low <= min(abs(low), abs(high))


def nearby(arguments: Mapping[str, Tensor], distance: float = 0.01) -> dict[str, Tensor]:
    """Arguments nearby, in multiples of the size of each entry, in which no zero hides a dependence."""
    generator = torch.Generator().manual_seed(1)
    return {n: a + distance * _sizes(a) * normal(a, generator) for n, a in arguments.items()}


def _sizes(tensor: Tensor) -> Tensor:
    """The size of each entry; that of the largest one for zeros, or 1 if all are zero."""
    largest = (float(tensor.abs().max()) or 1.0) if tensor.numel() else 1.0
    return torch.where(tensor == 0, largest, tensor.abs())


def normal(tensor: Tensor, generator: torch.Generator) -> Tensor:
    """Normal random numbers with the shape, dtype and device of a tensor; drawn on the CPU, so the same everywhere."""
    return torch.randn(tensor.shape, generator=generator, dtype=torch.float64).to(tensor)
