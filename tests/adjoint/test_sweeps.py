"""The loops over time."""

import pytest
import torch
from torch import nn

from ocp.adjoint.discretization import Discretization
from ocp.adjoint.sweeps import adjoint, forward, second_adjoint, tangent
from ocp.integrators.integrator import INTEGRATORS
from ocp.problem.control_problem import ControlProblem
from ocp.problem.costs import Tikhonov, TimeSmoothness
from ocp.problem.initial_state import Opening
from ocp.problem.modules import FlatModule
from ocp.space.grid import TimeGrid

pytestmark = pytest.mark.cover(1)  # every pair of a scheme and dynamics: tests/integrators, tests/objective

STEPS, HORIZON = 4, 0.8


def terminal(x, q):
    return x.pow(3).sum() / 7 + x.sum() * q.square().sum()


def running(t, x, u):
    return t * x.square().sum() + x.sum() * u.sum()


@pytest.fixture
def inputs(case, rand):
    return rand(5, *case.state)


@pytest.fixture
def discretization(case, inputs, scheme):
    n = case.state[-1]
    problem = ControlProblem(
        case.dynamics,
        Opening(FlatModule(nn.Linear(n, n)), inputs),
        terminal,
        running,
        (Tikhonov(0.1), TimeSmoothness(0.2)),
        horizon=HORIZON,
        parameters=n * n + n,
    )
    return Discretization(problem, TimeGrid(HORIZON, STEPS), INTEGRATORS[scheme])


@pytest.fixture
def control(discretization, rand):
    return 0.5 * rand(discretization.space.dimension)


@pytest.fixture
def states(inputs):
    return torch.empty(STEPS + 1, *inputs.shape, dtype=torch.float64)


def test_the_forward_sweep_writes_the_trajectory_of_the_definition(
    case, discretization, inputs, control, states, scheme, rollout
):
    n, q = case.state[-1], discretization.space.parameters(control)
    x0 = inputs @ q[: n * n].view(n, n).T + q[n * n :]
    expected, _ = rollout(scheme, case.definition, x0, discretization.space.path(control), HORIZON)
    forward(discretization, control, states)
    torch.testing.assert_close(states, torch.stack(expected), rtol=1e-12, atol=1e-12)


def test_costates_are_derivatives_by_the_state_at_their_node(case, discretization, control, states, scheme, rollout):
    space, costates = discretization.space, torch.empty_like(states)
    forward(discretization, control, states)
    adjoint(discretization, control, states, costates)
    # From node 2 on, time is shifted by two steps.
    x, t = states[2].clone().requires_grad_(), 2 * HORIZON / STEPS
    trajectory, cost = rollout(
        scheme,
        lambda s, x, u: case.definition(t + s, x, u),
        x,
        space.path(control)[2:],
        HORIZON / 2,
        lambda s, x, u: running(t + s, x, u),
    )
    value = cost + terminal(trajectory[-1], space.parameters(control))
    torch.testing.assert_close(costates[2], torch.autograd.grad(value, x)[0], rtol=1e-12, atol=1e-12)
    last = 3 * states[-1].square() / 7 + space.parameters(control).square().sum()
    torch.testing.assert_close(costates[-1], last, rtol=1e-12, atol=1e-12)


def test_asking_for_costates_does_not_change_the_derivative(discretization, control, states):
    forward(discretization, control, states)
    derivative = adjoint(discretization, control, states)
    assert torch.equal(adjoint(discretization, control, states, torch.empty_like(states)), derivative)


def test_tangent_and_adjoint_sweep_pair_alike(discretization, control, states, rand):
    direction = rand(*control.shape)
    forward(discretization, control, states)
    _, dvalue = tangent(discretization, control, direction, states)
    backward = adjoint(discretization, control, states) @ direction
    assert float(dvalue) == pytest.approx(float(backward), rel=1e-12)


def test_the_tangent_of_the_final_state_is_its_directional_derivative(discretization, control, states, rand):
    direction, other = rand(*control.shape), torch.empty_like(states)
    forward(discretization, control, states)
    dx, _ = tangent(discretization, control, direction, states)
    forward(discretization, control + 1e-6 * direction, other)
    forward(discretization, control - 1e-6 * direction, states)
    torch.testing.assert_close(dx, (other[-1] - states[-1]) / 2e-6, rtol=1e-6, atol=1e-7)


def test_tangents_are_the_directional_derivatives_of_the_states(discretization, control, states, rand):
    direction, tangents, low = rand(*control.shape), torch.empty_like(states), torch.empty_like(states)
    forward(discretization, control, states)
    dx, _ = tangent(discretization, control, direction, states, tangents)
    assert torch.equal(tangents[-1], dx)
    forward(discretization, control + 1e-6 * direction, states)
    forward(discretization, control - 1e-6 * direction, low)
    torch.testing.assert_close(tangents, (states - low) / 2e-6, rtol=1e-6, atol=1e-7)


def test_the_second_adjoint_sweep_is_linear_and_symmetric(discretization, control, states, rand):
    a, b, tangents = rand(*control.shape), rand(*control.shape), torch.empty_like(states)
    forward(discretization, control, states)
    Ha, Hb, Hc = (second_adjoint(discretization, control, d, states, tangents) for d in (a, b, a - 2 * b))
    torch.testing.assert_close(Hc, Ha - 2 * Hb, rtol=1e-10, atol=1e-11)
    size = float(Ha.norm() * b.norm())
    assert float(b @ Ha) == pytest.approx(float(a @ Hb), rel=0, abs=1e-11 * size)


def test_sweeps_leave_controls_and_inputs_as_they_were(discretization, inputs, control, states, rand, unchanged):
    direction = rand(*control.shape)
    with unchanged(control, direction, inputs):
        forward(discretization, control, states)
        with unchanged(states):
            adjoint(discretization, control, states)
            tangent(discretization, control, direction, states)
            second_adjoint(discretization, control, direction, states, torch.empty_like(states))


def test_no_tape_spans_a_sweep(discretization, control, states):
    control.requires_grad_()
    value = forward(discretization, control, states)
    derivative = adjoint(discretization, control, states)
    product = second_adjoint(discretization, control, control, states, torch.empty_like(states))
    assert not any(part.requires_grad for part in (value, states, derivative, product))
