"""How a Runge-Kutta step combines its stages, and the transpose of that; the caller evaluates f and its derivatives."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from ocp.integrators.tableaus import Tableau, Weights

__all__ = ["Workspace", "advance", "combine", "retreat"]


def combine(x: Tensor, scale: float, weights: Weights, tensors: Sequence[Tensor], out: Tensor | None = None) -> Tensor:
    """x + scale sum_j w_j tensors[j].

    Parameters
    ----------
    weights : sequence of (int, float)
        Pairs (j, w_j).
    out : Tensor, optional
        Where to write the sum; may be x. Without it, autograd can follow, and a sum of no terms is x itself.
    """
    for j, weight in weights:
        x = torch.add(x, tensors[j], alpha=scale * weight, out=out)
    return x if out is None or out is x else out.copy_(x)


def advance(
    tableau: Tableau,
    t: float,
    h: float,
    x: Tensor,
    slope: Callable[[int, float, Tensor], Tensor],
    first: int = 0,
    states: Sequence[Tensor] | None = None,
) -> list[Tensor]:
    """The slopes K_i of one step from state x at time t; the state at its end is x + h sum_i b_i K_i.

    The tangent of a step has the same form, with tangents in place of states and slopes.

    Parameters
    ----------
    slope : callable
        ``slope(first + i, t + c_i h, r_i)`` returns K_i for r_i = x + h sum_{j < i} a_ij K_j, which is the stage state
        if the stage is explicit.
    first : int
        The number of the first stage, if the stages of several steps are numbered consecutively.
    states : sequence of Tensor, optional
        Where to write the r_i, to entry ``first + i``, except for r_0, which is x itself.
    """
    slopes = [slope(first, t + tableau.c[0] * h, x)]
    for i, row, c in tableau.later:
        r = combine(x, h, row, slopes, None if states is None else states[first + i])
        slopes.append(slope(first + i, t + c * h, r))
    return slopes


@dataclass(frozen=True, eq=False)
class Workspace:
    """Storage that lets `retreat` work in place.

    Attributes
    ----------
    kappa : Tensor
        Of the shape of p.
    xi : sequence of Tensor
        One of that shape for each stage; zero when `retreat` is called.
    """

    kappa: Tensor
    xi: Sequence[Tensor]


def retreat(
    tableau: Tableau,
    p: Tensor,
    pull: Callable[[int, Tensor, Tensor | None], Tensor],
    first: int = 0,
    workspace: Workspace | None = None,
) -> Tensor:
    """The costate at the start of a step from the costate p at its end: p + sum_i xi_i.

    Here xi_i is the derivative by the stage state that comes from stage i, and kappa_i = b_i p + sum_{j > i} a_ji xi_j,
    times h, is the one by its slope: Hager (2000), "Runge-Kutta methods in optimal control and the transformed adjoint
    system". Without running cost, xi_i = h f_x^T kappa_i at an explicit stage.

    Parameters
    ----------
    pull : callable
        ``pull(first + i, kappa_i, into)`` returns into + xi_i, where None stands for zero. It is called for the last
        stage first, and may write to ``into`` unless that is p.
    first : int
        As in `advance`.
    workspace : Workspace, optional
        With it, p may be overwritten, and ``pull`` always writes to ``into``.
    """
    if not tableau.backward:  # one stage, as for explicit Euler
        return pull(first, _costate(*tableau.opening, p), p)
    kappa, given = (None, None) if workspace is None else (workspace.kappa, workspace.xi)
    xi: list[Tensor] = []  # of the stages after this one, the last stage first
    for i, b, column in tableau.backward:
        xi.append(pull(first + i, _costate(b, column, p, xi, kappa), None if given is None else given[i]))
    kappa, total = _costate(*tableau.opening, p, xi, kappa), p
    for part in xi:
        total = torch.add(total, part, out=None if given is None or kappa is p else p)
    return pull(first, kappa, total)


def _costate(b: float, column: Weights, p: Tensor, xi: Sequence[Tensor] = (), out: Tensor | None = None) -> Tensor:
    """b p + sum_j a_j xi_j; p itself if b = 1 and there are no other terms."""
    if b == 1 and not column:
        return p
    kappa = torch.mul(p, b, out=out)
    for j, a in column:
        kappa.add_(xi[j], alpha=a)
    return kappa
