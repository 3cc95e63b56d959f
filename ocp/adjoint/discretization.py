"""A problem on a grid with an integrator; the pieces are checked here, once."""

from __future__ import annotations

import traceback
from collections.abc import Callable
from dataclasses import dataclass, replace
from functools import cached_property
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from ocp.integrators.integrator import Integrator, SelectiveIntegrator
from ocp.problem.boundary import call
from ocp.problem.control_problem import ControlProblem
from ocp.problem.initial_state import Opening
from ocp.problem.protocols import Checked
from ocp.space.bounds import Box, feasible
from ocp.space.control import Control, ControlSpace, at_midpoints
from ocp.space.grid import TimeGrid

__all__ = ["Discretization"]


@dataclass(frozen=True)
class Discretization:
    """The discrete optimal control problem."""

    problem: ControlProblem
    grid: TimeGrid
    integrator: Integrator

    @cached_property
    def space(self) -> ControlSpace:
        """The space of its controls."""
        return self.problem.space(self.grid)

    @cached_property
    def box(self) -> Box | None:
        """The controls within the bounds; None if the problem has none."""
        bounds = self.problem.bounds
        return None if bounds is None else bounds.on(self.space, self.example()[0])

    def on(self, steps: int) -> Discretization:
        """The same problem on another number of steps."""
        return replace(self, grid=TimeGrid(self.grid.horizon, steps))

    def take(self, indices: Tensor) -> Discretization:
        """The same discretization on some of the samples."""
        return replace(self, problem=self.problem.take(indices))

    def example(self) -> tuple[Tensor, Tensor]:
        """An initial state and the control of one step, both at the start of the problem."""
        problem, start = self.problem, self.problem.start
        x = problem.initial_state(self._parameters())
        return x, start.path[0] if isinstance(start, Control) else x.new_zeros(problem.dynamics.control_size)

    def _parameters(self) -> Tensor:
        """The parameters q at the start of the problem."""
        problem = self.problem
        if isinstance(problem.start, Control):
            return problem.start.parameters
        # An opening computes in the type of its inputs; a function of the parameters gets the default type.
        like = problem.initial_state.inputs if isinstance(problem.initial_state, Opening) else torch.empty(0)
        dtype = like.dtype if like.is_floating_point() else torch.get_default_dtype()
        return like.new_zeros(problem.parameter_size, dtype=dtype)

    def check(self) -> None:
        """Evaluate every piece once and compare shapes and types.

        Raises
        ------
        ValueError
            If a piece does not fit; the message names it, what was expected and what it returned. A
            `SelectiveIntegrator` also checks the problem.
        """
        problem, q = self.problem, self._parameters()
        x = _evaluate("initial_state", f"to take q of shape ({problem.parameter_size},)", problem.initial_state, q)
        self.box  # noqa: B018  raises where the bounds do not fit
        (_, u), q = self.example(), q.to(x)
        if x.dtype != u.dtype:
            raise ValueError(f"start: expected the type of the initial state, {x.dtype}, got {u.dtype}")
        taking = f"to take x of shape {tuple(x.shape)} and u of shape {tuple(u.shape)}"
        f = _evaluate("dynamics", taking, problem.dynamics, 0.0, x, u)
        if not isinstance(f, Tensor) or f.shape != x.shape or f.dtype != x.dtype:
            raise ValueError(
                f"dynamics: expected f(t, x, u) of the shape of the state {tuple(x.shape)} and of {x.dtype}, "
                f"got {_describe(f)}" + _hint(f, u)
            )
        _check_derivative("dynamics: expected vjp(t, x, u, p)", problem.dynamics.vjp(0.0, x, u, f), x=x, u=u)
        _check_derivative("initial_state: expected vjp(q, p)", (problem.initial_state.vjp(q, x),), q=q)
        L, Phi = problem.running_cost, problem.terminal_cost
        if L is not None:
            _check_scalar("running_cost", _evaluate("running_cost", taking, L, 0.0, x, u))
            _check_derivative("running_cost: expected derivative(t, x, u)", L.derivative(0.0, x, u), x=x, u=u)
        if Phi is not None:
            taking = f"to take a final state of shape {tuple(x.shape)}"
            _check_scalar("terminal_cost", _evaluate("terminal_cost", taking, Phi, x, q))
            _check_derivative("terminal_cost: expected derivative(x, q)", Phi.derivative(x, q), x=x, q=q)
        if isinstance(self.integrator, SelectiveIntegrator):
            self.integrator.check(problem, x, u)

    def start(self) -> Control:
        """The start of the problem on this grid, zero by default, projected onto the bounds.

        The steps of a coarser start are repeated.

        Raises
        ------
        TypeError, ValueError
            If the number of steps of the start does not divide that of this grid, or if a function of time does not
            return the control of a step, or one that is not finite.
        """
        space, start = self.space, self.problem.start
        x, path = self.example()[0], start.path if isinstance(start, Control) else start
        parameters = start.parameters if isinstance(start, Control) else x.new_zeros(space.parameter_size)
        if isinstance(path, Tensor) and path.ndim == 2:
            if self.grid.steps % len(path):
                raise ValueError(
                    f"start: expected a control on a divisor of {self.grid.steps} steps, got {len(path)} steps"
                )
            path = path.to(parameters).repeat_interleave(self.grid.steps // len(path), dim=0)
        else:
            path = at_midpoints("start: expected it", 0.0 if path is None else path, space, x)
        flat = space.join(path, parameters)
        if not bool(torch.isfinite(flat).all()):
            raise ValueError("start: expected finite numbers, got a function of time that returns NaN or infinity")
        return Control(space, feasible(flat, self.box))


def _evaluate(name: str, expected: str, piece: Callable[..., Any], *arguments: Any) -> Any:
    """One value of a piece, which first checks itself if it can; an error names the piece."""
    if isinstance(piece, Checked):
        piece.check(*arguments)
    copies = [argument.clone() if isinstance(argument, Tensor) else argument for argument in arguments]
    names = ("t", "x", "u") if len(copies) == 3 else ("x", "q")[-len(copies) :]
    try:
        return call(name, piece, **dict(zip(names, copies, strict=True)))
    except (RuntimeError, IndexError, TypeError) as error:  # what torch raises for shapes, types and devices
        if isinstance(error, TypeError) and not _ours(error):
            raise
        raise ValueError(f"{name}: expected {expected}, got {type(error).__name__}: {error}") from error


def _check_scalar(name: str, value: Any) -> None:
    if not isinstance(value, Tensor) or value.shape != () or value.is_complex():
        got = _describe(value)
        hint = "its real part may be what is meant" if "complex" in got else "sum or average over the batch"
        raise ValueError(f"{name}: expected a scalar tensor of shape (), got {got}; {hint}")


def _check_derivative(expected: str, found: Any, **like: Tensor) -> None:
    shapes = [tuple(entry.shape) for entry in like.values()]
    if [tuple(entry.shape) if isinstance(entry, Tensor) else None for entry in found] != shapes:
        got = ", ".join(_describe(entry) for entry in found)
        raise ValueError(f"{expected} to return what has the shapes of {', '.join(like)}, {shapes}, got {got}")


def _ours(error: TypeError) -> bool:
    """Whether the call itself failed, so that the error comes from a line of this package."""
    *_, (frame, _) = traceback.walk_tb(error.__traceback__)
    return Path(frame.f_code.co_filename).is_relative_to(Path(__file__).parents[1])


def _hint(f: Any, u: Tensor) -> str:
    forgotten = isinstance(f, Tensor) and f.shape == u.shape
    return "; u has no batch dimension: if f is u alone, write u.expand_as(x)" if forgotten else ""


def _describe(value: Any) -> str:
    return f"shape {tuple(value.shape)} of {value.dtype}" if isinstance(value, Tensor) else type(value).__name__
