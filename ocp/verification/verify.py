"""Are the derivatives right? Taylor, dot-product and coherence tests, as a report with numbers and a verdict."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import asdict, dataclass, replace
from itertools import pairwise
from math import inf, isfinite, isnan, log
from typing import Any

import torch
from tabulate import tabulate
from torch import Tensor

from ocp.adjoint.recomputed import Recomputed
from ocp.adjoint.schedules import Reversible
from ocp.adjoint.sweeps import forward, record, without_hvp
from ocp.objective.reduced import Objective, ReducedObjective, ShiftedObjective
from ocp.problem.control_problem import ControlProblem
from ocp.problem.costs import Tikhonov
from ocp.run.json_files import plain
from ocp.space.bounds import feasible
from ocp.space.control import Control
from ocp.space.transfer import CONSTANT, LINEAR, Transfer

__all__ = ["Check", "Report", "Slope", "Taylor", "drift", "measure_slope", "quick_check", "taylor_test", "verify"]

#: Step lengths of a Taylor test, in multiples of a direction of unit norm.
STEPS = tuple(0.2 * 2.0**-k for k in range(22))


@dataclass(frozen=True)
class Check:
    """One line of a report: what was measured, what was expected, whether they agree."""

    name: str
    measured: float
    expected: str
    passed: bool


@dataclass(frozen=True)
class Taylor:
    """Remainders of the Taylor expansion of an objective along one direction.

    Attributes
    ----------
    steps : tuple of float
        Step lengths e.
    first : tuple of float
        |J(u + e d) - J(u)|, of first order.
    second : tuple of float
        |J(u + e d) - J(u) - e <dJ(u), d>|, of second order if the derivative is right.
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

    def order(self, remainders: tuple[float, ...]) -> float:
        """Observed order: slope of a straight line through the four finest points above the noise, in logarithms.

        NaN where fewer than two points are above the noise.
        """
        points = [
            (log(e), log(r)) for e, r in zip(self.steps, remainders, strict=True) if isfinite(r) and r > self.noise
        ]
        points = points[-4:]
        if len(points) < 2:
            return float("nan")
        x, y = (sum(values) / len(points) for values in zip(*points, strict=True))
        return sum((a - x) * (b - y) for a, b in points) / sum((a - x) ** 2 for a, _ in points)


@dataclass(frozen=True)
class Report:
    """The outcome of `verify`.

    Attributes
    ----------
    passed : bool
        Whether all checks passed.
    checks : tuple of Check
    taylor : Taylor
    """

    checks: tuple[Check, ...]
    taylor: Taylor

    @property
    def passed(self) -> bool:
        return all(check.passed for check in self.checks)

    def __str__(self) -> str:
        # No order can be seen where a remainder is zero up to rounding.
        seen = ["none" if c.passed and isnan(c.measured) else f"{c.measured:.3g}" for c in self.checks]
        rows = [(c.name, s, c.expected, "pass" if c.passed else "FAIL") for c, s in zip(self.checks, seen, strict=True)]
        table = tabulate(rows, headers=("check", "measured", "expected", ""), disable_numparse=True)
        failed = sum(not check.passed for check in self.checks)
        verdict = "All checks passed." if self.passed else f"{failed} of {len(self.checks)} checks FAILED."
        return f"{table}\n{verdict}"

    def to_dict(self) -> dict[str, Any]:
        """The report as JSON can hold it; numbers that are not finite become null."""
        return plain({"passed": self.passed, **asdict(self)})


def taylor_test(objective: Objective, control: Tensor, direction: Tensor) -> Taylor:
    """Remainders of the Taylor expansion at ``control`` along ``direction``, for halved steps.

    Parameters
    ----------
    objective : Objective
    control, direction : Tensor
        Flat.

    Examples
    --------
    >>> from ocp import ControlProblem, discretize
    >>> problem = ControlProblem(
    ...     lambda t, x, u: u * x, torch.ones(1, 1).double(), lambda x: x.square().sum(), control_size=1
    ... )
    >>> objective = discretize(problem, steps=8)
    >>> taylor = taylor_test(objective, torch.zeros(8).double(), torch.ones(8).double())
    >>> round(taylor.order(taylor.second), 1)
    2.0
    """
    value = objective.value(control)
    slope = float(torch.dot(objective.derivative(control), direction))
    changes = tuple(objective.value(torch.add(control, direction, alpha=e)) - value for e in STEPS)
    third = None
    if _has_hessian(objective):
        bend = float(torch.dot(objective.hessian_product(control, direction), direction))
        third = tuple(abs(c - e * slope - 0.5 * e**2 * bend) for e, c in zip(STEPS, changes, strict=True))
    second = tuple(abs(change - e * slope) for e, change in zip(STEPS, changes, strict=True))
    # What is left at the smallest steps is rounding, also that of parts of the objective which cancel in its value.
    left = max((r for r in second[-2:] if isfinite(r)), default=0.0)
    rounding = 100 * torch.finfo(control.dtype).eps * max(abs(value), abs(slope) * STEPS[0])
    return Taylor(STEPS, tuple(abs(change) for change in changes), second, max(rounding, 4 * left), third)


@dataclass(frozen=True)
class Slope:
    """A slope of the objective as its values show it, beside the one that its derivative states.

    Attributes
    ----------
    measured, error : float
        From central differences, with an estimate of their error; infinite where no difference is finite.
    stated : float
        <dJ(u), d>.
    scale : float
        |dJ(u)| |d|.
    decrease : float
        The largest decrease among the values, less than their noise.
    eps : float
        Of the numbers.
    """

    measured: float
    error: float
    stated: float
    scale: float
    decrease: float
    eps: float

    @property
    def contradicted(self) -> bool:
        """Whether values and derivative cannot both be right.

        Where the difference quotients are good, they differ from a right slope by less than the square root of eps.
        """
        bound = 4 * self.error + 10 * self.eps**0.5 * self.scale
        return isfinite(bound) and abs(self.measured - self.stated) > bound

    def __str__(self) -> str:
        return f"the values have the slope {self.measured:.6g}, the derivative has {self.stated:.6g}"


def measure_slope(objective: Objective, control: Tensor, direction: Tensor, lengths: Sequence[float]) -> Slope:
    """The slope of an objective along a direction by central differences of several lengths.

    The best is the one that differs least from the next longer one, and that difference, with the noise of the values,
    is taken for its error: after Ridders (1982), "Accurate computation of F'(x) and F'(x) F''(x)". The noise is at
    least that of rounding; values that differ more when the control is moved by its rounding errors have more.

    Parameters
    ----------
    objective : Objective
    control, direction : Tensor
        Flat.
    lengths : sequence of float
        In multiples of the norm of the control, or of 1 where that is smaller; the longest first.
    """
    space, eps = objective.space, torch.finfo(control.dtype).eps
    value, derivative = objective.value(control), objective.derivative(control)
    moved = [objective.value(control * (1 + k * eps)) - value for k in (0, 1, -1)]
    noise = max(8 * eps * abs(value), *(2 * abs(change) for change in moved))
    norm, best, error, low = space.norm(direction), inf, inf, value
    unit = max(1.0, space.norm(control)) / norm if norm > 0 else 0.0
    quotients: list[tuple[float, float]] = []
    for step in (unit * length for length in lengths if unit > 0):
        ends = [objective.value(torch.add(control, direction, alpha=a)) for a in (step, -step)]
        low = min([low, *(end for end in ends if isfinite(end))])
        rounding = 8 * eps * max(map(abs, ends))  # more than that of a value which is zero
        quotients.append(((ends[0] - ends[1]) / (2 * step), max(noise, rounding) / step))
    for (longer, _), (quotient, uncertain) in pairwise(quotients):
        if abs(longer - quotient) + uncertain < error:  # not so where one is NaN or infinite
            best, error = quotient, abs(longer - quotient) + uncertain
    stated = float(torch.dot(derivative, direction))
    return Slope(best, error, stated, space.dual_norm(derivative) * norm, value - low - noise, eps)


#: Lengths of a few differences around the best one of smooth functions, eps^(1/3), in multiples of it.
AROUND = (64.0, 8.0, 1.0)


def quick_check(objective: Objective, control: Tensor, seed: int = 0) -> Slope:
    """The slope at a control and at one nearby, as values show it: a check of a derivative for some eight gradients.

    Of the two, that which contradicts more is returned. A derivative that is stale is right at one of them at most.

    Parameters
    ----------
    objective : Objective
    control : Tensor
        Flat.
    seed : int
        Of the random directions.
    """
    generator, space = torch.Generator().manual_seed(seed), objective.space
    lengths = [k * torch.finfo(control.dtype).eps ** (1 / 3) for k in AROUND]
    way = _like(control, generator)
    way *= 0.1 * max(1.0, space.norm(control)) / space.norm(way)
    nearby = feasible(control + way, objective.box)
    slopes = []
    for u in (control, nearby):
        direction, gradient = _like(u, generator), space.gradient(objective.derivative(u))
        length = space.norm(gradient)
        if isfinite(length) and length > 0:
            direction = direction / space.norm(direction) + gradient / length
        slopes.append(measure_slope(objective, u, direction, lengths))
    return next((slope for slope in slopes if slope.contradicted), slopes[0])


def _has_hessian(objective: Any) -> bool:
    """Whether an objective has second derivatives, down to the pieces of its problem."""
    if isinstance(objective, ShiftedObjective):
        return _has_hessian(objective.base)
    if isinstance(objective, ReducedObjective):
        return not without_hvp(objective.discretization)
    return hasattr(objective, "hessian_product")


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
    if not hasattr(objective, "derivative"):
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
        u = start + 0.1 * _like(start, generator)
    else:
        raise ValueError("control: expected one, since this objective does not know the start of its problem; got None")
    with objective.work.looking():
        if not isfinite(objective.value(u)):
            at = "at this control" if control is not None else "near the start of the problem"
            raise ValueError(f"objective: expected a finite value {at}, got {objective.value(u)}")
        taylor, checks = _taylor_checks(objective, u, generator)
        if isinstance(objective, ReducedObjective):
            checks += _transpose_checks(objective, u, generator)
        checks += _multilevel_checks(objective, u, generator)
        if taylor.third is not None:
            checks += _hessian_checks(objective, u, taylor, generator)
    return Report(tuple(checks), taylor)


@torch.no_grad()
def drift(objective: ReducedObjective, control: Tensor | Control) -> float:
    """How far the states of the way back come from those of the way forward, where `Reversible` undoes steps.

    The largest difference at any node, as a share of the largest entry of all states. How much of it the derivative
    feels depends on the problem. All states are stored meanwhile.

    Parameters
    ----------
    objective : ReducedObjective
        From `discretize`, with the plan in question.
    control : Tensor or Control

    Raises
    ------
    ValueError
        If the objective has another plan.

    Returns
    -------
    float

    Examples
    --------
    >>> from ocp import ControlProblem, Reversible, discretize
    >>> wheel = lambda t, x, u: torch.stack((x[:, 1], u[0] - torch.sin(x[:, 0])), dim=1)
    >>> x = torch.ones(1, 2, dtype=torch.float64)
    >>> problem = ControlProblem(wheel, x, lambda x: x.square().sum(), control_size=1, horizon=10.0)
    >>> objective = discretize(problem, 1000, "verlet", Reversible())
    >>> 0 < drift(objective, torch.zeros(1000, dtype=torch.float64)) < 1e-13
    True
    """
    if not isinstance(objective, ReducedObjective) or not isinstance(objective.memory, Reversible):
        got = objective.memory if isinstance(objective, ReducedObjective) else type(objective).__name__
        raise ValueError(f"objective: expected one from discretize with the plan Reversible, got {got}")
    discretization, u = objective.discretization, objective._flat(control)
    steps = record(discretization, objective.memory, *(part.to(u) for part in discretization.example()))
    forward(discretization, u, steps)
    if not isinstance(steps, Recomputed):
        return 0.0
    states = steps.states
    apart = [(steps.few.states - states[a : b + 1]).abs().max() for a, b in steps.retrace()]
    return float(torch.stack(apart).max() / states.abs().max())


def _like(tensor: Tensor, generator: torch.Generator) -> Tensor:
    """Normal random numbers of the shape, type and device of a tensor; drawn on the CPU, so the same everywhere."""
    return torch.randn(tensor.shape, generator=generator, dtype=torch.float64).to(tensor)


def _agree(name: str, a: float, b: float, scale: float, dtype: torch.dtype) -> Check:
    """A check that two numbers agree up to rounding relative to a scale."""
    bound = 1e-11 if dtype == torch.float64 else 1e-4
    difference = abs(a - b) / scale if scale > 0 else abs(a - b)
    return Check(name, difference, f"<= {bound:.0e}", difference <= bound)


def _taylor_checks(objective: Objective, u: Tensor, generator: torch.Generator) -> tuple[Taylor, list[Check]]:
    """Orders of the remainders along a direction that is half random, half along the gradient."""
    space, double = objective.space, u.dtype == torch.float64
    direction = _like(u, generator)
    direction /= space.norm(direction)
    gradient = space.gradient(objective.derivative(u))
    length = space.norm(gradient)
    if length > 0:
        direction = direction + gradient / length
        direction /= space.norm(direction)
    taylor = taylor_test(objective, u, direction)
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
        flat = order == 1 and observed > 1 and length <= 1e-6 * abs(objective.value(u))
        passed = exact or flat or abs(observed - order) <= tolerance
        checks.append(Check(name, observed, f"{order} +- {tolerance}" + (" or exact" if exact else ""), passed))
    slope = float(torch.dot(objective.derivative(u), direction))
    e = torch.finfo(u.dtype).eps ** (1 / 3)
    central = (objective.value(u + e * direction) - objective.value(u - e * direction)) / (2 * e)
    bound = 1e-5 if double else 2e-2
    # Near an optimum the slope is small against the rounding errors of the two values.
    scale = max(abs(slope), 1e-3 * length, 1e-4 * abs(objective.value(u)), torch.finfo(u.dtype).tiny)
    error = abs(central - slope) / scale
    checks.append(Check("derivative against central difference", error, f"<= {bound:.0e}", error <= bound))
    nearby = u + 0.1 * direction
    if isfinite(objective.value(nearby)):  # a derivative left over from another control is right there, not here
        moved = measure_slope(objective, nearby, direction, [k * e for k in AROUND])
        off = abs(moved.measured - moved.stated) / max(moved.scale, torch.finfo(u.dtype).tiny)
        expected = f"<= {bound:.0e}" if not moved.contradicted else "within the errors of differences"
        checks.append(Check("derivative at another control", off, expected, not moved.contradicted))
    return taylor, checks


def _hessian_checks(objective: Objective, u: Tensor, taylor: Taylor, generator: torch.Generator) -> list[Check]:
    """Symmetry of the Hessian; in double precision its action against differences, and the order of remainders."""
    space, double = objective.space, u.dtype == torch.float64
    a, b = _like(u, generator), _like(u, generator)
    a, b = a / space.norm(a), b / space.norm(b)
    Ha, Hb = objective.hessian_product(u, a), objective.hessian_product(u, b)
    # Where the Hessian is small, the rounding errors of derivatives, and of the values they belong to, show.
    scale = max(1e-3 * space.dual_norm(objective.derivative(u)), 1e-4 * abs(objective.value(u)))
    scale = max(scale, space.dual_norm(Ha), space.dual_norm(Hb), torch.finfo(u.dtype).tiny)
    asymmetry, bound = abs(float(torch.dot(a, Hb) - torch.dot(b, Ha))) / scale, 1e-10 if double else 1e-3
    checks = [Check("symmetry of the Hessian", asymmetry, f"<= {bound:.0e}", asymmetry <= bound)]
    if not double or taylor.third is None:  # rounding errors hide the third order, and long differences cross kinks
        return checks
    e = torch.finfo(u.dtype).eps ** (1 / 3)
    central = (objective.derivative(u + e * a) - objective.derivative(u - e * a)) / (2 * e)
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


def _transpose_checks(objective: ReducedObjective, u: Tensor, generator: torch.Generator) -> list[Check]:
    """Derivatives against their transposes: the whole sweep, one step, the dynamics, the initial state."""
    discretization, space = objective.discretization, objective.space
    problem, integrator, h = discretization.problem, discretization.integrator, space.grid.h
    derivative, direction = objective.derivative(u), _like(u, generator)
    scale = max(space.dual_norm(derivative), 1e-3 * abs(objective.value(u))) * space.norm(direction)
    slope, tangent = float(torch.dot(derivative, direction)), objective.directional(u, direction)
    checks = [_agree("adjoint sweep against tangent sweep", slope, tangent, scale, u.dtype)]
    k = space.grid.steps // 2
    x, uk, t = objective.trajectory(u).x[k], space.path(u)[k], space.grid.nodes[k]
    dx, p, du = _like(x, generator), _like(x, generator), _like(uk, generator)

    def pair(name: str, df: Tensor, px: Tensor, pu: Tensor) -> Check:
        left, right = float((p * df).sum()), float((px * dx).sum() + (pu * du).sum())
        return _agree(name, left, right, float((p * df).abs().sum()), u.dtype)

    f = problem.dynamics
    checks.append(pair("dynamics: vjp against jvp", f.jvp(t, x, uk, dx, du), *f.vjp(t, x, uk, p)))
    plain = _without_cost(problem)
    step, _ = integrator.tangent(plain, t, h, x, uk, dx, du)
    checks.append(pair("one step: pullback against tangent", step, *integrator.pullback(plain, t, h, x, uk, p)))
    if problem.parameter_size:
        q, dq = space.parameters(u), space.parameters(direction)
        dx0 = problem.initial_state.jvp(q, dq)
        left, right = float((p * dx0).sum()), float(torch.dot(problem.initial_state.vjp(q, p), dq))
        checks.append(_agree("initial state: vjp against jvp", left, right, float((p * dx0).abs().sum()), u.dtype))
    return checks


def _without_cost(problem: ControlProblem) -> ControlProblem:
    """The problem with its running cost left out, so that a step is the map of states alone."""
    return replace(problem, running_cost=None, control_cost=(Tikhonov(0.0),))


def _multilevel_checks(objective: Objective, u: Tensor, generator: torch.Generator) -> list[Check]:
    """Transposes of the transfers, and first-order coherence on two and three levels where there are so many."""
    checks: list[Check] = []
    fine: Objective = objective
    derivative = objective.derivative(u)
    for levels in (2, 3):
        steps = fine.space.grid.steps
        factor = next((k for k in range(2, steps + 1) if steps % k == 0), None)
        if factor is None:
            break
        coarse = fine.on(steps // factor)
        for interpolation in (CONSTANT, LINEAR) if levels == 2 else ():
            transfer = Transfer(fine.space, coarse.space, interpolation)
            v, d = _like(transfer.restrict(u), generator), _like(u, generator)
            a, b = float(torch.dot(transfer.prolong(v), d)), float(torch.dot(v, transfer.restrict_dual(d)))
            name = f"restriction is the transpose of {interpolation.__name__} prolongation"
            checks.append(_agree(name, a, b, float(v.norm() * d.norm()), u.dtype))
        transfer = Transfer(fine.space, coarse.space)
        u, derivative = transfer.restrict(u), transfer.restrict_dual(derivative)
        if not isfinite(coarse.value(u)):
            break
        own = coarse.derivative(u)
        fine = ShiftedObjective(coarse, u, own - derivative)
        mismatch = fine.space.dual_norm(fine.derivative(u) - derivative)
        scale = max(fine.space.dual_norm(derivative), fine.space.dual_norm(own))
        checks.append(_agree(f"coherence of the derivative on {levels} levels", mismatch, 0.0, scale, u.dtype))
    return checks
