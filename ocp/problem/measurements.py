"""Measurements at given times as costs: what is observed of the state is compared with data."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field
from functools import partial
from math import ceil, inf
from typing import Any

import torch
from torch import Tensor

from ocp.problem.boundary import call, check_order, data, uncompiled, with_data
from ocp.problem.functions import hvp, pullback
from ocp.problem.inference import outside
from ocp.problem.parameters import ParameterSet, takes_parameters
from ocp.problem.shapes import BatchState, Cotangent, Scalar, StepControl

__all__ = ["Instant", "Measurements", "Observation"]


@dataclass(frozen=True, eq=False)
class Measurements:
    """Data at given times, which need not be nodes of a grid.

    They add to the objective, with y = ``observe`` and data d,

        (1/2) mean over the batch of the sum over times and components of weight (y(x(t_i), q) - d_i)^2,

    where x(t_i) is one step of the integrator, of the length t_i - t_k, from the last node t_k before t_i. So it has
    the order of the scheme, and means the same on every grid. Each distinct time between nodes costs one such step
    of all samples.

    Parameters
    ----------
    times : Tensor
        Shape (count,), or (batch, count) if each sample has its own; within [0, T].
    values : Tensor
        Shape (batch, count, k), or (count, k) for the same data for all samples. The last dimension may be left out
        if k = 1. NaN marks a number that is missing; the time of a row where all are missing may be NaN, too.
    observe : callable, optional
        y(x) or y(x, q), of shape (batch, k), or (batch,) if k = 1; by default, the numbers of the state. It must treat
        samples independently.
    weight : float or Tensor
        Of each squared difference: a number, or a tensor of shape (k,) or of the shape of ``values``. The inverse of
        the variance of the noise makes the sum a log-likelihood.

    Raises
    ------
    TypeError, ValueError
        If something is no tensor, or of the wrong shape; if there are no data, or a weight is negative.

    Examples
    --------
    >>> t = torch.tensor([0.1, 0.35, 1.0])
    >>> Measurements(t, torch.exp(-t), observe=lambda x: x[:, 0])
    Measurements(3 times, 3 numbers)
    """

    times: Tensor
    values: Tensor
    observe: Callable[..., Tensor] | None = None
    weight: Tensor | float = 1.0
    #: In the shape of the values, and zero where one is missing.
    weights: Tensor = field(init=False, repr=False)
    _takes: bool = field(init=False, repr=False, default=False)

    @outside
    def __post_init__(self) -> None:
        times, values = _with_gaps("times", self.times), _with_gaps("values", self.values)
        if times.ndim not in (1, 2) or not times.numel():
            raise ValueError(f"times: expected shape (count,) or (batch, count), got {tuple(times.shape)}")
        values = values.unsqueeze(-1) if values.ndim == times.ndim else values
        times = times if times.ndim == 2 else times[None]
        own = values if values.ndim == 3 else values[None]
        if own.ndim != 3 or own.shape[1] != times.shape[1] or 1 < len(times) != len(own) or not own.numel():
            raise ValueError(
                f"values: expected shape (batch, count, k), (count, k) or, for k = 1, that of the times "
                f"{tuple(self.times.shape)}, got {tuple(self.values.shape)}"
            )
        weights = self._weights(own).masked_fill(own.isnan(), 0.0)
        present = (weights > 0).any(-1)
        if not bool(present.any()):
            raise ValueError("values: expected at least one number with a positive weight, got none")
        if bool((times.isnan() & present).any()):
            raise ValueError("times: expected a time for each measurement, got NaN for one with values")
        if self.observe is not None:
            if not callable(self.observe):
                raise TypeError(f"observe: expected a function y(x) or y(x, q), got {type(self.observe).__name__}")
            check_order("observe", self.observe, "x", "q")
            vars(self)["_takes"] = takes_parameters(self.observe, 1)
        vars(self).update(times=times, values=own, weights=weights)

    def _weights(self, values: Tensor) -> Tensor:
        """The weights in the shape of the values."""
        given: Any = self.weight
        weight = data("weight", torch.tensor(float(given)) if isinstance(given, int | float) else given, "a number")
        if weight.ndim and weight.shape != (values.shape[2],):
            known = {values.shape, tuple(self.values.shape), (values.shape[1:] if len(values) == 1 else values.shape)}
            if weight.shape not in known:
                raise ValueError(
                    f"weight: expected a number, shape ({values.shape[2]},) or the shape of the values "
                    f"{tuple(self.values.shape)}, got {tuple(weight.shape)}"
                )
            weight = weight.reshape(values.shape)
        if bool((weight < 0).any()):
            raise ValueError(f"weight: expected numbers >= 0, got {float(weight.min()):g}")
        return weight.to(values).expand(values.shape)

    def __repr__(self) -> str:
        times = int(torch.unique(self.times[~self.times.isnan()]).numel())
        return f"Measurements({times} times, {int((self.weights > 0).sum())} numbers)"

    @property
    def size(self) -> int:
        """k, how many numbers are observed at a time."""
        return self.values.shape[2]

    @property
    def takes_parameters(self) -> bool:
        """Whether what is observed depends on the parameters."""
        return self._takes

    @property
    def last(self) -> float:
        """The last time."""
        return float(self.times.nan_to_num(nan=-inf).max())

    @property
    def rounding(self) -> float:
        """The relative rounding error of times."""
        return torch.finfo(self.times.dtype).eps

    def take(self, indices: Tensor) -> Measurements:
        """The same measurements of some of the samples, in the given order."""
        own = {name: getattr(self, name) for name in ("times", "values", "weights")}
        return with_data(self, **{name: part[indices] if len(part) > 1 else part for name, part in own.items()})

    def check(self, horizon: float) -> None:
        """Raise a ``ValueError`` if a time is outside [0, T]."""
        first, slack = float(self.times.nan_to_num(nan=inf).min()), self.rounding * horizon
        if first < 0 or self.last > horizon + slack:
            wrong = first if first < 0 else self.last
            raise ValueError(f"measurements: expected times between 0 and the horizon {horizon:g}, got {wrong:g}")

    def check_batch(self, samples: int) -> None:
        """Raise a ``ValueError`` if it was made for another number of samples."""
        if len(self.values) not in (1, samples):
            raise ValueError(
                f"measurements: expected values for each of the {samples} samples of the initial state, "
                f"got values for {len(self.values)}"
            )

    def instants(self, like: BatchState) -> list[Instant]:
        """The measurements by time, for the batch, dtype and device of a state."""
        batch = len(like)
        times = self.times.double().cpu().expand(batch, -1)
        values, weights = (part.expand(batch, -1, -1).to(like) for part in (self.values.nan_to_num(), self.weights))
        places = (self.weights > 0).any(-1).expand(batch, -1).cpu().nonzero()
        found, which = torch.unique(times[places[:, 0], places[:, 1]], return_inverse=True)
        parts = places[which.argsort(stable=True)].split(which.bincount().tolist())
        instants = []
        for time, part in zip(found.tolist(), parts, strict=True):
            samples, numbers = part.to(like.device).unbind(1)
            instants.append(Instant(time, samples, numbers, values[samples, numbers], weights[samples, numbers]))
        return instants


def _with_gaps(name: str, numbers: Any) -> Tensor:
    """A user's numbers, some of which may be NaN."""
    if not isinstance(numbers, Tensor) or not numbers.is_floating_point():
        return data(name, numbers).double()
    data(name, numbers.nan_to_num(0.0, inf, -inf))
    return numbers.detach().clone()


@dataclass(frozen=True, eq=False)
class Instant:
    """All measurements at one time.

    Attributes
    ----------
    time : float
    samples, numbers : Tensor
        Shape (n,): of which samples, and where they are in the second dimension of the data.
    values, weights : Tensor
        Shape (n, k).
    """

    time: float
    samples: Tensor
    numbers: Tensor
    values: Tensor
    weights: Tensor

    def miss(self, y: Tensor) -> Tensor:
        """The differences from the data, shape (n, k), for what is observed of all samples."""
        return y[self.samples] - self.values


@dataclass(frozen=True, eq=False)
class Observation:
    """The costs of measurements, as the steps of an integrator see them.

    Attributes
    ----------
    measurements : Measurements
    control_size : int
        Where the parameters begin in what is fixed during a step.
    parameters : ParameterSet
    horizon : float
    """

    measurements: Measurements
    control_size: int
    parameters: ParameterSet
    horizon: float
    _plans: dict[Any, dict[int, list[tuple[float, Instant]]]] = field(init=False, repr=False, default_factory=dict)

    def __call__(self, x: BatchState, q: Tensor) -> Tensor:
        """What is observed, shape (batch, k)."""
        observe, k = self.measurements.observe, self.measurements.size
        if observe is None:
            y = x.flatten(1)
        else:
            arguments = {"x": x, "q": self.parameters(q)} if self.measurements.takes_parameters else {"x": x}
            y = call("observe", uncompiled(observe), **arguments)
        if not isinstance(y, Tensor):
            raise ValueError(f"observe: expected a tensor of shape {(len(x), k)}, got {type(y).__name__}")
        if y.shape != (len(x), k) and not (k == 1 and y.shape == (len(x),)):
            raise ValueError(f"observe: expected shape {(len(x), k)}, as the values have, got {tuple(y.shape)}")
        return y.reshape(len(x), k)

    def take(self, indices: Tensor) -> Observation:
        """The same on some of the samples."""
        return Observation(self.measurements.take(indices), self.control_size, self.parameters, self.horizon)

    def within(self, t: float, h: float, x: BatchState) -> list[tuple[float, Instant]]:
        """The measurements in the step from time t of length h, and how long after t they are.

        A time at a node belongs to the step that ends there, and time 0 to the first step.
        """
        steps = round(self.horizon / h)
        key = (steps, len(x), x.dtype, x.device)
        if key not in self._plans:
            self._plans[key] = self._plan(steps, x)
        return self._plans[key].get(round(t / h), [])

    def _plan(self, steps: int, x: Tensor) -> dict[int, list[tuple[float, Instant]]]:
        plan: dict[int, list[tuple[float, Instant]]] = {}
        slack, h = self.measurements.rounding * self.horizon, self.horizon / steps
        for instant in self.measurements.instants(x):
            k = min(max(ceil((instant.time - slack) / h) - 1, 0), steps - 1)
            after = instant.time - k * self.horizon / steps
            after = 0.0 if after <= slack else h if h - after <= slack else after
            plan.setdefault(k, []).append((after, instant))
        return plan

    def cost(self, at: Instant, x: BatchState, v: StepControl) -> Scalar:
        """The cost of the measurements at one time, with the state there and what is fixed during the step."""
        miss = at.miss(self(x, v[self.control_size :]))
        return 0.5 * (at.weights * miss.square()).sum() / len(x)

    def derivative(self, at: Instant, x: BatchState, v: StepControl) -> Cotangent:
        """Of the cost, by state and v."""
        return pullback(partial(self.cost, at), (x, v))

    def hvp(self, at: Instant, x: BatchState, v: StepControl, dx: BatchState, dv: StepControl) -> Cotangent:
        """The Hessian of the cost applied to a direction."""
        return hvp(partial(self.cost, at), (x, v), (dx, dv))
