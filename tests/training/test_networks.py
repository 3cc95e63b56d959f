"""Residual networks as control problems, and back."""

import copy
import pickle
import sys
from dataclasses import replace
from math import inf, nan

import pytest
import torch
from torch import nn

from ocp.integrators.integrator import INTEGRATORS
from ocp.objective.reduced import discretize
from ocp.problem.control_problem import ControlProblem
from ocp.problem.costs import CrossEntropy, LeastSquares, Tikhonov
from ocp.problem.equation import OfPart
from ocp.problem.layers import SMOOTH_RELU, TANH, Antisymmetric, Convolution, Dense
from ocp.problem.parameters import Parameter
from ocp.run.minimize import minimize
from ocp.run.stopping import Stop
from ocp.space.control import Control
from ocp.training.networks import from_blocks, from_sequential, residual_network, to_module
from ocp.verification.verify import verify

LABELS = torch.tensor([0, 1, 1, 0, 1])
BLOCKS = {
    "dense": Dense(3, TANH),
    "dense smooth relu": Dense(3, SMOOTH_RELU),
    "module": nn.Sequential(nn.Linear(3, 4), nn.Tanh(), nn.Linear(4, 3, bias=False)),
    "convolution smooth relu": Convolution(2, 3, SMOOTH_RELU),
    "antisymmetric": Dense(3, TANH, Antisymmetric(0.1)),
}


class Block(nn.Module):
    """A residual block with its skip connection."""

    def __init__(self, width, activation=torch.tanh):
        super().__init__()
        self.linear = nn.Linear(width, width)
        self.activation = activation

    def forward(self, x):
        return x + self.activation(self.linear(x))


class Halving(Block):
    def forward(self, x):
        return super().forward(x)[:, ::2]


class Normed(Block):
    """A block with a buffer that is no parameter."""

    def __init__(self, width, mean):
        super().__init__(width)
        self.norm = nn.BatchNorm1d(width).eval()
        self.norm.running_mean.fill_(mean)

    def forward(self, x):
        return super().forward(self.norm(x))


def attention():
    """A transformer layer is a residual block, skip connection included."""
    return nn.TransformerEncoderLayer(4, nhead=2, dim_feedforward=5, dropout=0.0, batch_first=True)


MODELS = {
    "dense blocks": (lambda: nn.Sequential(nn.Linear(2, 4), *(Block(4) for _ in range(3)), nn.Linear(4, 2)), (5, 2)),
    "nothing but blocks": (lambda: nn.Sequential(*(Block(2) for _ in range(3))), (5, 2)),
    "transformer": (
        lambda: nn.Sequential(nn.Linear(2, 4), *(attention() for _ in range(3)), nn.Flatten(), nn.Linear(12, 2)),
        (5, 3, 2),
    ),
}


def network(block, rand):
    """A problem with opening and closing around a block, and a control on three steps."""
    image = isinstance(block, Convolution)
    problem = residual_network(
        rand(5, 1, 4, 4) if image else rand(5, 2),
        CrossEntropy(LABELS),
        block,
        nn.Conv2d(1, 2, 3, padding=1) if image else nn.Sequential(nn.Linear(2, 3), nn.ReLU()),
        nn.Sequential(nn.Flatten(), nn.Linear(32 if image else 3, 2)),
        horizon=2.0,
    )
    space = discretize(problem, steps=3).space
    return problem, Control(space, 0.5 * rand(space.dimension))


def prediction(problem, control, scheme):
    """What the sweep and the closing module predict for the inputs of the problem."""
    x = discretize(problem, control.space.grid.steps, scheme).final_state(control)
    return problem.terminal_cost.module(control.parameters, x)


def close(a, b):
    torch.testing.assert_close(a, b, rtol=1e-12, atol=1e-12)


@pytest.fixture(params=BLOCKS.values(), ids=BLOCKS.keys())
def trained(request, rand):
    """A network and a control, for every kind of block."""
    return network(request.param, rand)


@pytest.fixture(params=MODELS.values(), ids=MODELS.keys())
def model(request):
    """A residual network in torch, and inputs for it."""
    make, shape = request.param
    torch.manual_seed(0)
    return make().double(), torch.randn(*shape, dtype=torch.float64)


def test_the_start_repeats_the_weights_of_the_block_and_holds_those_of_both_ends(rand):
    block, opening, closing = nn.Linear(3, 3).double(), nn.Linear(2, 3).double(), nn.Linear(3, 2).double()
    x = rand(5, 2)
    problem = residual_network(x, CrossEntropy(LABELS), block, opening, closing, horizon=2.0)
    objective = discretize(problem, steps=2)
    state = opening(x)
    state = state + block(state)
    close(prediction(problem, objective.discretization.start(), "euler"), closing(state + block(state)))


@pytest.mark.parametrize("seed", [0, 1])
def test_initial_weights_of_a_layer_come_from_the_generator(rand, seed):
    inputs, cost = rand(5, 3), LeastSquares(rand(5, 3))
    problem = residual_network(inputs, cost, Dense(3), generator=torch.Generator().manual_seed(seed))
    expected = Dense(3).initial(torch.Generator().manual_seed(seed), dtype=torch.float64)
    assert torch.equal(problem.start.flat, expected)
    assert torch.equal(residual_network(inputs, cost, Dense(3)).start.flat, expected) == (seed == 0)


def test_without_opening_and_closing_the_state_is_what_goes_in_and_what_the_cost_sees(rand):
    x, y = rand(5, 3), rand(5, 3)
    problem = residual_network(x, LeastSquares(y), Dense(3))
    objective = discretize(problem, steps=2)
    assert problem.parameter_size == 0
    assert objective.value(torch.zeros(24).double()) == pytest.approx(float((x - y).square().sum() / 10))


def test_integer_inputs_of_an_embedding_get_weights_of_the_default_type():
    opening = nn.Sequential(nn.Embedding(7, 3), nn.Flatten())
    problem = residual_network(torch.tensor([[0], [3], [6], [6], [1]]), CrossEntropy(LABELS), Dense(3), opening)
    objective = discretize(problem, steps=2)
    derivative = objective.derivative(objective.discretization.start())
    assert derivative.dtype == torch.float32
    assert float(derivative[24:].abs().sum()) > 0


def test_control_costs_join_the_problem(rand):
    x = rand(5, 3)
    plain, regular = (
        residual_network(x, CrossEntropy(LABELS), Dense(3), None, None, 1.0, c) for c in (None, Tikhonov(2.0))
    )
    u = rand(24)
    values = [discretize(problem, steps=2).value(u) for problem in (plain, regular)]
    assert values[1] - values[0] == pytest.approx(0.5 * float(u @ u), rel=1e-12)


def test_as_many_euler_steps_as_blocks_are_the_given_network(model):
    net, x = model
    problem = from_sequential(net, x, CrossEntropy(LABELS))
    assert problem.start.space.grid.steps == problem.horizon == 3
    close(prediction(problem, problem.start, "euler"), net(x).detach())


def test_a_network_comes_back_as_it_was_given(model):
    net, x = model
    problem = from_sequential(net, x, CrossEntropy(LABELS))
    module = to_module(problem, problem.start, "euler")
    assert all(map(torch.equal, module.parameters(), net.parameters()))
    close(module(x), net(x))


def test_taking_a_network_leaves_it_as_it_was(model, unchanged):
    net, x = model
    with unchanged(x, *net.parameters()):
        problem = from_sequential(net, x, CrossEntropy(LABELS))
        objective = discretize(problem, steps=6)
        objective.derivative(objective.discretization.start())
        module = to_module(problem, problem.start, "euler")
        nn.functional.cross_entropy(module(x), LABELS).backward()
    assert all(p.grad is None for p in net.parameters())


def test_the_derivative_at_a_given_network_is_that_of_its_own_weights(model):
    net, x = model
    problem = from_sequential(net, x, CrossEntropy(LABELS))
    nn.functional.cross_entropy(net(x), LABELS).backward()
    derivative = discretize(problem, steps=3).derivative(problem.start.flat)
    gradients = torch.cat([p.grad.reshape(-1) for p in net.parameters()])  # opening, blocks, closing
    first, path = problem.initial_state.module.size, 3 * problem.control_size
    expected = torch.cat((gradients[first : first + path], gradients[:first], gradients[first + path :]))
    assert float((derivative - expected).norm()) <= 1e-12 * float(expected.norm())


def test_a_given_network_can_be_continued_on_more_steps_as_the_same_function_of_time(model):
    net, x = model
    objective = discretize(from_sequential(net, x, CrossEntropy(LABELS)), steps=6)
    start = objective.discretization.start()
    assert torch.equal(start.path[::2], start.path[1::2])


def test_the_longest_run_of_blocks_is_taken():
    torch.manual_seed(0)
    short, long = [Block(2), Block(2)], [Block(3) for _ in range(3)]
    net = nn.Sequential(*short, nn.Linear(2, 3), nn.Tanh(), *long, Block(3).linear, Block(3).linear)
    problem = from_sequential(net, torch.rand(5, 2), CrossEntropy(LABELS))
    assert problem.start.space.grid.steps == 3
    assert (problem.initial_state.module.size, problem.terminal_cost.module.size) == (21, 24)


def test_a_sequential_is_taken_as_its_parts_are(rand):
    opening, blocks, closing = nn.Linear(2, 4), [Block(4) for _ in range(3)], nn.Linear(4, 2)
    x, cost = rand(5, 2), CrossEntropy(LABELS)
    whole = from_sequential(nn.Sequential(opening, *blocks, closing).double(), x, cost, Tikhonov(0.1))
    parts = from_blocks(opening, blocks, closing, x, cost, Tikhonov(0.1))
    assert torch.equal(whole.start.flat, parts.start.flat)
    assert whole.control_cost == parts.control_cost == (Tikhonov(0.1),)


def test_the_exported_module_predicts_what_the_sweep_predicts(trained, explicit_scheme):
    problem, control = trained
    module = to_module(problem, control, explicit_scheme)
    close(module(problem.initial_state.inputs), prediction(problem, control, explicit_scheme))


@pytest.mark.parametrize("block", [name for name in BLOCKS if name != "antisymmetric"])
def test_the_weights_of_the_exported_module_have_the_derivative_of_the_control(block, explicit_scheme, rand):
    problem, control = network(BLOCKS[block], rand)
    module = to_module(problem, control, explicit_scheme)
    nn.functional.cross_entropy(module(problem.initial_state.inputs), LABELS).backward()
    parts = (module.blocks, module.opening, module.closing)
    gradient = torch.cat([p.grad.reshape(-1) for part in parts for p in part.parameters()])
    expected = discretize(problem, 3, explicit_scheme).derivative(control)
    assert float((gradient - expected).norm()) <= 1e-12 * float(expected.norm())


def test_an_exported_block_is_that_of_the_user(model):
    net, x = model
    problem = from_sequential(net, x, CrossEntropy(LABELS))
    blocks = [
        part
        for part in to_module(problem, problem.start, "euler").modules()
        if type(part) in (Block, nn.TransformerEncoderLayer)
    ]
    assert len(blocks) == 3
    assert type(blocks[0]) in {type(part) for part in net}


def test_the_exported_module_holds_nothing_of_this_package(trained):
    module = to_module(*trained, "rk4")
    assert {type(part).__module__.split(".")[0] for part in module.modules()} <= {"torch"}
    assert all(p.requires_grad and p.is_leaf for p in module.parameters())


@pytest.mark.parametrize("clone", [copy.deepcopy, lambda m: pickle.loads(pickle.dumps(m))], ids=["copy", "pickle"])
def test_the_exported_module_can_be_copied_and_pickled(trained, clone):
    problem, control = trained
    x, module = problem.initial_state.inputs, to_module(problem, control, "euler")
    assert torch.equal(clone(module)(x), module(x))


@pytest.mark.parametrize(("block", "scheme"), [("convolution smooth relu", "rk4"), ("module", "euler")])
def test_the_saved_module_is_loaded_where_this_package_is_not_installed(block, scheme, rand, tmp_path, monkeypatch):
    problem, control = network(BLOCKS[block], rand)
    x, expected = problem.initial_state.inputs, prediction(problem, control, scheme)
    torch.save(to_module(problem, control, scheme), tmp_path / "saved.pt")
    for name in list(sys.modules):
        if name.split(".")[0] == "ocp":
            monkeypatch.setitem(sys.modules, name, None)  # importing it raises an ImportError
    module = torch.load(tmp_path / "saved.pt", weights_only=False)
    torch.testing.assert_close(module(x), expected, rtol=1e-12, atol=1e-12)
    loss = module(x).square().mean()
    loss.backward()
    torch.optim.SGD(module.parameters(), lr=1e-3).step()
    assert module(x).square().mean() < loss


def test_the_exported_module_keeps_its_weights_when_the_control_changes(rand):
    problem, control = network(BLOCKS["dense"], rand)
    module, x = to_module(problem, control, "euler"), problem.initial_state.inputs
    before = module(x)
    control.flat.zero_()
    assert torch.equal(module(x), before)


def test_without_a_readout_the_exported_module_predicts_the_final_state(rand):
    problem, control = network(BLOCKS["dense"], rand)
    problem = replace(problem, terminal_cost=LeastSquares(rand(5, 3)))
    module = to_module(problem, control, "euler")
    close(module(problem.initial_state.inputs), discretize(problem, 3).final_state(control))


def test_single_precision_stays_single(rand):
    problem, control = network(BLOCKS["dense smooth relu"], lambda *shape: rand(*shape).float())
    module = to_module(problem, control, "rk4")
    assert {p.dtype for p in module.parameters()} == {torch.float32}
    torch.testing.assert_close(module(problem.initial_state.inputs), prediction(problem, control, "rk4"))


@pytest.mark.parametrize("bad", [nan, inf])
@pytest.mark.parametrize(
    "make",
    [
        lambda x: residual_network(x, CrossEntropy(LABELS), Dense(3)),
        lambda x: from_blocks(None, [Block(3)], None, x, CrossEntropy(LABELS)),
        lambda x: from_sequential(nn.Sequential(Block(3), Block(3)), x, CrossEntropy(LABELS)),
    ],
    ids=["residual_network", "from_blocks", "from_sequential"],
)
def test_inputs_that_are_not_finite_are_refused(make, bad):
    x = torch.zeros(5, 3)
    x[3, 1:] = bad
    with pytest.raises(ValueError, match="inputs: expected finite numbers, got 2 of 15 that are NaN or infinite"):
        make(x)


def test_inputs_that_are_no_tensor_are_refused():
    with pytest.raises(TypeError, match="inputs: expected a tensor, got list"):
        residual_network([[1.0]], CrossEntropy(LABELS), Dense(1))


@pytest.mark.parametrize("loss", [nn.CrossEntropyLoss(), lambda x: x.sum()])
def test_a_loss_without_a_derivative_is_refused(rand, loss):
    with pytest.raises(TypeError, match=r"cost: expected CrossEntropy\(labels\), .*, got (CrossEntropyLoss|function)"):
        residual_network(rand(5, 2), loss, Dense(2))


@pytest.mark.parametrize("block", [nn.Tanh(), nn.Linear(2, 2).requires_grad_(False)], ids=["none", "frozen"])
def test_a_block_with_nothing_to_train_is_refused(rand, block):
    with pytest.raises(ValueError, match=r"block: expected one with parameters that require gradients, .* got "):
        residual_network(rand(5, 2), CrossEntropy(LABELS), block)


def half_frozen():
    """Opening, block and closing, each with its weights frozen and its biases free."""
    parts = nn.Linear(2, 3), nn.Sequential(nn.Linear(3, 3), nn.Tanh()), nn.Linear(3, 2)
    for name, parameter in nn.ModuleList(parts).double().named_parameters():
        parameter.requires_grad_("bias" in name)
    return parts


def test_frozen_parameters_are_no_part_of_the_control_and_stay_what_they_are(rand):
    opening, block, closing = half_frozen()
    frozen = [part.weight.clone() for part in (opening, block[0], closing)]
    problem = residual_network(rand(5, 2), CrossEntropy(LABELS), block, opening, closing)
    assert (problem.control_size, problem.parameter_size) == (3, 5)
    assert verify(discretize(problem, 4)).passed
    result = minimize(problem, 4, stop=Stop(max_iterations=5))
    assert result.value < result.history[0].value
    network = to_module(problem, result)
    found = [network.opening.weight, *(network.blocks.get_submodule(f"{k}.0").weight for k in range(4))]
    for weight, expected in zip(
        [*found, network.closing.weight], [frozen[0], *[frozen[1]] * 4, frozen[2]], strict=True
    ):
        assert torch.equal(weight, expected)
        assert not weight.requires_grad
    assert not torch.equal(network.closing.bias, closing.bias)


def test_blocks_whose_frozen_parameters_differ_are_refused(rand):
    blocks = [Block(2).double() for _ in range(2)]
    for block in blocks:
        block.linear.weight.requires_grad_(False)
    with pytest.raises(ValueError, match="blocks: expected blocks that differ in nothing but the parameters that are"):
        from_blocks(None, blocks, None, rand(5, 2), CrossEntropy(LABELS))


def test_a_block_that_is_neither_module_nor_layer_is_refused():
    with pytest.raises(TypeError, match=r"block: expected an nn.Module or a layer of ocp.layers, got function"):
        residual_network(torch.ones(5, 1), CrossEntropy(LABELS), lambda t, x, u: x)


@pytest.mark.parametrize(
    ("blocks", "error", "message"),
    [
        ([], ValueError, "blocks: expected at least one residual block, got none"),
        ([torch.tanh], TypeError, "block 0: expected an nn.Module, got builtin_function_or_method"),
        (
            [Block(3), Block(4)],
            ValueError,
            r"blocks: expected one class and equal parameter shapes, got Block with linear.weight \(3, 3\), "
            r"linear.bias \(3,\) as block 0 and Block with linear.weight \(4, 4\), linear.bias \(4,\) as block 1",
        ),
        ([Block(3), Halving(3)], ValueError, "got Block .* as block 0 and Halving .* as block 1"),
        ([Block(3), Block(3, torch.relu)], ValueError, "got block 1, which with equal parameters is another function"),
        ([Normed(3, 0.0), Normed(3, 1.0)], ValueError, "got block 1, which with equal parameters is another function"),
        ([Halving(3)], ValueError, r"expected outputs of the shape of the state \(5, 3\), got \(5, 2\) from block 0"),
        ([nn.Sequential(Block(3), nn.Dropout())], ValueError, "block 0: expected a deterministic module, got Dropout"),
    ],
    ids=["none", "no module", "shapes", "classes", "activations", "buffers", "output shape", "dropout"],
)
def test_blocks_that_are_not_alike_or_no_blocks_are_refused(blocks, error, message):
    with pytest.raises(error, match=message):
        from_blocks(None, blocks, None, torch.randn(5, 3), CrossEntropy(LABELS))


def test_blocks_whose_buffers_are_equal_are_taken():
    problem = from_blocks(None, [Normed(3, 0.5), Normed(3, 0.5)], None, torch.randn(5, 3), CrossEntropy(LABELS))
    assert problem.start.space.grid.steps == 2


@pytest.mark.parametrize(
    "parts",
    [
        [nn.Linear(3, 3), nn.Tanh(), nn.Linear(3, 3), nn.Tanh()],
        [nn.Linear(3, 3), nn.Tanh(), nn.Tanh()],
        [nn.Linear(3, 4), nn.Linear(4, 3), nn.Linear(3, 4)],
        [Block(3), nn.Linear(3, 4), Block(4)],
        [],
    ],
    ids=["alternating", "no parameters", "changing width", "one of each", "empty"],
)
def test_a_sequential_without_a_run_of_blocks_is_refused(parts):
    names = ", ".join(type(part).__name__ for part in parts)
    with pytest.raises(ValueError, match=f"model: expected at least 2 consecutive residual .* children {names}"):
        from_sequential(nn.Sequential(*parts), torch.rand(5, 3), CrossEntropy(LABELS))


def test_a_model_that_is_no_sequential_is_refused():
    with pytest.raises(TypeError, match=r"model: expected an nn.Sequential, got Block"):
        from_sequential(Block(3), torch.rand(5, 3), CrossEntropy(LABELS))


def test_a_problem_that_is_no_network_is_not_exported(rand):
    _, control = network(BLOCKS["dense"], rand)
    problem = ControlProblem(Dense(3), rand(5, 3), LeastSquares(rand(5, 3)))
    with pytest.raises(TypeError, match="problem: expected a network, whose initial state is an Opening, got Fixed"):
        to_module(problem, control, "euler")


def test_dynamics_that_are_no_layer_are_not_exported(rand):
    problem, control = network(BLOCKS["dense"], rand)
    dynamics = ControlProblem(lambda t, x, u: x, rand(5, 3), Tikhonov(1.0), control_size=12).dynamics
    problem = replace(problem, dynamics=dynamics)
    with pytest.raises(TypeError, match=r"whose dynamics have a method to_module\(u\), got FunctionDynamics"):
        to_module(problem, control, "euler")


class Implicit:
    """Is no scheme at all."""


@pytest.mark.parametrize(
    ("integrator", "error", "message"),
    [
        (Implicit(), TypeError, "integrator: expected an integrator such as .*, got Implicit"),
        ("crank_nicolson", TypeError, "integrator: expected an explicit Runge-Kutta scheme, got crank_nicolson"),
        ("verlet", TypeError, "integrator: expected an explicit Runge-Kutta scheme, got verlet"),
        ("rk5", ValueError, f"integrator: expected one of {', '.join(INTEGRATORS)}, got 'rk5'"),
    ],
    ids=["kind", "implicit", "verlet", "name"],
)
def test_an_integrator_that_is_not_explicit_runge_kutta_is_refused(rand, integrator, error, message):
    with pytest.raises(error, match=message):
        to_module(*network(BLOCKS["dense"], rand), integrator)


def test_a_result_is_exported_with_its_own_scheme(rand):
    problem, _ = network(BLOCKS["dense"], rand)
    result = minimize(problem, 3, integrator="rk4", stop=Stop(max_iterations=3))
    module, x = to_module(problem, result), problem.initial_state.inputs
    assert nn.functional.cross_entropy(module(x), LABELS).item() == pytest.approx(result.value, rel=1e-12)
    assert not torch.allclose(module(x), to_module(problem, result.control, "euler")(x), rtol=1e-6)
    with pytest.raises(ValueError, match="integrator: expected rk4, with which the result was found, got euler"):
        to_module(problem, result, "euler")


def test_a_control_alone_is_not_exported_without_an_integrator(rand):
    with pytest.raises(TypeError, match="integrator: expected the one with which the control was found, got None"):
        to_module(*network(BLOCKS["dense"], rand))


def test_a_result_without_its_control_is_not_exported(rand):
    problem, _ = network(BLOCKS["dense"], rand)
    result = minimize(problem, 3, stop=Stop(max_iterations=0))
    with pytest.raises(ValueError, match="control: expected a result with its control, got none"):
        to_module(problem, replace(result, control=None))


def test_a_control_without_grid_is_refused(rand):
    problem, control = network(BLOCKS["dense"], rand)
    with pytest.raises(TypeError, match="control: expected a Result, or a Control with its grid, got Tensor"):
        to_module(problem, control.flat)


def test_a_control_of_another_problem_is_refused(rand):
    problem, _ = network(BLOCKS["dense"], rand)
    _, other = network(BLOCKS["module"], rand)
    with pytest.raises(
        ValueError, match="control: expected a control with 12 numbers per step and 17 parameters, got 28 and 17"
    ):
        to_module(problem, other, "euler")


@pytest.mark.parametrize("block", [Dense(4), nn.Sequential(nn.Linear(4, 4), nn.Tanh())], ids=["layer", "module"])
@pytest.mark.parametrize("scheme", ["euler", "rk4"])
def test_weights_that_all_steps_share_are_parameters(block, scheme):
    torch.manual_seed(0)
    inputs, cost = torch.rand(5, 3), LeastSquares(torch.rand(5, 2))
    problem = residual_network(inputs, cost, block, nn.Linear(3, 4), nn.Linear(4, 2), horizon=2.0, shared=True)
    assert (problem.control_size, problem.parameter_size) == (0, 16 + 10 + 20)
    objective = discretize(problem, 4, scheme)
    flat = objective.discretization.start().flat
    apart = residual_network(inputs, cost, block, nn.Linear(3, 4), nn.Linear(4, 2), horizon=2.0)
    # The same weights in each step, as controls of their own: the derivatives add up.
    q, w = flat[:26], flat[26:]
    unrolled = discretize(apart, 4, scheme)
    point = unrolled.at(unrolled.space.join(w.expand(4, -1), q))
    here = objective.at(flat)
    assert here.value == pytest.approx(point.value, rel=1e-6)
    expected = torch.cat((unrolled.space.parameters(point.derivative), unrolled.space.path(point.derivative).sum(0)))
    torch.testing.assert_close(here.derivative, expected)
    network = to_module(problem, objective.discretization.start(), scheme)
    assert float(cost(network(inputs), q).detach()) == pytest.approx(here.value, rel=1e-6)
    assert sum(p.numel() for p in network.parameters()) == problem.parameter_size


def test_shared_weights_and_a_free_horizon_are_refused():
    with pytest.raises(ValueError, match="horizon: expected a number for dynamics whose weights all steps share"):
        ControlProblem(
            OfPart(Dense(2)),
            torch.ones(1, 2),
            lambda x: x.sum(),
            parameters={"w": torch.zeros(6)},
            horizon=Parameter(1.0),
        )
