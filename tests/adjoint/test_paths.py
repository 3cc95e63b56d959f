"""Which path a sweep takes, and that none of them depends on how a state lies in memory."""

from itertools import cycle

import pytest
import torch
from torch import nn

from ocp.adjoint.schedules import Binomial, StoreAll
from ocp.objective.reduced import discretize
from ocp.problem.control_problem import ControlProblem
from ocp.problem.costs import QuadraticRunning
from ocp.problem.dynamics import FunctionDynamics, ModuleDynamics
from ocp.problem.layers import Convolution, Dense
from ocp.problem.protocols import capability_applies


def test_a_capability_applies_to_the_value_and_derivative_it_was_declared_for():
    class Plain:
        def __call__(self):
            """The value."""

        def vjp(self):
            """Its derivative."""

    class Fast(Plain):
        def over(self):
            """For the derivative of its parent."""

    class Other(Fast):
        def vjp(self):
            """Another derivative."""

    class Both(Other):
        def over(self):
            """For the other derivative."""

    class Called(Both):
        def __call__(self):
            """Another value."""

    kinds = (Plain, Fast, Other, Both, Called)
    assert [capability_applies(kind(), "over", "__call__", "vjp") for kind in kinds] == [
        False,
        True,
        False,
        True,
        False,
    ]


FEW = Binomial(slots=2, block=2)
BASE = torch.linspace(-1, 1, 60, dtype=torch.float64)
#: States of 5 samples with 4 numbers that are not contiguous.
LAYOUTS = {
    "expanded": BASE[:4].expand(5, 4),
    "transposed": BASE[:20].view(4, 5).t(),
    "strided": BASE[:40].view(5, 8)[:, ::2],
    "part of a larger one": BASE.view(5, 12)[:, 3:7],
}


class Own(FunctionDynamics):
    """Dynamics with a transpose of their own, whose steps are taken one by one."""

    def vjp(self, t, x, u, p):
        return super().vjp(t, x, u, p)


def swing(t, x, u):
    """Separable, as Verlet requires."""
    return torch.cat((x[:, 2:], u[0] * torch.sin(x[:, :2]) + t * u[1]), dim=1)


#: One stage, a stage without weight, four of them, an implicit one.
EVERY = ["euler", "midpoint", "rk4", "crank_nicolson"]
#: Dynamics for a state of 4 numbers, how many samples to take, and the integrators that accept them.
DYNAMICS = {
    "layer": (lambda: Dense(4), 5, EVERY),
    "small function": (lambda: FunctionDynamics(swing, 2), 2, [*EVERY, "verlet"]),
    "large function": (lambda: FunctionDynamics(swing, 2), 5, [*EVERY, "verlet"]),
    "module": (lambda: ModuleDynamics(nn.Linear(4, 4).double()), 5, EVERY),
    "own transpose": (lambda: Own(swing, 2), 5, [*EVERY, "verlet"]),
}


def cost(x):
    return (x - 1).pow(3).sum()


@pytest.mark.parametrize("kind", DYNAMICS)
def test_a_state_that_is_not_contiguous_is_as_good_as_its_copy(kind, rand):
    make, samples, integrators = DYNAMICS[kind]
    f, running, cases = (
        make(),
        QuadraticRunning(),
        zip(integrators, cycle(LAYOUTS.values()), cycle((StoreAll(), FEW, FEW))),
    )
    for integrator, state, schedule in cases:
        x = state[:samples]
        assert not x.is_contiguous()
        given, copied = (
            discretize(ControlProblem(f, x, cost, running), 3, integrator, schedule)
            for x in (x, x.clone(memory_format=torch.contiguous_format))
        )
        u, d = 0.3 * rand(given.space.dimension), rand(given.space.dimension)
        assert given.value(u) == pytest.approx(copied.value(u), rel=1e-14)
        torch.testing.assert_close(given.derivative(u), copied.derivative(u), rtol=1e-13, atol=1e-13)
        torch.testing.assert_close(given.hessian_product(u, d), copied.hessian_product(u, d), rtol=1e-12, atol=1e-12)
        torch.testing.assert_close(given.trajectory(u).p, copied.trajectory(u).p, rtol=1e-13, atol=1e-13)


@pytest.mark.parametrize("layout", LAYOUTS)
@pytest.mark.parametrize("integrator", ["euler", "rk4"])
def test_the_derivative_from_a_state_that_is_not_contiguous_is_that_of_the_definition(
    layout, integrator, rand, rollout
):
    x, path = LAYOUTS[layout][:2], (0.3 * rand(5, 2)).requires_grad_()
    states, _ = rollout(integrator, swing, x, path)
    (expected,) = torch.autograd.grad(cost(states[-1]), path)
    found = discretize(ControlProblem(swing, x, cost, control_size=2), 5, integrator).derivative(
        path.detach().flatten()
    )
    torch.testing.assert_close(found, expected.flatten(), rtol=1e-12, atol=1e-12)


def test_an_image_may_be_laid_out_with_its_channels_last(rand):
    images = rand(3, 2, 4, 5)
    given, copied = (
        discretize(ControlProblem(Convolution(2), x, lambda x: x.pow(3).sum()), 4, "heun")
        for x in (images.to(memory_format=torch.channels_last), images)
    )
    u = 0.3 * rand(given.space.dimension)
    torch.testing.assert_close(given.derivative(u), copied.derivative(u), rtol=1e-13, atol=1e-13)


def test_an_initial_state_from_parameters_may_be_expanded(rand):
    def problem(initial):
        return ControlProblem(swing, initial, lambda x, q: x.pow(3).sum(), control_size=2, parameters=4)

    given, copied = (
        discretize(problem(initial), 5, "rk4")
        for initial in (lambda q: q.expand(3, 4), lambda q: q.expand(3, 4).contiguous())
    )
    u, d = rand(14), rand(14)
    torch.testing.assert_close(given.derivative(u), copied.derivative(u), rtol=1e-13, atol=1e-13)
    torch.testing.assert_close(given.hessian_product(u, d), copied.hessian_product(u, d), rtol=1e-12, atol=1e-12)
    assert given.directional(u, d) == pytest.approx(copied.directional(u, d), rel=1e-12)
