"""Right-hand sides of the state equation, and their derivatives."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, Protocol, runtime_checkable

import torch
from torch import Tensor, nn

from ocp.modules import FlatModule, hvp, pullback

__all__ = ["Dynamics", "FunctionDynamics", "ModuleDynamics", "as_dynamics"]


@runtime_checkable
class Dynamics(Protocol):
    """The right-hand side f of x' = f(t, x, u).

    States have the shape (batch, *state), controls the shape (control_size,); t is a float.

    Second derivatives need a method more, which nothing else asks for: ``hvp(t, x, u, p, dx, du)``, the Hessian of
    <p, f(t, x, u)> by (x, u) applied to (dx, du), a pair of the shapes of x and u.
    """

    @property
    def control_size(self) -> int:
        """m, the length of u."""

    def __call__(self, t: float, x: Tensor, u: Tensor) -> Tensor:
        """f(t, x, u), of the shape of x."""

    def vjp(self, t: float, x: Tensor, u: Tensor, p: Tensor) -> tuple[Tensor, Tensor]:
        """Transposed derivatives (df/dx^T p, df/du^T p) for p of the shape of x."""

    def jvp(self, t: float, x: Tensor, u: Tensor, dx: Tensor, du: Tensor) -> Tensor:
        """Directional derivative df/dx dx + df/du du."""


class FunctionDynamics:
    """A plain function as dynamics, differentiated one evaluation at a time.

    Parameters
    ----------
    function : callable
        ``f(t, x, u)`` in torch operations; x has the shape (batch, *state), u the shape (control_size,).
    control_size : int

    Examples
    --------
    >>> oscillator = FunctionDynamics(lambda t, x, u: torch.stack((x[:, 1], u[0] - x[:, 0]), dim=1), control_size=1)
    >>> x, u, p = torch.ones(1, 2), torch.zeros(1), torch.ones(1, 2)
    >>> oscillator.vjp(0.0, x, u, p)
    (tensor([[-1.,  1.]]), tensor([1.]))
    """

    def __init__(self, function: Callable[[float, Tensor, Tensor], Tensor], control_size: int):
        self.function = function
        self.control_size = control_size

    def __call__(self, t: float, x: Tensor, u: Tensor) -> Tensor:
        return self.function(t, x, u)

    def vjp(self, t: float, x: Tensor, u: Tensor, p: Tensor) -> tuple[Tensor, Tensor]:
        px, pu = pullback(lambda x, u: self.function(t, x, u), (x, u), p)
        return px, pu

    def jvp(self, t: float, x: Tensor, u: Tensor, dx: Tensor, du: Tensor) -> Tensor:
        return torch.func.jvp(lambda x, u: self.function(t, x, u), (x, u), (dx, du))[1]

    def hvp(self, t: float, x: Tensor, u: Tensor, p: Tensor, dx: Tensor, du: Tensor) -> tuple[Tensor, Tensor]:
        hx, hu = hvp(lambda x, u: self.function(t, x, u), (x, u), (dx, du), p)
        return hx, hu


class ModuleDynamics:
    """A torch block as dynamics: f(t, x, u) is the block's output on x with its parameters set to u.

    Parameters
    ----------
    module : nn.Module
        Maps (batch, *state) to the same shape; a residual block without its skip connection.

    Examples
    --------
    >>> ModuleDynamics(nn.Sequential(nn.Linear(4, 4), nn.Tanh())).control_size
    20
    """

    def __init__(self, module: nn.Module):
        self.flat = FlatModule(module)
        self.control_size = self.flat.size

    def __call__(self, t: float, x: Tensor, u: Tensor) -> Tensor:
        return self.flat(u, x)

    def vjp(self, t: float, x: Tensor, u: Tensor, p: Tensor) -> tuple[Tensor, Tensor]:
        pu, px = pullback(self.flat, (u, x), p)
        return px, pu

    def jvp(self, t: float, x: Tensor, u: Tensor, dx: Tensor, du: Tensor) -> Tensor:
        return torch.func.jvp(self.flat, (u, x), (du, dx))[1]

    def hvp(self, t: float, x: Tensor, u: Tensor, p: Tensor, dx: Tensor, du: Tensor) -> tuple[Tensor, Tensor]:
        hu, hx = hvp(self.flat, (u, x), (du, dx), p)
        return hx, hu

    def to_module(self, u: Tensor) -> nn.Module:
        """The block with the parameters u."""
        return self.flat.with_parameters(u)


def as_dynamics(dynamics: Any, control_size: int | None) -> Dynamics:
    """Whatever a user may give as dynamics, as a `Dynamics`.

    Raises
    ------
    TypeError, ValueError
        If it is neither dynamics, nor a module, nor a function with a stated ``control_size``.
    """
    if isinstance(dynamics, nn.Module):
        dynamics = ModuleDynamics(dynamics)
    if isinstance(dynamics, Dynamics):
        if control_size not in (None, dynamics.control_size):
            raise ValueError(
                f"control_size: expected {dynamics.control_size}, which the dynamics state, got {control_size}"
            )
        return dynamics
    if not callable(dynamics) or hasattr(dynamics, "vjp"):
        raise TypeError(
            "dynamics: expected a function f(t, x, u), an nn.Module, or Dynamics with control_size, vjp and jvp, "
            f"got {type(dynamics).__name__}"
        )
    if control_size is None or control_size < 1:
        raise ValueError(
            f"control_size: expected the length of u (an integer >= 1) beside a plain function, got {control_size!r}"
        )
    return FunctionDynamics(dynamics, control_size)
