"""The program of a discretized problem."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
import torch
from torch import Tensor

from ocp.adjoint.all_steps import RecordedSteps, RungeKuttaSteps, Steps
from ocp.adjoint.discretization import Discretization
from ocp.adjoint.rows import Rows, pointwise
from ocp.adjoint.second_order import once_differentiable
from ocp.integrators.runge_kutta import RungeKutta
from ocp.optimize.interior_point.kkt import Array
from ocp.optimize.interior_point.program import Program
from ocp.problem.costs import Tikhonov
from ocp.problem.protocols import is_traceable

__all__ = ["check", "first_states", "program_of"]

#: The most iterations of the projection onto the equations at the end.
PROJECTIONS = 10

#: The most numbers in a state and a control together. The work grows with the cube of this number.
MOST = 256


def check(discretization: Discretization) -> None:
    """Raise a ``ValueError`` if a problem cannot be solved with all steps at once."""
    problem, integrator, (x, u) = discretization.problem, discretization.integrator, discretization.example()
    if x.dtype != torch.float64 or x.device.type != "cpu":
        raise ValueError(f"method: InteriorPoint expected a problem in float64 on the CPU, got {x.dtype} on {x.device}")
    if x.numel() + u.numel() > MOST:
        raise ValueError(
            f"method: InteriorPoint expected at most {MOST} numbers in state and control, got {x.numel() + u.numel()}"
        )
    if problem.measurements is not None:
        raise ValueError("method: InteriorPoint expected a problem without measurements, got some; LBFGS() takes them")
    for cost in problem.control_cost:
        if not isinstance(cost, Tikhonov):
            raise ValueError(f"method: InteriorPoint expected control costs of the kind Tikhonov, got {cost!r}")
    q = discretization.start().parameters
    for name in once_differentiable(problem, q, x, u, tangents=False):
        raise ValueError(f"method: InteriorPoint expected second derivatives of the {name}, which autograd cannot take")
    if not isinstance(integrator, RungeKutta) and not is_traceable(integrator):
        raise ValueError(f"method: InteriorPoint expected an integrator of torch operations, got {integrator.name}")


def program_of(discretization: Discretization, q: Tensor) -> Program:
    """The discrete problem as functions of all steps at once, which are tried at parameters q.

    Samples are parts of one long state.
    """
    problem, integrator, grid = discretization.problem, discretization.integrator, discretization.grid
    (x, u), space, equation = discretization.example(), discretization.space, problem.equation
    f, L, Phi, X0 = equation.dynamics, equation.running_cost, problem.terminal_cost, problem.initial_state
    shape, n, m, s = x.shape, x.numel(), space.control_size, q.numel()
    flat, v, none = x.flatten(), torch.cat((u[:m], q)), x.new_zeros(1)
    size, constraints, path = m + equation.parameter_size, problem.constraints, None
    ends = [None if g is None else g(x, q) for g in (constraints.equality, constraints.inequality)]
    at_end = [g for g in (constraints.equality, constraints.inequality) if g is not None]
    equations, limits = (0 if end is None else len(end) for end in ends)

    def rates(t: float, x: Tensor, v: Tensor) -> Tensor:
        state, control = x.view(shape), v[:size]
        cost = none if L is None else L(t, state, control).view(1)
        return torch.cat((f(t, state, control).flatten(), cost))

    def step(t: float, x: Tensor, v: Tensor) -> Tensor:
        end, cost = integrator.step(equation, t, grid.h, x.view(shape), v[:size])
        return torch.cat((end.flatten(), none if cost is None else cost.view(1)))

    def final(t: float, x: Tensor, q: Tensor) -> Tensor:
        state = x.view(shape)
        return torch.cat((none if Phi is None else Phi(state, q).view(1), *(g(state, q) for g in at_end)))

    steps: Steps
    if isinstance(integrator, RungeKutta):
        steps = RungeKuttaSteps(Rows(pointwise(rates, flat, v, "dynamics"), n + 1), integrator.tableau, grid.h)
    else:
        steps = RecordedSteps(Rows(pointwise(step, flat, v, "dynamics"), n + 1))
    initial: Array | Rows = flat.numpy()
    if s:
        initial = Rows(pointwise(lambda t, none, q: X0(q).flatten(), flat[:0], q, "initial_state"), n)
    if (c := constraints.path) is not None:

        def along(t: float, x: Tensor, v: Tensor) -> Tensor:
            return c(t, x.view(shape), v[:size])

        path = Rows(pointwise(along, flat, v, "path_constraint"), len(along(0.0, flat, v)))
    box = discretization.box
    lower, upper = _sides(box, space.path, (grid.steps, m)) if box is not None else _free((grid.steps, m))
    least, most = _sides(box, space.parameters, (s,)) if box is not None else _free((s,))
    return Program(
        steps,
        x.new_tensor(grid.nodes[:-1]),
        grid.h,
        n,
        m,
        initial,
        Rows(pointwise(final, flat, q, "terminal_cost"), 1 + equations + limits),
        lower,
        upper,
        s=s,
        g=equations,
        d=limits,
        path=path,
        least=least,
        most=most,
        damping=sum(cost.alpha for cost in problem.control_cost if isinstance(cost, Tikhonov)),
    )


def first_states(program: Program, u: Array, q: Array, rolled: Callable[[], Array]) -> Array:
    """The states to begin with, shape (N + 1, n).

    Without equations at the end, the initial state, held. Otherwise, or where that is outside the domain of a function,
    the trajectory of the control, ``rolled``, sheared in time so that it ends where the equations hold, as far as
    Newton's method finds out.
    """
    held = np.repeat(program.first(q)[None], len(program.times) + 1, axis=0)
    if not program.g and np.isfinite(program.values(held, u, q).cost):
        return held
    x = rolled()
    x = x if np.isfinite(x).all() else held
    nearest, violation, last = x[-1], np.inf, x[-1]
    for _ in range(PROJECTIONS if program.g else 0):
        recorded = program.end.record(program.times[:1], torch.from_numpy(last[None]), torch.from_numpy(q[None]))
        values = recorded.values.numpy()[0, 1 : 1 + program.g]
        if not np.abs(values).max() < violation:
            break
        nearest, violation = last, float(np.abs(values).max())
        G = recorded.jacobian().numpy()[1 : 1 + program.g, : program.n, 0]
        last = last - np.linalg.lstsq(G, values, rcond=None)[0]
    sheared: Array = x + np.linspace(0, 1, len(x))[:, None] * (nearest - x[-1])
    return sheared


def _sides(box: Any, part: Any, shape: tuple[int, ...]) -> tuple[Array, Array]:
    return tuple(part(side).numpy().reshape(shape) for side in (box.lower, box.upper))


def _free(shape: tuple[int, ...]) -> tuple[Array, Array]:
    return np.full(shape, -np.inf), np.full(shape, np.inf)
