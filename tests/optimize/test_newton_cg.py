"""Newton's method by truncated conjugate gradients."""

import copy
from dataclasses import replace
from itertools import pairwise
from math import inf, nan

import pytest
import scipy.optimize
import torch
from ocp.problems import van_der_pol

from ocp import (
    CONSTANT,
    LINEAR,
    MGOPT,
    Always,
    ControlProblem,
    ControlSpace,
    Cycle,
    Method,
    Nested,
    NewtonCG,
    QuadraticRunning,
    Status,
    TimeGrid,
    Transfer,
    discretize,
    minimize,
)
from ocp.multilevel.nested import Forgetful
from ocp.objective.evaluation import optimality
from ocp.objective.reduced import ReducedEvaluation
from ocp.run.comparison import RunSpec, compare, single
from ocp.run.stopping import Stop
from ocp.run.study import Study
from ocp.space.bounds import Box

EPS = torch.finfo(torch.float64).eps


VAN_DER_POL = van_der_pol.problem().problem


def swing_up(t, x, u):
    angle, velocity = x.unbind(1)
    return torch.stack((velocity, torch.sin(angle) + u), dim=1)


def oscillator(t, x, u):
    return torch.stack((x[:, 1], u - x[:, 0]), dim=1)


def final_miss(x):
    return x.square().sum()


X0 = torch.tensor([[1.0, 0.5]], dtype=torch.float64)
LQ = ControlProblem(oscillator, X0, final_miss, QuadraticRunning(1.0, 0.05), horizon=4.0, control_size=1)
#: Its bounds hold the control over most of the horizon, and release it twice.
BOUNDED_LQ = replace(LQ, bounds=(-0.5, 0.5))
PENDULUM = ControlProblem(
    swing_up,
    torch.tensor([[3.0, 0.0]], dtype=torch.float64),
    lambda x: 5 * x.square().sum(),
    QuadraticRunning(0.1, 0.2),
    horizon=3.0,
    control_size=1,
)


def rosenbrock(u):
    return (1 - u[0]) ** 2 + 100 * (u[1] - u[0] ** 2) ** 2


def quadratic(A, b):
    return lambda u: 0.5 * torch.dot(u, A @ u) - torch.dot(b, u)


START = torch.tensor([-1.2, 1.1], dtype=torch.float64)


def start(problem, steps=16):
    """The reduced objective for RK4 with the start of the problem."""
    objective = discretize(problem, steps, "rk4")
    return objective, objective.discretization.start().flat


def iterates(method, objective, u, steps=30):
    """The states of a run, until it cannot go on."""
    states = [method.init(objective, objective.at(u))]
    while len(states) <= steps and states[-1].status is Status.RUNNING:
        states.append(method.step(objective, states[-1]))
    return states


NEWTON = {
    "Newton": NewtonCG(),
    "exact": NewtonCG(forcing=1e-6),
    "small radius": NewtonCG(first=1e-2),
    "large radius": NewtonCG(first=1e2),
    "one product": NewtonCG(iterations=1),
}
every_newton = pytest.mark.parametrize("method", NEWTON.values(), ids=NEWTON.keys())


@every_newton
def test_newton_is_a_method(method):
    assert isinstance(method, Method)


@pytest.mark.parametrize(
    "wrong", [{"forcing": 0.0}, {"forcing": 1.0}, {"iterations": 0}, {"first": 0.0}, {"first": inf}, {"forcing": nan}]
)
def test_numbers_out_of_their_range_are_refused(wrong):
    with pytest.raises(ValueError, match="forcing, iterations, first: expected"):
        NewtonCG(**wrong)


@pytest.mark.parametrize("forcing", [0.1, 1e-3, 1e-8])
def test_a_quadratic_problem_is_solved_in_one_step_to_the_forcing_tolerance(forcing):
    objective, u = start(LQ)
    _, state = iterates(NewtonCG(forcing=forcing, first=100.0), objective, u, 1)
    assert 0 < optimality(state.point) <= forcing * optimality(objective.at(u))


@pytest.mark.parametrize(("exponent", "order"), [(0.5, 1.5), (1.0, 2.0)])
def test_the_order_of_convergence_is_that_of_the_forcing(exponent, order):
    objective, u = start(VAN_DER_POL)
    states = iterates(NewtonCG(exponent=exponent), objective, u)
    norms = [optimality(state.point) / optimality(states[0].point) for state in states]
    # Above rounding, the derivative after a step is less than the power of that before, but for a constant.
    assert all(after <= 5 * before**order for before, after in pairwise(norms) if before < 0.1 and after > 1e-12)
    assert min(norms) < 1e-13


@every_newton
@pytest.mark.parametrize("problem", [VAN_DER_POL, PENDULUM, BOUNDED_LQ], ids=["Van der Pol", "pendulum", "bounded LQ"])
@pytest.mark.cover(1)
def test_no_step_increases_the_objective(method, problem):
    objective, u = start(problem)
    values = [state.point.value for state in iterates(method, objective, u)]
    assert all(after <= before + 10 * EPS * abs(before) for before, after in pairwise(values))
    assert values[-1] < values[0]


def test_where_the_curvature_is_negative_the_step_reaches_the_boundary_and_decreases(objective_of):
    objective = objective_of(lambda u: torch.cos(3 * u).sum() + 1e-3 * u[0])
    u = torch.zeros(2, dtype=torch.float64)
    _, state = iterates(NewtonCG(first=0.5), objective, u, 1)
    assert objective.space.norm(state.control) == pytest.approx(0.5)
    assert objective.value(state.control) < objective.value(u)


def test_newton_walks_down_the_valley_of_rosenbrock(objective_of):
    objective = objective_of(rosenbrock)
    torch.testing.assert_close(iterates(NewtonCG(), objective, START, 60)[-1].control, torch.ones(2).double())


@pytest.mark.parametrize("steps", [16, 64])
def test_the_number_of_steps_and_products_does_not_depend_on_the_grid(steps):
    """But for one: on 16 steps the problem is a slightly different one."""
    result = minimize(VAN_DER_POL, steps, NewtonCG(), integrator="rk4", stop=Stop(tolerance=1e-8))
    assert result.status is Status.CONVERGED
    assert abs(result.iterations - 6) <= 1
    assert abs(result.work_units - 31) <= 6


SOLVERS = {
    "nested": Nested(3, NewtonCG()),
    "cycle": Cycle(3, NewtonCG(), visits=Always()),
    "W cycle": Cycle(3, NewtonCG(), shape="W", visits=Always()),
    "MG/OPT": MGOPT(3, NewtonCG()),
}


@pytest.mark.parametrize("problem", [VAN_DER_POL, BOUNDED_LQ], ids=["Van der Pol", "bounded LQ"])
@pytest.mark.parametrize("method", SOLVERS.values(), ids=SOLVERS.keys())
@pytest.mark.cover(1)
def test_newton_is_a_smoother(method, problem):
    result = minimize(problem, 16, method, integrator="rk4", stop=Stop(tolerance=1e-8))
    assert result.status is Status.CONVERGED
    alone = minimize(problem, 16, NewtonCG(), integrator="rk4", stop=Stop(tolerance=1e-8))
    assert result.value == pytest.approx(alone.value, rel=1e-12)


@pytest.mark.parametrize("interpolation", [CONSTANT, LINEAR])
def test_the_radius_is_the_same_on_a_finer_grid(interpolation):
    method = NewtonCG(first=1e-2)
    (coarse, u), (fine, _) = start(VAN_DER_POL, 16), start(VAN_DER_POL, 32)
    before = iterates(method, coarse, u, 2)[-1]
    transfer = Transfer(fine.space, coarse.space, interpolation)
    v = transfer.prolong(before.control)
    arrived = replace(before, point=fine.at(v), memory=method.transport(before.memory, transfer))
    radius = before.memory[0]
    assert radius == 0.16
    assert coarse.space.norm(method.step(coarse, before).control - before.control) == pytest.approx(radius)
    assert fine.space.norm(method.step(fine, arrived).control - v) == pytest.approx(radius)


@every_newton
def test_a_step_changes_neither_control_nor_memory(method, unchanged):
    objective, u = start(VAN_DER_POL)
    state = iterates(method, objective, u, 2)[-1]
    memory = copy.deepcopy(state.memory)
    with unchanged(state.control, u):
        method.step(objective, state)
    assert state.memory == memory


@pytest.mark.parametrize("bounds", [None, (-0.3, 0.3)])
def test_newton_works_in_single_precision(bounds):
    problem = replace(van_der_pol.problem(dtype=torch.float32).problem, bounds=bounds)
    result = minimize(problem, 32, NewtonCG(), integrator="rk4", stop=Stop(tolerance=1e-4))
    assert result.status is Status.CONVERGED
    assert result.control.flat.dtype == torch.float32


@pytest.mark.parametrize("problem", [LQ, VAN_DER_POL, BOUNDED_LQ], ids=["LQ", "Van der Pol", "bounded LQ"])
@pytest.mark.parametrize("dtype", [torch.float64, torch.float32])
@pytest.mark.cover(1)
def test_a_run_ends_where_precision_does(problem, dtype):
    problem = replace(problem, initial_state=problem.initial_state.x.to(dtype), start=None)
    result = minimize(problem, 16, NewtonCG(), integrator="rk4", stop=Stop(tolerance=0.0, max_iterations=40))
    assert result.status in (Status.PRECISION, Status.CONVERGED)
    assert result.history[-1].derivative_norm < torch.finfo(dtype).eps ** 0.75 * 10


def test_a_derivative_of_the_wrong_sign_ends_in_no_decrease_at_the_same_control(objective_of):
    objective = objective_of(rosenbrock, change=lambda u, derivative: -derivative)
    state = iterates(NewtonCG(), objective, START)[-1]
    assert state.status is Status.NO_DECREASE
    assert torch.equal(state.control, START)


@pytest.mark.parametrize("slope", [0.0, 1e-20])
@pytest.mark.parametrize("box", [None, Box(-torch.ones(2).double(), torch.ones(2).double())], ids=["free", "bounded"])
def test_at_the_optimum_there_is_no_decrease(box, slope, objective_of):
    objective = objective_of(lambda u: (u - 0.5).square().sum() + slope * u.sum(), box=box)
    state = iterates(NewtonCG(), objective, torch.full((2,), 0.5, dtype=torch.float64))[-1]
    assert state.status is Status.NO_DECREASE


@every_newton
def test_every_iterate_is_within_the_bounds(method):
    objective, u = start(BOUNDED_LQ)
    states = iterates(method, objective, u, 10)
    assert len(states) > 3
    assert max(state.control.abs().max() for state in states) == 0.5


def scipy_optimum(objective, u, bounds):
    """Optimum and its value by SciPy's L-BFGS-B, in variables of the time-weighted inner product."""
    scale = objective.space.dual(torch.ones_like(u)).sqrt()

    def fun(z):
        v = torch.as_tensor(z) / scale
        return objective.value(v), (objective.derivative(v) / scale).numpy()

    box = [(float(bounds[0] * s), float(bounds[1] * s)) for s in scale]
    options = {"maxiter": 2000, "maxfun": 5000, "maxcor": 30}
    found = scipy.optimize.minimize(fun, (u * scale).numpy(), jac=True, bounds=box, tol=1e-15, options=options)
    return torch.as_tensor(found.x) / scale, found.fun


@pytest.mark.parametrize("bounds", [(-0.5, 0.5), (-0.1, 0.1), (-2.0, 0.2)])
@pytest.mark.parametrize("problem", [LQ, replace(VAN_DER_POL, horizon=6.0)], ids=["LQ", "Van der Pol"])
@pytest.mark.cover(1)
def test_the_optimum_within_bounds_is_that_of_scipy(problem, bounds):
    objective, u = start(replace(problem, bounds=bounds))
    control, value = scipy_optimum(objective, u, bounds)
    state = iterates(NewtonCG(), objective, u)[-1]
    assert objective.value(state.control) == pytest.approx(value, rel=1e-9)
    torch.testing.assert_close(state.control, control, rtol=0, atol=1e-3)


def test_the_entries_at_their_bounds_are_found_in_few_steps_and_stay():
    objective, u = start(BOUNDED_LQ, 64)
    states = iterates(NewtonCG(), objective, u, 12)
    free = [objective.box.free(s.control, s.point.derivative) for s in states]
    assert 0 < free[-1].sum() < 32
    assert all(torch.equal(mask, free[-1]) for mask in free[8:])


@pytest.mark.parametrize("seed", range(4))
def test_a_convex_quadratic_program_with_bounds_is_solved(seed, objective_of):
    """Its solution is chosen first: multipliers of random size where a bound is met, none elsewhere."""
    generator = torch.Generator().manual_seed(seed)

    def rand(*shape):
        return torch.randn(*shape, generator=generator, dtype=torch.float64)

    n = 20
    B, side, solution = rand(n, n), torch.randint(-1, 2, (n,), generator=generator), rand(n).clamp(-0.9, 0.9)
    solution = torch.where(side == 0, solution, side.double())
    A = B @ B.T / n + 0.1 * torch.eye(n, dtype=torch.float64)
    b = A @ solution + side * (0.1 + rand(n).abs())
    box = Box(-torch.ones(n, dtype=torch.float64), torch.ones(n, dtype=torch.float64))
    objective = objective_of(quadratic(A, b), ControlSpace(TimeGrid(1.0, n), 1), box=box)
    state = iterates(NewtonCG(), objective, torch.zeros(n, dtype=torch.float64), 40)[-1]
    assert state.status is Status.NO_DECREASE
    torch.testing.assert_close(state.control, solution, rtol=0, atol=1e-10)


def test_an_entry_without_room_stays_where_it_is(objective_of):
    box = Box(torch.tensor([0.3, -1.0]).double(), torch.tensor([0.3, 1.0]).double())
    objective = objective_of(lambda u: (u - 0.5).square().sum() + u[0] * u[1], box=box)
    state = iterates(NewtonCG(), objective, torch.tensor([0.3, 0.0]).double())[-1]
    torch.testing.assert_close(state.control, torch.tensor([0.3, 0.35]).double())


class NoSecondDerivative:
    """Dynamics that know first derivatives only."""

    control_size = 1

    def __call__(self, t, x, u):
        return x + u

    def vjp(self, t, x, u, p):
        return p, p.sum().reshape(1)

    def jvp(self, t, x, u, dx, du):
        return dx + du


def work(*_):
    raise AssertionError("no work is expected")


@pytest.mark.parametrize("method", [NewtonCG(), MGOPT(2, NewtonCG()), Nested(2, Forgetful(NewtonCG()))])
def test_a_problem_without_second_derivatives_is_refused_before_work_begins(method, monkeypatch):
    monkeypatch.setattr(ReducedEvaluation, "_forward", work)
    problem = ControlProblem(NoSecondDerivative(), X0, final_miss)
    with pytest.raises(ValueError, match=r"dynamics: expected a method hvp .*, as NewtonCG requires"):
        minimize(problem, 4, method)
    runs = [RunSpec(single, label="first"), RunSpec(single, NewtonCG())]
    with pytest.raises(ValueError, match="dynamics: expected"):
        compare("name", lambda seed: Study(problem, 4), runs)


def test_functions_that_autograd_differentiates_once_have_no_hessian_instead_of_a_wrong_one(once_differentiable_power):
    problem = ControlProblem(
        lambda t, x, u: once_differentiable_power(x, 2) + u,
        torch.ones(1, 1).double(),
        lambda x: x.square().sum(),
        control_size=1,
    )
    u = torch.zeros(4).double()
    with pytest.raises(ValueError, match="dynamics: expected operations with second derivatives"):
        discretize(problem, 4).hessian_product(u, torch.ones_like(u))
