"""The solve loop: how runs end, what they return, what they leave behind."""

import math
from dataclasses import dataclass, field, replace
from functools import cache

import pytest
import torch
from ocp.problems import lqr, van_der_pol
from torch import Tensor, nn

from ocp import (
    LBFGS,
    MGOPT,
    Adaptive,
    Always,
    Armijo,
    Batches,
    Control,
    ControlProblem,
    ControlSpace,
    CrossEntropy,
    Cycle,
    Forgetful,
    GradientDescent,
    LeastSquares,
    Nested,
    NewtonCG,
    NonlinearCG,
    QuadraticRunning,
    Result,
    RungeKutta,
    Scheduled,
    SciPy,
    State,
    Status,
    Stop,
    StrongWolfe,
    Target,
    Tikhonov,
    TimeGrid,
    TorchOptimizer,
    Transfer,
    Watch,
    accuracy,
    discretize,
    minimize,
    residual_network,
)
from ocp.adjoint import sweeps
from ocp.objective.evaluation import optimality
from ocp.problem.layers import Dense
from ocp.space.bounds import as_bounds
from ocp.training.networks import to_module

X0 = torch.tensor([[1.0, -0.5]], dtype=torch.float64)


def cubic(**changes):
    """A small problem that is not quadratic."""
    pieces = {
        "dynamics": lambda t, x, u: u - x**3,
        "initial_state": X0,
        "terminal_cost": lambda x: x.square().sum(),
        "running_cost": QuadraticRunning(1.0, 0.5),
        "control_size": 1,
    }
    return ControlProblem(**{**pieces, **changes})


def network(inputs, labels):
    with torch.random.fork_rng():
        torch.manual_seed(0)
        opening, closing = nn.Linear(2, 3), nn.Linear(3, 2)
    return residual_network(inputs, CrossEntropy(labels), Dense(3), opening, closing, control_cost=Tikhonov(1e-3))


def halves(samples, seed):
    """Points of the plane, labeled by the side of a curved line that they are on."""
    inputs = torch.rand(samples, 2, generator=torch.Generator().manual_seed(seed), dtype=torch.float64) * 2 - 1
    return inputs, (inputs[:, 1] > inputs[:, 0] ** 2 - 0.3).long()


TRAINING, VALIDATION = network(*halves(24, seed=0)), network(*halves(40, seed=1))
PROBLEM = cubic()
WILD = TorchOptimizer(torch.optim.SGD, {"lr": 1e200})
DIVERGING = TorchOptimizer(torch.optim.Adam, {"lr": 30.0})


@dataclass(frozen=True)
class Script:
    """A method that visits given controls, whatever the objective; then it cannot go on."""

    path: tuple[Tensor, ...]

    def init(self, objective, point):
        return State(point, 0)

    def step(self, objective, state):
        if state.memory == len(self.path):
            return replace(state, status=Status.NO_DECREASE)
        return replace(state, point=objective.at(self.path[state.memory]), memory=state.memory + 1)

    def transport(self, memory, transfer):
        return memory


def constant(*numbers, steps=4):
    """Controls that are constant in time."""
    return tuple(torch.full((steps,), number, dtype=torch.float64) for number in numbers)


def wells():
    """J = (u^2 - 1)^2 for a constant control u: minima at -1 and 1, and a maximum at 0."""
    return ControlProblem(
        lambda t, x, u: u + 0 * x,
        torch.zeros(1, 1, dtype=torch.float64),
        lambda x: (x.square() - 1).square().sum(),
        control_size=1,
        start=Control(ControlSpace(TimeGrid(1.0, 1), 1), torch.tensor([2.0], dtype=torch.float64)),
    )


def interrupt(record, control):
    if record.iteration == 2:
        raise KeyboardInterrupt


def wrong_adjoint(monkeypatch):
    right = sweeps.adjoint
    monkeypatch.setattr(sweeps, "adjoint", lambda *arguments: -right(*arguments))


ENDINGS = {
    Status.CONVERGED: {"stop": Stop(tolerance=1e-4)},
    Status.TARGET: {"stop": Stop(target=Target("value", 0.9))},
    Status.STOPPED: {"watch": Watch(callback=lambda record, control: record.iteration == 2)},
    Status.MAX_ITERATIONS: {"stop": Stop(max_iterations=2)},
    Status.MAX_WORK: {"stop": Stop(max_work=3.0)},
    Status.MAX_SECONDS: {"stop": Stop(max_seconds=0.0)},
    Status.NOT_FINITE: {"method": WILD},
    Status.INTERRUPTED: {"watch": Watch(callback=interrupt)},
}


@pytest.mark.parametrize(("status", "settings"), ENDINGS.items(), ids=[status.name for status in ENDINGS])
def test_a_run_ends_as_it_says(status, settings):
    result = minimize(PROBLEM, 8, **{"method": LBFGS(), "stop": Stop(tolerance=0.0), **settings})
    assert result.status is status
    assert result.success is (status in (Status.CONVERGED, Status.TARGET))
    assert status.value in result.message
    assert f"{result.history[-1].iteration} iterations" in result.message


@pytest.mark.parametrize("method", [GradientDescent(), NonlinearCG(), LBFGS(), Cycle(2), MGOPT(2)])
def test_a_wrong_derivative_is_called_so(method, monkeypatch):
    wrong_adjoint(monkeypatch)
    result = minimize(PROBLEM, 8, method)
    assert result.status is Status.WRONG_DERIVATIVE
    assert not result.success


@pytest.mark.parametrize("iterations", [0, 3])
def test_the_iteration_limit_is_kept(iterations):
    result = minimize(PROBLEM, 8, LBFGS(), stop=Stop(max_iterations=iterations))
    assert result.history[-1].iteration == iterations


@pytest.mark.parametrize(
    "settings", [{"watch": Watch(every=10)}, {"batches": Batches(3)}], ids=["sparse records", "batches"]
)
def test_the_iteration_limit_holds_between_two_records_too(settings):
    adam = TorchOptimizer(torch.optim.Adam, {"lr": 0.01})
    result = minimize(TRAINING, 4, adam, stop=Stop(max_iterations=5), **settings)
    assert result.history[-1].iteration == 5
    assert result.status is Status.MAX_ITERATIONS


@pytest.mark.parametrize("limit", [2.5, 6.0])
def test_the_work_limit_is_exceeded_by_no_more_than_one_iteration(limit):
    result = minimize(PROBLEM, 8, LBFGS(), stop=Stop(tolerance=0.0, max_work=limit))
    assert result.history[-2].work_units < limit <= result.history[-1].work_units
    assert result.work_units == result.history[-1].work_units


def test_the_iterations_recorded_are_every_one_or_every_so_many():
    each, third = (minimize(PROBLEM, 8, LBFGS(), stop=Stop(max_iterations=6), watch=Watch(every=k)) for k in (1, 3))
    assert [record.iteration for record in each.history] == [0, 1, 2, 3, 4, 5, 6]
    assert [record.iteration for record in third.history] == [0, 3, 6]
    assert torch.equal(each.control.flat, third.control.flat)


METHODS = {
    "L-BFGS": LBFGS(),
    "gradient descent": GradientDescent(StrongWolfe()),
    "conjugate gradients": NonlinearCG(),
    "cycle": Cycle(3),
    "MG/OPT": MGOPT(3),
    "Adam": TorchOptimizer(torch.optim.Adam, {"lr": 0.1}),
}
every_method = pytest.mark.parametrize("method", METHODS.values(), ids=METHODS.keys())


@every_method
@pytest.mark.parametrize("problem", [PROBLEM, TRAINING], ids=["control", "learning"])
def test_the_returned_numbers_are_those_of_a_fresh_evaluation(method, problem):
    result = minimize(problem, 8, method, stop=Stop(max_iterations=20))
    fresh = discretize(problem, 8)
    assert result.value == fresh.value(result.control)
    assert result.derivative_norm == fresh.space.dual_norm(fresh.derivative(result.control))


@every_method
@pytest.mark.parametrize("tolerance", [1e-2, 1e-5, 1e-8])
@pytest.mark.cover(1)
def test_a_run_that_converged_meets_the_tolerance_at_the_control_it_returns(method, tolerance):
    objective = discretize(PROBLEM, 8)
    first = objective.space.dual_norm(objective.derivative(objective.discretization.start()))
    result = minimize(PROBLEM, 8, method, stop=Stop(tolerance=tolerance))
    assert result.status is Status.CONVERGED
    assert result.derivative_norm <= tolerance * max(first, result.history[0].derivative_norm)


def test_a_stationary_point_that_is_worse_than_another_point_is_what_converged():
    """The last control is a maximum, where the derivative is zero; an earlier one has a smaller value."""
    result = minimize(wells(), 4, Script(constant(1.1, 0.0)))
    assert result.status is Status.CONVERGED
    assert result.derivative_norm == 0


@pytest.mark.parametrize("method", [LBFGS(), MGOPT(3)])
@pytest.mark.parametrize(("scheme", "status"), [("euler", Status.UNRESOLVED), ("backward_euler", Status.CONVERGED)])
def test_an_optimum_made_by_an_unstable_scheme_is_no_success(method, scheme, status):
    problem = cubic(
        dynamics=lambda t, x, u: -1e3 * (x - u), terminal_cost=lambda x: x.sum(), running_cost=None, bounds=(-1.0, 1.0)
    )
    assert minimize(problem, 16, method, integrator=scheme).status is status


@pytest.mark.parametrize("bounds", [None, (-5.0, 5.0)])
@pytest.mark.parametrize("method", [LBFGS(), MGOPT(2)])
@pytest.mark.parametrize(("start", "status"), [(0.0, Status.SADDLE), (0.5, Status.CONVERGED)])
def test_a_maximum_is_no_success(method, start, status, bounds):
    problem = cubic(
        dynamics=lambda t, x, u: u + 0 * x,
        initial_state=torch.zeros(1, 1).double(),
        terminal_cost=lambda x: torch.cos(x).sum(),
        running_cost=None,
        start=start,
        bounds=bounds,
    )
    assert minimize(problem, 4, method).status is status


def test_a_state_that_is_not_finite_is_no_success_where_no_cost_sees_it():
    problem = cubic(
        dynamics=lambda t, x, u: torch.stack((u[0] - x[:, 0], torch.sqrt(u[0] - 1).expand(len(x))), dim=1),
        initial_state=torch.ones(1, 2).double(),
        terminal_cost=lambda x: x[:, 0].square().sum(),
        running_cost=None,
    )
    assert minimize(problem, 4, LBFGS()).status is Status.NOT_FINITE


@pytest.mark.parametrize(
    ("threshold", "said"), [(0.9, "value <= 0.9\n"), (0.0, "value <= 0, not reached, but the tolerance was met\n")]
)
def test_what_is_printed_tells_whether_the_target_was_reached(threshold, said):
    assert said in str(minimize(PROBLEM, 8, LBFGS(), stop=Stop(target=Target("value", threshold))))


def test_what_is_printed_tells_of_a_limit_before_the_target():
    result = minimize(PROBLEM, 8, LBFGS(), stop=Stop(target=Target("value", 0.0), max_iterations=2))
    assert "value <= 0, not reached\n" in str(result)


def test_what_is_printed_names_steps_and_scheme():
    assert "8 steps of heun" in str(minimize(PROBLEM, 8, LBFGS(), integrator="heun"))


def test_the_control_returned_has_reached_the_target_of_accuracy():
    """A classifier that is mostly right and very sure of itself has a large value where it is wrong."""
    objective = discretize(TRAINING, 4)
    start = objective.discretization.start().flat
    sure = minimize(TRAINING, 4, LBFGS(), stop=Stop(max_iterations=30)).control.flat.clone()
    objective.space.parameters(sure).mul_(30)
    target = Target("accuracy", accuracy(VALIDATION, Control(objective.space, sure), "euler"))
    assert objective.value(sure) > objective.value(start)
    result = minimize(TRAINING, 4, Script((sure,)), watch=Watch(validation=VALIDATION), stop=Stop(target=target))
    assert result.status is Status.TARGET
    assert result.validation_accuracy >= target.threshold


@pytest.mark.parametrize("method", [MGOPT(4), Nested(4, Forgetful(LBFGS()))], ids=["MG/OPT", "nested"])
def test_a_tolerance_means_the_same_for_methods_that_begin_on_coarse_grids(method):
    """On one step the derivative of this problem is zero at the start: nothing may be measured by it."""
    problem = ControlProblem(
        lambda t, x, u: torch.stack((x[:, 1], u[0] - torch.sin(x[:, 0])), dim=1),
        X0,
        lambda x: (1 - torch.cos(x[:, 0])).sum(),
        running_cost=lambda t, x, u: 0.1 * u.square().sum(),
        control_size=1,
    )
    objective = discretize(problem, 8)
    first = objective.space.dual_norm(objective.derivative(objective.discretization.start()))
    result = minimize(problem, 8, method, stop=Stop(tolerance=1e-3, max_iterations=100))
    assert result.status is Status.CONVERGED
    assert result.derivative_norm <= 1e-3 * first


@pytest.mark.parametrize("method", [DIVERGING, WILD], ids=["Adam", "SGD"])
def test_a_diverging_run_returns_its_best_control(method):
    result = minimize(PROBLEM, 8, method, stop=Stop(max_iterations=20))
    finite = [record.value for record in result.history if math.isfinite(record.value)]
    assert result.value == min(finite)
    assert result.value < result.history[-1].value or math.isnan(result.history[-1].value)


@pytest.mark.parametrize("method", [Nested(3, WILD), MGOPT(3, WILD), Nested(3, DIVERGING)])
def test_a_run_that_diverges_on_a_coarse_grid_returns_a_finite_control(method):
    result = minimize(PROBLEM, 8, method, stop=Stop(max_iterations=4))
    assert result.control.flat.isfinite().all()
    assert math.isfinite(result.value)


def test_a_start_that_is_not_finite_ends_the_run_at_once():
    result = minimize(cubic(dynamics=lambda t, x, u: u / (x * 0)), 8, LBFGS())
    assert result.status is Status.NOT_FINITE
    assert len(result.history) == 1


@pytest.mark.parametrize("method", [MGOPT(2), Nested(2)])
def test_a_finest_grid_without_a_finite_value_is_no_success(method):
    """The dynamics are finite at the nodes of the coarse grid only."""
    problem = cubic(dynamics=lambda t, x, u: u - x / (1.0 if (4 * t).is_integer() else 0.0))
    result = minimize(problem, 8, method)
    assert result.status is Status.NOT_FINITE
    assert not result.success


@pytest.mark.parametrize("method", [MGOPT(2), Nested(2)])
def test_a_tolerance_is_not_measured_by_a_start_without_a_finite_value(method):
    """The dynamics are infinite at 7, which is in the start, but not in its means on the coarse grid."""
    start = Control(ControlSpace(TimeGrid(1.0, 8), 1), torch.tensor([7.0, 5.0] * 4, dtype=torch.float64))
    problem = cubic(dynamics=lambda t, x, u: u - x / (u != 7).double(), start=start)
    result = minimize(problem, 8, method, stop=Stop(tolerance=1e-3, max_iterations=1))
    assert not result.success


@pytest.mark.parametrize("finest", [False, True])
@pytest.mark.parametrize("method", [LBFGS(), Nested(3), Cycle(3)])
def test_looking_is_not_charged(method, finest):
    quiet, watched = (
        minimize(TRAINING, 8, method, stop=Stop(max_iterations=9), watch=watch)
        for watch in (Watch(), Watch(validation=VALIDATION, finest=finest))
    )
    assert [r.work_units for r in watched.history] == [r.work_units for r in quiet.history]
    assert torch.equal(watched.control.flat, quiet.control.flat)


@dataclass(frozen=True)
class Steps:
    """Gradient steps of one length, whose control may be copied before it is evaluated."""

    rate: float
    copied: bool

    def init(self, objective, point):
        return State(point)

    def step(self, objective, state):
        control = state.control - self.rate * objective.space.gradient(state.point.derivative)
        return replace(state, point=objective.at(control.clone() if self.copied else control))

    def transport(self, memory, transfer):
        return memory


@pytest.mark.parametrize(("rate", "down"), [(0.1, True), (3.0, False)], ids=["downhill", "uphill"])
def test_a_method_that_copies_its_controls_pays_one_gradient_a_step_as_one_that_does_not(rate, down):
    four = Stop(max_iterations=4)
    plain, copying = (minimize(PROBLEM, 8, Steps(rate, copied), stop=four) for copied in (False, True))
    assert (plain.history[1].value < plain.history[0].value) is down
    assert plain.work_units == copying.work_units == pytest.approx(5)


def test_the_finest_value_is_that_of_the_prolonged_control():
    seen = []
    problem = cubic()
    minimize(
        problem,
        8,
        Nested(3),
        stop=Stop(max_iterations=9),
        watch=Watch(finest=True, callback=lambda *args: seen.append(args)),
    )
    objective = discretize(problem, 8)
    assert [r.finest_value for r, _ in seen] == [objective.value(control) for _, control in seen]
    assert {r.level for r, _ in seen} == {0, 1, 2}


def test_the_finest_value_is_unknown_where_nobody_looks():
    result = minimize(PROBLEM, 8, Nested(3), stop=Stop(max_iterations=9))
    assert {record.finest_value is None for record in result.history if record.level > 0} == {True}
    assert {record.finest_value == record.value for record in result.history if record.level == 0} == {True}


def test_the_callback_sees_every_record_with_its_control_on_the_finest_grid():
    seen = []
    result = minimize(
        PROBLEM, 8, Nested(2), stop=Stop(max_iterations=8), watch=Watch(callback=lambda *args: seen.append(args))
    )
    assert tuple(record for record, _ in seen) == result.history
    assert {control.space.grid.steps for _, control in seen} == {8}


def test_the_accuracies_are_those_of_the_validation_problem():
    result = minimize(TRAINING, 4, LBFGS(), watch=Watch(validation=VALIDATION), stop=Stop(max_iterations=15))
    assert result.validation_accuracy == accuracy(VALIDATION, result)
    assert result.history[0].validation_accuracy < result.validation_accuracy
    assert result.validation_accuracy > 0.8


def test_a_target_of_accuracy_ends_the_run_when_it_is_reached():
    target = Target("accuracy", 0.8)
    result = minimize(TRAINING, 4, LBFGS(), watch=Watch(validation=VALIDATION), stop=Stop(target=target))
    assert result.status is Status.TARGET
    assert [target.reached(record) for record in result.history].index(True) == len(result.history) - 1


ADAM = TorchOptimizer(torch.optim.Adam, {"lr": 0.02})


@pytest.mark.parametrize("method", [ADAM, Nested(3, ADAM, refine=Scheduled(12)), Cycle(2, ADAM)])
def test_mini_batches_train_and_a_seed_makes_them_reproducible(method):
    one, same, other = (
        minimize(
            TRAINING,
            4,
            method,
            batches=Batches(5, seed),
            watch=Watch(validation=VALIDATION),
            stop=Stop(max_iterations=60),
        )
        for seed in (0, 0, 1)
    )
    assert one.value < 0.7 * discretize(TRAINING, 4).value(discretize(TRAINING, 4).discretization.start())
    assert torch.equal(one.control.flat, same.control.flat)
    assert not torch.equal(one.control.flat, other.control.flat)


def test_mini_batch_runs_are_recorded_once_an_epoch_on_all_samples():
    seen = []
    result = minimize(
        TRAINING,
        4,
        ADAM,
        batches=Batches(5),
        stop=Stop(max_iterations=20),
        watch=Watch(callback=lambda record, control: seen.append(control)),
    )
    assert [record.iteration for record in result.history] == [0, 5, 10, 15, 20]
    assert [record.value for record in result.history] == [discretize(TRAINING, 4).value(u) for u in seen]


def test_mini_batches_require_a_method():
    with pytest.raises(ValueError, match=r"method: mini-batches require a method, such as .*, got None"):
        minimize(TRAINING, 4, batches=Batches(5))


@pytest.mark.parametrize("wrap", [lambda m: m, lambda m: Nested(2, Forgetful(m)), lambda m: MGOPT(2, ADAM, solver=m)])
@pytest.mark.parametrize(
    "method",
    [LBFGS(), NonlinearCG(), GradientDescent(), NewtonCG(), SciPy(), TorchOptimizer(torch.optim.LBFGS)],
    ids=lambda method: type(method).__name__,
)
def test_methods_that_compare_steps_are_refused_with_mini_batches(method, wrap):
    message = rf"method: mini-batches require one such as .*, got {type(method).__name__}, which compares"
    with pytest.raises(ValueError, match=message):
        minimize(TRAINING, 4, wrap(method), batches=Batches(5))


def test_a_batch_of_more_samples_than_there_are_is_refused():
    samples = discretize(TRAINING, 1).work.samples
    with pytest.raises(ValueError, match=f"batches: expected a size of at most the {samples} samples, got 1000"):
        minimize(TRAINING, 4, ADAM, batches=Batches(1000))
    assert minimize(TRAINING, 4, ADAM, batches=Batches(samples), stop=Stop(max_iterations=1)).iterations == 1


def test_the_value_at_the_start_of_mini_batches_is_not_charged():
    """Nested iteration on 1, 2 and 4 steps evaluates the start on the coarsest grid, and compares with the finest."""
    result = minimize(TRAINING, 4, Nested(3, ADAM), batches=Batches(5), stop=Stop(max_iterations=1))
    assert result.history[0].work_units == pytest.approx(1 / 12)


def test_mini_batches_are_charged_by_their_size():
    result = minimize(TRAINING, 4, ADAM, batches=Batches(5), stop=Stop(max_iterations=20))
    assert [record.work_units for record in result.history] == pytest.approx([0, 1, 2, 3, 4])


@dataclass
class Failing:
    """A right-hand side that raises from some call on."""

    calls: int
    error: type = RuntimeError
    made: int = field(default=0)

    def __call__(self, t, x, u):
        self.made += 1
        if self.made > self.calls:
            raise self.error("out of order")
        return u - x**3


def test_an_exception_in_the_middle_of_a_run_carries_what_was_reached():
    failing = Failing(250)

    def once(t, x, u):
        failing.calls = 10**9 if failing.made > 250 else failing.calls
        return failing(t, x, u)

    with pytest.raises(RuntimeError, match="out of order") as caught:
        minimize(cubic(dynamics=once), 8, LBFGS(), stop=Stop(tolerance=0.0))
    result = caught.value.result
    assert result.value == min(record.value for record in result.history)
    assert not result.success


def test_an_exception_that_comes_again_carries_what_was_reached_all_the_same():
    with pytest.raises(RuntimeError, match="out of order") as caught:
        minimize(cubic(dynamics=Failing(400)), 8, LBFGS(), stop=Stop(tolerance=0.0))
    result = caught.value.result
    assert result.value == min(record.value for record in result.history)
    assert result.derivative_norm > 0


def test_an_exception_in_the_callback_carries_what_was_reached():
    def callback(record, control):
        if record.iteration == 3:
            raise LookupError("mine")

    with pytest.raises(LookupError, match="mine") as caught:
        minimize(PROBLEM, 8, LBFGS(), watch=Watch(callback=callback))
    assert caught.value.result.history[-1].iteration == 3


@pytest.mark.parametrize("calls", [400, 90, 60, 45])
def test_an_interrupt_at_any_time_gives_a_result(calls, capsys):
    failing = Failing(calls, KeyboardInterrupt)

    def once(t, x, u):
        failing.calls = 10**9 if failing.made > calls else failing.calls
        return failing(t, x, u)

    result = minimize(cubic(dynamics=once), 8, MGOPT(2), stop=Stop(tolerance=0.0))
    assert result.status is Status.INTERRUPTED
    assert "INTERRUPTED" in str(result)


@pytest.mark.parametrize("steps", [1, 2, 4, 8])
def test_a_start_on_a_coarser_grid_is_prolonged(steps):
    space = ControlSpace(TimeGrid(1.0, steps), 1)
    start = Control(space, torch.arange(steps, dtype=torch.float64))
    result = minimize(PROBLEM, 8, LBFGS(), start=start, stop=Stop(max_iterations=0))
    expected = Transfer(result.control.space, space).prolong(start.flat)
    assert torch.equal(result.control.flat, expected)


def test_a_run_can_go_on_from_the_control_of_another_on_a_finer_grid():
    coarse = minimize(PROBLEM, 8, LBFGS())
    fine = minimize(PROBLEM, 16, LBFGS(), start=coarse.control)
    cold = minimize(PROBLEM, 16, LBFGS())
    assert fine.history[0].value < cold.history[0].value
    assert fine.value == pytest.approx(cold.value, rel=1e-8)


def test_a_solve_leaves_its_start_as_it_was(unchanged):
    start = Control(ControlSpace(TimeGrid(1.0, 8), 1), torch.ones(8, dtype=torch.float64))
    with unchanged(start.flat, X0):
        minimize(PROBLEM, 8, MGOPT(3), start=start, stop=Stop(max_iterations=10))


def test_a_run_is_the_same_every_time():
    one, two = (minimize(TRAINING, 8, MGOPT(3), stop=Stop(max_iterations=15)) for _ in range(2))
    assert torch.equal(one.control.flat, two.control.flat)
    assert [r.value for r in one.history] == [r.value for r in two.history]


def test_nothing_is_printed_where_the_output_is_no_terminal(capsys):
    minimize(PROBLEM, 8, LBFGS(), stop=Stop(max_iterations=3))
    assert capsys.readouterr() == ("", "")


@pytest.mark.parametrize(("progress", "printed"), [(True, True), (False, False)])
def test_the_live_line_can_be_asked_for_or_forbidden(progress, printed, capsys):
    minimize(PROBLEM, 8, LBFGS(), stop=Stop(max_iterations=3), watch=Watch(progress=progress))
    out, err = capsys.readouterr()
    assert out == ""
    assert ("iteration" in err) is printed


def test_the_result_says_what_was_run():
    about = minimize(PROBLEM, 8, LBFGS(pairs=3), integrator="heun", stop=Stop(max_iterations=1)).about
    assert {key: about[key] for key in ("steps", "integrator", "dtype", "device")} == {
        "steps": 8,
        "integrator": "heun",
        "dtype": "float64",
        "device": "cpu",
    }
    assert about["recipe"].startswith("LBFGS(pairs=3")
    assert " at 0x" not in about["recipe"]


@pytest.mark.parametrize(("steps", "grids"), [(16, {1, 2, 4, 8, 16}), (12, {3, 6, 12}), (7, {7})])
def test_the_default_method_solves_a_problem_on_as_many_grids_as_there_are(steps, grids):
    result = minimize(PROBLEM, steps)
    assert result.status is Status.CONVERGED
    assert {record.steps for record in result.history} == grids


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_the_type_of_the_initial_state_is_that_of_the_control(dtype):
    result = minimize(cubic(initial_state=X0.to(dtype)), 8, MGOPT(2), stop=Stop(tolerance=1e-3))
    assert result.control.flat.dtype == dtype
    assert result.about["dtype"] == str(dtype).removeprefix("torch.")
    assert result.status is Status.CONVERGED


MISUSES = {
    "no problem": ({"problem": "pendulum"}, TypeError, "problem: expected a ControlProblem, got str"),
    "no method": ({"method": torch.optim.Adam}, TypeError, "method: expected a method"),
    "the class of a method": ({"method": LBFGS}, TypeError, "method: expected a method"),
    "steps": ({"steps": 0}, ValueError, "steps: expected an integer >= 1, got 0"),
    "integrator": ({"integrator": "leapfrog"}, ValueError, "integrator: expected one of euler"),
    "no integrator": ({"integrator": None}, TypeError, "integrator: expected an integrator such as .*, got NoneType"),
    "the class of an integrator": ({"integrator": RungeKutta}, TypeError, "integrator: .*, got the class RungeKutta"),
    "stop": ({"stop": 1e-6}, TypeError, r"stop: expected Stop\(...\), got float"),
    "watch": ({"watch": print}, TypeError, r"watch: expected Watch\(...\), got builtin"),
    "batches": ({"batches": 32}, TypeError, "batches: expected"),
    "target without validation": (
        {"stop": Stop(target=Target("accuracy", 0.9))},
        ValueError,
        r"target: an accuracy requires watch=Watch\(validation=problem\)",
    ),
    "adaptive steps with batches": (
        {"steps": Adaptive(1e-2), "batches": Batches(1)},
        ValueError,
        "steps: mini-batches require a number of steps, .*, got Adaptive",
    ),
    "adaptive steps with the grids of a method": (
        {"steps": Adaptive(1e-2, first=8), "method": Cycle([8, 4])},
        ValueError,
        "levels: expected numbers of steps that begin with 16",
    ),
    "adaptive steps too few for the levels": (
        {"steps": Adaptive(1e-2, first=6), "method": MGOPT(4)},
        ValueError,
        "levels: 6 steps can be coarsened",
    ),
    "levels": ({"steps": 6, "method": MGOPT(4)}, ValueError, "levels: 6 steps can be coarsened"),
    "start on a finer grid": (
        {"start": Control(ControlSpace(TimeGrid(1.0, 3), 1), torch.zeros(3).double())},
        ValueError,
        "start: expected a control on a divisor of 8 steps",
    ),
    "start of another problem": (
        {"start": Control(ControlSpace(TimeGrid(1.0, 1), 2), torch.zeros(2).double())},
        ValueError,
        "start: expected a control with 1 numbers per step",
    ),
    "a complex cost": (
        {"problem": cubic(terminal_cost=lambda x: (x + 1j).sum())},
        ValueError,
        r"terminal_cost: expected a scalar tensor .*, got shape \(\) of torch.complex128; its real part",
    ),
    "arguments of the dynamics": (
        {"problem": cubic(dynamics=lambda t, x: x)},
        ValueError,
        "dynamics: expected f.t, x, u. to take t, x of shape .*, got TypeError: .* takes 2 positional arguments",
    ),
    "arguments of the cost": (
        {"problem": cubic(terminal_cost=lambda: torch.zeros(()))},
        ValueError,
        "terminal_cost: expected Phi.x. to take x .*, got TypeError: .* takes 0 positional arguments",
    ),
    "arguments of the running cost": (
        {"problem": cubic(running_cost=lambda x, u: u.sum())},
        ValueError,
        "running_cost: expected L.t, x, u. to take t, x of shape .*, got TypeError",
    ),
    "arguments of the initial state": (
        {"problem": cubic(initial_state=lambda: torch.ones(1, 1), parameters=1)},
        ValueError,
        r"initial_state: expected X0.q. to take q of shape .*, got TypeError",
    ),
    "width of the opening": (
        {"problem": residual_network(torch.rand(2, 3), LeastSquares(torch.zeros(2, 4)), Dense(4), nn.Linear(2, 4))},
        ValueError,
        r"opening: expected a module that takes one tensor, .*, got RuntimeError: mat1 and mat2",
    ),
    "shape of the dynamics": (
        {"problem": cubic(dynamics=lambda t, x, u: u)},
        ValueError,
        "dynamics: expected f",
    ),
    "shape of the cost": (
        {"problem": cubic(terminal_cost=lambda x: x.sum(1))},
        ValueError,
        "terminal_cost: expected a scalar",
    ),
}


REFUSED = {
    "tolerance as text": (Stop, {"tolerance": "1e-6"}, ValueError, "tolerance: expected a number >= 0, got '1e-6'"),
    "tolerance": (Stop, {"tolerance": -1e-3}, ValueError, "tolerance: expected a number >= 0"),
    "tolerance NaN": (Stop, {"tolerance": math.nan}, ValueError, "tolerance: expected a number >= 0"),
    "max_work": (Stop, {"max_work": -1.0}, ValueError, "max_work: expected a number >= 0"),
    "max_seconds": (Stop, {"max_seconds": math.nan}, ValueError, "max_seconds: expected a number >= 0"),
    "max_iterations": (Stop, {"max_iterations": -1}, ValueError, "max_iterations: expected"),
    "target": (Stop, {"target": "value=0.1"}, TypeError, "target: expected a Target, got str"),
    "every": (Watch, {"every": 0}, ValueError, "every: expected an integer >= 1, got 0"),
    "callback": (Watch, {"callback": 3}, TypeError, "callback: expected a function of a record and a control, got 3"),
    "validation": (Watch, {"validation": PROBLEM}, ValueError, "validation: expected a problem whose terminal cost"),
    "validation samples": (Watch, {"validation": X0}, TypeError, "validation: expected a ControlProblem, got Tensor"),
}


@pytest.mark.parametrize(("kind", "arguments", "error", "message"), REFUSED.values(), ids=REFUSED.keys())
def test_what_is_stopped_and_watched_by_is_checked_when_it_is_made(kind, arguments, error, message):
    with pytest.raises(error, match=message):
        kind(**arguments)


@pytest.mark.parametrize(("arguments", "error", "message"), MISUSES.values(), ids=MISUSES.keys())
def test_misuse_is_refused_before_work_begins(arguments, error, message):
    with pytest.raises(error, match=message) as caught:
        minimize(**{"problem": PROBLEM, "steps": 8, "method": LBFGS(), **arguments})
    assert not hasattr(caught.value, "result")


def test_a_problem_that_cannot_be_divided_is_refused_before_work_begins():
    class Whole:
        def __call__(self, x, q):
            return x.sum()

        def derivative(self, x, q):
            return torch.ones_like(x), torch.zeros_like(q)

    with pytest.raises(ValueError, match="terminal_cost: expected a piece with a method take") as caught:
        minimize(cubic(terminal_cost=Whole()), 8, ADAM, batches=Batches(1))
    assert not hasattr(caught.value, "result")


def test_accuracy_needs_a_cost_that_knows_one():
    space = ControlSpace(TimeGrid(1.0, 4), 1)
    control = Control(space, torch.zeros(4).double())
    regression = residual_network(X0, LeastSquares(X0), Dense(X0.shape[1]))
    for problem in (PROBLEM, cubic(terminal_cost=LeastSquares(X0)), regression):
        with pytest.raises(ValueError, match="problem: expected a terminal cost with an accuracy"):
            accuracy(problem, control, "euler")


def test_accuracy_is_that_of_the_scheme_of_the_result():
    inputs = torch.linspace(-2.0, 2.0, 200).unsqueeze(1)
    problem = residual_network(inputs, CrossEntropy((inputs[:, 0] > 0.3).long()), Dense(1), closing=nn.Linear(1, 2))
    result = minimize(problem, 2, LBFGS(), integrator="rk4", stop=Stop(max_iterations=5))
    network = to_module(problem, result)
    right = (network(inputs).argmax(1) == problem.terminal_cost.cost.labels).double().mean().item()
    assert accuracy(problem, result) == accuracy(problem, result.control, "rk4") == pytest.approx(right)
    with pytest.raises(ValueError, match="integrator: expected rk4, with which the result was found, got euler"):
        accuracy(problem, result, "euler")
    with pytest.raises(TypeError, match="integrator: expected the one with which the control was found, got None"):
        accuracy(problem, result.control)
    longer = residual_network(inputs, problem.terminal_cost.cost, Dense(1), closing=nn.Linear(1, 2), horizon=2.0)
    with pytest.raises(ValueError, match="control: expected a control on the horizon 2, got 1"):
        accuracy(longer, result)


# Blow-ups


@pytest.fixture
def blowups(monkeypatch):
    """The values that were not finite, as they come."""
    forward, seen = sweeps.forward, []

    def watched(*arguments):
        value = forward(*arguments)
        if not math.isfinite(float(value)):
            seen.append(float(value))
        return value

    monkeypatch.setattr(sweeps, "forward", watched)
    return seen


def explosive():
    """A pendulum with a torque that grows exponentially with the control."""
    return ControlProblem(
        lambda t, x, u: torch.stack((x[:, 1], torch.exp(400 * u[0]) - 1 - torch.sin(x[:, 0])), dim=1),
        torch.tensor([[1.0, 0.0]], dtype=torch.float64),
        lambda x: x.square().sum(),
        running_cost=lambda t, x, u: 0.5 * (400 * u).square().sum(),
        control_size=1,
    )


def reaction(power):
    """A concentration that is used up at a rate of its power; explicit Euler can make it negative."""
    return ControlProblem(
        lambda t, x, u: -40 * u * x**power,
        torch.ones(1, 1, dtype=torch.float64),
        lambda x: 10 * (x - 0.2).square().sum(),
        running_cost=lambda t, x, u: 0.05 * (40 * u).square().sum(),
        control_size=1,
    )


EXPLOSIONS = {"torque": explosive(), "square root": reaction(0.5), "power 1.5": reaction(1.5)}
SAFE = {
    "L-BFGS": LBFGS(),
    "L-BFGS, Armijo": LBFGS(search=Armijo()),
    "gradient descent": GradientDescent(),
    "conjugate gradients": NonlinearCG(),
    "MG/OPT": MGOPT(3),
    "textbook cycles": Cycle(3, visits=Always()),
    "nested": Nested(3, Forgetful(LBFGS())),
}
every_safe = pytest.mark.parametrize("method", SAFE.values(), ids=SAFE.keys())
every_explosion = pytest.mark.parametrize("problem", EXPLOSIONS.values(), ids=EXPLOSIONS.keys())


@every_explosion
@every_safe
@pytest.mark.cover(1)
def test_a_trial_that_blows_up_is_backed_off_and_the_optimum_is_reached(method, problem, blowups):
    result = minimize(problem, 8, method, stop=Stop(tolerance=1e-4, max_iterations=300))
    objective = discretize(problem, 8)
    assert len(blowups) >= 1
    assert result.status is Status.CONVERGED
    assert result.value < 0.7 * objective.value(objective.discretization.start())
    assert result.control.flat.isfinite().all()
    assert all(math.isfinite(record.value) for record in result.history)


@every_explosion
def test_methods_agree_on_the_optimum_of_a_problem_that_blows_up(problem):
    values = [
        minimize(problem, 8, method, stop=Stop(tolerance=1e-5)).value for method in (LBFGS(), NonlinearCG(), MGOPT(3))
    ]
    assert values == pytest.approx([values[0]] * 3, rel=1e-6)


def lonely(number):
    """No control but a constant has a value."""
    return ControlProblem(
        lambda t, x, u: torch.where(u == number, 0.0, math.nan) + u + 0 * x,
        torch.ones(1, 1, dtype=torch.float64),
        lambda x: (x - 3).square().sum(),
        control_size=1,
        start=Control(ControlSpace(TimeGrid(1.0, 1), 1), torch.tensor([number], dtype=torch.float64)),
    )


@every_safe
@pytest.mark.parametrize("number", [0.0, 1.0])
@pytest.mark.cover(1)
def test_where_no_step_has_a_value_the_start_comes_back_without_success(method, number, blowups):
    """Shorter and shorter steps from 1 end at 1 itself, where rounding must not pass for a decrease."""
    result = minimize(lonely(number), 8, method, stop=Stop(max_iterations=20))
    assert result.status is Status.NO_DECREASE
    assert not result.success
    assert torch.equal(result.control.flat, torch.full((8,), number, dtype=torch.float64))
    assert result.value == (number - 2) ** 2
    assert len(blowups) >= 1


# Adaptive steps


METHODS_REFINED = {
    "default": None,
    "L-BFGS": LBFGS(),
    "MG/OPT": MGOPT(3),
    "cycles": Cycle(2, visits=Always()),
    "nested": Nested(3),
    "forgetful nested": Nested(2, Forgetful(LBFGS())),
    "gradient descent": GradientDescent(),
}
every_refined = pytest.mark.parametrize("method", METHODS_REFINED.values(), ids=METHODS_REFINED.keys())
KNOWN = {
    "lqr, euler": (lqr.problem(), "euler", 2e-2),
    "lqr, rk4": (lqr.problem(), "rk4", 1e-4),
    "van der pol, euler": (van_der_pol.problem(), "euler", 3e-2),
    "van der pol, rk4": (van_der_pol.problem(), "rk4", 5e-4),
}


@pytest.mark.parametrize(("study", "integrator", "error"), KNOWN.values(), ids=KNOWN.keys())
@every_refined
@pytest.mark.cover(1)
def test_the_grid_is_refined_until_its_error_is_small_which_it_then_is(method, study, integrator, error):
    result = minimize(study.problem, Adaptive(error, first=8), method, integrator=integrator)
    estimate, true = result.about["discretization_error"], abs(result.value - study.optimum)
    assert result.status is Status.CONVERGED
    assert estimate <= error * abs(result.value)
    assert true / 3 <= estimate <= 3 * true
    assert result.about["steps"] == result.control.space.grid.steps > 8
    assert f"The grid was refined to {result.about['steps']} steps; the estimated relative" in result.message


def refined(method=None, error=1e-2, first=8, limit=4096, **settings):
    return minimize(lqr.problem().problem, Adaptive(error, first, limit), method, **settings)


@pytest.mark.parametrize("method", [None, LBFGS()], ids=["default", "L-BFGS"])
def test_a_first_grid_on_which_states_overflow_is_refined(method):
    """Euler steps of -x^3 from 5 grow unless h < 2 / 5^2."""
    problem = cubic(initial_state=torch.full((1, 1), 5.0).double())
    assert minimize(problem, Adaptive(0.1, first=8, limit=8), method).status is Status.NOT_FINITE
    result = minimize(problem, Adaptive(0.1, first=8), method)
    assert result.status is Status.CONVERGED
    assert result.counts["refused_grids"] > 0
    assert result.value == pytest.approx(1.0753, rel=0.1)  # 512 RK4 steps


def test_a_limit_that_doubling_the_steps_does_not_meet_is_no_mistake():
    assert refined(first=6, limit=100).success


#: One run for each method, for all tests that look at what it found.
refined_by = cache(refined)


@every_refined
def test_the_history_of_a_refined_run_refers_to_the_last_grid(method):
    result = refined_by(method)
    steps = [record.steps for record in result.history]
    work = [record.work_units for record in result.history]
    assert {record.steps * 2**record.level for record in result.history} == {result.about["steps"]}
    assert work == sorted(work)
    assert work[-1] == result.work_units
    assert [record.iteration for record in result.history] == sorted(record.iteration for record in result.history)
    assert steps[-1] == result.about["steps"]


@pytest.mark.parametrize("method", [LBFGS(), GradientDescent()])
def test_the_work_of_a_refined_run_is_counted_in_gradients_on_the_last_grid(method, monkeypatch):
    charged = []

    def counted(call, share):
        def counting(discretization, *rest):
            charged.append(share * discretization.grid.steps)
            return call(discretization, *rest)

        return counting

    monkeypatch.setattr(sweeps, "forward", counted(sweeps.forward, 1 / 3))
    monkeypatch.setattr(sweeps, "adjoint", counted(sweeps.adjoint, 2 / 3))
    monkeypatch.setattr("ocp.run.ending.unresolved", lambda *arguments: "")  # a look, which is not counted
    monkeypatch.setattr("ocp.run.bookkeeping.premature", lambda *arguments: False)
    monkeypatch.setattr("ocp.run.bookkeeping.FINER", 1)
    result = refined(method)
    assert result.work_units == pytest.approx(sum(charged) / result.about["steps"])


@every_refined
def test_the_numbers_of_a_refined_run_are_those_of_a_fresh_evaluation(method):
    result = refined_by(method)
    fresh = discretize(lqr.problem().problem, result.about["steps"])
    assert result.value == fresh.value(result.control)
    assert result.derivative_norm == optimality(fresh.at(result.control))


@every_refined
def test_a_refined_run_begins_where_the_coarser_grid_ended(method):
    """The tolerance is met on three grids; the value after a refinement is not far from the one before."""
    values = {}
    for record in refined_by(method).history:
        values.setdefault(record.steps, []).append(record.value)
    grids = sorted(values)[-2:]
    assert values[grids[1]][0] - values[grids[1]][-1] < 1e-2 * abs(values[grids[0]][-1])


@pytest.mark.parametrize(("first", "limit", "last"), [(8, 16, 16), (8, 31, 16), (8, 8, 8)])
def test_the_grid_is_not_refined_beyond_the_limit_and_that_is_no_success(first, limit, last):
    result = refined(error=1e-6, first=first, limit=limit)
    assert result.status is Status.MAX_STEPS
    assert not result.success
    assert result.about["steps"] == last
    assert Status.MAX_STEPS.value in result.message
    assert "estimated relative discretization error" in result.message


def test_the_error_of_a_grid_is_not_told_of_the_next_one():
    whole = refined(error=1e-6, first=8, limit=32)
    met = next(record.iteration for record in whole.history if record.level == 0)
    result = refined(error=1e-6, first=8, limit=32, stop=Stop(max_iterations=met))
    assert (result.status, result.about["steps"]) == (Status.MAX_ITERATIONS, 32)
    assert "discretization_error" not in result.about
    assert "discretization error" not in result.message


def test_a_start_that_is_optimal_is_a_success_also_at_the_bounds():
    free = minimize(cubic(initial_state=0 * X0), 8, LBFGS())
    held = minimize(cubic(running_cost=lambda t, x, u: u.sum(), bounds=(0.0, 1.0)), 8, LBFGS())
    assert [(result.status, result.iterations) for result in (free, held)] == [(Status.CONVERGED, 0)] * 2


@pytest.mark.parametrize("bounds", [(-0.4, None), (lambda t: -0.5 - 0.2 * t, lambda t: -0.1 * t)])
@pytest.mark.parametrize("method", [LBFGS(), MGOPT(3)])
def test_a_bounded_problem_can_choose_its_grid(method, bounds):
    seen, problem = [], replace(lqr.problem().problem, bounds=as_bounds(bounds))
    adaptive = Adaptive(1e-2, first=8)
    result = minimize(problem, adaptive, method, watch=Watch(callback=lambda record, control: seen.append(control)))
    finer = minimize(problem, 4 * result.about["steps"], LBFGS())
    boxes = {control.space: discretize(problem, control.space.grid.steps).box for control in seen}
    assert result.status is Status.CONVERGED
    assert result.value == pytest.approx(finer.value, rel=2e-2)
    assert all(torch.equal(boxes[control.space].project(control.flat), control.flat) for control in seen)


def test_a_refined_run_is_validated_on_its_grids():
    result = minimize(
        TRAINING, Adaptive(0.1, first=2), LBFGS(), watch=Watch(validation=VALIDATION), stop=Stop(tolerance=1e-2)
    )
    assert result.status is Status.CONVERGED
    assert result.about["steps"] > 2
    assert result.validation_accuracy == accuracy(VALIDATION, result)
    assert all(record.validation_accuracy is not None for record in result.history)


def test_the_callback_sees_every_record_of_a_refined_run_as_it_was_then():
    seen = []
    result = refined(
        LBFGS(), watch=Watch(callback=lambda record, control: seen.append((record, control.space.grid.steps)))
    )
    assert [record.value for record, _ in seen] == [record.value for record in result.history]
    assert [steps for _, steps in seen] == [record.steps for record in result.history]
    assert {record.level for record, _ in seen} == {0}


def after_refinement(action):
    """A callback that acts on the second grid."""

    def callback(record, control):
        return action() if record.steps > 8 else False

    return callback


def stop():
    return True


def interrupt_now():
    raise KeyboardInterrupt


ENDINGS_REFINED = {
    "stop": (Status.STOPPED, {"watch": Watch(callback=after_refinement(stop))}),
    "interrupt": (Status.INTERRUPTED, {"watch": Watch(callback=after_refinement(interrupt_now))}),
    "iterations": (Status.MAX_ITERATIONS, {"stop": Stop(max_iterations=6)}),
    "target": (Status.TARGET, {"stop": Stop(target=Target("value", 0.388))}),
}


@pytest.mark.parametrize(("status", "settings"), ENDINGS_REFINED.values(), ids=ENDINGS_REFINED.keys())
def test_a_refined_run_can_end_early_with_its_result(status, settings):
    result = refined(LBFGS(), error=1e-5, limit=64, **settings)
    assert result.status is status
    assert result.about["steps"] in (16, 32)
    assert math.isfinite(result.value)
    assert result.value == discretize(lqr.problem().problem, result.about["steps"]).value(result.control)


@pytest.mark.parametrize(("max_work", "status"), [(2.0, Status.MAX_WORK), (8.0, Status.MAX_STEPS)])
def test_the_limit_of_work_holds_for_each_grid_of_a_refined_run(max_work, status):
    result = refined(LBFGS(), error=1e-9, limit=64, stop=Stop(max_work=max_work))
    in_first_gradients = result.work_units * result.about["steps"] / 8
    assert result.status is status
    assert (in_first_gradients > 8.0) is (status is Status.MAX_STEPS)


def test_a_callback_that_stops_where_the_tolerance_is_met_is_heard_although_the_grid_is_too_coarse():
    result = refined(LBFGS(), error=1e-5, watch=Watch(callback=lambda record, control: record.derivative_norm < 1e-6))
    assert result.status is Status.STOPPED
    assert result.about["steps"] == 8


def test_an_exception_after_a_refinement_carries_what_was_reached():
    def fail():
        raise LookupError("mine")

    with pytest.raises(LookupError, match="mine") as caught:
        refined(LBFGS(), watch=Watch(callback=after_refinement(fail)))
    assert caught.value.result.history[-1].steps == 16
    assert math.isfinite(caught.value.result.value)


def test_a_number_of_steps_leaves_no_word_of_a_chosen_grid():
    result = minimize(PROBLEM, 8, LBFGS())
    assert "discretization_error" not in result.about
    assert "refined" not in result.message


@pytest.mark.parametrize("limit", [8, 16])
def test_the_result_of_a_refined_run_can_be_saved(limit, tmp_path):
    """With one grid only the error is unknown."""
    result = refined(error=1e-6, first=8, limit=limit)
    saved = Result.load(result.save(tmp_path))
    assert saved.about["discretization_error"] == (None if limit == 8 else result.about["discretization_error"])
    assert saved.status is Status.MAX_STEPS
