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


@dataclass
class Effort:
    """The running cost |u|^2 / 2 with what is given in place of its other methods."""

    many: Any = lambda t, x, u: 0.5 * u.square().sum(1)
    slopes: Any = lambda t, x, u: (torch.zeros_like(x), u.clone())
    second: Any = lambda t, x, u, dx, du: (torch.zeros_like(dx), du.clone())

    def __call__(self, t, x, u):
        return 0.5 * u.square().sum()

    def derivative(self, t, x, u):
        return torch.zeros_like(x), u.clone()

    def supports_batches(self, x, u):
        return True

    def along(self, *arguments):
        return self.many(*arguments)

    def derivative_along(self, *arguments):
        return self.slopes(*arguments)

    def hvp(self, *arguments):
        return self.second(*arguments)


class Stagewise:
    """x' = scale (u - x) by stages, right if all scales are 1."""

    control_size = 2

    def __init__(self, value=1.0, transpose=1.0, by_control=1.0, shift=0.0):
        self.scales, self.shift = (value, transpose, by_control), shift

    def __call__(self, t, x, u):
        return u - x

    def vjp(self, t, x, u, p):
        return -p, p.sum(0)

    def jvp(self, t, x, u, dx, du):
        return du - dx

    def stage_layout(self, x, u):
        return x

    def over(self, path, stages):
        return StagewiseEvaluations(self, path, stages)


class StagewiseEvaluations:
    def __init__(self, f, path, stages):
        self.f, self.path, self.stages = f, path, stages

    def value(self, j, t, x):
        out = self.stages.value[j].copy_(self.f.scales[0] * (self.path[j // self.stages.number] - x))
        if self.f.shift:
            self.path += self.f.shift
        return out

    def linearize(self):
        pass

    def transpose(self, j, p, out):
        self.stages.value[j].copy_(p)
        return out.add_(p, alpha=-self.f.scales[1] * self.stages.h)

    def by_control(self, out):
        out.copy_(self.f.scales[2] * self.stages.h * self.stages.values.sum((1, 2)))


@dataclass
class Size:
    """The cost |u|^2 of the control, with another derivative."""

    slope: Any

    def __call__(self, space, flat):
        return flat.square().sum()

    def derivative(self, space, flat):
        return self.slope(flat)


def not_implemented(*arguments):
    raise NotImplementedError


AGREEING = {
    "running cost at many points": {"running_cost": Effort()},
    "stages": {"dynamics": Stagewise(), "running_cost": Effort()},
    "control cost": {"control_cost": Size(lambda u: 2 * u)},
    "no forward mode": {"dynamics": Decay(tangent=not_implemented)},
}


@pytest.mark.parametrize("changes", AGREEING.values(), ids=AGREEING.keys())
def test_optional_methods_that_agree_give_the_derivative_of_the_plain_ones(changes):
    u = torch.linspace(-1, 1, 8, dtype=D)
    objective = ocp.discretize(build(**changes), 4, "rk4")
    effort = {"running_cost": lambda t, x, u: 0.5 * u.square().sum()} if "running_cost" in changes else {}
    size = {"control_cost": changes["control_cost"]} if "control_cost" in changes else {}
    plain = ocp.discretize(build(dynamics=lambda t, x, u: u - x, control_size=2, **effort, **size), 4, "rk4")
    torch.testing.assert_close(objective.derivative(u), plain.derivative(u), rtol=1e-12, atol=1e-14)


DISAGREEING = {
    "jvp": (
        {"dynamics": Decay(tangent=lambda t, x, u, dx, du: dx.neg_().add_(du))},
        r"dynamics: expected jvp\(t, x, u, dx, du\) to leave its arguments unchanged, got dx changed",
    ),
    "shape of jvp": (
        {"dynamics": Decay(tangent=lambda t, x, u, dx, du: (du - dx).sum(0))},
        r"dynamics: expected jvp\(t, x, u, dx, du\) to return what has the shapes and types of dx, got \(2,\)",
    ),
    "no result of jvp": (
        {"dynamics": Decay(tangent=lambda t, x, u, dx, du: None)},
        r"dynamics: expected jvp\(t, x, u, dx, du\) to return .* got None",
    ),
    "hvp": (
        {"running_cost": Effort(second=lambda t, x, u, dx, du: (dx.zero_(), du.clone()))},
        r"running_cost: expected hvp\(t, x, u, dx, du\) to leave its arguments unchanged, got dx changed",
    ),
    "type of hvp": (
        {"running_cost": Effort(second=lambda t, x, u, dx, du: (0 * dx, du.float()))},
        r"running_cost: expected hvp\(t, x, u, dx, du\) to return what has the shapes and types of x and u",
    ),
    "along": (
        {"running_cost": Effort(many=lambda t, x, u: u.square().sum(1))},
        r"running_cost: expected results of along\(t, x, u\) that agree with those at one point",
    ),
    "along writes": (
        {"running_cost": Effort(many=lambda t, x, u: 0.5 * u.square_().sum(1))},
        r"running_cost: expected along\(t, x, u\) to leave its arguments unchanged, got u changed",
    ),
    "shape of along": (
        {"running_cost": Effort(many=lambda t, x, u: 0.5 * u.square().sum())},
        r"running_cost: expected results of along\(t, x, u\) that agree",
    ),
    "derivative along": (
        {"running_cost": Effort(slopes=lambda t, x, u: (torch.zeros_like(x), 2 * u))},
        r"running_cost: expected results of derivative_along\(t, x, u\) that agree",
    ),
    "values by stages": ({"dynamics": Stagewise(value=1.1)}, r"dynamics: expected values of over\(path, stages\) that"),
    "transposes by stages": ({"dynamics": Stagewise(transpose=1.1)}, "dynamics: expected transposes of over"),
    "controls by stages": ({"dynamics": Stagewise(by_control=1.1)}, "dynamics: expected derivatives by the control of"),
    "stages that write": ({"dynamics": Stagewise(shift=1e-3)}, "dynamics: expected (values of )?over"),
    "control cost writes": (
        {"control_cost": Size(lambda u: u.mul_(2))},
        r"control_cost: expected derivative\(space, flat\) to leave its arguments unchanged, got flat changed",
    ),
    "shape of a control cost": (
        {"control_cost": Size(lambda u: 2 * u.sum())},
        r"control_cost: expected derivative\(space, flat\) to return what has the shapes and types of flat",
    ),
}


@pytest.mark.parametrize(("changes", "message"), DISAGREEING.values(), ids=DISAGREEING.keys())
def test_optional_methods_that_disagree_are_refused(changes, message):
    with pytest.raises(ValueError, match=message):
        ocp.discretize(build(**changes), 4)
