"""One step: against its definition, its transpose against its tangent, and its order of accuracy."""

from dataclasses import replace
from math import cos, exp, log, log2, pi, sin

import pytest
import torch

from ocp.adjoint.discretization import Discretization
from ocp.adjoint.sweeps import adjoint, forward, tangent
from ocp.integrators.integrator import INTEGRATORS, as_integrator
from ocp.integrators.linear_solvers import ConstantJacobian
from ocp.integrators.runge_kutta import RungeKutta
from ocp.integrators.tableaus import BACKWARD_EULER, CRANK_NICOLSON, RK4, Tableau
from ocp.integrators.verlet import Verlet
from ocp.objective.reduced import ReducedObjective, discretize
from ocp.problem.control_problem import ControlProblem
from ocp.problem.costs import QuadraticRunning
from ocp.problem.dynamics import FunctionDynamics
from ocp.problem.layers import Dense
from ocp.space.grid import TimeGrid

T, H = 0.7, 0.3


def running(t, x, u):
    return (t * x.square().sum() + x.sum() * u.sum() + u.pow(4).sum()) / len(x)


@pytest.fixture(params=[running, QuadraticRunning(0.5, 2.0), None], ids=["function", "quadratic", "none"])
def running_cost(request):
    return request.param


@pytest.fixture
def problem(case, running_cost):
    x = torch.zeros(5, *case.state, dtype=torch.float64)
    return ControlProblem(case.dynamics, x, lambda x: x.sum(), running_cost)


@pytest.fixture
def point(problem, rand):
    """State, control, costate and a direction for states and controls."""
    x, u = rand(*problem.initial_state.x.shape), rand(problem.control_size)
    return x, u, rand(*x.shape), rand(*x.shape), rand(*u.shape)


def test_every_integrator_has_a_definition_here(definitions):
    assert set(INTEGRATORS) == set(definitions)


@pytest.mark.cover(2)
def test_a_step_is_that_of_the_definition(case, problem, point, scheme, definitions):
    x, u, *_ = point
    L = problem.running_cost or (lambda t, x, u: torch.zeros(()).double())
    found, cost = INTEGRATORS[scheme].step(problem, T, H, x, u)
    end, expected = definitions[scheme](lambda t, x: (case.definition(t, x, u), L(t, x, u)), T, H, x)
    torch.testing.assert_close(found, end, rtol=1e-12, atol=1e-12)
    assert (cost is None) == (problem.running_cost is None)
    assert float(cost or 0.0) == pytest.approx(float(expected), rel=1e-12)


@pytest.mark.cover(2)
def test_the_transpose_of_a_step_pairs_as_its_tangent(problem, point, scheme):
    x, u, p, dx, du = point
    px, pu = INTEGRATORS[scheme].pullback(problem, T, H, x, u, p)
    dend, dcost = INTEGRATORS[scheme].tangent(problem, T, H, x, u, dx, du)
    forward = float((p * dend).sum() + (dcost or 0.0))
    assert forward == pytest.approx(float((px * dx).sum() + (pu * du).sum()), rel=1e-11)


@pytest.mark.cover(2)
def test_the_tangent_of_the_transpose_is_that_of_autograd_through_the_definition(
    case, problem, point, scheme, definitions, rand
):
    (x, u, p, dx, du), dp = point, rand(*point[0].shape)
    L = problem.running_cost or (lambda t, x, u: torch.zeros(()).double())

    def transpose(x, u, p):
        end, cost = definitions[scheme](lambda t, x: (case.definition(t, x, u), L(t, x, u)), T, H, x)
        return torch.autograd.grad((p * end).sum() + cost + 0 * u.sum(), (x, u), create_graph=True)

    leaves = [part.clone().requires_grad_() for part in (x, u, p)]
    px, pu = transpose(*leaves)
    # The directional derivative, as the derivative of a pairing that is linear in a dummy vector.
    dummies = torch.zeros_like(px).requires_grad_(), torch.zeros_like(pu).requires_grad_()
    pairing = (dummies[0] * px).sum() + (dummies[1] * pu).sum() + 0 * sum(leaf.sum() for leaf in leaves)
    parts = torch.autograd.grad(pairing, leaves, create_graph=True)
    along = sum((part * d).sum() for part, d in zip(parts, (dx, du, dp), strict=True))
    expected = torch.autograd.grad(along + 0 * sum(d.sum() for d in dummies), dummies)
    found = INTEGRATORS[scheme].pullback_tangent(problem, T, H, x, u, p, dx, du, dp)
    torch.testing.assert_close(found, (px.detach(), *expected), rtol=1e-11, atol=1e-11)


@pytest.mark.cover(1)
def test_a_step_leaves_its_arguments_as_they_were(problem, point, scheme, unchanged):
    x, u, p, dx, du = point
    with unchanged(*point):
        INTEGRATORS[scheme].step(problem, T, H, x, u)
        INTEGRATORS[scheme].pullback(problem, T, H, x, u, p)
        INTEGRATORS[scheme].tangent(problem, T, H, x, u, dx, du)
        INTEGRATORS[scheme].pullback_tangent(problem, T, H, x, u, p, dx, du, p)


@pytest.mark.cover(1)
def test_single_precision_stays_single(problem, point, scheme):
    x, u, p, dx, du = (part.float() for part in point)
    parts = [
        *INTEGRATORS[scheme].step(problem, T, H, x, u),
        *INTEGRATORS[scheme].pullback(problem, T, H, x, u, p),
        *INTEGRATORS[scheme].tangent(problem, T, H, x, u, dx, du),
        *INTEGRATORS[scheme].pullback_tangent(problem, T, H, x, u, p, dx, du, p),
    ]
    assert {part.dtype for part in parts if part is not None} == {torch.float32}


def errors(integrator, problem, path, state, cost, steps):
    """Distances of the final state and of the running cost from their exact values."""
    discretization = Discretization(problem, TimeGrid(problem.horizon, steps), integrator)
    states = torch.empty(steps + 1, *problem.initial_state.x.shape, dtype=torch.float64)
    value = float(forward(discretization, path(discretization.grid), states))
    return abs(float(states[-1, 0, 0]) - state), abs(value - cost)


def logistic(t, x, u):
    """x' = u x (1 - x) cos t is logistic in sin t, and the integral of x cos t can be written down."""
    return u * x * (1 - x) * cos(t)


# So steep that for fine grids the errors of order 5 stay above rounding.
STEEP, LOW, END = 6.0, 0.05, sin(1.5)


def test_the_order_of_accuracy_of_state_and_cost_is_the_stated_one(general_scheme):
    integrator = INTEGRATORS[general_scheme]
    problem = ControlProblem(
        FunctionDynamics(logistic, control_size=1),
        torch.full((1, 1), LOW, dtype=torch.float64),
        running_cost=lambda t, x, u: x.sum() * cos(t),
        horizon=1.5,
    )
    a, growth = 1 / LOW - 1, exp(STEEP * END)
    exact = 1 / (1 + a / growth), log((growth + a) / (1 + a)) / STEEP
    coarse, fine = (
        errors(integrator, problem, lambda g: torch.full((g.steps,), STEEP).double(), *exact, steps)
        for steps in (64, 128)
    )
    assert [log2(c / f) for c, f in zip(coarse, fine, strict=True)] == pytest.approx(2 * [integrator.order], abs=0.1)


def test_the_derivative_by_the_initial_state_has_the_order_of_the_scheme(general_scheme):
    integrator = INTEGRATORS[general_scheme]
    problem = ControlProblem(
        logistic, lambda q: q.view(1, 1), lambda x, q: x.sum(), horizon=1.5, control_size=1, parameters=1
    )
    decay = exp(-STEEP * END)
    exact = decay / (LOW + (1 - LOW) * decay) ** 2  # that of x(T) = 1 / (1 + (1/q - 1) decay)

    def error(steps):
        objective = ReducedObjective(Discretization(problem, TimeGrid(1.5, steps), integrator))
        control = torch.full((steps + 1,), STEEP, dtype=torch.float64)
        control[-1] = LOW
        return abs(float(objective.derivative(control)[-1]) - exact)

    coarse, fine = map(error, (64, 128))
    assert log2(coarse / fine) == pytest.approx(integrator.order, abs=0.1)


def oscillator(t, x, u):
    """A pendulum with a force: positions first, momenta second."""
    return torch.stack((x[:, 1], u[0] * cos(t) - torch.sin(x[:, 0])), dim=1)


def released(running=None, horizon=2.0, batch=1):
    x = torch.tensor([[1.0, 0.2], [-0.4, 0.5]], dtype=torch.float64)[:batch]
    return ControlProblem(oscillator, x, lambda x: x.square().sum(), running, horizon=horizon, control_size=1)


@pytest.mark.parametrize("quantity", ["state", "cost", "derivative"])
def test_the_order_of_accuracy_of_verlet_is_two(quantity):
    problem = released(lambda t, x, u: x.pow(4).sum() * cos(t))

    def measured(scheme, steps):
        objective = discretize(problem, steps, scheme)
        u = torch.full((steps,), 0.7, dtype=torch.float64)
        if quantity == "state":
            return objective.final_state(u)[0, 0]
        # A change of the control by the same amount everywhere: one number on every grid.
        return objective.value(u) if quantity == "cost" else objective.derivative(u).sum()

    exact = measured("dopri5", 512)
    coarse, fine = (abs(float(measured("verlet", steps) - exact)) for steps in (128, 256))
    assert log2(coarse / fine) == pytest.approx(2, abs=0.1)


def test_verlet_comes_back_when_time_runs_backward(rand):
    problem, x, u = released(), rand(1, 2), rand(1)
    end, _ = Verlet().step(problem, T, H, x, u)
    back, _ = Verlet().step(problem, T + H, -H, end, u)
    torch.testing.assert_close(back, x, rtol=1e-14, atol=1e-14)


def test_the_energy_of_a_free_pendulum_does_not_drift():
    def energy(states):
        return 0.5 * states[:, 0, 1].square() - torch.cos(states[:, 0, 0])

    steps, problem = 2000, released(horizon=200.0)
    states = discretize(problem, steps, "verlet").trajectory(torch.zeros(steps).double()).x
    error = (energy(states) - energy(states)[0]).abs()
    assert float(error.max()) < 2e-3
    assert float(error[-200:].max()) < 1.1 * float(error[:200].max())


@pytest.mark.parametrize(
    ("dynamics", "state", "message"),
    [
        (Dense(3), (1, 3), "verlet: expected a state of even size, positions and momenta, got 3"),
        (Dense(2), (1, 2), "verlet: .* the derivative of the positions does not depend on the positions, got"),
        (
            FunctionDynamics(lambda t, x, u: torch.stack((x[:, 1], u[0] - x[:, 0] - 0.1 * x[:, 1]), 1), 1),
            (1, 2),
            "verlet: expected separable dynamics, .* of the momenta does not depend on the momenta, got a dependence",
        ),
    ],
    ids=["odd", "positions", "friction"],
)
def test_verlet_refuses_dynamics_that_are_not_separable(dynamics, state, message):
    problem = ControlProblem(dynamics, torch.zeros(state, dtype=torch.float64), lambda x: x.sum())
    with pytest.raises(ValueError, match=message):
        discretize(problem, 4, "verlet")


def test_verlet_takes_states_of_several_dimensions(rand):
    def wave(t, x, u):
        q, p = x.chunk(2, dim=1)
        return torch.cat((p, u[0] - torch.sinh(q)), dim=1)

    problem = ControlProblem(wave, rand(3, 4, 5), lambda x: x.square().sum(), control_size=1)
    objective = discretize(problem, 4, "verlet")
    u, d = rand(4), rand(4)
    assert objective.directional(u, d) == pytest.approx(float(objective.derivative(u) @ d), rel=1e-12)


@pytest.mark.parametrize("unit", [1e-12, 1.0, 1e12])
def test_the_verdict_on_separable_dynamics_does_not_depend_on_units(unit):
    def damped(friction):
        def f(t, x, u):
            return torch.stack((unit * x[:, 1], (u[0] - torch.sin(x[:, 0]) - friction * x[:, 1]) / unit), 1)

        x = torch.tensor([[1.0, 0.2 / unit]], dtype=torch.float64)
        return ControlProblem(f, x, lambda x: x.sum(), control_size=1)

    discretize(damped(0.0), 4, "verlet")
    with pytest.raises(ValueError, match="verlet: expected separable dynamics"):
        discretize(damped(1e-4 * unit), 4, "verlet")


def test_verlet_takes_samples_that_depend_on_each_other_and_numbers_for_each(rollout):
    rates = torch.tensor([1.0, 2.0, 3.0], dtype=torch.float64)

    def f(t, x, u):
        pull = x[:, 0].mean() - rates * torch.sin(x[:, 0])
        return torch.stack((x[:, 1] - 0.3 * x[:, 1].mean(), u[0] + pull), dim=1)

    x, u = torch.tensor([[1.0, 0.2], [-0.4, 0.5], [0.1, 0.3]], dtype=torch.float64), torch.ones(4).double()
    problem = ControlProblem(f, x, lambda x: x.square().sum(), control_size=1)
    path = u.view(4, 1).clone().requires_grad_()
    states, _ = rollout("verlet", f, x, path)
    (expected,) = torch.autograd.grad(states[-1].square().sum(), path)
    torch.testing.assert_close(discretize(problem, 4, "verlet").derivative(u), expected.view(-1))


N = 48
LAPLACE = (N + 1) ** 2 * (
    torch.diag(torch.ones(N - 1), 1) + torch.diag(torch.ones(N - 1), -1) - 2 * torch.eye(N)
).double()


def heat(t, x, u):
    """The heat equation in one dimension with a nonlinear source."""
    return x @ LAPLACE + u[0] * torch.sin(x)


def bar(integrator, steps, horizon):
    """A bump that diffuses."""
    grid = torch.linspace(0, 1, N + 2, dtype=torch.float64)[1:-1]
    x = torch.stack((torch.sin(pi * grid), (grid - 0.4).abs()))
    problem = ControlProblem(heat, x, lambda x: x.square().sum(), horizon=horizon, control_size=1)
    return Discretization(problem, TimeGrid(horizon, steps), INTEGRATORS[integrator])


def test_implicit_steps_are_stable_and_transposed_with_1000_times_the_explicit_limit(implicit_scheme, rand):
    limit = 2 / (4 * (N + 1) ** 2)
    discretization = bar(implicit_scheme, 10, 10 * 1000 * limit)
    u, d, states = rand(10), rand(10), torch.empty(11, 2, N, dtype=torch.float64)
    forward(discretization, u, states)
    assert float(states[1:].abs().max()) <= float(states[0].abs().max())
    _, along = tangent(discretization, u, d, states)
    assert float(along) == pytest.approx(float(adjoint(discretization, u, states) @ d), rel=1e-10)


def test_explicit_steps_are_unstable_there(explicit_scheme):
    discretization = bar(explicit_scheme, 10, 10 * 1000 * 2 / (4 * (N + 1) ** 2))
    states = torch.empty(11, 2, N, dtype=torch.float64)
    forward(discretization, torch.zeros(10).double(), states)
    assert not float(states[-1].abs().max()) < 1e6


@pytest.mark.parametrize(
    ("name", "left"), [("backward_euler", 0.0), ("sdirk2", 0.0), ("implicit_midpoint", 1.0), ("crank_nicolson", 1.0)]
)
def test_what_is_left_of_a_component_that_is_too_fast_for_the_grid(name, left):
    problem = ControlProblem(
        lambda t, x, u: u - 1e9 * x, torch.ones(1, 1).double(), lambda x: x.sum(), control_size=1, horizon=1.0
    )
    assert abs(discretize(problem, 1, name).value(torch.zeros(1).double())) == pytest.approx(left, abs=1e-6)


@pytest.mark.parametrize("tableau", [BACKWARD_EULER, CRANK_NICOLSON], ids=lambda tableau: tableau.name)
def test_a_constant_jacobian_takes_the_same_steps_as_a_dense_one(tableau, rand):
    def linear(t, x, u):
        return x @ LAPLACE + u[0] * cos(t)

    problem = ControlProblem(linear, rand(3, N), lambda x: x.square().sum(), horizon=0.1, control_size=1)
    dense, constant = (
        ReducedObjective(Discretization(problem, TimeGrid(0.1, 4), RungeKutta(tableau, *solver)))
        for solver in ((), (ConstantJacobian(LAPLACE),))
    )
    u, d = rand(4), rand(4)
    torch.testing.assert_close(constant.final_state(u), dense.final_state(u), rtol=1e-10, atol=1e-10)
    torch.testing.assert_close(constant.derivative(u), dense.derivative(u), rtol=1e-10, atol=1e-10)
    torch.testing.assert_close(constant.hessian_product(u, d), dense.hessian_product(u, d), rtol=1e-10, atol=1e-10)


def test_the_factors_of_a_constant_jacobian_are_made_once_for_each_scale(rand):
    solver = ConstantJacobian(LAPLACE)
    problem = ControlProblem(lambda t, x, u: x @ LAPLACE + u, rand(3, N), lambda x: x.sum(), control_size=1)
    objective = ReducedObjective(Discretization(problem, TimeGrid(0.1, 4), RungeKutta(BACKWARD_EULER, solver)))
    objective.derivative(rand(4))
    objective.on(2).derivative(rand(2))
    objective.on(2).derivative(rand(2))
    assert len(solver._kept) == 2


def test_where_newton_fails_the_state_is_nan_and_nothing_is_raised(implicit_scheme):
    # x' = 1 + x^2 leaves every bound, and with a large step the stage equation has no solution.
    problem = ControlProblem(
        lambda t, x, u: 1 + u + x**2, torch.ones(1, 1).double(), lambda x: x.sum(), horizon=10.0, control_size=1
    )
    objective, u = discretize(problem, 4, implicit_scheme), torch.zeros(4).double()
    assert not objective.value(u) < float("inf")
    assert bool(objective.derivative(u).isnan().any())


def test_a_singular_jacobian_raises_nothing(implicit_scheme):
    problem = ControlProblem(lambda t, x, u: u + x, torch.ones(1, 1).double(), lambda x: x.sum(), control_size=1)
    a = max(INTEGRATORS[implicit_scheme].tableau.diagonal)
    problem = replace(problem, horizon=1 / a)
    assert not discretize(problem, 1, implicit_scheme).value(torch.zeros(1).double()) < float("inf")


def test_a_stiffly_accurate_scheme_of_two_implicit_stages_has_its_order():
    g = 1 - 0.5**0.5
    alexander = Tableau("sdirk2", ((g,), (1 - g, g)), (1 - g, g), order=2)
    problem = ControlProblem(
        FunctionDynamics(logistic, control_size=1), torch.full((1, 1), 0.3, dtype=torch.float64), lambda x: x.sum()
    )
    exact = 1 / (1 + (1 / 0.3 - 1) * exp(-2 * sin(1.0)))
    coarse, fine = (
        errors(RungeKutta(alexander), problem, lambda g: torch.full((g.steps,), 2.0).double(), exact, exact, steps)[0]
        for steps in (128, 256)
    )
    assert log2(coarse / fine) == pytest.approx(2, abs=0.1)


@pytest.mark.parametrize(
    ("times", "order"),
    [(lambda grid: grid.nodes[:-1], 1), (lambda grid: grid.midpoints, 2)],
    ids=["nodes", "midpoints"],
)
def test_the_time_at_which_the_held_control_is_sampled_limits_the_order(times, order):
    # x' = u - x with u = cos t held on each step; exactly, x = (cos t + sin t - exp(-t)) / 2 from x = 0.
    problem = ControlProblem(
        FunctionDynamics(lambda t, x, u: u - x, control_size=1),
        torch.zeros(1, 1, dtype=torch.float64),
        lambda x: x.sum(),
    )
    exact = (cos(1.0) + sin(1.0) - exp(-1.0)) / 2
    coarse, fine = (
        errors(INTEGRATORS["rk4"], problem, lambda g: torch.tensor(times(g)).double().cos(), exact, exact, steps)[0]
        for steps in (128, 256)
    )
    assert log2(coarse / fine) == pytest.approx(order, abs=0.1)


def test_an_integrator_is_known_by_its_name(scheme):
    integrator = as_integrator(scheme)
    assert integrator is INTEGRATORS[scheme]
    assert integrator.name == scheme


def test_an_integrator_of_ones_own_is_taken_as_it_is():
    mine = RungeKutta(RK4)
    assert as_integrator(mine) is mine


def test_a_name_that_no_integrator_has_is_refused():
    with pytest.raises(ValueError, match=r"integrator: expected one of euler, midpoint, heun, rk4.*, got 'rk5'"):
        as_integrator("rk5")


def test_a_scheme_of_ones_own_needs_a_name_of_its_own():
    with pytest.raises(ValueError, match=r"integrator: expected a name of its own for another scheme .*, got 'heun'"):
        as_integrator(RungeKutta(Tableau("heun", ((), (2 / 3,)), (1 / 4, 3 / 4), order=2)))
    constant = RungeKutta(CRANK_NICOLSON, ConstantJacobian(torch.eye(2)))
    assert as_integrator(constant) is constant


def test_an_explicit_scheme_takes_no_solver():
    with pytest.raises(ValueError, match="solver: expected none for rk4, which has no implicit stage, got Constant"):
        RungeKutta(RK4, ConstantJacobian(torch.eye(2)))
