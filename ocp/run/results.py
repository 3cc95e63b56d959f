"""What a solve gives back: the control, how it ended, and its history; to and from a folder."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Mapping
from dataclasses import asdict, dataclass, field, fields, replace
from math import isfinite, nan
from pathlib import Path
from typing import Any

import torch

from ocp.adjoint.trajectory import Trajectory
from ocp.integrators.integrator import INTEGRATORS, Integrator, as_integrator
from ocp.objective.feasibility import Violation
from ocp.objective.reduced import discretize
from ocp.objective.solution import control_and_scheme
from ocp.optimize.method import Visit
from ocp.optimize.status import SolveError, Status
from ocp.problem.augmented import lagrangian
from ocp.problem.constraints import Multipliers
from ocp.problem.control_problem import ControlProblem
from ocp.run.json_files import plain, read, write
from ocp.space.control import Control, ControlSpace
from ocp.space.grid import TimeGrid

__all__ = ["Record", "Result", "Target"]

#: Counted events in words; braces stand for the ending of the plural.
EVENTS = {
    "corrections": "coarse correction{} taken",
    "refused": "coarse correction{} refused",
    "skipped": "coarse correction{} skipped",
    "refused_grids": "coarse grid{} refused",
    "newton_iterations": "Newton iteration{}",
    "multiplier_updates": "update{} of the multipliers",
    "penalty_increases": "increase{} of the penalty",
    "not_finite": "value{} not finite",
    "not_saved": "checkpoint{} not written",
}


@dataclass(frozen=True)
class Record:
    """One line of the history.

    Attributes
    ----------
    iteration : int
    level, steps : int
        The grid that was worked on; level 0 is the finest.
    work_units, seconds : float
        Spent so far. Monitoring (accuracy, records of mini-batch runs) counts toward neither.
    value, derivative_norm : float
        Of the objective on this record's grid, at the control after the iteration: its value and the dual norm of its
        derivative, or with bounds that of the projected gradient step (`ocp.objective.evaluation.optimality`). With
        constraints, it is the derivative of the Lagrangian.
    finest_value : float or None
        Of the objective on the finest grid, at the control prolonged to it; None if it was not evaluated.
    validation_accuracy : float or None
        Of the control prolonged to the finest grid; None without validation samples.
    violation : float or None
        The largest violation of a constraint at the nodes of this record's grid, relative to the constraint's own size
        (`ocp.objective.feasibility`); None without constraints.
    feasible : bool or None
        Whether the control prolonged to the finest grid satisfies the constraints there; None without constraints, and
        if that was not evaluated.
    """

    iteration: int
    level: int
    steps: int
    work_units: float
    seconds: float
    value: float
    derivative_norm: float
    finest_value: float | None = None
    validation_accuracy: float | None = None
    violation: float | None = None
    feasible: bool | None = None


@dataclass(frozen=True)
class Target:
    """A goal of a run, for the control prolonged to the finest grid: validation ``accuracy``, or objective ``value``.

    Examples
    --------
    >>> Target.parse("accuracy=0.95")
    Target(quantity='accuracy', threshold=0.95)
    """

    quantity: str
    threshold: float

    def __post_init__(self) -> None:
        if self.quantity == "accuracy" and self.threshold > 1:
            raise ValueError(f"target: expected an accuracy of at most 1, got {self.threshold:g}")
        if self.quantity not in ("accuracy", "value") or not isfinite(self.threshold):
            raise ValueError(f"target: expected accuracy=NUMBER or value=NUMBER, got {self.quantity}={self.threshold}")

    @classmethod
    def parse(cls, text: str) -> Target:
        """From ``quantity=number``."""
        quantity, _, number = text.partition("=")
        try:
            threshold = float(number)
        except ValueError:
            raise ValueError(f"target: expected accuracy=NUMBER or value=NUMBER, got {text!r}") from None
        return cls(quantity, threshold)

    def reached(self, record: Record) -> bool:
        """Whether a record reaches the target, and satisfies the constraints."""
        if record.violation is not None and not record.feasible:
            return False
        if self.quantity == "accuracy":
            return record.validation_accuracy is not None and record.validation_accuracy >= self.threshold
        return record.finest_value is not None and record.finest_value <= self.threshold

    def first(self, history: tuple[Record, ...]) -> Record | None:
        """The first record that reaches the target."""
        return next((record for record in history if self.reached(record)), None)

    def __str__(self) -> str:
        return f"{self.quantity} {'>=' if self.quantity == 'accuracy' else '<='} {self.threshold:g}"


@dataclass(frozen=True)
class Result:
    """The outcome of `minimize`.

    Attributes
    ----------
    control : Control
        The best finite one found, on the finest grid.
    value, derivative_norm : float
        Of the objective on the finest grid and all samples, at ``control``.
    status, message : Status, str
        Why the run ended; the message is a sentence with numbers.
    iterations, work_units, seconds, history
        What the run took in all, and a `Record` for each iteration, with mini-batches for each epoch.
    counts : mapping
        How often each of `EVENTS` happened.
    about : mapping
        What was run: steps, state_shape, integrator, recipe (of the method), tolerance, target and whether it was
        reached, dtype, device; ``parameters``, those with names; ``start_norm``, the derivative's norm to which the
        tolerance is relative; ``resumed``, the iteration at which the run was resumed, if it was; ``clock``, the
        seconds of the whole call, checks and looks included; and what the caller adds.
    visits : tuple of Visit
        The corrections that cycles asked of coarser grids.
    violation : Violation, optional
        How far ``control`` violates the constraints, if there are any: at the nodes, and on a four times finer grid.
    multipliers : Multipliers, optional
        Of the constraints, if there are any and the method has found some.
    integrator : Integrator, optional
        The one of the run. A loaded result knows those of `INTEGRATORS`; `scheme` asks for others.
    """

    control: Control | None
    value: float
    derivative_norm: float
    status: Status
    message: str
    iterations: int
    work_units: float
    seconds: float
    history: tuple[Record, ...]
    counts: Mapping[str, int] = field(default_factory=dict)
    validation_accuracy: float | None = None
    test_accuracy: float | None = None
    about: Mapping[str, Any] = field(default_factory=dict)
    visits: tuple[Visit, ...] = ()
    violation: Violation | None = None
    multipliers: Multipliers | None = field(default=None, compare=False)
    integrator: Integrator | None = field(default=None, compare=False)

    @property
    def success(self) -> bool:
        """Whether a stated stopping test holds at ``control``."""
        return self.status.success

    def require_success(self) -> Result:
        """The result itself, or a `SolveError` that holds it, if the run did not succeed."""
        if not self.success:
            raise SolveError(self)
        return self

    def describe(self, **about: Any) -> Result:
        """The same result with more in ``about``."""
        return replace(self, about={**self.about, **about})

    def scheme(self, integrator: Integrator | str | None = None) -> Integrator:
        """The integrator with which ``control`` was found.

        Parameters
        ----------
        integrator : str or Integrator, optional
            Required if the result was loaded and its integrator is not one of `INTEGRATORS`.

        Raises
        ------
        ValueError
            If the integrator is not known, or another one is given.
        """
        name = self.about.get("integrator")
        if integrator is None:
            if self.integrator is None:
                raise ValueError(f"integrator: expected the one with which the result was found ({name}), got None")
            return self.integrator
        given = as_integrator(integrator)
        if given.name != name and name is not None:
            raise ValueError(f"integrator: expected {name}, with which the result was found, got {given.name}")
        return given

    def trajectory(self, problem: ControlProblem, integrator: Integrator | str | None = None) -> Trajectory:
        """States, costates and gradient of ``control``, whose work is not counted.

        With `multipliers`, costates and gradient are those of the Lagrangian.

        For another integrator or number of steps, use ``discretize(problem, steps, integrator).trajectory(control)``.

        Parameters
        ----------
        problem : ControlProblem
            The one that was solved. The control is converted to its dtype and device.
        integrator : str or Integrator, optional
            That of the result; see `scheme`.

        Raises
        ------
        ValueError
            If there is no control, the problem does not fit it, or the integrator is not known.
        """
        control, scheme = control_and_scheme(self, integrator)
        space = control.space
        objective = discretize(problem, space.grid.steps, scheme)
        if objective.space != space:
            sizes = "control size {0.control_size}, parameter size {0.parameter_size} and horizon {0.grid.horizon:g}"
            raise ValueError(f"problem: expected one with {sizes.format(space)}, got {sizes.format(objective.space)}")
        x = objective.discretization.example()[0]
        shape, own = tuple(x.shape[1:]), self.about.get("state_shape")
        if own is not None and tuple(own) != shape:
            raise ValueError(f"problem: expected one with states of shape {tuple(own)}, got {shape}")
        if self.multipliers is not None:
            duration = problem.duration(control.parameters)
            objective = objective.augmented(lagrangian(self.multipliers, duration))
        return objective.trajectory(control.flat.to(x))

    def __repr__(self) -> str:
        return f"Result({self.status.name}, value={self.value:.10g}, {self.iterations} iterations)"

    def __str__(self) -> str:
        about: Mapping[str, Any] = defaultdict(lambda: None, self.about)
        lines = {"status": f"{self.status.name} (success: {self.success})", "message": self.message}
        if about["target"]:
            missed = ", not reached" + (", but the tolerance was met" if self.success else "")
            lines["target"] = about["target"] + (missed if about["target_reached"] is False else "")
        if about["steps"] and about["integrator"]:
            used = {about["steps"], *(r.steps for r in self.history), *(v.coarse for v in self.visits)}
            steps = [str(n) for n in sorted(used, reverse=True)]
            shown = ", ".join(steps if len(steps) <= 4 else [*steps[:2], "...", steps[-1]])
            shown += f" step{'s' * (max(used) > 1)} of {about['integrator']}"
            lines["grids" if len(steps) > 1 else "grid"] = shown
        if about["resumed"] is not None:
            lines["resumed"] = f"at iteration {about['resumed']}"
        lines["value"] = f"{self.value:.10g}"
        for name, value in (about["parameters"] or {}).items():
            lines[name] = f"{value:.8g}" if isinstance(value, float) else str(value)
        lines["derivative norm"] = f"{self.derivative_norm:.3e}"
        if about["start_norm"] and about["tolerance"] is not None:
            relative = f"{self.derivative_norm / about['start_norm']:.1e} of the start's"
            lines["derivative norm"] += f", {relative} (tolerance {about['tolerance']:g})"
        if self.violation is not None:
            lines["violation"] = str(self.violation)
        lines["work"] = f"{self.work_units:.2f} units in {self.seconds:.2f} s, {self.iterations} iterations"
        if about["clock"] is not None:
            lines["work"] += f"; {about['clock']:.2f} s with all checks and looks"
        events = [f"{n} {EVENTS.get(name, name).format('s' * (n > 1))}" for name, n in self.counts.items() if n]
        lines["events"] = ", ".join(events) or "none"
        for name, accuracy in (("validation", self.validation_accuracy), ("test", self.test_accuracy)):
            if accuracy is not None:
                lines[f"{name} accuracy"] = f"{accuracy:.4f}"
        if about["discretization_error"] is not None:
            estimate = f"{about['discretization_error']:.2e} (estimated, on {about['steps']} steps)"
            lines["discretization error"] = estimate
        return "\n".join(f"{name:>20}: {text}" for name, text in lines.items())

    def to_dict(self) -> dict[str, Any]:
        """Everything but control and multipliers, as JSON can hold it; numbers that are not finite become null."""
        apart = ("control", "multipliers", "about", "visits", "history", "violation", "integrator")
        values = {name: value for name, value in vars(self).items() if name not in apart}
        values |= {"status": self.status.name, "success": self.success}
        values |= {"visits": [asdict(v) for v in self.visits], "history": [asdict(r) for r in self.history]}
        values["violation"] = None if self.violation is None else asdict(self.violation)
        saved: dict[str, Any] = plain({**self.about, **values})
        return saved

    @classmethod
    def from_dict(cls, values: Mapping[str, Any]) -> Result:
        """Inverse of `to_dict`, without control and multipliers; ValueError if a field is missing or wrong."""
        names = {field.name for field in fields(cls)} - {"control", "multipliers", "about", "integrator"}
        try:
            missing = sorted(names - set(values))
            if missing:
                raise ValueError(f"result: expected the fields of a saved result, got none for {', '.join(missing)}")
            if not values["history"]:
                raise ValueError("result: expected a history of at least one record, got none")
            own = _with_nan({name: values[name] for name in names}) | {
                "status": Status[values["status"]],
                "history": tuple(Record(**_with_nan(record)) for record in values["history"]),
                "visits": tuple(Visit(**visit) for visit in values["visits"]),
                "violation": None if values["violation"] is None else Violation.from_dict(values["violation"]),
            }
            about = {name: value for name, value in values.items() if name not in names | {"success"}}
            return cls(control=None, about=about, integrator=INTEGRATORS.get(about.get("integrator", "")), **own)
        except (AttributeError, KeyError, TypeError) as error:
            raise ValueError(f"result: expected what a result saved, got {type(error).__name__}: {error}") from error

    def save(self, folder: str | Path) -> Path:
        """Write ``result.json`` and ``control.pt`` to a folder, which is created if necessary."""
        folder = Path(folder)
        write(folder / "result.json", self.to_dict())
        (folder / "control.pt").unlink(missing_ok=True)
        if self.control is not None:
            multipliers = {} if self.multipliers is None else vars(self.multipliers)
            saved = {name: value if value is None else value.cpu() for name, value in multipliers.items()}
            control = {"flat": self.control.flat.cpu(), "multipliers": saved, **asdict(self.control.space)}
            torch.save(control, folder / "control.pt")
        return folder

    @classmethod
    def load(cls, folder: str | Path) -> Result:
        """Inverse of `save`. Loading executes no code."""
        folder = Path(folder)
        result = cls.from_dict(read(folder / "result.json"))
        if not (folder / "control.pt").exists():
            return result
        saved = torch.load(folder / "control.pt", weights_only=True)
        flat, grid, found = saved.pop("flat"), TimeGrid(**saved.pop("grid")), saved.pop("multipliers")
        multipliers = Multipliers(**found) if found else None
        return replace(result, control=Control(ControlSpace(grid, **saved), flat), multipliers=multipliers)


def _with_nan(values: Mapping[str, Any]) -> dict[str, Any]:
    """Numbers that were not finite, and became null, as nan."""
    numbers = ("value", "derivative_norm")
    return {name: nan if value is None and name in numbers else value for name, value in values.items()}
