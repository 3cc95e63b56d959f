"""The reduced objective: the cost as a function of the control alone, with its derivative; it counts work."""

from __future__ import annotations

from copy import copy
from dataclasses import dataclass
from functools import cached_property
from math import inf, isfinite
from typing import Any, TypeVar

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from ocp.adjoint import paths, sweeps
from ocp.adjoint.discretization import Discretization
from ocp.adjoint.linearization import Linearization
from ocp.adjoint.pages import Pages
from ocp.adjoint.schedules import Schedule, StoreAll, as_schedule
from ocp.adjoint.tapes import Tape
from ocp.adjoint.trajectory import Trajectory
from ocp.integrators.integrator import Integrator, as_integrator
from ocp.objective.processes import SERIAL, Processes
from ocp.objective.work import FORWARD_SHARE, Work
from ocp.problem.augmented import Augmentation
from ocp.problem.control_problem import ControlProblem
from ocp.problem.inference import ordinary, outside
from ocp.space.bounds import Box
from ocp.space.control import Control, ControlSpace

__all__ = ["ReducedEvaluation", "ReducedObjective", "discretize"]

#: A flat control, as a tensor, with its grid, or as a NumPy array.
AnyControl = Tensor | Control | NDArray[np.floating[Any]]
_Given = TypeVar("_Given", Tensor, NDArray[np.floating[Any]])


@dataclass(eq=False)
class _Slot:
    """The storage of a sweep, and the evaluation whose steps it holds with its value on the own samples."""

    tape: Tape
    value: Tensor
    holder: ReducedEvaluation | None = None
    tangents: Tensor | None = None


class ReducedObjective:
    """J(u): the cost of the trajectory that the control u causes.

    Its methods compute what they return at each call; an evaluation, from `at`, computes each number once. A control is
    a flat tensor of shape (N m + s,), a `Control` or a NumPy array. Storage is kept between calls and shared with the
    objectives on other grids and batches. Hessian products and trajectories store all states, whatever the schedule.

    Parameters
    ----------
    discretization : Discretization
    work : Work, optional
        The count to charge; by default a new one, in gradients of this objective.
    schedule : Schedule
        Which steps to remember for the derivative; by default all.
    processes : Processes
        Each sweeps its part of the samples. Costs are averages over the samples, so the mean of the parts, weighted by
        their shares, is the whole; a cost of the control alone is in each part, and counted once.

    Examples
    --------
    >>> x = torch.ones(1, 1)
    >>> problem = ControlProblem(lambda t, x, u: u + 0 * x, x, lambda x: x.square().sum(), control_size=1)
    >>> objective = discretize(problem, steps=4)
    >>> point = objective.at(torch.zeros(4))
    >>> point.value, point.derivative, objective.work.units
    (1.0, tensor([0.5000, 0.5000, 0.5000, 0.5000]), 1.0)
    """

    def __init__(
        self,
        discretization: Discretization,
        work: Work | None = None,
        schedule: Schedule = StoreAll(),
        processes: Processes = SERIAL,
    ):
        self.discretization, self.schedule, self.processes = discretization, schedule, processes
        steps, (x, _) = discretization.grid.steps, discretization.example()
        self._shape, self._like, samples = tuple(x.shape), x.new_empty(0), len(x)
        first, last = (samples * (processes.rank + k) // processes.size for k in (0, 1))
        self._own = discretization if last - first == samples else discretization.take(torch.arange(first, last))
        self._share = (last - first) / samples
        self.work = Work(steps, samples) if work is None else work
        self._grids, self._pages = {steps: self}, Pages()
        self._augmented: tuple[Augmentation, ReducedObjective] | None = None
        self._slots: dict[tuple[Any, ...], _Slot] = {}

    @property
    def box(self) -> Box | None:
        return self.discretization.box

    @property
    def space(self) -> ControlSpace:
        return self.discretization.space

    @property
    def without_hvp(self) -> dict[str, str]:
        return self.discretization.without_hvp

    def on(self, steps: int) -> ReducedObjective:
        """The objective of the same problem and samples on another number of steps, with the same work count."""
        if steps not in self._grids:
            self._grids[steps] = other = copy(self)
            other.discretization, other._own = self.discretization.on(steps), self._own.on(steps)
            other._augmented = None
        return self._grids[steps]

    def take(self, indices: Tensor) -> ReducedObjective:
        """The objective on some of the samples, with the same work count."""
        part = ReducedObjective(self.discretization.take(indices), self.work, self.schedule, self.processes)
        part._slots, part._pages = self._slots, self._pages
        return part

    def augmented(self, by: Augmentation) -> ReducedObjective:
        """The augmented Lagrangian of the problem, with the same work count; repeated calls return the same one."""
        if self._augmented is None or self._augmented[0] is not by:
            self._augmented = by, ReducedObjective(self.discretization.augmented(by), self.work, self.schedule)
        return self._augmented[1]

    def uncounted(self) -> ReducedObjective:
        """The same objective with storage and a work count of its own."""
        return ReducedObjective(self.discretization, schedule=self.schedule, processes=self.processes)

    def at(self, control: AnyControl) -> ReducedEvaluation:
        """The evaluation at a control; nothing is computed yet. Raises TypeError or ValueError for other arguments.

        It keeps the control, which must not be written to while it is in use; a control that is not contiguous, or
        whose memory others own, such as that of a NumPy array, is copied.
        """
        u = self._flat(control)
        return ReducedEvaluation(self, u if u.untyped_storage().resizable() else u.clone())

    def value(self, control: AnyControl) -> float:
        """J(u); one forward sweep."""
        return self.at(control).value

    def derivative(self, control: _Given | Control) -> _Given | Tensor:
        """Derivative of J at u, shape (N m + s,), a dual vector; a forward and an adjoint sweep."""
        return self.value_and_derivative(control)[1]

    def value_and_derivative(self, control: _Given | Control) -> tuple[float, _Given | Tensor]:
        """J(u) and its derivative, as an array where the control is one; a forward and an adjoint sweep.

        Examples
        --------
        >>> from scipy.optimize import minimize
        >>> x = torch.ones(1, 1, dtype=torch.float64)
        >>> problem = ControlProblem(lambda t, x, u: u - x, x, lambda x: x.square().sum(), control_size=1)
        >>> minimize(discretize(problem, 4).value_and_derivative, np.zeros(4), jac=True).success
        True
        """
        point = self.at(control)
        derivative = point.derivative
        if isinstance(control, np.ndarray):
            return point.value, derivative.cpu().numpy().astype(control.dtype)
        return point.value, derivative

    @outside
    def directional(self, control: AnyControl, direction: Tensor) -> float:
        """Directional derivative of J by a tangent sweep."""
        point = self.at(control)
        (slope,) = self._sum(sweeps.tangent(self._own, point.control, self._flat(direction), point.states)[1])
        self._charge(2 * FORWARD_SHARE)
        return float(slope)

    def hessian_product(self, control: AnyControl, direction: Tensor | Control) -> Tensor:
        """Hessian of J at u applied to a direction; see `ReducedEvaluation.hessian_product`."""
        return self.at(control).hessian_product(self._flat(direction))

    def step_limit(self, control: Tensor, direction: Tensor) -> float:
        """Infinite: the domain has no boundary."""
        return inf

    def final_state(self, control: AnyControl) -> Tensor:
        """x_N, shape (batch, *state)."""
        return self.at(control).final_state

    def trajectory(self, control: AnyControl) -> Trajectory:
        """States and costates of a control, with its gradient and bounds; a forward and an adjoint sweep.

        Each process sweeps all samples.
        """
        if self.processes.size > 1:
            return ReducedObjective(self.discretization, self.work, self.schedule).trajectory(control)
        point, space, box, problem = self.at(control), self.space, self.box, self.discretization.problem
        states, q = point.states, space.parameters(point.control)
        costates = torch.empty_like(states)
        derivative = sweeps.adjoint(self.discretization, point.control, states, costates)
        self._charge(1 - FORWARD_SHARE)
        return Trajectory(
            t=states.new_tensor(space.grid.nodes) * (problem.duration(q) / space.grid.horizon),
            x=states.clone(),
            p=costates,
            u=space.path(point.control).clone(),
            gradient=space.path(space.gradient(derivative)),
            lower=None if box is None else space.path(box.lower),
            upper=None if box is None else space.path(box.upper),
            names=problem.names,
        )

    def _flat(self, control: AnyControl) -> Tensor:
        flat: Any = control.flat if isinstance(control, Control) else control
        if isinstance(control, np.ndarray) and np.issubdtype(control.dtype, np.floating):
            flat = torch.tensor(control, dtype=self._like.dtype, device=self._like.device)
        if not (isinstance(flat, Tensor) and flat.is_floating_point()):
            got = type(flat).__name__ + (f" of {flat.dtype}" if isinstance(flat, Tensor | np.ndarray) else "")
            raise TypeError(f"control: expected a Control, or a flat tensor or array of real numbers, got {got}")
        # The transpose of batch_norm in torch is wrong for weights that are not contiguous.
        return Control(self.space, ordinary(flat).contiguous()).flat

    def _charge(self, share: float) -> None:
        self.work.charge(share, self.space.grid.steps, self._shape[0])

    def _sum(self, *own: Tensor) -> tuple[Tensor, ...]:
        """Sums over all samples, from those over the samples of each process."""
        return self.processes.weighted_sum(self._share, *own)

    def _slot(self, control: Tensor) -> _Slot:
        samples = round(self._share * self._shape[0])
        key = (control.dtype, control.device, self.space.grid.steps, samples, *self._shape[1:])
        if key not in self._slots:
            x, u = (part.to(control) for part in self._own.example())
            self._slots[key] = _Slot(paths.choose(self._own, self.schedule, x, u), u.new_zeros(()))
        return self._slots[key]


class ReducedEvaluation:
    """A `ReducedObjective` at one flat control, with value and derivative where they are known already.

    The derivative reuses the states of the value as long as no other evaluation has swept since.
    """

    def __init__(
        self, objective: ReducedObjective, control: Tensor, value: float | None = None, derivative: Tensor | None = None
    ):
        self.objective, self.control = objective, control
        self._value, self._derivative, self._version = value, derivative, _version(control)

    @property
    def value(self) -> float:
        """J(u); a forward sweep when first asked for."""
        if self._value is None:
            (value,) = self.objective._sum(self._forward().value)
            return self._keep(value)
        return self._value

    @property
    def derivative(self) -> Tensor:
        """Derivative of J at u, shape (N m + s,), a dual vector; an adjoint sweep when first asked for."""
        if self._derivative is None:
            self._derivative, value = self.objective._sum(*self._adjoint())  # one exchange for both
            if self._value is None:
                self._keep(value)
            self.objective._charge(1 - FORWARD_SHARE)
        return self._derivative

    @outside
    def hessian_product(self, direction: Tensor) -> Tensor:
        """Hessian of J at u applied to a direction, a dual vector of shape (N m + s,); exact for the discrete problem.

        A tangent sweep and a second adjoint sweep, after a forward one if needed. By convention the two are charged as
        two work units: Griewank & Walther (2008), chapter 5. ValueError names a piece without second derivatives.
        """
        objective, u = self.objective, self.control
        for piece, expected in objective.without_hvp.items():
            raise ValueError(f"{piece}: expected {expected}")
        slot, own = self._forward(), torch.zeros_like(u)
        if objective._share > 0:
            states = slot.tape.states
            if slot.tangents is None:
                slot.tangents = torch.empty_like(states)
            d = direction.contiguous()
            own = sweeps.second_adjoint(objective._own, u, d, states, slot.tangents, self._linearized)
        (product,) = objective._sum(own)
        objective._charge(2.0)
        return product

    @cached_property
    def _linearized(self) -> Linearization | None:
        return sweeps.linearize(self.objective._own, self.control, self.states)

    @property
    def states(self) -> Tensor:
        """Shape (N + 1, batch, *state): the trajectory, in storage that the next sweep overwrites."""
        return self._forward().tape.states

    @property
    def final_state(self) -> Tensor:
        """x_N, shape (batch, *state)."""
        return self._forward().tape.end.clone()

    @property
    def known(self) -> tuple[float | None, Tensor | None, bool]:
        """Value and derivative, None where not computed yet, and whether the states are in storage."""
        return self._value, self._derivative, self.objective._slot(self.control).holder is self

    def store_states(self) -> None:
        """Sweep forward, uncounted, so that the states are in storage."""
        with self.objective.work.looking():
            self._forward()

    @outside
    def _forward(self) -> _Slot:
        """The storage, with the steps of this control in it."""
        objective, u = self.objective, self.control
        slot = objective._slot(u)
        if slot.holder is self:
            return slot
        self._check_unchanged("while its evaluation is in use")
        slot.holder = None  # so that an exception in the sweep leaves no half-written trajectory behind
        # In the last batch of an epoch there may be nothing for this process.
        slot.value = sweeps.forward(objective._own, u, slot.tape) if objective._share > 0 else u.new_zeros(())
        self._check_unchanged("by the functions of the problem")
        objective._charge(FORWARD_SHARE)
        slot.holder = self
        return slot

    @outside
    def _adjoint(self) -> tuple[Tensor, Tensor]:
        """Derivative and value on the samples of this process."""
        objective, u = self.objective, self.control
        slot = self._forward()
        if objective._share == 0:
            return torch.zeros_like(u), slot.value
        slot.holder = None  # a tape serves one adjoint sweep, also one that is interrupted
        self._check_unchanged("while its evaluation is in use")
        own = sweeps.adjoint(objective._own, u, slot.tape, None, objective._pages.empty_like(u))
        self._check_unchanged("by the functions of the problem")
        slot.holder = self
        return own, slot.value

    def _keep(self, value: Tensor) -> float:
        self._value = float(value)
        if not isfinite(self._value):
            self.objective.work.fail(self.control)
        return self._value

    def _check_unchanged(self, when: str) -> None:
        if _version(self.control) != self._version:
            raise ValueError(f"control: expected it not to be written to {when}, got it changed")


def _version(tensor: Tensor) -> int:
    return tensor._version


@outside
def discretize(
    problem: ControlProblem, steps: int, integrator: Integrator | str = "euler", schedule: Schedule = StoreAll()
) -> ReducedObjective:
    """The reduced objective of a problem on a uniform grid.

    Parameters
    ----------
    problem : ControlProblem
    steps : int
    integrator : str or Integrator
        ``"euler"``, ``"rk4"``, ``"crank_nicolson"``, another name in `INTEGRATORS`, or your own.
    schedule : Schedule
        ``StoreAll()``, or for less memory and more steps ``Binomial(slots)``, or ``Reversible()`` with an integrator
        whose steps can be undone; the derivative is the same.

    Raises
    ------
    TypeError, ValueError
        If a piece of the problem has the wrong shape or type; each piece is evaluated once to find out.
    """
    if not isinstance(problem, ControlProblem):
        raise TypeError(f"problem: expected a ControlProblem, got {type(problem).__name__}")
    discretization = Discretization(problem, problem.grid(steps), as_integrator(integrator))
    discretization.check()
    return ReducedObjective(discretization, schedule=as_schedule(schedule, discretization.integrator))
