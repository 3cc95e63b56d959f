"""An ``nn.Module`` as a function of a vector that holds its parameters."""

from __future__ import annotations

import threading
from collections.abc import Iterable, Sequence
from functools import cached_property
from typing import Any

import torch
from torch import Tensor, nn

from ocp.problem.boundary import check_module, copied
from ocp.problem.functions import pullback
from ocp.problem.rehearsal import rehearse

__all__ = ["FlatModule"]


class FlatModule:
    """A module as a function of a vector q with its parameters, in the order of ``named_parameters``.

    Frozen parameters (``requires_grad=False``) are not part of the vector, and keep their values. Copies run, one for
    each thread: the module itself is not changed, and changing it later, as by ``train()``, has no effect.

    Parameters
    ----------
    module : nn.Module
        Must be a function of its input and its parameters: no dropout or batch statistics in training mode.
    offset : int
        Index in q of the first parameter; entries before and after those of the module have no effect.
    name : str
        What error messages call it.

    Raises
    ------
    TypeError, ValueError
        From `check_module`; also if the module cannot be copied.

    Examples
    --------
    >>> flat = FlatModule(nn.Linear(3, 2))
    >>> flat.size, flat(torch.zeros(flat.size), torch.ones(5, 3)).shape
    (8, torch.Size([5, 2]))
    """

    def __init__(self, module: nn.Module, offset: int = 0, name: str = "module"):
        check_module(name, module)
        self.module, self.offset, self.name = copied(name, module), offset, name
        #: Whether it also runs while its derivative is taken; None before `check`.
        self.runs_again: bool | None = None
        self._threads = threading.local()
        self._shapes = {name: p.shape for name, p in module.named_parameters() if p.requires_grad}
        self._sizes = [shape.numel() for shape in self._shapes.values()]
        self.size = sum(self._sizes)

    def __getstate__(self) -> dict[str, Any]:
        return {**vars(self), "_threads": None}

    def __setstate__(self, state: dict[str, Any]) -> None:
        vars(self).update(state, _threads=threading.local())

    def _running(self) -> _Running:
        """The copy of this thread."""
        try:
            running: _Running = self._threads.running
        except AttributeError:
            module = copied(self.name, self.module)
            running = self._threads.running = _Running(module, self._trained(module))
        return running

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
        return nn.functional.linear(x, *parts) if self._is_linear else self.call(parts, x)

    def pullback(self, q: Tensor, x: Tensor, cotangent: Tensor) -> tuple[Tensor, Tensor]:
        """Derivative by q and by the input of one evaluation, transposed and applied to ``cotangent``.

        That of a plain ``nn.Linear`` is written by hand: compared with a few time steps, a tape is expensive.
        """
        if self._is_linear:
            return self.by_parameters(q, x, cotangent), cotangent @ self.parts(q)[0]
        return pullback(self, (q, x), cotangent)

    def by_parameters(self, q: Tensor, x: Tensor, cotangent: Tensor) -> Tensor:
        """The first part of `pullback` alone; the input may be integers."""
        if not self._is_linear:
            return pullback(lambda q: self(q, x), (q,), cotangent)[0]
        rows, derivative = cotangent.reshape(-1, cotangent.shape[-1]), torch.zeros_like(q)
        weight, *bias = self.parts(derivative)
        torch.mm(rows.T, x.reshape(-1, x.shape[-1]), out=weight)
        if bias:
            torch.sum(rows, 0, out=bias[0])
        return derivative

    @cached_property
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

        They stay in place until the next call, so that the module may run again while its derivative is taken.
        """
        running = self._running()
        running.put(parts)
        output: Tensor = running.module(x)
        return output

    def put(self, parts: Sequence[Tensor]) -> None:
        """Put other tensors in the place of the parameters."""
        self._running().put(parts)

    def buffers(self) -> Iterable[tuple[str, Tensor]]:
        """The buffers of the copy that runs."""
        return self._running().module.named_buffers()

    def check(self, q: Tensor, x: Tensor) -> None:
        """Run the module a few times, once for all, and raise ValueError if it is not a function: see `rehearse`."""
        if self.runs_again is None:
            self.runs_again = rehearse(self, q, x)

    def with_parameters(self, q: Tensor) -> nn.Module:
        """A copy of the module that owns the parameters in q, and the frozen ones."""
        module = copied(self.name, self.module)
        for parameter, part in zip(self._trained(module), self.parts(q.detach()), strict=True):
            parameter.data = part.clone()
        return module


class _Running:
    """A module whose parameters are replaced each time it runs."""

    def __init__(self, module: nn.Module, trained: Sequence[nn.Parameter]):
        self.module = module
        # The places of each parameter, looked up once: several if it is shared.
        self._places: list[list[tuple[dict[str, Any], str]]] = [
            [(part._parameters, name) for part in module.modules() for name, q in part._parameters.items() if q is p]
            for p in trained
        ]
        self._recurrent: list[Any] = [part for part in module.modules() if isinstance(part, nn.RNNBase)]

    def put(self, parts: Sequence[Tensor]) -> None:
        for places, part in zip(self._places, parts, strict=True):
            for parameters, name in places:
                parameters[name] = part
        for rnn in self._recurrent:  # these keep a list of their parameters
            rnn._flat_weights = [rnn._parameters[name] for name in rnn._flat_weights_names]
