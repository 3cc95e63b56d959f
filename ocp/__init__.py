"""Training and control as discrete optimal control, solved on many time grids at once."""

from ocp import plots
from ocp.adjoint.schedules import Binomial, Reversible, StoreAll
from ocp.adjoint.trajectory import Trajectory
from ocp.integrators.linear_solvers import ConstantJacobian, DenseLU
from ocp.integrators.runge_kutta import RungeKutta
from ocp.integrators.tableaus import Tableau
from ocp.integrators.verlet import Verlet
from ocp.multilevel.cycle import MGOPT, Always, Cycle, Earned, Forgetful, Nested
from ocp.multilevel.refinement import Measured, Scheduled, Settled
from ocp.objective.reduced import ReducedObjective, ShiftedObjective, discretize
from ocp.optimize.line_search import Armijo, StrongWolfe
from ocp.optimize.methods import (
    LBFGS,
    GradientDescent,
    Method,
    NewtonCG,
    NonlinearCG,
    SciPy,
    State,
    TorchOptimizer,
    Visit,
)
from ocp.optimize.status import SolveError, Status
from ocp.optimize.trust_region import TrustRegion
from ocp.problem import layers
from ocp.problem.control_problem import ControlProblem, Study
from ocp.problem.costs import CrossEntropy, LeastSquares, QuadraticRunning, Readout, Tikhonov, TimeSmoothness
from ocp.problem.dynamics import FunctionDynamics, ModuleDynamics
from ocp.problem.protocols import Dynamics
from ocp.run.adaptive import Adaptive
from ocp.run.checkpoints import Checkpoint
from ocp.run.minimize import accuracy, minimize
from ocp.run.results import Record, Result, Target
from ocp.space.bounds import Bounds
from ocp.space.control import Control, ControlSpace
from ocp.space.grid import TimeGrid
from ocp.space.transfer import CONSTANT, LINEAR, Transfer
from ocp.training import networks as network
from ocp.training.batches import Batches
from ocp.training.networks import residual_network
from ocp.verification.verify import Report, Slope, drift, quick_check, taylor_test, verify

__version__ = "0.1.0"

__all__ = [
    "CONSTANT",
    "LBFGS",
    "LINEAR",
    "MGOPT",
    "Adaptive",
    "Always",
    "Armijo",
    "Batches",
    "Binomial",
    "Bounds",
    "Checkpoint",
    "ConstantJacobian",
    "Control",
    "ControlProblem",
    "ControlSpace",
    "CrossEntropy",
    "Cycle",
    "DenseLU",
    "Dynamics",
    "Earned",
    "Forgetful",
    "FunctionDynamics",
    "GradientDescent",
    "LeastSquares",
    "Measured",
    "Method",
    "ModuleDynamics",
    "Nested",
    "NewtonCG",
    "NonlinearCG",
    "QuadraticRunning",
    "Readout",
    "Record",
    "ReducedObjective",
    "Report",
    "Result",
    "Reversible",
    "RungeKutta",
    "Scheduled",
    "SciPy",
    "Settled",
    "ShiftedObjective",
    "Slope",
    "SolveError",
    "State",
    "Status",
    "StoreAll",
    "StrongWolfe",
    "Study",
    "Tableau",
    "Target",
    "Tikhonov",
    "TimeGrid",
    "TimeSmoothness",
    "TorchOptimizer",
    "Trajectory",
    "Transfer",
    "TrustRegion",
    "Verlet",
    "Visit",
    "accuracy",
    "discretize",
    "drift",
    "layers",
    "minimize",
    "network",
    "plots",
    "quick_check",
    "residual_network",
    "taylor_test",
    "verify",
]
