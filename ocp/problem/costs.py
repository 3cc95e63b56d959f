"""Terminal, running and control costs with their derivatives."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from dataclasses import dataclass, field, replace
from functools import partial
from typing import Any, cast

import torch
from torch import Tensor

from ocp.problem.boundary import call, check_order, data, take, uncompiled, with_data
from ocp.problem.functions import Mapped, hvp, jvp, pullback
from ocp.problem.modules import FlatModule
from ocp.problem.parameters import ParameterSet, takes_parameters
from ocp.problem.protocols import Classifier, ControlCost, RunningCost, SecondOrder, TerminalCost
from ocp.problem.shapes import BatchState, Cotangent, FlatControl, Parameters, Scalar, StepControl
from ocp.space.control import ControlSpace

__all__ = [
    "CrossEntropy",
    "LeastSquares",
    "PointByPoint",
    "QuadraticRunning",
    "Readout",
    "RunningFunction",
    "TerminalFunction",
    "Tikhonov",
    "TimeSmoothness",
    "as_control_costs",
    "as_running_cost",
    "as_terminal_cost",
]


@dataclass(frozen=True)
class TerminalFunction:
    """A plain function as terminal cost: ``Phi(x)``, or ``Phi(x, q)`` with the parameters of a problem."""

    function: Callable[..., Tensor]
    parameters: ParameterSet | None = field(default=None, repr=False)
    _takes: bool = field(init=False, repr=False)

    def __post_init__(self) -> None:
        check_order("terminal_cost", self.function, "x", "q")
        object.__setattr__(self, "_takes", takes_parameters(self.function, 1))

    def __call__(self, x: BatchState, q: Parameters) -> Scalar:
        if not (self._takes and q.numel()):
            return call("terminal_cost", self.function, x=x)
        return call("terminal_cost", self.function, x=x, q=q if self.parameters is None else self.parameters(q))

    def derivative(self, x: BatchState, q: Parameters) -> tuple[BatchState, Parameters]:
        return pullback(self, (x, q))

    def hvp(self, x: BatchState, q: Parameters, dx: BatchState, dq: Parameters) -> tuple[BatchState, Parameters]:
        return hvp(replace(self, function=uncompiled(self.function)), (x, q), (dx, dq))

    def take(self, indices: Tensor) -> TerminalFunction:
        return self  # functions are assumed to treat all samples alike


@dataclass(frozen=True)
class RunningFunction:
    """A plain function ``L(t, x, u)`` as running cost; an `Equation` turns one of (t, x, u, q) into such a function."""

    function: Callable[[float, Tensor, Tensor], Tensor]
    _mapped: Mapped = field(init=False, repr=False, compare=False)
    supports_autograd = True

    def __post_init__(self) -> None:
        check_order("running_cost", self.function, "t", "x", "u")
        check_order("running_cost", self.function, "t", "x", "u", "q")
        object.__setattr__(self, "_mapped", Mapped(self.function, "running_cost"))

    def __call__(self, t: float, x: BatchState, u: StepControl) -> Scalar:
        return call("running_cost", self.function, t=t, x=x, u=u)

    def derivative(self, t: float, x: BatchState, u: StepControl) -> Cotangent:
        return pullback(partial(self, t), (x, u))

    def hvp(self, t: float, x: BatchState, u: StepControl, dx: BatchState, du: StepControl) -> Cotangent:
        return hvp(partial(uncompiled(self.function), t), (x, u), (dx, du))

    def take(self, indices: Tensor) -> RunningFunction:
        return self

    def supports_batches(self, x: BatchState, u: StepControl) -> bool:
        return self._mapped.agrees_near(x, u)

    def along(self, t: Tensor, x: Tensor, u: Tensor) -> Tensor:
        return self._mapped(t, x, u)

    def derivative_along(self, t: Tensor, x: Tensor, u: Tensor) -> tuple[Tensor, Tensor]:
        return pullback(lambda x, u: self._mapped(t, x, u).sum(), (x, u))


@dataclass(frozen=True)
class PointByPoint:
    """Any running cost at many points, one after the other."""

    cost: RunningCost

    def supports_batches(self, x: BatchState, u: StepControl) -> bool:
        return True

    def along(self, t: Tensor, x: Tensor, u: Tensor) -> Tensor:
        return torch.stack([self.cost(*point) for point in zip(t.tolist(), x, u, strict=True)])

    def derivative_along(self, t: Tensor, x: Tensor, u: Tensor) -> tuple[Tensor, Tensor]:
        derivatives = [self.cost.derivative(*point) for point in zip(t.tolist(), x, u, strict=True)]
        px, pu = (torch.stack(parts) for parts in zip(*derivatives, strict=True))
        return px, pu


@dataclass(frozen=True, eq=False)
class QuadraticRunning:
    """L(t, x, u) = (1/2) mean over the batch of state_weight |x - target|^2 + (1/2) control_weight |u|^2.

    Parameters
    ----------
    state_weight, control_weight : float
    target : Tensor or float
        Of the shape (batch, *state) or (1, *state), (n,) for states of n numbers, or a number. It is converted to the
        type of the state.

    Raises
    ------
    TypeError, ValueError
        If the target is something else, or not finite.
    """

    state_weight: float = 1.0
    control_weight: float = 1.0
    target: Tensor | float = 0.0
    supports_autograd = True

    def __post_init__(self) -> None:
        if not isinstance(self.target, int | float):
            object.__setattr__(self, "target", data("target", self.target, "a tensor or a number"))

    def check(self, t: float, x: BatchState, u: StepControl) -> None:
        target, one = self.target, (1, *x.shape[1:])
        if isinstance(target, Tensor) and target.shape not in ((), x.shape, one, one[1:] if x.ndim == 2 else one):
            got, each = tuple(target.shape), tuple(x.shape)
            raise ValueError(f"running_cost: expected a target that is a number or of shape {one} or {each}, got {got}")

    def _miss(self, x: Tensor) -> Tensor:
        return x - (self.target.to(x.dtype) if isinstance(self.target, Tensor) else self.target)

    def __call__(self, t: float, x: BatchState, u: StepControl) -> Scalar:
        miss = self._miss(x).square().sum() / len(x)
        return 0.5 * (self.state_weight * miss + self.control_weight * u.square().sum())

    def derivative(self, t: float, x: BatchState, u: StepControl) -> Cotangent:
        return self._miss(x) * (self.state_weight / len(x)), self.control_weight * u

    def hvp(self, t: float, x: BatchState, u: StepControl, dx: BatchState, du: StepControl) -> Cotangent:
        return dx * (self.state_weight / len(x)), self.control_weight * du

    def supports_batches(self, x: BatchState, u: StepControl) -> bool:
        return True

    def along(self, t: Tensor, x: Tensor, u: Tensor) -> Tensor:
        miss = self._miss(x).square().flatten(1).sum(1) / x.shape[1]
        return 0.5 * (self.state_weight * miss + self.control_weight * u.square().sum(1))

    def derivative_along(self, t: Tensor, x: Tensor, u: Tensor) -> tuple[Tensor, Tensor]:
        return self._miss(x) * (self.state_weight / x.shape[1]), self.control_weight * u

    def take(self, indices: Tensor) -> QuadraticRunning:
        if isinstance(self.target, Tensor) and self.target.ndim > 1 and len(self.target) > 1:
            return with_data(self, target=self.target[indices])
        return self


@dataclass(frozen=True, eq=False)
class CrossEntropy:
    """Softmax cross-entropy of the final state, or of a `Readout` of it, averaged over the batch.

    Parameters
    ----------
    labels : Tensor
        Class numbers, shape (batch,), integers in [0, number of classes).

    Examples
    --------
    >>> loss = CrossEntropy(torch.tensor([0, 2]))
    >>> loss(torch.zeros(2, 3), torch.zeros(0))
    tensor(1.0986)
    """

    labels: Tensor

    def __post_init__(self) -> None:
        object.__setattr__(self, "labels", data("labels", self.labels))
        if self.labels.ndim != 1 or self.labels.dtype != torch.int64 or bool((self.labels < 0).any()):
            raise ValueError(
                "labels: expected a vector of class numbers >= 0 (torch.int64), "
                f"got shape {tuple(self.labels.shape)} of {self.labels.dtype}"
            )

    def __call__(self, x: BatchState, q: Parameters) -> Scalar:
        if x.ndim != 2 or len(x) != len(self.labels):
            raise ValueError(
                f"labels: expected one for each row of the final state or of its readout {tuple(x.shape)}, "
                f"got {len(self.labels)}"
            )
        z, classes = _classes(x)
        return -torch.log_softmax(z, classes).gather(classes, self.labels.unsqueeze(classes)).mean()

    def derivative(self, x: BatchState, q: Parameters) -> tuple[BatchState, Parameters]:
        z, classes = _classes(x)
        pz, right = torch.softmax(z, classes), self.labels.unsqueeze(classes)
        pz.scatter_add_(classes, right, z.new_full((1, 1), -1.0).expand(right.shape)).div_(len(x))
        return pz.mT if classes == 0 else pz, torch.zeros_like(q)

    def hvp(self, x: BatchState, q: Parameters, dx: BatchState, dq: Parameters) -> tuple[BatchState, Parameters]:
        shares = torch.softmax(x, dim=1)
        mean = (shares * dx).sum(1, keepdim=True)
        return shares * (dx - mean) / len(x), torch.zeros_like(q)

    def accuracy(self, x: BatchState, q: Parameters) -> float:
        return float((x.argmax(1) == self.labels).double().mean())

    def take(self, indices: Tensor) -> CrossEntropy:
        return with_data(self, labels=self.labels[indices])


#: With fewer classes than entries in a vector register, torch computes a softmax entry by entry, up to twenty times
#: slower.
VECTOR_ENTRIES = 16


def _classes(x: Tensor) -> tuple[Tensor, int]:
    """The logits, and the dimension of the classes: the first one if there are few."""
    return (x.mT.contiguous(), 0) if x.shape[1] < VECTOR_ENTRIES else (x, 1)


@dataclass(frozen=True, eq=False)
class LeastSquares:
    """(weight / 2) |x_N - target|^2, averaged over the batch.

    Parameters
    ----------
    target : Tensor
        Of the shape of the final state, or of its `Readout`: (batch, *shape). It is converted to their type.
    weight : float

    Raises
    ------
    TypeError, ValueError
        If the target is no tensor, or not finite.
    """

    target: Tensor
    weight: float = 1.0

    def __post_init__(self) -> None:
        object.__setattr__(self, "target", data("target", self.target))

    def _miss(self, x: Tensor) -> Tensor:
        if x.shape != self.target.shape:  # broadcasting would turn (n, 1) against (n,) into n^2 differences
            raise ValueError(
                f"target: expected the shape of the final state or of its readout {tuple(x.shape)}, "
                f"got {tuple(self.target.shape)}"
            )
        return x - self.target.to(x.dtype)

    def __call__(self, x: BatchState, q: Parameters) -> Scalar:
        return 0.5 * self.weight * self._miss(x).square().sum() / len(x)

    def derivative(self, x: BatchState, q: Parameters) -> tuple[BatchState, Parameters]:
        return self._miss(x) * (self.weight / len(x)), torch.zeros_like(q)

    def hvp(self, x: BatchState, q: Parameters, dx: BatchState, dq: Parameters) -> tuple[BatchState, Parameters]:
        return dx * (self.weight / len(x)), torch.zeros_like(q)

    def take(self, indices: Tensor) -> LeastSquares:
        return with_data(self, target=self.target[indices])


@dataclass(frozen=True)
class Readout:
    """A closing module in front of a terminal cost: Phi(x, q) = cost(module(x; q), q).

    Parameters
    ----------
    module : FlatModule
        For a classifier, typically a linear layer from the state to the logits.
    cost : TerminalCost
        `CrossEntropy`, `LeastSquares`, ...; it sees the output of the module.
    """

    module: FlatModule
    cost: TerminalCost
    #: Only if the cost is a `Classifier`: then ``isinstance`` takes the readout for one, too.
    accuracy: Callable[[BatchState, Parameters], float] = field(init=False, repr=False, compare=False)

    def __post_init__(self) -> None:
        if isinstance(self.cost, Classifier):
            object.__setattr__(self, "accuracy", partial(_accuracy, self.module, self.cost))

    def __call__(self, x: BatchState, q: Parameters) -> Scalar:
        return self.cost(self.module(q, x), q)

    def derivative(self, x: BatchState, q: Parameters) -> tuple[BatchState, Parameters]:
        pz, pq = self.cost.derivative(self.module(q, x), q)
        by_module, px = self.module.pullback(q, x, pz)
        return px, pq + by_module

    def hvp(self, x: BatchState, q: Parameters, dx: BatchState, dq: Parameters) -> tuple[BatchState, Parameters]:
        z, dz = jvp(self.module, (q, x), (dq, dx))
        pz, _ = self.cost.derivative(z, q)
        dpz, hq = cast(SecondOrder, self.cost).hvp(z, q, dz, dq)
        # The tangent of the transpose dz/d(q, x)^T pz: by the module's own second derivative, and by pz.
        own_q, own_x = hvp(self.module, (q, x), (dq, dx), pz)
        by_cost_q, by_cost_x = self.module.pullback(q, x, dpz)
        return own_x + by_cost_x, hq + own_q + by_cost_q

    def check(self, x: BatchState, q: Parameters) -> None:
        self.module.check(q, x)

    def take(self, indices: Tensor) -> Readout:
        return replace(self, cost=take("terminal_cost", self.cost, indices))


def _accuracy(module: FlatModule, cost: Classifier, x: BatchState, q: Parameters) -> float:
    return cost.accuracy(module(q, x), q)


@dataclass(frozen=True)
class Tikhonov:
    """(alpha / 2) (h sum_k |u_k|^2 + |q|^2): the squared norm of the control, the same on every grid."""

    alpha: float

    def __call__(self, space: ControlSpace, flat: FlatControl) -> Scalar:
        return 0.5 * self.alpha * torch.dot(space.dual(flat), flat)

    def derivative(self, space: ControlSpace, flat: FlatControl) -> FlatControl:
        return self.alpha * space.dual(flat)

    def hvp(self, space: ControlSpace, flat: FlatControl, direction: FlatControl) -> FlatControl:
        return self.alpha * space.dual(direction)


@dataclass(frozen=True)
class TimeSmoothness:
    """(beta / 2) sum_k |u_{k+1} - u_k|^2 / h: the squared norm of the path's time derivative."""

    beta: float

    def __call__(self, space: ControlSpace, flat: FlatControl) -> Scalar:
        return 0.5 * self.beta / space.grid.h * space.path(flat).diff(dim=0).square().sum()

    def derivative(self, space: ControlSpace, flat: FlatControl) -> FlatControl:
        dual = torch.zeros_like(flat)
        jumps = space.path(flat).diff(dim=0).mul_(self.beta / space.grid.h)
        space.path(dual)[1:] += jumps
        space.path(dual)[:-1] -= jumps
        return dual

    def hvp(self, space: ControlSpace, flat: FlatControl, direction: FlatControl) -> FlatControl:
        return self.derivative(space, direction)  # linear in its argument


def as_terminal_cost(cost: Any, parameters: ParameterSet) -> TerminalCost | None:
    """A terminal cost from a function, a `TerminalCost` or None; a TypeError for anything else."""
    if isinstance(cost, TerminalFunction):
        return with_data(cost, parameters=parameters)
    if cost is None or isinstance(cost, TerminalCost):
        return cost
    if not callable(cost):
        raise TypeError(f"terminal_cost: expected a function Phi(x) or a TerminalCost, got {type(cost).__name__}")
    return TerminalFunction(cost, parameters)


def as_running_cost(cost: Any) -> RunningCost | None:
    """A running cost from a function, a `RunningCost` or None; a TypeError for anything else."""
    if cost is None or isinstance(cost, RunningCost):
        return cost
    if not callable(cost):
        raise TypeError(f"running_cost: expected a function L(t, x, u) or a RunningCost, got {type(cost).__name__}")
    return RunningFunction(cost)


def as_control_costs(costs: Any) -> tuple[ControlCost, ...]:
    """Control costs from one, several, or None."""
    found = () if costs is None else tuple(costs) if isinstance(costs, Iterable) else (costs,)
    for cost in found:
        if not isinstance(cost, ControlCost):
            raise TypeError(f"control_cost: expected costs such as Tikhonov(alpha), got {type(cost).__name__}")
    return found
