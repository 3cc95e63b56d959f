"""The continuous optimal control problem, independent of any grid."""

from __future__ import annotations

import copy
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from functools import partial
from math import isclose, isfinite
from typing import Any

import torch
from torch import Tensor

from ocp.problem.boundary import check_finite, data, take
from ocp.problem.constraints import Constraints, as_constraints
from ocp.problem.costs import RunningFunction, TerminalFunction, as_control_costs, as_running_cost, as_terminal_cost
from ocp.problem.dynamics import FunctionDynamics, as_dynamics
from ocp.problem.equation import Equation, as_equation
from ocp.problem.initial_state import as_initial_state
from ocp.problem.measurements import Measurements, Observation
from ocp.problem.parameters import Parameter, ParameterSet, as_parameters, check_arguments
from ocp.problem.protocols import ControlCost, Dynamics, InitialState, RunningCost, TerminalCost
from ocp.space.bounds import Bounds, as_bounds
from ocp.space.control import Control, ControlSpace, TimeFunction
from ocp.space.grid import TimeGrid

__all__ = ["ControlProblem"]


@dataclass(frozen=True, eq=False)
class ControlProblem:
    """Minimize Phi(x(T), q) + integral of L(t, x, u, q) + R(u, q) subject to x' = f(t, x, u, q), x(0) = X0(q).

    `Measurements` of the state at given times may add to the cost. Bounds on u and q, c(t, x, u, q) <= 0 along the way,
    g(x(T), q) = 0 and g(x(T), q) <= 0 at the end may constrain it. The parameters q do not depend on time; functions
    that do not use them leave the argument out.

    Parameters
    ----------
    dynamics : callable, nn.Module or Dynamics
        f(t, x, u) or f(t, x, u, q), with x of shape (batch, *state) and u of shape (control_size,).
    initial_state : Tensor, callable or InitialState
        x_0 of shape (batch, *state), or a function of the parameters q. Its dtype and device are those of the problem.
    terminal_cost : callable or TerminalCost, optional
        Phi(x) or Phi(x, q); a scalar tensor.
    running_cost : callable or RunningCost, optional
        L(t, x, u) or L(t, x, u, q); a scalar tensor, integrated with the scheme of the state.
    control_cost : ControlCost or sequence of ControlCost, optional
        R, for example ``Tikhonov(1e-3)``.
    horizon : float or Parameter
        Final time T. As a `Parameter`, such as ``Parameter(2.0, lower=0.1)``, it is free; functions get it as
        ``q["horizon"]``, and times t as tensors. Grids divide [0, 1], the control is a function of t / T.
    control_size : int, optional
        m; required for a plain function, otherwise known from the dynamics. 0 if all there is to find are parameters.
    parameters : mapping or int, optional
        Names with starts, each a number, a tensor of any shape, or a `Parameter`, which has bounds as well:
        ``{"mass": 1.2, "drag": Parameter(0.1, lower=0.0)}``. Functions get ``q["mass"]``, or ``q.mass``. With an
        integer s, q is a tensor of s numbers that start at zero.
    start : Control, TimeFunction or Tensor of shape (n, m), optional
        The initial guess: a `Control`, possibly on a coarser grid; or, with parameters that start at zero, a number, a
        tensor of shape (m,), a function of time that returns either, or a tensor with one row for each of n steps, of
        shape (n,) if m = 1. By default, zero.
    bounds : pair or Bounds, optional
        Lower and upper bound of the control: numbers, tensors of shape (m,), or functions of time; None for no bound on
        that side. The start is projected onto them.
    path_constraint : callable, optional
        c(t, x, u) or c(t, x, u, q): a tensor whose entries must not be positive at the nodes t_0, ..., t_{N-1}.
    terminal_equality, terminal_inequality : callable, optional
        g(x) or g(x, q): a tensor whose entries must be zero, or must not be positive, at the final time.
    measurements : Measurements, optional
        Data at given times, whose squared differences from the states are costs; `fit` estimates parameters from them.
    names : mapping, optional
        A name for each number in the state under ``"x"``, and in the control under ``"u"``, for figures and tables:
        ``{"x": ("angle", "speed"), "u": ("torque",)}``.

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
    >>> problem.space(problem.grid(50)).dimension
    50
    """

    dynamics: Dynamics
    initial_state: InitialState
    terminal_cost: TerminalCost | None = None
    running_cost: RunningCost | None = None
    control_cost: tuple[ControlCost, ...] = ()
    horizon: float | Parameter = 1.0
    control_size: int | None = None
    parameters: ParameterSet = field(default_factory=partial(ParameterSet, {}))
    start: Control | TimeFunction | None = None
    bounds: Bounds | None = None
    path_constraint: Callable[..., Tensor] | None = None
    terminal_equality: Callable[..., Tensor] | None = None
    terminal_inequality: Callable[..., Tensor] | None = None
    measurements: Measurements | None = None
    names: Mapping[str, tuple[str, ...]] = field(default_factory=dict)
    equation: Equation = field(init=False, repr=False)
    constraints: Constraints = field(init=False, repr=False)

    def __init__(
        self,
        dynamics: Any,
        initial_state: Any,
        terminal_cost: Any = None,
        running_cost: Any = None,
        control_cost: Any = None,
        horizon: float | Parameter = 1.0,
        control_size: int | None = None,
        parameters: Any = None,
        start: Control | TimeFunction | None = None,
        bounds: Any = None,
        path_constraint: Any = None,
        terminal_equality: Any = None,
        terminal_inequality: Any = None,
        measurements: Measurements | None = None,
        names: Mapping[str, Sequence[str]] | None = None,
    ):
        dynamics = as_dynamics(dynamics, control_size)
        horizon = _as_horizon(horizon)
        parameters = as_parameters(parameters, horizon)
        if not (dynamics.control_size or parameters.size):
            raise ValueError("control_size: expected an integer >= 1 for a problem without parameters, got 0")
        vars(self).update(
            dynamics=dynamics,
            initial_state=as_initial_state(initial_state, parameters),
            terminal_cost=as_terminal_cost(terminal_cost, parameters),
            running_cost=as_running_cost(running_cost),
            control_cost=as_control_costs(control_cost),
            horizon=horizon,
            control_size=dynamics.control_size,
            parameters=parameters,
            start=start if start is None or callable(start) else self._as_start(start, dynamics.control_size),
            bounds=as_bounds(bounds),
            path_constraint=path_constraint,
            terminal_equality=terminal_equality,
            terminal_inequality=terminal_inequality,
            measurements=measurements,
            names=_as_names(names or {}, dynamics.control_size),
        )
        self._check_measurements()
        self._check_functions()
        vars(self)["equation"] = self._equation()
        vars(self)["constraints"] = as_constraints(
            path_constraint, terminal_equality, terminal_inequality, dynamics.control_size, parameters
        )
        if parameters.free_horizon and self.control_cost:
            raise ValueError(
                "control_cost: expected none with a free horizon, whose grids divide [0, 1]; use running_cost"
            )
        if self.terminal_cost is None and self.running_cost is None and not (self.control_cost or measurements):
            raise ValueError(
                "costs: expected a terminal_cost, a running_cost, a control_cost or measurements, got none of them"
            )
        if isinstance(start, Control):
            self.check_space("start", start.space)

    def __repr__(self) -> str:
        pieces = (self.dynamics, self.initial_state, self.terminal_cost, self.running_cost, *self.control_cost)
        kinds = ", ".join(type(piece).__name__ for piece in (*pieces, self.measurements) if piece is not None)
        horizon = "free" if isinstance(self.horizon, Parameter) else f"{self.horizon:g}"
        sizes = f"horizon={horizon}, control_size={self.control_size}, parameter_size={self.parameter_size}"
        return f"ControlProblem({kinds}, {sizes})"

    @property
    def parameter_size(self) -> int:
        """s, the length of q."""
        return self.parameters.size

    def grid(self, steps: int) -> TimeGrid:
        """The grid of a number of steps: of [0, T], or of [0, 1] if T is free."""
        return TimeGrid(1.0 if isinstance(self.horizon, Parameter) else self.horizon, steps)

    def duration(self, q: Tensor) -> float:
        """The final time T."""
        return float(self.parameters.duration(q)) if isinstance(self.horizon, Parameter) else self.horizon

    def space(self, grid: TimeGrid) -> ControlSpace:
        """The controls of this problem on one grid."""
        return ControlSpace(grid, self.dynamics.control_size, self.parameter_size)

    def _check_functions(self) -> None:
        """Refuse constraints that are no functions, and functions of parameters if there are none."""
        constraints = {
            "path_constraint": (self.path_constraint, 3),
            "terminal_equality": (self.terminal_equality, 1),
            "terminal_inequality": (self.terminal_inequality, 1),
        }
        for name, (function, _) in constraints.items():
            if not (function is None or callable(function)):
                raise TypeError(f"{name}: expected a function, got {type(function).__name__}")
        pieces = {"dynamics": (self.dynamics, 3), "running_cost": (self.running_cost, 3)}
        plain = {
            name: (piece.function, arguments)
            for name, (piece, arguments) in {**pieces, "terminal_cost": (self.terminal_cost, 1)}.items()
            if isinstance(piece, FunctionDynamics | RunningFunction | TerminalFunction)
        }
        observe = None if self.measurements is None else self.measurements.observe
        for name, (function, arguments) in {**plain, **constraints, "observe": (observe, 1)}.items():
            if function is not None and not self.parameters.size:
                check_arguments(name, function, arguments)

    def _check_measurements(self) -> None:
        if self.measurements is None:
            return
        if not isinstance(self.measurements, Measurements):
            raise TypeError(
                f"measurements: expected Measurements(times, values), got {type(self.measurements).__name__}"
            )
        if isinstance(self.horizon, Parameter):
            raise ValueError("measurements: expected a fixed horizon, since their times are fixed, got a free one")
        self.measurements.check(self.horizon)

    def _equation(self) -> Equation:
        observation = None
        if self.measurements is not None:
            m, T = self.dynamics.control_size, self.grid(1).horizon
            observation = Observation(self.measurements, m, self.parameters, T)
        return as_equation(self.dynamics, self.running_cost, self.parameters, self.path_constraint, observation)

    def take(self, indices: Tensor) -> ControlProblem:
        """The same problem on some of its samples, in the given order.

        Plain functions as costs are assumed to treat all samples alike.

        Raises
        ------
        ValueError
            If a piece that depends on the samples cannot be divided.
        """
        taken = copy.copy(self)  # what was checked need not be checked for each batch
        for name in ("initial_state", "terminal_cost", "running_cost", "measurements"):
            piece = getattr(self, name)
            vars(taken)[name] = None if piece is None else take(name, piece, indices)
        if taken.running_cost is not self.running_cost or taken.measurements is not None:
            vars(taken)["equation"] = taken._equation()
        return taken

    def check_space(self, name: str, space: ControlSpace) -> None:
        """Raise a ``ValueError``, which begins with ``name``, if a space does not hold controls of this problem."""
        m, s = self.dynamics.control_size, self.parameter_size
        if (space.control_size, space.parameter_size) != (m, s):
            raise ValueError(
                f"{name}: expected a control with {m} numbers per step and {s} parameters, "
                f"got {space.control_size} and {space.parameter_size}"
            )
        horizon = self.grid(1).horizon
        if not isclose(space.grid.horizon, horizon):
            raise ValueError(f"{name}: expected a control on the horizon {horizon:g}, got {space.grid.horizon:g}")

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


def _as_horizon(horizon: Any) -> float | Parameter:
    if isinstance(horizon, Parameter):
        assert isinstance(horizon.start, Tensor)
        if horizon.start.numel() != 1 or not float(horizon.start) > 0:
            raise ValueError(f"horizon: expected a Parameter whose start is a number > 0, got {horizon.start}")
        lower = 0.0 if horizon.lower is None else float(horizon.lower)
        if lower < 0:
            raise ValueError(f"horizon: expected a lower bound >= 0, got {lower:g}")
        return replace(horizon, lower=lower)
    if not (isinstance(horizon, int | float) and isfinite(horizon) and horizon > 0):
        raise ValueError(f"horizon: expected a finite number > 0, or a Parameter, got {horizon!r}")
    return float(horizon)


def _as_names(names: Mapping[str, Sequence[str]], control_size: int) -> dict[str, tuple[str, ...]]:
    if not isinstance(names, Mapping) or not set(names) <= {"x", "u"}:
        raise ValueError(f"names: expected a mapping with names for x and u, got {names!r}")
    for symbol, each in names.items():
        if isinstance(each, str) or not all(isinstance(name, str) and name for name in each):
            raise ValueError(f"names: expected a sequence of names for {symbol}, got {each!r}")
    if len(names.get("u", "")) not in (0, control_size):
        raise ValueError(
            f"names: expected {control_size} for u, one for each number in the control, got {names['u']!r}"
        )
    return {symbol: tuple(each) for symbol, each in names.items()}
