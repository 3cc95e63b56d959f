"""How far a control violates the constraints: on its own grid, and simulated again on a finer one."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from math import inf, isfinite
from typing import Any

import torch
from torch import Tensor

from ocp.adjoint import sweeps
from ocp.adjoint.discretization import Discretization
from ocp.problem.differences import normal
from ocp.problem.inference import outside
from ocp.space.transfer import Transfer

__all__ = ["Excess", "Violation", "constraint_scales", "constraint_values", "excesses", "violation", "worst"]

#: A control is simulated again with this many times the steps.
FINER = 4
#: Random directions along which the change of a constraint is sampled: their mean square is rarely off by half.
PROBES = 8


@dataclass(frozen=True)
class Excess:
    """The entry of a constraint that is violated most.

    Attributes
    ----------
    name : str
        ``"path_constraint"``, ``"terminal_equality"`` or ``"terminal_inequality"``.
    value : float
        c, |g| or g, in the units of the constraint; negative if the constraint has room.
    relative : float
        The violation as a share of the constraint's own size; see `constraint_scales`. Zero if there is none.
    entry : int
        Of the vector c or g.
    node : int
        k, the number of the node t_k.
    """

    name: str
    value: float
    relative: float
    entry: int
    node: int

    def __str__(self) -> str:
        if self.relative == 0:
            return "none"
        return f"{self.value:.1e} ({self.relative:.1e} of its size), {self.name}[{self.entry}] at node {self.node}"


@dataclass(frozen=True)
class Violation:
    """How far a control violates the constraints.

    Attributes
    ----------
    nodes, finer : tuple of Excess
        One for each constraint: at the nodes where it is imposed, t_0, ..., t_{N-1} or the last one, and of the same
        control simulated with four times the steps, where c is evaluated at the last node, too.
    """

    nodes: tuple[Excess, ...]
    finer: tuple[Excess, ...]

    @property
    def relative(self) -> float:
        """The largest violation at the nodes, as a share of the size of its constraint."""
        return worst(self.nodes).relative

    def __str__(self) -> str:
        return f"{worst(self.nodes)}; on a grid four times finer {worst(self.finer)}"

    @classmethod
    def from_dict(cls, values: Mapping[str, Any]) -> Violation:
        """Inverse of ``dataclasses.asdict``; numbers that were not finite are infinite."""

        def excess(one: Mapping[str, Any]) -> Excess:
            fields: dict[str, Any] = {name: inf if value is None else value for name, value in one.items()}
            return Excess(**fields)

        return cls(*(tuple(excess(one) for one in values[at]) for at in ("nodes", "finer")))


def worst(found: tuple[Excess, ...]) -> Excess:
    """The largest one."""
    return max(found, key=lambda excess: (excess.relative, excess.value))


@outside
def violation(discretization: Discretization, control: Tensor) -> Violation:
    """How far a flat control violates the constraints of its problem; two forward sweeps, one with more steps."""
    steps, space = discretization.grid.steps, discretization.space
    fine = discretization.on(FINER * steps)
    prolonged = Transfer(fine.space, space).prolong(control)
    return Violation(
        excesses(discretization, control, _simulated(discretization, control)),
        excesses(fine, prolonged, _simulated(fine, prolonged), to_end=True),
    )


def _simulated(discretization: Discretization, control: Tensor) -> Tensor:
    x = discretization.example()[0]
    states = x.new_empty(discretization.grid.steps + 1, *x.shape)
    sweeps.forward(discretization, control, states)
    return states


def constraint_values(
    discretization: Discretization, control: Tensor, states: Tensor, to_end: bool = False
) -> dict[str, Tensor]:
    """The values of the constraints by their names.

    Parameters
    ----------
    discretization : Discretization
    control, states : Tensor
        A flat control, and its trajectory of shape (N + 1, batch, *state).
    to_end : bool
        Whether to evaluate c also at t_N, with the last control.

    Returns
    -------
    dict
        Shapes (N, k), or (N + 1, k), for c and (k,) for g.
    """
    inputs, q = discretization.inputs(control), discretization.space.parameters(control)
    return _values(discretization, states, torch.cat((inputs, inputs[-1:])) if to_end else inputs, q)


@torch.no_grad()
def _values(discretization: Discretization, states: Tensor, inputs: Tensor, q: Tensor) -> dict[str, Tensor]:
    constraints, found = discretization.problem.constraints, dict[str, Tensor]()
    if constraints.path is not None:
        t = states.new_tensor(discretization.grid.nodes[: len(inputs)])
        found["path_constraint"] = constraints.along(t, states[: len(inputs)], inputs)
    for name, g in (("terminal_equality", constraints.equality), ("terminal_inequality", constraints.inequality)):
        if g is not None:
            found[name] = g(states[-1], q)
    return found


def constraint_scales(discretization: Discretization, control: Tensor, states: Tensor) -> dict[str, Tensor]:
    """The size of each entry of the constraints, shape (k,), by which a violation is measured.

    It is the largest value of the entry, or, where that is larger, how much it changes if all it depends on changes by
    its own size: states and controls by their largest values along the trajectory. So no unit matters, and an entry
    that is zero along the way, as that of an active constraint, has a size, too.
    """
    inputs, q = discretization.inputs(control), discretization.space.parameters(control)
    values = _values(discretization, states, inputs, q)
    arguments = (states, inputs, q)
    sizes = (states.abs().amax(0), inputs.abs().amax(0), q.abs())
    scales = _sampled(discretization, arguments, sizes, values)
    if any(bool((scale == 0).any()) for scale in scales.values()):  # what it depends on is zero all the way
        largest = max((float(size.max()) for size in sizes if size.numel()), default=0.0) or 1.0
        again = _sampled(discretization, arguments, tuple(torch.full_like(s, largest) for s in sizes), values)
        scales = {name: torch.where(scale > 0, scale, again[name]) for name, scale in scales.items()}
    return {name: torch.where(scale > 0, scale, 1.0) for name, scale in scales.items()}


def _sampled(
    discretization: Discretization, at: tuple[Tensor, ...], sizes: tuple[Tensor, ...], values: dict[str, Tensor]
) -> dict[str, Tensor]:
    """The larger of the values and the root mean square of their changes along random directions."""
    generator, e = torch.Generator().manual_seed(0), torch.finfo(at[0].dtype).eps ** (1 / 3)
    squares = {name: torch.zeros_like(value) for name, value in values.items()}
    for _ in range(PROBES):
        ways = [e * size * normal(size, generator) for size in sizes]
        ends = [_values(discretization, *(a + k * way for a, way in zip(at, ways, strict=True))) for k in (1, -1)]
        for name, square in squares.items():
            square += ((ends[0][name] - ends[1][name]) / (2 * e)).nan_to_num(0.0, 0.0, 0.0).square() / PROBES
    return {name: _largest(torch.maximum(square.sqrt(), values[name].abs())) for name, square in squares.items()}


def _largest(values: Tensor) -> Tensor:
    """Of each entry, over the nodes if there are several."""
    return values if values.ndim == 1 else values.amax(0)


def excesses(
    discretization: Discretization, control: Tensor, states: Tensor, to_end: bool = False
) -> tuple[Excess, ...]:
    """The largest violation of each constraint along a trajectory; for the arguments see `constraint_values`."""
    values = constraint_values(discretization, control, states, to_end)
    scales, last = constraint_scales(discretization, control, states), discretization.grid.steps
    return tuple(_excess(name, value, scales[name], last) for name, value in values.items())


def _excess(name: str, value: Tensor, scale: Tensor, last: int) -> Excess:
    value = value.abs() if name == "terminal_equality" else value
    shares = (value / scale).nan_to_num(inf, inf, -inf)
    k, entry = divmod(int(shares.argmax()), value.shape[-1])
    amount, share = (float(numbers.flatten()[k * value.shape[-1] + entry]) for numbers in (value, shares))
    return Excess(name, amount if isfinite(amount) else inf, max(share, 0.0), entry, last if value.ndim == 1 else k)
