"""The classical problems: their definitions, their discrete optima, their closed forms."""

import importlib
import json
import re
from pathlib import Path

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from ocp.problems import burgers, cart_pole, double_integrator, heat, hypersensitive, linear_quadratic, pendulum

from ocp import LBFGS, Stop, TimeGrid, discretize, minimize
from ocp.integrators.tableaus import CRANK_NICOLSON, EULER, RK4

#: Definitions and optima that are not ours: the file says how they were found.
REFERENCE = json.loads(Path(__file__).with_name("discrete_optima.json").read_text())["problems"]
NEW = ["cart_pole", "double_integrator", "linear_quadratic", "heat", "burgers", "hypersensitive"]

every_reference = pytest.mark.parametrize("name", REFERENCE)


def study(name, **options):
    return importlib.import_module(f"ocp.problems.{name}").problem(**options)


def solve(problem, steps, integrator, **limits):
    stop = Stop(**{"tolerance": 1e-8, **limits})
    return minimize(problem, steps, LBFGS(), integrator=integrator, stop=stop)


def formula(text, x, u):
    """A formula of the reference in numpy, where (T) only says that the state is the final one."""
    names = {f"x{i + 1}": entry for i, entry in enumerate(x)} | {"u": u, "sin": np.sin, "cos": np.cos}
    return eval(text.replace("^", "**").replace("(T)", ""), names)


@pytest.fixture
def point(rand):
    """A random state and control of a problem, as tensors."""

    def draw(problem):
        x = problem.initial_state(torch.empty(0))
        return rand(*x.shape), rand(problem.control_size)

    return draw


# Definitions


@every_reference
def test_the_dynamics_are_those_of_the_reference(name, point):
    problem = study(name).problem
    x, u = point(problem)
    slopes = [formula(text, x[0].numpy(), u.item()) for text in re.findall(r"=([^;]*)", REFERENCE[name]["dynamics"])]
    np.testing.assert_allclose(problem.dynamics(0.3, x, u)[0].numpy(), slopes, rtol=1e-13)


@every_reference
def test_the_costs_are_those_of_the_reference(name, point):
    problem = study(name).problem
    x, u = point(problem)
    running = 0.0 if problem.running_cost is None else float(problem.running_cost(0.3, x, u))
    terminal = 0.0 if problem.terminal_cost is None else float(problem.terminal_cost(x, torch.empty(0)))
    assert running == pytest.approx(formula(REFERENCE[name]["running"], x[0].numpy(), u.item()), rel=1e-13)
    assert terminal == pytest.approx(formula(REFERENCE[name]["terminal"], x[0].numpy(), u.item()), rel=1e-13)


@every_reference
def test_data_are_those_of_the_reference(name):
    problem, reference = study(name).problem, REFERENCE[name]
    assert problem.horizon == reference["horizon"]
    assert problem.initial_state(torch.empty(0)).tolist() == [reference["x0"]]
    assert (problem.bounds and [problem.bounds.lower, problem.bounds.upper]) == reference["bounds"]


@pytest.mark.parametrize("name", [name for name, entry in REFERENCE.items() if entry["continuous"]])
def test_the_continuous_optimum_is_that_of_the_reference(name):
    assert study(name).optimum == pytest.approx(REFERENCE[name]["continuous"], rel=5e-6)


@pytest.mark.parametrize("name", [*REFERENCE, *NEW])
def test_the_precision_is_that_asked_for(name):
    problem = study(name, dtype=torch.float32).problem
    x, u = problem.initial_state(torch.empty(0)), torch.zeros(problem.control_size)
    assert {x.dtype, problem.dynamics(0.0, x, u).dtype} == {torch.float32}
    assert study(name).problem.initial_state(torch.empty(0)).dtype == torch.float64


@pytest.mark.parametrize("name", [*REFERENCE, *NEW])
def test_what_is_suggested_fits_the_solver(name):
    suggested = study(name)
    assert suggested.steps % 2 ** (suggested.levels - 1) == 0
    assert suggested.stop.max_work < float("inf")
    assert suggested.target is None or suggested.optimum < suggested.target.threshold


def test_the_cart_pole_keeps_its_energy_where_nobody_pushes():
    x = torch.tensor([[0.0, 1.0, 0.0, 2.0]], dtype=torch.float64)
    problem, path = cart_pole.problem().problem, torch.zeros(400, dtype=torch.float64)

    def energy(x):
        _, angle, speed, spin = x[0].tolist()
        tip = (speed + cart_pole.LENGTH * spin * np.cos(angle), cart_pole.LENGTH * spin * np.sin(angle))
        height = -cart_pole.LENGTH * np.cos(angle)
        kinetic = 0.5 * cart_pole.CART * speed**2 + 0.5 * cart_pole.POLE * (tip[0] ** 2 + tip[1] ** 2)
        return kinetic + cart_pole.POLE * cart_pole.GRAVITY * height

    moved = type(problem)(problem.dynamics, x, problem.terminal_cost, horizon=2.0)
    assert energy(discretize(moved, 400, "rk4").final_state(path)) == pytest.approx(energy(x), rel=1e-6)


def test_a_push_on_the_cart_changes_its_momentum_alone(rand):
    x, u = rand(1, 4), rand(1)
    change = (cart_pole.dynamics(0.0, x, u) - cart_pole.dynamics(0.0, x, 0 * u))[0]
    cart, pole = change[2:].tolist()
    c = float(torch.cos(x[0, 1]))
    total = (cart_pole.CART + cart_pole.POLE) * cart + cart_pole.POLE * cart_pole.LENGTH * c * pole
    assert total == pytest.approx(float(u), rel=1e-12)
    assert cart * c + cart_pole.LENGTH * pole == pytest.approx(0, abs=1e-12)


def test_the_mass_and_the_hypersensitive_system_are_the_stated_ones():
    x, u = torch.tensor([[2.0, 3.0]]), torch.tensor([5.0])
    assert double_integrator.dynamics(0.0, x, u).tolist() == [[3.0, 5.0]]
    assert hypersensitive.dynamics(0.0, x[:, :1], u).tolist() == [[-3.0]]


def test_the_burgers_equation_is_the_stated_one(rand):
    x, u, dx = rand(1, 9), rand(9), 0.1
    y = np.concatenate(([0.0], x[0].numpy(), [0.0]))
    slope = -(y[2:] ** 2 - y[:-2] ** 2) / (4 * dx) + 0.01 * (y[2:] - 2 * y[1:-1] + y[:-2]) / dx**2 + u.numpy()
    np.testing.assert_allclose(burgers.dynamics(0.0, x, u)[0].numpy(), slope, rtol=1e-12)


def test_the_flow_of_burgers_conserves_mass_up_to_the_boundary(rand):
    x = rand(1, 9)
    x[:, [0, -1]] = 0.0
    assert float(burgers.dynamics(0.0, x, torch.zeros(9)).sum()) == pytest.approx(0, abs=1e-12)


@pytest.mark.parametrize("dimension", [1, 2])
def test_the_heat_equation_is_the_stated_one(dimension, rand):
    n = 5
    second = (n + 1) ** 2 * (np.diag(np.ones(n - 1), 1) + np.diag(np.ones(n - 1), -1) - 2 * np.eye(n))
    laplace = second if dimension == 1 else np.kron(second, np.eye(n)) + np.kron(np.eye(n), second)
    x, u = rand(1, *[n] * dimension), rand(n**dimension)
    slope = heat.CONDUCTIVITY * laplace @ x.flatten().numpy() + u.numpy()
    np.testing.assert_allclose(heat.dynamics(0.0, x, u).flatten().numpy(), slope, rtol=1e-12)


# Optima


@pytest.mark.parametrize("scheme", ["euler", "rk4"])
@pytest.mark.parametrize("name", ["feldbaum", "hager", "hull", "rayleigh"])
def test_the_discrete_optimum_is_that_of_a_direct_method(name, scheme):
    result = solve(study(name).problem, 50, scheme)
    assert result.value == pytest.approx(REFERENCE[name]["optima"][scheme]["50"], rel=1e-6)


@pytest.mark.parametrize(
    ("name", "scheme"),
    [
        ("parallel_reactions", "euler"),
        ("parallel_reactions", "rk4"),
        ("catalyst_mixing", "rk4"),
        ("lotka_volterra", "euler"),
    ],
)
def test_the_bounded_discrete_optimum_is_that_of_a_direct_method(name, scheme):
    # Another local optimum with a lower value would do, too; these have shown none.
    problem = study(name).problem
    result = solve(problem, 50, scheme, tolerance=1e-6, max_work=150)
    best = REFERENCE[name]["optima"][scheme]["50"]
    assert result.value <= best + 1e-6 * abs(best)
    assert bool((result.control.path >= problem.bounds.lower).all())
    assert bool((result.control.path <= problem.bounds.upper).all())


def test_the_optima_of_hull_s_problem_are_the_same_on_all_grids():
    suggested = study("hull")
    assert solve(suggested.problem, 1, "euler").value == pytest.approx(suggested.optimum, rel=1e-12)


def test_the_pendulum_stands_up():
    problem = pendulum.problem().problem
    result = solve(problem, 50, "rk4", tolerance=1e-4, max_work=60)
    fine = result.control.path.repeat_interleave(8, dim=0).flatten()
    angle, velocity = discretize(problem, 400, "rk4").final_state(fine)[0].tolist()
    assert abs(angle) == pytest.approx(torch.pi, abs=0.1)
    assert velocity == pytest.approx(0, abs=0.2)


@pytest.mark.parametrize(
    ("scheme", "gramian"),
    [
        ("euler", lambda h: ((1 - h) * (2 - h) / 6, (1 - h) / 2, 1.0)),
        ("rk4", lambda h: (1 / 3 - h**2 / 12, 1 / 2, 1.0)),
    ],
)
def test_the_double_integrator_has_the_stated_optimum_on_every_grid(scheme, gramian):
    expected = double_integrator.optimum(*gramian(1 / 20))
    assert solve(double_integrator.problem().problem, 20, scheme).value == pytest.approx(expected, rel=1e-10)


def test_the_layers_of_the_hypersensitive_problem_cost_the_stated_optimum():
    suggested, steps = hypersensitive.problem(), 6400
    objective = discretize(suggested.problem, steps, "rk4")
    h, half = 25.0 / steps, steps // 2

    def layer(x, away):
        """States on one layer, where |x'| = sqrt(x^6 + x^2), and its control, at the midpoints of the steps."""
        states = [x]
        for _ in range(2 * half):  # half a step each, by the midpoint rule
            k = states[-1] - 0.25 * h * np.sqrt(states[-1] ** 6 + states[-1] ** 2)
            states.append(states[-1] - 0.5 * h * np.sqrt(k**6 + k**2))
        x = np.array(states[1::2])
        return x**3 + (1 if away else -1) * np.sqrt(x**6 + x**2)

    u = np.concatenate((layer(1.5, away=False), layer(hypersensitive.end(), away=True)[::-1]))
    control = torch.tensor(u)
    assert objective.value(control) == pytest.approx(suggested.optimum, rel=1e-4)


def test_the_hypersensitive_optimum_is_approached():
    suggested = hypersensitive.problem()
    coarse, fine = (solve(suggested.problem, steps, "rk4", tolerance=1e-3).value for steps in (40, 80))
    assert suggested.optimum < fine < coarse
    assert fine - suggested.optimum < 0.4 * (coarse - suggested.optimum)


def affine(problem, horizon, target, weight, alpha):
    """The heat problem as linear-quadratic one, with a constant state that carries the profile."""
    n, eye = target.numel(), torch.eye(target.numel(), dtype=torch.float64)
    columns = [problem.dynamics(0.0, e.view_as(target)[None], torch.zeros(n).double()).flatten() for e in eye]
    A = torch.zeros(n + 1, n + 1, dtype=torch.float64)
    A[:n, :n] = torch.stack(columns, dim=1)
    miss = torch.cat((eye, -target.flatten()[:, None]), dim=1)
    x0 = torch.cat((torch.zeros(n), torch.ones(1))).double()
    B = torch.cat((eye, torch.zeros(1, n))).double()
    return linear_quadratic.LinearQuadratic(A, B, weight * miss.T @ miss, alpha * weight * eye, 0 * A, x0, horizon)


@pytest.fixture(params=[(1, 5), (2, 3)], ids=["rod", "plate"])
def heating(request):
    """A study of few points, and the same as linear-quadratic problem."""
    dimension, points = request.param
    suggested = heat.problem(dimension=dimension, points=points)
    lq = affine(suggested.problem, 1.0, heat.profile(points, dimension), (points + 1) ** -dimension, heat.ALPHA)
    return suggested, lq


def test_the_modes_of_the_heat_equation_cost_the_stated_optimum(heating):
    suggested, lq = heating
    assert linear_quadratic.continuous_optimum(lq) == pytest.approx(suggested.optimum, rel=1e-9)


def test_the_discrete_optimum_of_the_heat_equation_is_that_of_riccati(heating):
    suggested, lq = heating
    result = solve(suggested.problem, 6, suggested.integrator, tolerance=1e-6)
    assert result.value == pytest.approx(linear_quadratic.optimum(lq, 6, CRANK_NICOLSON), rel=1e-8)


def test_the_cost_of_the_heat_equation_is_consistent_under_refinement_in_space():
    coarse, middle, fine = (heat.optimum(points, 1) for points in (31, 63, 127))
    assert abs(fine - middle) < 0.3 * abs(middle - coarse) < 0.05 * coarse


def test_a_control_of_burgers_holds_the_step():
    problem = burgers.problem(points=15).problem
    result = solve(problem, 16, "rk4", tolerance=1e-3)
    assert result.value < 0.4 * result.history[0].value


# Linear-quadratic problems


@pytest.mark.parametrize(("scheme", "tableau"), [("euler", EULER), ("rk4", RK4), ("crank_nicolson", CRANK_NICOLSON)])
@pytest.mark.parametrize("growth", [-0.5, 0.5], ids=["stable", "unstable"])
def test_the_solver_finds_the_optimum_of_riccati(scheme, tableau, growth):
    lq = linear_quadratic.random(growth=growth)
    result = solve(linear_quadratic.control_problem(lq), 12, scheme)
    assert result.value == pytest.approx(linear_quadratic.optimum(lq, 12, tableau), rel=1e-10)


@pytest.mark.parametrize("growth", [-0.5, 0.5])
def test_the_growth_is_that_asked_for(growth):
    assert float(torch.linalg.eigvals(linear_quadratic.random(6, 2, growth=growth).A).real.max()) == pytest.approx(
        growth
    )


@pytest.mark.parametrize(("tableau", "order"), [(EULER, 1), (RK4, 2), (CRANK_NICOLSON, 2)])
def test_discrete_optima_approach_the_continuous_one_at_the_stated_order(tableau, order):
    # With the control held over a step, second order is the most.
    lq = linear_quadratic.random()
    limit = linear_quadratic.continuous_optimum(lq)
    coarse, fine = (linear_quadratic.optimum(lq, steps, tableau) - limit for steps in (400, 800))
    assert np.log2(coarse / fine) == pytest.approx(order, abs=0.05)


@st.composite
def linear_quadratic_problems(draw):
    """Random systems with random positive weights."""
    size, controls = draw(st.integers(1, 4)), draw(st.integers(1, 3))
    seed, growth = draw(st.integers(0, 2**31)), draw(st.floats(-2.0, 1.0))
    generator = torch.Generator().manual_seed(seed)

    def positive(n):
        root = torch.randn(n, n, generator=generator, dtype=torch.float64)
        return root @ root.T / n

    lq = linear_quadratic.random(size, controls, growth=growth, data_seed=seed)
    Q, R, S = positive(size), positive(controls) + torch.eye(controls).double(), positive(size)
    return linear_quadratic.LinearQuadratic(lq.A, lq.B, Q, R, S, lq.x0, draw(st.floats(0.5, 2.0)))


@settings(max_examples=25, deadline=None, derandomize=True, database=None)
@given(lq=linear_quadratic_problems(), steps=st.integers(4, 32), scheme=st.sampled_from([EULER, RK4]))
def test_the_optimum_of_any_linear_quadratic_problem_is_that_of_riccati(lq, steps, scheme):
    result = solve(linear_quadratic.control_problem(lq), steps, scheme.name)
    assert result.value == pytest.approx(linear_quadratic.optimum(lq, steps, scheme), rel=1e-8)
    assert result.control.space.grid == TimeGrid(lq.horizon, steps)
