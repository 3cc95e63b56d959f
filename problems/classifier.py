"""Residual classifiers: what the learning problems have in common."""

from __future__ import annotations

from typing import Any

import torch
from torch import nn

from ocp import CrossEntropy, Study, Tikhonov, residual_network
from ocp.problem.layers import Dense

from .data import Dataset

__all__ = ["classifier"]


def classifier(
    data: Dataset,
    layer: Dense,
    *,
    horizon: float,
    regularization: float,
    seed: int,
    device: torch.device | str,
    **suggested: Any,
) -> Study:
    """The training of a residual classifier: a linear opening, a layer for all times, a linear closing.

    Minimize the mean cross-entropy of V x(T) + c, plus a Tikhonov term, subject to x' = f(x, u(t)), x(0) = A z + a,
    for inputs z, the layer f, and the parameters q = (A, a, V, c).

    Parameters
    ----------
    data : Dataset
        Inputs of shape (samples, features).
    layer : Dense
    horizon : float
        T.
    regularization : float
        alpha of `Tikhonov`.
    seed : int
        Of the initial weights.
    device : torch.device or str
    **suggested
        Further arguments of `Study`: how to solve it.

    Returns
    -------
    Study
        On the training samples, with the validation and the test samples held out.
    """
    data = data.to(device)
    generator = torch.Generator().manual_seed(seed)
    whole = residual_network(
        data.inputs,
        CrossEntropy(data.labels),
        layer,
        opening=_linear(data.inputs.shape[1], layer.width, generator),
        closing=_linear(layer.width, data.classes, generator),
        horizon=horizon,
        control_cost=Tikhonov(regularization),
        generator=generator,
    )
    train, validation, test = (whole.take(part) for part in (data.train, data.validation, data.test))
    return Study(train, validation=validation, test=test, **suggested)


def _linear(inputs: int, outputs: int, generator: torch.Generator) -> nn.Linear:
    """A linear layer whose initial weights have torch's distribution, but do not come from its global generator."""
    layer: nn.Linear = nn.utils.skip_init(nn.Linear, inputs, outputs, dtype=torch.float64)
    bound = inputs**-0.5
    for parameter in layer.parameters():
        nn.init.uniform_(parameter, -bound, bound, generator=generator)
    return layer
