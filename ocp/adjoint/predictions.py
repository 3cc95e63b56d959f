"""What the measurements of a problem should be at a control, and the derivatives of that by the parameters."""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from typing import Any

import torch
from torch import Tensor

from ocp.adjoint.all_steps import RungeKuttaSteps
from ocp.adjoint.discretization import Discretization
from ocp.adjoint.rows import Rows, pointwise
from ocp.integrators.observing import Motion
from ocp.integrators.runge_kutta import RungeKutta
from ocp.problem.boundary import same
from ocp.problem.dynamics import FunctionDynamics
from ocp.problem.measurements import Observation
from ocp.problem.shapes import FlatControl

__all__ = ["Prediction"]

#: The most numbers in a state, all samples together, for which Jacobians of steps are computed.
MOST = 64


class Prediction:
    """What is observed of the trajectory of a control, as the costs of the measurements see it.

    Parameters
    ----------
    discretization : Discretization
        Of a problem with measurements.
    control : Tensor
        Flat.

    Attributes
    ----------
    states : Tensor
        Shape (N + 1, batch, *state): the trajectory.
    values : Tensor
        In the shape of the data, (batch, count, k); NaN where a time has no data.
    """

    @torch.no_grad()
    def __init__(self, discretization: Discretization, control: FlatControl):
        problem, self._grid, self._integrator = discretization.problem, discretization.grid, discretization.integrator
        assert problem.equation.observation is not None
        self._observation: Observation = problem.equation.observation
        self._motion, self._initial_state = Motion(problem.equation.dynamics), problem.initial_state
        self._q, self._inputs = discretization.space.parameters(control), discretization.inputs(control)
        self._depends = problem.equation.parameter_size > 0
        nodes, h, N = self._grid.nodes, self._grid.h, self._grid.steps
        x = [problem.initial_state(self._q)]
        for k in range(N):
            x.append(self._step(k, h, x[k]))
        self.states = torch.stack(x)
        #: The measurements, each with its step and how long after the beginning of that it is.
        self._places = [(k, *place) for k in range(N) for place in self._observation.within(nodes[k], h, x[k])]
        self._seen = torch.stack(
            [x[k + 1] if length == h else self._step(k, length, x[k]) for k, length, _ in self._places]
        )
        self.values = self._in_data(self._look.values(*self._points))

    def _step(self, k: int, length: float, x: Tensor) -> Tensor:
        """The state a while after node k."""
        if not length:
            return x
        return self._integrator.step(self._motion, self._grid.nodes[k], length, x, self._inputs[k])[0]

    @property
    def _points(self) -> tuple[Tensor, Tensor, Tensor]:
        """Times, which do not matter, the states that are observed, and the parameters, as rows."""
        rows = len(self._seen)
        return self._q.new_zeros(rows), self._seen.flatten(1), self._q.expand(rows, -1)

    @property
    def _look(self) -> Rows:
        """What is observed of all samples, as a function of rows."""
        x = self.states[0]

        def look(t: float, z: Tensor, q: Tensor) -> Tensor:
            return self._observation(z.view(x.shape), q).flatten()

        return Rows(pointwise(look, x.flatten(), self._q, "observe"), len(x) * self._observation.measurements.size)

    def _in_data(self, seen: Tensor) -> Tensor:
        """Numbers for each observation, shape (times, batch k, ...), in the shape of the data."""
        batch, (_, count, size) = len(self.states[0]), self._observation.measurements.values.shape
        found = seen.new_full((batch, count, size, *seen.shape[2:]), torch.nan)
        for (_, _, instant), numbers in zip(self._places, seen.unflatten(1, (batch, size)), strict=True):
            found[instant.samples, instant.numbers] = numbers[instant.samples]
        return found

    @property
    def fitted(self) -> Tensor:
        """What is observed at the nodes, shape (N + 1, batch, k)."""
        return torch.stack([self._observation(x, self._q) for x in self.states.unbind(0)])

    @torch.no_grad()
    def sensitivities(self) -> Tensor:
        """The derivatives of the values by the parameters, shape (batch, count, k, s); exact for the discrete problem.

        For small states, from the Jacobians of all steps and their parts, which one tape gives; otherwise from sweeps
        of tangents.
        """
        x, q = self.states[0], self._q
        dx = _rows(partial(self._initial_state.jvp, q), x, torch.eye(len(q)).to(q))  # (s, batch, *state)
        by_parameters = self._small(dx)
        if by_parameters is None:
            by_parameters = self._swept(dx)
        n = x.numel()
        J = self._look.record(*self._points).jacobian().permute(2, 0, 1)
        return self._in_data(J[:, :, :n] @ by_parameters + J[:, :, n:])

    def _small(self, dx: Tensor) -> Tensor | None:
        """The derivatives of the observed states by the parameters, shape (times, n, s); None if this way is closed.

        A part of a step, of length l from time t, is one step of length 1 from time 0 of x' = l f(t + l time, x, v); so
        whole steps and parts of them are all alike.
        """
        f, scheme, shape, n = self._motion.dynamics, self._integrator, self.states.shape[1:], dx[0].numel()
        if type(f) is not FunctionDynamics or type(scheme) is not RungeKutta or n > MOST:
            return None
        N, steps, size = self._grid.steps, [k for k, _, _ in self._places], self._inputs.shape[1]
        begin, lengths = [*range(N), *steps], [self._grid.h] * N + [length for _, length, _ in self._places]
        x, v = self.states[begin].flatten(1), self._inputs[begin]
        t = v.new_tensor([self._grid.nodes[k] for k in begin])
        w, zeros = torch.cat((v, t[:, None], v.new_tensor(lengths)[:, None]), 1), torch.zeros_like(t)

        def rates(time: float, x: Tensor, w: Tensor) -> Tensor:
            t: Any = w[-2] + time * w[-1]
            slope = w[-1] * f(t, x.view(shape), w[:size]).flatten()
            return torch.cat((slope, slope.new_zeros(1)))

        try:
            rows = Rows(pointwise(rates, x[0], w[0], "dynamics"), n + 1)
            all_steps = RungeKuttaSteps(rows, scheme.tableau, 1.0)
            ends, taken = all_steps.take(zeros, x, w)
            if not same(ends[:N, :n], self.states[1:].flatten(1)):  # of times that are tensors it is another function
                return None
            J = all_steps.jacobians(zeros, taken, w).permute(2, 0, 1)[:, :n]
        except Exception:  # anything: the function expects times that are numbers
            return None
        A, B = J[:, :, :n], J[:, :, n : n + size] @ self._along.mT
        tangents = [dx.flatten(1).mT]
        for k in range(N):
            tangents.append(torch.addmm(B[k], A[k], tangents[k]))
        return A[N:] @ torch.stack(tangents)[steps] + B[N:]

    def _swept(self, dx: Tensor) -> Tensor:
        """The same by sweeps of tangents in all directions."""

        def moved(k: int, length: float, dx: Tensor) -> Tensor:
            at = self._grid.nodes[k], length, self.states[k], self._inputs[k]
            tangent = partial(self._integrator.tangent, self._motion, *at)
            return _rows(lambda *way: tangent(*way)[0], at[2], dx, self._along) if length else dx

        tangents = [dx]
        for k in range(self._grid.steps):
            tangents.append(moved(k, self._grid.h, tangents[k]))
        found = [
            tangents[k + 1] if length == self._grid.h else moved(k, length, tangents[k])
            for k, length, _ in self._places
        ]
        return torch.stack(found).flatten(2).mT

    @property
    def _along(self) -> Tensor:
        """The directions of all parameters in what is fixed during a step, shape (s, size)."""
        along = self._q.new_zeros(len(self._q), self._inputs.shape[1])
        if self._depends:
            along[:, -len(self._q) :] = torch.eye(len(self._q))
        return along


def _rows(function: Callable[..., Tensor], like: Tensor, *rows: Tensor) -> Tensor:
    """The values of a function of directions, each like ``like``: at once where ``torch.func.vmap`` can map it."""
    if not len(rows[0]):
        return like.new_zeros(0, *like.shape)
    try:
        values = torch.func.vmap(function)(*rows)
        assert isinstance(values, Tensor)
        return values
    except Exception:  # anything: the function was not written for vmap
        return torch.stack([function(*row) for row in zip(*rows, strict=True)])
