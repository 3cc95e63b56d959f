"""Classify points of the plane on the five arms of a spiral.

The points of arm j have the polar coordinates

    r = i / n,   phi = 4 r + 2 pi j / 5 + 0.1 xi,   i = 1, ..., n,

with standard normal xi. This is the spiral of Karpathy (2015), notes of the Stanford course CS231n, "Putting it
together: minimal neural network case study", with five arms in place of three, and half the noise. The network is
x' = tanh(K x + b) with states of 8 numbers on [0, 4], between a linear opening and a linear closing.
"""

from __future__ import annotations

from math import pi

import torch
from torch import Tensor

from ocp import Stop, Study, Target
from ocp.problem.layers import Dense

from .classifier import classifier
from .data import Dataset, split

__all__ = ["points", "problem"]

ARMS = 5


def points(samples: int, seed: int = 0) -> tuple[Tensor, Tensor]:
    """Points of the plane, shape (5 samples, 2), and the numbers of their arms.

    Parameters
    ----------
    samples : int
        Points on each arm.
    seed : int
        Of the noise.
    """
    generator = torch.Generator().manual_seed(seed)
    noise = torch.randn(ARMS, samples, generator=generator, dtype=torch.float64)
    r = torch.arange(1, samples + 1, dtype=torch.float64) / samples
    phi = 4 * r + 2 * pi / ARMS * torch.arange(ARMS)[:, None] + 0.1 * noise
    x = torch.stack((r * phi.cos(), r * phi.sin()), dim=-1)
    return x.reshape(-1, 2), torch.arange(ARMS).repeat_interleave(samples)


def problem(
    *,
    seed: int = 0,
    data_seed: int = 0,
    dtype: torch.dtype = torch.float32,
    device: torch.device | str = "cpu",
    width: int = 8,
    samples: int = 200,
) -> Study:
    """The training of a residual network on the spiral.

    Parameters
    ----------
    seed : int
        Of the initial weights.
    data_seed : int
        Of the points, and of their split into 60 % training, 20 % validation and 20 % test points.
    dtype : torch.dtype
    device : torch.device or str
    width : int
        Numbers in the state.
    samples : int
        Points on each arm.
    """
    inputs, labels = points(samples, data_seed)
    data = Dataset(inputs.to(dtype), labels, *split(len(labels), seed=data_seed))
    return classifier(
        data,
        Dense(width),
        horizon=4.0,
        regularization=1e-5,
        seed=seed,
        device=device,
        steps=128,
        levels=8,
        stop=Stop(max_work=100, tolerance=1e-3),
        target=Target("accuracy", 0.95),
    )
