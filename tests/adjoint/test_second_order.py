"""Second derivatives: pieces that have none, or wrong ones, are named before any is needed."""

import pytest
import torch
from torch import nn

from ocp import Control, ControlProblem, ControlSpace, LeastSquares, TimeGrid, discretize, residual_network
from ocp.problem.costs import RunningFunction

X = torch.tensor([[0.3, -0.5], [0.1, 0.7], [-0.2, 0.4]], dtype=torch.float64)


class Cut(torch.autograd.Function):
    """x^2; the tape of its derivative leads back to the cotangent alone."""

    @staticmethod
    def forward(ctx, x):
        ctx.save_for_backward(x)
        return x**2

    @staticmethod
    def backward(ctx, p):
        return 2 * ctx.saved_tensors[0].detach() * p


class Layer(nn.Module):
    def __init__(self, square):
        super().__init__()
        self.linear, self.square = nn.Linear(2, 2), square

    def forward(self, x):
        return torch.tanh(x) + 0.1 * self.square(self.linear(x))


def network(dtype, shared=False, **layers):
    torch.manual_seed(0)
    layers = {"block": nn.Linear(2, 2), **{name: Layer(square) for name, square in layers.items()}}
    layers = {name: layer.to(dtype) for name, layer in layers.items()}
    return residual_network(X.to(dtype), LeastSquares(X.cos().to(dtype)), shared=shared, **layers)


def functions(dtype, f=torch.square, L=torch.square, Phi=torch.square, X0=torch.square):
    return ControlProblem(
        lambda t, x, u: u - 0.1 * f(x) * t - x,
        lambda q: X0(q) + X.to(q) * q,
        lambda x, q: Phi(x).mean() + q.square().sum(),
        lambda t, x, u: (x * L(u)).mean() + u.sin().sum(),
        control_size=2,
        parameters=2,
        start=Control(ControlSpace(TimeGrid(1.0, 1), 2, 2), torch.tensor([0.2, -0.1, 0.3, 0.4], dtype=dtype)),
    )


def cases(square):
    return {
        "dynamics": lambda dtype: functions(dtype, f=square),
        "running_cost": lambda dtype: functions(dtype, L=square),
        "terminal_cost": lambda dtype: functions(dtype, Phi=square),
        "initial_state": lambda dtype: functions(dtype, X0=square),
        "dynamics (module)": lambda dtype: network(dtype, block=square),
        "dynamics (shared)": lambda dtype: network(dtype, shared=True, block=square),
        "initial_state (module)": lambda dtype: network(dtype, opening=square),
        "terminal_cost (module)": lambda dtype: network(dtype, closing=square),
    }


@pytest.mark.parametrize(("kind", "dtype"), [("once", torch.float32), ("cut", torch.float64)])
@pytest.mark.parametrize("name", cases(None))
def test_a_piece_that_autograd_differentiates_once_is_named(name, kind, dtype, once_differentiable_power):
    square = Cut.apply if kind == "cut" else lambda x: once_differentiable_power(x, 2)
    right, once = (cases(s)[name](dtype) for s in (torch.square, square))
    assert not discretize(right, 2).discretization.without_hvp
    missing = discretize(once, 2).discretization.without_hvp
    assert list(missing) == [name.split()[0]]
    assert "operations with second derivatives" in missing[name.split()[0]]


@pytest.mark.parametrize("kink", [torch.relu, torch.abs, nn.functional.hardtanh], ids=["relu", "abs", "clamp"])
@pytest.mark.parametrize("dtype", [torch.float64, torch.float32], ids=str)
def test_kinks_do_no_harm(kink, dtype):
    for seed in range(2):
        torch.manual_seed(seed)
        x = torch.randn(200, 2, dtype=dtype)
        block = nn.Sequential(nn.Linear(2, 20), nn.ReLU(), nn.Linear(20, 2)).to(dtype)
        problem = residual_network(x, LeastSquares(x.cos()), block, closing=Layer(kink).to(dtype))
        vars(problem)["running_cost"] = RunningFunction(lambda t, x, u: kink(x).square().mean() + kink(u).sum())
        assert not discretize(problem, 2).discretization.without_hvp
