"""Optimization methods on one grid. Each is a frozen recipe; what it remembers travels in its state."""

from __future__ import annotations

import copy
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field, replace
from math import inf
from typing import Any, Protocol, runtime_checkable

import numpy as np
import scipy.optimize
import torch
from torch import Tensor, nn

from ocp.objective.reduced import Objective, free_part, optimality
from ocp.optimize.line_search import Armijo, LineSearch, StrongWolfe
from ocp.optimize.status import Status
from ocp.optimize.trust_region import TrustRegion, steihaug
from ocp.space.bounds import feasible, masked
from ocp.space.transfer import Transfer

__all__ = [
    "LBFGS",
    "GradientDescent",
    "Method",
    "NewtonCG",
    "NonlinearCG",
    "SciPy",
    "State",
    "TorchOptimizer",
    "Visit",
    "as_method",
]


@dataclass(frozen=True)
class Visit:
    """What became of one correction that a cycle asked of a coarser grid.

    Attributes
    ----------
    steps, coarse : int
        Of the grid that asked, and of the one that was asked.
    begin, end : float
        Work units when the visit began and when its outcome was known.
    mismatch : float
        |tau| by the size of the restricted derivative: what the coarse objective had to be corrected for.
    expected, decrease : float
        Decrease of the coarse model, and of the objective that asked; 0 where the correction was refused.
    step : float
        Share of the correction that was taken; 0 where it was refused.
    """

    steps: int
    coarse: int
    begin: float
    end: float
    mismatch: float
    expected: float
    decrease: float
    step: float


@dataclass(frozen=True)
class State:
    """Where a method is: a plain value that can be saved.

    Attributes
    ----------
    control : Tensor
        Flat. Its length tells the grid it lives on; a multilevel method begins on a coarse one.
    memory : Any
        What the method remembers: tensors, numbers and containers of them.
    status : Status
        RUNNING, or why the method cannot go on.
    counts : mapping
        Events worth telling, such as refused coarse corrections.
    level : int
        Of the grid that the control lives on; 0 is the finest.
    visits : tuple of Visit
        All that cycles have made so far.
    """

    control: Tensor
    memory: Any = None
    status: Status = Status.RUNNING
    counts: Mapping[str, int] = field(default_factory=dict)
    level: int = 0
    visits: tuple[Visit, ...] = ()


@runtime_checkable
class Method(Protocol):
    """An optimization method; a smoother and a multigrid cycle are methods, too."""

    def init(self, objective: Any, control: Tensor) -> State:
        """State before the first step."""

    def step(self, objective: Any, state: State) -> State:
        """One step. The objective may differ from that of the last step, by its batch or its shift."""

    def transport(self, memory: Any, transfer: Transfer) -> Any:
        """The memory on the finer grid of a transfer."""


def as_method(name: str, method: Any) -> Method:
    """The method itself, where it is one.

    Raises
    ------
    TypeError
        If it is none; the error begins with ``name``.
    """
    if isinstance(method, type) or not isinstance(method, Method):
        got = f"the class {method.__name__}" if isinstance(method, type) else repr(method)
        raise TypeError(f"{name}: expected a method such as LBFGS() or MGOPT(levels=4), got {got}")
    return method


@dataclass(frozen=True)
class GradientDescent:
    """Steepest descent in the time-weighted inner product; each search begins at twice the last step.

    Parameters
    ----------
    search : LineSearch
    first : float
        Length of the first trial step, in multiples of the gradient.
    """

    search: LineSearch = Armijo()
    first: float = 1.0

    def init(self, objective: Objective, control: Tensor) -> State:
        return State(control, self.first)

    def step(self, objective: Objective, state: State) -> State:
        direction = -objective.space.gradient(objective.derivative(state.control))
        trial = self.search(objective, state.control, direction, state.memory)
        if trial is None:
            return replace(state, status=Status.NO_DECREASE)
        return replace(state, control=trial.control, memory=2 * trial.step, status=Status.RUNNING)

    def transport(self, memory: float, transfer: Transfer) -> float:
        return memory


@dataclass(frozen=True)
class NonlinearCG:
    """Nonlinear conjugate gradients of Polak & Ribiere with restart (PR+), Nocedal & Wright (2006), section 5.2.

    Parameters
    ----------
    search : LineSearch
        Strong Wolfe with a small c2, so that directions descend.
    """

    search: LineSearch = StrongWolfe(c2=0.1)

    def init(self, objective: Objective, control: Tensor) -> State:
        return State(control)

    def step(self, objective: Objective, state: State) -> State:
        u, space = state.control, objective.space
        d, free = free_part(objective, u)
        gradient = space.gradient(d)
        direction, first = -gradient, 1 / max(space.dual_norm(d), 1.0)
        if state.memory is not None:
            old, old_direction, decrease = state.memory
            beta = float(torch.dot(d - old, gradient) / torch.dot(old, space.gradient(old)))
            conjugate = torch.add(direction, masked(old_direction, free), alpha=max(beta, 0.0))
            if torch.dot(d, conjugate) < 0:
                # The first-order change of the last step is expected again (Nocedal & Wright, equation 3.60).
                direction, first = conjugate, decrease / float(torch.dot(d, conjugate))
        trial = self.search(objective, u, direction, first)
        if trial is None:
            return replace(state, memory=None, status=Status.NO_DECREASE if state.memory is None else Status.RUNNING)
        memory = (d, direction, trial.step * float(torch.dot(d, direction)))
        return replace(state, control=trial.control, memory=memory, status=Status.RUNNING)

    def transport(self, memory: Any, transfer: Transfer) -> Any:
        if memory is None:
            return None
        derivative, direction, decrease = memory
        return transfer.prolong_dual(derivative), transfer.prolong(direction), decrease


@dataclass(frozen=True)
class LBFGS:
    """Limited-memory BFGS, Nocedal & Wright (2006), algorithm 7.4, in the time-weighted inner product.

    A pair holds a displacement s and a difference y of derivatives; their product is a plain dot product on every grid,
    and only the initial matrix gamma M^{-1} knows the Riesz map. Pairs travel to a finer grid: both members are
    prolonged as displacements, which keeps their products under `CONSTANT`, and the curvature test is repeated.

    Parameters
    ----------
    pairs : int
        How many pairs are kept. With 20 the spiral and the peaks took less work than with 10, by 4 % in the median of
        six seeds, more so near the optimum; 30 gained 2 % more.
    search : LineSearch
    curvature : float
        A pair is kept if <s, y> >= curvature |s| |y|, with y in the dual norm.
    """

    pairs: int = 20
    search: LineSearch = StrongWolfe()
    curvature: float = 1e-8

    def __post_init__(self) -> None:
        if self.pairs < 1:
            raise ValueError(f"pairs: expected an integer >= 1, got {self.pairs}")

    def init(self, objective: Objective, control: Tensor) -> State:
        return State(control, ())

    def step(self, objective: Objective, state: State) -> State:
        u, pairs, before = state.control, state.memory, objective.derivative(state.control)
        d, free = free_part(objective, u)
        direction = -self._solve(objective, self._on(objective.space, pairs, free), d)
        if free is not None and objective.box is not None:
            # An entry at its bound that the model would push out of the box is held, and the others know it.
            held = objective.box.inward(u, direction) != direction
            if bool(held.any()):
                free = free & ~held
                direction = -self._solve(objective, self._on(objective.space, pairs, free), masked(d, free))
        # Without pairs the scale is unknown: a first step of unit length, or the gradient where that is shorter.
        first = 1.0 if pairs else 1 / max(objective.space.dual_norm(d), 1.0)
        trial = self.search(objective, u, direction, first)
        if trial is None:
            return replace(state, memory=(), status=Status.RUNNING if pairs else Status.NO_DECREASE)
        pair = self._pair(objective.space, trial.control - u, objective.derivative(trial.control) - before)
        return replace(state, control=trial.control, memory=(*pairs, *pair)[-self.pairs :], status=Status.RUNNING)

    def transport(self, memory: Any, transfer: Transfer) -> Any:
        fine = ((transfer.prolong(s), transfer.prolong_dual(y)) for s, y, *_ in memory)
        return tuple(pair for s, y in fine for pair in self._pair(transfer.fine, s, y))

    def _on(self, space: Any, pairs: Any, free: Tensor | None) -> Any:
        """The pairs in the subspace of the free entries."""
        if free is None or bool(free.all()):
            return pairs
        parts = ((masked(s, free), masked(y, free)) for s, y, *_ in pairs)
        return tuple(pair for s, y in parts for pair in self._pair(space, s, y))

    def _pair(self, space: Any, s: Tensor, y: Tensor) -> tuple[tuple[Tensor, Tensor, float, float], ...]:
        """(s, y, <s, y>, |y|) with the dual norm of y, where its curvature is positive; else nothing."""
        product, length = float(torch.dot(s, y)), space.dual_norm(y)
        return ((s, y, product, length),) if product > self.curvature * space.norm(s) * length else ()

    @staticmethod
    def _solve(objective: Objective, pairs: tuple[tuple[Tensor, Tensor, float, float], ...], d: Tensor) -> Tensor:
        """The inverse Hessian model applied to a derivative: the two-loop recursion."""
        q, alphas = d.clone(), list[float]()
        for s, y, product, _ in reversed(pairs):
            alphas.append(float(torch.dot(s, q)) / product)
            q.sub_(y, alpha=alphas[-1])
        r = objective.space.gradient(q)
        if pairs:
            _, _, product, length = pairs[-1]
            r.mul_(product / length**2)
        for s, y, product, _ in pairs:
            r.add_(s, alpha=alphas.pop() - float(torch.dot(y, r)) / product)
        return r


@dataclass(frozen=True)
class NewtonCG:
    """Newton's method by truncated conjugate gradients in a trust region, Nocedal & Wright (2006), section 7.1.

    It needs second derivatives: the objective's ``hessian_product``. The conjugate gradients end when the residual is
    at most min(forcing, (|d| / |d_0|)^exponent) |d|, where d is the derivative and d_0 that of the first step: far from
    the optimum early, near it late enough for convergence of order 1 + exponent (theorem 7.2 there). With bounds, they
    run in the subspace of the free entries, and the step is projected: Bertsekas (1982), "Projected Newton methods for
    optimization problems with simple constraints".

    Parameters
    ----------
    forcing, exponent : float
        Defaults are those of Nocedal & Wright, algorithm 7.1.
    iterations : int
        At most so many Hessian products per step.
    region : TrustRegion
    first : float
        The first radius, in multiples of the norm of the control, or of 1 where that is smaller. On Van der Pol,
        Rayleigh's oscillator and the pendulum 0.1, 1 and 10 made little difference.

    Raises
    ------
    ValueError
        If a number is out of its range; in `step`, if the problem has no second derivatives.
    """

    forcing: float = 0.5
    exponent: float = 0.5
    iterations: int = 50
    region: TrustRegion = TrustRegion()
    first: float = 1.0

    def __post_init__(self) -> None:
        if not (0 < self.forcing < 1 and self.iterations >= 1 and 0 < self.first < inf):
            raise ValueError(
                "forcing, iterations, first: expected a number between 0 and 1, an integer >= 1 and a positive number, "
                f"got {self.forcing}, {self.iterations}, {self.first}"
            )

    def init(self, objective: Objective, control: Tensor) -> State:
        return State(control)

    def step(self, objective: Objective, state: State) -> State:
        u, space = state.control, objective.space
        d, free = free_part(objective, u)
        norm = optimality(objective, u)
        if not (0 < norm < inf and space.dual_norm(d) > 0):
            return replace(state, status=Status.NO_DECREASE)
        radius, start = state.memory or (self.first * max(1.0, space.norm(u)), norm)
        tolerance = min(self.forcing, (norm / start) ** self.exponent)

        def product(s: Tensor) -> Tensor:
            return masked(objective.hessian_product(u, s), free)

        path = steihaug(product, d, space, radius, tolerance, self.iterations)
        accepted = self.region(objective, u, path, radius)
        if accepted is None:
            return replace(state, status=Status.NO_DECREASE)
        control, radius = accepted
        return replace(state, control=control, memory=(radius, start), status=Status.RUNNING)

    def transport(self, memory: Any, transfer: Transfer) -> Any:
        return memory


@dataclass(frozen=True)
class TorchOptimizer:
    """Any ``torch.optim`` class as a method.

    It is given the gradient, not the derivative, so that a learning rate means the same on every grid. Where there are
    bounds it sees the objective at the projected control, and the control is projected after each step. Its state
    dictionary is the memory; on a finer grid it begins anew.

    Parameters
    ----------
    optimizer : callable
        For example ``torch.optim.Adam``.
    options : mapping
        Its keyword arguments, such as ``{"lr": 1e-2}``.

    Examples
    --------
    >>> adam = TorchOptimizer(torch.optim.Adam, {"lr": 1e-2})
    """

    optimizer: Callable[..., torch.optim.Optimizer]
    options: Mapping[str, Any] = field(default_factory=dict)

    def __post_init__(self) -> None:
        if isinstance(self.optimizer, torch.optim.Optimizer) or not callable(self.optimizer):
            got = type(self.optimizer).__name__
            raise TypeError(f"optimizer: expected a class such as torch.optim.Adam, got one of type {got}")

    def init(self, objective: Objective, control: Tensor) -> State:
        return State(control)

    def step(self, objective: Objective, state: State) -> State:
        parameter = nn.Parameter(state.control.clone())
        optimizer = self.optimizer([parameter], **self.options)
        if state.memory is not None:
            optimizer.load_state_dict(_copied(state.memory))  # it would change the tensors in place
        first, finite = True, True

        def closure() -> float:
            nonlocal first, finite
            u = state.control if first else feasible(parameter.detach().clone(), objective.box)
            first = False
            parameter.grad = objective.space.gradient(objective.derivative(u))
            finite = finite and bool(parameter.grad.isfinite().all())
            return objective.value(u)

        optimizer.step(closure)
        if not finite:  # one such number would stay in the moments for good
            return replace(state, status=Status.NOT_FINITE)
        control = feasible(parameter.detach(), objective.box)
        return replace(state, control=control, memory=optimizer.state_dict(), status=Status.RUNNING)

    def transport(self, memory: Any, transfer: Transfer) -> None:
        """Nothing: with moments carried along Adam ended higher on the spiral, the peaks, the digits and MNIST.

        Its squares remember a thousand gradients, the large ones of the beginning among them, and keep the steps small.
        """
        return None


def _copied(memory: Any) -> Any:
    """As ``copy.deepcopy``, which takes longer for a few tensors than a step on a coarse grid."""
    if isinstance(memory, Tensor):
        return memory.clone()
    if isinstance(memory, dict):
        return {key: _copied(value) for key, value in memory.items()}
    return [_copied(value) for value in memory] if isinstance(memory, list) else copy.deepcopy(memory)


#: SciPy's gradient methods that know bounds.
SCIPY_BOUNDED = ("l-bfgs-b", "tnc", "slsqp", "trust-constr")

#: All that need no more than values and gradients.
SCIPY = (*SCIPY_BOUNDED, "cg", "bfgs", "newton-cg")


@dataclass(frozen=True)
class SciPy:
    """``scipy.optimize.minimize`` as a method: one step is one call of at most ``iterations`` iterations.

    The variables are scaled so that SciPy's plain dot product is the time-weighted inner product. What SciPy
    remembers does not survive the call. It computes in float64 on the CPU.

    Parameters
    ----------
    name : str
        A gradient method of SciPy, such as ``"L-BFGS-B"``, ``"CG"`` or ``"BFGS"``.
    iterations : int
        For TNC, which has no such limit, evaluations. The barrier of ``"trust-constr"`` begins anew at each call: with
        bounds give it as many as the whole solve may take, such as 200.

    Raises
    ------
    ValueError
        If SciPy has no such method; in `init`, if there are bounds and the method knows none.
    """

    name: str = "L-BFGS-B"
    iterations: int = 20

    def __post_init__(self) -> None:
        if str(self.name).lower() not in SCIPY:
            raise ValueError(f"name: expected one of {', '.join(SCIPY)}, got {self.name!r}")

    def init(self, objective: Objective, control: Tensor) -> State:
        if objective.box is not None and self.name.lower() not in SCIPY_BOUNDED:
            raise ValueError(
                f"name: expected a method that knows bounds, one of {', '.join(SCIPY_BOUNDED)}, got {self.name!r}"
            )
        return State(control)

    def step(self, objective: Objective, state: State) -> State:
        u = state.control
        scale, box = objective.space.dual(torch.ones_like(u)).sqrt(), objective.box
        bounds = None
        if box is not None:
            low, high = ((bound * scale).double().cpu().numpy() for bound in (box.lower, box.upper))
            bounds = scipy.optimize.Bounds(low, high)

        def control(z: np.ndarray) -> Tensor:
            v = torch.tensor(z, dtype=u.dtype, device=u.device) / scale
            return feasible(v, box)

        def fun(z: np.ndarray) -> tuple[float, np.ndarray]:
            v = control(z)
            return objective.value(v), (objective.derivative(v) / scale).double().cpu().numpy()

        z0 = (u * scale).double().cpu().numpy()
        # Its own tolerance is 0: when to stop is the solver's to say.
        options = {"maxfun" if self.name.lower() == "tnc" else "maxiter": self.iterations}
        found = scipy.optimize.minimize(fun, z0, jac=True, method=self.name, bounds=bounds, tol=0.0, options=options)
        best = control(found.x)
        if not objective.value(best) < objective.value(u):
            return replace(state, status=Status.NO_DECREASE)
        return replace(state, control=best, status=Status.RUNNING)

    def transport(self, memory: None, transfer: Transfer) -> None:
        return None
