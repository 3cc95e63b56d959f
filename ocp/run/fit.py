"""Nonlinear least squares: parameters from measurements, with standard errors."""

from __future__ import annotations

from dataclasses import dataclass
from itertools import product
from math import inf, nan, sqrt
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from tabulate import tabulate
from torch import Tensor

from ocp.adjoint.trajectory import Trajectory
from ocp.integrators.integrator import Integrator
from ocp.objective.reduced import ReducedObjective, discretize
from ocp.optimize.status import Status
from ocp.problem.control_problem import ControlProblem
from ocp.problem.inference import outside
from ocp.problem.measurements import Measurements
from ocp.problem.parameters import ParameterSet
from ocp.run.residuals import Array, Residuals
from ocp.space.control import Control

__all__ = ["Fit", "fit"]

#: A grid is too coarse if half the step moves a parameter by more than its standard error, and the measured numbers by
#: more than this share of them. Noise below it is rare.
COARSE = 1e-3


@dataclass(frozen=True, eq=False)
class Fit:
    """Parameters fitted to measurements by `fit`.

    Attributes
    ----------
    parameters : Named or Tensor
        As the functions of the problem get them: ``fit.parameters["mass"]``, or ``fit.parameters.mass``.
    standard_errors : Named or Tensor
        Of the same shapes. NaN where a bound holds a parameter, infinite where the data do not determine it.
    covariance : Tensor
        Shape (s, s), in the order of ``labels``: the inverse of the Gauss-Newton Hessian, times the variance.
    labels : tuple of str
        A name for each of the s numbers.
    held : tuple of str
        Those that a bound holds.
    variance : float
        Of a measurement with weight 1: the weighted sum of squares, divided by the number of measurements less that of
        parameters determined by them; 1 if the weights are absolute.
    residuals : Tensor
        Data minus what is observed of the trajectory, shape (batch, count, k); NaN where there are no data.
    fitted : Tensor
        What is observed at the nodes, shape (N + 1, batch, k).
    shift : float
        How far half the step would move a parameter at most, in standard errors: an estimate to first order.
    value : float
        The objective.
    status, message : Status, str
    evaluations : int
        Trajectories computed.
    control : Control
        The parameters for `minimize` and others, with the grid.
    trajectory : Trajectory
    measurements : Measurements
    """

    parameters: Any
    standard_errors: Any
    covariance: Tensor
    labels: tuple[str, ...]
    held: tuple[str, ...]
    variance: float
    residuals: Tensor
    fitted: Tensor
    shift: float
    value: float
    status: Status
    message: str
    evaluations: int
    control: Control
    trajectory: Trajectory
    measurements: Measurements

    @property
    def success(self) -> bool:
        """Whether the stated test holds."""
        return self.status.success

    def __repr__(self) -> str:
        return f"Fit({self.status.name}, value={self.value:.10g}, {self.evaluations} evaluations)"

    def __str__(self) -> str:
        errors = self.covariance.diagonal().sqrt().tolist()
        numbers = zip(self.labels, self.control.parameters.tolist(), errors, strict=True)
        rows = [(n, f"{v:.6g}", "held by a bound" if n in self.held else f"{e:.2g}") for n, v, e in numbers]
        table = tabulate(rows, headers=("parameter", "value", "standard error"), disable_numparse=True)
        return f"{self.status.name}: {self.message}\n{table}"


@outside
def fit(
    problem: ControlProblem,
    steps: int,
    *,
    integrator: Integrator | str = "rk4",
    absolute: bool = False,
    tolerance: float = 1e-6,
    max_evaluations: int = 200,
) -> Fit:
    """Fit the parameters of a problem to its measurements, within their bounds.

    ``scipy.optimize.least_squares`` with the exact Jacobian of the discrete problem. Initial states to be found are
    parameters that ``initial_state`` is a function of. Like all methods of this kind it finds a minimum near the start.

    Parameters
    ----------
    problem : ControlProblem
        With `Measurements` as its only cost, parameters, and ``control_size=0``.
    steps : int
    integrator : str or Integrator
    absolute : bool
        Whether the weights are inverse variances of the measurements. Otherwise they are relative, and the variance is
        estimated from the residuals.
    tolerance : float
        Of the share of the residuals that a change of the parameters could still explain, by their norms: Bates &
        Watts (1981), "A relative offset orthogonality convergence criterion for nonlinear least squares". It depends
        neither on units nor on the scale of the parameters.
    max_evaluations : int

    Returns
    -------
    Fit
        Its ``status`` says how it ended; numerical failures do not raise.

    Raises
    ------
    TypeError, ValueError
        If an argument does not fit, before work begins.

    Examples
    --------
    >>> t = torch.linspace(0.1, 2, 20, dtype=torch.float64)
    >>> data = 3 * torch.exp(-0.7 * t) + 0.01 * torch.cos(50 * t)
    >>> decay = ControlProblem(
    ...     lambda t, x, u, q: -q.rate * x,
    ...     initial_state=lambda q: q.first.view(1, 1),
    ...     parameters={"rate": torch.tensor(1.0).double(), "first": torch.tensor(1.0).double()},
    ...     control_size=0,
    ...     horizon=2.0,
    ...     measurements=Measurements(t, data),
    ... )
    >>> found = fit(decay, steps=20)
    >>> found.status.name, [round(float(number), 1) for number in found.parameters.values()]
    ('CONVERGED', [0.7, 3.0])
    """
    _check(problem, tolerance, max_evaluations)
    squares = Residuals(discretize(problem, steps, integrator).discretization)
    status, q, share = squares.solve(tolerance, max_evaluations)
    return _described(squares, q, status, share, absolute)


def _check(problem: Any, tolerance: Any, max_evaluations: Any) -> None:
    """Refuse what does not fit."""
    if not isinstance(problem, ControlProblem):
        raise TypeError(f"problem: expected a ControlProblem, got {type(problem).__name__}")
    if problem.measurements is None:
        raise ValueError("problem: expected one with measurements to fit, got none")
    if problem.dynamics.control_size:
        raise ValueError(
            "problem: expected control_size=0, as fit looks for parameters only, got "
            f"{problem.dynamics.control_size}; minimize finds controls, too"
        )
    for name in ("terminal_cost", "running_cost", "control_cost"):
        if getattr(problem, name):
            raise ValueError(f"problem: expected measurements as the only cost, got a {name}; minimize takes all costs")
    if problem.constraints:
        raise ValueError("problem: expected one without constraints other than bounds of parameters")
    if not (isinstance(tolerance, int | float) and 0 < tolerance < 1):
        raise ValueError(f"tolerance: expected a number between 0 and 1, got {tolerance!r}")
    if isinstance(max_evaluations, bool) or not isinstance(max_evaluations, int) or max_evaluations < 1:
        raise ValueError(f"max_evaluations: expected an integer >= 1, got {max_evaluations!r}")


def _described(squares: Residuals, q: Array, status: Status, share: float, absolute: bool) -> Fit:
    """The fit, with its statistics."""
    objective, problem = ReducedObjective(squares.discretization), squares.discretization.problem
    control, prediction, labels = squares.control(q), squares.prediction(q), _labels(problem.parameters)
    found, message = _Statistics(np.full((len(q), len(q)), nan), np.zeros(len(q), bool), nan, nan), status.value
    if status is not Status.NOT_FINITE:
        found = _statistics(squares, q, absolute)
        message = f"A change of the parameters could explain another {share:.1e} of the residuals."
        if status is not Status.CONVERGED:
            message = f"{status.value} {message}"
        if found.coarse:
            status, message = Status.UNRESOLVED, f"{Status.UNRESOLVED.value} {message}"
        message += f" Half the step would move a parameter by {found.shift:.1g} standard errors."
    errors = np.sqrt(found.covariance.diagonal())
    loose = [name for name, error in zip(labels, errors, strict=True) if error == inf]
    if loose:
        message += f" The data do not determine {', '.join(loose)}."
    return Fit(
        parameters=problem.parameters(control.parameters),
        standard_errors=problem.parameters(torch.from_numpy(errors).to(control.flat)),
        covariance=torch.from_numpy(found.covariance).to(control.flat),
        labels=labels,
        held=tuple(name for name, held in zip(labels, found.held, strict=True) if held),
        variance=found.variance,
        residuals=torch.where(squares.present, squares.data - prediction.values, nan),
        fitted=prediction.fitted,
        shift=found.shift,
        value=objective.value(control),
        status=status,
        message=message,
        evaluations=squares.evaluations,
        control=control,
        trajectory=objective.trajectory(control),
        measurements=squares.measurements,
    )


@dataclass(frozen=True, eq=False)
class _Statistics:
    covariance: Array
    held: NDArray[np.bool_]
    variance: float
    shift: float
    coarse: bool = False


def _statistics(squares: Residuals, q: Array, absolute: bool) -> _Statistics:
    r, J = squares.residuals(q), squares.jacobian(q)
    held = squares.held(q, J.T @ r)
    free, covariance = ~held, np.full((len(q), len(q)), nan)
    inverse, rank = _inverse(J[:, free], squares.eps**0.75)
    freedom = len(r) - rank
    variance = 1.0 if absolute else float(r @ r) / freedom if freedom > 0 else nan
    covariance[np.ix_(free, free)] = variance * inverse
    # To first order, the fit on the finer grid.
    finer = squares.on(2 * squares.discretization.grid.steps).residuals(q)
    if not np.isfinite(finer).all():
        return _Statistics(covariance, held, variance, inf, True)
    moved = np.linalg.lstsq(J[:, free], r - finer, rcond=None)[0]
    with np.errstate(divide="ignore", invalid="ignore"):
        shift = float(np.nan_to_num(np.abs(moved) / np.sqrt(covariance.diagonal()[free]), posinf=inf).max(initial=0.0))
    coarse = shift > 1 and bool(np.linalg.norm(J[:, free] @ moved) > COARSE * squares.size)
    return _Statistics(covariance, held, variance, shift, coarse)


def _inverse(J: Array, rounding: float) -> tuple[Array, int]:
    """(J^T J)^-1, infinite for parameters that are not determined, with NaN between these and others; the rank of J.

    The columns are scaled first, so that the rank does not depend on units.
    """
    sizes = np.linalg.norm(J, axis=0)
    sizes[sizes == 0] = 1.0
    _, values, V = np.linalg.svd(J / sizes, full_matrices=True)
    values = np.concatenate((values, np.zeros(len(V) - len(values))))
    kept = values > rounding * values.max(initial=0.0)
    scaled = V[kept] / sizes
    inverse: Array = (scaled.T / values[kept] ** 2) @ scaled
    loose = np.linalg.norm(V[~kept], axis=0) > sqrt(rounding)
    inverse[loose] = inverse[:, loose] = nan
    inverse[loose, loose] = inf
    return inverse, int(kept.sum())


def _labels(parameters: ParameterSet) -> tuple[str, ...]:
    """A name for each number."""
    labels: list[str] = []
    for name, parameter in parameters.of.items():
        shape = torch.as_tensor(parameter.start).shape
        places = product(*map(range, shape))
        labels += [f"{name or 'q'}[{', '.join(map(str, place))}]" if place else name for place in places]
    return tuple(labels)
