"""Truncated conjugate gradients, the trust region, and Newton's method made of them."""

import copy
from collections.abc import Callable
from dataclasses import dataclass, field, replace
from itertools import pairwise
from math import inf, log, nan

import pytest
import scipy.optimize
import torch
from ocp.problems import van_der_pol
from torch import Tensor

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
    Stop,
    TimeGrid,
    Transfer,
    TrustRegion,
    discretize,
    minimize,
)
from ocp.objective.evaluation import optimality
from ocp.optimize.trust_region import Ending, steihaug
from ocp.space.bounds import Box

EPS = torch.finfo(torch.float64).eps


VAN_DER_POL = van_der_pol.problem().problem


@dataclass
class Function:
    """A function of a vector as an objective with second derivatives; it counts what it is asked for."""

    function: Callable[[Tensor], Tensor]
    space: ControlSpace
    box: Box | None = None
    limit: float = inf
    asked: list[Tensor] = field(default_factory=list)
    products: int = 0

    def room(self, u, direction):
        return self.limit

    def value(self, u):
        self.asked.append(u)
        return float(self.function(u))

    def derivative(self, u):
        return torch.func.grad(self.function)(u)

    def hessian_product(self, u, direction):
        self.products += 1
        return torch.func.jvp(torch.func.grad(self.function), (u,), (direction,))[1]


def space(dimension, horizon=1.0):
    return ControlSpace(TimeGrid(horizon, dimension), 1)


def rosenbrock(u):
    return (1 - u[0]) ** 2 + 100 * (u[1] - u[0] ** 2) ** 2


def quadratic(A, b):
    return lambda u: 0.5 * torch.dot(u, A @ u) - torch.dot(b, u)


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


@pytest.fixture
def definite(rand):
    """Space, Hessian and derivative of a convex model in 12 dimensions."""
    B = rand(12, 12)
    return space(12), B @ B.T + torch.eye(12, dtype=torch.float64), rand(12)


@pytest.fixture
def indefinite(rand):
    """Space, Hessian and derivative of a model that is unbounded below."""
    B = rand(12, 12)
    return space(12), B + B.T, rand(12)


def start(problem, steps=16):
    """The reduced objective for RK4 with the start of the problem."""
    objective = discretize(problem, steps, "rk4")
    return objective, objective.discretization.start().flat


def iterates(method, objective, u, steps=30):
    """The states of a run, until it cannot go on."""
    states = [method.init(objective, u)]
    while len(states) <= steps and states[-1].status is Status.RUNNING:
        states.append(method.step(objective, states[-1]))
    return states


def model(H, d, s):
    return float(torch.dot(d, s) + 0.5 * torch.dot(s, H @ s))


@pytest.mark.parametrize("tolerance", [0.5, 1e-2, 1e-10])
def test_conjugate_gradients_end_when_the_residual_meets_the_tolerance(definite, tolerance):
    where, H, d = definite
    path = steihaug(lambda s: H @ s, d, where, 1e3, tolerance, 50)
    assert path.ending is Ending.TOLERANCE
    assert where.dual_norm(H @ path.within(1e3).displacement + d) <= tolerance * where.dual_norm(d) * (1 + 1e-9)


def test_as_many_conjugate_gradients_as_dimensions_solve_a_convex_model(definite):
    where, H, d = definite
    path = steihaug(lambda s: H @ s, d, where, 1e3, 1e-8, 12)
    assert path.ending is Ending.TOLERANCE
    torch.testing.assert_close(path.within(1e3).displacement, torch.linalg.solve(H, -d), rtol=1e-6, atol=1e-6)


@pytest.mark.parametrize("radius", [1e-3, 0.03, 0.1, 0.3, 1.0])
@pytest.mark.parametrize("kind", ["definite", "indefinite"])
def test_the_step_of_a_shorter_radius_lies_on_the_same_path(request, kind, radius):
    where, H, d = request.getfixturevalue(kind)
    long = steihaug(lambda s: H @ s, d, where, 1.0, 1e-8, 50).within(radius)
    short = steihaug(lambda s: H @ s, d, where, radius, 1e-8, 50).within(radius)
    torch.testing.assert_close(long.displacement, short.displacement, rtol=1e-10, atol=1e-12)
    assert where.norm(long.displacement) <= radius * (1 + 1e-12)


@pytest.mark.parametrize("radius", [1e-3, 0.03, 0.1, 0.3, 1.0])
@pytest.mark.parametrize("kind", ["definite", "indefinite"])
def test_the_change_that_a_step_predicts_is_that_of_the_model(request, kind, radius):
    where, H, d = request.getfixturevalue(kind)
    step = steihaug(lambda s: H @ s, d, where, 1.0, 1e-8, 50).within(radius)
    assert step.change < 0
    assert step.change == pytest.approx(model(H, d, step.displacement), rel=1e-10)


@pytest.mark.parametrize("kind", ["definite", "indefinite"])
def test_the_model_decreases_and_the_distance_grows_along_the_path(request, kind):
    where, H, d = request.getfixturevalue(kind)
    path = steihaug(lambda s: H @ s, d, where, 0.5, 1e-8, 50)
    steps = [path.within(0.01 * k) for k in range(1, 51)]
    assert all(b.change <= a.change for a, b in pairwise(steps))
    assert all(where.norm(b.displacement) >= where.norm(a.displacement) * (1 - 1e-12) for a, b in pairwise(steps))


@pytest.mark.parametrize("radius", [1e-6, 1.0, 1e6])
def test_negative_curvature_is_followed_to_the_boundary(indefinite, radius):
    where, _, d = indefinite
    path = steihaug(lambda s: -s, d, where, radius, 1e-8, 50)
    assert path.ending is Ending.CURVATURE
    assert where.norm(path.within(radius).displacement) == pytest.approx(radius, rel=1e-12)


def test_conjugate_gradients_end_at_the_boundary(definite):
    where, H, d = definite
    path = steihaug(lambda s: H @ s, d, where, 1e-3, 1e-8, 50)
    assert path.ending is Ending.BOUNDARY
    assert where.norm(path.within(1e-3).displacement) == pytest.approx(1e-3, rel=1e-12)


@pytest.mark.parametrize("most", [1, 2, 5])
def test_no_more_products_are_computed_than_allowed(definite, most):
    where, H, d = definite
    asked = []
    path = steihaug(lambda s: asked.append(s) or H @ s, d, where, 1e3, 0.0, most)
    assert path.ending is Ending.ITERATIONS
    assert len(asked) == most


@pytest.mark.parametrize("bad", [nan, inf, -inf])
def test_a_later_product_that_is_not_finite_ends_the_conjugate_gradients(definite, bad):
    where, H, d = definite
    asked = []

    def product(s):
        asked.append(s)
        return H @ s if len(asked) < 3 else s * bad

    path = steihaug(product, d, where, 1e3, 1e-8, 50)
    assert path.ending is Ending.NOT_FINITE
    assert torch.equal(
        path.within(1e3).displacement, steihaug(lambda s: H @ s, d, where, 1e3, 0, 2).within(1e3).displacement
    )


@pytest.mark.parametrize("bad", [nan, inf, -inf])
def test_a_first_product_that_is_not_finite_leaves_the_linear_model(definite, bad):
    where, _, d = definite
    step = steihaug(lambda s: s * bad, d, where, 2.0, 1e-8, 50).within(2.0)
    torch.testing.assert_close(step.displacement, -2.0 * where.gradient(d) / where.dual_norm(d))
    assert step.change == pytest.approx(-2.0 * where.dual_norm(d))


def test_conjugate_gradients_leave_the_derivative_as_it_was(definite, unchanged):
    where, H, d = definite
    with unchanged(d):
        steihaug(lambda s: H @ s, d, where, 1.0, 1e-8, 50).within(0.1)


def searched(objective, u, radius):
    """What a trust region makes of the path that begins at a control."""
    path = steihaug(
        lambda s: objective.hessian_product(u, s), objective.derivative(u), objective.space, radius, 0.1, 50
    )
    return TrustRegion()(objective, u, path, radius)


def test_the_radius_grows_after_a_good_step_that_reached_it(definite):
    where, H, b = definite
    objective = Function(quadratic(H, b), where)
    control, radius = searched(objective, torch.zeros_like(b), 1e-3)
    assert radius == 4e-3
    assert where.norm(control) == pytest.approx(1e-3)


def test_the_radius_stays_after_a_good_step_within(definite):
    where, H, b = definite
    assert searched(Function(quadratic(H, b), where), torch.zeros_like(b), 50.0)[1] == 50.0


START = torch.tensor([-1.2, 1.1], dtype=torch.float64)


def test_a_shorter_step_costs_a_value_and_no_product():
    objective = Function(lambda u: (1 + u.square().sum()).sqrt(), space(2))  # nearly linear: Newton goes too far
    u, radius = START, 100.0
    path = steihaug(
        lambda s: objective.hessian_product(u, s), objective.derivative(u), objective.space, radius, 0.1, 50
    )
    spent = objective.products
    control, shorter = TrustRegion()(objective, u, path, radius)
    assert shorter < radius
    assert len(objective.asked) > 2
    assert objective.products == spent
    assert objective.value(control) < objective.value(u)


@pytest.mark.parametrize("outside", [nan, inf, -inf])
def test_a_value_that_is_not_finite_is_backed_off(outside):
    def inside_a_ball(u):
        return (u - 10).square().sum() + (0.0 if u.norm() <= 2 else outside)

    objective = Function(inside_a_ball, space(2))
    u = torch.zeros(2, dtype=torch.float64)
    control, _ = searched(objective, u, 50.0)
    assert 0 < control.norm() <= 2
    assert objective.value(control) < objective.value(u)


@pytest.mark.parametrize("limit", [1e-3, 0.3])
def test_no_point_beyond_the_room_of_the_objective_is_tried(limit):
    objective = Function(lambda u: (u - 10).square().sum(), space(2), limit=limit)
    control, _ = searched(objective, torch.zeros(2, dtype=torch.float64), 100.0)
    torch.testing.assert_close(control, torch.full_like(control, 10 * limit))


def test_without_room_there_is_no_step():
    objective = Function(lambda u: (u - 10).square().sum(), space(2), limit=0.0)
    assert searched(objective, torch.zeros(2, dtype=torch.float64), 100.0) is None


def test_where_rounding_hides_the_decrease_the_derivative_decides():
    objective = Function(lambda u: 1e8 + 0.5 * u.square().sum(), space(2))
    control, radius = searched(objective, 1e-6 * START, 1.0)
    assert radius == 1.0
    assert optimality(objective, control) < 1e-3 * optimality(objective, 1e-6 * START)


class Lie(Function):
    """Its derivative points the wrong way."""

    def derivative(self, u):
        return -super().derivative(u)


@pytest.mark.parametrize("dtype", [torch.float64, torch.float32])
def test_the_search_ends_where_the_radius_can_no_longer_be_resolved(dtype):
    objective = Lie(rosenbrock, space(2))
    assert searched(objective, START.to(dtype), 1.0) is None
    assert len(objective.asked) <= 2 - log(torch.finfo(dtype).eps, 2)


def test_a_step_that_bounds_cut_is_projected():
    box = Box(torch.tensor([-0.1, -inf], dtype=torch.float64), torch.tensor([0.1, inf], dtype=torch.float64))
    objective = Function(lambda u: (u - 1).square().sum(), space(2), box)
    control, _ = searched(objective, torch.zeros(2, dtype=torch.float64), 100.0)
    torch.testing.assert_close(control, torch.tensor([0.1, 1.0], dtype=torch.float64))


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
    assert 0 < optimality(objective, state.control) <= forcing * optimality(objective, u)


@pytest.mark.parametrize(("exponent", "order"), [(0.5, 1.5), (1.0, 2.0)])
def test_the_order_of_convergence_is_that_of_the_forcing(exponent, order):
    objective, u = start(VAN_DER_POL)
    states = iterates(NewtonCG(exponent=exponent), objective, u)
    norms = [optimality(objective, state.control) / optimality(objective, u) for state in states]
    # Above rounding, the derivative after a step is less than the power of that before, but for a constant.
    assert all(after <= 5 * before**order for before, after in pairwise(norms) if before < 0.1 and after > 1e-12)
    assert min(norms) < 1e-13


@every_newton
@pytest.mark.parametrize("problem", [VAN_DER_POL, PENDULUM, BOUNDED_LQ], ids=["Van der Pol", "pendulum", "bounded LQ"])
@pytest.mark.cover(1)
def test_no_step_increases_the_objective(method, problem):
    objective, u = start(problem)
    values = [objective.value(state.control) for state in iterates(method, objective, u)]
    assert all(after <= before + 10 * EPS * abs(before) for before, after in pairwise(values))
    assert values[-1] < values[0]


def test_where_the_curvature_is_negative_the_step_reaches_the_boundary_and_decreases():
    objective = Function(lambda u: torch.cos(3 * u).sum() + 1e-3 * u[0], space(2))
    u = torch.zeros(2, dtype=torch.float64)
    _, state = iterates(NewtonCG(first=0.5), objective, u, 1)
    assert objective.space.norm(state.control) == pytest.approx(0.5)
    assert objective.value(state.control) < objective.value(u)


def test_newton_walks_down_the_valley_of_rosenbrock():
    objective = Function(rosenbrock, space(2))
    torch.testing.assert_close(iterates(NewtonCG(), objective, START, 60)[-1].control, torch.ones(2).double())


@pytest.mark.parametrize("steps", [16, 64, 128])
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
    arrived = replace(before, control=v, memory=method.transport(before.memory, transfer))
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
    assert result.derivative_norm < torch.finfo(dtype).eps ** 0.75 * 10


def test_a_derivative_of_the_wrong_sign_ends_in_no_decrease_at_the_same_control():
    objective = Lie(rosenbrock, space(2))
    state = iterates(NewtonCG(), objective, START)[-1]
    assert state.status is Status.NO_DECREASE
    assert torch.equal(state.control, START)


@pytest.mark.parametrize("slope", [0.0, 1e-20])
@pytest.mark.parametrize("box", [None, Box(-torch.ones(2).double(), torch.ones(2).double())], ids=["free", "bounded"])
def test_at_the_optimum_there_is_no_decrease(box, slope):
    objective = Function(lambda u: (u - 0.5).square().sum() + slope * u.sum(), space(2), box)
    state = iterates(NewtonCG(), objective, torch.full((2,), 0.5, dtype=torch.float64))[-1]
    assert state.status is Status.NO_DECREASE


@every_newton
def test_every_iterate_is_within_the_bounds(method):
    objective, u = start(BOUNDED_LQ, 32)
    states = iterates(method, objective, u)
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
    states = iterates(NewtonCG(), objective, u)
    free = [objective.box.free(s.control, objective.derivative(s.control)) for s in states]
    assert 0 < free[-1].sum() < 32
    assert all(torch.equal(mask, free[-1]) for mask in free[8:])


@pytest.mark.parametrize("seed", range(8))
def test_a_convex_quadratic_program_with_bounds_is_solved(seed):
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
    objective = Function(quadratic(A, b), space(n), box)
    state = iterates(NewtonCG(), objective, torch.zeros(n, dtype=torch.float64), 40)[-1]
    assert state.status is Status.NO_DECREASE
    torch.testing.assert_close(state.control, solution, rtol=0, atol=1e-10)


def test_an_entry_without_room_stays_where_it_is():
    box = Box(torch.tensor([0.3, -1.0]).double(), torch.tensor([0.3, 1.0]).double())
    objective = Function(lambda u: (u - 0.5).square().sum() + u[0] * u[1], space(2), box)
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


def test_a_problem_without_second_derivatives_is_refused():
    problem = ControlProblem(NoSecondDerivative(), X0, final_miss)
    with pytest.raises(ValueError, match="dynamics: expected"):
        minimize(problem, 4, NewtonCG())
