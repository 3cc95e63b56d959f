"""All steps of a small problem at once, against the sweeps step by step."""

import math

import pytest
import torch

from ocp import ControlProblem, TimeGrid, discretize
from ocp.adjoint.discretization import Discretization
from ocp.adjoint.paths import supports_linearization
from ocp.adjoint.sweeps import forward, linearize, second_adjoint
from ocp.integrators.integrator import INTEGRATORS


def pendulum(t, x, u):
    return torch.stack((x[:, 1], u[0] * torch.cos(x[:, 0]) - torch.sin(x[:, 0]) + t * u[1] * x[:, 1] ** 2), dim=1)


def by_numbers(t, x, u):
    push = math.sin(t) if t > 0.3 else 0.5
    return torch.stack((x[:, 1] * u[0], push * u[1] - x[:, 0] ** 3), dim=1)


def linear(t, x, u):
    return torch.stack((x[:, 1], u[0] + 0 * u[1] - x[:, 0]), dim=1)


def oscillators(t, x, u):
    """Separable, as Verlet wants it."""
    return torch.stack((x[:, 1], u[0] * torch.sin(x[:, 0]) + u[1]), dim=1)


def make(f, samples=3, **pieces):
    x0 = torch.linspace(-1, 1, 2 * samples, dtype=torch.float64).view(samples, 2)
    pieces = {"terminal_cost": lambda x: x.pow(4).sum(), **pieces}
    return ControlProblem(f, x0, control_size=2, **pieces)


def running(t, x, u):
    return (x.square().sum() + u.square().sum()) * torch.exp(x[0, 0] * u[1]) * (1 + t)


PROBLEMS = {
    "pendulum": make(pendulum),
    "with a running cost": make(pendulum, running_cost=running),
    "running cost alone": make(pendulum, running_cost=running, terminal_cost=None),
    "by numbers": make(by_numbers, running_cost=running),
    "linear": make(linear),
    "parameters": ControlProblem(
        pendulum,
        lambda q: torch.stack((q[0].sin(), q[1] * q[0])).expand(3, 2),
        lambda x, q: (x * q[0]).pow(4).sum() + q[1] ** 3,
        running_cost=running,
        control_size=2,
        parameters=2,
    ),
}


def at(problem, scheme, rand, steps=5):
    objective = discretize(problem, steps, scheme)
    discretization, u = objective.discretization, 0.5 * rand(objective.space.dimension)
    states = torch.empty(steps + 1, 3, 2, dtype=torch.float64)
    forward(discretization, u, states)
    return discretization, u, states


@pytest.mark.parametrize("scheme", ["euler", "heun", "rk4"])
@pytest.mark.parametrize("name", PROBLEMS)
@pytest.mark.cover(1)
def test_products_are_those_of_the_sweep_step_by_step(name, scheme, rand, unchanged):
    discretization, u, states = at(PROBLEMS[name], scheme, rand)
    with unchanged(u, states):
        steps = linearize(discretization, u, states)
    for direction in (rand(*u.shape), rand(*u.shape)):
        tangents, expected = torch.empty_like(states), torch.empty_like(states)
        with unchanged(u, direction, states):
            product = second_adjoint(discretization, u, direction, states, tangents, steps)
        by_steps = second_adjoint(discretization, u, direction, states, expected)
        torch.testing.assert_close(product, by_steps, rtol=1e-11, atol=1e-12)
        torch.testing.assert_close(tangents, expected, rtol=1e-12, atol=1e-13)
        assert not product.requires_grad


def test_verlet_takes_part(rand):
    discretization, u, states = at(make(oscillators), "verlet", rand)
    direction, tangents = rand(*u.shape), torch.empty_like(states)
    steps = linearize(discretization, u, states)
    assert steps is not None
    product = second_adjoint(discretization, u, direction, states, tangents, steps)
    expected = second_adjoint(discretization, u, direction, states, tangents)
    torch.testing.assert_close(product, expected, rtol=1e-11, atol=1e-12)


def test_single_precision_stays(rand):
    problem = ControlProblem(pendulum, torch.ones(1, 2), lambda x: x.square().sum(), control_size=2)
    objective = discretize(problem, 5, "rk4")
    u = rand(objective.space.dimension).float()
    assert supports_linearization(objective.discretization)
    assert objective.hessian_product(u, u).dtype == torch.float32


def test_a_second_product_at_a_control_asks_for_nothing_of_the_dynamics(rand):
    calls = []

    def f(t, x, u):
        calls.append(t)
        return pendulum(t, x, u)

    objective = discretize(make(f), 6, "rk4")
    u, v = rand(objective.space.dimension), rand(objective.space.dimension)
    point = objective.at(u)
    point.hessian_product(v)
    made = len(calls)
    point.hessian_product(u)
    assert len(calls) == made
    objective.at(2 * u).hessian_product(v)
    assert len(calls) > made


class Own:
    control_size = 2

    def __call__(self, t, x, u):
        return pendulum(t, x, u)

    def vjp(self, t, x, u, p):
        raise NotImplementedError

    jvp = vjp


@pytest.mark.parametrize(
    ("problem", "scheme"),
    [(make(pendulum, samples=9), "rk4"), (make(Own()), "rk4"), (make(pendulum), "implicit_midpoint")],
    ids=["many numbers", "dynamics with derivatives", "implicit steps"],
)
def test_where_it_does_not_suit_it_is_not_offered(problem, scheme):
    assert not supports_linearization(Discretization(problem, TimeGrid(1.0, 4), INTEGRATORS[scheme]))
