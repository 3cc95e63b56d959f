"""The reduced objective: the cost as a function of the control alone, with its derivative; it counts work."""

from __future__ import annotations

import weakref
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from math import inf, isfinite, sqrt
from typing import Any, Protocol

import torch
from torch import Tensor

from ocp.adjoint import sweeps
from ocp.adjoint.discretization import Discretization
from ocp.adjoint.linearization import Linearization
from ocp.adjoint.pages import Pages
from ocp.adjoint.schedules import Schedule, StoreAll, as_schedule
from ocp.adjoint.tapes import Tape
from ocp.adjoint.trajectory import Trajectory
from ocp.integrators.integrator import Integrator, as_integrator
from ocp.objective.processes import ALONE, Processes
from ocp.problem.control_problem import ControlProblem
from ocp.space.bounds import Box, masked
from ocp.space.control import Control, ControlSpace
from ocp.space.grid import TimeGrid

__all__ = ["Objective", "ReducedObjective", "ShiftedObjective", "Work", "discretize", "free_part", "optimality"]

#: Share of a forward sweep in one work unit; the adjoint sweep has the rest. A convention: a step costs one product
#: with its weights forward and two backward (by state and by control), Griewank & Walther (2008), "Evaluating
#: Derivatives", chapter 3. What an adjoint sweep computes again is left out, so forward sweeps are charged in full.
FORWARD_SHARE = 1 / 3


#: At so many controls an objective remembers what it knows: the start of a line search, its best trial, the last one.
RECENT = 3


@dataclass
class Work:
    """A running count of work, shared by all grids and batches of one solve.

    One unit is a forward and an adjoint sweep over all ``steps`` of the finest grid and all ``samples``. Values that
    are not finite are counted, too, and the last control that has such a value is kept, so that one can find out why.
    """

    steps: int
    samples: int
    units: float = 0.0
    failures: int = 0
    failed: Tensor | None = None

    def charge(self, share: float, steps: int, samples: int) -> None:
        """Add a share of a gradient on a number of steps and samples."""
        self.units += share * (steps / self.steps) * (samples / self.samples)

    @contextmanager
    def looking(self) -> Iterator[None]:
        """While this context is open nothing is counted."""
        counted = self.units, self.failures, self.failed
        try:
            yield
        finally:
            self.units, self.failures, self.failed = counted


class Objective(Protocol):
    """What a method minimizes: a function of flat controls on one grid."""

    @property
    def space(self) -> ControlSpace: ...

    @property
    def work(self) -> Work: ...

    @property
    def box(self) -> Box | None:
        """The controls within the bounds; None where there are no bounds."""

    def value(self, control: Tensor) -> float:
        """J(u)."""

    def derivative(self, control: Tensor) -> Tensor:
        """Derivative of J at u, a dual vector."""

    def hessian_product(self, control: Tensor, direction: Tensor) -> Tensor:
        """Hessian of J at u applied to a direction, a dual vector; only second-order methods ask for it."""

    def on(self, steps: int) -> Objective:
        """The objective of the same problem on another grid."""

    def room(self, control: Tensor, direction: Tensor) -> float:
        """The largest step along a direction that does not leave the domain of the objective."""


def _version(tensor: Tensor) -> int:
    return 0 if tensor.is_inference() else tensor._version


def _mark(tensor: Tensor) -> tuple[Any, ...]:
    """What differs when a tensor was written to: its version, and where NumPy shares its memory the sum of its bits."""
    version = _version(tensor)
    if tensor.untyped_storage().resizable() and not tensor.is_inference():
        return (version,)
    words = tensor.detach().contiguous().flatten()
    rest = words[: words.numel() * words.element_size() % 8 // words.element_size()]
    whole = words[rest.numel() :]
    if whole.storage_offset() * whole.element_size() % 8:
        whole = whole.clone()
    return version, rest.tolist(), int(whole.view(torch.int64).sum())


class _Evaluation:
    """What is known at one control, as long as it lives. Marks tell whether tensors were written to since.

    Among several processes ``local`` is the value on the samples of this one, until the total is asked for.
    ``steps`` is what `sweeps.linearize` gave, once a Hessian product was asked for.
    """

    def __init__(
        self, control: Tensor, value: float | None, local: Tensor | None = None, derivative: Tensor | None = None
    ):
        self._control, self._mark = weakref.ref(control), _mark(control)
        self.value, self.local = value, local
        self.steps: tuple[Linearization | None] | None = None
        self.learn(derivative)

    def learn(self, derivative: Tensor | None) -> None:
        self.derivative, self._handed = derivative, None if derivative is None else _mark(derivative)

    @property
    def control(self) -> Tensor | None:
        """None where it is gone, or no longer what it was."""
        control = self._control()
        return control if control is not None and _mark(control) == self._mark else None

    def at(self, control: Tensor) -> bool:
        """Whether this is known of a control; nothing is, once its derivative was written to."""
        if self._control() is not control or self.control is None:
            return False
        return self.derivative is None or _mark(self.derivative) == self._handed


@dataclass
class _Buffer:
    """The storage of a trajectory, and which evaluation it holds."""

    record: Tape
    holds: _Evaluation | None = None

    @property
    def states(self) -> Tensor:
        return self.record.states


@dataclass
class ReducedObjective:
    """J(u): the cost of the trajectory that the control u causes.

    Evaluations at the last few controls are remembered, and a derivative asked for at the control of the last forward
    sweep reuses its states. Storage is kept between calls and shared with the objectives on other grids and batches.
    Where only some steps are remembered, Hessian products and trajectories store all states nevertheless.

    Parameters
    ----------
    discretization : Discretization
    work : Work, optional
        Where to count; by default a count of its own, in gradients of this objective.
    memory : Schedule
        Which steps to remember for the derivative; by default all.
    processes : Processes
        Each of them sweeps its part of the samples. Costs are averages over the samples, so the mean of the parts,
        weighted by their shares, is the whole; a cost of the control alone is in each part, and counted once.

    Examples
    --------
    >>> x = torch.ones(1, 1)
    >>> problem = ControlProblem(lambda t, x, u: u + 0 * x, x, lambda x: x.square().sum(), control_size=1)
    >>> objective = discretize(problem, steps=4)
    >>> u = torch.zeros(4)
    >>> objective.value(u), objective.derivative(u), objective.work.units
    (1.0, tensor([0.5000, 0.5000, 0.5000, 0.5000]), 1.0)
    """

    discretization: Discretization
    work: Work = None  # type: ignore[assignment]
    memory: Schedule = StoreAll()
    processes: Processes = ALONE
    _buffers: dict[tuple[Any, ...], Any] = field(default_factory=dict, repr=False)
    _recent: list[_Evaluation] = field(default_factory=list, repr=False)
    _grids: dict[int, ReducedObjective] = field(default_factory=dict, repr=False)
    _own: Discretization = None  # type: ignore[assignment]
    _pages: Pages = field(default_factory=Pages, repr=False)

    def __post_init__(self) -> None:
        self._steps, self._dimension = self.discretization.grid.steps, self.discretization.space.dimension
        self._shape = tuple(self.discretization.example()[0].shape)
        samples, own = self._shape[0], range(self._shape[0])
        if self.processes.size > 1:
            first, last = (samples * (self.processes.rank + k) // self.processes.size for k in (0, 1))
            own = range(first, last)
        if self._own is None:
            self._own = (
                self.discretization
                if len(own) == samples
                else self.discretization.take(torch.arange(own.start, own.stop))
            )
        self._share = len(own) / samples
        if self.work is None:
            self.work = Work(self._steps, self._shape[0])
        self._grids[self._steps] = self

    @property
    def box(self) -> Box | None:
        """The controls within the bounds of the problem; None where it has none."""
        return self.discretization.box

    @property
    def space(self) -> ControlSpace:
        """Where its controls live."""
        return self.discretization.space

    def on(self, steps: int) -> ReducedObjective:
        """The objective of the same problem and samples on another number of steps, with the same work count."""
        if steps not in self._grids:
            self._grids[steps] = ReducedObjective(
                self.discretization.on(steps),
                self.work,
                self.memory,
                self.processes,
                self._buffers,
                _grids=self._grids,
                _own=self._own.on(steps),
                _pages=self._pages,
            )
        return self._grids[steps]

    def take(self, indices: Tensor) -> ReducedObjective:
        """The objective on some of the samples, with the same work count."""
        return ReducedObjective(
            self.discretization.take(indices), self.work, self.memory, self.processes, self._buffers, _pages=self._pages
        )

    def uncounted(self) -> ReducedObjective:
        """The same objective with storage and a work count of its own, for looking without being charged."""
        return ReducedObjective(self.discretization, memory=self.memory, processes=self.processes)

    def remembered(self) -> list[tuple[int, Tensor, float, Tensor | None, bool]]:
        """What is known on all grids, the oldest first: steps, control, value, derivative, and whether states are."""
        held = [buffer.holds for buffer in self._buffers.values() if isinstance(buffer, _Buffer)]
        return [
            (steps, control, e.value, e.derivative, any(e is other for other in held))
            for steps, objective in self._grids.items()
            for e in reversed(objective._recent)
            if (control := e.control) is not None and e.at(control) and e.value is not None
        ]

    def recall(self, remembered: Iterable[tuple[int, Tensor, float, Tensor | None, bool]]) -> None:
        """Know again what was `remembered`; states are computed anew, which is not counted."""
        for steps, control, value, derivative, held in remembered:
            objective = self.on(steps)
            known = _Evaluation(control, value, derivative=derivative)
            objective._recent = [known, *objective._recent[: RECENT - 1]]
            if held:
                with self.work.looking():
                    objective._forward(control)

    def value(self, control: Tensor | Control) -> float:
        """J(u); one forward sweep."""
        u = self._flat(control)
        evaluation = self._evaluate(u)
        if evaluation.value is None:
            assert evaluation.local is not None
            self._learn(evaluation, u, *self.processes.total(self._share, evaluation.local))
        assert evaluation.value is not None
        return evaluation.value

    def derivative(self, control: Tensor | Control) -> Tensor:
        """Derivative of J at u, shape (N m + s,), a dual vector; an adjoint sweep, after a forward one if needed.

        Whoever asks again is given the same tensor. When it was written to in between it is computed anew; only what
        goes through ``.data`` is not noticed, as by autograd.
        """
        u = self._flat(control)
        evaluation = self._evaluate(u)
        if evaluation.derivative is None:
            own = self._adjoint(u)
            if evaluation.value is None:  # one exchange for both
                assert evaluation.local is not None
                derivative, value = self.processes.total(self._share, own, evaluation.local)
                self._learn(evaluation, u, value)
            else:
                (derivative,) = self.processes.total(self._share, own)
            evaluation.learn(derivative)
            self.work.charge(1 - FORWARD_SHARE, self._steps, self._shape[0])
        assert evaluation.derivative is not None
        return evaluation.derivative

    def _adjoint(self, u: Tensor) -> Tensor:
        """The derivative on the samples of this process."""
        buffer = self._forward(u)
        if self._share == 0:
            return torch.zeros_like(u)
        held, buffer.holds = buffer.holds, None  # a record serves one adjoint sweep, also one that is interrupted
        version = _version(u)
        own = sweeps.adjoint(self._own, u, buffer.record, None, self._pages.empty_like(u))
        _unchanged(u, version)
        buffer.holds = held
        return own

    def directional(self, control: Tensor | Control, direction: Tensor) -> float:
        """Directional derivative of J by a tangent sweep."""
        u = self._flat(control)
        (slope,) = self.processes.total(
            self._share, sweeps.tangent(self._own, u, direction, self._forward(u).states)[1]
        )
        self.work.charge(2 * FORWARD_SHARE, self._steps, self._shape[0])
        return float(slope)

    def hessian_product(self, control: Tensor | Control, direction: Tensor | Control) -> Tensor:
        """Hessian of J at u applied to a direction, a dual vector of shape (N m + s,); exact for the discrete problem.

        A tangent sweep and a second adjoint sweep, after a forward one if needed. By convention the two are charged
        as two work units, twice a value with its derivative: Griewank & Walther (2008), chapter 5.

        Raises
        ------
        ValueError
            If a piece of the problem has no second derivative; it names the piece.
        """
        u, v = self._flat(control), self._flat(direction)
        for piece, expected in sweeps.without_hvp(self.discretization).items():
            raise ValueError(f"{piece}: expected {expected}")
        buffer = self._forward(u)
        states, known = buffer.states, buffer.holds
        assert known is not None
        key = ("tangents", u.dtype, u.device, *states.shape)
        if key not in self._buffers:
            self._buffers[key] = torch.empty_like(states)
        own = torch.zeros_like(u)
        if self._share > 0:
            if known.steps is None:
                known.steps = (sweeps.linearize(self._own, u, states),)
            own = sweeps.second_adjoint(self._own, u, v, states, self._buffers[key], *known.steps)
        (product,) = self.processes.total(self._share, own)
        self.work.charge(2.0, self._steps, self._shape[0])
        return product

    def room(self, control: Tensor, direction: Tensor) -> float:
        """The largest step along a direction within the domain: there is no limit."""
        return inf

    def final_state(self, control: Tensor | Control) -> Tensor:
        """x_N, shape (batch, *state)."""
        return self._forward(self._flat(control)).record.end.clone()

    def trajectory(self, control: Tensor | Control) -> Trajectory:
        """States and costates of a control, with its gradient and bounds; a forward and an adjoint sweep."""
        u, space, box = self._flat(control), self.space, self.box
        states = self._forward(u).states
        costates = torch.empty_like(states)
        derivative = sweeps.adjoint(self.discretization, u, states, costates)
        self.work.charge(1 - FORWARD_SHARE, self._steps, self._shape[0])
        return Trajectory(
            t=torch.tensor(space.grid.nodes).to(states),
            x=states.clone(),
            p=costates,
            u=space.path(u.detach()).clone(),
            gradient=space.path(space.gradient(derivative)),
            lower=None if box is None else space.path(box.lower),
            upper=None if box is None else space.path(box.upper),
        )

    def _flat(self, control: Tensor | Control) -> Tensor:
        flat = control.flat if isinstance(control, Control) else control
        if not (isinstance(flat, Tensor) and flat.is_floating_point()):
            got = f"a tensor of {flat.dtype}" if isinstance(flat, Tensor) else type(flat).__name__
            raise TypeError(f"control: expected a Control or a flat tensor of floating-point numbers, got {got}")
        if flat.shape != (self._dimension,):
            Control(self.space, flat)  # raises the error that says what was expected
        return flat

    def _buffer(self, control: Tensor) -> _Buffer:
        shape = (self._steps + 1, round(self._share * self._shape[0]), *self._shape[1:])
        key = (control.dtype, control.device, *shape)
        if key not in self._buffers:
            x, u = (part.to(control) for part in self._own.example())
            self._buffers[key] = _Buffer(sweeps.record(self._own, self.memory, x, u))
        return self._buffers[key]

    def _evaluate(self, control: Tensor) -> _Evaluation:
        known = self._known(control)
        if known is not None:
            return known
        holds = self._forward(control).holds
        assert holds is not None
        return holds

    def _known(self, control: Tensor) -> _Evaluation | None:
        return next((evaluation for evaluation in self._recent if evaluation.at(control)), None)

    def _learn(self, evaluation: _Evaluation, control: Tensor, value: Tensor) -> None:
        """Keep the value on all samples; one that is not finite is counted."""
        evaluation.value = float(value)
        if not isfinite(evaluation.value):
            self.work.failures, self.work.failed = self.work.failures + 1, control

    def _forward(self, control: Tensor) -> _Buffer:
        """States of this control in the buffer, and their evaluation among the recent ones."""
        buffer = self._buffer(control)
        known = self._known(control)
        if known is not None and buffer.holds is known:
            return buffer
        buffer.holds = None  # so that an exception in the sweep leaves no half-written trajectory behind
        # In the last batch of an epoch there may be nothing for this process.
        version, local = _version(control), control.new_zeros(())
        if self._share > 0:
            local = sweeps.forward(self._own, control, buffer.record)
        _unchanged(control, version)
        self.work.charge(FORWARD_SHARE, self._steps, self._shape[0])
        if known is None:
            known = _Evaluation(control, None, local)
            self._recent = [known, *(e for e in self._recent if e.control is not None)][:RECENT]
        buffer.holds = known
        return buffer


def _unchanged(control: Tensor, version: int) -> None:
    if _version(control) != version:
        raise ValueError("control: expected the functions of the problem to leave it as it is, got it changed")


#: Steps end this share of the squared radius inside the ball, so that rounding does not put them outside.
_INSIDE = 1 - 1e-5


@dataclass(frozen=True)
class ShiftedObjective:
    """J(v) - <shift, v - origin>, and infinite farther than ``radius`` from the origin.

    With shift = dJ(origin) - P^T d, where d is the derivative of the finer objective, it agrees with the finer
    objective to first order: Nash (2000), "A multigrid approach to discretized optimization problems". The radius
    keeps a coarse solve where the model is worth something; without it the shifted objective can be unbounded below.

    Parameters
    ----------
    base : Objective
    origin : Tensor
        Where the coarse solve starts.
    shift : Tensor
        A dual vector.
    radius : float
        In the time-weighted norm.
    box : Box, optional
        Within it a correction keeps the finer control in its bounds; see `Transfer.restrict_box`.
    """

    base: Objective
    origin: Tensor
    shift: Tensor
    radius: float = inf
    box: Box | None = None

    @property
    def space(self) -> ControlSpace:
        """Where its controls live."""
        return self.base.space

    @property
    def work(self) -> Work:
        """The work count of the base."""
        return self.base.work

    def on(self, steps: int) -> Objective:
        """The objective on another grid, without any shift: a coarser grid makes its own."""
        return self.base.on(steps)

    def value(self, control: Tensor) -> float:
        """The shifted value."""
        step = control - self.origin
        if self.space.norm(step) > self.radius:
            return inf
        return self.base.value(control) - float(torch.dot(self.shift, step))

    def derivative(self, control: Tensor) -> Tensor:
        """The shifted derivative."""
        return self.base.derivative(control) - self.shift

    def hessian_product(self, control: Tensor, direction: Tensor) -> Tensor:
        """Hessian applied to a direction, that of the base: the shift is linear."""
        return self.base.hessian_product(control, direction)

    def room(self, control: Tensor, direction: Tensor) -> float:
        """The largest step along a direction that stays in the ball."""
        if self.radius == inf:
            return inf
        return self.space.reach(control - self.origin, direction, sqrt(_INSIDE) * self.radius)

    def confine(self, control: Tensor) -> Tensor:
        """The control itself, or where the straight way to it from the origin leaves the ball."""
        step = control - self.origin
        room = self.room(self.origin, step)
        return control if room >= 1 else torch.add(self.origin, step, alpha=room)

    def at_boundary(self, control: Tensor) -> bool:
        """Whether the control has come to the boundary of the ball."""
        return self.space.norm(control - self.origin) ** 2 >= _INSIDE**2 * self.radius**2


def optimality(objective: Objective, control: Tensor) -> float:
    """How far a control is from first-order optimality: zero at a stationary point, and there only.

    Without bounds the dual norm of the derivative. With bounds the norm of the projected gradient step,
    |P(u - g) - u| with the gradient g and the projection P on the box, after Conn, Gould & Toint (2000), "Trust-region
    methods", section 12.1.4; the two agree where no bound is near.

    Parameters
    ----------
    objective : Objective
    control : Tensor
        Flat.
    """
    derivative, space = objective.derivative(control), objective.space
    if objective.box is None:
        return space.dual_norm(derivative)
    return space.norm(objective.box.project(control - space.gradient(derivative)) - control)


def free_part(objective: Objective, control: Tensor) -> tuple[Tensor, Tensor | None]:
    """The derivative in the subspace of the entries that no bound holds back, and their mask, None without bounds."""
    derivative = objective.derivative(control)
    free = None if objective.box is None else objective.box.free(control, derivative)
    return masked(derivative, free), free


def discretize(
    problem: ControlProblem, steps: int, integrator: Integrator | str = "euler", memory: Schedule = StoreAll()
) -> ReducedObjective:
    """The reduced objective of a problem on a uniform grid.

    Parameters
    ----------
    problem : ControlProblem
    steps : int
    integrator : str or Integrator
        ``"euler"``, ``"rk4"``, ``"crank_nicolson"``, another name in `INTEGRATORS`, or one of your own.
    memory : Schedule
        ``StoreAll()``, or for less memory and more steps ``Binomial(slots)``, or ``Reversible()`` with an integrator
        whose steps can be undone; the derivative is the same.

    Raises
    ------
    TypeError, ValueError
        If a piece of the problem has the wrong shape or type; every piece is evaluated once to see.
    """
    if not isinstance(problem, ControlProblem):
        raise TypeError(f"problem: expected a ControlProblem, got {type(problem).__name__}")
    discretization = Discretization(problem, TimeGrid(problem.horizon, steps), as_integrator(integrator))
    discretization.check()
    return ReducedObjective(discretization, memory=as_schedule(memory, discretization.integrator))
