"""Whether optional methods of a user's own pieces agree with the required ones, as a few evaluations show."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from typing import Any

import torch
from torch import Tensor

from ocp.problem.boundary import check_unchanged, identical
from ocp.problem.control_problem import ControlProblem
from ocp.problem.costs import QuadraticRunning, Readout, RunningFunction, TerminalFunction
from ocp.problem.differences import nearby
from ocp.problem.dynamics import FunctionDynamics, ModuleDynamics
from ocp.problem.functions import pullback
from ocp.problem.initial_state import Opening, StateFunction
from ocp.problem.layers import Convolution, Dense
from ocp.problem.protocols import Batched, SecondOrder, Stages, StageWise, Vectorized, capability_applies

__all__ = ["inspect_abilities"]

#: Pieces whose further derivatives are those of autograd, which has them for some functions and not for others.
AUTOGRAD: tuple[type, ...] = (
    FunctionDynamics,
    ModuleDynamics,
    StateFunction,
    Opening,
    RunningFunction,
    TerminalFunction,
    Readout,
)
#: Pieces of our own that are faster at many points at once.
OURS: tuple[type, ...] = (FunctionDynamics, Dense, Convolution, RunningFunction, QuadraticRunning)


@torch.no_grad()
def inspect_abilities(problem: ControlProblem, q: Tensor, x: Tensor, u: Tensor) -> None:
    """Evaluate ``jvp`` and ``hvp``, and what dynamics and running costs offer for many points at once.

    Raises
    ------
    ValueError
        If a method changes its arguments, returns the wrong shape or type, or disagrees with the value or the
        derivative at one point. The message names the piece and the method.
    """
    for name, written, method, arguments, like in _derivatives(problem, *nearby({"q": q, "x": x, "u": u}).values()):
        try:
            found = _call(name, written, method, arguments)
        except NotImplementedError:  # where it is needed, this is raised again
            continue
        parts = found if isinstance(found, tuple) else (found,)
        if [(p.shape, p.dtype) if isinstance(p, Tensor) else None for p in parts] != [
            (p.shape, p.dtype) for p in like.values()
        ]:
            got = ", ".join(f"{tuple(p.shape)} of {p.dtype}" if isinstance(p, Tensor) else str(p) for p in parts)
            expected = " and ".join(like)
            raise ValueError(
                f"{name}: expected {written} to return what has the shapes and types of {expected}, got {got}"
            )
    L, f = problem.equation.running_cost, problem.equation.dynamics
    t, points = (
        x.new_tensor([0.0, 0.4 * problem.grid(1).horizon]),
        nearby({"x": torch.stack((x, x)), "u": torch.stack((u, u))}),
    )
    batched = isinstance(L, Batched) and capability_applies(L, "derivative_along", "__call__", "derivative")
    if isinstance(L, Batched) and batched and type(L) not in OURS and L.supports_batches(x, u):
        _compare_along(L, t, points["x"], points["u"])
    if isinstance(f, StageWise) and type(f) not in OURS and capability_applies(f, "over", "__call__", "vjp"):
        layout = f.stage_layout(x, u)
        if layout is not None:
            _compare_stages(f, t, points["x"], points["u"], layout)
    vectorized = isinstance(f, Vectorized) and capability_applies(f, "along", "__call__", "vjp")
    if isinstance(f, Vectorized) and vectorized and type(f) not in OURS and f.supports_points(t, x, u):
        _compare_points(f, t, points["x"], points["u"])


Method = tuple[str, str, Callable[..., Any], Mapping[str, Tensor], Mapping[str, Tensor]]


def _derivatives(problem: ControlProblem, q: Tensor, x: Tensor, u: Tensor) -> Iterator[Method]:
    """Piece, how the method is written, the method, its arguments, and what its results are like."""
    f, L = problem.equation.dynamics, problem.equation.running_cost
    X0, Phi = problem.initial_state, problem.terminal_cost
    way = nearby({"dx": torch.zeros_like(x), "du": torch.zeros_like(u), "dq": torch.zeros_like(q)})
    dx, du, dq = ({name: d} for name, d in way.items())
    t, p = {"t": torch.zeros(())}, {"p": torch.ones_like(x)}
    at, of = {**t, "x": x, "u": u}, {"x": x, "u": u}
    if not isinstance(f, AUTOGRAD):
        yield "dynamics", "jvp(t, x, u, dx, du)", f.jvp, {**at, **dx, **du}, dx
    if not isinstance(X0, AUTOGRAD):
        yield "initial_state", "jvp(q, dq)", X0.jvp, {"q": q, **dq}, dx
    for name, written, piece, arguments, like in (
        ("dynamics", "hvp(t, x, u, p, dx, du)", f, {**at, **p, **dx, **du}, of),
        ("running_cost", "hvp(t, x, u, dx, du)", L, {**at, **dx, **du}, of),
        ("terminal_cost", "hvp(x, q, dx, dq)", Phi, {"x": x, "q": q, **dx, **dq}, {"x": x, "q": q}),
        ("initial_state", "hvp(q, p, dq)", X0, {"q": q, **p, **dq}, {"q": q}),
    ):
        if isinstance(piece, SecondOrder) and not isinstance(piece, AUTOGRAD):
            yield name, written, piece.hvp, arguments, like


def _call(name: str, written: str, method: Callable[..., Any], arguments: Mapping[str, Tensor]) -> Any:
    """The result of a method, which may write to none of its arguments; a time of shape () is passed as a float."""
    copies = {key: a.clone() for key, a in arguments.items()}
    try:
        found = method(*(float(a) if key == "t" and not a.ndim else a for key, a in copies.items()))
    except NotImplementedError:
        raise
    except (AttributeError, IndexError, RuntimeError, TypeError) as error:
        raise ValueError(f"{name}: expected {written} to work, got {type(error).__name__}: {error}") from error
    check_unchanged(name, written, arguments, copies)
    return found


def _compare_along(L: Any, t: Tensor, x: Tensor, u: Tensor) -> None:
    """Refuse a running cost that at many points differs from itself at one."""
    points, arguments = list(zip(t.tolist(), x, u, strict=True)), {"t": t, "x": x, "u": u}
    values = _call("running_cost", "along(t, x, u)", L.along, arguments)
    _agree("running_cost", "along(t, x, u)", values, torch.stack([L(*point) for point in points]))
    found = _call("running_cost", "derivative_along(t, x, u)", L.derivative_along, arguments)
    expected = zip(*[L.derivative(*point) for point in points], strict=True)
    for part, single in zip(found, expected, strict=True):
        _agree("running_cost", "derivative_along(t, x, u)", part, torch.stack(single))


def _compare_points(f: Any, t: Tensor, x: Tensor, u: Tensor) -> None:
    """Refuse dynamics whose values or derivatives at many points differ from those at one."""
    arguments, points = {"t": t, "x": x, "u": u}, list(zip(t.tolist(), x, u, strict=True))
    values = _call("dynamics", "along(t, x, u)", f.along, arguments)
    _agree("dynamics", "along(t, x, u)", values, torch.stack([f(*point) for point in points]))
    found = pullback(lambda x, u: f.along(t, x, u), (x, u), torch.ones_like(x))
    expected = zip(*[f.vjp(*point, torch.ones_like(point[1])) for point in points], strict=True)
    for part, single in zip(found, expected, strict=True):
        _agree("dynamics", "along(t, x, u)", part, torch.stack(single), "derivatives")


def _compare_stages(f: Any, t: Tensor, x: Tensor, u: Tensor, layout: Tensor) -> None:
    """Refuse dynamics whose values or transposes at the stages of two steps differ from those at one point."""
    h, states, values = 0.5, _storage(layout), _storage(layout)
    states[:, 0].copy_(x)
    stages = Stages(h, t[:, None], states, values, states[:, 0].unbind(0), values[:, 0].unbind(0))
    path, p = u.clone(), nearby({"p": torch.zeros_like(x)})["p"]
    over, times = f.over(path, stages), t.tolist()
    for j in range(2):
        over.value(j, times[j], stages.state[j])
        _agree("dynamics", "over(path, stages)", stages.value[j], f(times[j], x[j], u[j]), "values")
    over.linearize()
    pulled = [over.transpose(j, p[j].clone(), torch.zeros_like(stages.value[j])) for j in (1, 0)][::-1]
    by_control = torch.empty_like(path)
    over.by_control(by_control)
    for j in range(2):
        px, pu = f.vjp(times[j], x[j], u[j], p[j].clone())
        _agree("dynamics", "over(path, stages)", pulled[j], h * px, "transposes")
        _agree("dynamics", "over(path, stages)", by_control[j], h * pu, "derivatives by the control")
    if not (identical(path, u) and identical(states[:, 0], x)):
        raise ValueError(
            "dynamics: expected over(path, stages) to leave states and controls unchanged, got some changed"
        )


def _storage(x: Tensor) -> Tensor:
    """Storage for the stages of two steps with one stage, in the layout of a state."""
    return x.new_empty(2, 1, *x.shape) if x.is_contiguous() else x.new_empty(2, 1, *x.mT.shape).mT


def _agree(name: str, written: str, found: Any, expected: Tensor, what: str = "results") -> None:
    """Refuse results that differ by more than rounding, which leaves half the digits even of sums that cancel."""
    bound = torch.finfo(expected.dtype).eps ** 0.5 * float(expected.abs().max()) if expected.numel() else 0.0
    fits = isinstance(found, Tensor) and found.shape == expected.shape
    if not fits or float((found - expected).abs().max()) > bound:  # false where a number is not finite
        raise ValueError(f"{name}: expected {what} of {written} that agree with those at one point, got others")
