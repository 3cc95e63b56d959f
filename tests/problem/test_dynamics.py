"""Right-hand sides against their definitions, their transposes against their tangents."""

import pytest
import torch
from torch import nn
from torch.utils.checkpoint import checkpoint

from ocp.objective.reduced import discretize
from ocp.problem.control_problem import ControlProblem
from ocp.problem.dynamics import FunctionDynamics, ModuleDynamics, as_dynamics
from ocp.problem.layers import Dense
from ocp.problem.protocols import Dynamics


@pytest.fixture
def point(case, rand):
    """Time, state, control, costate and a direction for states and controls."""
    x, u = rand(5, *case.state), rand(case.dynamics.control_size)
    return 0.7, x, u, rand(*x.shape), rand(*x.shape), rand(*u.shape)


def test_every_kind_is_dynamics(case):
    assert isinstance(case.dynamics, Dynamics)


def test_values_are_those_of_the_definition(case, point):
    t, x, u, *_ = point
    torch.testing.assert_close(case.dynamics(t, x, u), case.definition(t, x, u), rtol=1e-12, atol=1e-12)


def test_the_transpose_agrees_with_autograd_through_the_definition(case, point):
    t, x, u, p, *_ = point
    x, u = x.requires_grad_(), u.requires_grad_()
    expected = torch.autograd.grad((p * (case.definition(t, x, u) + 0 * u.sum())).sum(), (x, u))
    found = case.dynamics.vjp(t, x.detach(), u.detach(), p)
    torch.testing.assert_close(found, expected, rtol=1e-12, atol=1e-12)


def test_the_transpose_and_the_tangent_pair_alike(case, point):
    t, x, u, p, dx, du = point
    px, pu = case.dynamics.vjp(t, x, u, p)
    forward = (p * case.dynamics.jvp(t, x, u, dx, du)).sum()
    backward = (px * dx).sum() + (pu * du).sum()
    assert float(forward) == pytest.approx(float(backward), rel=1e-12)


def test_the_second_derivative_agrees_with_autograd_through_the_definition(case, point):
    t, x, u, p, dx, du = point

    def slope(x, u):
        (px, pu) = torch.autograd.grad((p * (case.definition(t, x, u) + 0 * u.sum())).sum(), (x, u), create_graph=True)
        return (px * dx).sum() + (pu * du).sum() + 0 * (x.sum() + u.sum())

    leaves = x.clone().requires_grad_(), u.clone().requires_grad_()
    expected = torch.autograd.grad(slope(*leaves), leaves)
    torch.testing.assert_close(case.dynamics.hvp(t, x, u, p, dx, du), expected, rtol=1e-12, atol=1e-12)


def test_first_derivatives_are_all_that_dynamics_need():
    class First:
        control_size = 1

        def __call__(self, t, x, u):
            return u - x

        def vjp(self, t, x, u, p):
            return -p, p.sum().view(1)

        def jvp(self, t, x, u, dx, du):
            return du - dx

    assert isinstance(First(), Dynamics)


def test_evaluations_leave_their_arguments_as_they_were(case, point, unchanged):
    t, x, u, p, dx, du = point
    with unchanged(x, u, p, dx, du):
        case.dynamics(t, x, u)
        case.dynamics.vjp(t, x, u, p)
        case.dynamics.jvp(t, x, u, dx, du)
        case.dynamics.hvp(t, x, u, p, dx, du)


def test_single_precision_stays_single(case, point):
    t, x, u, p, dx, du = (part if isinstance(part, float) else part.float() for part in point)
    px, pu = case.dynamics.vjp(t, x, u, p)
    hx, hu = case.dynamics.hvp(t, x, u, p, dx, du)
    parts = (case.dynamics(t, x, u), case.dynamics.jvp(t, x, u, dx, du), px, pu, hx, hu)
    assert [part.dtype for part in parts] == [torch.float32] * 6


def test_a_module_gets_back_the_parameters_it_was_found_with(rand):
    dynamics = ModuleDynamics(nn.Sequential(nn.Linear(3, 3), nn.Tanh()).double())
    u, x = rand(dynamics.control_size), rand(5, 3)
    torch.testing.assert_close(dynamics.to_module(u)(x), dynamics(0.0, x, u), rtol=0, atol=0)


def test_a_function_is_taken_with_the_length_of_its_control():
    dynamics = as_dynamics(lambda t, x, u: u - x, 2)
    assert isinstance(dynamics, FunctionDynamics)
    assert dynamics.control_size == 2


def test_a_module_is_taken_with_as_many_controls_as_it_has_parameters():
    dynamics = as_dynamics(nn.Linear(3, 3), None)
    assert isinstance(dynamics, ModuleDynamics)
    assert dynamics.control_size == 12


@pytest.mark.parametrize("size", [None, 12])
def test_a_layer_is_taken_as_it_is(size):
    layer = Dense(3)
    assert as_dynamics(layer, size) is layer


def test_a_control_size_that_contradicts_the_dynamics_is_refused():
    with pytest.raises(ValueError, match=r"control_size: expected 12, .* got 3"):
        as_dynamics(Dense(3), 3)


@pytest.mark.parametrize("size", [None, 1.0, -1])
def test_a_function_without_a_control_size_is_refused(size):
    with pytest.raises(ValueError, match=f"control_size: expected the length of u .* got {size}"):
        as_dynamics(lambda t, x, u: x, size)


def test_what_cannot_be_called_is_refused():
    with pytest.raises(TypeError, match=r"dynamics: expected a function f\(t, x, u\), .* got float"):
        as_dynamics(1.0, 1)


def test_the_controls_of_a_module_are_bound_to_its_steps(rand):
    dynamics, path, x = ModuleDynamics(nn.Linear(3, 3)), rand(4, 12), rand(5, 3)
    leaves, steps = dynamics.bind(path)
    assert [leaf.shape for leaf in leaves] == [(4, 3, 3), (4, 3)]
    for f, u in zip(steps, path, strict=True):
        assert torch.equal(f(0.0, x, u), dynamics(0.0, x, u))


class Doubled(torch.autograd.Function):
    """2 x; mapped over many points, it has another derivative."""

    @staticmethod
    def forward(x):
        return 2 * x

    @staticmethod
    def setup_context(context, inputs, output):
        pass

    @staticmethod
    def backward(context, p):
        return 2 * p

    @staticmethod
    def vmap(info, dims, x):
        return 2 * x.detach(), dims[0]


@pytest.mark.parametrize(
    ("f", "plain"),
    [
        (lambda t, x, u: checkpoint(lambda x, u: (u * x).tanh(), x, u, use_reentrant=False), torch.tanh),
        (lambda t, x, u: Doubled.apply(x * u), lambda y: 2 * y),
    ],
    ids=["checkpointed", "detached"],
)
def test_functions_whose_derivatives_cannot_be_mapped_are_differentiated_one_by_one(f, plain, rand):
    x0, path = rand(2, 3), rand(4, 1).requires_grad_()
    problem = ControlProblem(f, x0, lambda x: x.square().sum(), control_size=1)
    x = x0
    for u in path:
        x = x + 0.25 * plain(u * x)
    x.square().sum().backward()
    found = discretize(problem, 4).derivative(path.detach().flatten())
    torch.testing.assert_close(found, path.grad.flatten(), rtol=1e-12, atol=1e-12)


@pytest.mark.parametrize("factor", [0.0, 1.0])
def test_a_tangent_that_autograd_cannot_compute_is_not_zero_but_an_error(factor, rand, once_differentiable_power):
    f = FunctionDynamics(lambda t, x, u: factor * x + once_differentiable_power(x, 2), control_size=1)
    x, p = rand(3, 2), rand(3, 2)
    torch.testing.assert_close(f.vjp(0.0, x, rand(1), p)[0], (factor + 2 * x) * p)
    with pytest.raises(NotImplementedError, match="expected operations with derivatives in forward mode"):
        f.jvp(0.0, x, rand(1), rand(3, 2), rand(1))
