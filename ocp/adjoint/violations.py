"""By how much a trajectory violates the constraints of its problem."""

from __future__ import annotations

from collections.abc import Mapping

from torch import Tensor

from ocp.adjoint.discretization import Discretization
from ocp.problem.shapes import FlatControl

__all__ = ["violations"]


def violations(discretization: Discretization, control: FlatControl, states: Tensor) -> Mapping[str, float]:
    """The largest violation of each constraint, by its name, zero where it holds.

    It needs the trajectory of the control, shape (N + 1, batch, *state).
    """
    constraints, found = discretization.problem.constraints, {}
    q = discretization.space.parameters(control)
    if constraints.path is not None:
        points = zip(discretization.grid.nodes, states, discretization.inputs(control), strict=False)
        found["path_constraint"] = max(float(constraints.path(t, x, v).max()) for t, x, v in points)
    if constraints.equality is not None:
        found["terminal_equality"] = float(constraints.equality(states[-1], q).abs().max())
    if constraints.inequality is not None:
        found["terminal_inequality"] = float(constraints.inequality(states[-1], q).max())
    return {name: max(0.0, value) for name, value in found.items()}
