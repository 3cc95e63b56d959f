"""The methods on one grid."""

import copy
import pickle
from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from itertools import pairwise
from math import inf

import pytest
import scipy.optimize
import torch
from torch import Tensor, nn

from ocp import (
    CONSTANT,
    LBFGS,
    LINEAR,
    MGOPT,
    Armijo,
    Bounds,
    ControlProblem,
    ControlSpace,
    Cycle,
    Forgetful,
    GradientDescent,
    LeastSquares,
    Method,
    Nested,
    NonlinearCG,
    QuadraticRunning,
    SciPy,
    Status,
    Stop,
    StrongWolfe,
    TimeGrid,
    TorchOptimizer,
    Transfer,
    Watch,
    discretize,
    minimize,
)
from ocp.objective.evaluation import optimality
from ocp.space.bounds import Box, as_bounds

METHODS = {
    "gradient descent": GradientDescent(),
    "gradient descent, strong Wolfe": GradientDescent(StrongWolfe()),
    "conjugate gradients": NonlinearCG(),
    "conjugate gradients, Armijo": NonlinearCG(Armijo()),
    "L-BFGS": LBFGS(),
    "L-BFGS, Armijo": LBFGS(search=Armijo()),
    "L-BFGS, two pairs": LBFGS(pairs=2),
    "Adam": TorchOptimizer(torch.optim.Adam, {"lr": 0.1}),
    "SGD": TorchOptimizer(torch.optim.SGD, {"lr": 0.2, "momentum": 0.5}),
    "torch L-BFGS": TorchOptimizer(
        torch.optim.LBFGS,
        {"line_search_fn": "strong_wolfe", "max_iter": 5, "tolerance_grad": 0.0, "tolerance_change": 0.0},
    ),
    "SciPy L-BFGS-B": SciPy(iterations=5),
    "SciPy CG": SciPy("CG", iterations=5),
    "SciPy BFGS": SciPy("BFGS", iterations=5),
}
SEARCHING = {name: METHODS[name] for name in ("gradient descent", "conjugate gradients", "L-BFGS")}


@dataclass(frozen=True)
class Linear:
    """x' = F x + G u."""

    F: Tensor
    G: Tensor

    @property
    def control_size(self):
        return self.G.shape[1]

    def __call__(self, t, x, u):
        return x @ self.F.T + self.G @ u

    def vjp(self, t, x, u, p):
        return p @ self.F, (p @ self.G).sum(0)

    def jvp(self, t, x, u, dx, du):
        return dx @ self.F.T + self.G @ du


OSCILLATOR = Linear(
    torch.tensor([[0.0, 1.0], [-1.0, 0.0]], dtype=torch.float64),
    torch.tensor([[0.0], [1.0]], dtype=torch.float64),
)
X0 = torch.tensor([[1.0, 0.5]], dtype=torch.float64)
T, S, R = 2.0, 2.0, 0.5
LQR = ControlProblem(OSCILLATOR, X0, LeastSquares(torch.zeros_like(X0), S), QuadraticRunning(1.0, R), horizon=T)


def riccati(steps):
    """Optimal value and control of the LQR problem discretized by Euler, from the Riccati recursion."""
    h, one = T / steps, torch.eye(2, dtype=torch.float64)
    A, B = one + h * OSCILLATOR.F, h * OSCILLATOR.G
    P, gains = S * one, []
    for _ in range(steps):
        gains.insert(0, torch.linalg.solve(h * R * torch.eye(1).double() + B.T @ P @ B, B.T @ P @ A))
        P = h * one + A.T @ P @ (A - B @ gains[0])
    x, path = X0[0], []
    for K in gains:
        path.append(-K @ x)
        x = (A - B @ K) @ x
    return float(0.5 * X0[0] @ P @ X0[0]), torch.cat(path)


def every(methods):
    return pytest.mark.parametrize("method", methods.values(), ids=methods.keys())


def run(method, objective, control, steps):
    """The state after some steps from a control."""
    state = method.init(objective, control)
    for _ in range(steps):
        state = method.step(objective, state)
    return state


def same(a, b):
    """Whether two memories are bit for bit the same."""
    if isinstance(a, Tensor):
        return torch.equal(a, b)
    if isinstance(a, Mapping):
        return a.keys() == b.keys() and all(same(a[key], b[key]) for key in a)
    if isinstance(a, tuple | list):
        return len(a) == len(b) and all(map(same, a, b))
    return a == b


def lqr(steps=16):
    objective = discretize(LQR, steps)
    return objective, objective.discretization.start().flat


@every(METHODS)
def test_every_method_is_a_method(method):
    assert isinstance(method, Method)


@every(METHODS)
def test_every_method_finds_the_optimum_that_the_riccati_recursion_gives(method):
    value, path = riccati(16)
    result = minimize(LQR, 16, method, stop=Stop(tolerance=1e-6))
    assert result.status is Status.CONVERGED
    assert result.value == pytest.approx(value, rel=1e-10)
    torch.testing.assert_close(result.control.path[:, 0], path, rtol=0, atol=1e-5)


@every(METHODS)
def test_every_method_works_in_single_precision(method):
    problem = ControlProblem(
        lambda t, x, u: u - x, X0.float(), lambda x: x.square().sum(), QuadraticRunning(), control_size=1
    )
    result = minimize(problem, 4, method, stop=Stop(tolerance=1e-3, max_iterations=300))
    assert result.status is Status.CONVERGED
    assert result.control.flat.dtype == torch.float32


@every(METHODS)
def test_a_step_changes_neither_control_nor_state(method):
    objective, start = lqr()
    state = run(method, objective, start, 3)
    before = copy.deepcopy(state)
    method.step(objective, state)
    assert torch.equal(start, torch.zeros_like(start))
    assert torch.equal(state.control, before.control)
    assert same(state.memory, before.memory)


@every(METHODS)
@pytest.mark.parametrize(
    "through", [copy.deepcopy, lambda memory: pickle.loads(pickle.dumps(memory))], ids=["deepcopy", "pickle"]
)
@pytest.mark.cover(1)
def test_a_saved_memory_continues_the_run_bit_for_bit(method, through):
    objective, start = lqr()
    state = run(method, objective, start, 4)
    saved = replace(state, control=state.control.clone(), memory=through(state.memory))
    fresh = discretize(LQR, 16)
    for _ in range(4):
        state, saved = method.step(objective, state), method.step(fresh, saved)
    assert torch.equal(state.control, saved.control)


@every({name: m for name, m in METHODS.items() if not isinstance(m, SciPy)})
def test_a_step_has_the_same_length_on_every_grid(method):
    """Runs on 64 and on 128 steps stay close; without the time weight they would differ by a factor of two."""
    (coarse, u), (fine, v) = lqr(64), lqr(128)
    a, b = run(method, coarse, u, 3).control, run(method, fine, v, 3).control
    difference = a - Transfer(fine.space, coarse.space).restrict(b)
    assert 0 < coarse.space.norm(difference) < 0.1 * coarse.space.norm(a)


@every(SEARCHING | {"SciPy": SciPy()})
def test_a_derivative_of_the_wrong_sign_ends_in_no_decrease_at_the_same_control(method):
    objective, start = lqr()
    wrong = replace_derivative(objective, lambda d: -d)
    state = run(method, wrong, start + 1, 1)
    assert state.status is Status.NO_DECREASE
    assert torch.equal(state.control, start + 1)


@every({name: METHODS[name] for name in ("conjugate gradients", "L-BFGS")})
def test_a_failed_search_is_tried_once_more_without_memory(method):
    objective, start = lqr()
    wrong = replace_derivative(objective, lambda d: -d)
    good = run(method, objective, start, 3)
    forgotten = method.step(wrong, good)
    assert forgotten.status is Status.RUNNING
    assert not forgotten.memory
    assert method.step(wrong, forgotten).status is Status.NO_DECREASE


def replace_derivative(objective, change):
    """The objective with a changed derivative."""

    @dataclass(frozen=True)
    class Changed:
        space: ControlSpace = objective.space

        def value(self, u):
            return objective.value(u)

        def derivative(self, u):
            return change(objective.derivative(u))

        box = None

        def room(self, u, direction):
            return inf

    return Changed()


@dataclass
class Remembering:
    """A line search that keeps the directions it was given."""

    search: StrongWolfe = field(default_factory=StrongWolfe)
    directions: list[Tensor] = field(default_factory=list)

    def __call__(self, objective, control, direction, step):
        self.directions.append(direction)
        return self.search(objective, control, direction, step)


@dataclass(frozen=True)
class Quadratic:
    """J(u) = (1/2) u^T A u - b^T u, with controls of steps of length 0.1 and two parameters."""

    A: Tensor
    b: Tensor
    box: Box | None = None

    @property
    def space(self):
        steps = len(self.b) - 2
        return ControlSpace(TimeGrid(0.1 * steps, steps), control_size=1, parameter_size=2)

    def value(self, u):
        return float(0.5 * u @ self.A @ u - self.b @ u)

    def derivative(self, u):
        return self.A @ u - self.b

    def room(self, u, direction):
        return inf


@pytest.fixture
def quadratic(rand):
    root = rand(5, 5)
    return Quadratic(root @ root.T + torch.eye(5).double(), rand(5))


def dense_inverse(weight, pairs):
    """Inverse Hessian of BFGS from gamma M^{-1} on, as products of matrices: Nocedal & Wright (2006), equation 6.17."""
    one, (s, y) = torch.eye(len(weight), dtype=torch.float64), pairs[-1]
    H = torch.diag(1 / weight) * (s @ y) / (y @ (y / weight))
    for s, y in pairs:
        rho = 1 / (s @ y)
        left = one - rho * torch.outer(s, y)
        H = left @ H @ left.T + rho * torch.outer(s, s)
    return H


@pytest.mark.parametrize("pairs", [1, 2, 10])
def test_lbfgs_takes_the_directions_of_the_dense_bfgs_update_in_the_weighted_metric(quadratic, pairs):
    search = Remembering()
    method = LBFGS(pairs, search)
    states = [method.init(quadratic, torch.zeros(5).double())]
    for _ in range(4):
        states.append(method.step(quadratic, states[-1]))
    weight = torch.tensor([0.1, 0.1, 0.1, 1.0, 1.0], dtype=torch.float64)
    controls = [state.control for state in states[:4]]
    derivatives = [quadratic.derivative(u) for u in controls]
    changes = [(v - u, e - d) for (u, v), (d, e) in zip(pairwise(controls), pairwise(derivatives), strict=True)]
    expected = [-derivatives[0] / weight] + [
        -dense_inverse(weight, changes[max(0, k - pairs) : k]) @ derivatives[k] for k in (1, 2, 3)
    ]
    torch.testing.assert_close(torch.stack(search.directions), torch.stack(expected), rtol=1e-9, atol=1e-9)


def test_lbfgs_keeps_no_more_than_its_pairs(quadratic):
    kept = [len(run(LBFGS(3), quadratic, torch.zeros(5).double(), k).memory) for k in range(6)]
    assert kept == [0, 1, 2, 3, 3, 3]


def test_lbfgs_keeps_no_pair_of_negative_curvature():
    concave = Quadratic(-torch.eye(5).double(), torch.ones(5).double())
    state = run(LBFGS(search=Armijo()), concave, torch.zeros(5).double(), 3)
    assert state.memory == ()
    assert state.status is Status.RUNNING


@pytest.mark.parametrize("bad", [0, -1])
def test_lbfgs_without_pairs_is_refused(bad):
    with pytest.raises(ValueError, match="pairs: expected"):
        LBFGS(pairs=bad)


OPTIMIZERS = {
    "Adam": (torch.optim.Adam, {"lr": 0.03}),
    "SGD": (torch.optim.SGD, {"lr": 0.1, "momentum": 0.9, "nesterov": True}),
    "AdamW": (torch.optim.AdamW, {"lr": 0.03, "weight_decay": 0.1}),
    "RMSprop": (torch.optim.RMSprop, {"lr": 0.03}),
}


@pytest.mark.parametrize(("optimizer", "options"), OPTIMIZERS.values(), ids=OPTIMIZERS.keys())
def test_a_torch_optimizer_does_what_it_does_in_a_loop_of_its_own(optimizer, options):
    objective, start = lqr()
    parameter = torch.nn.Parameter(start.clone())
    own = optimizer([parameter], **options)
    for _ in range(5):
        parameter.grad = objective.space.gradient(objective.derivative(parameter.detach().clone()))
        own.step()
    state = run(TorchOptimizer(optimizer, options), objective, start, 5)
    assert torch.equal(state.control, parameter.detach())


def spaces(steps=8, parameters=2):
    return (ControlSpace(TimeGrid(1.5, n), 2, parameters) for n in (steps, steps // 2))


@every(METHODS)
@pytest.mark.parametrize("interpolation", [CONSTANT, LINEAR])
def test_a_run_goes_on_with_its_memory_on_the_finer_grid(method, interpolation):
    (coarse, start), (fine, _) = lqr(8), lqr(16)
    state = run(method, coarse, start, 3)
    transfer = Transfer(fine.space, coarse.space, interpolation)
    arrived = replace(state, control=transfer.prolong(state.control), memory=method.transport(state.memory, transfer))
    after = method.step(fine, method.step(fine, arrived))
    assert fine.value(after.control) < fine.value(arrived.control)


def test_pairs_keep_their_products_on_the_way_to_a_finer_grid(rand):
    fine, coarse = spaces()
    s, y = rand(coarse.dimension), rand(coarse.dimension)
    y = y + 5 * coarse.dual(s)
    ((fine_s, fine_y, *_),) = LBFGS().transport(((s, y),), Transfer(fine, coarse, CONSTANT))
    assert float(fine_s @ fine_y) == pytest.approx(float(s @ y), rel=1e-14)
    assert fine.norm(fine_s) == pytest.approx(coarse.norm(s), rel=1e-14)
    assert fine.dual_norm(fine_y) == pytest.approx(coarse.dual_norm(y), rel=1e-14)


@pytest.mark.parametrize(("interpolation", "kept"), [(CONSTANT, 1), (LINEAR, 0)])
def test_a_pair_that_loses_its_curvature_on_the_way_is_dropped(interpolation, kept):
    """Linear prolongation strengthens the difference of two steps against their mean: the product turns negative."""
    fine, coarse = (ControlSpace(TimeGrid(1.0, n), 1) for n in (4, 2))
    s, y = torch.tensor([2.1, 0.1], dtype=torch.float64), torch.tensor([0.0, 2.0], dtype=torch.float64)
    assert s @ y > 0
    assert len(LBFGS().transport(((s, y),), Transfer(fine, coarse, interpolation))) == kept


def test_an_optimizer_of_torch_begins_anew_on_a_finer_grid():
    objective, adam = discretize(LQR, 16), METHODS["Adam"]
    old = run(adam, objective, objective.discretization.start().flat, 5)
    memory = adam.transport(old.memory, Transfer(*spaces(), CONSTANT))
    again = adam.step(objective, replace(old, memory=memory))
    assert torch.equal(again.control, adam.step(objective, adam.init(objective, old.control)).control)


@pytest.mark.parametrize("name", ["L-BFGS-B", "CG", "BFGS"])
def test_scipy_goes_on_until_the_solver_is_satisfied(name):
    assert minimize(LQR, 16, SciPy(name), stop=Stop(tolerance=1e-8)).status is Status.CONVERGED


def test_the_barrier_of_trust_constr_gets_to_its_end_within_one_long_call():
    problem = replace(LQR, bounds=as_bounds((-0.3, 0.3)))
    result = minimize(problem, 8, SciPy("trust-constr", iterations=200), stop=Stop(tolerance=1e-5))
    assert result.status is Status.CONVERGED
    assert result.value == pytest.approx(minimize(problem, 8, LBFGS(), stop=Stop(tolerance=1e-8)).value, rel=1e-8)


BOUNDED = {
    "gradient descent": GradientDescent(),
    "gradient descent, strong Wolfe": GradientDescent(StrongWolfe()),
    "conjugate gradients": NonlinearCG(),
    "L-BFGS": LBFGS(),
    "L-BFGS, Armijo": LBFGS(search=Armijo()),
    "Adam": TorchOptimizer(torch.optim.Adam, {"lr": 0.1}),
    "SciPy L-BFGS-B": SciPy(),
}


def tensor(*numbers):
    return torch.tensor(numbers, dtype=torch.float64)


#: Bounds on a path of twelve steps; the optimum without bounds of the first entries is near one.
LOW, HIGH = -inf * torch.ones(12).double(), inf * torch.ones(12).double()
RAMP = torch.linspace(-0.5, 0.5, 12, dtype=torch.float64)
PATHS = {
    "inactive": (LOW, HIGH),
    "far": (-9 - 0 * RAMP, 9 + 0 * RAMP),
    "active": (-0.1 - 0 * RAMP, 0.2 + 0 * RAMP),
    "above zero": (0 * RAMP, HIGH),
    "varying in time": (RAMP - 0.1, RAMP + 0.1),
    "some equal": (torch.where(RAMP < 0, 0.3, -0.2), torch.where(RAMP < 0, 0.3, 0.2)),
    "all equal": (RAMP, RAMP),
}
every_path = pytest.mark.parametrize("path", PATHS.values(), ids=PATHS.keys())
BEYOND = tensor(inf, inf)


def boxed(A, b, path):
    return Quadratic(A, b, Box(torch.cat((path[0], -BEYOND)), torch.cat((path[1], BEYOND))))


@pytest.fixture
def matrices():
    """A and b of a strictly convex function of twelve steps and two parameters."""
    generator = torch.Generator().manual_seed(0)
    root = torch.randn(14, 14, generator=generator, dtype=torch.float64)
    weight = torch.cat((torch.full((12,), 0.1), torch.ones(2))).double()
    A = weight.sqrt() * (0.2 * root @ root.T + torch.eye(14)) * weight.sqrt().unsqueeze(1)
    return A, weight * torch.randn(14, generator=generator, dtype=torch.float64)


def best(A, b, box):
    """Minimizer of (1/2) u^T A u - b^T u in a box, by SciPy's active sets."""
    open_ = box.lower < box.upper
    u = torch.where(open_, 0.0, box.lower)
    if not open_.any():
        return u
    root = torch.linalg.cholesky(A[open_][:, open_]).T
    right = torch.linalg.solve(root.T, (b - A @ u)[open_])
    bounds = (box.lower[open_].numpy(), box.upper[open_].numpy())
    found = scipy.optimize.lsq_linear(root.numpy(), right.numpy(), bounds, method="bvls", tol=1e-14)
    u[open_] = torch.from_numpy(found.x)
    return u


@every_path
@every(BOUNDED)
def test_every_method_finds_the_optimum_within_the_bounds(method, path, matrices):
    objective = boxed(*matrices, path)
    start = objective.box.project(torch.ones(14).double())
    found = run(method, objective, start, 500 if isinstance(method, TorchOptimizer) else 100).control
    torch.testing.assert_close(found, best(*matrices, objective.box), rtol=0, atol=1e-6)
    assert optimality(objective, found) <= 1e-6


@every_path
@every(BOUNDED | {"torch L-BFGS": METHODS["torch L-BFGS"]})
@pytest.mark.cover(1)
def test_every_method_keeps_to_the_bounds(method, path, matrices):
    objective = boxed(*matrices, path)
    state = method.init(objective, objective.box.project(torch.ones(14).double()))
    controls = []
    for _ in range(15):
        state = method.step(objective, state)
        controls.append(state.control)
    visited = torch.stack(controls)
    assert ((visited >= objective.box.lower) & (visited <= objective.box.upper)).all()


@every(BOUNDED)
def test_bounds_that_are_never_met_change_nothing(method, matrices):
    free, far = Quadratic(*matrices), boxed(*matrices, PATHS["inactive"])
    start = torch.ones(14).double()
    torch.testing.assert_close(run(method, far, start, 6).control, run(method, free, start, 6).control)


LIMITS = {
    "active": (-0.4, 0.1),
    "on one side": (None, -0.2),
    "varying in time": (lambda t: -0.6 + 0.2 * t, lambda t: -0.1 * t),
    "equal on the first half": (lambda t: -0.3 if t < 1 else -9.0, lambda t: -0.3 if t < 1 else 9.0),
    "inactive": (-50.0, 50.0),
}


@pytest.mark.parametrize("bounds", LIMITS.values(), ids=LIMITS.keys())
@every(BOUNDED)
@pytest.mark.cover(1)
def test_a_bounded_control_problem_is_solved_by_every_method(method, bounds):
    problem, seen = replace(LQR, bounds=as_bounds(bounds)), []
    result = minimize(
        problem,
        16,
        method,
        stop=Stop(tolerance=1e-7),
        watch=Watch(callback=lambda record, control: seen.append(control.flat)),
    )
    objective = discretize(problem, 16)
    b = -objective.derivative(torch.zeros(16).double())
    A = torch.stack([objective.derivative(e) + b for e in torch.eye(16).double()])
    assert result.status is Status.CONVERGED
    torch.testing.assert_close(result.control.flat, best(A, b, objective.box), rtol=0, atol=2e-6)
    assert all(torch.equal(objective.box.project(u), u) for u in seen)


@pytest.mark.parametrize("name", ["L-BFGS-B", "TNC", "SLSQP"])
def test_every_method_of_scipy_that_knows_bounds_takes_them(name, matrices):
    objective = boxed(*matrices, PATHS["active"])
    found = run(SciPy(name, 100), objective, objective.box.project(torch.ones(14).double()), 3).control
    torch.testing.assert_close(found, best(*matrices, objective.box), rtol=0, atol=1e-5)


@pytest.mark.parametrize("name", ["CG", "BFGS", "Newton-CG"])
def test_a_method_of_scipy_that_knows_no_bounds_is_refused_before_work_begins(name):
    message = f"name: expected a method that knows bounds, one of l-bfgs-b, .*, got '{name}'"
    with pytest.raises(ValueError, match=message) as caught:
        minimize(replace(LQR, bounds=Bounds(0.0, 1.0)), 8, SciPy(name))
    assert not hasattr(caught.value, "result")


def test_optimality_without_bounds_is_the_dual_norm(matrices, rand):
    objective, u = Quadratic(*matrices), rand(14)
    assert optimality(objective, u) == objective.space.dual_norm(objective.derivative(u))


@pytest.mark.parametrize("name", ["inactive", "far"])
def test_optimality_far_from_bounds_is_the_dual_norm(matrices, rand, name):
    objective, u = boxed(*matrices, PATHS[name]), 0.1 * rand(14)
    dual = objective.space.dual_norm(objective.derivative(u))
    assert optimality(objective, u) == pytest.approx(dual, rel=1e-12)


@every_path
def test_optimality_is_zero_at_the_optimum(matrices, path):
    objective = boxed(*matrices, path)
    assert optimality(objective, best(*matrices, objective.box)) <= 1e-12


@every_path
def test_optimality_is_not_zero_elsewhere(matrices, path, rand):
    objective = boxed(*matrices, path)
    optimum = best(*matrices, objective.box)
    other = objective.box.project(optimum + 0.1 * rand(14))
    assert optimality(objective, other) >= 0.1 * objective.space.norm(other - optimum) > 0


@pytest.mark.parametrize(("slope", "expected"), [(-1.0, 0.5), (0.0, 0.0), (1.0, 0.0)])
def test_optimality_at_a_bound_counts_what_leads_inside_only(slope, expected):
    """At a lower bound, with a room of 0.5; the gradient is the derivative by the length of the step, 0.1."""
    objective = Quadratic(torch.zeros(3, 3).double(), tensor(-slope, 0, 0), Box(tensor(0, 0, 0), tensor(0.5, 1, 1)))
    assert optimality(objective, tensor(0, 0, 0)) == pytest.approx(expected * 0.1**0.5)


COMPOSED = {
    "MG/OPT": lambda method: MGOPT(smoother=method),
    "a cycle": lambda method: Cycle(3, method),
    "nested iteration": lambda method: Nested(3, method),
    "a forgetful method": Forgetful,
}


@pytest.mark.parametrize(("method", "got"), [("lbfgs", "'lbfgs'"), (LBFGS, "the class LBFGS"), (None, "None")])
@pytest.mark.parametrize("compose", COMPOSED.values(), ids=COMPOSED.keys())
def test_what_is_no_method_is_refused_where_methods_are_composed(compose, method, got):
    with pytest.raises(TypeError, match=rf"(smoother|method): expected a method such as LBFGS\(\) .*, got {got}"):
        compose(method)


def test_an_unknown_argument_of_mgopt_is_named():
    with pytest.raises(TypeError, match="MGOPT: expected arguments of its own or of Cycle, got leves"):
        MGOPT(leves=3)


def test_a_method_that_scipy_does_not_have_is_refused():
    with pytest.raises(ValueError, match=r"name: expected one of l-bfgs-b, .*, got 'foo'"):
        SciPy("foo")


@pytest.mark.parametrize("optimizer", [torch.optim.Adam([nn.Parameter(torch.ones(1))]), "Adam"])
def test_an_optimizer_that_is_no_class_is_refused(optimizer):
    with pytest.raises(TypeError, match=r"optimizer: expected a class such as torch.optim.Adam, got one of type (A|s)"):
        TorchOptimizer(optimizer)


def test_an_optimizer_that_searches_sees_no_control_outside_the_bounds(matrices):
    objective, seen = boxed(*matrices, PATHS["active"]), []

    @dataclass(frozen=True)
    class Watched(Quadratic):
        def derivative(self, control):
            seen.append(control)
            return super().derivative(control)

    watched = Watched(*matrices, objective.box)
    method = TorchOptimizer(torch.optim.LBFGS, {"max_iter": 5, "line_search_fn": "strong_wolfe"})
    found = run(method, watched, objective.box.project(torch.ones(14).double()), 10).control
    assert len(seen) > 10
    assert all(torch.equal(objective.box.project(u), u) for u in [*seen, found])
