"""When a run ends."""

from __future__ import annotations

from dataclasses import dataclass
from math import inf
from numbers import Real

from ocp.run.results import Target

__all__ = ["Stop"]


@dataclass(frozen=True)
class Stop:
    """When `minimize` ends a run.

    Parameters
    ----------
    tolerance : float
        Stop when the dual norm of the derivative on the finest grid, or with bounds that of the projected gradient step
        (`ocp.objective.evaluation.optimality`), is at most this fraction of its value at the start, or at the first
        control that is finite on that grid.
        With constraints, it is the derivative of the Lagrangian.
    target : Target, optional
        Stop when it is reached.
    feasibility : float
        With constraints, stop for neither of the two before the largest violation at the nodes is at most this share of
        the constraint's own size (`ocp.objective.feasibility`).
    max_iterations : int
    max_work : float
        In gradients on the finest grid and all samples. With `Adaptive`, each finest grid in turn has this limit.
    max_seconds : float
        The iteration that exceeds a limit is completed. Looking (`Watch`) counts toward none of them.
    """

    tolerance: float = 1e-6
    target: Target | None = None
    feasibility: float = 1e-6
    max_iterations: int = 1000
    max_work: float = inf
    max_seconds: float = inf

    def __post_init__(self) -> None:
        if not isinstance(self.target, Target | None):
            raise TypeError(f"target: expected a Target, got {type(self.target).__name__}")
        for name in ("tolerance", "feasibility", "max_iterations", "max_work", "max_seconds"):
            value = getattr(self, name)
            if not (isinstance(value, Real) and float(value) >= 0):
                raise ValueError(f"{name}: expected a number >= 0, got {value!r}")
