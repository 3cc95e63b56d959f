"""Functions of rows, differentiated at many rows at once: Jacobians, and Hessians of weighted sums of the outputs."""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor

from ocp.problem.functions import Mapped

__all__ = ["Recorded", "Rows", "pointwise"]

#: A function of times, shape (R,), and rows, shape (R, inputs), that returns shape (R, outputs).
RowFunction = Callable[[Tensor, Tensor], Tensor]


class Rows:
    """A function that treats R rows alike, with its derivatives at all of them.

    One evaluation serves Jacobians and Hessians. Derivatives are arrays with the rows as their last dimension, so that
    products of small matrices are a few operations on long vectors.

    Parameters
    ----------
    function : callable
        Of times, shape (R,), and rows, shape (R, inputs), in torch operations; it returns shape (R, outputs).
    outputs : int

    Examples
    --------
    >>> rows = Rows(lambda t, z: z.pow(3).sum(1, keepdim=True), outputs=1)
    >>> recorded = rows.record(torch.zeros(1), torch.tensor([[1.0, 2.0]]))
    >>> recorded.jacobian()[..., 0], recorded.hessian(torch.ones(1, 1))[..., 0]
    (tensor([[ 3., 12.]]), tensor([[ 6.,  0.],
            [ 0., 12.]]))
    """

    def __init__(self, function: RowFunction, outputs: int):
        self.function, self.outputs = function, outputs
        self._batched = True

    @torch.no_grad()
    def values(self, t: Tensor, z: Tensor) -> Tensor:
        """The outputs, shape (R, outputs)."""
        return self.function(t, z)

    def record(self, t: Tensor, z: Tensor) -> Recorded:
        """The tape of one evaluation."""
        return Recorded(self, t, z)

    def pull(self, y: Tensor, z: Tensor, cotangents: Tensor) -> Tensor | None:
        """Transposed derivatives of y by z, one for each cotangent; None if there is no dependence."""
        if self._batched:
            try:
                (found,) = torch.autograd.grad(
                    y, z, cotangents, retain_graph=True, allow_unused=True, is_grads_batched=True
                )
                return found
            except (NotImplementedError, RuntimeError):  # an operation whose derivative vmap cannot map
                self._batched = False
        each = [torch.autograd.grad(y, z, c, retain_graph=True, allow_unused=True)[0] for c in cotangents.unbind(0)]
        return None if each[0] is None else torch.stack(each)


class Recorded:
    """The tape of `Rows` at R rows."""

    def __init__(self, rows: Rows, t: Tensor, z: Tensor):
        self._owner = rows
        with torch.enable_grad():
            self._z = z.detach().mT.contiguous().requires_grad_()  # each input contiguous
            self._y = rows.function(t, self._z.mT)

    @property
    def values(self) -> Tensor:
        """The outputs, shape (R, outputs)."""
        return self._y.detach()

    def jacobian(self) -> Tensor:
        """Shape (outputs, inputs, R)."""
        return self._pull(self._y.mT if self._y.requires_grad else None, self._y.shape[1])

    def hessian(self, weights: Tensor) -> Tensor:
        """Of the sum of the outputs with weights of shape (R, outputs): shape (inputs, inputs, R)."""
        slope = None
        if self._y.requires_grad:
            (slope,) = torch.autograd.grad(self._y, self._z, weights, create_graph=True, allow_unused=True)
        return self._pull(slope, len(self._z))

    def _pull(self, y: Tensor | None, entries: int) -> Tensor:
        """The derivatives of each of the entries of y, shape (entries, R)."""
        derivative = None
        if y is not None and y.requires_grad:
            with torch.enable_grad():
                units = torch.eye(entries).to(y).unsqueeze(2).expand(entries, *y.shape).contiguous()
                derivative = self._owner.pull(y, self._z, units)
        if derivative is None:
            return self._z.new_zeros(entries, *self._z.shape)
        return derivative


def pointwise(
    function: Callable[[float, Tensor, Tensor], Tensor], states: int, example: Tensor, name: str = "function"
) -> RowFunction:
    """A function of one point (t, x, v) as a function of many rows z = (x, v), where x has ``states`` numbers.

    It is mapped by `Mapped`, which takes the points one by one where torch cannot map it; ``example`` is a row near
    which that is tried.
    """
    mapped = Mapped(function, name)
    mapped.agrees_near(example[:states], example[states:])
    return lambda t, z: mapped(t, z[:, :states], z[:, states:])
