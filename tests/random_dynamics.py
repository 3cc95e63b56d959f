"""Dynamics of every kind for random problems: functions, layers with their definitions, modules."""

import math
from dataclasses import dataclass

import torch
from torch import nn
from torch.nn.utils import parametrizations, prune
from torch.utils.checkpoint import checkpoint

from ocp.problem.layers import RELU, SMOOTH_RELU, TANH, Antisymmetric, Convolution, Dense

# Functions f(t, x, u), for controls of two numbers and states of all shapes unless `SIZES` says otherwise.


class Cube(torch.autograd.Function):
    @staticmethod
    def forward(context, x):
        context.save_for_backward(x)
        return x**3

    @staticmethod
    def backward(context, p):
        (x,) = context.saved_tensors
        return 3 * x**2 * p


def own_tensor(t, x, u):
    y = torch.zeros_like(x)
    y[:, 0] = u[0] * x[:, -1]
    y[:, -1] += t * u[1]
    y -= torch.tanh(x)
    return y


def kinks(t, x, u):
    return torch.where(x > u[0], x - u[0], 0 * x) + x.abs() - torch.maximum(0.5 * x, u[1] * x)


def entry_by_entry(t, x, u):
    return torch.stack([u[0] * x[..., i].sin() - (i + 1) * u[1] * t for i in range(x.shape[-1])], -1)


def solved(t, x, u):
    A = torch.eye(2).to(x) * 3 + u.outer(u) + t
    return torch.linalg.solve(A, x.reshape(-1, 2).T).T.reshape(x.shape)


def pairs(t, x, u):
    """Separable: positions and momenta are the halves of the first dimension."""
    q, p = x.chunk(2, dim=1)
    return torch.cat((p * (1 + u[0]), u[1] - q.sin()), 1)


def one(u, x):
    return u[0].view([1] * x.ndim).expand_as(x)


FUNCTIONS = {
    "driven": lambda t, x, u: math.sin(3 * t) * u[0] - u[1] * x,
    "switched": lambda t, x, u: u[0] * x.cos() if t < 0.2345 else u[1] - x,
    "own tensor": own_tensor,
    "in place on a copy": lambda t, x, u: x.clone().mul_(u[0]).sub_(t).add_(u[1]).tanh_(),
    "kinks": kinks,
    "largest": lambda t, x, u: u[0] * x.amax([*range(1, x.ndim)], keepdim=True) - x + u[1],
    "time as tensor": lambda t, x, u: torch.sin(torch.as_tensor(t).to(x)) * u[0] - u[1] * x,
    "entry by entry": entry_by_entry,
    "spectral": lambda t, x, u: torch.fft.irfft(torch.fft.rfft(x) * u[0], n=x.shape[-1]) - u[1] * x,
    "solved": solved,
    "einsum": lambda t, x, u: torch.einsum("b...i,ij->b...j", x, u.view(3, 3)).tanh() - t,
    "steep": lambda t, x, u: u[0] - Cube.apply(x.sin()),
    "checkpointed": lambda t, x, u: checkpoint(lambda x, u: (u[0] * x).tanh() - u[1], x, u, use_reentrant=False),
    "the state": lambda t, x, u: x,
    "a view of it": lambda t, x, u: x.unflatten(1, (1, 2)).flatten(1, 2),
    "the control": lambda t, x, u: one(u, x),
    "no control": lambda t, x, u: t - x.sin(),
    "samples meet": lambda t, x, u: u[0] * x - x.mean(0, keepdim=True),
    "pairs": pairs,
}
SHAPES = [(1,), (2,), (3,), (2, 3), (4, 2, 3)]
SIZES = {
    "solved": ([(2,), (3, 2)], 2),
    "einsum": ([(3,), (2, 3)], 9),
    "a view of it": ([(2,), (2, 3)], 2),
    "pairs": ([(2,), (4,), (2, 3), (4, 2, 2)], 2),
}


@dataclass(frozen=True)
class Written:
    """u0 sin x + u1 t, with derivatives written by hand."""

    control_size: int = 2

    def __call__(self, t, x, u):
        return u[0] * x.sin() + u[1] * t

    def vjp(self, t, x, u, p):
        return u[0] * x.cos() * p, torch.stack(((x.sin() * p).sum(), t * p.sum()))

    def jvp(self, t, x, u, dx, du):
        return u[0] * x.cos() * dx + du[0] * x.sin() + du[1] * t

    def hvp(self, t, x, u, p, dx, du):
        return (du[0] * x.cos() - u[0] * x.sin() * dx) * p, torch.stack(((x.cos() * dx * p).sum(), 0 * u[1]))


# Layers, with their definitions.


def dense(activation, weight=lambda K: K):
    return lambda t, x, u: activation(x @ weight(u[:9].view(3, 3)).T + u[9:])


LAYERS = {
    "dense": (Dense(3), dense(torch.tanh)),
    "dense relu": (Dense(3, RELU), dense(torch.relu)),
    "dense smooth": (
        Dense(3, SMOOTH_RELU),
        dense(lambda z: torch.where(z.abs() < 0.1, 2.5 * (z + 0.1) ** 2, z.relu())),
    ),
    "antisymmetric": (
        Dense(3, TANH, Antisymmetric(0.3)),
        dense(torch.tanh, lambda K: (K - K.T - 0.3 * torch.eye(3).to(K)) / 2),
    ),
    "convolution": (
        Convolution(2),
        lambda t, x, u: torch.conv2d(x, u[:-2].view(2, 2, 3, 3), u[-2:], padding=1).tanh(),
    ),
}

# Modules that map states of some shapes to themselves.


class Around(nn.Module):
    """A function of an inner module and its input; ``again`` says whether it may run again in the backward pass."""

    def __init__(self, inner, function):
        super().__init__()
        self.inner, self.function, self.again = inner, function, True

    def forward(self, x):
        return self.function(self.inner, x, self.again)


def linear(*after, first=None):
    return nn.Sequential(first or nn.Linear(3, 3), *after)


def tied():
    block = linear(nn.Tanh(), nn.Linear(3, 3))
    block[2].weight = block[0].weight
    return block


def frozen():
    block = linear(nn.Tanh(), nn.Linear(3, 3))
    block[0].weight.requires_grad_(False)
    block[2].bias.requires_grad_(False)
    return block


def repeated():
    layer = nn.Linear(3, 3)
    return nn.Sequential(layer, nn.Tanh(), layer)


def rerun(inner, x, again):
    return checkpoint(inner, x, use_reentrant=False) if again else inner(x)


def recurrent(kind):
    return Around(kind(3, 3, batch_first=True), lambda inner, x, again: inner(x)[0])


def attention():
    inner = nn.MultiheadAttention(3, 1, batch_first=True)
    return Around(inner, lambda inner, x, again: inner(x, x, x, need_weights=False)[0])


def convolution(*after, first=None, groups=1):
    return nn.Sequential(*([first] if first else []), nn.Conv2d(2, 2, 3, padding=1, groups=groups), *after)


VECTOR, ROWS, EITHER, IMAGE = [(3,)], [(2, 3)], [(3,), (2, 3)], [(2, 3, 4)]
MODULES = {
    "linear": (EITHER, lambda: nn.Linear(3, 3)),
    "no bias": (EITHER, lambda: linear(nn.Tanh(), first=nn.Linear(3, 3, bias=False))),
    "relu": (EITHER, lambda: linear(nn.ReLU(), nn.Linear(3, 3))),
    "relu in place": (EITHER, lambda: linear(nn.ReLU(inplace=True), nn.Linear(3, 3))),
    "prelu, gelu": (EITHER, lambda: linear(nn.PReLU(), nn.Linear(3, 3), nn.GELU())),
    "layer norm": (EITHER, lambda: linear(nn.Softplus(), nn.LayerNorm(3, eps=1.0))),
    "softmax": (EITHER, lambda: linear(nn.Softmax(-1))),
    "tied": (EITHER, tied),
    "frozen": (EITHER, frozen),
    "repeated": (EITHER, repeated),
    "weight norm": (EITHER, lambda: linear(nn.Tanh(), first=parametrizations.weight_norm(nn.Linear(3, 3)))),
    "spectral norm": (EITHER, lambda: parametrizations.spectral_norm(nn.Linear(3, 3)).eval()),
    "orthogonal": (EITHER, lambda: parametrizations.orthogonal(nn.Linear(3, 3))),
    "pruned": (EITHER, lambda: linear(nn.Tanh(), first=prune.l1_unstructured(nn.Linear(3, 3), "weight", 0.5))),
    "checkpointed block": (EITHER, lambda: Around(linear(nn.Tanh()), rerun)),
    "own function": (EITHER, lambda: Around(nn.Linear(3, 3), lambda inner, x, again: Cube.apply(inner(x).sin()))),
    "mixed": (
        EITHER,
        lambda: Around(linear(nn.Tanh()), lambda inner, x, again: torch.where(x > 0, x * inner(x), -0.5 * x)),
    ),
    "batch norm": (VECTOR, lambda: linear(nn.BatchNorm1d(3), nn.Dropout(0.3)).eval()),
    "attention": (ROWS, attention),
    "encoder": (ROWS, lambda: nn.TransformerEncoderLayer(3, 1, 4, 0.0, layer_norm_eps=1.0, batch_first=True)),
    "LSTM": (ROWS, lambda: recurrent(nn.LSTM)),
    "GRU": (ROWS, lambda: recurrent(nn.GRU)),
    "convolutions": (IMAGE, lambda: convolution(nn.ReLU(), nn.Conv2d(2, 2, 1))),
    "group norm": (IMAGE, lambda: convolution(nn.Tanh(), first=nn.GroupNorm(1, 2, eps=1.0))),
    "pooled": (IMAGE, lambda: convolution(nn.MaxPool2d(3, 1, 1), nn.SiLU())),
    "depthwise": (IMAGE, lambda: convolution(nn.InstanceNorm2d(2, eps=1.0), nn.Tanh(), groups=2)),
}
