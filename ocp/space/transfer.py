"""Prolongation and restriction of controls between two grids, and the transpose for derivatives."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from functools import lru_cache
from itertools import pairwise
from math import inf

import torch
from torch import Tensor

from ocp.space.bounds import Box
from ocp.space.control import ControlSpace

__all__ = ["CONSTANT", "LINEAR", "Interpolation", "Transfer", "coarse_grids", "depth"]

#: From (coarse steps, fine steps) to lists over the fine steps: left and right coarse neighbor, weight of the right.
Interpolation = Callable[[int, int], tuple[list[int], list[int], list[float]]]


def CONSTANT(coarse: int, fine: int) -> tuple[list[int], list[int], list[float]]:
    """Give each fine step the value of the coarse step that contains it."""
    owner = [k * coarse // fine for k in range(fine)]
    return owner, owner, [0.0] * fine


def LINEAR(coarse: int, fine: int) -> tuple[list[int], list[int], list[float]]:
    """Interpolate between the midpoints of the coarse steps, and extrapolate to both ends: exact for linear paths."""
    if coarse == 1:
        return CONSTANT(coarse, fine)
    position = [(k + 0.5) * coarse / fine - 0.5 for k in range(fine)]
    left = [min(max(int(s), 0), coarse - 2) for s in position]
    return left, [j + 1 for j in left], [s - j for s, j in zip(position, left, strict=True)]


@dataclass(frozen=True)
class Transfer:
    """Maps between the controls on a fine and on a coarse grid, by `CONSTANT` or `LINEAR` interpolation.

    Parameters pass unchanged. ValueError if the coarse number of steps does not divide the fine one, or if the spaces
    belong to different problems.

    Examples
    --------
    >>> from ocp.space.grid import TimeGrid
    >>> fine, coarse = (ControlSpace(TimeGrid(1.0, n), control_size=1) for n in (4, 2))
    >>> Transfer(fine, coarse).prolong(torch.tensor([1.0, 2.0]))
    tensor([1., 1., 2., 2.])
    >>> Transfer(fine, coarse).restrict_dual(torch.tensor([1.0, 2.0, 3.0, 4.0]))
    tensor([3., 7.])
    """

    fine: ControlSpace
    coarse: ControlSpace
    interpolation: Interpolation = CONSTANT

    def __post_init__(self) -> None:
        fine, coarse = self.fine.grid, self.coarse.grid
        if fine.steps % coarse.steps:
            raise ValueError(f"coarse: expected a divisor of {fine.steps} steps, got {coarse.steps}")
        if replace(self.coarse, grid=fine) != self.fine or coarse.horizon != fine.horizon:
            raise ValueError(f"coarse: expected the controls of {self.fine} on another grid, got {self.coarse}")

    def prolong(self, v: Tensor) -> Tensor:
        """P v: interpolate a coarse displacement or control."""
        left, right, weight = _stencil(self, v.dtype, v.device)
        path = self.coarse.path(v)
        fine = path[left] if weight is None else torch.lerp(path[left], path[right], weight)
        return self.fine.join(fine, self.coarse.parameters(v))

    def restrict_dual(self, derivative: Tensor) -> Tensor:
        """P^T d: apply the transpose of `prolong` to a fine derivative."""
        left, right, weight = _stencil(self, derivative.dtype, derivative.device)
        path = self.fine.path(derivative)
        coarse = path.new_zeros(self.coarse.grid.steps, self.coarse.control_size)
        if weight is None:
            coarse.index_add_(0, left, path)
        else:
            coarse.index_add_(0, left, path * (1 - weight)).index_add_(0, right, path * weight)
        return self.coarse.join(coarse, self.fine.parameters(derivative))

    def restrict(self, u: Tensor) -> Tensor:
        """R u: average a fine control over each coarse step."""
        path = self.fine.path(u).unflatten(0, (self.coarse.grid.steps, -1)).mean(dim=1)
        return self.coarse.join(path, self.fine.parameters(u))

    def restrict_box(self, box: Box, u: Tensor, free: Tensor, origin: Tensor) -> Box:
        """A coarse box around ``origin`` such that, for ``origin`` + e in it, u + P_f e is in the fine box.

        ``box``, ``u`` in it and the mask ``free`` are on the fine grid. P_f masks the prolongation by ``free``, the
        truncation of Kornhuber (1994), "Monotone multigrid methods for elliptic variational inequalities I". Gratton,
        Mouffe, Toint & Weber-Mendonca (2008), "A recursive l-infinity trust-region method for bound-constrained
        nonlinear optimization", section 2: each coarse entry gets the smallest slack of the free fine entries that it
        moves, divided by the largest row sum of |P|. A coarse entry that moves no free one is held.
        """
        left, right, weight = _stencil(self, u.dtype, u.device)
        weight = u.new_zeros(len(left), 1) if weight is None else weight
        loose = self.fine.path(free)
        below, above = (self.fine.path(bound) for bound in (u - box.lower, box.upper - u))
        shape = (self.coarse.grid.steps, self.coarse.control_size)
        down, up, moves = u.new_full(shape, inf), u.new_full(shape, inf), u.new_zeros(shape)
        for neighbor, share in ((left, 1 - weight), (right, weight)):
            counts = loose & (share != 0)
            index = neighbor.unsqueeze(1).expand_as(below)
            for slack, same, opposite in ((down, below, above), (up, above, below)):
                least = torch.where(share > 0, same, opposite).masked_fill(~counts, inf)
                slack.scatter_reduce_(0, index, least, "amin")
            moves.scatter_reduce_(0, index, counts.to(moves), "amax")
        rows = float(((1 - weight).abs() + weight.abs()).max())
        down, up = (
            self.coarse.join(
                slack.where(moves > 0, 0.0) / rows,
                self.fine.parameters(room).where(self.fine.parameters(free), 0.0),
            )
            for slack, room in ((down, u - box.lower), (up, box.upper - u))
        )
        return Box(origin - down, origin + up)

    def prolong_dual(self, derivative: Tensor) -> Tensor:
        """Prolong a coarse derivative by its gradient, which is a displacement."""
        return self.fine.dual(self.prolong(self.coarse.gradient(derivative)))


@lru_cache(maxsize=64)
def _stencil(transfer: Transfer, dtype: torch.dtype, device: torch.device) -> tuple[Tensor, Tensor, Tensor | None]:
    """The lists of the interpolation as tensors; no weights if only the left neighbor counts."""
    left, right, weight = transfer.interpolation(transfer.coarse.grid.steps, transfer.fine.grid.steps)
    weights = torch.tensor(weight, dtype=dtype, device=device).unsqueeze(1) if any(weight) else None
    return torch.tensor(left, device=device), torch.tensor(right, device=device), weights


def coarse_grids(steps: int, levels: int | Sequence[int], factor: int = 2) -> tuple[int, ...]:
    """Numbers of steps of a hierarchy, from the finest grid to the coarsest.

    ``levels`` is the number of grids, each ``factor`` times coarser than the one before, or a sequence of their numbers
    of steps. ValueError if one does not divide the one before; the message suggests a hierarchy that exists.

    Examples
    --------
    >>> coarse_grids(128, 4)
    (128, 64, 32, 16)
    >>> coarse_grids(100, [100, 20, 10])
    (100, 20, 10)
    """
    if not isinstance(levels, int):
        grids = tuple(levels)
        if not grids or grids[0] != steps or any(a % b or a <= b for a, b in pairwise(grids)):
            raise ValueError(
                f"levels: expected numbers of steps that begin with {steps} and each divide the one before, "
                f"got {list(grids)}"
            )
        return grids
    if levels < 1:
        raise ValueError(f"levels: expected an integer >= 1, got {levels}")
    if factor < 2:
        raise ValueError(f"factor: expected an integer >= 2, got {factor}")
    grids = tuple(steps // factor**k for k in range(levels) if steps % factor**k == 0)
    if len(grids) < levels:
        block = factor ** (levels - 1)
        nearby = -(-steps // block) * block
        raise ValueError(
            f"levels: {steps} steps can be coarsened by {factor} only to {', '.join(map(str, grids))}, not to {levels} "
            f"levels; use levels={len(grids)}" + (f" or steps={nearby}" if nearby <= 2 * steps else "")
        )
    return grids


def depth(steps: int, coarsest: int) -> int:
    """The number of grids from ``steps`` down by halving, none with fewer than ``coarsest`` steps."""
    return 1 + len([k for k in range(1, steps.bit_length()) if steps % 2**k == 0 and steps // 2**k >= coarsest])
