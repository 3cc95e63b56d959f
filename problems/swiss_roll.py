"""Classify points of the plane on two interleaved spirals, with a stable network.

The classes are the curves r (cos theta, sin theta) for theta in [0, 4 pi], one with the radius r = theta / (4 pi),
the other with r + 0.2, at equally spaced theta. This is the swiss roll of Haber & Ruthotto (2017), "Stable
architectures for deep neural networks", Inverse Problems 34, section 6.2, as their code Meganet makes it. The
network is the antisymmetric one of their equation 15, without damping, x' = tanh((K - K^T) x / 2 + b), with states
of 16 numbers on [0, 10]; a linear opening takes the place of padding with zeros.
"""

from __future__ import annotations

from math import pi

import torch
from torch import Tensor

from ocp import Stop, Study, Target
from ocp.problem.layers import Antisymmetric, Dense

from .classifier import classifier
from .data import Dataset, split

__all__ = ["points", "problem"]


def points(samples: int) -> tuple[Tensor, Tensor]:
    """Points of the plane, shape (2 samples, 2), and the numbers of their spirals.

    Parameters
    ----------
    samples : int
        Points on each spiral.
    """
    theta = torch.linspace(0, 4 * pi, samples, dtype=torch.float64)
    direction = torch.stack((theta.cos(), theta.sin()), dim=1)
    r = theta[:, None] / (4 * pi)
    return torch.cat((r * direction, (r + 0.2) * direction)), torch.arange(2).repeat_interleave(samples)


def problem(
    *,
    seed: int = 0,
    data_seed: int = 0,
    dtype: torch.dtype = torch.float32,
    device: torch.device | str = "cpu",
    width: int = 16,
    samples: int = 513,
) -> Study:
    """The training of a residual network on the swiss roll.

    Parameters
    ----------
    seed : int
        Of the initial weights.
    data_seed : int
        Of the split into 60 % training, 20 % validation and 20 % test points.
    dtype : torch.dtype
    device : torch.device or str
    width : int
        Numbers in the state.
    samples : int
        Points on each spiral.
    """
    inputs, labels = points(samples)
    data = Dataset(inputs.to(dtype), labels, *split(len(labels), seed=data_seed))
    return classifier(
        data,
        Dense(width, weight=Antisymmetric()),
        horizon=10.0,
        regularization=1e-4,
        seed=seed,
        device=device,
        steps=128,
        levels=8,
        stop=Stop(max_work=150, tolerance=1e-3),
        target=Target("accuracy", 0.95),
    )
