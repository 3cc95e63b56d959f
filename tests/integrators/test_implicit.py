"""Implicit steps: stages solved entry by entry, and problems that are refused since their systems would be wrong."""

from math import isfinite

import pytest
import torch
from scipy.optimize import brentq
from torch import nn

from ocp.integrators.linear_solvers import ConstantJacobian
from ocp.integrators.runge_kutta import RungeKutta
from ocp.integrators.tableaus import BACKWARD_EULER
from ocp.objective.reduced import discretize
from ocp.problem.control_problem import ControlProblem

X = torch.tensor([[0.5, -1.0], [2.0, 0.3], [-0.7, 1.1]], dtype=torch.float64)


def problem(f, x=X, size=2):
    return ControlProblem(f, x, lambda x: x.square().sum(), control_size=size)


@pytest.mark.parametrize(("dtype", "rtol"), [(torch.float64, 1e-12), (torch.float32, 1e-5)], ids=["double", "single"])
@pytest.mark.parametrize("bystander", [0.0, 1.0, 1e6, -1e12])
def test_a_small_stiff_entry_is_solved_however_large_a_constant_one_is(bystander, dtype, rtol):
    def f(t, x, u):
        return torch.stack((0 * x[:, 0], u[0] - 1e9 * x[:, 1] ** 3), 1)

    x = torch.tensor([[bystander, 1e-3]], dtype=dtype)
    objective, u = discretize(problem(f, x, 1), 2, "backward_euler"), torch.full((2,), 1e-2, dtype=dtype)
    state, slope = 1e-3, 0.0
    for _ in range(2):  # dx/du by the implicit function theorem
        state = brentq(lambda z, before: z - before - 0.5 * (1e-2 - 1e9 * z**3), 0.0, 1e-2, (state,), 1e-300, 1e-14)
        slope = (slope + 0.5) / (1 + 1.5e9 * state**2)
    assert float(objective.final_state(u)[0, 1]) == pytest.approx(state, rel=rtol)
    scaled = ControlProblem(f, x, lambda x: x[:, 1].sum(), control_size=1)
    found = discretize(scaled, 2, "backward_euler").derivative(u).sum()
    assert float(found) == pytest.approx(slope, rel=10 * rtol)


def test_results_of_all_schemes_do_not_depend_on_a_bystander(implicit_scheme):
    def f(t, x, u):
        return torch.stack((0 * x[:, 0], torch.exp(40 * u[0]) - torch.exp(20 * x[:, 1]) - 1e5 * x[:, 1] ** 3), 1)

    def run(bystander):
        x = torch.tensor([[bystander, 1e-4]], dtype=torch.float64)
        own = ControlProblem(f, x, lambda x: x[:, 1].sum(), control_size=1)
        u = torch.tensor([0.0, 1e-5, 2e-4, 0.01], dtype=torch.float64)
        return discretize(own, 4, implicit_scheme).value_and_derivative(u)

    (alone, by_control), (found, slope) = run(0.0), run(1e8)
    assert isfinite(alone)
    assert found == pytest.approx(alone, rel=1e-9)
    torch.testing.assert_close(slope, by_control, rtol=1e-8, atol=0)


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64], ids=str)
def test_entries_that_only_rounding_moves_do_not_keep_newton_running(implicit_scheme, dtype, rand):
    # A stiff equilibrium with entries that are zero: rounding moves these by more than their size in every iteration.
    rotation, rest = torch.linalg.qr(rand(30, 30))[0], rand(10, 30)
    rest[:, :15] = 0

    def force(x):
        v = x @ rotation.to(x)
        return -1e4 * (v + v**3) @ rotation.to(x).T

    def f(t, x, u):
        return force(x) - force(rest).to(x) + u[0] * x

    end = discretize(problem(f, rest.to(dtype), 1), 4, implicit_scheme).final_state(torch.zeros(4, dtype=dtype))
    accuracy = 1e3 * torch.finfo(dtype).eps
    torch.testing.assert_close(end.double(), rest, rtol=accuracy, atol=accuracy)


def test_a_linear_problem_takes_two_iterations_also_where_entries_vanish(rand):
    evaluations = []
    A = rand(6, 6) - 5 * torch.eye(6, dtype=torch.float64)
    A[3:, :3] = A[:3, 3:] = 0

    def f(t, x, u):
        evaluations.append(t)
        return x @ A.T + u[0] * (x @ A.T - A @ x[0])  # the last term is zero up to rounding for one sample

    x = torch.zeros(1, 6, dtype=torch.float64)
    x[0, :3] = rand(3)
    own = problem(lambda t, x, u: f(t, x, u), x, 1)
    objective, u = discretize(own, 4, "backward_euler"), torch.ones(4, dtype=torch.float64)
    evaluations.clear()
    end = objective.final_state(u)
    exact = torch.matrix_power(torch.linalg.inv(torch.eye(6, dtype=torch.float64) - A / 4), 4) @ x[0]
    torch.testing.assert_close(end[0], exact, rtol=1e-11, atol=1e-14)
    assert len(evaluations) <= 4 * 8


ATTENTION = nn.MultiheadAttention(2, 1).double().requires_grad_(False)
NORMALIZATION = nn.BatchNorm1d(2, track_running_stats=False).double().requires_grad_(False).eval()
COUPLED = {
    "mean": lambda t, x, u: u - x + x.mean(0),
    "weak": lambda t, x, u: u - x + 1e-9 * x.mean(0),
    "product": lambda t, x, u: u - x + x * x.mean(0),
    "control": lambda t, x, u: u * x.mean(0) - x,
    "norm": lambda t, x, u: u - x / x.norm(),
    "sum so far": lambda t, x, u: u - x.cumsum(0),
    "attention": lambda t, x, u: u - ATTENTION(x[:, None], x[:, None], x[:, None])[0][:, 0],
    "normalization": lambda t, x, u: u - NORMALIZATION(x),
    "later": lambda t, x, u: u - x + (x.mean(0) if t > 0.7 else 0.0),
    "far away": lambda t, x, u: u - x + (x - 1).relu().mean(0),
    "for large controls": lambda t, x, u: u - x + torch.where(u[0].abs() > 0.5, x.mean(0), 0.0),
}


@pytest.mark.cover(1)
@pytest.mark.parametrize("kind", COUPLED)
def test_samples_that_depend_on_each_other_are_refused(kind, implicit_scheme):
    message = "dynamics: expected samples that do not depend on each other, as implicit steps with DenseLU assume"
    with pytest.raises(ValueError, match=message):
        discretize(problem(COUPLED[kind]), 4, implicit_scheme)


@pytest.mark.parametrize("kind", ["mean", "product", "control", "norm"])
@pytest.mark.parametrize("x", [0 * X, 0 * X.float(), X.float()], ids=["zero", "single zero", "single"])
def test_they_are_found_near_zero_and_in_single_precision(kind, x):
    with pytest.raises(ValueError, match="dynamics: expected samples that do not depend on each other"):
        discretize(problem(COUPLED[kind], x), 4, "backward_euler")


@pytest.mark.parametrize("kind", ["mean", "control", "normalization"])
def test_one_sample_and_explicit_steps_may_depend_on_all_samples(kind):
    f, u = COUPLED[kind], torch.ones(8, dtype=torch.float64)
    if kind != "normalization":
        assert isfinite(discretize(problem(f, X[:1]), 4, "sdirk2").value(u))
    path, x = u.clone().requires_grad_(), X
    for k in range(4):
        x = x + 0.25 * f(0.25 * k, x, path[2 * k : 2 * k + 2])
    (expected,) = torch.autograd.grad(x.square().sum(), path)
    torch.testing.assert_close(discretize(problem(f), 4, "euler").derivative(u), expected)


A = torch.tensor([[0.0, 1.0], [-1.0, 0.1]], dtype=torch.float64)


@pytest.mark.parametrize(
    ("f", "matrix", "message"),
    [
        (lambda t, x, u: u + x @ A, A, r"solver: expected ConstantJacobian to solve \(I - scale df/dx\) y = r"),
        (lambda t, x, u: u + x @ A.T - x**3, A, "solver: expected ConstantJacobian to solve"),
        (lambda t, x, u: u + x @ A.T * (1 + t), A, "solver: expected ConstantJacobian to solve"),
        (lambda t, x, u: u + x @ A.T, torch.eye(3), r"solver: .* for states of shape \(3, 2\) and torch.float64, got"),
        (lambda t, x, u: u + x @ A.T + x.mean(0), A, "dynamics: expected samples that do not depend on each other"),
    ],
    ids=["transposed", "nonlinear", "time", "shape", "coupled"],
)
def test_a_constant_jacobian_that_is_not_that_of_the_dynamics_is_refused(f, matrix, message):
    with pytest.raises(ValueError, match=message):
        discretize(problem(f), 4, RungeKutta(BACKWARD_EULER, ConstantJacobian(matrix)))


@pytest.mark.parametrize("factor", [1e-12, 1.0, 1e12])
def test_the_verdict_on_a_matrix_does_not_depend_on_units(factor):
    units = torch.tensor([factor, 1.0], dtype=torch.float64)
    matrix, wrong = units[:, None] * A / units, units[:, None] * (A + 1e-3 * torch.eye(2)) / units

    def f(t, x, u):
        return u * units + x @ matrix.T

    discretize(problem(f, X * units), 4, RungeKutta(BACKWARD_EULER, ConstantJacobian(matrix)))
    with pytest.raises(ValueError, match="solver: expected ConstantJacobian"):
        discretize(problem(f, X * units), 4, RungeKutta(BACKWARD_EULER, ConstantJacobian(wrong)))


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16], ids=str)
def test_half_precision_is_refused_where_systems_are_solved(implicit_scheme, dtype):
    own = problem(lambda t, x, u: u - x, X.to(dtype))
    with pytest.raises(ValueError, match=f"initial_state: expected float32 or float64 for implicit steps, got {dtype}"):
        discretize(own, 4, implicit_scheme)


def test_a_function_without_forward_mode_has_exact_gradients(implicit_scheme, once_differentiable_power):
    u = torch.linspace(-1, 1, 8, dtype=torch.float64)
    expected = discretize(problem(lambda t, x, u: u - x**3), 4, implicit_scheme).derivative(u)
    found = discretize(problem(lambda t, x, u: u - once_differentiable_power(x, 3)), 4, implicit_scheme).derivative(u)
    torch.testing.assert_close(found, expected, rtol=1e-12, atol=1e-12)


class WrongTangent:
    control_size = 2

    def __call__(self, t, x, u):
        return u - x**3

    def vjp(self, t, x, u, p):
        return -3 * x**2 * p, p.sum(0)

    def jvp(self, t, x, u, dx, du):
        return du - 2 * x**2 * dx


def test_tangents_that_are_not_those_of_the_transpose_are_refused():
    with pytest.raises(ValueError, match="dynamics: expected jvp to agree with vjp"):
        discretize(problem(WrongTangent(), size=None), 4, "sdirk2")
