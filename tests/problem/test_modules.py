"""A module as a function of one flat parameter vector."""

import math
from types import MethodType

import pytest
import torch
from torch import nn

from ocp.problem.functions import Mapped, hvp, pullback
from ocp.problem.modules import FlatModule


@pytest.fixture
def module():
    return nn.Sequential(nn.Linear(3, 4), nn.Tanh(), nn.Linear(4, 2, bias=False)).double()


def test_with_its_own_parameters_it_is_the_module(module, rand):
    flat, x = FlatModule(module), rand(5, 3)
    assert flat.size == 3 * 4 + 4 + 4 * 2
    assert torch.equal(flat(flat.start(), x), module(x))


def test_parameters_are_taken_in_their_order(module, rand):
    w, x = rand(24), rand(5, 3)
    expected = torch.tanh(x @ w[:12].view(4, 3).T + w[12:16]) @ w[16:].view(2, 4).T
    torch.testing.assert_close(FlatModule(module)(w, x), expected, rtol=1e-14, atol=1e-14)


def test_evaluation_leaves_the_module_as_it_was(module, rand, unchanged):
    flat, w = FlatModule(module), rand(24)
    with unchanged(*module.parameters(), w):
        pullback(flat, (w, rand(5, 3)), rand(5, 2))
    assert all(p.grad is None for p in module.parameters())


def test_a_copy_owns_the_parameters_it_is_given(module, rand, unchanged):
    flat, w, x = FlatModule(module), rand(24), rand(5, 3)
    with unchanged(*module.parameters()):
        copy = flat.with_parameters(w)
        expected = flat(w, x)
        w.zero_()
        assert torch.equal(copy(x), expected)


def test_a_module_without_parameters_takes_an_empty_vector(rand):
    flat, x = FlatModule(nn.Tanh()), rand(5, 3)
    assert flat.size == 0
    assert torch.equal(flat(flat.start(), x), torch.tanh(x))
    assert torch.equal(flat.with_parameters(flat.start())(x), torch.tanh(x))


def test_tied_weights_are_one_parameter(rand):
    module = nn.Sequential(nn.Linear(3, 3), nn.Linear(3, 3)).double()
    module[1].weight = module[0].weight
    flat, x = FlatModule(module), rand(5, 3)
    w = rand(flat.size)
    W = w[:9].view(3, 3)
    assert flat.size == 9 + 3 + 3
    torch.testing.assert_close(flat(w, x), (x @ W.T + w[9:12]) @ W.T + w[12:], rtol=1e-14, atol=1e-14)


@pytest.mark.parametrize(
    "part",
    [
        nn.Dropout(0.5),
        nn.Dropout2d(0.1),
        nn.AlphaDropout(0.1),
        nn.BatchNorm1d(3),
        nn.BatchNorm2d(3),
        nn.InstanceNorm1d(3, track_running_stats=True),
        nn.RReLU(),
        nn.MultiheadAttention(4, 2, dropout=0.1),
        nn.LSTM(3, 3, num_layers=2, dropout=0.1),
    ],
    ids=lambda part: type(part).__name__,
)
def test_a_module_that_is_random_or_takes_batch_statistics_is_refused(part):
    name = type(part).__name__
    with pytest.raises(ValueError, match=rf"module: expected a deterministic module, got {name} \(1\)"):
        FlatModule(nn.Sequential(nn.Linear(3, 3), part))


@pytest.mark.parametrize(
    "part", [nn.Dropout(0.5).eval(), nn.Dropout(0.0), nn.BatchNorm1d(3).eval(), nn.LayerNorm(3)], ids=str
)
def test_a_module_that_is_deterministic_as_it_stands_is_taken(part, rand):
    flat, x = FlatModule(nn.Sequential(nn.Linear(3, 3), part).double()), rand(5, 3)
    assert torch.equal(flat(flat.start(), x), flat(flat.start(), x))


def test_what_is_no_module_is_refused():
    with pytest.raises(TypeError, match=r"module: expected an nn.Module, got function"):
        FlatModule(lambda x: x)


def test_pullback_is_the_transposed_derivative(rand, unchanged):
    A, x, y, p = rand(2, 3), rand(3), rand(2), rand(2)
    with unchanged(x, y, p):
        px, py = pullback(lambda x, y: (A @ x) * y, (x, y), p)
    torch.testing.assert_close(px, A.T @ (y * p), rtol=1e-14, atol=1e-14)
    torch.testing.assert_close(py, (A @ x) * p, rtol=1e-14, atol=1e-14)


def test_pullback_of_a_scalar_needs_no_cotangent(rand):
    x = rand(3)
    assert torch.equal(pullback(lambda x: x.square().sum(), (x,))[0], 2 * x)


@pytest.mark.parametrize("function", [lambda x, y: x.sum(), lambda x, y: torch.ones(())])
def test_an_argument_that_is_not_used_has_the_derivative_zero(function, rand):
    assert torch.equal(pullback(function, (rand(3), rand(2)))[1], torch.zeros(2, dtype=torch.float64))


def test_pullback_works_where_gradients_are_switched_off_and_leaves_no_tape(rand):
    with torch.no_grad():
        (px,) = pullback(lambda x: x.square().sum(), (rand(3).requires_grad_(),))
    assert not px.requires_grad
    assert float(px.abs().sum()) > 0


def test_hvp_is_the_hessian_applied_to_a_direction(rand, unchanged):
    x, y, p, dx, dy = rand(3), rand(3), rand(3), rand(3), rand(3)
    with unchanged(x, y, p, dx, dy):
        hx, hy = hvp(lambda x, y: x.pow(3) * y, (x, y), (dx, dy), p)
    torch.testing.assert_close(hx, p * (6 * x * y * dx + 3 * x**2 * dy), rtol=1e-13, atol=1e-13)
    torch.testing.assert_close(hy, p * 3 * x**2 * dx, rtol=1e-13, atol=1e-13)


def test_hvp_of_a_module_agrees_with_the_hessian_of_autograd(module, rand):
    flat, x, w, dw, p = FlatModule(module), rand(5, 3), rand(24), rand(24), rand(5, 2)
    H = torch.func.hessian(lambda w: (p * flat(w, x)).sum())(w)
    (hw,) = hvp(lambda w: flat(w, x), (w,), (dw,), p)
    torch.testing.assert_close(hw, H @ dw, rtol=1e-12, atol=1e-12)
    assert all(part.grad is None for part in module.parameters())


@pytest.mark.parametrize(
    "function",
    [lambda x, y: x.sum(), lambda x, y: torch.ones(()), lambda x, y: (x * 3).sum() + y.sum()],
    ids=["one argument", "constant", "linear"],
)
def test_hvp_of_a_linear_function_is_zero(function, rand):
    zeros = (torch.zeros(3, dtype=torch.float64), torch.zeros(2, dtype=torch.float64))
    assert all(map(torch.equal, hvp(function, (rand(3), rand(2)), (rand(3), rand(2))), zeros))


def test_hvp_works_where_gradients_are_switched_off_and_leaves_no_tape(rand):
    with torch.no_grad():
        (hx,) = hvp(lambda x: x.pow(3).sum(), (rand(3).requires_grad_(),), (rand(3),))
    assert not hx.requires_grad
    assert float(hx.abs().sum()) > 0


def by_sine(t, x, u):
    return torch.sin(t * x) + u.sum()


def by_branch(t, x, u):
    return x * u.sum() if t > 0.5 else x + u.sum()


def by_number(t, x, u):
    return math.sin(t) * x + u.sum()


def by_kind(t, x, u):
    """Another function of tensors than of numbers."""
    return x * u.sum() * (1.0 if isinstance(t, float) else 2.0)


@pytest.mark.parametrize(
    ("function", "mapped"), [(by_sine, True), (by_branch, False), (by_number, False), (by_kind, False)]
)
def test_many_points_at_once_have_the_values_of_one_by_one(function, mapped, rand):
    t, x, u = torch.linspace(0, 1, 6).double(), rand(6, 2, 3), rand(6, 2)
    many = Mapped(function)
    expected = torch.stack([function(float(t[k]), x[k], u[k]) for k in range(6)])
    assert many.agrees(t, x, u) is mapped
    torch.testing.assert_close(many(t, x, u), expected, rtol=1e-14, atol=1e-14)


def test_a_time_rounded_to_single_precision_is_not_the_time_of_many_points(rand):
    assert not Mapped(lambda t, x, u: torch.as_tensor(t).to(x).sin() * u + x).agrees_near(rand(1, 1), rand(1))


def test_known_values_show_a_function_that_was_the_same_where_it_was_tried(rand):
    def function(t, x, u):
        return x * (3.0 if t in (0.5,) and isinstance(t, float) else 1.0)

    many, x, u = Mapped(function), rand(3, 2, 3), rand(3, 1)
    many.agreed = True
    t = torch.tensor([0.0, 0.5, 1.0], dtype=torch.float64)
    values = torch.stack([function(s, y, None) for s, y in zip(t.tolist(), x, strict=True)])
    assert torch.equal(many(t, x, u, values), values)


def test_a_module_has_its_own_parameters_back_after_a_call_that_fails(rand):
    module = nn.Linear(3, 3).double()
    own, flat = dict(module.named_parameters()), FlatModule(module)
    with pytest.raises(RuntimeError):
        flat(torch.zeros(flat.size).double(), rand(5, 7))
    assert all(module._parameters[name] is parameter for name, parameter in own.items())


def test_a_parameter_in_two_places_is_one(rand):
    class Twice(nn.Module):
        def __init__(self):
            super().__init__()
            self.first = nn.Linear(3, 3, bias=False)
            self.second = nn.Linear(3, 3, bias=False)
            self.second.weight = self.first.weight

        def forward(self, x):
            return self.second(self.first(x))

    flat, x, K = FlatModule(Twice().double()), rand(5, 3), rand(3, 3)
    assert flat.size == 9
    torch.testing.assert_close(flat(K.reshape(-1), x), x @ K.T @ K.T, rtol=1e-14, atol=1e-14)


@pytest.mark.parametrize("bias", [True, False])
def test_the_derivative_of_a_linear_module_is_that_of_its_tape(bias, rand, unchanged):
    flat = FlatModule(nn.Linear(3, 2, bias=bias).double())
    w, x, p = rand(flat.size), rand(5, 4, 3), rand(5, 4, 2)
    with unchanged(w, x, p):
        by_hand = flat.pullback(w, x, p)
    for own, tape in zip(by_hand, pullback(flat, (w, x), p), strict=True):
        torch.testing.assert_close(own, tape, rtol=1e-13, atol=1e-13)
    assert torch.equal(flat.by_parameters(w, x, p), by_hand[0])


class Doubled(nn.Linear):
    def forward(self, x):
        return 2 * super().forward(x)


def hooked():
    module = nn.Linear(3, 2)
    module.register_forward_hook(lambda module, arguments, output: 2 * output)
    return module


def patched():
    module = nn.Linear(3, 2)
    module.forward = MethodType(lambda self, x: 2 * nn.functional.linear(x, self.weight, self.bias), module)
    return module


@pytest.mark.parametrize("make", [lambda: Doubled(3, 2), hooked, patched], ids=["subclass", "hook", "patch"])
def test_what_only_looks_like_a_linear_module_has_its_own_derivative(make, rand):
    flat = FlatModule(make().double())
    w, x, p = rand(flat.size), rand(5, 3), rand(5, 2)
    torch.testing.assert_close(flat.by_parameters(w, x, p)[:6].view(2, 3), 2 * p.T @ x, rtol=1e-13, atol=1e-13)
    torch.testing.assert_close(flat.pullback(w, x, p)[0], flat.by_parameters(w, x, p), rtol=1e-13, atol=1e-13)


def test_inputs_that_are_no_numbers_to_differentiate_by_are_taken():
    flat = FlatModule(nn.Embedding(3, 2).double())
    derivative = flat.by_parameters(flat.start(), torch.tensor([0, 2, 2]), torch.ones(3, 2).double())
    assert derivative.tolist() == [1, 1, 0, 0, 2, 2]
