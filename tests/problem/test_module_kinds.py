"""Modules as people write them: the derivative is that of a plain loop over real copies, or the module is refused."""

import threading

import numpy as np
import pytest
import torch
from torch import nn
from torch.nn.utils import parametrizations, prune
from torch.utils.checkpoint import checkpoint

import ocp

D, STEPS = torch.float64, 4
TABLEAUS = {"euler": ([[]], [1.0]), "rk4": ([[], [0.5], [0, 0.5], [0, 0, 1.0]], [1 / 6, 1 / 3, 1 / 3, 1 / 6])}


class Block(nn.Module):
    """A linear layer, and what a function does with it."""

    def __init__(self, function):
        super().__init__()
        self.layer, self.function = nn.Linear(3, 3), function

    def forward(self, x):
        return self.function(self.layer, x)


class Scaled(torch.autograd.Function):
    """x W, whose backward reads the weight again."""

    @staticmethod
    def forward(context, x, weight, layer):
        context.save_for_backward(x)
        context.layer = layer
        return x @ weight.T

    @staticmethod
    def backward(context, g):
        return g @ context.layer.weight, g.T @ context.saved_tensors[0], None


class Recurrent(nn.Module):
    def __init__(self, kind):
        super().__init__()
        self.rnn = kind(3, 3, batch_first=True)

    def forward(self, x):
        return self.rnn(x.unsqueeze(1))[0].squeeze(1)


class Attention(nn.Module):
    def __init__(self):
        super().__init__()
        self.attention = nn.MultiheadAttention(3, 1)

    def forward(self, x):
        return self.attention(x, x, x, need_weights=False)[0]


def tied():
    module = nn.Sequential(nn.Linear(3, 3), nn.Tanh(), nn.Linear(3, 3))
    module[2].weight = module[0].weight
    return module


def pruned():
    layer = nn.Linear(3, 3)
    return nn.Sequential(prune.l1_unstructured(layer, "weight", amount=0.5), nn.Tanh())


def repeated():
    layer = nn.Linear(3, 3)
    return nn.Sequential(layer, nn.Tanh(), layer)


def masked():
    layer = nn.Linear(3, 3)
    layer.weight.requires_grad_(False)
    return nn.Sequential(layer, nn.Tanh(), nn.Linear(3, 3))


KINDS = {
    "checkpoint": lambda: Block(lambda layer, x: checkpoint(lambda x: torch.tanh(layer(x)), x, use_reentrant=False)),
    "checkpointed parts": lambda: Block(lambda layer, x: checkpoint(layer, x.tanh(), use_reentrant=False)),
    "backward reads the weight": lambda: Block(lambda layer, x: Scaled.apply(x, layer.weight, layer) + layer.bias),
    "weight norm": lambda: parametrizations.weight_norm(nn.Linear(3, 3)),
    "weight norm by hooks": lambda: nn.utils.weight_norm(nn.Linear(3, 3)),
    "spectral norm": lambda: parametrizations.spectral_norm(nn.Linear(3, 3)).eval(),
    "orthogonal": lambda: parametrizations.orthogonal(nn.Linear(3, 3)),
    "pruned": pruned,
    "tied": tied,
    "repeated": repeated,
    "frozen": masked,
    "LSTM": lambda: Recurrent(nn.LSTM),
    "GRU": lambda: Recurrent(nn.GRU),
    "attention": Attention,
    "encoder": lambda: nn.TransformerEncoderLayer(3, 1, 8, dropout=0.0),
    "dropout of nothing": lambda: nn.Sequential(nn.Linear(3, 3), nn.Dropout(0.0)),
    "evaluated": lambda: nn.Sequential(nn.Linear(3, 3), nn.BatchNorm1d(3), nn.Dropout(0.3)).eval(),
    "backward hook": lambda: Block(lambda layer, x: layer(x)).requires_grad_(),
}


def made(kind):
    torch.manual_seed(0)
    return kind().double()


def plain_loop(modules, tableau, x, y):
    """The loss of a loop over modules that own their parameters, and its derivative by autograd."""
    rows, weights = tableau
    h = 1 / len(modules)
    for module in modules:
        slopes = []
        for row in rows:
            slopes.append(module(x + h * sum((a * k for a, k in zip(row, slopes, strict=True)), 0 * x)))
        x = x + h * sum(b * k for b, k in zip(weights, slopes, strict=True))
    loss = 0.5 * (x - y).square().sum() / len(x)
    loss.backward()
    trained = [p for module in modules for p in module.parameters() if p.requires_grad]
    return loss.item(), torch.cat([p.grad.flatten() for p in trained])


@pytest.mark.filterwarnings("ignore")  # some of these are deprecated, and people have them
@pytest.mark.parametrize("schedule", [ocp.StoreAll(), ocp.Binomial(2)], ids=repr)
@pytest.mark.parametrize("scheme", TABLEAUS)
@pytest.mark.parametrize("kind", KINDS)
def test_value_and_derivative_are_those_of_a_plain_loop(kind, scheme, schedule, rand):
    x, y, module = rand(5, 3), rand(5, 3), made(KINDS[kind])
    problem = ocp.residual_network(x, ocp.LeastSquares(y), module)
    objective = ocp.discretize(problem, STEPS, scheme, schedule)
    u = objective.discretization.start().flat + 0.1 * rand(STEPS * problem.control_size)
    copies = [made(KINDS[kind]) for _ in range(STEPS)]
    for copy, part in zip(copies, u.view(STEPS, -1), strict=True):
        nn.utils.vector_to_parameters(part, [p for p in copy.parameters() if p.requires_grad])
    value, derivative = plain_loop(copies, TABLEAUS[scheme], x, y)
    assert objective.value(u) == pytest.approx(value, rel=1e-13)
    torch.testing.assert_close(objective.derivative(u), derivative, rtol=1e-11, atol=1e-13)


@pytest.mark.filterwarnings("ignore")
@pytest.mark.parametrize("kind", KINDS)
def test_opening_and_closing_may_be_of_any_kind(kind, rand):
    x, y, ends = rand(5, 3), rand(5, 3), (made(KINDS[kind]), made(KINDS[kind]))
    block = nn.Linear(3, 3).double()
    problem = ocp.residual_network(x, ocp.LeastSquares(y), block, *ends)
    objective = ocp.discretize(problem, 1)
    u = objective.discretization.start().flat
    loss = 0.5 * (ends[1]((z := ends[0](x)) + block(z)) - y).square().sum() / 5
    loss.backward()
    expected = [p.grad.flatten() for part in (block, *ends) for p in part.parameters() if p.requires_grad]
    assert objective.value(u) == pytest.approx(loss.item(), rel=1e-13)
    torch.testing.assert_close(objective.derivative(u), torch.cat(expected), rtol=1e-11, atol=1e-13)


@pytest.mark.filterwarnings("ignore")
@pytest.mark.parametrize("kind", KINDS)
def test_a_trained_network_of_any_kind_can_be_exported(kind, rand):
    x, y = rand(5, 3), rand(5, 3)
    problem = ocp.residual_network(x, ocp.LeastSquares(y), made(KINDS[kind]))
    result = ocp.minimize(problem, STEPS, ocp.LBFGS(), stop=ocp.Stop(max_iterations=3))
    network = ocp.network.to_module(problem, result)
    assert 0.5 * (network(x) - y).square().sum().item() / 5 == pytest.approx(result.value, rel=1e-12)


def drop_path(layer, x):
    return layer(x) * (torch.rand(len(x), 1) > 0.1)


def numpy_noise(layer, x):
    return layer(x) * (np.random.rand() > 1e-9)


def writes(layer, x):
    x -= 1.0
    return layer(x)


def writes_unseen(layer, x):
    x.data.mul_(2)
    return layer(x)


def closure():
    block = Block(None)
    block.function = lambda layer, x: block.layer(x)
    return block


class Counting(Block):
    def __init__(self):
        super().__init__(None)
        self.register_buffer("calls", torch.zeros(()))

    def forward(self, x):
        self.calls += 1
        return self.layer(x)


class Hoarding(Block):
    def __init__(self):
        super().__init__(None)
        self.weights = [self.layer.weight]

    def forward(self, x):
        return x @ self.weights[0]


def aliased():
    module = nn.Sequential(nn.Linear(3, 3), nn.Linear(3, 3))
    module[1].weight = nn.Parameter(module[0].weight.data)
    return module


def hooked():
    layer = nn.Linear(3, 3)
    layer.weight.register_hook(lambda g: g.tril())
    return layer


def complex_weights():
    block = Block(lambda layer, x: layer(x) + block.w.real * x)
    block.w = nn.Parameter(torch.randn(3, dtype=torch.cfloat))
    return block


def clipped(layer, x):
    x = 1 * x
    if x.requires_grad:
        x.register_hook(lambda p: p.clamp(-1e-3, 1e-3))
    return layer(x)


REFUSED = {
    "drop path": (lambda: Block(drop_path), "is deterministic"),
    "NumPy's random numbers": (lambda: Block(numpy_noise), "is deterministic"),
    "writes to its input": (lambda: Block(writes), "leaves its input unchanged"),
    "writes unseen": (lambda: Block(writes_unseen), "leaves its input unchanged"),
    "spectral norm": (lambda: parametrizations.spectral_norm(nn.Linear(3, 3)), "leaves its buffers unchanged"),
    "spectral norm by hooks": (lambda: nn.utils.spectral_norm(nn.Linear(3, 3)), "leaves its buffers unchanged"),
    "counts": (Counting, "buffers unchanged, got one that changes calls"),
    "reentrant": (lambda: Block(lambda m, x: checkpoint(m, x, use_reentrant=True)), "autograd.grad can differentiate"),
    "closure": (closure, "no parameters other than its own"),
    "keeps a list of weights": (Hoarding, "keeps copies"),
    "aliases": (aliased, "share no memory, got 0.weight and 1.weight"),
    "detaches": (lambda: Block(lambda m, x: m(x) + 1e-3 * m(x).detach().square()), "that autograd can follow"),
    "clips gradients": (lambda: Block(clipped), "that autograd can follow, got the derivative .* by input"),
    "gradient hook": (hooked, "without gradient hooks"),
    "complex": (complex_weights, "real parameters, got w"),
    "lazy": (lambda: nn.LazyLinear(3), "initialized parameters"),
    "returns a tuple": (lambda: nn.GRU(3, 3), "got a tuple"),
    "two arguments": (lambda: Two(), "takes one tensor"),
    "renormalizes": (lambda: Renormalizing(), "leaves its parameters unchanged"),
}


class Two(nn.Linear):
    def __init__(self):
        super().__init__(3, 3)

    def forward(self, t, x):
        return super().forward(x)


class Renormalizing(nn.Embedding):
    def __init__(self):
        super().__init__(9, 3, max_norm=0.5)

    def forward(self, x):
        return super().forward((x[:, 0].abs() * 3).long().clamp(0, 8))


@pytest.mark.filterwarnings("ignore")
@pytest.mark.parametrize("place", ["block", "opening", "closing"])
@pytest.mark.parametrize("kind", REFUSED)
def test_what_would_be_silently_wrong_is_refused(kind, place, rand):
    make, why = REFUSED[kind]
    torch.manual_seed(0)
    x, parts = rand(5, 3).float(), {place: make()}
    before = x.clone()
    parts.setdefault("block", nn.Linear(3, 3))
    with pytest.raises(ValueError, match=rf"{place}: expected .*{why}"):
        ocp.discretize(ocp.residual_network(x, ocp.LeastSquares(torch.zeros(5, 3)), **parts), 2)
    assert torch.equal(x, before)


@pytest.mark.parametrize("parts", [(0, 1), (0, 2), (1, 2)], ids=["opening", "ends", "closing"])
def test_weights_tied_across_parts_are_refused(parts, rand):
    layers = [nn.Linear(3, 3).double() for _ in range(3)]
    layers[parts[1]].weight = layers[parts[0]].weight
    opening, block, closing = layers
    with pytest.raises(ValueError, match=r"expected parameters of their own, got weight in both"):
        ocp.residual_network(rand(5, 3), ocp.LeastSquares(rand(5, 3)), block, opening, closing)


def test_a_block_that_is_repeated_in_a_model_is_refused(rand):
    class Residual(nn.Linear):
        def forward(self, x):
            return x + torch.tanh(super().forward(x))

    block = Residual(3, 3).double()
    with pytest.raises(ValueError, match=r"expected parameters of their own"):
        ocp.network.from_sequential(nn.Sequential(block, block, block), rand(5, 3), ocp.LeastSquares(rand(5, 3)))


def test_a_module_may_be_trained_elsewhere_meanwhile(rand):
    block = nn.Sequential(nn.Linear(3, 3), nn.Tanh(), nn.Dropout(0.5)).double().eval()
    objective = ocp.discretize(ocp.residual_network(rand(5, 3), ocp.LeastSquares(rand(5, 3)), block), STEPS)
    u = objective.discretization.start().flat
    before = objective.value(u)
    block.train()
    with torch.no_grad():
        block[0].weight.zero_()
    assert objective.value(u) == before


def test_threads_may_share_a_module(rand):
    block = nn.Sequential(*(part for _ in range(4) for part in (nn.Linear(3, 3), nn.Tanh()))).double()
    problems = [ocp.residual_network(rand(5, 3), ocp.LeastSquares(rand(5, 3)), block, horizon=2.0) for _ in range(2)]
    problems.append(problems[0])  # also a problem
    controls = [rand(8 * problems[0].control_size) for _ in problems]
    objectives = [ocp.discretize(problem, 8) for problem in problems]
    alone = [o.derivative(u) for o, u in zip(objectives, controls, strict=True)]
    wrong = []

    def work(objective, u, expected):
        for _ in range(20):
            if not torch.equal(objective.derivative(u), expected):
                wrong.append(u)

    threads = [threading.Thread(target=work, args=a) for a in zip(objectives, controls, alone, strict=True)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert not wrong
