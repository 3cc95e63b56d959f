"""Classify points of a square by the height of MATLAB's peaks function.

The height of the point (x, y) in [-3, 3]^2 is

    3 (1 - x)^2 exp(-x^2 - (y + 1)^2) - 10 (x / 5 - x^3 - y^5) exp(-x^2 - y^2) - exp(-(x + 1)^2 - y^2) / 3.

Five bands of equal height are the classes, each with the same number of points of a 256 x 256 grid. This is the
peaks example of Haber & Ruthotto (2017), "Stable architectures for deep neural networks", Inverse Problems 34, as
their code Meganet makes it, but drawn without replacement, so that no point occurs twice. The network is the
antisymmetric one of their equation 15, without damping, x' = tanh((K - K^T) x / 2 + b), with states of 8 numbers
on [0, 5], between a linear opening and a linear closing.
"""

from __future__ import annotations

import torch
from torch import Tensor

from ocp import Stop, Study, Target
from ocp.problem.layers import Antisymmetric, Dense

from .classifier import classifier
from .data import Dataset, split

__all__ = ["height", "points", "problem"]

BANDS = 5


def height(x: Tensor, y: Tensor) -> Tensor:
    """MATLAB's peaks function."""
    return (
        3 * (1 - x) ** 2 * torch.exp(-(x**2) - (y + 1) ** 2)
        - 10 * (x / 5 - x**3 - y**5) * torch.exp(-(x**2) - y**2)
        - torch.exp(-((x + 1) ** 2) - y**2) / 3
    )


def points(samples: int, seed: int = 0) -> tuple[Tensor, Tensor]:
    """Points of the square, shape (5 samples, 2), and the numbers of their bands.

    Parameters
    ----------
    samples : int
        Points in each band.
    seed : int
        Of the draw.

    Raises
    ------
    ValueError
        If a band of the grid has fewer points.
    """
    side = torch.linspace(-3, 3, 256, dtype=torch.float64)
    grid = torch.cartesian_prod(side, side)
    z = height(*grid.T)
    band = ((z - z.min()) / (z.max() - z.min()) * BANDS).long().clamp(max=BANDS - 1)
    fewest = int(band.bincount().min())
    if samples > fewest:
        raise ValueError(f"samples: expected at most {fewest} points for each class, got {samples}")
    generator = torch.Generator().manual_seed(seed)
    inputs = []
    for j in range(BANDS):
        candidates = grid[band == j]
        inputs.append(candidates[torch.randperm(len(candidates), generator=generator)[:samples]])
    return torch.cat(inputs), torch.arange(BANDS).repeat_interleave(samples)


def problem(
    *,
    seed: int = 0,
    data_seed: int = 0,
    dtype: torch.dtype = torch.float32,
    device: torch.device | str = "cpu",
    width: int = 8,
    samples: int = 400,
) -> Study:
    """The training of a residual network on the peaks.

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
        Points in each class.
    """
    inputs, labels = points(samples, data_seed)
    data = Dataset(inputs.to(dtype), labels, *split(len(labels), seed=data_seed))
    return classifier(
        data,
        Dense(width, weight=Antisymmetric()),
        horizon=5.0,
        regularization=1e-5,
        seed=seed,
        device=device,
        steps=128,
        levels=8,
        stop=Stop(max_work=100, tolerance=1e-3),
        target=Target("accuracy", 0.95),
    )
