"""Which path a sweep takes through its steps: the one place that decides, from what problem and integrator support.

- `Staged`, blocks of stages: explicit Runge-Kutta with dynamics that are `StageWise`;
- `Taped`, segments recorded by autograd: problems and integrators that are `Traceable`;
- `Stepwise`, one step after the other: everything else;
- `Recomputed`, around any of these: schedules that do not remember all steps at once;
- one kernel for all steps, and CUDA graphs: on a GPU, if the environment variable ``OCP_CUDA_FAST_PATHS`` is ``1``.
"""

from __future__ import annotations

import os
from typing import TypeGuard

from torch import Tensor

from ocp.adjoint.discretization import Discretization
from ocp.adjoint.recomputed import Recomputed
from ocp.adjoint.schedules import Schedule
from ocp.adjoint.staged import Staged
from ocp.adjoint.stepwise import Stepwise
from ocp.adjoint.taped import Taped
from ocp.adjoint.tapes import Tape
from ocp.integrators.integrator import StageWiseIntegrator
from ocp.problem.protocols import Batched, Bindable, StageWise, capability_applies, is_traceable
from ocp.problem.shapes import BatchState, StepControl

__all__ = ["choose", "supports_linearization"]

#: The least number of steps for which a schedule calls a tape, which spreads the fixed cost of the call.
CHUNK_STEPS = 4


def choose(discretization: Discretization, schedule: Schedule, x: BatchState, u: StepControl) -> Tape:
    """The tape for the steps of a grid, as the schedule says and by the fastest path that problem and integrator allow.

    A state x and the control u of a step show shapes, type and device; they are tried on what the problem supports.
    """
    integrator, grid, x = discretization.stepper, discretization.grid, x.contiguous()
    steps, span = grid.steps, schedule.needs(grid.steps).span
    capacity = min(max(span, CHUNK_STEPS), steps)
    found = _fast(discretization, capacity, x, u)
    if span == steps and found is not None:
        return found
    plain = Stepwise(integrator, grid, x.new_empty(capacity + 1, *x.shape))
    if span == steps:
        return plain
    # A tape of autograd would be a waste for steps that are only walked through.
    walk = plain if found is None or isinstance(found, Taped) else found
    return Recomputed(schedule, steps, x, found or plain, plain, walk, capacity)


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
    batched = capability_applies(L, "derivative_along", "__call__", "derivative")
    along = L is None or (batched and isinstance(L, Batched) and L.supports_batches(x, u))
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


def _is_stage_wise(f: object) -> TypeGuard[StageWise]:
    return isinstance(f, StageWise) and capability_applies(f, "over", "__call__", "vjp")
