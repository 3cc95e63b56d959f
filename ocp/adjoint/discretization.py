"""A problem on a grid with an integrator; the pieces are checked here, once."""

from __future__ import annotations

from dataclasses import dataclass, replace
from functools import cached_property

import torch
from torch import Tensor

from ocp.adjoint.abilities import inspect_abilities
from ocp.adjoint.inspection import inspect_control_costs, inspect_initial_state, inspect_pieces
from ocp.adjoint.second_order import once_differentiable, without_hvp
from ocp.integrators.at_nodes import AtNodes
from ocp.integrators.integrator import Integrator, SelectiveIntegrator
from ocp.integrators.observing import Observing
from ocp.problem.augmented import Augmentation, AugmentedEnd, NodeTerms
from ocp.problem.boundary import identical, with_data
from ocp.problem.control_problem import ControlProblem
from ocp.problem.differences import nearby
from ocp.problem.division import check_division
from ocp.problem.functions import Mapped
from ocp.problem.initial_state import FixedState, Opening
from ocp.problem.protocols import Dynamics
from ocp.problem.shapes import FlatControl
from ocp.space.bounds import Bounds, Box, feasible
from ocp.space.control import Control, ControlSpace, at_midpoints
from ocp.space.grid import TimeGrid

__all__ = ["Discretization"]

#: Where a `SelectiveIntegrator` looks at a problem: times, as shares of the horizon, and distances from the start, in
#: multiples of the size of each entry.
POINTS = ((0.0, 0.01), (0.4, 0.01), (0.15, 0.3), (0.8, 3.0))


@dataclass(frozen=True)
class Discretization:
    """The discrete optimal control problem."""

    problem: ControlProblem
    grid: TimeGrid
    integrator: Integrator

    @cached_property
    def space(self) -> ControlSpace:
        """The space of its controls."""
        return self.problem.space(self.grid)

    @cached_property
    def box(self) -> Box | None:
        """The controls within the bounds; None if the problem has none."""
        bounds, parameters, x = self.problem.bounds, self.problem.parameters, self.example()[0]
        if bounds is None and not parameters.bounded:
            return None
        return (bounds or Bounds()).on(self.space, x, parameters.bounds(x))

    @property
    def stepper(self) -> Integrator:
        """The integrator, whose steps carry the costs of measurements if the problem has any."""
        scheme = self.integrator
        if self.problem.measurements is None:
            return scheme
        # Costs at nodes are of whole steps, not of those to a measurement.
        return replace(scheme, scheme=Observing(scheme.scheme)) if isinstance(scheme, AtNodes) else Observing(scheme)

    def on(self, steps: int) -> Discretization:
        """The same problem on another number of steps."""
        return replace(self, grid=TimeGrid(self.grid.horizon, steps))

    def take(self, indices: Tensor) -> Discretization:
        """The same discretization on some of the samples."""
        return replace(self, problem=self.problem.take(indices))

    def augmented(self, by: Augmentation) -> Discretization:
        """With the terms of an augmented Lagrangian: as a terminal cost, and as costs at the nodes."""
        problem, scheme, constraints = self.problem, self.integrator, self.problem.constraints
        if constraints.equality or constraints.inequality:
            problem = with_data(problem, terminal_cost=AugmentedEnd(problem.terminal_cost, constraints, by))
        if constraints.path:
            scheme = AtNodes(scheme, NodeTerms(constraints, by, self.grid.horizon))
        return replace(self, problem=problem, integrator=scheme)

    def example(self) -> tuple[Tensor, Tensor]:
        """An initial state and what is fixed during one step, both at the start of the problem."""
        problem, start, q = self.problem, self.problem.start, self._parameters()
        x = problem.initial_state(q)
        u = start.path[0] if isinstance(start, Control) else x.new_zeros(problem.dynamics.control_size)
        return x, torch.cat((u, q.to(u))) if problem.equation.parameter_size else u

    @cached_property
    def steps(self) -> Mapped:
        """Steps from many states at once: the next state, flat, with the running cost of the step as its last entry."""
        integrator, equation, h = self.integrator, self.problem.equation, self.grid.h

        def step(t: float, x: Tensor, u: Tensor) -> Tensor:
            end, cost = integrator.step(equation, t, h, x, u)
            return torch.cat((end.flatten(), x.new_zeros(1) if cost is None else cost.view(1)))

        return Mapped(step)

    def inputs(self, control: FlatControl) -> Tensor:
        """What is fixed during each step, shape (N, m), or (N, m + s) if the equation depends on the parameters."""
        path = self.space.path(control)
        if not self.problem.equation.parameter_size:
            return path
        return torch.cat((path, self.space.parameters(control).expand(len(path), -1)), dim=1)

    def by_inputs(self, derivative: FlatControl) -> Tensor:
        """Storage for derivatives by the `inputs`, a view of a flat derivative where possible; see `collect`."""
        path, s = self.space.path(derivative), self.problem.equation.parameter_size
        return path.new_empty(len(path), path.shape[1] + s) if s else path

    def collect(self, by_inputs: Tensor, derivative: FlatControl) -> None:
        """Set the path of a derivative, and add to its parameters, what was written to `by_inputs`."""
        if self.problem.equation.parameter_size:
            m = self.space.control_size
            self.space.path(derivative).copy_(by_inputs[:, :m])
            self.space.parameters(derivative).add_(by_inputs[:, m:].sum(0))

    def _parameters(self) -> Tensor:
        """The parameters q at the start of the problem."""
        problem = self.problem
        if isinstance(problem.start, Control):
            return problem.start.parameters
        # A state and an opening compute in the type of their numbers; a function gets that of the parameters.
        X0, q = problem.initial_state, problem.parameters.start
        like = X0.x if isinstance(X0, FixedState) else X0.inputs if isinstance(X0, Opening) else q
        given = isinstance(X0, FixedState | Opening) and like.is_floating_point()
        return q.to(like.device, like.dtype if given else problem.parameters.dtype)

    def check(self) -> None:
        """Evaluate every piece a few times, and see that they fit and are functions of their arguments.

        Raises
        ------
        ValueError
            If not; the message names the piece, what was expected and what it returned. A `SelectiveIntegrator` also
            checks the problem.
        """
        problem, q = self.problem, self._parameters()
        x = inspect_initial_state(problem, q).clone()
        u = self.example()[1]
        if problem.measurements is not None:
            problem.measurements.check_batch(len(x))
        self.box  # noqa: B018  raises where the bounds do not fit
        if x.dtype != u.dtype:
            raise ValueError(f"start: expected the type of the initial state, {x.dtype}, got {u.dtype}")
        if len(names := problem.names.get("x", ())) not in (0, x[0].numel()):
            raise ValueError(f"names: expected {x[0].numel()} for x, one for each number in the state, got {names!r}")
        inspect_pieces(problem, q.to(x), x, u)
        inspect_control_costs(problem, x)
        inspect_abilities(problem, q.to(x), x, u)
        if isinstance(self.integrator, SelectiveIntegrator):
            for share, distance in POINTS:
                point = nearby({"x": x, "u": u}, distance).values()
                if distance < 0.1 or _is_finite(problem.equation.dynamics, share * self.grid.horizon, *point):
                    self.integrator.check(problem.equation, share * self.grid.horizon, self.grid.h, *point)
        if not identical(problem.initial_state(q), x):
            raise ValueError("initial_state: expected the other pieces to leave it unchanged, got it changed by one")

    @cached_property
    def once_differentiable(self) -> tuple[str, ...]:
        """The pieces whose derivatives autograd cannot differentiate again."""
        q, (x, u) = self._parameters(), self.example()
        return once_differentiable(self.problem, q.to(x), x, u)

    @property
    def without_hvp(self) -> dict[str, str]:
        """The pieces without second derivatives, each with what was expected and what it is; empty if all have them."""
        expected = "operations with second derivatives, got some that autograd cannot differentiate twice"
        return dict.fromkeys(self.once_differentiable, expected) | without_hvp(self.problem, self.integrator)

    def check_division(self) -> None:
        """Raise a ``ValueError`` if the problem is not the average of the problems on parts of its samples."""
        q, (x, u) = self._parameters(), self.example()
        check_division(self.problem, q.to(x), x, u)

    def start(self) -> Control:
        """The start of the problem on this grid, zero by default, projected onto the bounds.

        The steps of a coarser start are repeated.

        Raises
        ------
        TypeError, ValueError
            If the number of steps of the start does not divide that of this grid, or if a function of time does not
            return the control of a step, or one that is not finite.
        """
        space, start = self.space, self.problem.start
        x, path = self.example()[0], start.path if isinstance(start, Control) else start
        parameters = self._parameters().to(x)
        if isinstance(path, Tensor) and path.ndim == 2:
            if self.grid.steps % len(path):
                raise ValueError(
                    f"start: expected a control on a divisor of {self.grid.steps} steps, got {len(path)} steps"
                )
            path = path.to(parameters).repeat_interleave(self.grid.steps // len(path), dim=0)
        else:
            path = at_midpoints("start: expected it", 0.0 if path is None else path, space, x)
        flat = space.join(path, parameters)
        if not bool(torch.isfinite(flat).all()):
            raise ValueError("start: expected finite numbers, got a function of time that returns NaN or infinity")
        return Control(space, feasible(flat, self.box))


def _is_finite(f: Dynamics, t: float, x: Tensor, u: Tensor) -> bool:
    """Whether dynamics are defined at a point far from the start."""
    try:
        return bool(f(t, x, u).isfinite().all())
    except Exception:  # anything: it may be outside of the domain of the function
        return False
