"""Whether a problem is the average of the problems on parts of its samples, as mini-batches and processes assume."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor

from ocp.problem.control_problem import ControlProblem
from ocp.problem.differences import nearby

__all__ = ["check_division"]

#: A few samples are compared in addition to all, since rare ones weigh more among them.
FEW = 8


@torch.no_grad()
def check_division(problem: ControlProblem, q: Tensor, x: Tensor, u: Tensor) -> None:
    """Compare each piece on all samples with itself on parts of them, near a point and further away.

    Raises
    ------
    ValueError
        If a piece cannot be divided or fails on some of the samples, if the initial state or the dynamics of a sample
        depend on other samples, or if a cost is not the mean of its parts, weighted by their numbers of samples.
    """
    problem.take(torch.arange(len(x), device=x.device))  # raises if a piece cannot be divided
    if len(x) > 1:
        for distance, t in ((0.01, 0.0), (1.0, 0.4 * problem.grid(1).horizon)):
            _check_at(problem, t, *nearby({"q": q, "x": x, "u": u}, distance).values())


def _check_at(problem: ControlProblem, t: float, q: Tensor, x: Tensor, u: Tensor) -> None:
    f, L, Phi = problem.equation.dynamics, problem.equation.running_cost, problem.terminal_cost
    _check_states("initial_state", problem.initial_state(q), lambda part: problem.take(part).initial_state(q))
    _check_states("dynamics", f(t, x, u), lambda part: f(t, x[part], u))
    if (y := problem.equation.observation) is not None:
        _check_states("observe", y(x, q), lambda part: y.take(part)(x[part], q))
    if L is not None:
        _check_mean("running_cost", L, x, lambda L, x: L(t, x, u), L.derivative(t, x, u)[0])
    if Phi is not None:
        _check_mean("terminal_cost", Phi, x, lambda Phi, x: Phi(x, q), Phi.derivative(x, q)[0])


def _check_states(name: str, whole: Tensor, on: Callable[[Tensor], Tensor]) -> None:
    """Refuse states or slopes of some samples that differ from those of the same samples among all."""
    # Products of matrices round differently for other numbers of rows, most with the short mantissas of GPUs.
    bound = torch.finfo(whole.dtype).eps ** (1 / 3) * float(whole.nan_to_num(0.0, 0.0, 0.0).abs().max())
    samples = torch.arange(len(whole), device=whole.device)
    for part in _parts(samples):
        expected, found = whole[part], _evaluated(name, part, samples, on)
        if found.shape != expected.shape:
            raise ValueError(
                f"{name}: expected shape {tuple(expected.shape)} for {len(part)} of {len(samples)} samples, "
                f"got {tuple(found.shape)}"
            )
        apart = (found - expected).nan_to_num(0.0, 0.0, 0.0).abs().max()
        if float(apart) > bound:
            raise ValueError(
                f"{name}: expected samples that do not depend on each other, got differences of {float(apart):.3g} "
                f"where {len(part)} of {len(samples)} samples are taken"
            )


def _check_mean(name: str, cost: Any, x: Tensor, at: Callable[[Any, Tensor], Tensor], px: Tensor) -> None:
    """Refuse a cost that is not the mean of its parts. These are as unlike as possible: sorted by their derivatives."""
    order = px.flatten(1).norm(dim=1).argsort()
    size = float((px * x).abs().sum())  # what rounding of the states makes of the cost, in multiples of eps
    few = order[torch.linspace(0, len(order) - 1, FEW).long().to(order.device)] if len(order) > FEW else order[:0]

    def on(samples: Tensor) -> float:
        return float(at(cost.take(samples), x[samples]))

    for samples, whole in ((order, float(at(cost, x))), (few, on(few) if len(few) else 0.0)):
        parts = _parts(samples)
        values = [_evaluated(name, part, order, on) for part in parts]
        mean = (
            sum(len(part) / len(samples) * value for part, value in zip(parts, values, strict=True)) if parts else 0.0
        )
        bound = torch.finfo(x.dtype).eps ** 0.5 * (size + max(map(abs, (whole, *values))))
        if abs(whole - mean) > bound:  # false where one is not finite
            sizes = " and ".join(str(len(part)) for part in parts)
            raise ValueError(
                f"{name}: expected an average over the samples, as mini-batches and processes require, "
                f"got {whole:.6g} on {len(samples)} samples and {mean:.6g} as the mean of {sizes} of them"
            )


def _parts(samples: Tensor) -> list[Tensor]:
    """A third of the samples, and the others."""
    third = max(len(samples) // 3, 1)
    return [part for part in (samples[:third], samples[third:]) if len(part)]


def _evaluated(name: str, part: Tensor, samples: Tensor, on: Callable[[Tensor], Any]) -> Any:
    try:
        return on(part)
    except Exception as error:  # anything: functions of users were not called with other samples before
        raise ValueError(
            f"{name}: expected one that works on {len(part)} of {len(samples)} samples, as mini-batches and processes "
            f"require, got {type(error).__name__}: {error}; numbers for each sample need a method take(indices)"
        ) from error
