"""Training and control as discrete optimal control, solved on many time grids at once."""

from importlib import import_module
from types import ModuleType
from typing import TYPE_CHECKING

from ocp.adjoint.schedules import Binomial, Reversible, StoreAll
from ocp.adjoint.trajectory import Trajectory
from ocp.integrators.linear_solvers import ConstantJacobian, DenseLU
from ocp.integrators.runge_kutta import RungeKutta
from ocp.integrators.tableaus import Tableau
from ocp.integrators.verlet import Verlet
from ocp.multilevel.cycle import Cycle
from ocp.multilevel.nested import MGOPT, Forgetful, Nested
from ocp.multilevel.refinement import Measured, Scheduled, Settled
from ocp.multilevel.visits import Always, Earned
from ocp.objective.evaluation import Evaluation, Objective
from ocp.objective.reduced import ReducedObjective, discretize
from ocp.objective.shifted import ShiftedObjective
from ocp.optimize.adapters import SciPy, TorchOptimizer
from ocp.optimize.augmented_lagrangian import AugmentedLagrangian
from ocp.optimize.descent import GradientDescent, NonlinearCG
from ocp.optimize.interior_point.method import InteriorPoint
from ocp.optimize.lbfgs import LBFGS
from ocp.optimize.line_search import Armijo, StrongWolfe
from ocp.optimize.method import Method, State, Visit
from ocp.optimize.newton_cg import NewtonCG, TrustRegion
from ocp.optimize.status import SolveError, Status
from ocp.problem import layers
from ocp.problem.control_problem import ControlProblem
from ocp.problem.costs import CrossEntropy, LeastSquares, QuadraticRunning, Readout, Tikhonov, TimeSmoothness
from ocp.problem.dynamics import FunctionDynamics, ModuleDynamics
from ocp.problem.measurements import Measurements
from ocp.problem.parameters import Parameter
from ocp.problem.protocols import Dynamics
from ocp.run.adaptive import Adaptive
from ocp.run.checkpoints import Checkpoint
from ocp.run.fit import Fit, fit
from ocp.run.minimize import accuracy, minimize
from ocp.run.results import Record, Result, Target
from ocp.run.stopping import Stop
from ocp.run.study import Study
from ocp.run.watching import Watch
from ocp.space.bounds import Bounds
from ocp.space.control import Control, ControlSpace
from ocp.space.grid import TimeGrid
from ocp.space.transfer import CONSTANT, LINEAR, Transfer
from ocp.training import networks as network
from ocp.training.batches import Batches
from ocp.training.networks import residual_network
from ocp.verification.drift import drift
from ocp.verification.slopes import Slope, quick_check
from ocp.verification.verify import Report, taylor_test, verify

if TYPE_CHECKING:
    from ocp.run import plots
else:  # type checkers would take any name for a module

    def __getattr__(name: str) -> ModuleType:
        """Load `ocp.plots`, and matplotlib with it, when it is first used."""
        if name == "plots":
            return import_module("ocp.run.plots")
        raise AttributeError(f"module 'ocp' has no attribute {name!r}")


__version__ = "0.1.0"

# fmt: off
__all__ = [
    "CONSTANT", "LBFGS", "LINEAR", "MGOPT", "Adaptive", "Always", "Armijo", "AugmentedLagrangian", "Batches",
    "Binomial", "Bounds", "Checkpoint", "ConstantJacobian", "Control", "ControlProblem", "ControlSpace", "CrossEntropy",
    "Cycle", "DenseLU", "Dynamics", "Earned", "Evaluation", "Fit", "Forgetful", "FunctionDynamics", "GradientDescent",
    "InteriorPoint", "LeastSquares", "Measured", "Measurements", "Method", "ModuleDynamics", "Nested", "NewtonCG",
    "NonlinearCG", "Objective", "Parameter", "QuadraticRunning", "Readout", "Record", "ReducedObjective", "Report",
    "Result", "Reversible", "RungeKutta", "Scheduled", "SciPy", "Settled", "ShiftedObjective", "Slope", "SolveError",
    "State", "Status", "Stop", "StoreAll", "StrongWolfe", "Study", "Tableau", "Target", "Tikhonov", "TimeGrid",
    "TimeSmoothness", "TorchOptimizer", "Trajectory", "Transfer", "TrustRegion", "Verlet", "Visit", "Watch", "accuracy",
    "discretize", "drift", "fit", "layers", "minimize", "network", "plots", "quick_check", "residual_network",
    "taylor_test", "verify",
]
