"""Which path a sweep takes through its steps: the one place that decides, from what problem and integrator support.

- `Simultaneous`, all steps at once: many Runge-Kutta steps of few numbers, with dynamics that are `Vectorized`;
- `Staged`, blocks of stages: explicit Runge-Kutta with dynamics that are `StageWise`;
- `Taped`, segments recorded by autograd: problems and integrators that are `Traceable`;
- `Stepwise`, one step after the other: everything else;
- `Recomputed`, around any of these: schedules that do not remember all steps at once;
- one kernel for all steps, and CUDA graphs: on a GPU, if the environment variable ``OCP_CUDA_FAST_PATHS`` is ``1``.
"""

from __future__ import annotations

import os
from collections.abc import Callable
from typing import TypeGuard

import torch
from torch import Tensor

from ocp.adjoint.discretization import Discretization
from ocp.adjoint.recomputed import Recomputed
from ocp.adjoint.sample_steps import samples_are_independent
from ocp.adjoint.schedules import Schedule
from ocp.adjoint.simultaneous import Simultaneous
from ocp.adjoint.staged import Staged
from ocp.adjoint.stepwise import Stepwise
from ocp.adjoint.taped import Taped
from ocp.adjoint.tapes import Tape
from ocp.integrators.integrator import StageWiseIntegrator
from ocp.integrators.linear_solvers import DenseLU
from ocp.integrators.runge_kutta import RungeKutta
from ocp.problem.protocols import Batched, Bindable, StageWise, Vectorized, capability_applies, is_traceable
from ocp.problem.shapes import BatchState, StepControl

__all__ = ["choose", "supports_linearization"]

#: The least number of steps for which a schedule calls a tape, which spreads the fixed cost of the call.
CHUNK_STEPS = 4

#: The least number of steps for which taking all of them at once pays.
EXPLICIT_STEPS, IMPLICIT_STEPS = 256, 32
#: The most numbers for which it pays, in a state and in each of its samples if these do not depend on each other.
#: All tuned on the Van der Pol oscillator, alone and in batches, the pole on a cart and tanh layers.
ALL_NUMBERS, SAMPLE_NUMBERS = 128, 6


def choose(discretization: Discretization, schedule: Schedule, x: BatchState, u: StepControl) -> Tape:
    """The tape for the steps of a grid, as the schedule says and by the fastest path that problem and integrator allow.

    A state x and the control u of a step show shapes, type and device; they are tried on what the problem supports.
    """
    integrator, grid, x = discretization.stepper, discretization.grid, x.contiguous()
    steps, span = grid.steps, schedule.needs(grid.steps).span
    capacity = min(max(span, CHUNK_STEPS), steps)

    def plain() -> Stepwise:
        return Stepwise(integrator, grid, x.new_empty(capacity + 1, *x.shape))

    def in_turn() -> Tape:
        return _fast(discretization, capacity, x, u) or plain()

    if span == steps:
        return _simultaneous(discretization, x, u, in_turn) or in_turn()
    found, back = _fast(discretization, capacity, x, u), plain()
    # A tape of autograd would be a waste for steps that are only walked through.
    walk = back if found is None or isinstance(found, Taped) else found
    return Recomputed(schedule, steps, x, found or back, back, walk, capacity)


def _simultaneous(discretization: Discretization, x: Tensor, u: Tensor, loop: Callable[[], Tape]) -> Tape | None:
    """A tape that takes all steps at once, or ``loop`` where that fails; None if it does not apply or does not pay."""
    integrator, grid, equation = discretization.stepper, discretization.grid, discretization.problem.equation
    f, L = equation.dynamics, equation.running_cost
    if not (type(integrator) is RungeKutta and integrator.solver == DenseLU()):
        return None
    many = grid.steps >= (EXPLICIT_STEPS if integrator.tableau.explicit else IMPLICIT_STEPS)
    if not (many and x.numel() <= ALL_NUMBERS and x.device.type == "cpu" and x.dtype in (torch.float32, torch.float64)):
        return None
    if not (isinstance(f, Vectorized) and capability_applies(f, "along", "__call__", "vjp")):
        return None
    starts = x.new_tensor(grid.nodes[:-1])
    times = torch.cat([starts + c * grid.h for c in sorted(set(integrator.tableau.c))])
    if not (L is None or (_is_batched(L) and L.supports_batches(x, u))) or not f.supports_points(times, x, u):
        return None
    samples = len(x) if samples_are_independent(f, x, u) else 1
    fits = x.numel() <= SAMPLE_NUMBERS * samples
    return Simultaneous(integrator, grid, x.shape, samples, loop) if fits else None


def _fast(discretization: Discretization, capacity: int, x: Tensor, u: Tensor) -> Tape | None:
    """The fastest tape for ``capacity`` steps that the problem supports; None if only `Stepwise` applies."""
    problem, integrator, grid = discretization.problem, discretization.stepper, discretization.grid
    f, L, whole = problem.equation.dynamics, problem.equation.running_cost, capacity == grid.steps
    applies = capability_applies(integrator, "explicit_tableau", "step", "pullback")
    tableau = integrator.explicit_tableau if isinstance(integrator, StageWiseIntegrator) and applies else None
    on_cuda = x.is_cuda and os.environ.get("OCP_CUDA_FAST_PATHS") == "1"
    if on_cuda:
        from ocp.adjoint.cuda import fused, graphs  # here, since importing Triton takes a while

        if fused.supports(tableau, problem.equation, x):
            kernel = fused.Fused(grid, capacity, x)
            return graphs.Graphed(kernel) if whole else kernel
    by_autograd = (
        is_traceable(integrator, "step", "pullback")
        and is_traceable(f, "__call__", "vjp")
        and (L is None or is_traceable(L, "__call__", "derivative"))
    )
    batched = _is_batched(L)
    along = L is None or (_is_batched(L) and L.supports_batches(x, u))
    stage = f.stage_layout(x, u) if tableau is not None and _is_stage_wise(f) else None
    if tableau is not None and stage is not None and (along or not by_autograd):
        # A running cost sees the stages, and may expect them to be contiguous.
        staged = Staged(tableau, grid, capacity, stage if L is None else x, batched)
        return graphs.Graphed(staged) if on_cuda and whole else staged
    bindable = isinstance(f, Bindable) and capability_applies(f, "bind", "__call__", "vjp")
    return Taped(integrator, grid, x.new_empty(capacity + 1, *x.shape), bindable) if by_autograd else None


def supports_linearization(discretization: Discretization) -> bool:
    """Whether all steps can be linearized at once: explicit steps of functions that vmap can map, of few numbers."""
    problem, integrator = discretization.problem, discretization.integrator
    f, L = problem.equation.dynamics, problem.equation.running_cost
    return (
        problem.measurements is None  # steps mapped over time do not know which measurements are theirs
        and is_traceable(integrator, "step", "pullback", "tangent", "pullback_tangent")
        and (L is None or is_traceable(L, "__call__", "derivative", "hvp"))
        and is_traceable(f, "__call__", "vjp", "jvp", "hvp")
        and _is_stage_wise(f)
        and f.stage_layout(*discretization.example()) is not None
    )


def _is_batched(L: object) -> TypeGuard[Batched]:
    return isinstance(L, Batched) and capability_applies(L, "derivative_along", "__call__", "derivative")


def _is_stage_wise(f: object) -> TypeGuard[StageWise]:
    return isinstance(f, StageWise) and capability_applies(f, "over", "__call__", "vjp")
