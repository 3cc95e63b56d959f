"""Slopes: a kink is not a wrong derivative, and a wrong one is found out at kinks, too."""

import pytest
import torch

from ocp import LBFGS, ControlProblem, Status, Stop, discretize, minimize, quick_check, verify
from ocp.adjoint import sweeps
from ocp.verification.slopes import AROUND, descends_nearby, measure_slope

X0 = torch.tensor([[1.0, -0.5]], dtype=torch.float64)
SIGNS = torch.tensor([1.0, -1.0], dtype=torch.float64)
LENGTHS = [k * torch.finfo(torch.float64).eps ** (1 / 3) for k in AROUND]


def problem(running, terminal=lambda x: 0.5 * x.square().sum(), f=lambda t, x, u: u.expand_as(x), **rest):
    return ControlProblem(f, X0, terminal, running, control_size=2, **rest)


KINKED = {
    "fuel": problem(lambda t, x, u: 2 * u.abs().sum()),
    "bounded fuel": problem(lambda t, x, u: 0.1 * u.abs().sum(), bounds=(-1, 1)),
    "penalty": problem(lambda t, x, u: u.square().sum() + 9 * (u - 0.1).clamp(min=0).sum() + 3 * x.abs().sum()),
    # Its slope at zero along (1, -1) is 1 to both sides, while autograd says 0.
    "convex and concave": problem(lambda t, x, u: (SIGNS * torch.relu(u)).sum(), lambda x: 0 * x.sum()),
}
every_kinked = pytest.mark.parametrize("kinked", KINKED.values(), ids=KINKED.keys())


def controls(size):
    z = torch.randn(size, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
    return [0 * z, 1e-12 * z, 1e-7 * z, 1e-5 * z, z * (z > 0), z]


@every_kinked
@pytest.mark.parametrize("k", range(6))
def test_a_right_derivative_at_kinks_is_not_accused(kinked, k):
    objective = discretize(kinked, 8)
    u = controls(16)[k]
    assert not quick_check(objective, u).contradicted
    directions = (-objective.space.gradient(objective.derivative(u)), u.flip(0) + 0.1, SIGNS.repeat(8))
    assert not any(measure_slope(objective.at(u), d, LENGTHS).contradicted for d in directions)


@every_kinked
@pytest.mark.parametrize("k", [0, 4])
def test_verify_passes_at_kinks(kinked, k):
    report = verify(discretize(kinked, 8), controls(16)[k])
    assert report.passed, str(report)


@every_kinked
@pytest.mark.parametrize("factor", [1.5, -1.0, 0.0])
@pytest.mark.cover(1)
def test_a_wrong_derivative_among_kinks_is_caught(kinked, factor, monkeypatch):
    right = sweeps.adjoint
    monkeypatch.setattr(sweeps, "adjoint", lambda *arguments: factor * right(*arguments))
    objective = discretize(kinked, 8)
    for u in controls(16)[::3]:
        assert quick_check(objective, u).contradicted
    assert not verify(objective, u).passed


@pytest.mark.parametrize("kink", [1e-12, 0.0])
def test_a_flipped_derivative_is_caught_at_the_kink_itself(kink, monkeypatch):
    right = sweeps.adjoint
    monkeypatch.setattr(sweeps, "adjoint", lambda *arguments: -right(*arguments))
    point = discretize(KINKED["fuel"], 8).at(torch.full((16,), kink, dtype=torch.float64))
    assert measure_slope(point, torch.ones(16, dtype=torch.float64), LENGTHS).contradicted


def test_a_run_that_ends_at_kinks_does_not_blame_the_derivative():
    for kinked in KINKED.values():
        result = minimize(kinked, 8, LBFGS(), stop=Stop(max_iterations=50))
        assert result.status is not Status.WRONG_DERIVATIVE


def test_a_right_derivative_is_not_accused_where_the_scheme_is_unstable():
    """The map of an explicit step is chaotic: the derivative grows to 1e40, and values stay small."""
    stiff = problem(None, f=lambda t, x, u: -4000 * torch.sin(x) + u, start=1.0)
    objective = discretize(stiff, 40)
    u = objective.discretization.start().flat
    assert objective.space.dual_norm(objective.derivative(u)) > 1e20
    assert not quick_check(objective, u).contradicted
    assert not measure_slope(objective.at(u), -objective.space.gradient(objective.derivative(u)), LENGTHS).contradicted


@pytest.mark.parametrize("scale", [1e-30, 1.0, 1e18])
@pytest.mark.parametrize("power", [0, 2, 4])
def test_a_minimum_does_not_descend_nearby(power, scale):
    bowl = problem(lambda t, x, u: scale * u.pow(power).sum(), lambda x: 0 * x.sum())
    assert descends_nearby(discretize(bowl, 8).at(torch.zeros(16, dtype=torch.float64))) is None


@pytest.mark.parametrize("scale", [1e-30, 1.0, 1e18])
@pytest.mark.parametrize("weights", [(-1.0, -1.0), (-1.0, 1.0)], ids=["maximum", "saddle"])
def test_a_stationary_point_that_is_no_minimum_descends_nearby(weights, scale):
    w = scale * torch.tensor(weights, dtype=torch.float64)
    hill = problem(lambda t, x, u: 3 * scale + (w * u.square()).sum(), lambda x: 0 * x.sum())
    point = discretize(hill, 8).at(torch.zeros(16, dtype=torch.float64))
    moved = descends_nearby(point)
    assert moved is not None
    assert point.objective.value(moved) < point.value
