"""A problem together with how to solve it, what is known about it, and data held out."""

from __future__ import annotations

from dataclasses import dataclass

from ocp.integrators.integrator import Integrator
from ocp.multilevel.refinement import Measured, Refinement
from ocp.optimize.lbfgs import LBFGS
from ocp.optimize.method import Method
from ocp.problem.control_problem import ControlProblem
from ocp.run.results import Target
from ocp.run.stopping import Stop
from ocp.space.transfer import CONSTANT, Interpolation

__all__ = ["Study"]


@dataclass(frozen=True, eq=False)
class Study:
    """A problem with what is needed to study it.

    Parameters
    ----------
    problem : ControlProblem
        For a learning problem, on the training samples.
    steps, levels, integrator, smoother, interpolation, refine, stop
        Suggestions: steps of the finest grid, number of grids, scheme, method on each grid, prolongation, rule for when
        to refine, tolerance and limits.
    validation, test : ControlProblem, optional
        The same problem on other samples, to measure accuracy.
    optimum : float, optional
        Known optimum of the continuous problem.
    target : Target, optional
        Comparisons measure the work to reach it.
    """

    problem: ControlProblem
    steps: int = 128
    levels: int = 4
    integrator: Integrator | str = "euler"
    smoother: Method = LBFGS()
    interpolation: Interpolation = CONSTANT
    refine: Refinement = Measured()
    validation: ControlProblem | None = None
    test: ControlProblem | None = None
    optimum: float | None = None
    stop: Stop = Stop()
    target: Target | None = None
