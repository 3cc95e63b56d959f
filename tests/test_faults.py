"""What goes wrong in long runs, injected: each fault has one outcome, and nothing that was reached is lost."""

import math
import os
import signal
import threading
from dataclasses import dataclass, replace

import pytest
import torch
from ocp.problems import lqr, van_der_pol

from ocp import (
    LBFGS,
    MGOPT,
    Always,
    Binomial,
    Control,
    ControlProblem,
    ControlSpace,
    Cycle,
    FunctionDynamics,
    GradientDescent,
    Nested,
    NewtonCG,
    NonlinearCG,
    QuadraticRunning,
    SciPy,
    Status,
    Stop,
    StoreAll,
    TimeGrid,
    TorchOptimizer,
    Watch,
    discretize,
    minimize,
    quick_check,
    verify,
)
from ocp.adjoint import sweeps
from ocp.objective.shifted import ShiftedObjective

N = 8
X0 = torch.tensor([[1.0, -0.5]], dtype=torch.float64)
ADAM = TorchOptimizer(torch.optim.Adam, {"lr": 0.05})
METHODS = {
    "gradient descent": GradientDescent(),
    "conjugate gradients": NonlinearCG(),
    "L-BFGS": LBFGS(),
    "Newton": NewtonCG(),
    "Adam": ADAM,
    "SciPy": SciPy(iterations=2),
    "cycles": Cycle(3, visits=Always()),
    "nested": Nested(3),
    "MG/OPT": MGOPT(3),
}
SEARCHING = {name: method for name, method in METHODS.items() if method is not ADAM}
every_method = pytest.mark.parametrize("method", METHODS.values(), ids=METHODS.keys())
every_searching = pytest.mark.parametrize("method", SEARCHING.values(), ids=SEARCHING.keys())


def cubic(f=lambda t, x, u: u - x**3, **changes):
    """A small problem that is not quadratic."""
    pieces = {
        "dynamics": f,
        "initial_state": X0,
        "terminal_cost": lambda x: x.square().sum(),
        "running_cost": QuadraticRunning(1.0, 0.5),
        "control_size": 1,
    }
    return ControlProblem(**{**pieces, **changes})


PROBLEM = cubic()


@dataclass
class Dynamics:
    """u - x^3 with a derivative that goes wrong at one time, in some of the calls."""

    time: float
    number: float
    calls: range = range(10**9)
    control_size: int = 1
    made: int = 0

    def __post_init__(self):
        self.right = FunctionDynamics(lambda t, x, u: u - x**3, 1)

    def __call__(self, t, x, u):
        return self.right(t, x, u)

    def vjp(self, t, x, u, p):
        px, pu = self.right.vjp(t, x, u, p)
        if t == self.time:
            self.made += 1
            if self.made - 1 in self.calls:
                pu = pu * self.number
        return px, pu

    def jvp(self, t, x, u, dx, du):
        return self.right.jvp(t, x, u, dx, du)

    def hvp(self, t, x, u, p, dx, du):
        return self.right.hvp(t, x, u, p, dx, du)


def fresh(result, problem=PROBLEM):
    return discretize(problem, result.control.space.grid.steps).value(result.control)


# Values that are not finite


@every_method
@pytest.mark.parametrize("number", [math.nan, math.inf])
def test_an_objective_that_is_not_finite_at_the_start_ends_the_run_before_any_step(method, number):
    problem = cubic(terminal_cost=lambda x: number * x.square().sum(), start=torch_start(0.3))
    result = minimize(problem, N, method, stop=Stop(max_iterations=10))
    assert result.status is Status.NOT_FINITE
    assert not result.success
    assert "the terminal cost" in result.message
    assert torch.equal(result.control.flat, torch.full((N,), 0.3, dtype=torch.float64))


def test_a_start_that_is_finite_on_coarse_grids_only_is_cured_and_the_tolerance_is_met():
    """Without control the state is infinite before the end of the horizon, which long steps overlook."""
    problem = ControlProblem(
        lambda t, x, u: x**2 + u,
        torch.full((1, 1), 2.0).double(),
        lambda x: x.square().sum(),
        lambda t, x, u: 0.1 * u.square().sum(),
        control_size=1,
    )
    result = minimize(problem, 64, MGOPT(5))
    first = next(record for record in result.history if record.level == 0)
    assert discretize(problem, 64).value(torch.zeros(64).double()) == math.inf
    assert result.status is Status.CONVERGED
    assert result.derivative_norm <= 1e-6 * first.derivative_norm
    assert f"not finite on the finest grid; iteration {first.iteration} takes its place." in result.message


def torch_start(number):
    return Control(ControlSpace(TimeGrid(1.0, 1), 1), torch.tensor([number], dtype=torch.float64))


@pytest.mark.parametrize("number", [math.nan, math.inf])
@pytest.mark.parametrize("call", [3, 5])
@pytest.mark.parametrize("method", [m for m in SEARCHING.values() if not isinstance(m, SciPy)])
@pytest.mark.cover(1)
def test_a_value_that_is_not_finite_once_at_a_trial_costs_a_step_back_and_is_counted(method, call, number, monkeypatch):
    forward, made = sweeps.forward, []

    def failing(discretization, control, states):
        made.append(discretization.grid.steps)
        value = forward(discretization, control, states)
        return value * number if made.count(N) == call and made[-1] == N else value

    right = minimize(PROBLEM, N, method)
    monkeypatch.setattr(sweeps, "forward", failing)
    result = minimize(PROBLEM, N, method)
    assert result.status is right.status is Status.CONVERGED
    assert result.value == pytest.approx(right.value, rel=1e-9)
    assert result.counts["not_finite"] == 1


@every_searching
def test_values_that_are_not_finite_at_every_trial_end_the_run_at_its_best_point_without_success(method):
    problem = cubic(lambda t, x, u: torch.where(u == 0.3, 0.0, math.nan) + u - x**3, start=torch_start(0.3))
    result = minimize(problem, N, method, stop=Stop(max_iterations=30))
    assert result.status in (Status.NO_DECREASE, Status.NOT_FINITE)
    assert not result.success
    assert result.value == fresh(result, problem)
    assert math.isfinite(result.value)
    assert result.counts["not_finite"] > 0
    assert "the state after step 0" in result.message


UNBOUNDED = {
    "linear": cubic(lambda t, x, u: u + 0 * x, terminal_cost=lambda x: x.sum(), running_cost=None),
    "concave": cubic(lambda t, x, u: u + 0 * x, terminal_cost=lambda x: -x.square().sum(), running_cost=None),
    "quartic": cubic(lambda t, x, u: u + 0 * x, running_cost=lambda t, x, u: -u.square().square().sum()),
    "exponential": cubic(lambda t, x, u: u + 0 * x, terminal_cost=lambda x: -x.exp().sum(), running_cost=None),
}


@pytest.mark.parametrize("problem", UNBOUNDED.values(), ids=UNBOUNDED.keys())
@pytest.mark.parametrize("method", [GradientDescent(), NonlinearCG(), LBFGS(), NewtonCG(), Nested(3), MGOPT(3)])
@pytest.mark.cover(1)
def test_an_objective_without_a_lower_bound_is_called_so(method, problem):
    result = minimize(problem, N, method, start=torch_start(3.0))
    assert result.status is Status.UNBOUNDED
    assert not result.success
    assert result.value == fresh(result, problem)


DEEP = {
    "deep": cubic(lambda t, x, u: u + 0 * x, terminal_cost=lambda x: 1e6 * (x.square() - 2 * x).sum()),
    "from a flat start": cubic(lambda t, x, u: u + 0 * x, terminal_cost=lambda x: 1e4 * (torch.cos(x - X0)).sum()),
}


@pytest.mark.parametrize("problem", DEEP.values(), ids=DEEP.keys())
def test_a_deep_minimum_is_not_taken_for_none(problem):
    start = torch_start(1e-6)
    assert minimize(problem, N, LBFGS(), start=start).status in (Status.CONVERGED, Status.PRECISION)


@pytest.mark.parametrize("number", [math.nan, math.inf])
@pytest.mark.parametrize("k", [0, 3, N - 1])
@pytest.mark.parametrize("record_every", [1, 4])
@every_method
@pytest.mark.cover(2)
def test_a_derivative_that_is_not_finite_is_found_before_the_update_and_its_step_is_named(
    method, k, number, record_every
):
    problem = cubic(Dynamics(k / N, number))
    result = minimize(problem, N, method, watch=Watch(every=record_every))
    assert result.status is Status.NOT_FINITE
    assert result.control.flat.isfinite().all()
    assert f"the adjoint of step {k}, on the grid of {N} steps" in result.message


@pytest.mark.parametrize("call", [4, 7])
def test_a_derivative_that_is_not_finite_later_on_leaves_the_best_control(call):
    problem = cubic(Dynamics(0.5, math.nan, range(call, 10**9)))
    result = minimize(problem, N, ADAM, stop=Stop(max_iterations=20))
    finite = [record.value for record in result.history if math.isfinite(record.derivative_norm)]
    assert result.status is Status.NOT_FINITE
    assert result.value == min(finite) == fresh(result)
    assert "the adjoint of step 4" in result.message


@pytest.mark.parametrize("k", [0, 3, N - 1])
def test_a_state_that_overflows_is_traced_to_its_step_and_the_earlier_control_stays(k):
    problem = cubic(lambda t, x, u: u - x + (torch.exp(400 * u.square()) - 1 if t == k / N else 0.0))
    result = minimize(problem, N, TorchOptimizer(torch.optim.Adam, {"lr": 5.0}), stop=Stop(max_iterations=20))
    finite = [record for record in result.history if math.isfinite(record.value)]
    assert result.status is Status.NOT_FINITE
    assert f"the state after step {k}, on the grid of {N} steps" in result.message
    assert result.value == min(record.value for record in finite) == fresh(result, problem)


def test_a_state_that_overflows_on_one_grid_only_is_traced_to_that_grid():
    """The dynamics are finite at the nodes of the coarse grids only."""
    problem = cubic(lambda t, x, u: u - x / (1.0 if (4 * t).is_integer() else 0.0))
    assert "the state after step 1, on the grid of 8 steps" in minimize(problem, 8, MGOPT(2)).message


# Wrong derivatives


class Stale:
    """A derivative left over from the control before."""

    def __init__(self):
        self.last, self.right = None, sweeps.adjoint

    def __call__(self, discretization, control, states, costates=None, out=None):
        last, self.last = self.last, self.right(discretization, control, states, costates)
        return self.last if last is None or last.shape != self.last.shape else last


def shifted(discretization, control, states, costates=None, out=None, right=sweeps.adjoint):
    derivative = right(discretization, control, states, costates)
    space = discretization.space
    return space.join(space.path(derivative).roll(1, dims=0), space.parameters(derivative))


WRONG = {
    "flipped": lambda: lambda *arguments, right=sweeps.adjoint: -right(*arguments),
    "scaled": lambda: lambda *arguments, right=sweeps.adjoint: 1.5 * right(*arguments),
    "stale": Stale,
    "one step off": lambda: shifted,
}
STUDIES = {"cubic": PROBLEM, "lqr": lqr.problem().problem, "van der pol": van_der_pol.problem().problem}
every_wrong = pytest.mark.parametrize("wrong", WRONG.values(), ids=WRONG.keys())
every_study = pytest.mark.parametrize("problem", STUDIES.values(), ids=STUDIES.keys())


@every_study
@every_wrong
@pytest.mark.cover(1)
def test_a_wrong_derivative_is_caught_by_verify_and_by_the_check_before_a_run(wrong, problem, monkeypatch):
    assert verify(discretize(problem, 16)).passed
    assert minimize(problem, 16, LBFGS(), watch=Watch(check_derivative=True)).status is Status.CONVERGED
    monkeypatch.setattr(sweeps, "adjoint", wrong())
    assert not verify(discretize(problem, 16)).passed
    result = minimize(problem, 16, LBFGS(), watch=Watch(check_derivative=True))
    assert result.status is Status.WRONG_DERIVATIVE
    assert result.iterations == 0
    assert "the values have the slope" in result.message


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
@every_study
@pytest.mark.cover(1)
def test_the_check_before_a_run_says_nothing_about_a_right_derivative(problem, dtype):
    start = problem.initial_state(torch.zeros(0)).to(dtype)
    problem = replace(problem, initial_state=start, start=None)
    objective = discretize(problem, 16)
    checks = [quick_check(objective, objective.discretization.start().flat, seed) for seed in range(20)]
    assert not any(slope.contradicted for slope in checks)


def test_the_check_before_a_run_costs_a_few_gradients_and_is_not_counted():
    objective = discretize(PROBLEM, N)
    quick_check(objective, objective.discretization.start().flat)
    assert objective.work.units < 9
    quiet, checked = (minimize(PROBLEM, N, LBFGS(), watch=Watch(check_derivative=check)) for check in (False, True))
    assert checked.work_units == quiet.work_units
    assert torch.equal(checked.control.flat, quiet.control.flat)


BLIND = {
    "a detached cost": {"terminal_cost": lambda x: x.detach().square().sum(), "running_cost": None},
    "a cost by numbers": {"terminal_cost": lambda x: torch.tensor(x.norm().item()).double(), "running_cost": None},
    "detached dynamics": {"f": lambda t, x, u: (u - x).detach(), "running_cost": None},
}


@pytest.mark.parametrize("start", [0.0, 2.0, -1e3])
@pytest.mark.parametrize("pieces", BLIND.values(), ids=BLIND.keys())
def test_functions_that_autograd_cannot_follow_are_refused(pieces, start):
    with pytest.raises(ValueError, match=r"(dynamics|terminal_cost): expected operations that autograd can follow"):
        minimize(cubic(start=start, **pieces), N, LBFGS())


class Blind:
    """A cost with a derivative written by hand, which is forgotten."""

    def __call__(self, x, q):
        return x.square().sum()

    def derivative(self, x, q):
        return torch.zeros_like(x), torch.zeros_like(q)

    def hvp(self, x, q, dx, dq):
        return torch.zeros_like(x), torch.zeros_like(q)


@every_method
def test_a_derivative_that_is_zero_where_values_change_is_no_success(method):
    result = minimize(cubic(terminal_cost=Blind(), running_cost=None), N, method)
    assert result.status is Status.WRONG_DERIVATIVE
    assert result.iterations == 0
    assert "need not be a minimum" not in result.message


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
@pytest.mark.parametrize("bounds", [None, (0.0, 1.0)], ids=["free", "at a bound"])
@pytest.mark.parametrize("power", [2, 3, 4])
@pytest.mark.parametrize(
    "cost", [lambda x: x.abs().sum(), lambda x: 3 - x.cos().sum(), lambda x: 0 * x.sum()], ids=["abs", "cos", "flat"]
)
@pytest.mark.cover(2)
def test_a_start_that_is_the_optimum_is_a_success(cost, power, bounds, dtype):
    problem = cubic(
        initial_state=0 * X0.to(dtype), terminal_cost=lambda x: cost(x**power), running_cost=None, bounds=bounds
    )
    result = minimize(problem, N, LBFGS())
    assert (result.status, result.iterations) == (Status.CONVERGED, 0)


@every_method
@pytest.mark.parametrize("record_every", [1, 100])
@pytest.mark.cover(1)
def test_a_derivative_with_a_flipped_sign_is_recognized_at_once(method, record_every, monkeypatch):
    monkeypatch.setattr(sweeps, "adjoint", WRONG["flipped"]())
    result = minimize(PROBLEM, N, method, watch=Watch(every=record_every), stop=Stop(max_iterations=200))
    assert result.status is Status.WRONG_DERIVATIVE
    assert result.iterations <= 6
    assert result.value == fresh(result)


# Precision and noise


@pytest.mark.parametrize("problem", [STUDIES["cubic"], STUDIES["van der pol"]], ids=["cubic", "van der pol"])
@every_searching
@pytest.mark.cover(1)
def test_single_precision_ends_at_its_limit_and_says_so(method, problem):
    single = replace(problem, initial_state=problem.initial_state(torch.zeros(0)).float(), start=None)
    result = minimize(single, 16, method, stop=Stop(tolerance=1e-12))
    assert result.status is Status.PRECISION
    assert not result.success
    assert result.iterations < 300


def noisy(x):
    """A cost with a relative error of 1e-4 that looks random, and is not in the derivative."""
    return x.square().sum() * (1 + 1e-4 * torch.sin(1e17 * x.detach()).sum())


def test_a_random_function_is_refused():
    random = cubic(terminal_cost=lambda x: x.square().sum() * (1 + 1e-4 * torch.randn(())))
    with pytest.raises(ValueError, match="terminal_cost: expected a deterministic function"):
        discretize(random, N)


@every_method
@pytest.mark.parametrize("tolerance", [1e-6, 1e-9])
@pytest.mark.cover(1)
def test_a_noisy_objective_is_no_false_success(method, tolerance):
    right = discretize(PROBLEM, N)
    start = right.space.dual_norm(right.derivative(right.discretization.start()))
    result = minimize(cubic(terminal_cost=noisy), N, method, stop=Stop(tolerance=tolerance, max_iterations=100))
    true = right.space.dual_norm(right.derivative(result.control))
    assert not result.success or true <= 2 * tolerance * start
    assert result.status is not Status.WRONG_DERIVATIVE
    assert result.value == pytest.approx(right.value(result.control), rel=1e-2)


# Interrupts and callbacks


@pytest.fixture(autouse=True, scope="module")
def listening():
    """Python's own handler, also where the tests run in the background of a shell, which ignores the signal."""
    before = signal.signal(signal.SIGINT, signal.default_int_handler)
    yield
    signal.signal(signal.SIGINT, before)


def press(times=1):
    for _ in range(times):
        os.kill(os.getpid(), signal.SIGINT)


def at(call, action):
    """Dynamics that act in one of their calls."""
    made = []

    def f(t, x, u):
        made.append(t)
        if len(made) == call:
            action()
        return u - x**3

    return f


CALLS = [30, 60, 100, 130, 151, 180]


@pytest.mark.parametrize("call", CALLS)
@every_method
@pytest.mark.cover(1)
def test_one_interrupt_ends_the_run_after_its_step_with_a_control_that_fits_its_value(method, call):
    result = minimize(cubic(at(call, press)), N, method, stop=Stop(tolerance=0.0))
    undisturbed = minimize(PROBLEM, N, method, stop=Stop(tolerance=0.0, max_iterations=result.iterations))
    assert result.status is Status.INTERRUPTED
    assert not result.success
    assert result.control.space.grid.steps == N
    assert result.value == fresh(result)
    assert torch.equal(result.control.flat, undisturbed.control.flat)


@pytest.mark.parametrize("call", CALLS)
@every_method
@pytest.mark.cover(1)
def test_two_interrupts_raise_with_what_was_reached(method, call):
    with pytest.raises(KeyboardInterrupt) as caught:
        minimize(cubic(at(call, lambda: press(2))), N, method, stop=Stop(tolerance=0.0))
    result = caught.value.result
    assert result.status is Status.INTERRUPTED
    assert result.value == pytest.approx(fresh(result), rel=1e-15)


def test_the_signal_handler_is_put_back():
    before = signal.getsignal(signal.SIGINT)
    minimize(cubic(at(60, press)), N, LBFGS())
    with pytest.raises(KeyboardInterrupt):
        minimize(cubic(at(60, lambda: press(2))), N, LBFGS())
    assert signal.getsignal(signal.SIGINT) is before


def test_a_handler_of_somebody_else_is_left_alone():
    seen = []
    before = signal.signal(signal.SIGINT, lambda *arguments: seen.append(arguments))
    try:
        result = minimize(cubic(at(60, press)), N, LBFGS())
    finally:
        signal.signal(signal.SIGINT, before)
    assert (result.status, len(seen)) == (Status.CONVERGED, 1)


def test_a_run_in_another_thread_leaves_signals_alone():
    results = []
    thread = threading.Thread(target=lambda: results.append(minimize(PROBLEM, N, LBFGS())))
    thread.start()
    thread.join()
    assert results[0].status is Status.CONVERGED


@every_method
@pytest.mark.parametrize("iteration", [0, 1, 5])
def test_a_callback_that_stops_gets_a_result_on_the_finest_grid(method, iteration):
    result = minimize(
        PROBLEM, N, method, stop=Stop(tolerance=0.0), watch=Watch(callback=lambda r, control: r.iteration == iteration)
    )
    assert result.status is Status.STOPPED
    assert result.control.space.grid.steps == N
    assert result.value == fresh(result)


# Limits


LIMITS = {
    Status.MAX_ITERATIONS: Stop(0.0, max_iterations=4),
    Status.MAX_WORK: Stop(0.0, max_work=4.0),
    Status.MAX_SECONDS: Stop(0.0, max_seconds=1e-9),
}


@pytest.mark.parametrize(("status", "limit"), LIMITS.items(), ids=[status.name for status in LIMITS])
@every_method
def test_a_limit_is_no_success_and_the_best_control_comes_with_its_value(method, status, limit):
    result = minimize(PROBLEM, N, method, stop=limit)
    assert result.status is status
    assert not result.success
    assert result.value == fresh(result)


# The user's own code


@every_method
def test_an_exception_in_the_dynamics_keeps_its_traceback_and_what_was_reached(method):
    records = []

    def fail(t, x, u):
        if len(records) > 2:
            raise ZeroDivisionError("mine")
        return u - x**3

    watch = Watch(callback=lambda record, control: records.extend([record] * (record.level == 0)))
    with pytest.raises(ZeroDivisionError, match="mine") as caught:
        minimize(cubic(fail), N, method, stop=Stop(tolerance=0.0), watch=watch)
    assert caught.traceback[-1].name == "fail"
    result = caught.value.result
    assert (result.status, result.success) == (Status.EXCEPTION, False)
    assert result.value == fresh(result)


def grab(t, x, u):
    u.clamp_(-0.1, 0.1)
    return u - x**3


def scribble(t, x, u):
    dx = u - x**3
    x.zero_()
    return dx


IN_PLACE = {
    "control": ({"f": grab}, "dynamics: expected .* to leave its arguments unchanged, got u changed"),
    "state": ({"f": scribble}, "dynamics: expected .* to leave its arguments unchanged, got x changed"),
    "cost": (
        {"terminal_cost": lambda x: x.square_().sum()},
        "terminal_cost: expected .* to leave its arguments unchanged, got x changed",
    ),
    "running cost": (
        {"running_cost": lambda t, x, u: u.square_().sum()},
        "running_cost: expected .* to leave its arguments unchanged, got u changed",
    ),
}


@pytest.mark.parametrize(("changes", "message"), IN_PLACE.values(), ids=IN_PLACE.keys())
def test_functions_that_change_their_arguments_are_refused_before_work_begins(changes, message):
    with pytest.raises(ValueError, match=message):
        minimize(cubic(**changes), N, LBFGS())


def late(change):
    """Dynamics that change an argument where nobody looks beforehand."""

    def f(t, x, u):
        dx = u.mean() - x**3
        if t > 0.6:
            change(x, u)
        return dx

    return f


def late_cost(t, x, u):
    cost = x.square().sum()
    if t > 0.6:
        x.mul_(0.5)
    return cost


LATE = {
    "state": ({"f": late(lambda x, u: x.mul_(0.5))}, "dynamics"),
    "control": ({"f": late(lambda x, u: u.zero_())}, "dynamics"),
    "cost": ({"running_cost": late_cost}, "running_cost"),
}


@pytest.mark.parametrize(("changes", "piece"), LATE.values(), ids=LATE.keys())
@pytest.mark.parametrize("integrator", ["euler", "rk4", "crank_nicolson"])
@pytest.mark.parametrize("memory", [StoreAll(), Binomial(2)], ids=str)
@pytest.mark.parametrize("samples", [1, 40])
def test_functions_that_change_their_arguments_later_on_are_named(changes, piece, integrator, memory, samples):
    problem = cubic(**changes, initial_state=X0[:1].expand(samples, -1).clone())
    objective = discretize(problem, N, integrator, memory)
    u = torch.full((N,), 0.1, dtype=torch.float64)
    with pytest.raises(ValueError, match=f"{piece}: expected it to leave its arguments unchanged, got"):
        objective.derivative(u)
    assert torch.equal(u, torch.full((N,), 0.1, dtype=torch.float64)) or piece == "dynamics"


def test_a_run_keeps_what_it_had_before_a_function_changed_its_arguments():
    calls = []

    def f(t, x, u):
        calls.append(t)
        dx = u - x**3
        if len(calls) > 30 * N:
            x.mul_(0.5)
        return dx

    with pytest.raises(ValueError, match="dynamics: expected it to leave its arguments unchanged") as caught:
        minimize(cubic(f), N, GradientDescent(), stop=Stop(tolerance=0.0))
    assert caught.value.result.status is Status.EXCEPTION
    assert caught.value.result.value < discretize(PROBLEM, N).value(torch.zeros(N, dtype=torch.float64))


def test_a_callback_that_changes_the_control_leaves_the_solver_its_own():
    result = minimize(PROBLEM, N, LBFGS(), watch=Watch(callback=lambda record, control: control.flat.zero_() is None))
    assert torch.equal(result.control.flat, minimize(PROBLEM, N, LBFGS()).control.flat)


# Coarse corrections and grids


FINE = LBFGS()


@dataclass(frozen=True)
class Sabotage:
    """L-BFGS on the finest grid; on the coarse ones a step that leads to any place at all."""

    to: float
    fine: LBFGS = FINE

    def init(self, objective, point):
        return self.fine.init(objective, point)

    def step(self, objective, state):
        if not isinstance(objective, ShiftedObjective):
            return self.fine.step(objective, state)
        gradient = objective.space.gradient(state.point.derivative)
        return replace(state, point=objective.at(state.control + self.to * gradient))

    def transport(self, memory, transfer):
        return self.fine.transport(memory, transfer)


@pytest.mark.parametrize("to", [1.0, 1e12, math.nan, math.inf], ids=["ascends", "huge", "NaN", "infinite"])
def test_coarse_corrections_that_lead_astray_are_refused_and_counted_and_the_objective_never_rises(to):
    result = minimize(PROBLEM, N, Cycle(3, Sabotage(to), visits=Always()))
    values = [record.value for record in result.history]
    assert result.status is Status.CONVERGED
    assert result.counts["refused"] > 0
    assert result.counts.get("corrections", 0) == 0
    assert values == sorted(values, reverse=True)
    assert result.value == pytest.approx(minimize(PROBLEM, N, LBFGS()).value, rel=1e-10)


@pytest.mark.parametrize("steps", [1, 2, 3, 7])
def test_any_number_of_steps_has_a_result(steps):
    result = minimize(PROBLEM, steps)
    assert result.status is Status.CONVERGED
    assert result.control.space.grid.steps == steps


@pytest.mark.parametrize("make", [Cycle, Nested, MGOPT])
def test_one_level_is_the_smoother_alone(make):
    one, alone = minimize(PROBLEM, N, make(1)), minimize(PROBLEM, N, LBFGS())
    assert torch.equal(one.control.flat, alone.control.flat)


@pytest.mark.parametrize(("steps", "levels"), [(7, 2), (1, 2), (12, 4)])
@pytest.mark.parametrize("make", [Cycle, Nested, MGOPT])
def test_steps_that_cannot_be_divided_are_refused_with_what_would_do(make, steps, levels):
    with pytest.raises(ValueError, match=rf"levels: {steps} steps can be coarsened by 2 only to .*; use levels="):
        minimize(PROBLEM, steps, make(levels))


# Bounds


@every_method
def test_a_start_outside_its_bounds_is_projected(method):
    problem = cubic(bounds=(-0.2, 0.2), start=torch_start(5.0))
    seen = []
    result = minimize(
        problem,
        N,
        method,
        watch=Watch(callback=lambda r, control: seen.append(control.flat)),
        stop=Stop(max_iterations=50),
    )
    assert torch.equal(seen[0], torch.full((N,), 0.2, dtype=torch.float64))
    assert all(float(flat.abs().max()) <= 0.2 for flat in seen)
    assert float(result.control.flat.abs().max()) <= 0.2


def test_a_lower_bound_above_the_upper_one_is_refused():
    with pytest.raises(ValueError, match="bounds: expected"):
        minimize(cubic(bounds=(0.2, -0.2)), N, LBFGS())


@every_method
def test_equal_bounds_hold_the_control_fixed(method):
    result = minimize(cubic(bounds=(0.1, 0.1)), N, method, stop=Stop(max_iterations=20))
    assert torch.equal(result.control.flat, torch.full((N,), 0.1, dtype=torch.float64))
    assert result.value == fresh(result)


def test_bounds_that_are_equal_at_some_times_hold_the_control_there():
    problem = cubic(bounds=(-1.0, lambda t: -1.0 if t < 0.5 else 1.0))
    result = minimize(problem, N, LBFGS())
    assert result.status is Status.CONVERGED
    assert torch.equal(result.control.flat[: N // 2], torch.full((N // 2,), -1.0, dtype=torch.float64))
