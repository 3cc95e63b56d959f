"""Whether the linear systems of implicit steps are those of the dynamics, found out by solving two of them."""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor

from ocp.integrators.linear_solvers import LinearSolver
from ocp.problem.differences import normal
from ocp.problem.protocols import Dynamics
from ocp.problem.shapes import BatchState, StepControl

__all__ = ["check_systems"]


def check_systems(solver: LinearSolver, f: Dynamics, t: float, x: BatchState, u: StepControl, scale: float) -> None:
    """Solve a system with I - scale df/dx and one with its transpose, and insert the solutions.

    Each entry of the residual is compared with the terms of its own equation. Where derivatives are not finite, nothing
    can be said.

    Raises
    ------
    ValueError
        If the solutions are wrong, mostly since samples depend on each other, or since a matrix is not df/dx.
    """
    coupled, eps = _are_coupled(f, t, x, u), torch.finfo(x.dtype).eps
    # A matrix in single precision or a derivative by differences may pass; samples that depend on each other may not.
    tolerance = 1e3 * eps if coupled else max(1e-6, eps**0.5)
    largest = x.abs().amax(0, keepdim=True)
    unit, zero = torch.where(largest > 0, largest, 1.0), torch.zeros_like(u)
    kind = type(solver).__name__
    try:
        factors = solver.factor(f, t, x, u, scale)
        residuals = [
            _residual(factors.solve, lambda y: scale * f.jvp(t, x, u, y, zero), x, unit),
            _residual(factors.solve_transposed, lambda y: scale * f.vjp(t, x, u, y)[0], x, 1 / unit),
        ]
    except RuntimeError as error:  # of torch, for shapes, types, devices
        raise ValueError(
            f"solver: expected {kind} to solve systems for states of shape {tuple(x.shape)} and {x.dtype}, "
            f"got {type(error).__name__}: {error}"
        ) from error
    off, transposed = max(residuals), residuals[1]
    if off <= tolerance:
        return
    if coupled:
        raise ValueError(
            f"dynamics: expected samples that do not depend on each other, as implicit steps with {kind} assume, got "
            "some whose derivative by others is not zero; use an explicit scheme"
        )
    if transposed <= tolerance:
        raise ValueError(
            "dynamics: expected jvp to agree with vjp, and operations that autograd can differentiate twice, got a "
            f"difference of {off:.1g}, relative to the terms of f"
        )
    raise ValueError(
        f"solver: expected {kind} to solve (I - scale df/dx) y = r with the df/dx of the dynamics, and the transposed "
        f"system, got a residual of {off:.1g}, relative to its terms"
    )


def _residual(solve: Callable[[Tensor], Tensor], apply: Callable[[Tensor], Tensor], x: Tensor, unit: Tensor) -> float:
    """The largest residual of y - apply(y) = r for a random r, relative to the terms of its entry; 0 if not finite."""
    generator = torch.Generator().manual_seed(0)
    r = unit * normal(x, generator)
    y = solve(r)
    try:
        # The size of a sum, whose terms may cancel for one choice of signs but hardly for four.
        others = [apply(y * normal(x, generator)).abs() for _ in range(3)]
        image = apply(y)
    except NotImplementedError:  # no derivatives in forward mode; only second derivatives will need them
        return 0.0
    size = torch.stack((*others, image.abs(), y.abs(), r.abs())).amax(0)
    relative = (y - image - r).abs() / size.clamp_min(torch.finfo(x.dtype).tiny)
    return float(relative.nan_to_num(0.0, 0.0).max())


def _are_coupled(f: Dynamics, t: float, x: Tensor, u: Tensor) -> bool:
    """Whether some sample has a derivative by another one: two samples differ in a digit of their binary numbers."""
    numbers, p = torch.arange(len(x), device=x.device), normal(x, torch.Generator().manual_seed(1))
    for digit in range((len(x) - 1).bit_length()):
        ones = (numbers >> digit) % 2 == 1
        for those in (ones, ~ones):
            part = torch.where(those.view(-1, *[1] * (x.ndim - 1)), p, torch.zeros_like(p))
            felt = f.vjp(t, x, u, part)[0][~those]
            if bool((felt.isfinite() & (felt != 0)).any()):
                return True
    return False
