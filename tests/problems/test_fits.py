"""Problems whose parameters are fitted to measurements: their definitions and their optima."""

import numpy as np
import pytest
import torch
from ocp.problems import lorenz, neural_ode, predator_prey
from scipy.integrate import solve_ivp

from ocp import Stop, discretize, fit, minimize


def equations(name, t, x, q):
    """The right-hand sides in plain numbers."""
    if name == "lorenz":
        return q[0] * (x[1] - x[0]), x[0] * (q[1] - x[2]) - x[1], x[0] * x[1] - q[2] * x[2]
    return q[0] * x[0] - q[1] * x[0] * x[1], -q[2] * x[1] + q[3] * x[0] * x[1]


@pytest.mark.parametrize(("module", "steps"), [(predator_prey, 64), (lorenz, 128)], ids=["predators", "lorenz"])
def test_the_fit_is_that_of_scipy_with_its_own_integrator(module, steps):
    suggested, data, name = module.problem(), np.array(module.DATA), module.__name__.split(".")[-1]
    rates = len(module.FITTED) - (3 if name == "lorenz" else 2)
    fitted, first = module.FITTED[:rates], module.FITTED[rates:]
    solved = solve_ivp(
        lambda t, x: equations(name, t, x, fitted),
        (0, module.HORIZON),
        first,
        "DOP853",
        data[:, 0],
        rtol=1e-10,
        atol=1e-10,
    )
    misses = (solved.y[:: 2 if name == "lorenz" else 1].T - data[:, 1:]) / module.NOISE
    assert 0.5 * np.nansum(misses**2) == pytest.approx(suggested.optimum, abs=1e-8)
    found = fit(suggested.problem, steps, absolute=True)
    assert found.success
    errors = found.covariance.diagonal().sqrt().numpy()
    # The errors of the grid are small against those of the data.
    np.testing.assert_array_less(np.abs(found.control.parameters.numpy() - module.FITTED), 0.02 * errors)
    np.testing.assert_allclose(errors, module.ERRORS, rtol=2e-3)


def test_a_neural_ode_learns_the_pendulum_from_noisy_data():
    suggested = neural_ode.problem()
    stop = Stop(target=suggested.target, max_work=70)
    result = minimize(suggested.problem, 8, integrator="rk4", stop=stop)
    assert result.status.name == "TARGET"
    start = torch.tensor([[1.2, -0.4]], dtype=torch.float64)  # of no experiment
    times, weights = torch.linspace(0.1, 3.0, 30), suggested.problem.parameters(result.control.parameters)
    learned = neural_ode.simulated(lambda x: neural_ode.dynamics(0.0, x, torch.zeros(0), weights), start, times)
    true = neural_ode.simulated(neural_ode.pendulum, start, times)
    assert float((learned - true).abs().max()) < 0.1


def test_the_data_of_the_neural_ode_are_those_of_a_pendulum():
    problem = neural_ode.problem().problem
    start, data, times = problem.initial_state.x, problem.measurements.values, problem.measurements.times[0]
    true = neural_ode.simulated(neural_ode.pendulum, start, times)
    solved = solve_ivp(
        lambda t, x: (x[1], -2 * np.sin(x[0]) - 0.3 * x[1]), (0, 3), start[0], t_eval=times, rtol=1e-10, atol=1e-10
    )
    np.testing.assert_allclose(true[0], solved.y.T, atol=1e-6)
    assert float((data - true).square().mean().sqrt()) == pytest.approx(neural_ode.NOISE, rel=0.15)


@pytest.mark.parametrize("module", [predator_prey, lorenz, neural_ode])
def test_the_precision_is_that_asked_for(module):
    problem = module.problem(dtype=torch.float32).problem
    assert {discretize(problem, 2).discretization.example()[0].dtype, problem.parameters.start.dtype} == {torch.float32}
