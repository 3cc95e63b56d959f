"""Are the derivatives right? Taylor, dot-product and coherence tests as a report."""

from __future__ import annotations

from dataclasses import replace
from math import isfinite

import torch
from torch import Tensor

from ocp.objective.evaluation import Evaluation, Objective
from ocp.objective.reduced import ReducedObjective
from ocp.objective.shifted import ShiftedObjective
from ocp.problem.control_problem import ControlProblem
from ocp.problem.costs import Tikhonov
from ocp.space.control import Control
from ocp.space.transfer import CONSTANT, LINEAR, Transfer
from ocp.verification.report import Check, Report, agreement
from ocp.verification.slopes import AROUND, measure_slope, normal
from ocp.verification.taylor import Taylor, expand

__all__ = ["verify"]


def verify(objective: Objective, control: Tensor | Control | None = None, seed: int = 0) -> Report:
    """Check the derivative of an objective, the pieces it is made of, and its coherence with coarser grids.

    Where all pieces have second derivatives, the Hessian is checked, too. Nothing is changed: not the control, not the
    count of work. float64 is what a verification wants; in float32 the same checks run with wider bounds, but for the
    Hessian, of which only the symmetry can be seen.

    Parameters
    ----------
    objective : Objective
        Usually from `discretize`.
    control : Tensor or Control, optional
        Where to check; by default the problem's start, moved at random, so that no zero hides an error.
    seed : int
        Of the random directions.

    Returns
    -------
    Report
        ``report.passed`` is the verdict and ``str(report)`` a table.

    Raises
    ------
    TypeError
        If it is a problem, which has no grid yet, or no objective at all.
    ValueError
        If the objective is not finite there.

    Examples
    --------
    >>> from ocp import ControlProblem, discretize
    >>> problem = ControlProblem(
    ...     lambda t, x, u: u - x**3, torch.ones(1, 1).double(), lambda x: x.square().sum(), control_size=1
    ... )
    >>> verify(discretize(problem, steps=8)).passed
    True
    """
    if not hasattr(objective, "at"):
        raise TypeError(
            f"objective: expected one, such as ocp.discretize(problem, steps), got {type(objective).__name__}"
        )
    generator = torch.Generator().manual_seed(seed)
    if isinstance(control, Control):
        u = control.flat
    elif control is not None:
        u = control
    elif isinstance(objective, ReducedObjective):
        start = objective.discretization.start().flat
        u = start + 0.1 * normal(start, generator)
    else:
        raise ValueError("control: expected one, since this objective does not know the start of its problem; got None")
    with objective.work.looking():
        point = objective.at(u)
        if not isfinite(point.value):
            at = "at this control" if control is not None else "near the start of the problem"
            raise ValueError(f"objective: expected a finite value {at}, got {point.value}")
        taylor, checks = _taylor_checks(point, generator)
        if isinstance(objective, ReducedObjective):
            checks += _transpose_checks(objective, point, generator)
        checks += _multilevel_checks(point, generator)
        if taylor.third is not None:
            checks += _hessian_checks(point, taylor, generator)
    return Report(tuple(checks), taylor)


def _taylor_checks(point: Evaluation, generator: torch.Generator) -> tuple[Taylor, list[Check]]:
    """Orders of the remainders along a direction that is half random, half along the gradient."""
    objective, u = point.objective, point.control
    space, double = objective.space, u.dtype == torch.float64
    direction = normal(u, generator)
    direction /= space.norm(direction)
    gradient = space.gradient(point.derivative)
    length = space.norm(gradient)
    if length > 0:
        direction = direction + gradient / length
        direction /= space.norm(direction)
    taylor = expand(point, direction)
    tolerance = 0.1 if double else 0.3
    checks = []
    for name, order, remainders in (
        ("Taylor order of the value alone", 1, taylor.first),
        ("Taylor order with the derivative", 2, taylor.second),
    ):
        observed = taylor.order(remainders)
        # A remainder that is rounding error everywhere is zero: no order can be seen, nor is one needed.
        exact = order == 2 and all(r <= 10 * taylor.noise for r in remainders)
        # At a stationary point the first remainder is of second order, as it should be.
        flat = order == 1 and observed > 1 and length <= 1e-6 * abs(point.value)
        passed = exact or flat or abs(observed - order) <= tolerance
        checks.append(Check(name, observed, f"{order} +- {tolerance}" + (" or exact" if exact else ""), passed))
    slope = float(torch.dot(point.derivative, direction))
    e = torch.finfo(u.dtype).eps ** (1 / 3)
    central = (objective.at(u + e * direction).value - objective.at(u - e * direction).value) / (2 * e)
    bound = 1e-5 if double else 2e-2
    # Near an optimum the slope is small against the rounding errors of the two values.
    scale = max(abs(slope), 1e-3 * length, 1e-4 * abs(point.value), torch.finfo(u.dtype).tiny)
    error = abs(central - slope) / scale
    checks.append(Check("derivative against central difference", error, f"<= {bound:.0e}", error <= bound))
    nearby = objective.at(u + 0.1 * direction)
    if isfinite(nearby.value):  # a derivative left over from another control is right there, not here
        moved = measure_slope(nearby, direction, [k * e for k in AROUND])
        off = abs(moved.measured - moved.stated) / max(moved.scale, torch.finfo(u.dtype).tiny)
        expected = f"<= {bound:.0e}" if not moved.contradicted else "within the errors of differences"
        checks.append(Check("derivative at another control", off, expected, not moved.contradicted))
    return taylor, checks


def _hessian_checks(point: Evaluation, taylor: Taylor, generator: torch.Generator) -> list[Check]:
    """Symmetry of the Hessian; in double precision its action against differences, and the order of remainders."""
    objective, u = point.objective, point.control
    space, double = objective.space, u.dtype == torch.float64
    a, b = normal(u, generator), normal(u, generator)
    a, b = a / space.norm(a), b / space.norm(b)
    Ha, Hb = point.hessian_product(a), point.hessian_product(b)
    # Where the Hessian is small, the rounding errors of derivatives, and of the values they belong to, show.
    scale = max(1e-3 * space.dual_norm(point.derivative), 1e-4 * abs(point.value))
    scale = max(scale, space.dual_norm(Ha), space.dual_norm(Hb), torch.finfo(u.dtype).tiny)
    asymmetry, bound = abs(float(torch.dot(a, Hb) - torch.dot(b, Ha))) / scale, 1e-10 if double else 1e-3
    checks = [Check("symmetry of the Hessian", asymmetry, f"<= {bound:.0e}", asymmetry <= bound)]
    if not double or taylor.third is None:  # rounding errors hide the third order, and long differences cross kinks
        return checks
    e = torch.finfo(u.dtype).eps ** (1 / 3)
    central = (objective.at(u + e * a).derivative - objective.at(u - e * a).derivative) / (2 * e)
    error, bound = space.dual_norm(central - Ha) / scale, 1e-5
    checks.append(Check("Hessian against central difference", error, f"<= {bound:.0e}", error <= bound))
    observed, exact = taylor.order(taylor.third), all(r <= 10 * taylor.noise for r in taylor.third)
    # A kink, such as that of ReLU, takes the third order away where a step crosses it. It leaves the second order, and
    # the short difference; a wrong derivative fails the one, a wrong Hessian the other.
    third = abs(observed - 3) <= 0.1
    kinks = not third and error <= bound and not taylor.order(taylor.second) < 1.9
    expected = "3 +- 0.1" + (" or exact" if exact else " or kinks" if kinks else "")
    checks.append(Check("Taylor order with the Hessian", observed, expected, exact or third or kinks))
    return checks


def _transpose_checks(objective: ReducedObjective, point: Evaluation, generator: torch.Generator) -> list[Check]:
    """Derivatives against their transposes: the whole sweep, one step, the dynamics, the initial state."""
    discretization, space, u = objective.discretization, objective.space, point.control
    problem, integrator, h = discretization.problem, discretization.integrator, space.grid.h
    derivative, direction = point.derivative, normal(u, generator)
    scale = max(space.dual_norm(derivative), 1e-3 * abs(point.value)) * space.norm(direction)
    slope, tangent = float(torch.dot(derivative, direction)), objective.directional(u, direction)
    checks = [agreement("adjoint sweep against tangent sweep", slope, tangent, scale, u.dtype)]
    k = space.grid.steps // 2
    x, uk, t = objective.trajectory(u).x[k], space.path(u)[k], space.grid.nodes[k]
    dx, p, du = normal(x, generator), normal(x, generator), normal(uk, generator)

    def pair(name: str, df: Tensor, px: Tensor, pu: Tensor) -> Check:
        left, right = float((p * df).sum()), float((px * dx).sum() + (pu * du).sum())
        return agreement(name, left, right, float((p * df).abs().sum()), u.dtype)

    f = problem.dynamics
    checks.append(pair("dynamics: vjp against jvp", f.jvp(t, x, uk, dx, du), *f.vjp(t, x, uk, p)))
    plain = _without_cost(problem)
    step, _ = integrator.tangent(plain, t, h, x, uk, dx, du)
    checks.append(pair("one step: pullback against tangent", step, *integrator.pullback(plain, t, h, x, uk, p)))
    if problem.parameter_size:
        q, dq = space.parameters(u), space.parameters(direction)
        dx0 = problem.initial_state.jvp(q, dq)
        left, right = float((p * dx0).sum()), float(torch.dot(problem.initial_state.vjp(q, p), dq))
        checks.append(agreement("initial state: vjp against jvp", left, right, float((p * dx0).abs().sum()), u.dtype))
    return checks


def _without_cost(problem: ControlProblem) -> ControlProblem:
    """The problem with its running cost left out, so that a step is the map of states alone."""
    return replace(problem, running_cost=None, control_cost=(Tikhonov(0.0),))


def _multilevel_checks(point: Evaluation, generator: torch.Generator) -> list[Check]:
    """Transposes of the transfers, and first-order coherence on two and, where possible, three levels."""
    checks: list[Check] = []
    fine, u, derivative = point.objective, point.control, point.derivative
    for levels in (2, 3):
        steps = fine.space.grid.steps
        factor = next((k for k in range(2, steps + 1) if steps % k == 0), None)
        if factor is None:
            break
        coarse = fine.on(steps // factor)
        for interpolation in (CONSTANT, LINEAR) if levels == 2 else ():
            transfer = Transfer(fine.space, coarse.space, interpolation)
            v, d = normal(transfer.restrict(u), generator), normal(u, generator)
            a, b = float(torch.dot(transfer.prolong(v), d)), float(torch.dot(v, transfer.restrict_dual(d)))
            name = f"restriction is the transpose of {interpolation.__name__} prolongation"
            checks.append(agreement(name, a, b, float(v.norm() * d.norm()), u.dtype))
        transfer = Transfer(fine.space, coarse.space)
        u, derivative = transfer.restrict(u), transfer.restrict_dual(derivative)
        origin = coarse.at(u)
        if not isfinite(origin.value):
            break
        model = ShiftedObjective(coarse, u, origin.derivative - derivative)
        mismatch = model.space.dual_norm(model.at(u).derivative - derivative)
        scale = max(model.space.dual_norm(derivative), model.space.dual_norm(origin.derivative))
        checks.append(agreement(f"coherence of the derivative on {levels} levels", mismatch, 0.0, scale, u.dtype))
        fine = model
    return checks
