"""Parameters fitted to measurements, with their standard errors."""

from math import inf, isnan, log2

import numpy as np
import pytest
import torch
from scipy.optimize import curve_fit

from ocp import ControlProblem, Measurements, Parameter, Status, Tikhonov, fit, plots

D = torch.float64
TIMES = torch.tensor([0.07, 0.3, 0.55, 0.8, 1.1, 1.25, 1.6, 1.83], dtype=D)
NOISE = 0.05 * torch.cos(torch.arange(8, dtype=D) ** 2)


def number(value):
    return torch.tensor(value, dtype=D)


EXACT = 3 * torch.exp(-0.7 * TIMES)


def decay(data=EXACT + NOISE, rate=1.0, first=1.0, weight=1.0, **changes):
    """x' = -rate x, x(0) = first."""
    pieces = {
        "dynamics": lambda t, x, u, q: -q.rate * x,
        "initial_state": lambda q: q.first.view(1, 1),
        "horizon": 2.0,
        "control_size": 0,
        "parameters": {"rate": number(rate), "first": number(first)},
        "measurements": Measurements(TIMES, data, weight=weight),
    }
    return ControlProblem(**{**pieces, **changes})


@pytest.mark.parametrize("absolute", [False, True])
def test_parameters_and_their_covariance_are_those_of_scipy_for_the_closed_form(absolute):
    problem, sigma = decay(weight=0.05**-2), np.full(8, 0.05)
    data = problem.measurements.values.flatten().numpy()
    found = fit(problem, 64, absolute=absolute)
    best, covariance = curve_fit(
        lambda t, rate, first: first * np.exp(-rate * t), TIMES.numpy(), data, [1, 1], sigma, absolute
    )
    assert found.success
    assert [float(q) for q in found.parameters.values()] == pytest.approx(best, rel=1e-6)
    np.testing.assert_allclose(found.covariance, covariance, rtol=1e-4)
    assert float(found.standard_errors.rate) == pytest.approx(covariance[0, 0] ** 0.5, rel=1e-4)
    model = best[1] * np.exp(-best[0] * TIMES.numpy())
    np.testing.assert_allclose(found.residuals.flatten(), data - model, atol=1e-6)
    assert found.labels == ("rate", "first")
    assert "rate" in str(found)


def test_parameters_converge_with_the_order_of_the_scheme():
    exact = decay(EXACT)
    for scheme, order in (("midpoint", 2), ("rk4", 4)):
        errors = [abs(float(fit(exact, n, integrator=scheme).parameters.rate) - 0.7) for n in (10, 20)]
        assert log2(errors[0] / errors[1]) == pytest.approx(order, abs=0.15)


def test_a_bound_that_holds_a_parameter_is_reported():
    bounded = {"rate": Parameter(number(0.3), lower=0.0, upper=0.5), "first": number(1.0)}
    found = fit(decay(parameters=bounded), 16)
    assert found.status is Status.CONVERGED
    assert found.held == ("rate",)
    assert float(found.parameters.rate) == 0.5
    assert isnan(found.standard_errors.rate)
    model, data = torch.exp(-0.5 * TIMES), found.measurements.values.flatten()
    assert float(found.parameters.first) == pytest.approx(float((model @ data) / (model @ model)), rel=1e-6)
    assert float(found.standard_errors.first) > 0
    fixed = {"rate": Parameter(number(0.5), lower=0.5, upper=0.5), "first": number(1.0)}
    assert float(fit(decay(parameters=fixed), 16).parameters.first) == pytest.approx(float(found.parameters.first))


def test_parameters_that_the_data_do_not_determine_have_infinite_errors():
    parameters = {name: number(1.0) for name in ("rate", "first", "scale")}
    found = fit(decay(parameters=parameters, initial_state=lambda q: (q.first * q.scale).view(1, 1)), 16)
    assert float(found.parameters.first * found.parameters.scale) == pytest.approx(3, abs=0.1)
    assert [float(e) for e in found.standard_errors.values()][1:] == [inf, inf]
    assert float(found.standard_errors.rate) == pytest.approx(float(fit(decay(), 16).standard_errors.rate), rel=1e-4)
    assert found.message.endswith("The data do not determine first, scale.")


@pytest.mark.parametrize(
    ("problem", "options", "status"),
    [
        (decay(), {"max_evaluations": 1}, Status.MAX_ITERATIONS),
        (decay(rate=-1e300), {}, Status.NOT_FINITE),
        (decay(rate=-1e4), {}, Status.NO_DECREASE),
        (decay(EXACT, rate=0.5), {"integrator": "euler"}, Status.UNRESOLVED),
        (decay(EXACT), {}, Status.CONVERGED),
    ],
    ids=["limit", "infinite", "steep", "coarse", "exact"],
)
def test_numerical_outcomes_are_a_status(problem, options, status):
    found = fit(problem, 8, **options)
    assert found.status is status, found.message


def test_single_precision_ends_at_its_own_rounding_errors():
    parameters = {"rate": torch.tensor(1.0), "first": torch.tensor(1.0)}
    found = fit(decay(parameters=parameters), 16, tolerance=1e-3)
    assert found.success
    assert found.parameters.rate.dtype == torch.float32
    assert float(found.parameters.rate) == pytest.approx(float(fit(decay(), 16).parameters.rate), rel=1e-3)


@pytest.mark.parametrize(
    ("problem", "options", "error", "message"),
    [
        (1.0, {}, TypeError, r"problem: expected a ControlProblem, got float"),
        (decay(measurements=None, terminal_cost=lambda x: x.sum()), {}, ValueError, r"with measurements to fit, got n"),
        (decay(control_size=2), {}, ValueError, r"expected control_size=0, .* got 2; minimize finds controls"),
        (decay(terminal_cost=lambda x: x.sum()), {}, ValueError, r"as the only cost, got a terminal_cost"),
        (decay(control_cost=Tikhonov(1.0)), {}, ValueError, r"as the only cost, got a control_cost"),
        (decay(terminal_equality=lambda x: x), {}, ValueError, r"problem: expected one without constraints"),
        (decay(), {"tolerance": 0.0}, ValueError, r"tolerance: expected a number between 0 and 1, got 0.0"),
        (decay(), {"max_evaluations": 0}, ValueError, r"max_evaluations: expected an integer >= 1, got 0"),
    ],
)
def test_what_cannot_be_fitted_is_refused(problem, options, error, message):
    with pytest.raises(error, match=message):
        fit(problem, 8, **options)


def test_a_figure_shows_the_fit_and_its_residuals():
    found = fit(decay(), 8)
    top, bottom = plots.residuals(found).axes
    curve, data = top.get_lines()
    np.testing.assert_allclose(curve.get_ydata(), found.trajectory.x.flatten())
    np.testing.assert_allclose(data.get_ydata(), found.measurements.values.flatten())
    scaled = bottom.get_lines()[0].get_ydata()
    assert float(scaled @ scaled) == pytest.approx(8 - 2)
    with pytest.raises(TypeError, match=r"fit: expected a Fit, as from ocp.fit\(problem, steps\), got float"):
        plots.residuals(1.0)
