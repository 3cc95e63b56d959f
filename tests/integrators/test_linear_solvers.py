"""Systems with I - scale df/dx and their transposes."""

import pytest
import torch

from ocp.integrators.linear_solvers import ConstantJacobian, DenseLU
from ocp.problem.dynamics import FunctionDynamics

SCALE = 0.3


@pytest.fixture
def point(case, rand):
    """State, control and a right-hand side."""
    x = rand(5, *case.state)
    return x, rand(case.dynamics.control_size), rand(*x.shape)


def matrix(case, x, u):
    """I - scale df/dx for all samples at once, by autograd through the definition."""
    J = torch.autograd.functional.jacobian(lambda x: case.definition(0.7, x, u), x)
    return torch.eye(x.numel(), dtype=x.dtype) - SCALE * J.reshape(x.numel(), x.numel())


def test_a_solution_solves_the_system_of_autograd(case, point):
    x, u, r = point
    y = DenseLU().factor(case.dynamics, 0.7, x, u, SCALE).solve(r)
    torch.testing.assert_close(matrix(case, x, u) @ y.flatten(), r.flatten(), rtol=1e-11, atol=1e-11)


def test_a_transposed_solution_solves_the_transposed_system(case, point):
    x, u, r = point
    y = DenseLU().factor(case.dynamics, 0.7, x, u, SCALE).solve_transposed(r)
    torch.testing.assert_close(matrix(case, x, u).T @ y.flatten(), r.flatten(), rtol=1e-11, atol=1e-11)


def test_factors_and_solutions_leave_their_arguments_as_they_were(case, point, unchanged):
    x, u, r = point
    with unchanged(*point):
        factors = DenseLU().factor(case.dynamics, 0.7, x, u, SCALE)
        factors.solve(r)
        factors.solve_transposed(r)


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_a_constant_jacobian_solves_as_a_dense_one(dtype, rand):
    A, x, r = rand(6, 6), rand(5, 2, 3).to(dtype), rand(5, 2, 3).to(dtype)
    f = FunctionDynamics(lambda t, x, u: (x.flatten(1) @ A.to(x).T).view(x.shape), control_size=1)
    dense, constant = (solver.factor(f, 0.0, x, x.new_zeros(1), SCALE) for solver in (DenseLU(), ConstantJacobian(A)))
    for name in ("solve", "solve_transposed"):
        found, expected = getattr(constant, name)(r), getattr(dense, name)(r)
        assert found.dtype == expected.dtype == dtype
        torch.testing.assert_close(found, expected, rtol=1e3 * torch.finfo(dtype).eps, atol=1e-5)


def test_a_singular_matrix_gives_solutions_that_are_not_finite():
    f = FunctionDynamics(lambda t, x, u: x, control_size=1)
    x = torch.ones(2, 3)
    assert not bool(DenseLU().factor(f, 0.0, x, torch.zeros(1), 1.0).solve(x).isfinite().any())


@pytest.mark.parametrize("shape", [(3,), (2, 3), (2, 2, 2)], ids=str)
def test_a_matrix_that_is_not_square_is_refused(shape):
    with pytest.raises(ValueError, match="matrix: expected a square matrix, got shape"):
        ConstantJacobian(torch.zeros(shape))


class PerSample:
    """x' = -k sinh(x) + u with a rate for each sample, derivatives written by hand and none in forward mode."""

    control_size = 2
    rates = torch.tensor([[1.0], [2.0], [3.0]], dtype=torch.float64)

    def __call__(self, t, x, u):
        return u - self.rates * torch.sinh(x)

    def vjp(self, t, x, u, p):
        return -self.rates * torch.cosh(x) * p, p.sum(0)

    def jvp(self, t, x, u, dx, du):
        raise NotImplementedError


class ByNumbers(PerSample):
    """The same, written so that vmap cannot map it."""

    def vjp(self, t, x, u, p):
        return -self.rates * torch.cosh(x) * torch.tensor(p.tolist(), dtype=p.dtype), p.sum(0)


def per_sample(t, x, u):
    return u - PerSample.rates * torch.sinh(x)


def row_by_row(t, x, u):
    y = torch.zeros_like(x)
    for i in range(3):
        y[i] = u - (i + 1) * torch.sinh(x[i])
    return y


def filled(t, x, u):
    y = torch.empty(3, 2, dtype=torch.float64)
    y[:, 0] = u[0] - PerSample.rates[:, 0] * torch.sinh(x[:, 0])
    y[:, 1] = u[1] - PerSample.rates[:, 0] * torch.sinh(x[:, 1])
    return y


def by_number_of_samples(t, x, u):
    return u - torch.linspace(1, len(x), len(x), dtype=x.dtype)[:, None] * torch.sinh(x)


@pytest.mark.parametrize(
    "f",
    [
        PerSample(),
        ByNumbers(),
        *(FunctionDynamics(each, 2) for each in (per_sample, row_by_row, filled, by_number_of_samples)),
    ],
    ids=["by hand", "by hand, no vmap", "rates", "rows", "filled", "number of samples"],
)
def test_dynamics_are_called_with_the_batch_they_were_written_for(f, rand):
    x, u, r = rand(3, 2), rand(2), rand(3, 2)
    factors = DenseLU().factor(f, 0.0, x, u, SCALE)
    diagonal = 1 + SCALE * PerSample.rates * torch.cosh(x)
    torch.testing.assert_close(factors.solve(r), r / diagonal, rtol=1e-12, atol=1e-12)
    torch.testing.assert_close(factors.solve_transposed(r), r / diagonal, rtol=1e-12, atol=1e-12)


def test_the_jacobian_of_a_constant_function_is_zero(rand):
    r = rand(3, 2)
    f = FunctionDynamics(lambda t, x, u: torch.ones_like(x), 1)
    torch.testing.assert_close(DenseLU().factor(f, 0.0, r, rand(1), SCALE).solve(r), r)
