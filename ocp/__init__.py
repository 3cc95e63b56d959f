"""Training and control as discrete optimal control, solved on many time grids at once."""

from ocp import layers, network, plots
from ocp.adaptive import Adaptive
from ocp.batches import Batches
from ocp.bounds import Bounds
from ocp.checkpoints import Binomial, Reversible, StoreAll
from ocp.control import Control, ControlSpace
from ocp.costs import CrossEntropy, LeastSquares, QuadraticRunning, Readout, Tikhonov, TimeSmoothness
from ocp.dynamics import Dynamics, FunctionDynamics, ModuleDynamics
from ocp.grid import TimeGrid
from ocp.linearsolve import ConstantJacobian, DenseLU
from ocp.linesearch import Armijo, StrongWolfe
from ocp.methods import LBFGS, GradientDescent, Method, NewtonCG, NonlinearCG, SciPy, State, TorchOptimizer, Visit
from ocp.multilevel import MGOPT, Always, Cycle, Earned, Forgetful, Nested
from ocp.network import residual_network
from ocp.objective import ReducedObjective, ShiftedObjective, discretize
from ocp.problem import ControlProblem, Study
from ocp.refinement import Measured, Scheduled, Settled
from ocp.result import Record, Result, Target
from ocp.rungekutta import RungeKutta
from ocp.saves import Checkpoint
from ocp.solver import accuracy, minimize
from ocp.status import SolveError, Status
from ocp.tableaus import Tableau
from ocp.trajectory import Trajectory
from ocp.transfer import CONSTANT, LINEAR, Transfer
from ocp.trustregion import TrustRegion
from ocp.verify import Report, Slope, drift, quick_check, taylor_test, verify
from ocp.verlet import Verlet

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
