"""Sweeps as graphs. Without a GPU: that a sweep asks for no number, and that its operations alone can be replayed."""

import copy

import pytest
import torch
from torch import nn
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves

from ocp.adjoint import paths
from ocp.adjoint.cuda import graphs
from ocp.adjoint.discretization import Discretization
from ocp.adjoint.paths import choose
from ocp.adjoint.schedules import Binomial, StoreAll
from ocp.adjoint.staged import Staged
from ocp.adjoint.sweeps import adjoint, forward
from ocp.integrators.integrator import INTEGRATORS
from ocp.objective.reduced import discretize
from ocp.problem.control_problem import ControlProblem
from ocp.problem.costs import CrossEntropy, LeastSquares, QuadraticRunning, Tikhonov, TimeSmoothness
from ocp.problem.layers import RELU, SMOOTH_RELU, Antisymmetric, Convolution, Dense
from ocp.space.grid import TimeGrid
from ocp.training.networks import residual_network

STEPS = 6
BOTH = (Tikhonov(1e-2), TimeSmoothness(1e-3))


class Recorded(TorchDispatchMode):
    """The operations of a function on the tensors it had: what a graph is, for a CPU.

    A device does nothing while it is recorded. Here it has been done, so the first replay has nothing to do.
    """

    def __init__(self):
        super().__init__()
        self.operations, self.fresh = [], True

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        result = func(*args, **(kwargs or {}))
        self.operations.append((func, args, kwargs or {}, result))
        return result

    @torch.no_grad()
    def replay(self):
        operations, self.fresh = [] if self.fresh else self.operations, False
        for func, args, kwargs, result in operations:
            for old, new in zip(tree_leaves(result), tree_leaves(func(*args, **kwargs)), strict=True):
                if old is not None and old.data_ptr() != new.data_ptr():  # neither a view nor written in place
                    old.copy_(new)


def capture(function):
    with Recorded() as graph:
        result = function()
    return graph.replay, result


def classifier(block, samples=5):
    generator = torch.Generator().manual_seed(2)
    inputs = torch.randn(samples, 3, generator=generator, dtype=torch.float64)
    loss = CrossEntropy(torch.arange(samples) % 2)
    return residual_network(inputs, loss, block, nn.Linear(3, 4), nn.Linear(4, 2), control_cost=BOTH)


def regression(block, shape, running=None):
    generator = torch.Generator().manual_seed(2)
    x, target = (torch.randn(5, *shape, generator=generator, dtype=torch.float64) for _ in range(2))
    return ControlProblem(block, x, LeastSquares(target), running, BOTH)


#: Problems whose sweeps never ask for a number, and the scheme of each.
SILENT = {
    "opening and closing": (classifier(Dense(4)), "euler"),
    "antisymmetric": (classifier(Dense(4, RELU, Antisymmetric(0.1))), "rk4"),
    "running cost": (regression(Dense(3, SMOOTH_RELU), (3,), QuadraticRunning(0.3, 0.2, 0.1)), "midpoint"),
    "convolution": (regression(Convolution(2), (2, 4, 3)), "heun"),
    "a wide layer": (regression(Dense(64), (64,)), "euler"),
}
#: Running costs that do.
ASKING = {
    "a cost that branches": lambda t, x, u: x.square().sum() if float(x.detach().sum()) < 1e9 else x.sum(),
    "a cost of some entries": lambda t, x, u: x[x > 0].sum(),
    "a cost that counts": lambda t, x, u: x.sum() / len(torch.nonzero(x)),
}
each_silent = pytest.mark.parametrize(("problem", "scheme"), SILENT.values(), ids=SILENT.keys())


def on_grid(problem, scheme):
    """A discretization, and a control."""
    discretization = Discretization(problem, TimeGrid(1.0, STEPS), INTEGRATORS[scheme])
    generator = torch.Generator().manual_seed(3)
    return discretization, torch.randn(discretization.space.dimension, generator=generator, dtype=torch.float64)


def room(discretization, control):
    space = discretization.space
    x = discretization.problem.initial_state(space.parameters(control))
    return paths.choose(discretization, StoreAll(), x, space.path(control)[0])


@pytest.fixture
def as_on_a_device(monkeypatch):
    """Sweeps that record graphs on a CPU, too; the list of those they have recorded."""
    recorded = []

    def counted(function):
        recorded.append(function)
        return capture(function)

    def graphed(*arguments):
        tape = choose(*arguments)
        return graphs.Graphed(tape) if isinstance(tape, Staged) else tape

    monkeypatch.setattr(graphs, "capture", counted)
    monkeypatch.setattr(paths, "choose", graphed)
    return recorded


def moved(piece, convert):
    """A piece of a problem, with everything in it, with other tensors."""
    if isinstance(piece, torch.Tensor):
        return convert(piece)
    if not hasattr(piece, "__dataclass_fields__"):
        return piece
    other = copy.copy(piece)
    for name, value in vars(piece).items():
        object.__setattr__(other, name, moved(value, convert))
    return other


@each_silent
@pytest.mark.parametrize("device", ["cpu", "meta"])
def test_a_sweep_asks_for_no_number_and_stays_on_its_device(problem, scheme, device):
    """Tensors of the device ``meta`` have no numbers: it would be an error to ask for one."""
    discretization, control = on_grid(moved(problem, lambda tensor: tensor.to(device)), scheme)
    control = control.to(device)
    steps = room(discretization, control)
    assert not graphs.waits(lambda: forward(discretization, control, steps))[1]
    assert not graphs.waits(lambda: adjoint(discretization, control, steps))[1]


@pytest.mark.parametrize(
    "function",
    [
        lambda x: x * float(x.sum()),
        lambda x: x[x > 0],
        lambda x: torch.nonzero(x),
        lambda x: x + torch.equal(x, x),
        lambda x: x if torch.allclose(x, x) else -x,
        lambda x: x.to("meta"),
    ],
    ids=["item", "mask", "nonzero", "equal", "allclose", "another device"],
)
def test_a_function_that_waits_is_seen(function):
    assert graphs.waits(lambda: function(torch.ones(3)))[1]


@each_silent
def test_operations_that_are_replayed_give_the_value_and_the_derivative_of_another_control(
    problem, scheme, as_on_a_device, rand
):
    discretization, control = on_grid(problem, scheme)
    steps = room(discretization, control)
    controls = [control + 0.1 * rand(len(control)) for _ in range(5)]
    found = [(forward(discretization, u, steps), adjoint(discretization, u, steps)) for u in controls]
    plain = choose(discretization, StoreAll(), steps.states[0], discretization.space.path(control)[0])
    expected = [(forward(discretization, u, plain), adjoint(discretization, u, plain)) for u in controls]
    assert len(as_on_a_device) == 2
    torch.testing.assert_close(found, expected, rtol=1e-14, atol=1e-15)


@each_silent
def test_states_and_hessian_products_are_there_after_a_replay(problem, scheme, as_on_a_device, rand, monkeypatch):
    objective, u = discretize(problem, STEPS, scheme), on_grid(problem, scheme)[1]
    for k in range(4):
        objective.derivative(u + 0.1 * k)
    v, d = u + 1.0, rand(len(u))
    objective.value(v)
    before = objective.trajectory(v).x
    objective.derivative(v)
    found = objective.trajectory(v), objective.hessian_product(v, d)
    monkeypatch.undo()
    plain = discretize(problem, STEPS, scheme)
    assert len(as_on_a_device) == 2
    torch.testing.assert_close(before, plain.trajectory(v).x, rtol=0, atol=1e-14)
    torch.testing.assert_close(found[0].x, plain.trajectory(v).x, rtol=0, atol=1e-14)
    torch.testing.assert_close(found[1], plain.hessian_product(v, d), rtol=1e-12, atol=1e-12)


def test_batches_share_the_graphs_of_their_steps(as_on_a_device, rand):
    whole = discretize(classifier(Dense(4), 10), STEPS)
    u = rand(whole.space.dimension)
    batches = [whole.take(torch.arange(k, k + 5)) for k in (0, 5)]
    found = [batch.derivative(u + 0.1 * k) for k in range(4) for batch in batches]
    plain = [discretize(batch.discretization.problem, STEPS) for batch in batches]
    assert len(as_on_a_device) == 2
    expected = [objective.derivative(u + 0.1 * k) for k in range(4) for objective in plain]
    torch.testing.assert_close(found, expected, rtol=0, atol=0)


def test_a_batch_with_another_running_cost_is_recorded_anew(as_on_a_device, rand):
    running = QuadraticRunning(target=rand(10, 3))
    whole = discretize(ControlProblem(Dense(3), rand(10, 3), running_cost=running), STEPS)
    u = rand(whole.space.dimension)
    batches = [whole.take(torch.arange(k, k + 5)) for k in (0, 5)]
    found = [[batch.derivative(u + 0.1 * k) for k in range(4)] for batch in batches]
    assert len(as_on_a_device) == 4
    plain = [discretize(batch.discretization.problem, STEPS) for batch in batches]
    expected = [[objective.derivative(u + 0.1 * k) for k in range(4)] for objective in plain]
    torch.testing.assert_close(found, expected, rtol=0, atol=0)


@pytest.mark.parametrize("cost", ASKING.values(), ids=ASKING.keys())
def test_a_sweep_that_asks_for_numbers_is_never_recorded(cost, as_on_a_device, rand):
    objective = discretize(ControlProblem(Dense(3), rand(5, 3), running_cost=cost), STEPS)
    u = rand(objective.space.dimension)
    found = [objective.derivative(u + k) for k in range(4)]
    assert as_on_a_device == []
    plain = discretize(objective.discretization.problem, STEPS)
    assert all(torch.equal(a, plain.derivative(u + k)) for k, a in enumerate(found))


def test_a_capture_that_fails_is_not_tried_again(as_on_a_device, monkeypatch, rand):
    tried = []

    def fail(function):
        tried.append(function)
        raise RuntimeError("operation not permitted when stream is capturing")

    monkeypatch.setattr(graphs, "capture", fail)
    objective, u = discretize(regression(Dense(3), (3,)), STEPS), rand(STEPS * 12)
    found = [objective.derivative(u + k) for k in range(6)]
    assert len(tried) == 2
    plain = discretize(objective.discretization.problem, STEPS)
    assert all(torch.equal(a, plain.derivative(u + k)) for k, a in enumerate(found))


@pytest.mark.parametrize(
    ("block", "schedule"), [(nn.Linear(3, 3), StoreAll()), (Dense(3), Binomial(2))], ids=["tapes", "a schedule"]
)
def test_what_remembers_otherwise_takes_its_steps_as_ever(block, schedule, as_on_a_device, rand):
    objective = discretize(
        regression(block.double() if isinstance(block, nn.Module) else block, (3,)), STEPS, "euler", schedule
    )
    u = rand(objective.space.dimension)
    assert all(bool(objective.derivative(u + k).isfinite().all()) for k in range(4))
    assert as_on_a_device == []


@pytest.mark.gpu
@pytest.mark.filterwarnings("ignore:TRITON_DEFAULT_FP_FUSION")
@each_silent
def test_on_a_gpu_graphs_give_values_and_derivatives_of_a_cpu(problem, scheme, rand, monkeypatch):
    monkeypatch.setenv("OCP_CUDA_FAST_PATHS", "1")
    expected = discretize(problem, STEPS, scheme)
    objective = discretize(moved(problem, torch.Tensor.cuda), STEPS, scheme)
    controls = [0.5 * rand(objective.space.dimension) for _ in range(5)]
    found = [(objective.value(u.cuda()), objective.derivative(u.cuda()).cpu()) for u in controls]
    torch.testing.assert_close(found, [(expected.value(u), expected.derivative(u)) for u in controls])
