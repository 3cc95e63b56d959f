"""All steps of a sweep at once: the trajectory by Newton's method, the costates by one linear recursion."""

from __future__ import annotations

from collections.abc import Callable
from functools import cached_property
from typing import Any

import torch
from torch import Tensor
from torch.nn.functional import adaptive_avg_pool1d, interpolate

from ocp.adjoint.at_once import Bidiagonal
from ocp.adjoint.sample_steps import SampleSteps, Unusable, negligible, product
from ocp.adjoint.tapes import Tape
from ocp.integrators.observing import Motion
from ocp.integrators.runge_kutta import RungeKutta
from ocp.problem.boundary import same
from ocp.problem.protocols import StateEquation
from ocp.problem.shapes import BatchState, ControlPath, NodeStates, Scalar
from ocp.space.grid import TimeGrid

__all__ = ["Simultaneous"]

#: The most iterations. From the trajectory on a coarser grid two or three are enough.
ITERATIONS = 8
#: How many steps of a grid make one of the next coarser grid.
COARSENING = 8
#: The most steps on the coarsest grid, where they are taken in turn: implicit ones take longer, and may be large.
EXPLICIT_STEPS, IMPLICIT_STEPS = 32, 8
#: To what accuracy trajectories on coarser grids are computed.
ROUGH = 0.03


class Simultaneous:
    """A `Tape` that takes all steps of a grid at once, for Runge-Kutta steps of `Vectorized` dynamics of few numbers.

    The trajectory solves x_{k+1} = Psi(x_k, u_k) for all k: Newton's method, each of whose iterations evaluates all
    steps with their Jacobians and solves one block-bidiagonal system: Lim, Zhu, Selfridge & Kasim (2024),
    "Parallelizing non-linear sequential models over the sequence length". It starts from the trajectory of the averaged
    control on a grid with an eighth of the steps, so that the result depends on nothing but state and control. Costates
    solve one transposed system.

    The method ends with an update below eps^(1/2) of the states and another one, with the same Jacobians, below
    eps^(3/4), so that about eps^(1/4) times that is left, which is rounding. The second update includes what the
    rounding errors of all steps make of the states. So if nearby trajectories diverge fast, the loop takes over, as it
    does if Newton's method fails, a number is not finite, or samples depend on each other after all.

    Parameters
    ----------
    integrator : RungeKutta
    grid : TimeGrid
    shape : torch.Size
        Of the state: (batch, *state).
    samples : int
        ``batch`` if no sample depends on another one, else 1.
    loop : callable
        Returns a tape that takes the steps in turn.
    """

    def __init__(
        self, integrator: RungeKutta, grid: TimeGrid, shape: torch.Size, samples: int, loop: Callable[[], Tape]
    ):
        self.integrator, self.grid, self.shape, self.samples, self._make = integrator, grid, shape, samples, loop

    @cached_property
    def _loop(self) -> Tape:
        return self._make()

    def forward(self, problem: StateEquation, first: int, x: BatchState, path: ControlPath) -> Scalar | None:
        self._problem, self._start, self._path = problem, x, path
        self._steps = self._of(len(path))
        self._t = torch.tensor(self.grid.nodes[:-1], dtype=x.dtype)
        try:
            nodes = self._trajectory()
        except Unusable:
            nodes = None
        self.succeeded = nodes is not None
        if nodes is None:
            cost = self._loop.forward(problem, first, x, path)
            self.end = self._loop.end
            return cost
        self._nodes, self._stages = nodes, self._steps.take(self._t, nodes[..., :-1], path)[1]
        self.end = self.states[-1]
        if problem.running_cost is None:
            return None
        L: Any = problem.running_cost
        costs = [hb * L.along(t, self._steps.points(X), path).sum() for _, hb, t, X in self._quadrature()]
        return torch.stack(costs).sum()

    @property
    def states(self) -> NodeStates:
        return self._steps.points(self._nodes).contiguous() if self.succeeded else self._loop.states

    def backward(self, p: BatchState, derivative: ControlPath) -> BatchState:
        if self.succeeded:
            start, by_control = self._costates(p)
            if bool(start.isfinite().all() & by_control.isfinite().all()):
                derivative.copy_(by_control)
                return start
            self._loop.forward(self._problem, 0, self._start, self._path)
        return self._loop.backward(p, derivative)

    def _of(self, steps: int) -> SampleSteps:
        f: Any = self._problem.dynamics
        return SampleSteps(f, self.integrator.tableau, self.grid.horizon / steps, self.shape)

    def _quadrature(self) -> list[tuple[int, float, Tensor, Tensor]]:
        """For each stage i with a weight: i, h b_i, its times and states in all steps."""
        h, c = self.grid.h, self.integrator.tableau.c
        return [(i, h * b, self._t + c[i] * h, self._stages[i]) for i, b in self.integrator.tableau.weights]

    def _trajectory(self) -> Tensor | None:
        """The states at all nodes, shape (n, samples, N + 1); None if the loop has to find them."""
        guess = self._guess(self._path)
        return (
            None
            if guess is None
            else self._settled(guess, self._path, torch.finfo(guess.dtype).eps ** 0.5, refine=True)
        )

    def _guess(self, path: Tensor) -> Tensor | None:
        """States from the trajectory of the averaged control on a coarser grid; None if that is not finite."""
        steps = -(-len(path) // COARSENING)
        coarse, found = adaptive_avg_pool1d(path.mT[None], steps)[0].mT, None
        coarsest = steps <= (EXPLICIT_STEPS if self.integrator.tableau.explicit else IMPLICIT_STEPS)
        guess = None if coarsest else self._guess(coarse)
        if guess is not None:
            found = self._settled(guess, coarse, ROUGH)
        if found is None:
            found = self._in_turn(coarse)
        return interpolate(found, len(path) + 1, mode="linear", align_corners=True) if found.isfinite().all() else None

    def _in_turn(self, path: Tensor) -> Tensor:
        """The states for a path of any number of steps, one after the other."""
        h, x, equation = self.grid.horizon / len(path), [self._start], Motion(self._problem.dynamics)
        for k, u in enumerate(path.unbind(0)):
            x.append(self.integrator.step(equation, k * h, h, x[k], u)[0])
        return self._of(len(path)).arranged(torch.stack(x), self.samples).contiguous()

    def _settled(self, x: Tensor, path: Tensor, accuracy: float, refine: bool = False) -> Tensor | None:
        """The solution by Newton's method from the states x; None if it does not settle."""
        steps, right, eps = self._of(len(path)), torch.zeros_like(x), torch.finfo(x.dtype).eps
        t = torch.arange(len(path), dtype=x.dtype) * steps.h
        for _ in range(ITERATIONS):
            ends, J = steps.linearize(t, x[..., :-1], path)
            torch.sub(ends, x[..., 1:], out=right[..., 1:])
            if not bool(J.isfinite().all() & right.isfinite().all()):
                return None
            system = _chain(J)
            update = _solve(system, right)
            x = x + update
            # What is added up in a step has its size, also where the sum is small.
            size = product(J.abs(), x[:, None, :, :-1].abs())[:, 0]
            if not negligible(update, size, accuracy):
                continue
            if not refine:
                return x
            torch.sub(steps.take(t, x[..., :-1], path)[0], x[..., 1:], out=right[..., 1:])
            update = _solve(system, right)
            x = x + update
            if negligible(update, size, eps**0.75):
                return x
        return None

    def _costates(self, p: Tensor) -> tuple[Tensor, Tensor]:
        """The costate at the start, and the derivatives by the path: NaN if samples depend on each other after all."""
        steps, u, nodes = self._steps, self._path, self._nodes
        h, c, L = steps.h, steps.tableau.c, self._problem.running_cost
        stages = [steps.record(self._t + h * ci, x, u) for ci, x in zip(c, self._stages, strict=True)]
        by_state, by_control = [stage.jacobian() for stage in stages], torch.zeros_like(u)
        sources: list[Tensor | None] = [None] * len(stages)
        right = torch.zeros_like(nodes)
        if L is not None:
            cost: Any = L
            for i, hb, t, x in self._quadrature():
                Lx, Lu = cost.derivative_along(t, steps.points(x), u)
                sources[i] = hb * steps.arranged(Lx, self.samples)
                by_control.add_(Lu, alpha=hb)
            right[..., :-1] = steps.transpose(by_state, right[..., 1:], sources)[0]
        right[..., -1:] = steps.arranged(p[None], self.samples)
        costates = _solve(_chain(steps.jacobian(by_state)), right, transposed=True)
        for stage, J, total in zip(
            stages, by_state, steps.transpose(by_state, costates[..., 1:], sources)[1], strict=True
        ):
            px, pu = stage.transpose(total)
            by_control.add_(pu, alpha=h)
            if self.samples > 1 and not same(px, (J * total.unsqueeze(1)).sum(0)):
                by_control.fill_(torch.nan)
        return steps.points(costates[..., :1])[0].contiguous(), by_control


def _chain(J: Tensor) -> Bidiagonal:
    """The systems x_{k+1} - J_k x_k of all samples, one after the other, for J of shape (n, n, samples, N)."""
    J = torch.nn.functional.pad(J, (0, 1))  # no sample begins where another one ends
    return Bidiagonal(J.flatten(2)[..., :-1].numpy())


def _solve(system: Bidiagonal, right: Tensor, transposed: bool = False) -> Tensor:
    """The solution, like the right-hand side of shape (n, samples, N + 1)."""
    found = system.solve(right.flatten(1).mT.contiguous().numpy(), transposed)
    return torch.from_numpy(found).mT.reshape(right.shape)
