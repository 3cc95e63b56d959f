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
