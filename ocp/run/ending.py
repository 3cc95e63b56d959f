"""Why a run ended, as a closer look shows, and its result."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import nullcontext, suppress
from dataclasses import replace
from math import isfinite, nan
from typing import Any

from ocp.adjoint.diagnosis import locate
from ocp.objective.evaluation import free_part
from ocp.objective.feasibility import Violation, violation, worst
from ocp.optimize.method import recipe
from ocp.optimize.status import Status
from ocp.problem.constraints import Multipliers
from ocp.problem.control_problem import ControlProblem
from ocp.run.bookkeeping import Run
from ocp.run.measures import evaluate
from ocp.run.results import Result
from ocp.run.verdicts import unresolved
from ocp.space.control import Control
from ocp.verification.slopes import descends_nearby, measure_slope

__all__ = ["explained", "result_of"]

#: From the size of the control down to where differences lose half their digits to rounding, in double precision.
LENGTHS = tuple(8.0**-k for k in range(8))

#: Ends, besides success, at which the states may turn out to be an artifact of the grid.
RESOLVABLE = (
    Status.UNBOUNDED,
    Status.PRECISION,
    Status.MAX_ITERATIONS,
    Status.MAX_WORK,
    Status.MAX_SECONDS,
    Status.MAX_STEPS,
)


def explained(run: Run, status: Status) -> tuple[Status, str]:
    """Why a run ended, as a closer look shows, and a sentence about it; not counted as work.

    If no step decreases the objective, differences of values tell a wrong derivative from rounding and noise, and half
    the step an objective of the grid alone.
    """
    work, u, norm, start = run.objective.work, run.state.control, run.scale.norm, run.scale.value
    found = u if status.success or status is Status.UNBOUNDED or run.best is None else run.best[1]
    if (status.success or status in RESOLVABLE) and isfinite(run.history[-1].derivative_norm):
        with work.looking():
            point = run.point if run.state.level == 0 and found is u else None
            point = point or run.objective.at(run.control(found))
            if why := unresolved(point, norm, start - point.value, status.success or status is Status.PRECISION):
                return Status.UNRESOLVED, why
            if run.constrained:
                excess = run.excess(point.control)
                infeasible = status.success and not excess.relative <= run.stop.feasibility
                return (Status.INFEASIBLE, f" Violation: {excess}.") if infeasible else (status, "")
            arrived = next((r for r in run.history if r.level == 0), None)
            still = arrived is not None and run.small(arrived.derivative_norm)
            if status is Status.CONVERGED and still and descends_nearby(point, run.scale.size) is not None:
                return Status.SADDLE, ""
            if status.success:
                return status, ""
    with suppress(ArithmeticError, LookupError, RuntimeError, TypeError, ValueError), work.looking():
        if status is Status.NO_DECREASE and run.state.level == 0:
            point = run.viewed.on(run.steps).at(u)
            if why := unresolved(point, norm, 0.0, thorough=False):
                return Status.UNRESOLVED, why
            slope = measure_slope(point, -run.objective.space.gradient(free_part(point)[0]), LENGTHS)
            if slope.contradicted:
                return Status.WRONG_DERIVATIVE, f" Along the gradient {slope}."
            if why := unresolved(point, norm, start - point.value):
                return Status.UNRESOLVED, why
            if isfinite(slope.error) and slope.decrease <= 0 and not run.constrained:
                return Status.PRECISION, ""
        suspects = {Status.NOT_FINITE: (u, work.failed), Status.NO_DECREASE: (work.failed,)}.get(status, ())
        for control in suspects:
            if control is not None:
                here = run.viewed.on(run.objective.space.steps_of(control))
                if place := locate(here.discretization, control):
                    return status, f" Not finite: {place}, on the grid of {here.space.grid.steps} steps."
    return status, ""


def result_of(run: Run, status: Status, why: str = "") -> Result:
    """What was recorded, with the last control if a stopping test holds there, otherwise with the best one."""
    objective, x = run.objective, run.objective.discretization.example()[0]
    target, last = run.stop.target, run.history[-1] if run.history else None
    record, flat, kkt = (last, None, run.state.kkt) if status.success else run.best or (None, None, None)
    control, accuracy, value, norm, excess = run.control(flat), None, nan, nan, None
    if record is not None and record.level == 0:
        value, norm = record.value, record.derivative_norm
    # After an exception in the user's functions these may fail again, and nothing else may be lost by that.
    with suppress(Exception) if status is Status.EXCEPTION else nullcontext():
        accuracy = run.accuracy(control)
        if (record is None or record.level > 0) and not run.parted:
            value, norm = evaluate(run.look_at(control.flat))
        better = run.origin is not None and not run.constrained and run.origin[0] < value
        if run.origin is not None and run.adaptive is None and not status.success and better:
            value, norm, flat = run.origin  # nothing better was found
            control = run.control(flat)
        excess = violation(objective.discretization, control.flat) if run.constrained else None
    kind = "derivative" if objective.box is None else "projected derivative"
    kind += "" if kkt is None else " of the Lagrangian"
    where = f"the objective is {value:.6g} and the dual norm of {'its' if kkt is None else 'the'} {kind} {norm:.2e}"
    if last is not None and not isfinite(value) and isfinite(last.value):
        where = f"the last record has the objective {last.value:.6g} on {_steps(last.steps)}"
    reason = " ".join([status.value + why, *_notes(run, excess)])
    own = {"not_finite": objective.work.failures, "not_saved": run.unsaved}
    optional = {"discretization_error": run.error, "resumed": run.resumed}
    return Result(
        control=control,
        value=value,
        derivative_norm=norm,
        status=status,
        message=f"{reason} After {run.iteration} iterations and {objective.work.units:.2f} work units {where}.",
        iterations=run.iteration,
        work_units=objective.work.units,
        seconds=run.seconds,
        history=tuple(run.history),
        counts={**run.state.counts, **{name: count for name, count in own.items() if count}},
        validation_accuracy=accuracy,
        about={
            "steps": run.steps,
            "state_shape": list(x.shape[1:]),
            "integrator": objective.discretization.integrator.name,
            "recipe": recipe(run.method),
            "dtype": str(x.dtype).removeprefix("torch."),
            "device": str(x.device),
            "start_norm": run.scale.norm or None,
            "tolerance": run.stop.tolerance,
            "target": None if target is None else str(target),
            "target_reached": None if target is None else target.first(tuple(run.history)) is not None,
            **{name: number for name, number in optional.items() if number is not None},
            **_parameters(objective.discretization.problem, control),
        },
        visits=run.state.visits,
        violation=excess,
        multipliers=None if kkt is None else _on(kkt.multipliers, run.steps),
        integrator=objective.discretization.integrator,
    )


def _parameters(problem: ControlProblem, control: Control | None) -> dict[str, Any]:
    """The parameters that have names, as numbers or lists of them."""
    q = problem.parameters
    if not (q.named and q.size) or control is None:
        return {}
    return {"parameters": {name: value.tolist() for name, value in dict(q(control.parameters)).items()}}


def _on(multipliers: Multipliers, steps: int) -> Multipliers:
    """Multipliers on the finest grid: those of a coarser step on all steps that it contains."""
    path = multipliers.path
    return multipliers if path is None else replace(multipliers, path=path.repeat_interleave(steps // len(path), 0))


def _notes(run: Run, excess: Violation | None) -> Iterator[str]:
    """What the message says in addition to why the run ended."""
    if run.state.level > 0:
        steps = run.objective.space.steps_of(run.state.control)
        yield f"The run ended on {_steps(steps)}; from there its control was prolonged to the finest grid."
    if run.scale.iteration > 0:
        why = "The objective is much steeper at the start" if run.scale.steep else "The start is not finite"
        yield f"{why} on the finest grid; iteration {run.scale.iteration} takes its place."
    if excess is not None:
        at = worst(excess.nodes)
        yield f"The largest violation of a constraint is {max(at.value, 0.0):.1e} at node {at.node}, of {at.name}."
    if run.error is not None:
        error = run.error / max(abs(run.optima[run.steps]), 1e-300)
        refined = f"The grid was refined to {run.steps} steps"
        yield f"{refined}; the estimated relative discretization error is {error:.1e}."


def _steps(number: int) -> str:
    return "a grid of one step" if number == 1 else f"a grid of {number} steps"
