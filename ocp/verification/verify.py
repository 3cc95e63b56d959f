"""Are the derivatives right? Taylor, dot-product and coherence tests, with a report."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from contextlib import suppress
from dataclasses import asdict, dataclass, replace
from itertools import pairwise
from math import isfinite, isnan, log, nan
from statistics import linear_regression
from typing import Any

import torch
from tabulate import tabulate
from torch import Tensor

from ocp.integrators.at_nodes import AtNodes
from ocp.objective.evaluation import Evaluation, Objective, SecondOrderEvaluation, SecondOrderObjective
from ocp.objective.reduced import ReducedEvaluation, ReducedObjective
from ocp.objective.shifted import ShiftedEvaluation, ShiftedObjective
from ocp.problem.differences import normal
from ocp.space.control import Control
from ocp.space.transfer import CONSTANT, LINEAR, Transfer
from ocp.verification.constraints import augmented, constraint_lines
from ocp.verification.slopes import AROUND, draw_direction, kinked, measure_slope

__all__ = ["Check", "Report", "Taylor", "taylor_test", "verify"]

#: Step lengths of a Taylor test, in multiples of a direction of unit norm.
STEPS = tuple(0.2 * 2.0**-k for k in range(22))


@dataclass(frozen=True)
class Taylor:
    """Remainders of the Taylor expansion of an objective along one direction.

    Attributes
    ----------
    steps : tuple of float
        Step lengths e.
    first, second : tuple of float
        |J(u + e d) - J(u)|, of first order, and |J(u + e d) - J(u) - e <dJ(u), d>|, of second order if the derivative
        is right.
    noise : float
        Remainders below this are rounding errors.
    third : tuple of float, optional
        |J(u + e d) - J(u) - e <dJ(u), d> - e^2/2 <H d, d>|, of third order if the Hessian H is right and J smooth;
        None where the objective has no second derivative.
    """

    steps: tuple[float, ...]
    first: tuple[float, ...]
    second: tuple[float, ...]
    noise: float
    third: tuple[float, ...] | None = None

    def order(self, remainders: Sequence[float]) -> float:
        """Slope of a line through the four finest points above the noise, in logarithms; NaN if there is only one."""
        points = zip(self.steps, remainders, strict=True)
        logs = [(log(e), log(r)) for e, r in points if isfinite(r) and r > self.noise][-4:]
        return linear_regression(*zip(*logs, strict=True)).slope if len(logs) > 1 else nan


@dataclass(frozen=True)
class Check:
    """One line of a report: what was measured, what was expected, and whether they agree."""

    name: str
    measured: float
    expected: str
    passed: bool


@dataclass(frozen=True)
class Report:
    """The outcome of `verify`: ``passed`` is the verdict and ``str(report)`` a table.

    The sentences in ``skipped`` say which checks the problem does not allow, and why.
    """

    checks: tuple[Check, ...]
    taylor: Taylor
    skipped: tuple[str, ...] = ()

    @property
    def passed(self) -> bool:
        """Whether all checks passed."""
        return all(check.passed for check in self.checks)

    def __str__(self) -> str:
        # No order can be seen where a remainder is zero up to rounding.
        seen = ["none" if c.passed and isnan(c.measured) else f"{c.measured:.3g}" for c in self.checks]
        rows = [(c.name, s, c.expected, "pass" if c.passed else "FAIL") for c, s in zip(self.checks, seen, strict=True)]
        table = tabulate(rows, headers=("check", "measured", "expected", ""), disable_numparse=True)
        failed = sum(not check.passed for check in self.checks)
        verdict = "All checks passed." if self.passed else f"{failed} of {len(self.checks)} checks FAILED."
        return "\n".join((table, *(f"Skipped: {reason}" for reason in self.skipped), verdict))

    def to_dict(self) -> dict[str, Any]:
        """The report as nested dictionaries and lists."""
        return {"passed": self.passed, **asdict(self)}


def verify(objective: Objective, control: Tensor | Control | None = None, seed: int = 0) -> Report:
    """Check the derivative of an objective, the pieces it is made of, and its coherence with coarser grids.

    Where all pieces have second derivatives, the Hessian is checked, too. With constraints, so are their derivatives by
    states, controls and parameters, and an augmented Lagrangian. Control and work count are left unchanged.
    Use float64: in float32 the bounds are wider, and of the Hessian only the symmetry is checked.

    Parameters
    ----------
    objective : Objective
        Usually from `discretize`.
    control : Tensor or Control, optional
        Where to check; by default the problem's start, moved at random, so that no zero hides an error.
    seed : int
        Seed of the random directions.

    Raises
    ------
    TypeError, ValueError
        If ``objective`` is something else, such as a problem, which has no grid yet, or if it is not finite there.

    Examples
    --------
    >>> from ocp import ControlProblem, discretize
    >>> x = torch.ones(1, 1).double()
    >>> problem = ControlProblem(lambda t, x, u: u - x**3, x, lambda x: x.square().sum(), control_size=1)
    >>> verify(discretize(problem, steps=8)).passed
    True
    """
    if not isinstance(objective, Objective):
        raise TypeError(f"objective: expected one, as from discretize(problem, steps), got {type(objective).__name__}")
    generator = torch.Generator().manual_seed(seed)
    u = control.flat if isinstance(control, Control) else control
    if u is None:
        if not isinstance(objective, ReducedObjective):
            raise ValueError("control: expected one, since the objective has no start of its own, got None")
        start = objective.discretization.start().flat
        u = start + 0.1 * normal(start, generator)
    with objective.work.looking():
        point = objective.at(u)
        if not isfinite(point.value):
            at = "at this control" if control is not None else "near the start of the problem"
            raise ValueError(f"objective: expected a finite value {at}, got {point.value}")
        direction = draw_direction(point, generator)
        taylor = taylor_test(point, direction)
        checks, skipped = _slope_checks(point, direction, taylor), list[str]()
        if isinstance(objective, ReducedObjective):
            for name, measure in _transposes(objective, point, generator).items():
                try:
                    checks.append(_agreement(name, *measure(), u.dtype))
                except NotImplementedError as error:
                    skipped.append(f"{name}: {error}")
        checks += _multilevel_checks(point, generator)
        if taylor.third is not None:
            checks += _hessian_checks(point, taylor, taylor.third, generator, _kinks(checks))
        elif isinstance(objective, ReducedObjective):
            skipped += [f"Hessian: {name}: expected {what}" for name, what in objective.without_hvp.items()]
        if isinstance(objective, ReducedObjective) and objective.discretization.problem.constraints:
            checks += _constraint_checks(objective, objective.at(u), generator)
    return Report(tuple(checks), taylor, tuple(skipped))


def taylor_test(point: Evaluation, direction: Tensor) -> Taylor:
    """Remainders of the Taylor expansion of an objective at one control along a flat direction, for halved steps.

    Examples
    --------
    >>> from ocp import ControlProblem, discretize
    >>> x = torch.ones(1, 1).double()
    >>> problem = ControlProblem(lambda t, x, u: u * x, x, lambda x: x.square().sum(), control_size=1)
    >>> taylor = taylor_test(discretize(problem, steps=8).at(torch.zeros(8).double()), torch.ones(8).double())
    >>> round(taylor.order(taylor.second), 1)
    2.0
    """
    objective, control = point.objective, point.control
    value, slope = point.value, float(torch.dot(point.derivative, direction))
    changes = [(e, objective.at(torch.add(control, direction, alpha=e)).value - value) for e in STEPS]
    second, third = tuple(abs(change - e * slope) for e, change in changes), None
    if _has_hessian(point):
        bend = float(torch.dot(point.hessian_product(direction), direction))
        third = tuple(abs(change - e * slope - 0.5 * e**2 * bend) for e, change in changes)
    # What is left at the smallest steps is rounding, also that of parts of the objective which cancel in its value.
    left = max((r for r in second[-2:] if isfinite(r)), default=0.0)
    rounding = 100 * torch.finfo(control.dtype).eps * max(abs(value), abs(slope) * STEPS[0])
    return Taylor(STEPS, tuple(abs(change) for _, change in changes), second, max(rounding, 4 * left), third)


def _has_hessian(point: Evaluation) -> bool:
    """Whether an evaluation, with all pieces of its problem, has second derivatives."""
    if isinstance(point, ShiftedEvaluation):
        return _has_hessian(point.base)
    if isinstance(point.objective, SecondOrderObjective):
        return not point.objective.without_hvp
    return isinstance(point, SecondOrderEvaluation)


def _kinks(checks: Sequence[Check]) -> bool:
    """Whether a check passed because of kinks."""
    return any(check.expected.endswith("kinks") for check in checks)


def _constraint_checks(
    objective: ReducedObjective, point: ReducedEvaluation, generator: torch.Generator
) -> list[Check]:
    """The derivatives of the constraints by themselves, and those of an augmented Lagrangian by the sweeps."""
    checks, eps = list[Check](), torch.finfo(point.control.dtype).eps
    bound = 1e-5 if point.control.dtype == torch.float64 else 2e-2
    for name, number, slope in constraint_lines(objective, point, generator):
        e, value = eps ** (1 / 3), number(0.0)
        right, left = (number(e) - value) / e, (value - number(-e)) / e
        scale = max(abs(slope), 1e-3 * abs(value), torch.finfo(point.control.dtype).tiny)
        off, kinked = abs((right + left) / 2 - slope) / scale, abs(right - left) > 0.1 * scale
        checks.append(_at_most(f"{name}: derivative against central difference", off, bound, kinked))
    whole = augmented(objective, point, generator)
    direction = draw_direction(whole, generator)
    taylor = taylor_test(whole, direction)
    found = _slope_checks(whole, direction, taylor)
    sweep, measure = next(iter(_transposes(whole.objective, whole, generator).items()))
    with suppress(NotImplementedError):  # a tangent is missing, as was said before
        found.append(_agreement(sweep, *measure(), point.control.dtype))
    if taylor.third is not None:
        found += _hessian_checks(whole, taylor, taylor.third, generator, _kinks(found))
    return checks + [replace(check, name=f"augmented Lagrangian: {check.name}") for check in found]


def _at_most(name: str, measured: float, bound: float, kinks: bool = False) -> Check:
    """A check of a bound, which passes, too, if kinks are why it is exceeded."""
    excuse = " or kinks" if kinks and not measured <= bound else ""
    return Check(name, measured, f"<= {bound:.0e}{excuse}", measured <= bound or kinks)


def _agreement(name: str, a: float, b: float, scale: float, dtype: torch.dtype) -> Check:
    """A check that two numbers agree up to rounding relative to a scale."""
    return _at_most(name, abs(a - b) / (scale if scale > 0 else 1.0), 1e-11 if dtype == torch.float64 else 1e-4)


def _has_order(name: str, observed: float, order: int, tolerance: float, **excuses: bool) -> Check:
    """A check of an order, which passes, too, if one of the excuses holds."""
    right = abs(observed - order) <= tolerance
    excuse = "" if right else next((f" or {word}" for word, holds in excuses.items() if holds), "")
    return Check(name, observed, f"{order} +- {tolerance}{excuse}", right or bool(excuse))


def _slope_checks(point: Evaluation, direction: Tensor, taylor: Taylor, kinks: bool = False) -> list[Check]:
    """The derivative along a direction: orders of the remainders, and differences here and nearby."""
    objective, u = point.objective, point.control
    double, tiny, e = u.dtype == torch.float64, torch.finfo(u.dtype).tiny, torch.finfo(u.dtype).eps ** (1 / 3)
    tolerance, bound = (0.1, 1e-5) if double else (0.3, 2e-2)
    length = objective.space.dual_norm(point.derivative)
    first, second = taylor.order(taylor.first), taylor.order(taylor.second)
    # At a stationary point the first remainder is of second order, as it should be.
    flat = first > 1 and length <= 1e-6 * abs(point.value)
    # A remainder that is rounding error everywhere is zero: no order can be seen, nor is one needed.
    exact = all(r <= 10 * taylor.noise for r in taylor.second)
    checks = [
        _has_order("Taylor order of the value alone", first, 1, tolerance, stationary=flat, kinks=kinks),
        _has_order("Taylor order with the derivative", second, 2, tolerance, exact=exact, kinks=kinks),
    ]
    slope = float(torch.dot(point.derivative, direction))
    central = (objective.at(u + e * direction).value - objective.at(u - e * direction).value) / (2 * e)
    # Near an optimum the slope is small against the rounding errors of the two values.
    scale = max(abs(slope), 1e-3 * length, 1e-4 * abs(point.value), tiny)
    checks.append(_at_most("derivative against central difference", abs(central - slope) / scale, bound, kinks))
    nearby = objective.at(u + 0.1 * direction)
    if isfinite(nearby.value):  # a derivative left over from another control is right there, not here
        moved = measure_slope(nearby, direction, [k * e for k in AROUND])
        off = abs(moved.measured - moved.stated) / max(moved.scale, tiny)
        expected = f"<= {bound:.0e}" if not moved.contradicted else "within the errors of differences"
        checks.append(Check("derivative at another control", off, expected, not moved.contradicted))
    if not kinks and not all(check.passed for check in checks) and kinked(point, direction):
        # At a kink orders and central differences are lost, while the slopes to both sides can still be compared.
        here = measure_slope(point, direction, [k * e for k in AROUND])
        return checks if here.contradicted else _slope_checks(point, direction, taylor, kinks=True)
    return checks


def _hessian_checks(
    point: Evaluation, taylor: Taylor, third: Sequence[float], generator: torch.Generator, kinks: bool
) -> list[Check]:
    """Symmetry of the Hessian; in double precision its action against differences, and the order of remainders."""
    objective, u = point.objective, point.control
    space, double = objective.space, u.dtype == torch.float64
    a, b = normal(u, generator), normal(u, generator)
    a, b = a / space.norm(a), b / space.norm(b)
    Ha, Hb = point.hessian_product(a), point.hessian_product(b)
    # Where the Hessian is small, the rounding errors of derivatives, and of the values they belong to, show.
    scale = max(1e-3 * space.dual_norm(point.derivative), 1e-4 * abs(point.value))
    scale = max(scale, space.dual_norm(Ha), space.dual_norm(Hb), torch.finfo(u.dtype).tiny)
    asymmetry = abs(float(torch.dot(a, Hb) - torch.dot(b, Ha))) / scale
    symmetry = _at_most("symmetry of the Hessian", asymmetry, 1e-10 if double else 1e-3)
    if not double:  # rounding errors hide the third order, and long differences cross kinks
        return [symmetry]

    def off(e: float) -> float:
        central = (objective.at(u + e * a).derivative - objective.at(u - e * a).derivative) / (2 * e)
        return space.dual_norm(central - Ha) / scale

    e = torch.finfo(u.dtype).eps ** (1 / 3)
    apart, bound, jumps = off(e), 1e-5, False
    if apart > bound:
        # A shorter difference may miss a kink. At one either the derivative jumps, and quotients grow as steps get
        # shorter, or the Hessian does; a wrong Hessian is off by the same everywhere.
        shorter = [off(e / 8), off(e / 64)]
        jumps = any(b >= 2 * a for a, b in pairwise([apart, *shorter]))
        apart = min(apart, *shorter)
        ends = (objective.at(u + k * e / 64 * a).hessian_product(a) for k in (1, -1))
        jumps = jumps or apart <= 2 * max(space.dual_norm(end - Ha) for end in ends) / scale
    difference = _at_most("Hessian against central difference", apart, bound, jumps)
    observed, exact = taylor.order(third), all(r <= 10 * taylor.noise for r in third)
    # A kink, such as that of ReLU, takes the third order away where a step crosses it. It leaves the second order, or
    # is known by then, and the short difference; a wrong derivative fails the one, a wrong Hessian the other.
    kinks = difference.passed and (jumps or kinks or not taylor.order(taylor.second) < 1.9)
    order = _has_order("Taylor order with the Hessian", observed, 3, 0.1, exact=exact, kinks=kinks)
    return [symmetry, difference, order]


def _transposes(
    objective: ReducedObjective, point: Evaluation, generator: torch.Generator
) -> dict[str, Callable[[], tuple[float, float, float]]]:
    """Derivatives against their transposes, for the whole sweep, the dynamics, one step and the initial state.

    By name, what measures two numbers that should agree, and their scale. It raises ``NotImplementedError`` where a
    tangent is missing.
    """
    discretization, space, u = objective.discretization, objective.space, point.control
    problem, integrator, h = discretization.problem, discretization.integrator, space.grid.h
    integrator = integrator.scheme if isinstance(integrator, AtNodes) else integrator
    k, derivative, direction = space.grid.steps // 2, point.derivative, normal(u, generator)
    x, uk, t = objective.trajectory(u).x[k], discretization.inputs(u)[k], space.grid.nodes[k]
    dx, p, du = normal(x, generator), normal(x, generator), normal(uk, generator)
    f, x0, q, dq = problem.equation.dynamics, problem.initial_state, space.parameters(u), space.parameters(direction)
    plain = replace(problem.equation, running_cost=None)

    def sweep() -> tuple[float, float, float]:
        scale = max(space.dual_norm(derivative), 1e-3 * abs(point.value)) * space.norm(direction)
        return float(torch.dot(derivative, direction)), objective.directional(u, direction), scale

    def pair(tangent: Tensor, transposed: Sequence[Tensor], *directions: Tensor) -> tuple[float, float, float]:
        product = p * tangent
        right = float(sum((a * b).sum() for a, b in zip(transposed, directions, strict=True)))
        return float(product.sum()), right, float(product.abs().sum())

    def step() -> tuple[float, float, float]:
        tangent, _ = integrator.tangent(plain, t, h, x, uk, dx, du)
        return pair(tangent, integrator.pullback(plain, t, h, x, uk, p), dx, du)

    measures = {
        "adjoint sweep against tangent sweep": sweep,
        "dynamics: vjp against jvp": lambda: pair(f.jvp(t, x, uk, dx, du), f.vjp(t, x, uk, p), dx, du),
        "one step: pullback against tangent": step,
    }
    if problem.parameter_size:
        measures["initial state: vjp against jvp"] = lambda: pair(x0.jvp(q, dq), [x0.vjp(q, p)], dq)
    return measures


def _multilevel_checks(point: Evaluation, generator: torch.Generator) -> list[Check]:
    """Transposes of the transfers, and first-order coherence on two and, where possible, three levels."""
    checks: list[Check] = []
    fine, u, derivative = point.objective, point.control, point.derivative
    for levels in (2, 3) if fine.space.control_size else ():
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
            checks.append(_agreement(name, a, b, float(v.norm() * d.norm()), u.dtype))
        transfer = Transfer(fine.space, coarse.space)
        u, derivative = transfer.restrict(u), transfer.restrict_dual(derivative)
        origin = coarse.at(u)
        if not isfinite(origin.value):
            break
        model = ShiftedObjective(coarse, u, origin.derivative - derivative)
        mismatch = model.space.dual_norm(model.at(u).derivative - derivative)
        scale = max(model.space.dual_norm(derivative), model.space.dual_norm(origin.derivative))
        checks.append(_agreement(f"coherence of the derivative on {levels} levels", mismatch, 0.0, scale, u.dtype))
        fine = model
    return checks
