"""What holds for every method, on one grid and on the way to a finer one."""

import copy
import pickle
from collections.abc import Mapping
from dataclasses import dataclass, replace

import pytest
import torch
from torch import Tensor

from ocp import (
    CONSTANT,
    LBFGS,
    LINEAR,
    Always,
    Armijo,
    ControlProblem,
    Cycle,
    GradientDescent,
    Method,
    Nested,
    NonlinearCG,
    QuadraticRunning,
    Scheduled,
    SciPy,
    State,
    Status,
    StrongWolfe,
    TorchOptimizer,
    Transfer,
    discretize,
    minimize,
)
from ocp.run.stopping import Stop

KINDS = {
    "gradient descent": GradientDescent(),
    "conjugate gradients": NonlinearCG(),
    "L-BFGS": LBFGS(),
    "Adam": TorchOptimizer(torch.optim.Adam, {"lr": 0.1}),
    "SGD": TorchOptimizer(torch.optim.SGD, {"lr": 0.2, "momentum": 0.5}),
    "torch L-BFGS": TorchOptimizer(
        torch.optim.LBFGS,
        {"line_search_fn": "strong_wolfe", "max_iter": 5, "tolerance_grad": 0.0, "tolerance_change": 0.0},
    ),
    "SciPy L-BFGS-B": SciPy(iterations=5),
}
METHODS = KINDS | {
    "gradient descent, strong Wolfe": GradientDescent(StrongWolfe()),
    "conjugate gradients, Armijo": NonlinearCG(Armijo()),
    "L-BFGS, Armijo": LBFGS(search=Armijo()),
    "L-BFGS, two pairs": LBFGS(pairs=2),
    "SciPy CG": SciPy("CG", iterations=5),
    "SciPy BFGS": SciPy("BFGS", iterations=5),
}


def riccati(problem, steps):
    """Optimal value and control of the LQR problem discretized by Euler, from the Riccati recursion."""
    h, one, x = problem.horizon / steps, torch.eye(2, dtype=torch.float64), problem.initial_state.x[0]
    A, B = one + h * problem.dynamics.F, h * problem.dynamics.G
    P, gains, path = 2.0 * one, [], []
    for _ in range(steps):
        gains.insert(0, torch.linalg.solve(h * 0.5 * torch.eye(1).double() + B.T @ P @ B, B.T @ P @ A))
        P = h * one + A.T @ P @ (A - B @ gains[0])
    value = float(0.5 * x @ P @ x)
    for K in gains:
        path.append(-K @ x)
        x = (A - B @ K) @ x
    return value, torch.cat(path)


def every(methods):
    return pytest.mark.parametrize("method", methods.values(), ids=methods.keys())


def same(a, b):
    """Whether two memories are bit for bit the same."""
    if isinstance(a, Tensor):
        return torch.equal(a, b)
    if isinstance(a, Mapping):
        return a.keys() == b.keys() and all(same(a[key], b[key]) for key in a)
    if isinstance(a, tuple | list):
        return len(a) == len(b) and all(map(same, a, b))
    return a == b


def test_every_method_is_a_method():
    assert all(isinstance(method, Method) for method in METHODS.values())


@every(METHODS)
def test_every_method_finds_the_optimum_that_the_riccati_recursion_gives(method, lqr):
    value, path = riccati(lqr, 16)
    result = minimize(lqr, 16, method, stop=Stop(tolerance=1e-6))
    assert result.status is Status.CONVERGED
    assert result.value == pytest.approx(value, rel=1e-10)
    torch.testing.assert_close(result.control.path[:, 0], path, rtol=0, atol=1e-5)


@every(METHODS)
def test_every_method_works_in_single_precision(method):
    x = torch.tensor([[1.0, 0.5]])
    problem = ControlProblem(lambda t, x, u: u - x, x, lambda x: x.square().sum(), QuadraticRunning(), control_size=1)
    result = minimize(problem, 4, method, stop=Stop(tolerance=1e-3, max_iterations=300))
    assert result.status is Status.CONVERGED
    assert result.control.flat.dtype == torch.float32


@every(KINDS)
def test_a_step_changes_neither_control_nor_state(method, lqr, start, run, unchanged):
    point = start(lqr)
    state = run(method, point, 3)
    memory = copy.deepcopy(state.memory)
    with unchanged(point.control, state.control, state.point.derivative):
        method.step(point.objective, state)
    assert same(state.memory, memory)


@every(METHODS)
def test_the_evaluation_that_a_step_returns_is_that_of_its_control(method, lqr, start, run):
    point, fresh = run(method, start(lqr), 3).point, discretize(lqr, 16)
    assert point.value == fresh.value(point.control)
    assert torch.equal(point.derivative, fresh.derivative(point.control))


@every(KINDS)
@pytest.mark.parametrize(
    "through", [copy.deepcopy, lambda memory: pickle.loads(pickle.dumps(memory))], ids=["deepcopy", "pickle"]
)
@pytest.mark.cover(1)
def test_a_saved_memory_continues_the_run_bit_for_bit(method, through, lqr, start, run):
    state, fresh = run(method, start(lqr), 4), discretize(lqr, 16)
    saved = replace(state, point=fresh.at(state.control.clone()), memory=through(state.memory))
    objective = state.point.objective
    for _ in range(4):
        state, saved = method.step(objective, state), method.step(fresh, saved)
    assert torch.equal(state.control, saved.control)


@every({name: m for name, m in KINDS.items() if not isinstance(m, SciPy)})
def test_a_step_has_the_same_length_on_every_grid(method, lqr, start, run):
    """Runs on 64 and on 128 steps stay close; without the time weight they would differ by a factor of two."""
    a, b = (run(method, start(lqr, steps), 3) for steps in (64, 128))
    coarse, fine = a.point.objective.space, b.point.objective.space
    difference = a.control - Transfer(fine, coarse).restrict(b.control)
    assert 0 < coarse.norm(difference) < 0.1 * coarse.norm(a.control)


SEARCHING = {name: METHODS[name] for name in ("gradient descent", "conjugate gradients", "L-BFGS", "SciPy L-BFGS-B")}


def bowl(u):
    return u.square().sum() + u[0] * u[1]


def opposite(u, derivative):
    return -derivative


@every(SEARCHING)
def test_a_derivative_of_the_wrong_sign_ends_in_no_decrease_at_the_same_control(method, objective_of, run):
    u = torch.ones(2, dtype=torch.float64)
    state = run(method, objective_of(bowl, change=opposite).at(u), 1)
    assert state.status is Status.NO_DECREASE
    assert torch.equal(state.control, u)


@every({name: METHODS[name] for name in ("conjugate gradients", "L-BFGS")})
def test_a_failed_search_is_tried_once_more_without_memory(method, objective_of, run):
    good, wrong = objective_of(bowl), objective_of(bowl, change=opposite)
    state = run(method, good.at(torch.tensor([1.0, 3.0], dtype=torch.float64)), 1)
    assert state.memory
    forgotten = method.step(wrong, replace(state, point=wrong.at(state.control)))
    assert forgotten.status is Status.RUNNING
    assert not forgotten.memory
    assert method.step(wrong, forgotten).status is Status.NO_DECREASE


@every(METHODS)
@pytest.mark.parametrize("interpolation", [CONSTANT, LINEAR])
@pytest.mark.cover(1)
def test_a_run_goes_on_with_its_memory_on_the_finer_grid(method, interpolation, lqr, start, run):
    state, fine = run(method, start(lqr, 8), 3), discretize(lqr, 16)
    transfer = Transfer(fine.space, state.point.objective.space, interpolation)
    arrived = replace(
        state, point=fine.at(transfer.prolong(state.control)), memory=method.transport(state.memory, transfer)
    )
    after = method.step(fine, method.step(fine, arrived))
    assert after.point.value < arrived.point.value


@dataclass(frozen=True)
class Descent:
    """A method of a user's own, which works on copies of its controls, or not."""

    copies: bool = False

    def init(self, objective, point):
        return State(point)

    def step(self, objective, state):
        u, gradient = state.control, objective.space.gradient(state.point.derivative)
        if self.copies:
            u, gradient = u.clone(), gradient.clone()
        after = u - 0.3 * gradient
        return replace(state, point=objective.at(after.clone() if self.copies else after))

    def transport(self, memory, transfer):
        return None


def test_each_iteration_of_a_method_that_copies_its_controls_costs_one_gradient(lqr):
    result = minimize(lqr, 16, Descent(copies=True))
    assert result.status is Status.CONVERGED
    assert result.iterations < result.work_units <= result.iterations + 1


SOLVERS = {
    "alone": lambda method: method,
    "nested": lambda method: Nested(3, method, refine=Scheduled(4)),
    "cycle": lambda method: Cycle(2, method, visits=Always()),
}


@pytest.mark.parametrize("solver", SOLVERS.values(), ids=SOLVERS.keys())
def test_a_method_that_copies_its_controls_pays_as_much_work_as_one_that_does_not(solver, lqr):
    one, other = (minimize(lqr, 16, solver(Descent(copies))) for copies in (False, True))
    assert one.iterations > 10
    assert [record.work_units for record in one.history] == [record.work_units for record in other.history]
    assert torch.equal(one.control.flat, other.control.flat)
