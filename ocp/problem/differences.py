"""Whether the derivative of one evaluation agrees with differences of its values."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from itertools import pairwise
from math import isfinite
from typing import Any

import torch
from torch import Tensor
from torch.overrides import TorchFunctionMode

from ocp.problem.boundary import same

__all__ = ["disagreement", "nearby", "normal", "second_disagreement"]

#: Lengths of differences, in multiples of the best one for smooth functions, eps^(1/3).
LENGTHS = (8.0, 1.0)
#: Parts of a step at whose ends the derivative is evaluated.
PARTS = 8
#: Rounding errors of a sum, in multiples of eps times the sum of the absolute values of its terms.
NOISE = 160


def disagreement(
    value: Callable[..., Tensor], pullback: Callable[..., Sequence[Tensor]], arguments: Mapping[str, Tensor]
) -> str:
    """Say by which argument the derivative disagrees with differences; nothing if it agrees.

    Differences are taken in double precision where the function computes in it. Where values are not finite, nothing
    can be said.

    Parameters
    ----------
    value : callable
        Of the arguments, in their order.
    pullback : callable
        From a cotangent of the shape of the value, and the arguments, to the derivatives by the arguments.
    """
    if any(a.dtype != torch.float64 for a in arguments.values()):
        try:
            with _Promotion():
                double = {name: a.double() for name, a in arguments.items()}
                if _computes_in_double(value, double, value(*arguments.values())):
                    return _disagreement(value, pullback, double)
        except Exception:  # anything: the function was not written for double precision
            pass
    return _disagreement(value, pullback, arguments)


def second_disagreement(
    derivative: Callable[..., Sequence[Tensor]],
    product: Callable[..., Sequence[Tensor]],
    arguments: Mapping[str, Tensor],
) -> str:
    """As `disagreement`, for the derivatives of a number by some arguments, and its Hessian.

    Parameters
    ----------
    derivative : callable
        From the arguments to the derivatives by them.
    product : callable
        From the arguments, and a direction for each, to the Hessian times the directions.
    """
    sizes = [_sizes(a) for a in arguments.values()]  # so that all derivatives have one unit

    def slopes(*point: Tensor) -> Tensor:
        return torch.cat([(size * part).flatten() for size, part in zip(sizes, derivative(*point), strict=True)])

    def products(cotangent: Tensor, *point: Tensor) -> Sequence[Tensor]:
        parts = cotangent.split([size.numel() for size in sizes])
        return product(*point, *(size * part.view_as(size) for size, part in zip(sizes, parts, strict=True)))

    return disagreement(slopes, products, arguments)


class _Promotion(TorchFunctionMode):
    """Converts tensors to double precision for operations that refuse arguments of several types, as products do."""

    def __torch_function__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        try:
            return func(*args, **(kwargs or {}))
        except RuntimeError:
            return func(*_promoted(args), **{key: _promoted(value) for key, value in (kwargs or {}).items()})


def _promoted(argument: Any) -> Any:
    """An argument of an operation with all floating-point tensors in double precision."""
    if isinstance(argument, list | tuple):
        return type(argument)(map(_promoted, argument))
    return argument.double() if isinstance(argument, Tensor) and argument.is_floating_point() else argument


def _computes_in_double(value: Callable[..., Tensor], arguments: Mapping[str, Tensor], single: Tensor) -> bool:
    """Whether a function keeps the precision of arguments in double precision, and has the value of ``single`` there.

    At points that are a rounding error of single precision apart, the fourth difference of a smooth function vanishes,
    while that of a function that rounds to single precision inside consists of rounding errors.
    """
    generator = torch.Generator().manual_seed(2)
    step, double = torch.finfo(torch.float32).eps, torch.finfo(torch.float64).eps
    directions = [step * _sizes(a) * normal(a, generator) for a in arguments.values()]
    y = [value(*(a + k * d for a, d in zip(arguments.values(), directions, strict=True))) for k in range(-2, 3)]
    if y[2].dtype != torch.float64 or not same(y[2].to(single), single):
        return False
    fourth = y[0] - 4 * y[1] + 6 * y[2] - 4 * y[3] + y[4]
    return float(fourth.abs().sum()) <= NOISE * double * float(y[2].abs().sum())


def _disagreement(
    value: Callable[..., Tensor], pullback: Callable[..., Sequence[Tensor]], arguments: Mapping[str, Tensor]
) -> str:
    """As `disagreement`, in the precision of the arguments."""
    generator = torch.Generator().manual_seed(0)
    y = value(*arguments.values())
    eps = torch.finfo(y.dtype).eps
    if eps > 1e-6 or not bool(torch.isfinite(y).all()):
        return ""
    cotangent = normal(y, generator)
    noise = NOISE * eps * float((cotangent * y).abs().double().sum())
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
