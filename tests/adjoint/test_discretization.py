"""A problem on a grid: where it starts, and what is checked at the boundary."""

from collections.abc import Callable
from dataclasses import dataclass, replace

import pytest
import torch
from torch import nn

from ocp.adjoint.discretization import Discretization
from ocp.integrators.integrator import INTEGRATORS
from ocp.problem.control_problem import ControlProblem
from ocp.problem.costs import CrossEntropy
from ocp.problem.initial_state import Opening
from ocp.problem.layers import Dense
from ocp.problem.modules import FlatModule
from ocp.space.control import Control, ControlSpace
from ocp.space.grid import TimeGrid

PIECES = {
    "dynamics": lambda t, x, u: u - x,
    "initial_state": torch.ones(4, 2, dtype=torch.float64),
    "terminal_cost": lambda x: x.square().sum(),
    "running_cost": lambda t, x, u: u.square().sum(),
    "control_size": 2,
    "horizon": 3.0,
}


def discretization(steps=6, **changes):
    problem = ControlProblem(**{**PIECES, **changes})
    return Discretization(problem, TimeGrid(problem.horizon, steps), INTEGRATORS["euler"])


def start_on(steps, m=2, s=0):
    space = ControlSpace(TimeGrid(3.0, steps), m, s)
    return Control(space, torch.arange(space.dimension, dtype=torch.float64))


def test_its_controls_live_on_its_grid():
    assert discretization(steps=6).space == ControlSpace(TimeGrid(3.0, 6), 2)


def test_on_another_number_of_steps_nothing_else_changes():
    fine = discretization(steps=6)
    assert fine.on(3) == replace(fine, grid=TimeGrid(3.0, 3))


def test_on_some_samples_nothing_else_changes():
    full = discretization(initial_state=torch.eye(4), terminal_cost=CrossEntropy(torch.arange(4)), control_size=4)
    part = full.take(torch.tensor([2, 0]))
    assert (part.grid, part.integrator) == (full.grid, full.integrator)
    assert torch.equal(part.problem.initial_state.x, torch.eye(4)[[2, 0]])


def test_without_a_start_it_starts_at_zero_in_the_type_of_the_state():
    assert torch.equal(discretization().start().flat, torch.zeros(12, dtype=torch.float64))


@pytest.mark.parametrize("steps", [1, 2, 6])
def test_a_coarser_start_is_repeated(steps):
    given = start_on(steps)
    start = discretization(start=given).start()
    assert start.space.grid.steps == 6
    assert torch.equal(start.path, given.path.repeat_interleave(6 // steps, dim=0))


@pytest.mark.parametrize(
    ("given", "expected"),
    [
        (0.5, [[0.5, 0.5]] * 4),
        (torch.tensor([1.0, 2.0]), [[1.0, 2.0]] * 4),
        (torch.tensor([[1, 2], [3, 4]]), [[1.0, 2.0]] * 2 + [[3.0, 4.0]] * 2),
        (lambda t: 8 * t, [[k, k] for k in (1.0, 3.0, 5.0, 7.0)]),
        (lambda t: torch.tensor([8 * t, 0.0]), [[k, 0.0] for k in (1.0, 3.0, 5.0, 7.0)]),
    ],
    ids=["number", "(m,)", "(n, m)", "function", "function of vectors"],
)
def test_a_start_may_be_written_in_short(given, expected):
    start = discretization(4, start=given, horizon=1.0, parameters=1, terminal_cost=lambda x, q: x.sum()).start()
    assert start.path.tolist() == expected
    assert (start.parameters.tolist(), start.flat.dtype) == ([0.0], torch.float64)


@pytest.mark.parametrize(
    ("given", "message"),
    [
        (lambda t: torch.zeros(3), r"start: expected it to be a number, a tensor of shape \(2,\), .* got shape \(3,\)"),
        (lambda t: float("nan"), "start: expected finite numbers, got a function of time that returns NaN"),
        (torch.zeros(3, 2), "start: expected a control on a divisor of 4 steps, got 3 steps"),
    ],
    ids=["shape", "NaN", "steps"],
)
def test_a_start_that_does_not_fit_the_grid_is_refused(given, message):
    with pytest.raises(ValueError, match=message):
        discretization(4, start=given).start()


def test_parameters_of_the_start_pass_unchanged():
    given = start_on(2, s=3)
    start = discretization(start=given, parameters=3, terminal_cost=lambda x, q: x.sum()).start()
    assert torch.equal(start.parameters, given.parameters)


@pytest.mark.parametrize("steps", [4, 12])
def test_a_start_whose_steps_do_not_divide_those_of_the_grid_is_refused(steps):
    with pytest.raises(ValueError, match=f"start: expected a control on a divisor of 6 steps, got {steps} steps"):
        discretization(start=start_on(steps)).start()


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64], ids=str)
def test_without_a_start_an_opening_computes_in_the_type_of_its_inputs(dtype):
    opening = Opening(FlatModule(nn.Linear(3, 2)), torch.ones(4, 3, dtype=dtype))
    network = discretization(
        dynamics=Dense(2),
        control_size=None,
        initial_state=opening,
        parameters=8,
        terminal_cost=lambda x, q: x.sum(),
    )
    network.check()
    assert network.start().flat.dtype == dtype


@pytest.mark.parametrize(
    "changes",
    [
        {},
        {"start": start_on(2)},
        {"running_cost": None},
        {"terminal_cost": None},
        {"parameters": 3, "terminal_cost": lambda x, q: x.sum() * q.sum(), "start": start_on(2, s=3)},
        {"parameters": 3, "terminal_cost": lambda x, q: x.sum() * q.sum()},
        {
            "dynamics": Dense(2),
            "control_size": None,
            "initial_state": Opening(FlatModule(nn.Linear(3, 2)), torch.ones(4, 3)),
            "parameters": 8,
            "terminal_cost": CrossEntropy(torch.tensor([0, 1, 1, 0])),
        },
    ],
    ids=["plain", "start", "no running cost", "no terminal cost", "parameters", "no start", "network"],
)
def test_pieces_that_fit_pass_the_check(changes):
    discretization(**changes).check()


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        (
            {"dynamics": lambda t, x, u: x[:, :1]},
            r"dynamics: .* state \(4, 2\) and of torch.float64, got shape \(4, 1\)",
        ),
        (
            {"dynamics": lambda t, x, u: x.float()},
            r"dynamics: .* of torch.float64, got shape \(4, 2\) of torch.float32",
        ),
        (
            {"terminal_cost": lambda x: x.sum(1)},
            r"terminal_cost: expected a scalar tensor .*, got shape \(4,\) of torch.float64; sum or",
        ),
        ({"terminal_cost": lambda x: 1.0}, r"terminal_cost: expected a scalar tensor of shape \(\), got float"),
        ({"running_cost": lambda t, x, u: u}, r"running_cost: expected a scalar tensor .*, got shape \(2,\)"),
        ({"dynamics": lambda t, x, u: x @ x}, r"dynamics: expected f\(t, x, u\) to take t, x of .*, got RuntimeError"),
        ({"running_cost": lambda t, x, u: 0.0}, r"running_cost: expected a scalar tensor of shape \(\), got float"),
    ],
    ids=["shape", "type", "terminal shape", "terminal number", "running shape", "product", "running number"],
)
def test_a_piece_that_does_not_fit_is_refused(changes, message):
    with pytest.raises(ValueError, match=message):
        discretization(**changes).check()


@dataclass(frozen=True)
class Piece:
    """A dynamics or a cost, whose derivatives are whatever is given."""

    value: Callable
    given: Callable
    control_size: int = 2

    def __call__(self, *arguments):
        return self.value(*arguments)

    def vjp(self, *arguments):
        return self.given(*arguments)

    derivative = vjp

    def jvp(self, t, x, u, dx, du):
        return du - dx


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        (
            {"dynamics": Piece(lambda t, x, u: u - x, lambda t, x, u, p: (-p, p)), "control_size": None},
            r"dynamics: expected vjp\(t, x, u, p\) to return what has the shapes and types of .*, got shape \(4, 2\)",
        ),
        (
            {"running_cost": Piece(lambda t, x, u: u.square().sum(), lambda t, x, u: (0 * x, 2 * u.sum()))},
            r"running_cost: expected derivative\(t, x, u\) to return .*, got .*, shape \(\)",
        ),
        (
            {"terminal_cost": Piece(lambda x, q: x.sum(), lambda x, q: (x[0], q))},
            r"terminal_cost: expected derivative\(x, q\) to return .*, got shape \(2,\)",
        ),
        (
            {"terminal_cost": Piece(lambda x, q: x.sum(), lambda x, q: x)},
            r"terminal_cost: expected derivative\(x, q\) to return .*, got shape \(2,\)",
        ),
    ],
    ids=["vjp", "running cost", "terminal cost", "one tensor for two"],
)
def test_a_derivative_of_the_wrong_shape_is_refused(changes, message):
    with pytest.raises(ValueError, match=message):
        discretization(**changes).check()
