"""The terms of an augmented Lagrangian as costs: at the final time, and at the nodes along the way."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from functools import partial
from typing import Any, cast

import torch
from torch import Tensor

from ocp.problem.constraints import Constraints, Multipliers
from ocp.problem.costs import RunningFunction
from ocp.problem.functions import hvp, pullback
from ocp.problem.protocols import SecondOrder, TerminalCost
from ocp.problem.shapes import BatchState, Parameters, Scalar

__all__ = ["EQUALITY", "Augmentation", "AugmentedEnd", "NodeTerms", "lagrangian"]

#: A penalty that adds nothing to multipliers of constraints that are satisfied up to rounding.
SMALL = 1e-6
#: The one constraint whose values must be zero.
EQUALITY = "terminal_equality"


@dataclass(frozen=True, eq=False)
class Augmentation:
    """Multipliers and a penalty: what is added to an objective to make it an augmented Lagrangian.

    Constraints are divided by their sizes first, so that one penalty serves all of them. Each entry c with multiplier y
    adds ((y + rho c)^2 - y^2) / (2 rho), where an inequality takes the larger of y + rho c and 0: Rockafellar (1973),
    "The multiplier method of Hestenes and Powell applied to convex programming". Along the way the mean over the nodes
    is added, so that multipliers do not depend on the grid.

    Attributes
    ----------
    multipliers : mapping
        By the names of the constraints: shape (n, k) for ``path_constraint``, where n is the number of steps of some
        grid, (k,) for the others.
    sizes : mapping
        Of the entries, shape (k,).
    penalty : float
        rho.
    """

    multipliers: Mapping[str, Tensor]
    sizes: Mapping[str, Tensor]
    penalty: float

    def terms(self, name: str, values: Tensor, multipliers: Tensor) -> Tensor:
        """The sum of the terms of a constraint with these values."""
        shifted = multipliers + self.penalty * (values / self.sizes[name])
        if name != EQUALITY:
            shifted = shifted.clamp_min(0.0)
        return (shifted.square() - multipliers.square()).sum() / (2 * self.penalty)

    def total(self, values: Mapping[str, Tensor]) -> float:
        """All terms, from the values of the constraints on a grid; see `ocp.objective.feasibility`."""
        parts = [self.terms(n, v, self.on(n, v)) / (len(v) if v.ndim > 1 else 1) for n, v in values.items()]
        return float(torch.stack(parts).sum())

    def on(self, name: str, values: Tensor) -> Tensor:
        """The multipliers on the grid of the values: means over the steps of a coarser one, or repeated on a finer."""
        y = self.multipliers[name]
        return y if y.ndim == 1 else resampled(y, len(values))

    def updated(self, values: Mapping[str, Tensor]) -> dict[str, Tensor]:
        """The first-order update of the multipliers, on the grid of the values."""
        found = {n: self.on(n, v) + self.penalty * (v / self.sizes[n]) for n, v in values.items()}
        return {name: y if name == EQUALITY else y.clamp_min(0.0) for name, y in found.items()}

    def unscaled(self, multipliers: Mapping[str, Tensor], duration: float) -> Multipliers:
        """Multipliers of the constraints themselves, those along the way as densities in time."""
        own = {name: y / self.sizes[name] for name, y in multipliers.items()}
        path = own.get("path_constraint")
        return Multipliers(None if path is None else path / duration, own.get(EQUALITY), own.get("terminal_inequality"))


def lagrangian(multipliers: Multipliers, duration: float) -> Augmentation:
    """What makes an objective one whose derivative is that of the Lagrangian, where the constraints are satisfied."""
    found = {EQUALITY: multipliers.equality, "terminal_inequality": multipliers.inequality}
    found["path_constraint"] = None if multipliers.path is None else multipliers.path * duration
    given = {name: y for name, y in found.items() if y is not None}
    return Augmentation(given, {name: torch.ones_like(y[-1] if y.ndim > 1 else y) for name, y in given.items()}, SMALL)


def resampled(y: Tensor, steps: int) -> Tensor:
    """A function of time with n values on another number of steps: means of values, or repeated ones."""
    n = len(y)
    return y.unflatten(0, (steps, n // steps)).mean(1) if n >= steps else y.repeat_interleave(steps // n, 0)


@dataclass(frozen=True, eq=False)
class AugmentedEnd:
    """A terminal cost, if there is one, and the terms of the terminal constraints."""

    cost: TerminalCost | None
    constraints: Constraints
    augmentation: Augmentation

    def _terms(self, x: Tensor, q: Tensor) -> Tensor:
        named = {EQUALITY: self.constraints.equality, "terminal_inequality": self.constraints.inequality}
        own = self.augmentation
        return torch.stack([own.terms(n, g(x, q), own.multipliers[n]) for n, g in named.items() if g]).sum()

    def __call__(self, x: BatchState, q: Parameters) -> Scalar:
        terms = self._terms(x, q)
        return terms if self.cost is None else self.cost(x, q) + terms

    def derivative(self, x: BatchState, q: Parameters) -> tuple[BatchState, Parameters]:
        px, pq = pullback(self._terms, (x, q))
        if self.cost is None:
            return px, pq
        own_x, own_q = self.cost.derivative(x, q)
        return own_x + px, own_q + pq

    def hvp(self, x: BatchState, q: Parameters, dx: BatchState, dq: Parameters) -> tuple[BatchState, Parameters]:
        hx, hq = hvp(self._terms, (x, q), (dx, dq))
        if self.cost is None:
            return hx, hq
        own_x, own_q = cast(SecondOrder, self.cost).hvp(x, q, dx, dq)
        return own_x + hx, own_q + hq


@dataclass(frozen=True, eq=False)
class NodeTerms:
    """The terms of a path constraint at a node, on a grid of any step size h that divides the ``horizon``."""

    constraints: Constraints
    augmentation: Augmentation
    horizon: float
    _costs: dict[float, RunningFunction] = field(default_factory=dict, init=False, repr=False)

    def __call__(self, h: float) -> RunningFunction:
        """The cost at a node; repeated calls return the same one."""
        if h not in self._costs:
            steps = round(self.horizon / h)
            multipliers = resampled(self.augmentation.multipliers["path_constraint"], steps)
            self._costs[h] = RunningFunction(partial(self._at, multipliers, h))
        return self._costs[h]

    def _at(self, multipliers: Tensor, h: float, t: Any, x: Tensor, v: Tensor) -> Tensor:
        assert self.constraints.path is not None
        # An index that vmap can map, too, where t is a tensor.
        node = torch.as_tensor(t, dtype=x.dtype, device=x.device).div(h).round().long().view(1)
        y = multipliers.index_select(0, node).squeeze(0)
        return self.augmentation.terms("path_constraint", self.constraints.path(t, x, v), y) / len(multipliers)
