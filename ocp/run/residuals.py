"""The sum of squares of a problem's measurements as a function of its parameters, and its minimum by SciPy."""

from __future__ import annotations

from math import inf

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from ocp.adjoint.discretization import Discretization
from ocp.adjoint.predictions import Prediction
from ocp.optimize.status import Status
from ocp.space.control import Control

__all__ = ["Array", "Residuals"]

#: Numbers of SciPy.
Array = NDArray[np.float64]


class Residuals:
    """Weighted differences between predictions and data, as a function of all s parameters.

    Parameters
    ----------
    discretization : Discretization
        Of a problem whose only unknowns are parameters and whose only cost are measurements.

    Attributes
    ----------
    start, lower, upper : array
        Shape (s,).
    data, present : Tensor
        Shape (batch, count, k): the data, and where there are any.
    evaluations : int
        Trajectories computed so far.
    """

    def __init__(self, discretization: Discretization):
        measurements, batch = discretization.problem.measurements, len(discretization.example()[0])
        assert measurements is not None
        self.discretization, self.measurements, self.evaluations = discretization, measurements, 0
        self._flat = discretization.start().flat
        weights = measurements.weights.expand(batch, -1, -1)
        self.present, self.data = weights > 0, measurements.values.expand(batch, -1, -1).to(self._flat)
        self._roots = weights.sqrt().to(self._flat)
        box, s = discretization.box, len(self._flat)
        self.start = _array(self._flat)
        self.lower = np.full(s, -inf) if box is None else _array(box.lower)
        self.upper = np.full(s, inf) if box is None else _array(box.upper)
        self._last: tuple[bytes, Prediction] | None = None

    @property
    def eps(self) -> float:
        """The rounding error of the numbers of the problem."""
        return torch.finfo(self._flat.dtype).eps

    def on(self, steps: int) -> Residuals:
        """The same on another grid."""
        return Residuals(self.discretization.on(steps))

    def control(self, q: Array) -> Control:
        """The parameters as a control."""
        return Control(self.discretization.space, torch.from_numpy(np.array(q)).to(self._flat))

    def prediction(self, q: Array) -> Prediction:
        """What is observed at parameters q."""
        if self._last is None or self._last[0] != q.tobytes():
            self.evaluations += 1
            self._last = q.tobytes(), Prediction(self.discretization, self.control(q).flat)
        return self._last[1]

    def residuals(self, q: Array) -> Array:
        """The differences, each times the root of its weight."""
        return _array((self._roots * (self.prediction(q).values - self.data))[self.present])

    def jacobian(self, q: Array) -> Array:
        """Their derivatives, shape (numbers, s)."""
        return _array((self._roots[..., None] * self.prediction(q).sensitivities())[self.present])

    @property
    def size(self) -> float:
        """The norm of the data, with their weights."""
        return float((self._roots * self.data)[self.present].norm())

    def held(self, q: Array, slope: Array) -> NDArray[np.bool_]:
        """Which parameters a bound holds: fixed ones, and those at a bound that the slope would have them cross."""
        at_lower, at_upper = q <= self.lower, q >= self.upper
        return (at_lower & at_upper) | (at_lower & (slope >= 0)) | (at_upper & (slope <= 0))

    def solve(self, tolerance: float, evaluations: int) -> tuple[Status, Array, float]:
        """How it ends, the parameters, and the share of the residuals that a change of them could still explain."""
        from scipy.optimize import least_squares  # here, since importing it takes a while

        free, q = self.lower < self.upper, self.start
        if not np.isfinite(self.residuals(q)).all():
            return Status.NOT_FINITE, q, inf

        def all_of(part: Array) -> Array:
            whole = q.copy()
            whole[free] = part
            return whole

        bounded = bool(np.isfinite(self.lower[free]).any() or np.isfinite(self.upper[free]).any())
        eps = float(np.finfo(float).eps)
        try:
            found = least_squares(
                lambda part: self.residuals(all_of(part)),
                q[free],
                lambda part: _finite(self.jacobian(all_of(part)))[:, free],
                (self.lower[free], self.upper[free]),
                "dogbox" if bounded else "trf",  # dogbox ends at bounds exactly, trf inside of them
                ftol=max(tolerance**2, eps),
                xtol=eps,
                gtol=None,  # it depends on units
                x_scale="jac",
                max_nfev=evaluations,
            )
        except FloatingPointError:
            return Status.NOT_FINITE, q, inf
        reached = all_of(found.x)
        share, norm = self.explained(reached), float(np.linalg.norm(self.residuals(reached)))
        if share <= tolerance:
            return Status.CONVERGED, reached, share
        if found.status == 0:
            return Status.MAX_ITERATIONS, reached, share
        hidden = share**2 <= self.eps**0.75 * max(1.0, self.size / norm)
        return (Status.PRECISION if hidden else Status.NO_DECREASE), reached, share

    def explained(self, q: Array) -> float:
        """The norm of the residuals' part that free parameters explain to first order, as a share of all of it.

        Zero if it is within the rounding errors of the predictions.
        """
        r, J = self.residuals(q), self.jacobian(q)
        part = J[:, ~self.held(q, J.T @ r)]
        explained = float(np.linalg.norm(part @ np.linalg.lstsq(part, r, rcond=None)[0])) if part.size else 0.0
        rounding = self.eps**0.75 * self.size
        return 0.0 if explained <= rounding else explained / float(np.linalg.norm(r))


def _array(tensor: Tensor) -> Array:
    return tensor.detach().cpu().double().numpy()


def _finite(J: Array) -> Array:
    if not np.isfinite(J).all():
        raise FloatingPointError
    return J
