"""``scipy.optimize.minimize`` as a method."""

from __future__ import annotations

from dataclasses import dataclass, replace

import numpy as np
import torch
from torch import Tensor

from ocp.objective.evaluation import Evaluation, Objective
from ocp.optimize.method import State
from ocp.optimize.status import Status
from ocp.space.bounds import feasible
from ocp.space.transfer import Transfer

__all__ = ["SciPy"]

#: SciPy's gradient methods that support bounds.
SCIPY_BOUNDED = ("l-bfgs-b", "tnc", "slsqp", "trust-constr")

#: All that need no more than values and gradients.
SCIPY = (*SCIPY_BOUNDED, "cg", "bfgs", "newton-cg")


@dataclass(frozen=True)
class SciPy:
    """``scipy.optimize.minimize`` as a method: one step is one call of at most ``iterations`` iterations.

    The variables are scaled so that SciPy's plain dot product is the time-weighted inner product. SciPy remembers
    nothing from call to call, and computes in float64 on the CPU.

    Parameters
    ----------
    name : str
        A gradient method of SciPy, such as ``"L-BFGS-B"``, ``"CG"`` or ``"BFGS"``.
    iterations : int
        Evaluations for TNC, which does not limit iterations. The barrier of ``"trust-constr"`` begins anew at each
        call: with bounds, allow as many iterations as the whole solve may take, such as 200.

    Raises
    ------
    ValueError
        If SciPy has no such method; in `init`, if there are bounds and the method does not support them.
    """

    name: str = "L-BFGS-B"
    iterations: int = 20

    def __post_init__(self) -> None:
        if str(self.name).lower() not in SCIPY:
            raise ValueError(f"name: expected one of {', '.join(SCIPY)}, got {self.name!r}")

    def init(self, objective: Objective, point: Evaluation) -> State:
        if objective.box is not None and self.name.lower() not in SCIPY_BOUNDED:
            raise ValueError(
                f"name: expected a method that supports bounds, one of {', '.join(SCIPY_BOUNDED)}, got {self.name!r}"
            )
        return State(point)

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
            return point.value, _array(point.derivative / scale)

        # SciPy's own tolerance is 0: the run decides when to stop.
        options = {"maxfun" if self.name.lower() == "tnc" else "maxiter": self.iterations}
        found = scipy.optimize.minimize(fun, z0, jac=True, method=self.name, bounds=bounds, tol=0.0, options=options)
        best = control(found.x)
        point = point if torch.equal(point.control, best) else objective.at(best)
        if not point.value < state.point.value:
            return replace(state, status=Status.NO_DECREASE)
        return replace(state, point=point, status=Status.RUNNING)

    def transport(self, memory: None, transfer: Transfer) -> None:
        return None


def _array(vector: Tensor) -> np.ndarray:
    return vector.double().cpu().numpy()
