"""Functions of points, differentiated at many points at once: Jacobians, and Hessians of weighted sums of outputs."""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor

from ocp.problem.boundary import call
from ocp.problem.functions import Mapped

__all__ = ["Recorded", "Rows", "differentiate", "parts", "pointwise"]

#: A function of times, shape (R,), and of x and v, shapes (R, n) and (R, m), that returns shape (R, outputs).
RowFunction = Callable[[Tensor, Tensor, Tensor], Tensor]

#: The most rows on one tape times the derivatives of each. More do not fit the cache of a core: tuned on the pole on a
#: cart.
TAPE_ROWS = 2**15


class Rows:
    """A function that treats R rows (t, x, v) alike, with its derivatives by z = (x, v) at all of them.

    One evaluation serves Jacobians and Hessians. Derivatives are arrays with the rows as their last dimension, so that
    products of small matrices are a few operations on long vectors.

    Parameters
    ----------
    function : callable
        Of times, shape (R,), and of x and v, shapes (R, n) and (R, m), in torch operations; it returns shape
        (R, outputs).
    outputs : int

    Examples
    --------
    >>> rows = Rows(lambda t, x, v: (x**3 + v**3).sum(1, keepdim=True), outputs=1)
    >>> one = torch.ones(1, 1)
    >>> recorded = rows.record(torch.zeros(1), one, 2 * one)
    >>> recorded.jacobian()[..., 0], recorded.hessian(one)[..., 0]
    (tensor([[ 3., 12.]]), tensor([[ 6.,  0.],
            [ 0., 12.]]))
    """

    def __init__(self, function: RowFunction, outputs: int):
        self.function, self.outputs = function, outputs
        self._batched, self._units = True, torch.empty(0)

    @torch.no_grad()
    def values(self, t: Tensor, x: Tensor, v: Tensor) -> Tensor:
        """The outputs, shape (R, outputs)."""
        return self.function(t, x, v)

    def record(self, t: Tensor, x: Tensor, v: Tensor) -> Recorded:
        """The tape of one evaluation."""
        return Recorded(self, t, x, v)

    def pull(self, y: Tensor, z: Tensor) -> Tensor | None:
        """The derivatives by z of the sum of each row of y; None if there is no dependence."""
        if self._units.shape != (len(y), *y.shape):  # the first unit vectors, for all rows at once
            self._units = torch.eye(len(y)).to(y).unsqueeze(2).expand(-1, *y.shape).contiguous()
        if self._batched:
            try:
                (found,) = torch.autograd.grad(
                    y, z, self._units, retain_graph=True, allow_unused=True, is_grads_batched=True
                )
                return found
            except (NotImplementedError, RuntimeError):  # an operation whose derivative vmap cannot map
                self._batched = False
        each = [torch.autograd.grad(y, z, c, retain_graph=True, allow_unused=True)[0] for c in self._units.unbind(0)]
        return None if each[0] is None else torch.stack(each)


class Recorded:
    """The tape of `Rows` at R rows."""

    def __init__(self, rows: Rows, t: Tensor, x: Tensor, v: Tensor):
        self._owner, n = rows, x.shape[1]
        with torch.enable_grad():
            self._z = torch.cat((x.mT, v.mT)).requires_grad_()  # each input contiguous
            self._y = rows.function(t, self._z[:n].mT, self._z[n:].mT)

    @property
    def values(self) -> Tensor:
        """The outputs, shape (R, outputs)."""
        return self._y.detach()

    @torch.enable_grad()
    def jacobian(self) -> Tensor:
        """Shape (outputs, n + m, R)."""
        return self._pull(self._y.mT, self._y.shape[1])

    def hessian(self, weights: Tensor) -> Tensor:
        """Of the sum of the outputs with weights of shape (R, outputs): shape (n + m, n + m, R)."""
        return self._pull(self._slope(weights), len(self._z))

    def gradient_and_hessian(self) -> tuple[Tensor, Tensor]:
        """Of the only output: shapes (1, n + m, R) and (n + m, n + m, R)."""
        slope = self._slope(torch.ones_like(self._y))
        gradient = torch.zeros_like(self._z) if slope is None else slope
        return gradient.detach().unsqueeze(0), self._pull(slope, len(self._z))

    def _slope(self, weights: Tensor) -> Tensor | None:
        """The gradient of the weighted sum of the outputs, with its tape."""
        if not self._y.requires_grad:
            return None
        return torch.autograd.grad(self._y, self._z, weights, create_graph=True, allow_unused=True)[0]

    def _pull(self, y: Tensor | None, entries: int) -> Tensor:
        """The derivatives of each of the entries of y, shape (entries, R)."""
        derivative = None
        if y is not None and y.requires_grad:
            with torch.enable_grad():
                derivative = self._owner.pull(y, self._z)
        return self._z.new_zeros(entries, *self._z.shape) if derivative is None else derivative


def differentiate(rows: Rows, t: Tensor, x: Tensor, v: Tensor, weights: Tensor) -> tuple[Tensor, Tensor]:
    """Jacobians and Hessians of weighted sums of outputs, on tapes of limited size."""
    found = []
    for k in parts(len(x), max(x.shape[1] + v.shape[1], rows.outputs)):
        recorded = rows.record(t[k], x[k], v[k])
        if rows.outputs == 1:
            J, H = recorded.gradient_and_hessian()
            found.append((J, H * weights[k, 0]))
        else:
            found.append((recorded.jacobian(), recorded.hessian(weights[k])))
    return found[0] if len(found) == 1 else (torch.cat([J for J, _ in found], 2), torch.cat([H for _, H in found], 2))


def parts(rows: int, derivatives: int) -> list[slice]:
    """Which of the rows to take on one tape, for a number of derivatives of each row."""
    size = max(1, TAPE_ROWS // derivatives)
    return [slice(k, min(k + size, rows)) for k in range(0, rows, size)]


def pointwise(
    function: Callable[[float, Tensor, Tensor], Tensor], x: Tensor, v: Tensor, name: str = "function"
) -> RowFunction:
    """A function of one point (t, x, v) as a function of many.

    It is mapped by `Mapped`, which takes the points one by one where torch cannot map it, as is tried near x and v.
    """
    mapped = Mapped(function, name)
    mapped.agrees_near(x, v)

    def rows(t: Tensor, x: Tensor, v: Tensor) -> Tensor:
        if len(t) == 1:  # as at the end: a call of the function costs less than one of vmap
            return call(name, function, t=float(t), x=x[0], u=v[0]).unsqueeze(0)
        return mapped(t, x, v)

    return rows
