"""All steps of a sweep at once, against the steps in turn."""

import pytest
import torch

from ocp import ControlProblem, Parameter, QuadraticRunning, discretize
from ocp.adjoint import paths
from ocp.adjoint.simultaneous import Simultaneous
from ocp.integrators.tableaus import TABLEAUS
from ocp.problem.dynamics import FunctionDynamics

STEPS = 24


def swing(t, x, u):
    push = u[0] * torch.cos(t * x[:, 0])
    return torch.stack((x[:, 1], push - torch.sin(x[:, 0]) - 0.1 * x[:, 1] ** 3), dim=1)


def swing_by_parameters(t, x, u, q):
    return swing(t, x, u) * q["rate"] + q["push"]


def mixed(t, x, u):
    """Samples pull on each other."""
    return swing(t, x, u) - 0.3 * x.mean(0)


def cost(t, x, u):
    return (1 + t) * x.square().sum() * torch.exp(u[0])


def cost_by_parameters(t, x, u, q):
    return cost(t, x, u) * q["rate"] ** 2


def make(f=swing, samples=1, dtype=torch.float64, **pieces):
    x = torch.linspace(-1, 1, 2 * samples + 1, dtype=dtype)[1:].view(samples, 2)
    return ControlProblem(f, x, **{"terminal_cost": lambda x: x.pow(4).sum(), "control_size": 1, **pieces})


PARAMETERS = {"rate": 1.2, "push": 0.1}
#: A problem, and how many of its samples are independent.
PROBLEMS = {
    "no cost along the way": (make(), 1),
    "running cost alone": (make(running_cost=cost, terminal_cost=None), 1),
    "independent samples": (make(samples=5, running_cost=QuadraticRunning(0.5, 0.3)), 5),
    "parameters": (make(swing_by_parameters, 2, running_cost=cost_by_parameters, parameters=PARAMETERS), 2),
    "parameters of f alone": (make(swing_by_parameters, running_cost=QuadraticRunning(), parameters=PARAMETERS), 1),
    "free horizon": (make(running_cost=QuadraticRunning(), horizon=Parameter(1.3)), 1),
    "linear": (make(lambda t, x, u: x.flip(1) * torch.tensor([1.0, -1.0]) + u), 1),
    "an image": (
        ControlProblem(
            lambda t, x, u: torch.tanh(x.mT) * u,
            torch.ones(2, 2, 2).double(),
            lambda x: x.square().sum(),
            control_size=1,
        ),
        2,
    ),
}


@pytest.fixture
def both(monkeypatch):
    """The objective of a problem with all steps at once, its tape and the objective with the steps in turn."""

    def at_least(steps):
        monkeypatch.setattr(paths, "EXPLICIT_STEPS", steps)
        monkeypatch.setattr(paths, "IMPLICIT_STEPS", steps)

    def pair(problem, steps=STEPS, scheme="rk4"):
        at_once, in_turn = discretize(problem, steps, scheme), discretize(problem, steps, scheme)
        u = at_once.discretization.start().flat
        at_least(1)
        tape = at_once._slot(u).tape
        at_least(10**9)
        assert not isinstance(in_turn._slot(u).tape, Simultaneous)
        return at_once, tape, in_turn, u

    return pair


@pytest.mark.parametrize("tableau", TABLEAUS, ids=lambda tableau: tableau.name)
@pytest.mark.parametrize("name", PROBLEMS)
@pytest.mark.cover(1)
def test_values_derivatives_and_states_are_those_of_the_steps_in_turn(name, tableau, both, rand):
    check(*PROBLEMS[name], tableau.name, both, rand)


def test_samples_may_depend_on_each_other(both, rand):
    check(make(mixed, samples=3, running_cost=cost), 1, "rk4", both, rand)


def check(problem, samples, scheme, both, rand):
    at_once, tape, in_turn, u = both(problem, scheme=scheme)
    u = u + 0.3 * rand(*u.shape)
    assert at_once.value(u) == pytest.approx(in_turn.value(u), rel=1e-13)
    torch.testing.assert_close(at_once.derivative(u), in_turn.derivative(u), rtol=1e-11, atol=1e-12)
    torch.testing.assert_close(at_once.at(u).states, in_turn.at(u).states, rtol=1e-12, atol=1e-13)
    assert (tape.succeeded, tape.samples) == (True, samples)


def test_the_result_depends_on_the_control_alone(both, rand):
    at_once, _, _, u = both(make(running_cost=cost, samples=2), 300)
    u, v = rand(*u.shape), 5 * rand(*u.shape)
    first = at_once.value_and_derivative(u)
    at_once.derivative(v)
    point = at_once.at(u)
    assert point.value == first[0]
    assert torch.equal(point.derivative, first[1])
    assert torch.equal(point.final_state, point.states[-1])


def test_hessian_products_follow_the_same_states(both, rand):
    at_once, _, in_turn, u = both(make(running_cost=cost))
    u, d = rand(*u.shape), rand(*u.shape)
    torch.testing.assert_close(at_once.hessian_product(u, d), in_turn.hessian_product(u, d), rtol=1e-11, atol=1e-12)


def test_single_precision_stays(both, rand):
    at_once, tape, in_turn, u = both(make(dtype=torch.float32, running_cost=cost))
    u = rand(*u.shape).float()
    derivative = at_once.derivative(u)
    assert derivative.dtype == torch.float32
    assert tape.succeeded
    torch.testing.assert_close(derivative, in_turn.derivative(u), rtol=1e-4, atol=1e-5)


def lorenz(t, x, u):
    a, b, c = x.unbind(1)
    return torch.stack((10 * (b - a) + u[0], a * (28 - c) - b, a * b - 8 / 3 * c), dim=1)


def explosion(t, x, u):
    """Infinite before time 1."""
    return x**2 + u


def kink(t, x, u):
    """Its derivative at the state 0, where it stays, is not a number."""
    return torch.sqrt(x * x) * u


def late(t, x, u):
    """Samples depend on each other where they are larger than where this is tried."""
    return u + torch.relu(x - 3).sum() + 0 * x


THREE = torch.tensor([[1.0, 1.0, 1.0]]).double()
TROUBLE = {
    "chaos": (ControlProblem(lorenz, THREE, lambda x: x.sum(), control_size=1, horizon=20.0), 800),
    "infinite states": (ControlProblem(explosion, 2 * THREE, lambda x: x.sum(), control_size=1), STEPS),
    "a derivative that is not a number": (
        ControlProblem(kink, 0 * THREE, lambda x: x.sum(), control_size=1),
        STEPS,
    ),
    "samples that turn out to depend on each other": (
        ControlProblem(late, torch.ones(3, 1).double(), lambda x: x.square().sum(), control_size=1),
        STEPS,
    ),
}


@pytest.mark.parametrize("name", TROUBLE)
def test_where_it_fails_the_steps_in_turn_decide(name, both):
    problem, steps = TROUBLE[name]
    at_once, _, in_turn, u = both(problem, steps)
    u = u + 3.0
    (value, derivative), (expected, by_steps) = (each.value_and_derivative(u) for each in (at_once, in_turn))
    assert value == pytest.approx(expected, rel=1e-13)
    torch.testing.assert_close(derivative, by_steps, rtol=1e-13, atol=0, equal_nan=True)
    torch.testing.assert_close(at_once.at(u).states, in_turn.at(u).states, rtol=1e-12, atol=0, equal_nan=True)


class Picky(FunctionDynamics):
    """Dynamics that will not have states off the trajectory."""

    def along(self, t, x, u):
        if len(t) > STEPS - 1:
            raise ZeroDivisionError
        return super().along(t, x, u)

    def __call__(self, t, x, u):
        return super().__call__(t, x, u)

    def vjp(self, t, x, u, p):
        return super().vjp(t, x, u, p)


def test_dynamics_may_refuse_some_points(both, rand):
    at_once, tape, in_turn, u = both(make(Picky(swing, 1)))
    u = rand(*u.shape)
    assert torch.equal(at_once.derivative(u), in_turn.derivative(u))
    assert not tape.succeeded


def test_a_function_that_looks_up_times_is_taken_in_turn(both):
    times = {9 / STEPS: 3.0}
    _, tape, _, _ = both(make(lambda t, x, u: times.get(t, 1.0) * torch.sin(x) + u))
    assert not isinstance(tape, Simultaneous)


@pytest.mark.parametrize(
    "problem",
    [
        make(samples=100),
        ControlProblem(lambda t, x, u: x * u, torch.ones(1, 9).double(), lambda x: x.sum(), control_size=1),
    ],
    ids=["many samples", "a large state"],
)
def test_large_states_are_taken_in_turn(problem, both):
    assert not isinstance(both(problem)[1], Simultaneous)


def test_dynamics_of_ones_own_are_compared_at_many_points():
    class Wrong(Picky):
        def along(self, t, x, u):
            return 2 * super().along(t, x, u)

    with pytest.raises(ValueError, match=r"^dynamics: expected results of along\(t, x, u\) that agree"):
        discretize(make(Wrong(swing, 1)), 4)
