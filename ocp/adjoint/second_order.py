"""Which pieces of a problem have no second derivatives, found out before any is needed."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from functools import partial
from typing import Any

import torch
from torch import Tensor

from ocp.adjoint.abilities import AUTOGRAD
from ocp.integrators.integrator import Integrator, SecondOrderIntegrator
from ocp.problem.boundary import plain
from ocp.problem.control_problem import ControlProblem
from ocp.problem.costs import Readout
from ocp.problem.differences import nearby, second_disagreement
from ocp.problem.protocols import SecondOrder

__all__ = ["without_hvp"]

#: A piece with its derivatives, its Hessian products and the arguments of both.
_Curved = tuple[str, Callable[..., Any], Callable[..., Any], Mapping[str, Tensor]]


@torch.no_grad()
def without_hvp(problem: ControlProblem, integrator: Integrator, q: Tensor, x: Tensor, u: Tensor) -> dict[str, str]:
    """The pieces without second derivatives, each with what was expected and what it is; empty if all have them.

    Those of autograd are compared with differences near the given point: the tape of an operation that autograd can
    differentiate only once ends without a word.
    """
    last = problem.terminal_cost
    pieces: list[tuple[str, Any, type, str]] = [
        ("dynamics", problem.dynamics, SecondOrder, "hvp"),
        ("initial_state", problem.initial_state, SecondOrder, "hvp"),
        ("running_cost", problem.running_cost, SecondOrder, "hvp"),
        ("terminal_cost", last, SecondOrder, "hvp"),
        ("terminal_cost.cost", last.cost if isinstance(last, Readout) else None, SecondOrder, "hvp"),
        *(("control_cost", cost, SecondOrder, "hvp") for cost in problem.control_cost),
        ("integrator", integrator, SecondOrderIntegrator, "pullback_tangent"),
    ]
    missing = {
        name: f"a method {method} for second derivatives, got {type(piece).__name__}"
        for name, piece, kind, method in pieces
        if piece is not None and not isinstance(piece, kind)
    }
    for name, derivative, product, arguments in _curved(problem, q, x, u):
        if not (missing.keys() & {name, f"{name}.cost"}) and not _agree(derivative, product, arguments):
            missing[name] = "operations with second derivatives, got some that autograd can differentiate only once"
    return missing


def _curved(problem: ControlProblem, q: Tensor, x: Tensor, u: Tensor) -> Iterator[_Curved]:
    """The pieces whose second derivatives are those of autograd; those that depend on time at two times."""
    q, x, u, p = nearby({"q": q, "x": x, "u": u, "p": torch.ones_like(x)}).values()
    equation = problem.equation
    pieces = [equation.dynamics, problem.initial_state, equation.running_cost, problem.terminal_cost]
    ours: list[Any] = [plain(piece) if type(piece) in AUTOGRAD else None for piece in pieces]
    f, X0, L, Phi = ours

    # Hessian products of the objective need tangents, too.
    def of_dynamics(t: float, x: Tensor, u: Tensor, dx: Tensor, du: Tensor) -> Any:
        f.jvp(t, x, u, dx, du)
        return f.hvp(t, x, u, p.to(x), dx, du)

    def of_initial_state(q: Tensor, dq: Tensor) -> Any:
        X0.jvp(q, dq)
        return (X0.hvp(q, p.to(q), dq),)

    for t in (0.0, 0.4 * problem.grid(1).horizon):
        if f is not None:
            yield "dynamics", lambda x, u, t=t: f.vjp(t, x, u, p.to(x)), partial(of_dynamics, t), {"x": x, "u": u}
        if L is not None:
            yield "running_cost", partial(L.derivative, t), partial(L.hvp, t), {"x": x, "u": u}
    if X0 is not None:
        yield "initial_state", lambda q: (X0.vjp(q, p.to(q)),), of_initial_state, {"q": q}
    if Phi is not None:
        yield "terminal_cost", Phi.derivative, Phi.hvp, {"x": x, "q": q}


def _agree(derivative: Callable[..., Any], product: Callable[..., Any], arguments: Mapping[str, Tensor]) -> bool:
    """Whether there are Hessian products, and they agree with differences of the derivatives."""
    failures: list[NotImplementedError] = []

    def noted(*given: Tensor) -> Any:
        try:
            return product(*given)
        except NotImplementedError as error:
            failures.append(error)  # in single precision it might not be noticed
            raise

    try:
        return not second_disagreement(derivative, noted, arguments) and not failures
    except NotImplementedError:
        return False
