"""The continuous optimal control problem, independent of any grid."""

from __future__ import annotations

import copy
from dataclasses import dataclass
from math import isclose, isfinite
from typing import Any

import torch
from torch import Tensor

from ocp.problem.boundary import check_finite, data, take
from ocp.problem.costs import RunningFunction, TerminalFunction, as_control_costs, as_cost
from ocp.problem.dynamics import as_dynamics
from ocp.problem.initial_state import as_initial_state
from ocp.problem.protocols import ControlCost, Dynamics, InitialState, RunningCost, TerminalCost
from ocp.space.bounds import Bounds, as_bounds
from ocp.space.control import Control, ControlSpace, TimeFunction
from ocp.space.grid import TimeGrid

__all__ = ["ControlProblem"]


@dataclass(frozen=True, eq=False)
class ControlProblem:
    """Minimize Phi(x(T), q) + integral of L(t, x, u) + R(u, q) subject to x' = f(t, x, u), x(0) = X0(q).

    Parameters
    ----------
    dynamics : callable, nn.Module or Dynamics
        f(t, x, u) with x of shape (batch, *state) and u of shape (control_size,).
    initial_state : Tensor, callable or InitialState
        x_0 of shape (batch, *state), or a function of the parameters q. Its dtype and device are those of the problem.
    terminal_cost : callable or TerminalCost, optional
        Phi(x), or Phi(x, q) if there are parameters; a scalar tensor.
    running_cost : callable or RunningCost, optional
        L(t, x, u); a scalar tensor, integrated with the scheme of the state.
    control_cost : ControlCost or sequence of ControlCost, optional
        R, for example ``Tikhonov(1e-3)``.
    horizon : float
        Final time T.
    control_size : int, optional
        m; required for a plain function, otherwise known from the dynamics.
    parameter_size : int
        s, the length of q.
    start : Control, TimeFunction or Tensor of shape (n, m), optional
        The initial guess: a `Control`, possibly on a coarser grid; or, with parameters that start at zero, a number, a
        tensor of shape (m,), a function of time that returns either, or a tensor with one row for each of n steps, of
        shape (n,) if m = 1. By default, zero.
    bounds : pair or Bounds, optional
        Lower and upper bound of the control: numbers, tensors of shape (m,), or functions of time; None for no bound on
        that side. The start is projected onto them.

    Raises
    ------
    TypeError, ValueError
        If a piece has the wrong kind, data is not finite, or there is no cost.

    Examples
    --------
    >>> problem = ControlProblem(
    ...     dynamics=lambda t, x, u: u - x,
    ...     initial_state=torch.ones(1, 1),
    ...     running_cost=lambda t, x, u: 0.5 * (x.square().sum() + u.square().sum()),
    ...     control_size=1,
    ... )
    >>> problem
    ControlProblem(FunctionDynamics, FixedState, RunningFunction, horizon=1, control_size=1, parameter_size=0)
    >>> problem.space(TimeGrid(problem.horizon, 50)).dimension
    50
    """

    dynamics: Dynamics
    initial_state: InitialState
    terminal_cost: TerminalCost | None = None
    running_cost: RunningCost | None = None
    control_cost: tuple[ControlCost, ...] = ()
    horizon: float = 1.0
    control_size: int | None = None
    parameter_size: int = 0
    start: Control | TimeFunction | None = None
    bounds: Bounds | None = None

    def __init__(
        self,
        dynamics: Any,
        initial_state: Any,
        terminal_cost: Any = None,
        running_cost: Any = None,
        control_cost: Any = None,
        horizon: float = 1.0,
        control_size: int | None = None,
        parameter_size: int = 0,
        start: Control | TimeFunction | None = None,
        bounds: Any = None,
    ):
        dynamics = as_dynamics(dynamics, control_size)
        if not (isinstance(horizon, int | float) and isfinite(horizon) and horizon > 0):
            raise ValueError(f"horizon: expected a finite number > 0, got {horizon!r}")
        if not isinstance(parameter_size, int) or parameter_size < 0:
            raise ValueError(f"parameter_size: expected an integer >= 0, got {parameter_size!r}")
        if callable(initial_state) and not isinstance(initial_state, InitialState) and not parameter_size:
            raise ValueError(
                "parameter_size: expected the length of q (>= 1) for an initial state that is a function of q, got 0"
            )
        vars(self).update(
            dynamics=dynamics,
            initial_state=as_initial_state(initial_state),
            terminal_cost=as_cost("terminal_cost", terminal_cost, TerminalCost, TerminalFunction, "Phi(x)"),
            running_cost=as_cost("running_cost", running_cost, RunningCost, RunningFunction, "L(t, x, u)"),
            control_cost=as_control_costs(control_cost),
            horizon=float(horizon),
            control_size=dynamics.control_size,
            parameter_size=parameter_size,
            start=start if start is None or callable(start) else self._as_start(start, dynamics.control_size),
            bounds=as_bounds(bounds),
        )
        if self.terminal_cost is None and self.running_cost is None and not self.control_cost:
            raise ValueError("costs: expected a terminal_cost, a running_cost or a control_cost, got none of them")
        if isinstance(start, Control):
            self.check_space("start", start.space)

    def __repr__(self) -> str:
        pieces = (self.dynamics, self.initial_state, self.terminal_cost, self.running_cost, *self.control_cost)
        kinds = ", ".join(type(piece).__name__ for piece in pieces if piece is not None)
        sizes = f"horizon={self.horizon:g}, control_size={self.control_size}, parameter_size={self.parameter_size}"
        return f"ControlProblem({kinds}, {sizes})"

    def space(self, grid: TimeGrid) -> ControlSpace:
        """The controls of this problem on one grid."""
        return ControlSpace(grid, self.dynamics.control_size, self.parameter_size)

    def take(self, indices: Tensor) -> ControlProblem:
        """The same problem on some of its samples, in the given order.

        Plain functions as costs are assumed to treat all samples alike.

        Raises
        ------
        ValueError
            If a piece that depends on the samples cannot be divided.
        """
        taken = copy.copy(self)  # what was checked need not be checked for each batch
        for name in ("initial_state", "terminal_cost", "running_cost"):
            piece = getattr(self, name)
            vars(taken)[name] = None if piece is None else take(name, piece, indices)
        return taken

    def check_space(self, name: str, space: ControlSpace) -> None:
        """Raise a ``ValueError``, which begins with ``name``, if a space does not hold controls of this problem."""
        m, s = self.dynamics.control_size, self.parameter_size
        if (space.control_size, space.parameter_size) != (m, s):
            raise ValueError(
                f"{name}: expected a control with {m} numbers per step and {s} parameters, "
                f"got {space.control_size} and {space.parameter_size}"
            )
        if not isclose(space.grid.horizon, self.horizon):
            raise ValueError(f"{name}: expected a control on the horizon {self.horizon:g}, got {space.grid.horizon:g}")

    def _as_start(self, start: Any, m: int) -> Control | Tensor | float:
        """A start that is not a function of time, as data."""
        if isinstance(start, Control):
            return Control(start.space, data("start", start.flat))
        if isinstance(start, int | float):
            check_finite("start", torch.tensor(float(start)))
            return start
        numbers = data("start", start, "a Control, a number, a tensor or a function of time")
        if m == 1 and numbers.ndim == 1:
            numbers = numbers.unsqueeze(1)
        if numbers.ndim > 2 or numbers.shape[-1:] not in ((), (m,)) or not numbers.numel():
            raise ValueError(f"start: expected a number or shape ({m},) or (n, {m}), got shape {tuple(numbers.shape)}")
        return numbers
