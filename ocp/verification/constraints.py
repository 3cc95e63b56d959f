"""What the derivatives of constraints are checked by: their slopes, and an augmented Lagrangian."""

from __future__ import annotations

from collections.abc import Callable, Iterator

import torch
from torch import Tensor

from ocp.objective.feasibility import constraint_scales, constraint_values
from ocp.objective.reduced import ReducedEvaluation, ReducedObjective
from ocp.problem.augmented import Augmentation
from ocp.problem.differences import normal
from ocp.problem.functions import pullback

__all__ = ["augmented", "constraint_lines"]


def augmented(objective: ReducedObjective, point: ReducedEvaluation, generator: torch.Generator) -> ReducedEvaluation:
    """An augmented Lagrangian at the same control, in which about half of the inequalities are active.

    Its multipliers are such that small changes leave these active, and those inactive, so that it is smooth nearby.
    """
    discretization, u = objective.discretization, point.control
    states = point.states.clone()
    sizes, penalty = constraint_scales(discretization, u, states), max(abs(point.value), 1e-6)
    multipliers = {
        name: penalty * (torch.randn(value.shape, generator=generator).sign().to(value) - value / sizes[name])
        for name, value in constraint_values(discretization, u, states).items()
    }
    return objective.augmented(Augmentation(multipliers, sizes, penalty)).at(u)


def constraint_lines(
    objective: ReducedObjective, point: ReducedEvaluation, generator: torch.Generator
) -> Iterator[tuple[str, Callable[[float], float], float]]:
    """For each constraint its name, a number that depends on it along a line, and the slope of that at the beginning.

    The line leads through states, controls and parameters; the number is a random combination of the entries.
    """
    discretization, space, u = objective.discretization, objective.space, point.control
    constraints, x, q = discretization.problem.constraints, point.states.clone(), space.parameters(u)
    k = space.grid.steps // 2
    t = space.grid.nodes[k]
    at_node, at_end = (x[k], discretization.inputs(u)[k]), (x[-1], q)
    path = constraints.path
    if path is not None:
        yield "path_constraint", *_line(lambda x, v: path(t, x, v), at_node, generator)
    for name, g in (("terminal_equality", constraints.equality), ("terminal_inequality", constraints.inequality)):
        if g is not None:
            yield name, *_line(g, at_end, generator)


def _line(
    function: Callable[..., Tensor], at: tuple[Tensor, ...], generator: torch.Generator
) -> tuple[Callable[[float], float], float]:
    ways = tuple(normal(a, generator) for a in at)
    weights = normal(function(*at), generator)

    def number(e: float) -> float:
        return float((weights * function(*(a + e * way for a, way in zip(at, ways, strict=True)))).sum())

    slopes = pullback(function, at, weights)
    return number, float(sum((slope * way).sum() for slope, way in zip(slopes, ways, strict=True)))
