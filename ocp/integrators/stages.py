"""How a Runge-Kutta step combines its stages, and the transpose of that; the caller evaluates f and its derivatives."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch import Tensor

from ocp.integrators.tableaus import Tableau, Weights

__all__ = ["advance", "combine", "retreat"]


def combine(x: Tensor, scale: float, weights: Weights, tensors: Sequence[Tensor], out: Tensor | None = None) -> Tensor:
    """x + scale sum_j w_j tensors[j] for pairs (j, w_j), written to ``out`` if given, which may be x.

    Without ``out``, autograd can follow, and a sum without terms is x itself.
    """
    for j, weight in weights:
        x = torch.add(x, tensors[j], alpha=scale * weight, out=out)
    return x if out is None or out is x else out.copy_(x)


def advance(
    tableau: Tableau,
    t: Any,
    h: float,
    x: Tensor,
    slope: Callable[[int, Any, Tensor], Tensor],
    first: int = 0,
    states: Sequence[Tensor] | None = None,
) -> list[Tensor]:
    """The slopes K_i of one step from state x at time t; the state at its end is x + h sum_i b_i K_i.

    The tangent of a step has the same form, with tangents in place of states and slopes.

    Parameters
    ----------
    t : float or Tensor
        Many steps can be taken at once, each from a time and a state of its own.
    slope : callable
        ``slope(first + i, t + c_i h, r_i)`` returns K_i for r_i = x + h sum_{j < i} a_ij K_j, the state of the stage
        if that is explicit.
    first : int
        The number of the first stage, if the stages of several steps are numbered consecutively.
    states : sequence of Tensor, optional
        Storage for the r_i, in entry ``first + i``, except for r_0, which is x itself.
    """
    slopes = [slope(first, t + tableau.c[0] * h, x)]
    for i, row, c in tableau.later:
        r = combine(x, h, row, slopes, None if states is None else states[first + i])
        slopes.append(slope(first + i, t + c * h, r))
    return slopes


def retreat(
    tableau: Tableau,
    p: Tensor,
    pull: Callable[[int, Tensor, Tensor | None], Tensor],
    first: int = 0,
    workspace: tuple[Tensor, Sequence[Tensor]] | None = None,
) -> Tensor:
    """The costate at the start of a step, whose stages begin at ``first``, from p at its end: p + sum_i xi_i.

    Here xi_i is the derivative by the stage state that comes from stage i, and kappa_i = b_i p + sum_{j > i} a_ji xi_j,
    times h, is the one by its slope: Hager (2000), "Runge-Kutta methods in optimal control and the transformed adjoint
    system". Without a running cost, xi_i = h f_x^T kappa_i at an explicit stage.

    Parameters
    ----------
    pull : callable
        ``pull(first + i, kappa_i, into)`` returns into + xi_i, where None stands for zero. It is called for the last
        stage first, and may write to ``into`` unless that is p.
    workspace : (Tensor, sequence of Tensor), optional
        Storage like p, and a zero like p for each stage. With it, p may be overwritten, and ``pull`` always writes to
        ``into``.
    """
    b, columns, later = tableau.b, tableau.columns, range(len(tableau.b) - 1, 0, -1)
    kappa, given = (None, [None] * len(b)) if workspace is None else workspace
    xi: list[Any] = list(given)
    for i in later:
        xi[i] = pull(first + i, _costate(b[i], columns[i], p, xi, kappa), xi[i])
    kappa, total = _costate(b[0], columns[0], p, xi, kappa), p
    for i in later:
        total = torch.add(total, xi[i], out=None if workspace is None or kappa is p else p)
    return pull(first, kappa, total)


def _costate(b: float, column: Weights, p: Tensor, xi: Sequence[Any], out: Tensor | None) -> Tensor:
    """b p + sum_j a_j xi_j; p itself if b = 1 and there are no other terms."""
    if b == 1 and not column:
        return p
    kappa = torch.mul(p, b, out=out)
    for j, a in column:
        kappa.add_(xi[j], alpha=a)
    return kappa
