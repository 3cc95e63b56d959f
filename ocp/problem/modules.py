"""An ``nn.Module`` as a function of a vector that holds its parameters."""

from __future__ import annotations

import copy
from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor, nn

from ocp.problem.boundary import check_module
from ocp.problem.functions import pullback

__all__ = ["FlatModule"]


class FlatModule:
    """A module as a function of a vector q with its parameters, in the order of ``named_parameters``.

    Frozen parameters (``requires_grad=False``) are not part of the vector, and keep their values.

    Parameters
    ----------
    module : nn.Module
        Must be deterministic: no dropout or batch statistics in training mode.
    offset : int
        Index in q of the first parameter; entries before and after those of the module have no effect.

    Raises
    ------
    TypeError, ValueError
        From `check_module`.

    Examples
    --------
    >>> flat = FlatModule(nn.Linear(3, 2))
    >>> flat.size, flat(torch.zeros(flat.size), torch.ones(5, 3)).shape
    (8, torch.Size([5, 2]))
    """

    def __init__(self, module: nn.Module, offset: int = 0):
        check_module(module)
        self.module, self.offset = module, offset
        self._shapes = {name: p.shape for name, p in module.named_parameters() if p.requires_grad}
        self._sizes = [shape.numel() for shape in self._shapes.values()]
        self.size = sum(self._sizes)
        # The places of each parameter: several if it is shared.
        self._places = [
            [(part._parameters, name) for part in module.modules() for name, q in part._parameters.items() if q is p]
            for p in self._trained(module)
        ]

    def _trained(self, module: nn.Module) -> list[nn.Parameter]:
        """The parameters that are not frozen, of the module or of a copy."""
        return [p for name, p in module.named_parameters() if name in self._shapes]

    def start(self) -> Tensor:
        """The module's own parameters as a vector, shape (size,)."""
        parts = [p.detach().reshape(-1) for p in self._trained(self.module)]
        return torch.cat(parts) if parts else torch.zeros(0)

    def __call__(self, q: Tensor, x: Tensor) -> Tensor:
        """The module's output on ``x`` with the parameters in q."""
        parts = self.parts(q)
        return nn.functional.linear(x, *parts) if self._is_linear() else self.call(parts, x)

    def pullback(self, q: Tensor, x: Tensor, cotangent: Tensor) -> tuple[Tensor, Tensor]:
        """Derivative by q and by the input of one evaluation, transposed and applied to ``cotangent``.

        That of a plain ``nn.Linear`` is written by hand: compared with a few time steps, a tape is expensive.
        """
        if self._is_linear():
            return self.by_parameters(q, x, cotangent), cotangent @ self.parts(q)[0]
        return pullback(self, (q, x), cotangent)

    def by_parameters(self, q: Tensor, x: Tensor, cotangent: Tensor) -> Tensor:
        """The first part of `pullback` alone; the input may be integers."""
        if not self._is_linear():
            return pullback(lambda q: self(q, x), (q,), cotangent)[0]
        rows, derivative = cotangent.reshape(-1, cotangent.shape[-1]), torch.zeros_like(q)
        weight, *bias = self.parts(derivative)
        torch.mm(rows.T, x.reshape(-1, x.shape[-1]), out=weight)
        if bias:
            torch.sum(rows, 0, out=bias[0])
        return derivative

    def _is_linear(self) -> bool:
        """Whether the module is x W^T + b and nothing else."""
        m, hooks = self.module, ("_forward_hooks", "_forward_pre_hooks", "_backward_hooks", "_backward_pre_hooks")
        if type(m) is not nn.Linear or "forward" in vars(m) or any(getattr(m, name) for name in hooks):
            return False
        return list(self._shapes) == [name for name, p in m._parameters.items() if p is not None]

    def parts(self, q: Tensor) -> list[Tensor]:
        """Views on the parameters in vectors of shape (..., s): one of shape (..., *shape) for each parameter."""
        sizes = [self.offset, *self._sizes, q.shape[-1] - self.offset - self.size]
        parts = q.split_with_sizes(sizes, dim=-1)[1:-1]
        return [part.view(*q.shape[:-1], *shape) for part, shape in zip(parts, self._shapes.values(), strict=True)]

    def call(self, parts: Sequence[Tensor], x: Tensor) -> Tensor:
        """The module's output on ``x`` with the given tensors as parameters.

        What ``torch.func.functional_call`` does, with the places looked up once: it costs as much as a small layer.
        """
        own = [places[0][0][places[0][1]] for places in self._places]
        try:
            self._put(parts)
            output: Tensor = self.module(x)
        finally:
            self._put(own)
        return output

    def _put(self, parts: Sequence[Any]) -> None:
        for places, part in zip(self._places, parts, strict=True):
            for parameters, name in places:
                parameters[name] = part

    def with_parameters(self, q: Tensor) -> nn.Module:
        """A copy of the module that owns the parameters in q, and the frozen ones."""
        module = copy.deepcopy(self.module)
        for parameter, part in zip(self._trained(module), self.parts(q.detach()), strict=True):
            parameter.data = part.clone()
        return module
