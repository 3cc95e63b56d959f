"""Classify handwritten digits of 8 x 8 pixels.

The 1797 digits of Alpaydin & Kaynak (1998), "Optical recognition of handwritten digits", UCI machine learning
repository, from scikit-learn. The network is x' = tanh(K x + b) with states of 16 numbers on [0, 1], between a
linear opening and a linear closing. To train such networks on many time grids is the subject of Gaedke-Merzhaeuser,
Kopanicakova & Krause (2021), "Multilevel minimization for deep residual networks", ESAIM: Proceedings and Surveys 71.
"""

from __future__ import annotations

import torch

from ocp import Stop, Study, Target
from ocp.problem.layers import Dense

from . import data
from .classifier import classifier

__all__ = ["problem"]


def problem(
    *,
    seed: int = 0,
    data_seed: int = 0,
    dtype: torch.dtype = torch.float32,
    device: torch.device | str = "cpu",
    width: int = 16,
) -> Study:
    """The training of a residual network on the digits.

    Parameters
    ----------
    seed : int
        Of the initial weights.
    data_seed : int
        Of the split into 60 % training, 20 % validation and 20 % test digits.
    dtype : torch.dtype
    device : torch.device or str
    width : int
        Numbers in the state.

    Raises
    ------
    ImportError
        If scikit-learn is not installed.
    """
    return classifier(
        data.digits(dtype, data_seed),
        Dense(width),
        horizon=1.0,
        regularization=1e-5,
        seed=seed,
        device=device,
        steps=128,
        levels=8,
        stop=Stop(max_work=50, tolerance=1e-4),
        target=Target("accuracy", 0.95),
    )
