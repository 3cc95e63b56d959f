"""What measurements should be at given parameters, and the derivatives of that."""

from math import nan

import pytest
import torch

from ocp import ControlProblem, Measurements, discretize
from ocp.adjoint import predictions
from ocp.adjoint.predictions import Prediction

D = torch.float64
TIMES = torch.tensor([[0.0, 0.3, 0.5, 1.0], [0.25, 0.6, 0.7, nan]], dtype=D)
VALUES = torch.ones(2, 4, 2, dtype=D)
VALUES[1, 3] = VALUES[0, 1, 1] = nan


def swing(t, x, u, q):
    return torch.stack((x[:, 1], -q.spring * torch.sin(x[:, 0]) + torch.cos(t + 0 * x[:, 0]) * q.push[1]), dim=1)


@pytest.fixture
def swings():
    """Two pendulums, of which a product of parameter and state is measured at times of their own."""
    return ControlProblem(
        swing,
        lambda q: q.push * torch.tensor([[1.0, 0.0], [0.5, 1.0]], dtype=D),
        control_size=0,
        parameters={"spring": torch.tensor(2.0, dtype=D), "push": torch.tensor([1.0, 0.5], dtype=D)},
        measurements=Measurements(TIMES, VALUES, lambda x, q: x * q.push),
    )


@pytest.mark.parametrize("scheme", ["rk4", "implicit_midpoint", "sweeps of tangents"])
def test_sensitivities_are_the_differences_of_predictions(swings, scheme, monkeypatch):
    if scheme == "sweeps of tangents":
        monkeypatch.setattr(predictions, "MOST", 0)
        scheme = "rk4"
    discretization = discretize(swings, 4, scheme).discretization
    q, e = discretization.start().flat, 1e-5
    sensitivities = Prediction(discretization, q).sensitivities()
    assert sensitivities.shape == (2, 4, 2, 3)
    for j, direction in enumerate(torch.eye(3, dtype=D)):
        ahead, behind = (Prediction(discretization, q + sign * e * direction).values for sign in (1, -1))
        torch.testing.assert_close(
            sensitivities[..., j], (ahead - behind) / (2 * e), rtol=1e-8, atol=1e-8, equal_nan=True
        )


@pytest.mark.parametrize(("scheme", "steps"), [("rk4", 4), ("euler", 256), ("implicit_midpoint", 32)])
def test_predictions_are_those_that_the_objective_compares_with_the_data(swings, scheme, steps):
    """However the sweep takes its steps."""
    objective = discretize(swings, steps, scheme)
    q = objective.discretization.start().flat
    prediction = Prediction(objective.discretization, q)
    assert prediction.values[1, 3].isnan().all()
    misses = (prediction.values - VALUES).nan_to_num()
    assert objective.value(q) == pytest.approx(0.25 * float(misses.square().sum()), rel=1e-13)
    slope = (0.5 * misses[..., None] * prediction.sensitivities().nan_to_num()).sum((0, 1, 2))
    torch.testing.assert_close(objective.derivative(q), slope)
    torch.testing.assert_close(prediction.states, objective.trajectory(q).x)
    torch.testing.assert_close(prediction.fitted, prediction.states * q[1:])
