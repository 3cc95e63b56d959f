"""Functions and torch modules as dynamics."""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from typing import Any

import torch
from torch import Tensor, nn

from ocp.problem.boundary import call, check_order, uncompiled
from ocp.problem.functions import Mapped, hvp, jacobian_of, jacobians, jvp, pullback
from ocp.problem.modules import FlatModule
from ocp.problem.protocols import Dynamics, Evaluations, Stages
from ocp.problem.shapes import BatchState, Cotangent, StepControl

__all__ = ["FunctionDynamics", "ModuleDynamics", "as_dynamics"]

#: The most numbers in a state, all samples together, for which Jacobians are computed: one backward pass for each
#: number, through all steps at once, instead of one for each step. Tuned on oscillators and on the heat equation.
JACOBIAN_NUMBERS = 16


class FunctionDynamics:
    """A plain function as dynamics, differentiated by autograd.

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

    supports_autograd = True

    def __init__(self, function: Callable[[float, Tensor, Tensor], Tensor], control_size: int):
        check_order("dynamics", function, "t", "x", "u")
        check_order("dynamics", function, "t", "x", "u", "q")
        self.function, self._plain = function, uncompiled(function)
        self.control_size = control_size
        self._mapped = Mapped(function, "dynamics")

    def __call__(self, t: float, x: BatchState, u: StepControl) -> BatchState:
        return call("dynamics", self.function, t=t, x=x, u=u)

    def vjp(self, t: float, x: BatchState, u: StepControl, p: BatchState) -> Cotangent:
        return pullback(partial(self, t), (x, u), p)

    def jvp(self, t: float, x: BatchState, u: StepControl, dx: BatchState, du: StepControl) -> BatchState:
        return jvp(partial(self._plain, t), (x, u), (dx, du))[1]

    def jacobian(self, t: float, x: BatchState, u: StepControl) -> Tensor:
        return jacobian_of(lambda x: self(t, x, u), x)

    def hvp(self, t: float, x: BatchState, u: StepControl, p: BatchState, dx: BatchState, du: StepControl) -> Cotangent:
        return hvp(partial(self._plain, t), (x, u), (dx, du), p)

    def stage_layout(self, x: BatchState, u: StepControl) -> BatchState | None:
        """The state where Jacobians at all steps at once are faster: small states of functions that can be mapped."""
        return x if x.numel() <= JACOBIAN_NUMBERS and self._mapped.agrees_near(x, u) else None

    def supports_points(self, t: Tensor, x: BatchState, u: StepControl) -> bool:
        return self._mapped.agrees_near(x, u) and self._mapped.agrees_at(t, x, u)

    def along(self, t: Tensor, x: Tensor, u: Tensor) -> Tensor:
        return self._mapped.together(t, x, u)

    def over(self, path: Tensor, stages: Stages) -> Evaluations:
        return _Jacobians(self._mapped, path, stages)


class _Jacobians:
    """A function at the stages of consecutive steps, with all Jacobians computed at once."""

    def __init__(self, mapped: Mapped, path: Tensor, stages: Stages):
        self.mapped, self.path, self.stages = mapped, path, stages
        self._u, self._number = path.unbind(0), stages.number

    def value(self, j: int, t: float, x: Tensor) -> Tensor:
        # A copy, since the function may write to it; the transposes need the control as it was.
        return self.stages.value[j].copy_(self.mapped.function(t, x, self._u[j // self._number].clone()))

    def linearize(self) -> None:
        stages, r = self.stages, self._number
        t, x, u = stages.t.flatten(), stages.x.flatten(0, 1), self.path.repeat_interleave(r, dim=0)
        values = stages.values.flatten(0, 1)
        with torch.enable_grad():
            x, u = x.clone().requires_grad_(), u.clone().requires_grad_()
            by_state, self._by_control = jacobians(self.mapped(t, x, u, values).flatten(1), (x, u))
        self._by_state = by_state.mT.unbind(0)
        self._costates = [c.view(-1) for c in stages.value]

    def transpose(self, j: int, p: Tensor, out: Tensor) -> Tensor:
        kappa = self._costates[j]
        kappa.copy_(p.view(-1))
        out.view(-1).addmv_(self._by_state[j], kappa, alpha=self.stages.h)
        return out

    def by_control(self, out: Tensor) -> None:
        kappa = self.stages.values.flatten(2).unsqueeze(2)  # (S, r, 1, n)
        by_stage = kappa @ self._by_control.unflatten(0, (-1, self._number))
        torch.mul(by_stage.sum(1).squeeze(1), self.stages.h, out=out)


class ModuleDynamics:
    """A torch block as dynamics: f(t, x, u) is the block's output on x with its parameters set to u.

    Parameters
    ----------
    module : nn.Module
        Maps (batch, *state) to the same shape; a residual block without its skip connection.
    name : str
        What error messages call it.

    Raises
    ------
    ValueError
        If it has no parameters that are not frozen: they are the control.

    Examples
    --------
    >>> ModuleDynamics(nn.Sequential(nn.Linear(4, 4), nn.Tanh())).control_size
    20
    """

    def __init__(self, module: nn.Module, name: str = "dynamics"):
        self.flat, plain = FlatModule(module, name=name), uncompiled(module)
        self._plain = self.flat if plain is module else FlatModule(plain, name=name)
        if not self.flat.size:
            raise ValueError(
                f"{name}: expected one with parameters that require gradients, the control, got {type(module).__name__}"
            )
        self.control_size = self.flat.size

    def __call__(self, t: float, x: BatchState, u: StepControl) -> BatchState:
        return self.flat(u, x)

    def vjp(self, t: float, x: BatchState, u: StepControl, p: BatchState) -> Cotangent:
        pu, px = pullback(self.flat, (u, x), p)
        return px, pu

    def jvp(self, t: float, x: BatchState, u: StepControl, dx: BatchState, du: StepControl) -> BatchState:
        return jvp(self._plain, (u, x), (du, dx))[1]

    def jacobian(self, t: float, x: BatchState, u: StepControl) -> Tensor:
        return jacobian_of(lambda x: self(t, x, u), x)

    def hvp(self, t: float, x: BatchState, u: StepControl, p: BatchState, dx: BatchState, du: StepControl) -> Cotangent:
        hu, hx = hvp(self._plain, (u, x), (du, dx), p)
        return hx, hu

    @property
    def supports_autograd(self) -> bool:
        """Whether one tape may span several steps: not if the block also runs while its derivative is taken."""
        return self.flat.runs_again is False

    def check(self, t: float, x: BatchState, u: StepControl) -> None:
        self.flat.check(u, x)

    def bind(self, path: Tensor) -> tuple[list[Tensor], list[Callable[[float, Tensor, Tensor], Tensor]]]:
        """As for any `Bindable`; there is one leaf of shape (S, *shape) for each parameter of the block."""
        leaves = [part.detach().requires_grad_() for part in self.flat.parts(path)]
        steps = zip(*(leaf.unbind(0) for leaf in leaves), strict=True)
        return leaves, [partial(self._bound, parts) for parts in steps]

    def _bound(self, parts: tuple[Tensor, ...], t: float, x: BatchState, u: StepControl) -> Tensor:
        return self.flat.call(parts, x)

    def to_module(self, u: StepControl) -> nn.Module:
        """The block with the parameters u."""
        return self.flat.with_parameters(u)


def as_dynamics(dynamics: Any, control_size: int | None) -> Dynamics:
    """Dynamics from a function, a module, or `Dynamics`.

    Raises
    ------
    TypeError, ValueError
        If it is something else, or a function without ``control_size``, or ``control_size`` is wrong.
    """
    if isinstance(dynamics, nn.Module):
        dynamics = ModuleDynamics(dynamics)
    if isinstance(dynamics, Dynamics):
        if control_size not in (None, dynamics.control_size):
            raise ValueError(f"control_size: expected {dynamics.control_size}, as in the dynamics, got {control_size}")
        return dynamics
    lacks = [name for name in ("control_size", "__call__", "vjp", "jvp") if name not in dir(dynamics)]
    if not callable(dynamics) or "vjp" not in lacks:
        raise TypeError(
            "dynamics: expected a function f(t, x, u), an nn.Module, or Dynamics with control_size, __call__(t, x, u), "
            f"vjp and jvp, got {type(dynamics).__name__} without {', '.join(lacks)}"
        )
    if not isinstance(control_size, int) or control_size < 0:
        raise ValueError(
            f"control_size: expected the length of u (an integer >= 0) for a plain function, got {control_size!r}"
        )
    return FunctionDynamics(dynamics, control_size)
