"""Residual layers as dynamics, with hand-written derivatives.

A residual network x_{k+1} = x_k + h f(x_k, u_k) is explicit Euler for x' = f(x, u); the weights of layer k are u_k.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field
from functools import partial
from math import sqrt
from typing import Any, Protocol

import torch
from torch import Tensor, nn
from torch.nn.grad import conv2d_input, conv2d_weight

from ocp.problem.layer_evaluations import ConvolutionEvaluations, DenseEvaluations
from ocp.problem.protocols import Evaluations, Stages
from ocp.problem.shapes import BatchState, Cotangent, StepControl

__all__ = ["RELU", "SMOOTH_RELU", "TANH", "Activation", "Antisymmetric", "Convolution", "Dense", "Free", "WeightMap"]


@dataclass(frozen=True)
class Activation:
    """A scalar function applied entry by entry, whose derivatives follow from its value.

    Parameters
    ----------
    function : callable
        z -> a = sigma(z).
    slope, curvature : callable
        a -> sigma'(z) and a -> sigma''(z), in terms of the value a, so that only a has to be kept; where the slope
        jumps, those of either side.
    module : callable
        Makes the same function as an ``nn.Module``.
    apply : callable, optional
        ``apply(z, out=out)`` writes sigma(z) to ``out``, which may be z itself.
    transpose : callable, optional
        ``transpose(p, a, out)`` writes sigma'(z) p to ``out``, which may be a itself.
    """

    function: Callable[[Tensor], Tensor]
    slope: Callable[[Tensor], Tensor]
    curvature: Callable[[Tensor], Tensor]
    module: Callable[[], nn.Module]
    apply: Callable[..., Any] = field(default=None, compare=False)  # type: ignore[assignment]
    transpose: Callable[[Tensor, Tensor, Tensor], Any] = field(default=None, compare=False)  # type: ignore[assignment]

    def __post_init__(self) -> None:
        if self.apply is None:
            object.__setattr__(self, "apply", partial(_apply, self.function))
        if self.transpose is None:
            object.__setattr__(self, "transpose", partial(_transpose, self.slope))


def _apply(function: Callable[[Tensor], Tensor], z: Tensor, out: Tensor) -> Tensor:
    return out.copy_(function(z))


def _transpose(slope: Callable[[Tensor], Tensor], p: Tensor, a: Tensor, out: Tensor) -> Tensor:
    return torch.mul(slope(a), p, out=out)


_DELTA = 0.1
# The overloads by name: looking them up costs more than the operation on a small state.
_tanh_backward = torch.ops.aten.tanh_backward.grad_input
_threshold_backward = torch.ops.aten.threshold_backward.grad_input


def _smooth_relu(z: Tensor) -> Tensor:
    return torch.where(z.abs() < _DELTA, (z + _DELTA).square() / (4 * _DELTA), z.clamp_min(0.0))


class _SmoothReLU(nn.Module):
    def forward(self, z: Tensor) -> Tensor:
        return _smooth_relu(z)


def _smooth_relu_slope(a: Tensor) -> Tensor:
    return (a / _DELTA).sqrt().clamp_max(1.0)


def _smooth_relu_curvature(a: Tensor) -> Tensor:
    return ((a > 0) & (a < _DELTA)).to(a.dtype) / (2 * _DELTA)


def _tanh_slope(a: Tensor) -> Tensor:
    return 1 - a * a


def _tanh_curvature(a: Tensor) -> Tensor:
    return 2 * a * (a * a - 1)


def _tanh_transpose(p: Tensor, a: Tensor, out: Tensor) -> None:
    _tanh_backward(p, a, grad_input=out)


def _relu_transpose(p: Tensor, a: Tensor, out: Tensor) -> None:
    _threshold_backward(p, a, 0, grad_input=out)


# Made of named functions, so that a problem can be pickled and sent to another process.
TANH = Activation(torch.tanh, _tanh_slope, _tanh_curvature, nn.Tanh, torch.tanh, _tanh_transpose)
RELU = Activation(torch.relu, torch.sign, torch.zeros_like, nn.ReLU, partial(torch.clamp_min, min=0), _relu_transpose)
#: ReLU with a parabola on [-0.1, 0.1] that joins its two branches with a continuous slope: Guenther, Ruthotto,
#: Schroder, Cyr & Gauger (2020), "Layer-parallel training of deep residual neural networks".
SMOOTH_RELU = Activation(_smooth_relu, _smooth_relu_slope, _smooth_relu_curvature, _SmoothReLU)


class WeightMap(Protocol):
    """An affine map from square matrices K to square weight matrices."""

    def __call__(self, K: Tensor) -> Tensor: ...

    def linear(self, K: Tensor) -> Tensor:
        """The linear part."""

    def transpose(self, K: Tensor) -> Tensor:
        """The transpose of the linear part."""


@dataclass(frozen=True)
class Free:
    """The weight matrix is K itself."""

    def __call__(self, K: Tensor) -> Tensor:
        return K

    linear = transpose = __call__


@dataclass(frozen=True)
class Antisymmetric:
    """The weight matrix (K - K^T - gamma I) / 2, whose eigenvalues have the real part -gamma / 2.

    The states then neither explode nor vanish: Haber & Ruthotto (2017), "Stable architectures for deep neural
    networks", section 4.
    """

    gamma: float = 0.0

    def __call__(self, K: Tensor) -> Tensor:
        A = self.linear(K)
        A.diagonal(dim1=-2, dim2=-1).sub_(0.5 * self.gamma)
        return A

    def linear(self, K: Tensor) -> Tensor:
        return (K - K.mT).mul_(0.5)

    transpose = linear


#: The size of a processor's longest vector registers.
VECTOR_BYTES = 64


@dataclass(frozen=True)
class Dense:
    """Dense residual layer f(x, u) = sigma(A(K) x + b) with u = (K, b).

    Parameters
    ----------
    width : int
        n; the state has the shape (batch, n) and the control the length n^2 + n.
    activation : Activation
        `TANH`, `RELU`, `SMOOTH_RELU`, or your own.
    weight : WeightMap
        `Free` or `Antisymmetric`.

    Examples
    --------
    >>> layer = Dense(3, activation=RELU)
    >>> layer.control_size
    12
    """

    width: int
    activation: Activation = TANH
    weight: WeightMap = Free()

    @property
    def control_size(self) -> int:
        return self.width * (self.width + 1)

    def _split(self, u: StepControl) -> tuple[Tensor, Tensor]:
        n = self.width
        return u[: n * n].view(n, n), u[n * n :]

    def __call__(self, t: float, x: BatchState, u: StepControl) -> Tensor:
        K, b = self._split(u)
        return self.activation.function(torch.addmm(b, x, self.weight(K).t()))

    def vjp(self, t: float, x: BatchState, u: StepControl, p: BatchState) -> Cotangent:
        K, b = self._split(u)
        A = self.weight(K)
        z = self.activation.slope(self.activation.function(torch.addmm(b, x, A.t()))).mul_(p)
        return z @ A, torch.cat((self.weight.transpose(z.t() @ x).reshape(-1), z.sum(0)))

    def jvp(self, t: float, x: BatchState, u: StepControl, dx: BatchState, du: StepControl) -> BatchState:
        (K, b), (dK, db) = self._split(u), self._split(du)
        A = self.weight(K)
        slope = self.activation.slope(self.activation.function(torch.addmm(b, x, A.t())))
        return slope * (dx @ A.t() + x @ self.weight.linear(dK).t() + db)

    def jacobian(self, t: float, x: BatchState, u: StepControl) -> Tensor:
        K, b = self._split(u)
        A = self.weight(K)
        return self.activation.slope(self.activation.function(torch.addmm(b, x, A.t()))).unsqueeze(2) * A

    def hvp(self, t: float, x: BatchState, u: StepControl, p: BatchState, dx: BatchState, du: StepControl) -> Cotangent:
        (K, b), (dK, db) = self._split(u), self._split(du)
        A, dA = self.weight(K), self.weight.linear(dK)
        a = self.activation.function(torch.addmm(b, x, A.t()))
        z = self.activation.slope(a) * p  # as in vjp, and its tangent
        dz = self.activation.curvature(a) * (dx @ A.t() + x @ dA.t() + db) * p
        hK = self.weight.transpose(dz.t() @ x + z.t() @ dx)
        return dz @ A + z @ dA, torch.cat((hK.reshape(-1), dz.sum(0)))

    def over(self, path: Tensor, stages: Stages) -> Evaluations:
        return DenseEvaluations(self, path, stages)

    def stage_layout(self, x: BatchState, u: StepControl) -> BatchState:
        """The state in the memory layout with the fastest steps: with samples as the last dimension if rows are short.

        A product of matrices whose rows do not fill the vector registers of a processor takes up to five times as long.
        """
        filled = self.width * x.element_size() % VECTOR_BYTES == 0
        return x if filled or x.device.type != "cpu" else x.mT.contiguous().mT

    def initial(self, generator: torch.Generator, **like: Any) -> Tensor:
        """Random weights for one layer: K normal with variance 1/n, b = 0."""
        K = torch.randn(self.width, self.width, generator=generator, **like) / sqrt(self.width)
        return torch.cat((K.reshape(-1), torch.zeros(self.width, **like)))

    def to_module(self, u: StepControl) -> nn.Module:
        """The same function as ``nn.Linear`` and an activation."""
        K, b = self._split(u)
        linear = nn.Linear(self.width, self.width, device=u.device, dtype=u.dtype)
        linear.load_state_dict({"weight": self.weight(K), "bias": b})
        return nn.Sequential(linear, self.activation.module())


@dataclass(frozen=True)
class Convolution:
    """Convolutional residual layer f(x, u) = sigma(K * x + b) with zero padding and u = (K, b).

    Parameters
    ----------
    channels : int
        c; the state has the shape (batch, c, height, width), the control the length c^2 k^2 + c.
    kernel_size : int
        k, odd; otherwise a ``ValueError``.
    activation : Activation

    Examples
    --------
    >>> Convolution(channels=4, kernel_size=3).control_size
    148
    """

    channels: int
    kernel_size: int = 3
    activation: Activation = TANH

    def __post_init__(self) -> None:
        if self.kernel_size % 2 == 0:
            raise ValueError(f"kernel_size: expected an odd number, got {self.kernel_size}")

    @property
    def control_size(self) -> int:
        return self.channels * (self.channels * self.kernel_size**2 + 1)

    @property
    def _padding(self) -> int:
        return self.kernel_size // 2

    def _split(self, u: StepControl) -> tuple[Tensor, Tensor]:
        c, k = self.channels, self.kernel_size
        return u[:-c].view(c, c, k, k), u[-c:]

    def __call__(self, t: float, x: BatchState, u: StepControl) -> Tensor:
        K, b = self._split(u)
        return self.activation.function(torch.conv2d(x, K, b, padding=self._padding))

    def vjp(self, t: float, x: BatchState, u: StepControl, p: BatchState) -> Cotangent:
        K, _ = self._split(u)
        z = self.activation.slope(self(t, x, u)).mul_(p)
        pK = conv2d_weight(x, K.shape, z, padding=self._padding)
        return conv2d_input(x.shape, K, z, padding=self._padding), torch.cat((pK.reshape(-1), z.sum((0, 2, 3))))

    def jvp(self, t: float, x: BatchState, u: StepControl, dx: BatchState, du: StepControl) -> BatchState:
        (K, _), (dK, db) = self._split(u), self._split(du)
        slope = self.activation.slope(self(t, x, u))
        return slope * (torch.conv2d(dx, K, db, padding=self._padding) + torch.conv2d(x, dK, padding=self._padding))

    def hvp(self, t: float, x: BatchState, u: StepControl, p: BatchState, dx: BatchState, du: StepControl) -> Cotangent:
        (K, _), (dK, db), padding = self._split(u), self._split(du), self._padding
        a = self(t, x, u)
        z = self.activation.slope(a) * p  # as in vjp, and its tangent
        dz = torch.conv2d(dx, K, db, padding=padding) + torch.conv2d(x, dK, padding=padding)
        dz = self.activation.curvature(a) * dz * p
        hx = conv2d_input(x.shape, K, dz, padding=padding) + conv2d_input(x.shape, dK, z, padding=padding)
        hK = conv2d_weight(x, K.shape, dz, padding=padding) + conv2d_weight(dx, K.shape, z, padding=padding)
        return hx, torch.cat((hK.reshape(-1), dz.sum((0, 2, 3))))

    def over(self, path: Tensor, stages: Stages) -> Evaluations:
        return ConvolutionEvaluations(self, path, stages)

    def stage_layout(self, x: BatchState, u: StepControl) -> BatchState:
        return x

    def initial(self, generator: torch.Generator, **like: Any) -> Tensor:
        """Random weights for one layer: K normal with variance 1/(c k^2), b = 0."""
        c, k = self.channels, self.kernel_size
        K = torch.randn(c * c * k * k, generator=generator, **like) / sqrt(c * k * k)
        return torch.cat((K, torch.zeros(c, **like)))

    def to_module(self, u: StepControl) -> nn.Module:
        """The same function as ``nn.Conv2d`` and an activation."""
        K, b = self._split(u)
        convolution = nn.Conv2d(
            self.channels, self.channels, self.kernel_size, padding=self._padding, device=u.device, dtype=u.dtype
        )
        convolution.load_state_dict({"weight": K, "bias": b})
        return nn.Sequential(convolution, self.activation.module())
