"""The optimizers of SciPy and torch as methods."""

from __future__ import annotations

import copy
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field, replace
from math import inf, isfinite
from typing import Any, ClassVar

import numpy as np
import torch
from torch import Tensor, nn

from ocp.objective.evaluation import Objective
from ocp.optimize.method import Method, State
from ocp.optimize.status import Status
from ocp.space.bounds import feasible
from ocp.space.transfer import Transfer

__all__ = ["SciPy", "TorchOptimizer"]

#: SciPy's gradient methods that support bounds, and all that need values and gradients only.
SCIPY_BOUNDED = ("l-bfgs-b", "tnc", "slsqp", "trust-constr")
SCIPY = (*SCIPY_BOUNDED, "cg", "bfgs", "newton-cg")


@dataclass(frozen=True)
class SciPy(Method):
    """``scipy.optimize.minimize`` as a method: one step is one call, and nothing is remembered between calls.

    The variables are scaled so that SciPy's plain dot product is the time-weighted inner product. SciPy computes in
    float64 on the CPU.

    Parameters
    ----------
    name : str
        A gradient method of SciPy, such as ``"L-BFGS-B"``, ``"CG"`` or ``"BFGS"``.
    iterations : int
        At most this many per call; evaluations for TNC. The barrier of ``"trust-constr"`` begins anew at each call:
        with bounds, allow as many iterations as the whole solve may take, such as 200.

    Raises
    ------
    ValueError
        If SciPy has no such method; in `check`, if there are bounds and the method does not support them.
    """

    name: str = "L-BFGS-B"
    iterations: int = 20
    full_batch: ClassVar[bool] = True

    def __post_init__(self) -> None:
        if str(self.name).lower() not in SCIPY:
            raise ValueError(f"name: expected one of {', '.join(SCIPY)}, got {self.name!r}")

    def check(self, objective: Objective) -> None:
        if objective.box is not None and self.name.lower() not in SCIPY_BOUNDED:
            raise ValueError(
                f"name: expected a method that supports bounds, one of {', '.join(SCIPY_BOUNDED)}, got {self.name!r}"
            )

    def step(self, objective: Objective, state: State) -> State:
        import scipy.optimize  # slow to import, and most runs do without it

        point, box = state.point, objective.box
        scale = objective.space.dual(torch.ones_like(point.control)).sqrt()
        z0, bounds = _array(point.control * scale), None
        if box is not None:
            bounds = scipy.optimize.Bounds(_array(box.lower * scale), _array(box.upper * scale))

        def control(z: np.ndarray) -> Tensor:
            return feasible(torch.tensor(z, dtype=scale.dtype, device=scale.device) / scale, box)

        def fun(z: np.ndarray) -> tuple[float, np.ndarray]:
            nonlocal point
            point = state.point if np.array_equal(z, z0) else objective.at(control(z))
            return point.value * unit, _array(point.derivative / scale) * unit

        # SciPy's first steps and tests suit objectives of usual size.
        size = abs(point.value)
        unit = 1.0 if USUAL[0] < size < USUAL[1] or not 0 < size < inf else 1 / size
        # SciPy's own tolerance is 0: the run decides when to stop.
        options = {"maxfun" if self.name.lower() == "tnc" else "maxiter": self.iterations}
        found = scipy.optimize.minimize(fun, z0, jac=True, method=self.name, bounds=bounds, tol=0.0, options=options)
        best = control(found.x)
        point = point if torch.equal(point.control, best) else objective.at(best)
        if not point.value < state.point.value:
            return replace(state, status=Status.NO_DECREASE)
        return replace(state, point=point, status=Status.RUNNING)


def _array(vector: Tensor) -> np.ndarray:
    return vector.double().cpu().numpy()


#: Sizes of objectives that are passed to SciPy unchanged; others are divided by their size.
USUAL = (1e-3, 1e6)


@dataclass(frozen=True)
class TorchOptimizer(Method):
    """Any ``torch.optim`` class as a method; ``options`` are its keyword arguments.

    It gets the gradient, not the derivative, so that a learning rate means the same on every grid. With bounds, it sees
    projected controls only, and each step is projected. On a finer grid it begins anew.

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

    @property
    def full_batch(self) -> bool:
        return isinstance(self.optimizer, type) and issubclass(self.optimizer, torch.optim.LBFGS)

    def step(self, objective: Objective, state: State) -> State:
        parameter = nn.Parameter(state.control.clone())
        optimizer = self.optimizer([parameter], **self.options)
        if state.memory is not None:
            optimizer.load_state_dict(_copied(state.memory))  # it would change the tensors in place
        finite: list[bool] = []

        def closure() -> float:
            point = objective.at(feasible(parameter.detach().clone(), objective.box)) if finite else state.point
            gradient = objective.space.gradient(point.derivative)
            finite.append(isfinite(point.value) and bool(gradient.isfinite().all()))
            if not finite[-1]:  # such numbers would stay in the moments for good, and searches fail on them
                raise _NotFiniteError
            parameter.grad = gradient
            return point.value

        try:
            optimizer.step(closure)
        except _NotFiniteError:
            return replace(state, status=Status.NOT_FINITE)
        control = feasible(parameter.detach(), objective.box)
        return replace(state, point=objective.at(control), memory=optimizer.state_dict(), status=Status.RUNNING)

    def transport(self, memory: Any, transfer: Transfer) -> None:
        """None: with its moments carried along, Adam ended higher on the spiral, the peaks, the digits and MNIST.

        The squares remember a thousand gradients, including the large ones of the beginning, and keep the steps small.
        """


class _NotFiniteError(Exception):
    """A trial value or gradient that is not finite; it ends the step of an optimizer."""


def _copied(memory: Any) -> Any:
    """As ``copy.deepcopy``, which takes longer than a step on a coarse grid."""
    if isinstance(memory, Tensor):
        return memory.clone()
    if isinstance(memory, dict):
        return {key: _copied(value) for key, value in memory.items()}
    return [_copied(value) for value in memory] if isinstance(memory, list) else copy.deepcopy(memory)
