"""Residual layers at the stages of many steps; they keep the values of f and write to the sweep's storage."""

from __future__ import annotations

from functools import cached_property
from typing import TYPE_CHECKING

import torch
from torch import Tensor

from ocp.problem.protocols import Stages

if TYPE_CHECKING:
    from ocp.problem.layers import Convolution, Dense

__all__ = ["ConvolutionEvaluations", "DenseEvaluations"]

# The overload by name: looking it up costs more than the operation on a small state.
_convolution_backward = torch.ops.aten.convolution_backward.default

#: Weight gradients with at least this many entries are computed step by step, each written to its place; smaller ones
#: for many steps at once. Tuned on one core: a product with fewer entries costs less than the call.
SEPARATE_ENTRIES = 64 * 64


class DenseEvaluations:
    """Dense layers of consecutive steps. After the costate has passed, the cotangents are those of A x + b."""

    def __init__(self, layer: Dense, path: Tensor, stages: Stages):
        n = layer.width
        self.layer, self.stages, self._number, self._h = layer, stages, stages.number, stages.h
        self._apply, self._slope, self._value = layer.activation.apply, layer.activation.transpose, stages.value
        A = layer.weight(path[:, : n * n].unflatten(1, (n, n)))
        self.A, self.b = A, path[:, n * n :]

    @cached_property
    def _operands(self) -> list[tuple[Tensor, Tensor]]:
        """b and the transposed A of each step."""
        return list(zip(self.b.unbind(0), self.A.mT.unbind(0), strict=True))

    @cached_property
    def _matrices(self) -> tuple[Tensor, ...]:
        return self.A.unbind(0)

    def value(self, j: int, t: float, x: Tensor) -> Tensor:
        (b, At), out = self._operands[j // self._number], self._value[j]
        self._apply(torch.addmm(b, x, At, out=out), out=out)
        return out

    def linearize(self) -> None:
        """Nothing to do: the slopes follow from the values."""

    def transpose(self, j: int, p: Tensor, out: Tensor) -> Tensor:
        z = self._value[j]
        self._slope(p, z, z)
        return out.addmm_(z, self._matrices[j // self._number], alpha=self._h)

    def by_control(self, out: Tensor) -> None:
        n, weight, alpha = self.layer.width, self.layer.weight, self._h
        z, x = self.stages.values.flatten(1, 2), self.stages.x.flatten(1, 2)
        by_matrix = out[:, : n * n].unflatten(1, (n, n))
        if n * n < SEPARATE_ENTRIES:
            torch.mul(weight.transpose(torch.bmm(z.mT, x)), alpha, out=by_matrix)
        else:
            for dA, zk, xk in zip(by_matrix.unbind(0), z.unbind(0), x.unbind(0), strict=True):
                dK = weight.transpose(dA.addmm_(zk.t(), xk, beta=0, alpha=alpha))
                if dK is not dA:
                    dA.copy_(dK)
        torch.sum(z, dim=1, out=out[:, n * n :]).mul_(alpha)


class ConvolutionEvaluations:
    """Convolutions of consecutive steps. After the costate has passed, the cotangents are those of K * x + b."""

    def __init__(self, layer: Convolution, path: Tensor, stages: Stages):
        c, k = layer.channels, layer.kernel_size
        self.layer, self.stages, self._number = layer, stages, stages.number
        self._K, self._b = path[:, :-c].unflatten(1, (c, c, k, k)), path[:, -c:]

    @cached_property
    def _operands(self) -> list[tuple[Tensor, Tensor]]:
        """Kernel and bias of each step."""
        return list(zip(self._K.unbind(0), self._b.unbind(0), strict=True))

    def value(self, j: int, t: float, x: Tensor) -> Tensor:
        (K, b), out = self._operands[j // self._number], self.stages.value[j]
        self.layer.activation.apply(torch.conv2d(x, K, b, padding=self.layer._padding), out=out)
        return out

    def linearize(self) -> None:
        """The transpose of a convolution is one with the mirrored kernel, faster than torch's own."""
        self._mirrored = self._K.transpose(1, 2).flip(3, 4).unbind(0)

    def transpose(self, j: int, p: Tensor, out: Tensor) -> Tensor:
        z = self.stages.value[j]
        self.layer.activation.transpose(p, z, z)
        by_state = torch.conv2d(z, self._mirrored[j // self._number], padding=self.layer._padding)
        return out.add_(by_state, alpha=self.stages.h)

    def by_control(self, out: Tensor) -> None:
        c, padding, alpha = self.layer.channels, [self.layer._padding] * 2, self.stages.h
        z, x = self.stages.values.flatten(1, 2), self.stages.x.flatten(1, 2)
        for zk, xk, K, pK in zip(z.unbind(0), x.unbind(0), self._K.unbind(0), out[:, :-c].unbind(0), strict=True):
            # Only by the kernel: asking torch for several derivatives in one call takes longer.
            by_kernel = _convolution_backward(
                zk, xk, K, None, [1, 1], padding, [1, 1], False, [0, 0], 1, [False, True, False]
            )[1]
            torch.mul(by_kernel.flatten(), alpha, out=pK)
        torch.mul(z.sum(1).sum((2, 3)), alpha, out=out[:, -c:])
