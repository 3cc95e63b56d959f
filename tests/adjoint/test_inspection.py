"""Pieces that write to what is not theirs, or return what later calls overwrite, are refused before a run."""

from dataclasses import dataclass
from typing import Any

import pytest
import torch

import ocp

D = torch.float64
X0 = torch.linspace(-1, 1, 6, dtype=D).view(3, 2)
TARGET, BUFFER = torch.full_like(X0, 0.25), torch.empty_like(X0)


@dataclass
class Decay:
    """x' = u - x, or with other methods."""

    value: Any = lambda t, x, u: u - x
    transpose: Any = lambda t, x, u, p: (-p, p.sum(0))
    tangent: Any = lambda t, x, u, dx, du: du - dx
    control_size: int = 2

    def __call__(self, *arguments):
        return self.value(*arguments)

    def vjp(self, *arguments):
        return self.transpose(*arguments)

    def jvp(self, *arguments):
        return self.tangent(*arguments)


@dataclass
class Miss:
    """A terminal cost |x - target|^2 / 2, or with another derivative."""

    slope: Any
    value: Any = lambda x, q: 0.5 * (x - TARGET).square().sum()

    def __call__(self, *arguments):
        return self.value(*arguments)

    def derivative(self, *arguments):
        return self.slope(*arguments)


class Negated(torch.autograd.Function):
    """-x, whose backward writes to its cotangent."""

    @staticmethod
    def forward(context, x):
        return -x

    @staticmethod
    def backward(context, g):
        return g.neg_()


def overwriting(t, x, u, p):
    return p.neg_(), -p.sum(0)


def through_a_buffer(t, x, u):
    return torch.sub(u, x, out=BUFFER)


def writing_to_the_target(x, q):
    return TARGET.sub_(x).neg(), torch.zeros_like(q)


def writing_to_the_initial_state(x, q):
    X0.add_(1)
    return x - TARGET, torch.zeros_like(q)


@pytest.fixture(autouse=True)
def _data_as_before():
    kept = X0.clone(), TARGET.clone()
    yield
    X0.copy_(kept[0])
    TARGET.copy_(kept[1])


def build(**changes):
    pieces = {"dynamics": Decay(), "initial_state": X0, "terminal_cost": Miss(lambda x, q: (x - TARGET, q))}
    return ocp.ControlProblem(**{**pieces, **changes})


def test_pieces_that_leave_everything_alone_pass():
    assert ocp.minimize(build(), 4, ocp.LBFGS()).success


REFUSED = {
    "vjp": (
        {"dynamics": Decay(transpose=overwriting)},
        r"dynamics: expected vjp\(t, x, u, p\) to leave .* got p changed",
    ),
    "backward": (
        {"dynamics": lambda t, x, u: Negated.apply(x) + u, "control_size": 2},
        r"dynamics: expected vjp\(t, x, u, p\) to leave its arguments unchanged, got p changed",
    ),
    "derivative": (
        {"terminal_cost": Miss(lambda x, q: (x.sub_(TARGET), q))},
        r"terminal_cost: expected derivative\(x, q\) to leave its arguments unchanged, got x changed",
    ),
    "buffer": (
        {"dynamics": Decay(through_a_buffer)},
        "dynamics: expected a new tensor from each call, got one that later calls overwrite",
    ),
    "buffer of a derivative": (
        {"terminal_cost": Miss(lambda x, q: (torch.sub(x, TARGET, out=BUFFER), q))},
        "terminal_cost: expected a new tensor from each call, got one that later calls overwrite",
    ),
    "target": (
        {"terminal_cost": Miss(writing_to_the_target)},
        r"terminal_cost: expected derivative\(x, q\) to leave the values as they are, got others",
    ),
    "initial state": (
        {"terminal_cost": Miss(writing_to_the_initial_state)},
        "initial_state: expected the other pieces to leave it unchanged, got it changed by one",
    ),
    "type": (
        {"terminal_cost": Miss(lambda x, q: ((x - TARGET).float(), q))},
        r"terminal_cost: expected derivative\(x, q\) to return .* torch.float64.*, got .* torch.float32",
    ),
}


@pytest.mark.parametrize("name", REFUSED)
def test_a_piece_that_writes_to_what_is_not_its_own_is_refused(name):
    changes, message = REFUSED[name]
    before = X0.clone()
    with pytest.raises(ValueError, match=message):
        ocp.minimize(build(**changes), 4, ocp.LBFGS())
    if name != "initial state":
        assert torch.equal(X0, before)
