"""The words of the command line, and the objects they name."""

from __future__ import annotations

from collections.abc import Callable, Mapping

import torch

from ocp.optimize.adapters import SciPy, TorchOptimizer
from ocp.optimize.descent import GradientDescent, NonlinearCG
from ocp.optimize.lbfgs import LBFGS
from ocp.optimize.method import Method
from ocp.optimize.newton_cg import NewtonCG
from ocp.run.comparison import augmented, interior, mgopt, nested, single

__all__ = ["DTYPES", "METHODS", "RATED", "SMOOTHERS"]

#: Ways to use the grids by name.
METHODS: Mapping[str, Callable[..., Method]] = {
    "single": single,
    "nested": nested,
    "mgopt": mgopt,
    "augmented": augmented,
    "interior": interior,
}

#: Smoothers by name, as functions of the learning rate, which only those of `RATED` have.
SMOOTHERS: Mapping[str, Callable[[float], Method]] = {
    "lbfgs": lambda lr: LBFGS(),
    "cg": lambda lr: NonlinearCG(),
    "newton": lambda lr: NewtonCG(),
    "gd": lambda lr: GradientDescent(),
    "adam": lambda lr: TorchOptimizer(torch.optim.Adam, {"lr": lr}),
    "sgd": lambda lr: TorchOptimizer(torch.optim.SGD, {"lr": lr, "momentum": 0.9}),
    "scipy": lambda lr: SciPy(),
}

#: Smoothers that have a learning rate.
RATED = ("adam", "sgd")

#: Precisions by name.
DTYPES: Mapping[str, torch.dtype] = {"float32": torch.float32, "float64": torch.float64}
