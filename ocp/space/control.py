"""The control: one flat tensor, the views of it, and its time-weighted inner product."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from functools import cached_property
from math import inf, sqrt
from typing import Any

import torch
from torch import Tensor

from ocp.space.grid import TimeGrid

__all__ = ["Control", "ControlSpace", "TimeFunction", "at_midpoints", "time_hint"]

#: A function of time: a number, a tensor of shape (m,), or a callable that takes the time and returns one of these.
TimeFunction = float | Tensor | Callable[[float], Any]


@dataclass(frozen=True)
class ControlSpace:
    """The space of controls on one time grid.

    A control consists of a path u_0, ..., u_{N-1} with m = ``control_size`` numbers per step and of s =
    ``parameter_size`` parameters q that do not depend on time. One flat tensor of N m + s numbers holds both, the path
    first. The inner product

        (a, b) = h sum_k <a_k, b_k> + <q_a, q_b>

    carries the time weight, so that norms and step lengths mean the same on every grid. A *derivative* is a dual
    vector: its dot product with a displacement is the change of the objective. A *gradient* is its Riesz image in this
    inner product, and a displacement itself.

    Examples
    --------
    >>> space = ControlSpace(TimeGrid(horizon=1.0, steps=4), control_size=2, parameter_size=3)
    >>> u = torch.ones(space.dimension)
    >>> space.path(u).shape, space.parameters(u).shape
    (torch.Size([4, 2]), torch.Size([3]))
    >>> space.inner(u, u)
    5.0
    """

    grid: TimeGrid
    control_size: int
    parameter_size: int = 0

    @cached_property
    def dimension(self) -> int:
        """Length of the flat tensor, N m + s."""
        return self._length + self.parameter_size

    @cached_property
    def _length(self) -> int:
        """Length of the path, N m."""
        return self.grid.steps * self.control_size

    def steps_of(self, flat: Tensor) -> int:
        """Number of steps of a control of the same problem on any grid, from its length; with m = 0, of this grid."""
        if not self.control_size:
            return self.grid.steps
        return (flat.numel() - self.parameter_size) // self.control_size

    def check_path(self) -> None:
        """Raise a ``ValueError`` if controls have no path, so that there is nothing to coarsen."""
        if not self.control_size:
            raise ValueError("method: expected one without coarser grids for a problem whose control_size is 0")

    def path(self, flat: Tensor) -> Tensor:
        """The path, a view of shape (N, m)."""
        return flat[: self._length].view(self.grid.steps, self.control_size)

    def parameters(self, flat: Tensor) -> Tensor:
        """The parameters, a view of shape (s,)."""
        return flat[self._length :]

    def join(self, path: Tensor, parameters: Tensor) -> Tensor:
        """The flat tensor of a path of shape (N, m) and parameters of shape (s,)."""
        return torch.cat((path.reshape(-1), parameters.reshape(-1)))

    def gradient(self, derivative: Tensor) -> Tensor:
        """Riesz map: the displacement that represents a derivative in the inner product."""
        gradient = derivative.clone()
        self.path(gradient).div_(self.grid.h)
        return gradient

    def dual(self, displacement: Tensor) -> Tensor:
        """Inverse of `gradient`."""
        dual = displacement.clone()
        self.path(dual).mul_(self.grid.h)
        return dual

    def inner(self, a: Tensor, b: Tensor) -> float:
        """Time-weighted inner product of two displacements."""
        return self._weighted(a, b, self.grid.h)

    def norm(self, displacement: Tensor) -> float:
        """Norm of a displacement."""
        return sqrt(self.inner(displacement, displacement))

    def reach(self, start: Tensor, direction: Tensor, radius: float) -> float:
        """The multiple of ``direction`` that leads from ``start``, inside the ball of a radius, to its boundary."""
        length = self.norm(direction)
        if length == 0:
            return inf
        # The positive root t of |start + t direction| = radius, in the form that does not cancel.
        b = self.inner(start, direction) / length
        c = max(radius**2 - self.norm(start) ** 2, 0.0)
        root = sqrt(b * b + c)
        return (c / (b + root) if b > 0 else root - b) / length

    def dual_norm(self, derivative: Tensor) -> float:
        """Norm of a derivative, equal to the norm of its gradient."""
        return sqrt(self._weighted(derivative, derivative, 1 / self.grid.h))

    def _weighted(self, a: Tensor, b: Tensor, weight: float) -> float:
        if not self.parameter_size:
            return weight * float(torch.dot(a, b))
        n = self._length
        return float(torch.dot(a[n:], b[n:]).add_(torch.dot(a[:n], b[:n]), alpha=weight))


@dataclass(frozen=True, eq=False)
class Control:
    """A control: a point ``flat`` of a `ControlSpace`; ValueError if its shape is not (N m + s,)."""

    space: ControlSpace
    flat: Tensor

    def __post_init__(self) -> None:
        if self.flat.shape != (self.space.dimension,):
            space = self.space
            raise ValueError(
                f"control: expected a flat tensor of {space.dimension} numbers ({space.grid.steps} steps of "
                f"{space.control_size}, {space.parameter_size} parameters), got shape {tuple(self.flat.shape)}"
            )

    @property
    def path(self) -> Tensor:
        """The control on each step, a view of shape (N, m)."""
        return self.space.path(self.flat)

    @property
    def parameters(self) -> Tensor:
        """The parameters, a view of shape (s,)."""
        return self.space.parameters(self.flat)


def time_hint(error: Exception) -> str:
    """What an error mostly means in a function of time."""
    signs = ("must be Tensor, not float", "but got float", "'float' object")
    return (
        "; t is a float: write math.sin(t), or torch.as_tensor(t, dtype=x.dtype)"
        if any(s in str(error) for s in signs)
        else ""
    )


def at_midpoints(expected: str, function: TimeFunction, space: ControlSpace, like: Tensor) -> Tensor:
    """The values of a function of time at the midpoints of the steps, shape (N, m), with dtype and device of ``like``.

    Raises TypeError or ValueError, its message beginning with ``expected``, if a value has the wrong type or shape.
    """
    m = space.control_size
    try:
        values = [function(t) for t in space.grid.midpoints] if callable(function) else [function]
    except (AttributeError, IndexError, RuntimeError, TypeError) as error:  # of torch, mostly
        raise ValueError(
            f"{expected} to take a time t, got {type(error).__name__}: {error}{time_hint(error)}"
        ) from error
    try:
        rows = [torch.as_tensor(value, dtype=like.dtype, device=like.device).detach() for value in values]
    except (RuntimeError, TypeError, ValueError) as error:
        raise TypeError(f"{expected} to be numbers, got {values[0]!r}") from error
    for row in rows:
        if row.shape not in ((), (m,)):
            raise ValueError(
                f"{expected} to be a number, a tensor of shape ({m},), or a function of t that gives one of these, "
                f"got shape {tuple(row.shape)}"
            )
    return torch.stack([row.expand(m) for row in rows]).expand(space.grid.steps, m)
