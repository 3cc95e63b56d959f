"""Whether the pieces of a problem are what they have to be, found out by evaluating each of them a few times."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from functools import partial
from typing import Any

import torch
from torch import Tensor

from ocp.problem.boundary import call, check_unchanged, identical, same
from ocp.problem.control_problem import ControlProblem
from ocp.problem.costs import RunningFunction, TerminalFunction
from ocp.problem.differences import disagreement, nearby
from ocp.problem.dynamics import FunctionDynamics
from ocp.problem.functions import pullback
from ocp.problem.initial_state import StateFunction
from ocp.problem.protocols import Checked
from ocp.space.control import time_hint

__all__ = ["inspect_control_costs", "inspect_initial_state", "inspect_pieces"]

#: Pieces whose derivatives are those of autograd.
FUNCTIONS = (FunctionDynamics, RunningFunction, StateFunction, TerminalFunction)
#: How the names of pieces end that may have derivatives of their own; those of others are by autograd.
OWN = ("dynamics", "state", "cost")


@dataclass(frozen=True, eq=False)
class _Piece:
    """A piece with the arguments of one evaluation.

    Attributes
    ----------
    call, derivative : str
        How value and derivative are written: ``f(t, x, u)`` and ``vjp(t, x, u, p)``.
    pull : callable
        From the arguments, and a cotangent unless the value is a scalar, to the derivatives.
    """

    name: str
    call: str
    derivative: str
    piece: Callable[..., Any]
    pull: Callable[..., Any]
    arguments: Mapping[str, Tensor]
    times: tuple[float, ...] = ()  # the time of the evaluation, if the piece depends on one
    parameters: int = 0  # how many numbers at the end of u are those of q

    @property
    def scalar(self) -> bool:
        return self.derivative.startswith("derivative")

    def value(self, *arguments: Tensor) -> Tensor:
        """The value, with errors that name the piece."""
        names = [*("t" for _ in self.times), *self.arguments]
        try:
            return call(self.name, self.piece, **dict(zip(names, (*self.times, *arguments), strict=True)))
        except (AttributeError, LookupError, RuntimeError, TypeError) as error:  # of torch, for shapes, types, devices
            raise self._explained(error) from error

    def pullback(self, cotangent: Tensor, *arguments: Tensor) -> tuple[Any, ...]:
        """The derivatives, with errors that name the piece, times the cotangent where the value is a scalar."""
        try:
            found = self.pull(*self.times, *arguments, *(() if self.scalar else (cotangent,)))
        except (AttributeError, LookupError, RuntimeError, TypeError) as error:
            raise self._explained(error) from error
        return (found,) if len(self.arguments) == 1 else found

    def _explained(self, error: Exception) -> ValueError:
        given = {name: tuple(a.shape) for name, a in self.arguments.items()}
        if self.parameters:
            given["u"] = (given["u"][0] - self.parameters,)
        shapes = " and ".join(f"{name} of shape {shape}" for name, shape in given.items())
        shown = f"t, {shapes}" if self.times else shapes
        said = error.args[0] if isinstance(error, KeyError) and error.args else error  # as text, it is in quotes
        hint = time_hint(error)
        if "numpy()" in str(error):
            hint = hint or "; write it in operations of torch, which autograd can follow"
        if "x" in given and "out of bounds for dimension 0" in str(error):
            hint = "; the first index of x is that of the sample: write x[:, i], not x[i]"
        if self.name == "terminal_cost" and "positional argument" in str(error):
            hint = "; it is Phi(x), or Phi(x, q) with parameters"
        return ValueError(
            f"{self.name}: expected {self.call} to take {shown}, got {type(error).__name__}: {said}{hint}"
        )


def _pieces(problem: ControlProblem, q: Tensor, x: Tensor, u: Tensor, t: float = 0.0) -> Iterator[_Piece]:
    f, L = problem.equation.dynamics, problem.equation.running_cost
    X0, Phi, s = problem.initial_state, problem.terminal_cost, problem.equation.parameter_size
    yield _Piece("initial_state", "X0(q)", "vjp(q, p)", X0, X0.vjp, {"q": q})
    yield _Piece("dynamics", "f(t, x, u)", "vjp(t, x, u, p)", f, f.vjp, {"x": x, "u": u}, (t,), s)
    if L is not None:
        yield _Piece("running_cost", "L(t, x, u)", "derivative(t, x, u)", L, L.derivative, {"x": x, "u": u}, (t,), s)
    if Phi is not None:
        written = "Phi(x, q)" if len(q) else "Phi(x)"
        yield _Piece("terminal_cost", written, "derivative(x, q)", Phi, Phi.derivative, {"x": x, "q": q})
    constraints = problem.constraints
    if (c := constraints.path) is not None:
        yield _constraint("path_constraint", "c(t, x, u)", c, {"x": x, "u": u}, (t,))
    for name, g in (("terminal_equality", constraints.equality), ("terminal_inequality", constraints.inequality)):
        if g is not None:
            yield _constraint(name, "g(x, q)" if len(q) else "g(x)", g, {"x": x, "q": q})
    if (y := problem.equation.observation) is not None:
        yield _constraint("observe", "y(x, q)" if len(q) else "y(x)", y, {"x": x, "q": q})


def _constraint(
    name: str, written: str, function: Any, arguments: Mapping[str, Tensor], times: tuple[float, ...] = ()
) -> _Piece:
    """A constraint, or what is observed, with its derivative by autograd."""

    def pull(*given: Any) -> tuple[Tensor, ...]:
        t, (*at, p) = given[: len(times)], given[len(times) :]
        return pullback(partial(function, *t), tuple(at), p)

    return _Piece(name, written, f"autograd of {written}", function, pull, arguments, times)


def inspect_initial_state(problem: ControlProblem, q: Tensor) -> Tensor:
    """The initial state, after the piece that gives it was inspected."""
    piece = next(_pieces(problem, q, q, q))
    _inspect(piece, lambda x: "" if _is_state(x) else "a floating-point tensor of shape (batch, *state)")
    x = piece.value(q)
    if not x.numel():
        raise ValueError(f"initial_state: expected at least one sample and number, got shape {tuple(x.shape)}")
    return x


def inspect_pieces(problem: ControlProblem, q: Tensor, x: Tensor, u: Tensor) -> None:
    """Evaluate dynamics and costs, and their derivatives, at one point.

    Raises
    ------
    ValueError
        If a piece fails, returns the wrong shape or type, changes its arguments, differs when called again, or, being a
        function that autograd differentiates, has a derivative that disagrees with its values. The message names it.
    """
    _, f, *others = _pieces(problem, q, x, u)
    fits = f"f(t, x, u) of the shape of the state {tuple(x.shape)} and of {x.dtype}"
    _inspect(f, lambda y: "" if isinstance(y, Tensor) and y.shape == x.shape and y.dtype == x.dtype else fits)
    for piece in others:
        if piece.name.endswith("cost"):
            _inspect(piece, lambda y: "" if _is_number(y) else "a scalar tensor of shape ()")
        else:
            _inspect(piece, lambda y: "" if y.is_floating_point() and y.numel() else "one or more real numbers")
    _refuse_disagreements(problem, q, x, u)


def inspect_control_costs(problem: ControlProblem, x: Tensor) -> None:
    """As `inspect_pieces`, for the costs of the control, on a grid of three steps; x shows type and device."""
    space = problem.space(problem.grid(3))
    flat = nearby({"flat": x.new_zeros(space.dimension)})
    for R in problem.control_cost:
        value, derivative = partial(R, space), partial(R.derivative, space)
        piece = _Piece("control_cost", "R(space, flat)", "derivative(space, flat)", value, derivative, flat)
        _inspect(piece, lambda y: "" if _is_number(y) else "a scalar tensor of shape ()")


def _refuse_disagreements(problem: ControlProblem, q: Tensor, x: Tensor, u: Tensor) -> None:
    """Refuse functions whose derivative disagrees with differences, at two times and near the given point."""
    q, x, u = nearby({"q": q, "x": x, "u": u}).values()
    for t in (0.0, 0.6 * problem.grid(1).horizon):
        for piece in _pieces(problem, q, x, u, t):
            # Not those whose derivatives are overridden, nor again those without a time.
            differentiated = type(piece.piece) in FUNCTIONS or not piece.name.endswith(OWN)
            if not differentiated or (t > 0 and not piece.times):
                continue
            with torch.no_grad():
                found = disagreement(piece.value, partial(_scaled, piece), piece.arguments)
            if found:
                # At t = 0, the time t = s T does not depend on T, so that what appears only later is due to t.
                late = t > 0 and problem.parameters.free_horizon
                hint = "; with a free final time t is a tensor: write torch.sin(t), not math.sin(t) or float(t)"
                raise ValueError(
                    f"{piece.name}: expected operations that autograd can follow, got the derivative {found}"
                    f"{hint if late else ''}"
                )


def _scaled(piece: _Piece, cotangent: Tensor, *arguments: Tensor) -> tuple[Tensor, ...]:
    found = piece.pullback(cotangent, *(a.clone() for a in arguments))
    return tuple(cotangent * part for part in found) if piece.scalar else found


def _inspect(piece: _Piece, lacks: Callable[[Any], str]) -> None:
    """Evaluate a piece and its derivative a few times; ``lacks`` says what its value should be if it is not."""
    if isinstance(piece.piece, Checked):
        piece.piece.check(*piece.times, *piece.arguments.values())
    with torch.no_grad():
        copies = {name: a.clone() for name, a in piece.arguments.items()}
        y = piece.value(*copies.values())
        if expected := lacks(y):
            raise ValueError(f"{piece.name}: expected {expected}, got {_describe(y)}{_advice(piece, y)}")
        if not same(piece.value(*copies.values()), y):
            raise ValueError(f"{piece.name}: expected a deterministic function, got two values at the same arguments")
        check_unchanged(piece.name, piece.call, piece.arguments, copies)
        p, ones = torch.ones_like(y), torch.ones_like(y)
        found = piece.pullback(p, *copies.values())
        _refuse_shapes(piece, found)
        check_unchanged(piece.name, piece.derivative, {**piece.arguments, "p": ones}, {**copies, "p": p})
        kept, elsewhere = [part.clone() for part in (y, *found)], nearby(piece.arguments).values()
        piece.value(*elsewhere)
        piece.pullback(2 * p, *elsewhere)
        if not all(map(identical, (y, *found), kept)):
            raise ValueError(f"{piece.name}: expected a new tensor from each call, got one that later calls overwrite")
        if not same(piece.value(*copies.values()), y):
            raise ValueError(f"{piece.name}: expected {piece.derivative} to leave the values as they are, got others")


def _refuse_shapes(piece: _Piece, found: tuple[Any, ...]) -> None:
    """Refuse derivatives that differ from the arguments in shape or type."""
    expected = [(tuple(a.shape), a.dtype) for a in piece.arguments.values()]
    if [(tuple(part.shape), part.dtype) if isinstance(part, Tensor) else None for part in found] != expected:
        shapes = ", ".join(f"{shape} of {dtype}" for shape, dtype in expected)
        raise ValueError(
            f"{piece.name}: expected {piece.derivative} to return what has the shapes and types of "
            f"{', '.join(piece.arguments)}, {shapes}, got {', '.join(map(_describe, found))}"
        )


def _advice(piece: _Piece, y: Any) -> str:
    if not isinstance(y, Tensor):
        return ""
    if piece.scalar:
        return "; its real part may be what is meant" if y.is_complex() else "; sum or average over the batch"
    forgotten = "u" in piece.arguments and y.shape == piece.arguments["u"].shape
    return "; u has no batch dimension: if f is u alone, write u.expand_as(x)" if forgotten else ""


def _is_state(x: Any) -> bool:
    return isinstance(x, Tensor) and x.ndim >= 2 and x.is_floating_point()


def _is_number(y: Any) -> bool:
    return isinstance(y, Tensor) and y.shape == () and y.is_floating_point()


def _describe(value: Any) -> str:
    return f"shape {tuple(value.shape)} of {value.dtype}" if isinstance(value, Tensor) else type(value).__name__
