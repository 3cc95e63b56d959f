"""The verification of derivatives: it passes right derivatives and catches wrong ones."""

import json
from dataclasses import dataclass, replace
from math import inf, nan
from typing import Any

import pytest
import torch
from torch import nn

from ocp import (
    LBFGS,
    Control,
    ControlProblem,
    ControlSpace,
    CrossEntropy,
    FunctionDynamics,
    LeastSquares,
    QuadraticRunning,
    Report,
    Stop,
    Tikhonov,
    TimeGrid,
    TimeSmoothness,
    discretize,
    minimize,
    residual_network,
    taylor_test,
    verify,
)
from ocp.adjoint import sweeps
from ocp.adjoint.discretization import Discretization
from ocp.integrators.integrator import INTEGRATORS
from ocp.objective.reduced import ReducedObjective
from ocp.problem.initial_state import StateFunction
from ocp.problem.layers import RELU, SMOOTH_RELU, Antisymmetric, Convolution, Dense
from ocp.run.json_files import write
from ocp.verification.verify import Check, Taylor


def inputs(*shape):
    return torch.linspace(-1, 1, torch.Size(shape).numel(), dtype=torch.float64).sin().reshape(shape)


def module(*layers):
    """Layers with weights that are the same in every run."""
    with torch.random.fork_rng():
        torch.manual_seed(0)
        return nn.Sequential(*(layer() for layer in layers))


def pendulum(dtype=torch.float64):
    def f(t, x, u):
        return torch.stack((x[:, 1], u[0] - torch.sin(x[:, 0]) + t * u[1]), dim=1)

    def terminal(x):
        return (1 - torch.cos(x[:, 0])).mean()

    x = torch.tensor([[1.0, 0.2], [-0.4, 0.1]], dtype=dtype)
    return ControlProblem(f, x, terminal, QuadraticRunning(0.3, 0.2), TimeSmoothness(0.1), 2.0, control_size=2)


def dense_network():
    opening, closing = module(lambda: nn.Linear(2, 3)), module(lambda: nn.Linear(3, 4))
    labels = CrossEntropy(torch.tensor([0, 3, 1, 2, 2]))
    return residual_network(inputs(5, 2), labels, Dense(3), opening, closing, control_cost=Tikhonov(0.1))


def module_network():
    block = module(lambda: nn.Linear(3, 4), nn.Tanh, lambda: nn.Linear(4, 3, bias=False))
    return residual_network(inputs(5, 3), LeastSquares(inputs(5, 3).cos()), block)


def image_network():
    closing = module(nn.Flatten, lambda: nn.Linear(8, 3))
    labels = CrossEntropy(torch.tensor([0, 2]))
    return residual_network(inputs(2, 2, 2, 2), labels, Convolution(2), closing=closing)


def stable_network():
    closing = module(lambda: nn.Linear(3, 2))
    labels = CrossEntropy(torch.tensor([0, 1, 1]))
    layer = Dense(3, weight=Antisymmetric(0.1))
    return residual_network(inputs(3, 3), labels, layer, closing=closing, control_cost=TimeSmoothness(0.1))


def free_start():
    """The initial state is a function of the parameters."""
    return ControlProblem(
        lambda t, x, u: u * x - x**3,
        lambda q: torch.stack((q[0] * q[1], torch.exp(q[1]))).reshape(1, 2),
        lambda x, q: (x - 1).square().sum() + q.square().sum(),
        control_size=1,
        parameters=2,
        start=Control(ControlSpace(TimeGrid(1.0, 1), 1, 2), torch.tensor([0.1, 0.2, 0.3], dtype=torch.float64)),
    )


PROBLEMS = {
    "plain functions": pendulum(),
    "dense layer": dense_network(),
    "module": module_network(),
    "convolution": image_network(),
    "antisymmetric layer": stable_network(),
    "parameters": free_start(),
}
every_problem = pytest.mark.parametrize("problem", PROBLEMS.values(), ids=PROBLEMS.keys())


def failed(report):
    return [check.name for check in report.checks if not check.passed]


@every_problem
@pytest.mark.cover(1)
def test_a_right_derivative_passes(problem, general_scheme):
    report = verify(discretize(problem, 4, general_scheme))
    assert report.passed, str(report)


def test_a_right_derivative_passes_with_verlet():
    def wheel(t, x, u):
        return torch.stack((x[:, 1] ** 3, u[0] - torch.sin(x[:, 0])), dim=1)

    problem = ControlProblem(wheel, inputs(3, 2), lambda x: x.pow(4).sum(), QuadraticRunning(0.3, 0.2), control_size=1)
    report = verify(discretize(problem, 8, "verlet"))
    assert report.passed, str(report)


@every_problem
@pytest.mark.parametrize("steps", [1, 2, 3, 9])
@pytest.mark.cover(1)
def test_a_right_derivative_passes_on_any_grid(problem, steps):
    report = verify(discretize(problem, steps))
    assert report.passed, str(report)


@pytest.mark.parametrize("seed", range(8))
def test_the_verdict_does_not_depend_on_the_directions(seed):
    report = verify(discretize(PROBLEMS["dense layer"], 8), seed=seed)
    assert report.passed, str(report)


def test_directions_are_random_but_the_same_for_the_same_seed():
    objective = discretize(pendulum(), 8)
    one, same, other = (verify(objective, seed=seed) for seed in (1, 1, 2))
    assert one == same
    assert one != other


@every_problem
def test_the_taylor_orders_are_one_two_and_three(problem):
    taylor = verify(discretize(problem, 8)).taylor
    assert taylor.order(taylor.first) == pytest.approx(1, abs=0.1)
    assert taylor.order(taylor.second) == pytest.approx(2, abs=0.1)
    assert taylor.order(taylor.third) == pytest.approx(3, abs=0.1)


@every_problem
def test_a_verification_changes_nothing(problem, unchanged):
    objective = discretize(problem, 8)
    start = objective.discretization.start().flat
    x = objective.discretization.example()[0]
    derivative = objective.derivative(start)
    units = objective.work.units
    with unchanged(start, x, derivative):
        verify(objective, start)
    assert objective.work.units == units
    assert torch.equal(objective.derivative(start), derivative)


@dataclass(frozen=True)
class ScaledDynamics:
    """Dynamics whose transposed derivative is scaled: by state, by control."""

    dynamics: Any
    by_state: float
    by_control: float

    @property
    def control_size(self):
        return self.dynamics.control_size

    def __call__(self, t, x, u):
        return self.dynamics(t, x, u)

    def vjp(self, t, x, u, p):
        px, pu = self.dynamics.vjp(t, x, u, p)
        return self.by_state * px, self.by_control * pu

    def jvp(self, t, x, u, dx, du):
        return self.dynamics.jvp(t, x, u, dx, du)


@dataclass(frozen=True)
class ScaledCost:
    """A cost whose derivative is scaled."""

    cost: Any
    factor: float

    def __call__(self, *arguments):
        return self.cost(*arguments)

    def derivative(self, *arguments):
        derivative = self.cost.derivative(*arguments)
        if isinstance(derivative, tuple):
            return tuple(self.factor * part for part in derivative)
        return self.factor * derivative


@dataclass(frozen=True)
class ScaledState(StateFunction):
    """An initial state whose transposed derivative is scaled."""

    factor: float = 1.0

    def vjp(self, q, p):
        return self.factor * super().vjp(q, p)


def corrupted(problem, piece, factor):
    """The problem with the derivative of one of its pieces scaled."""
    pieces = {
        "by state": lambda: {"dynamics": ScaledDynamics(problem.dynamics, factor, 1.0)},
        "by control": lambda: {"dynamics": ScaledDynamics(problem.dynamics, 1.0, factor)},
        "terminal cost": lambda: {"terminal_cost": ScaledCost(problem.terminal_cost, factor)},
        "running cost": lambda: {"running_cost": ScaledCost(problem.running_cost, factor)},
        "control cost": lambda: {"control_cost": (ScaledCost(problem.control_cost[0], factor),)},
        "initial state": lambda: {"initial_state": ScaledState(problem.initial_state.function, factor=factor)},
    }
    return replace(problem, **pieces[piece]())


PIECES = [
    *((name, piece) for name in PROBLEMS for piece in ("by state", "by control", "terminal cost")),
    ("plain functions", "running cost"),
    ("plain functions", "control cost"),
    ("dense layer", "control cost"),
    ("parameters", "initial state"),
]


@pytest.mark.parametrize("factor", [1.01, 0.99, -1.0, 0.0])
@pytest.mark.parametrize(("name", "piece"), PIECES)
@pytest.mark.cover(1)
def test_a_wrong_derivative_of_a_piece_is_caught(name, piece, factor):
    assert not verify(discretize(corrupted(PROBLEMS[name], piece, factor), 8)).passed


@pytest.mark.parametrize("piece", ["by state", "by control"])
def test_the_report_names_the_dynamics_whose_vjp_is_wrong(piece):
    report = verify(discretize(corrupted(pendulum(), piece, 1.01), 8))
    assert "dynamics: vjp against jvp" in failed(report)


def test_the_report_names_the_initial_state_whose_vjp_is_wrong():
    report = verify(discretize(corrupted(free_start(), "initial state", 1.01), 8))
    assert "initial state: vjp against jvp" in failed(report)


@pytest.mark.parametrize("factor", [1.01, -1.0])
@pytest.mark.parametrize("piece", ["by state", "by control"])
def test_a_wrong_vjp_is_caught_in_single_precision(piece, factor):
    assert not verify(discretize(corrupted(pendulum(torch.float32), piece, factor), 8)).passed


@pytest.mark.parametrize("factor", [1.1, -1.0])
@pytest.mark.parametrize("piece", ["terminal cost", "running cost"])
def test_a_wrong_derivative_of_a_cost_is_caught_in_single_precision(piece, factor):
    x = torch.tensor([[1.0], [0.5]])
    problem = ControlProblem(
        lambda t, x, u: u - x, x, lambda x: x.square().mean(), QuadraticRunning(1.0, 0.5), control_size=1
    )
    assert not verify(discretize(corrupted(problem, piece, factor), 8)).passed


@pytest.mark.parametrize("name", ["plain functions", "dense layer"])
def test_an_adjoint_one_step_off_is_caught(name, monkeypatch):
    right = sweeps.adjoint

    def late(discretization, *rest):
        derivative = right(discretization, *rest)
        path = discretization.space.path(derivative)
        path.copy_(path.roll(1, dims=0))
        return derivative

    monkeypatch.setattr(sweeps, "adjoint", late)
    report = verify(discretize(PROBLEMS[name], 8))
    assert {"Taylor order with the derivative", "adjoint sweep against tangent sweep"} <= set(failed(report))


def test_a_control_cut_off_from_the_derivative_is_caught():
    cut = Discretization(
        ControlProblem(lambda t, x, u: u.detach() - x, inputs(1, 2), lambda x: x.square().sum(), control_size=1),
        TimeGrid(1.0, 8),
        INTEGRATORS["euler"],
    )
    assert "Taylor order with the derivative" in failed(verify(ReducedObjective(cut)))
    with pytest.raises(ValueError, match=r"dynamics: expected operations that autograd can follow, got .* 0 by u"):
        discretize(cut.problem, 8)


@dataclass(frozen=True)
class ScaledObjective:
    """An objective whose derivative is scaled, on all grids alike."""

    objective: Any
    factor: float

    @property
    def space(self):
        return self.objective.space

    @property
    def work(self):
        return self.objective.work

    def at(self, u):
        return ScaledEvaluation(self, self.objective.at(u))

    def on(self, steps):
        return ScaledObjective(self.objective.on(steps), self.factor)

    box = None

    def step_limit(self, u, direction):
        return inf


@dataclass(frozen=True)
class ScaledEvaluation:
    """A scaled objective at one control; it has no second derivative."""

    objective: ScaledObjective
    exact: Any

    @property
    def control(self):
        return self.exact.control

    @property
    def value(self):
        return self.exact.value

    @property
    def derivative(self):
        return self.objective.factor * self.exact.derivative


@pytest.mark.parametrize(("factor", "verdict"), [(1.0, True), (1.5, False), (1.001, False), (-1.0, False), (0, False)])
def test_a_custom_objective_is_judged_by_its_taylor_test(factor, verdict):
    objective = discretize(pendulum(), 8)
    report = verify(ScaledObjective(objective, factor), inputs(16))
    assert report.passed is verdict
    assert ("Taylor order with the derivative" in failed(report)) is not verdict


def test_a_custom_objective_needs_a_control():
    with pytest.raises(TypeError, match=r"objective: expected one, as from discretize\(problem, steps\), got ControlP"):
        verify(pendulum())
    with pytest.raises(ValueError, match="control: expected one"):
        verify(ScaledObjective(discretize(pendulum(), 8), 1.0))


def test_a_control_and_its_flat_tensor_are_verified_alike():
    objective = discretize(pendulum(), 8)
    flat = inputs(16)
    assert verify(objective, flat) == verify(objective, Control(objective.space, flat))


@pytest.mark.parametrize("bad", [nan, inf])
def test_a_control_whose_objective_is_not_finite_is_refused(bad):
    with pytest.raises(ValueError, match="objective: expected a finite value at this control"):
        verify(discretize(pendulum(), 8), torch.full((16,), bad, dtype=torch.float64))


@pytest.mark.parametrize("seed", range(3))
@pytest.mark.cover(1)
def test_single_precision_passes_with_wider_bounds(seed, general_scheme):
    report = verify(discretize(pendulum(torch.float32), 4, general_scheme), seed=seed)
    assert report.passed, str(report)


@pytest.mark.parametrize("tolerance", [1e-4, 1e-8, 1e-12])
def test_a_right_derivative_passes_at_the_optimum_that_a_solve_returns(tolerance):
    problem = pendulum()
    result = minimize(problem, 8, LBFGS(), stop=Stop(tolerance=tolerance))
    report = verify(discretize(problem, 8), result.control)
    assert report.passed, str(report)


def test_a_right_derivative_passes_where_it_is_zero():
    problem = ControlProblem(lambda t, x, u: u - x, inputs(1, 1) * 0, lambda x: x.square().sum(), control_size=1)
    report = verify(discretize(problem, 8), torch.zeros(8, dtype=torch.float64))
    assert report.passed, str(report)


def test_a_linear_objective_has_no_second_order_remainder_and_passes():
    problem = ControlProblem(lambda t, x, u: u - x, inputs(1, 1), lambda x: x.sum(), control_size=1)
    report = verify(discretize(problem, 8))
    assert report.passed, str(report)


HESSIAN = {"symmetry of the Hessian", "Hessian against central difference", "Taylor order with the Hessian"}


@dataclass(frozen=True)
class Bent:
    """A piece whose second derivative is wrong; everything else is right."""

    piece: Any
    factor: float

    def __call__(self, *arguments):
        return self.piece(*arguments)

    def __getattr__(self, name):
        return getattr(object.__getattribute__(self, "piece"), name)

    def hvp(self, *arguments):
        product = self.piece.hvp(*arguments)
        return tuple(self.factor * h for h in product) if isinstance(product, tuple) else self.factor * product


def bent(problem, name, factor):
    """The problem with the second derivative of one of its pieces scaled."""
    piece = getattr(problem, name)
    wrong = tuple(Bent(cost, factor) for cost in piece) if isinstance(piece, tuple) else Bent(piece, factor)
    return replace(problem, **{name: wrong})


@pytest.mark.parametrize("factor", [1.01, 0.99, -1.0, 0.0])
@pytest.mark.parametrize(
    ("name", "piece"),
    [
        *((name, piece) for name in PROBLEMS for piece in ("dynamics", "terminal_cost")),
        ("plain functions", "running_cost"),
        ("plain functions", "control_cost"),
        ("dense layer", "control_cost"),
        ("parameters", "initial_state"),
    ],
)
@pytest.mark.cover(1)
def test_a_wrong_second_derivative_of_a_piece_is_caught(name, piece, factor):
    report = verify(discretize(bent(PROBLEMS[name], piece, factor), 8))
    assert set(failed(report)) == {"Hessian against central difference", "Taylor order with the Hessian"}


def test_a_second_derivative_that_is_not_symmetric_is_caught():
    class Skew(FunctionDynamics):
        def hvp(self, t, x, u, p, dx, du):
            hx, hu = super().hvp(t, x, u, p, dx, du)
            return hx, hu + 0.1 * p[:, 0].sum() * dx[0, 0]

    skew = replace(pendulum(), dynamics=Skew(pendulum().dynamics.function, control_size=2))
    assert set(failed(verify(discretize(skew, 8)))) == HESSIAN


@pytest.mark.parametrize("piece", ["dynamics", "terminal_cost", "running_cost", "control_cost"])
def test_a_piece_without_second_derivative_is_verified_without_the_hessian(piece):
    given = {
        "dynamics": ScaledDynamics(pendulum().dynamics, 1.0, 1.0),
        "terminal_cost": ScaledCost(pendulum().terminal_cost, 1.0),
        "running_cost": ScaledCost(pendulum().running_cost, 1.0),
        "control_cost": (ScaledCost(pendulum().control_cost[0], 1.0),),
    }
    report = verify(discretize(replace(pendulum(), **{piece: given[piece]}), 8))
    assert report.passed, str(report)
    assert not HESSIAN & {check.name for check in report.checks}
    assert report.taylor.third is None


class Once(nn.Module):
    """Differentiated once by autograd."""

    def __init__(self, power):
        super().__init__()
        self.linear, self.power = nn.Linear(2, 2).double(), power

    def forward(self, x):
        return self.power(self.linear(x), 3)


TRANSPOSES = (
    "adjoint sweep against tangent sweep",
    "dynamics: vjp against jvp",
    "one step: pullback against tangent",
    "initial state: vjp against jvp",
)


@pytest.mark.parametrize("place", ["block", "opening"])
def test_only_checks_that_need_a_missing_tangent_are_skipped(place, once_differentiable_power):
    layers = {"block": nn.Linear(2, 2).double(), "opening": nn.Linear(2, 2).double()}
    layers[place] = Once(once_differentiable_power)
    report = verify(discretize(residual_network(inputs(3, 2), LeastSquares(inputs(3, 2).cos()), **layers), 4))
    missing = set(TRANSPOSES[:3]) if place == "block" else {TRANSPOSES[0], TRANSPOSES[3]}
    assert report.passed
    assert {line.rpartition(": expected")[0] for line in report.skipped if "forward mode" in line} == missing
    assert {check.name for check in report.checks} & set(TRANSPOSES) == set(TRANSPOSES) - missing


@pytest.mark.parametrize("activation", [RELU, SMOOTH_RELU], ids=["relu", "smooth relu"])
@pytest.mark.parametrize("samples", [5, 200])
def test_the_hessian_of_a_network_with_kinks_passes(activation, samples):
    x = inputs(samples, 8)
    report = verify(discretize(residual_network(x, LeastSquares(x.cos()), Dense(8, activation)), 16))
    assert {check.name for check in report.checks if check.passed} >= HESSIAN, str(report)


def test_a_wrong_second_derivative_is_caught_among_kinks():
    x = inputs(200, 8)
    problem = residual_network(x, LeastSquares(x.cos()), Dense(8, RELU))
    assert "Hessian against central difference" in failed(verify(discretize(bent(problem, "dynamics", 1.01), 16)))


def test_a_kink_away_from_the_control_passes():
    problem = residual_network(inputs(5, 3), LeastSquares(inputs(5, 3).cos()), Dense(3, RELU))
    report = verify(discretize(problem, 4))
    assert report.checks[2].passed, str(report)


@pytest.mark.parametrize("factor", [1.0, 1.01])
def test_the_report_is_a_table_that_ends_in_the_verdict(factor):
    report = verify(discretize(corrupted(pendulum(), "terminal cost", factor), 8))
    header, rule, *rows, skipped, verdict = str(report).splitlines()
    assert header.split() == ["check", "measured", "expected"]
    assert skipped.startswith("Skipped: Hessian: terminal_cost: expected a method hvp")
    assert set(rule) <= {"-", " "}
    assert [row.split("  ")[0].strip() for row in rows] == [check.name for check in report.checks]
    assert [row.split()[-1] == "pass" for row in rows] == [check.passed for check in report.checks]
    counted = f"{len(failed(report))} of {len(report.checks)} checks FAILED."
    assert verdict == ("All checks passed." if factor == 1 else counted)


@pytest.mark.parametrize("factor", [1.0, 1.01])
def test_the_report_can_be_saved_as_json(factor):
    report = verify(discretize(corrupted(pendulum(), "terminal cost", factor), 8))
    saved = json.loads(json.dumps(report.to_dict(), allow_nan=False))
    assert saved["passed"] is report.passed
    assert [check["name"] for check in saved["checks"]] == [check.name for check in report.checks]
    assert saved["taylor"]["first"] == list(report.taylor.first)


def test_numbers_that_are_not_finite_are_saved_as_null(tmp_path):
    report = Report((Check("order", nan, "2", False),), Taylor((1.0,), (inf,), (nan,), 0.0))
    write(tmp_path / "report.json", report.to_dict())
    saved = json.loads((tmp_path / "report.json").read_text())
    assert saved["checks"][0]["measured"] is None
    assert saved["taylor"]["second"] == [None]


def test_the_remainders_of_the_taylor_test_are_those_of_the_definition():
    objective = discretize(pendulum(), 4)
    u, d = inputs(8), inputs(8).cos()
    taylor = taylor_test(objective.at(u), d)
    e = taylor.steps[3]
    change = objective.value(u + e * d) - objective.value(u)
    assert taylor.first[3] == pytest.approx(abs(change), rel=1e-12)
    assert taylor.second[3] == pytest.approx(abs(change - e * float(objective.derivative(u) @ d)), rel=1e-9)


def test_an_order_is_the_slope_of_the_finest_remainders_above_the_noise():
    steps = tuple(2.0**-k for k in range(8))
    taylor = Taylor(steps, (), (), noise=1e-3)
    early = (9.0, 7.0, *(e**1.5 for e in steps[2:6]), 1e-4, 1e-4)
    assert taylor.order(tuple(7 * e**1.5 for e in steps)) == pytest.approx(1.5)
    assert taylor.order(early) == pytest.approx(1.5)


@pytest.mark.parametrize("remainders", [(), (1.0,), (0.0, 0.0), (nan, inf)])
def test_an_order_that_cannot_be_seen_is_nan(remainders):
    taylor = Taylor(tuple(2.0**-k for k in range(len(remainders))), (), (), noise=0.0)
    assert str(taylor.order(remainders)) == "nan"


def test_an_order_that_cannot_be_seen_is_not_printed_as_a_number():
    problem = ControlProblem(
        lambda t, x, u: u - x, torch.zeros(1, 1).double(), lambda x: x.square().sum(), control_size=1
    )
    report = verify(discretize(problem, 8))
    assert report.passed
    assert "nan" not in str(report)
