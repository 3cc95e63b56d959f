"""Which pieces of a problem have no second derivatives, found out before any is needed."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from functools import partial
from typing import Any

import torch
from torch import Tensor

from ocp.adjoint.abilities import AUTOGRAD
from ocp.integrators.at_nodes import AtNodes
from ocp.integrators.integrator import Integrator, SecondOrderIntegrator
from ocp.problem.augmented import AugmentedEnd
from ocp.problem.boundary import plain
from ocp.problem.control_problem import ControlProblem
from ocp.problem.costs import Readout
from ocp.problem.differences import nearby, second_disagreement
from ocp.problem.equation import OfPart
from ocp.problem.functions import hvp, pullback
from ocp.problem.protocols import SecondOrder

__all__ = ["once_differentiable", "without_hvp"]

#: A piece with its derivatives, its Hessian products and the arguments of both.
_Curved = tuple[str, Callable[..., Any], Callable[..., Any], Mapping[str, Tensor]]


def without_hvp(problem: ControlProblem, integrator: Integrator) -> dict[str, str]:
    """The pieces without a method for second derivatives, each with what was expected and what it is."""
    f, last, scheme = problem.dynamics, problem.terminal_cost, integrator
    last = last.cost if isinstance(last, AugmentedEnd) else last
    scheme = scheme.scheme if isinstance(scheme, AtNodes) else scheme
    pieces: list[tuple[str, Any, type, str]] = [
        ("dynamics", f.dynamics if isinstance(f, OfPart) else f, SecondOrder, "hvp"),
        ("initial_state", problem.initial_state, SecondOrder, "hvp"),
        ("running_cost", problem.running_cost, SecondOrder, "hvp"),
        ("terminal_cost", last, SecondOrder, "hvp"),
        ("terminal_cost.cost", last.cost if isinstance(last, Readout) else None, SecondOrder, "hvp"),
        *(("control_cost", cost, SecondOrder, "hvp") for cost in problem.control_cost),
        ("integrator", scheme, SecondOrderIntegrator, "pullback_tangent"),
    ]
    return {
        name: f"a method {method} for second derivatives, got {type(piece).__name__}"
        for name, piece, kind, method in pieces
        if piece is not None and not isinstance(piece, kind)
    }


@torch.no_grad()
def once_differentiable(
    problem: ControlProblem, q: Tensor, x: Tensor, u: Tensor, tangents: bool = True
) -> tuple[str, ...]:
    """The pieces whose second derivatives, by autograd, are missing, or wrong as differences near a point show.

    The tape of an operation that autograd can differentiate only once ends without a word. Tangents are tried as well,
    unless they are not needed: the first one in forward mode takes a second, in which torch imports its compiler.
    """
    found = dict[str, bool]()
    for name, derivative, product, arguments in _curved(problem, q, x, u, tangents):
        found[name] = found.get(name, False) or not _agree(derivative, product, arguments)
    return tuple(name for name, once in found.items() if once)


def _curved(problem: ControlProblem, q: Tensor, x: Tensor, u: Tensor, tangents: bool) -> Iterator[_Curved]:
    """The pieces whose second derivatives are those of autograd; those that depend on time at two times."""
    q, x, v, p = nearby({"q": q, "x": x, "v": u, "p": torch.ones_like(x)}).values()
    equation, dynamics, u = problem.equation, problem.equation.dynamics, v
    if isinstance(dynamics, OfPart):
        dynamics, u = dynamics.dynamics, dynamics.part(v)
    last = problem.terminal_cost
    last = last.cost if isinstance(last, AugmentedEnd) else last
    pieces = [dynamics, problem.initial_state, equation.running_cost, last]
    ours: list[Any] = [plain(piece) if type(piece) in AUTOGRAD else None for piece in pieces]
    f, X0, L, Phi = ours

    # Hessian products of the objective need tangents, too.
    def of_dynamics(t: float, x: Tensor, u: Tensor, dx: Tensor, du: Tensor) -> Any:
        if tangents:
            f.jvp(t, x, u, dx, du)
        return f.hvp(t, x, u, p.to(x), dx, du)

    def of_initial_state(q: Tensor, dq: Tensor) -> Any:
        if tangents:
            X0.jvp(q, dq)
        return (X0.hvp(q, p.to(q), dq),)

    for t in (0.0, 0.4 * problem.grid(1).horizon):
        if f is not None:
            yield "dynamics", lambda x, u, t=t: f.vjp(t, x, u, p.to(x)), partial(of_dynamics, t), {"x": x, "u": u}
        if L is not None:
            yield "running_cost", partial(L.derivative, t), partial(L.hvp, t), {"x": x, "u": v}
    if X0 is not None:
        yield "initial_state", lambda q: (X0.vjp(q, p.to(q)),), of_initial_state, {"q": q}
    if Phi is not None and not (isinstance(Phi, Readout) and not isinstance(Phi.cost, SecondOrder)):
        yield "terminal_cost", Phi.derivative, Phi.hvp, {"x": x, "q": q}
    if equation.observation is not None:
        yield "observe", *_vector(equation.observation), {"x": x, "q": q}
    constraints = problem.constraints
    if constraints.path is not None:
        for t in (0.0, 0.4 * problem.grid(1).horizon):
            yield "path_constraint", *_vector(partial(constraints.path, t)), {"x": x, "u": v}
    for name, g in (("terminal_equality", constraints.equality), ("terminal_inequality", constraints.inequality)):
        if g is not None:
            yield name, *_vector(g), {"x": x, "q": q}


def _vector(g: Callable[..., Tensor]) -> tuple[Callable[..., Any], Callable[..., Any]]:
    """Derivatives and Hessian products of the sum of the entries of a constraint, or of what is observed."""

    def total(*arguments: Tensor) -> Tensor:
        return g(*arguments).sum()

    def product(*given: Tensor) -> Any:
        k = len(given) // 2
        return hvp(total, given[:k], given[k:])

    return lambda *arguments: pullback(total, arguments), product


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
