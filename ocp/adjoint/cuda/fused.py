"""All explicit Euler steps of dense layers in one kernel, and all of their transposes in another: for a GPU.

Step by step a small layer costs a GPU the start of three kernels, and its states a way to memory and back. Here a
program takes a few samples through all steps: their states, or costates, stay on the chip, weights stream by.
"""

from __future__ import annotations

from typing import Any, no_type_check

import torch
from torch import Tensor

from ocp.integrators.tableaus import EULER, Tableau
from ocp.problem.layers import RELU, SMOOTH_RELU, TANH, Antisymmetric, Dense, Free
from ocp.problem.protocols import Stages, StateEquation
from ocp.space.grid import TimeGrid

try:
    import triton
    from triton import language as tl
except ImportError:  # `supports` returns False, and no kernel is called
    triton = tl = None


def _jit(kernel: Any) -> Any:
    return kernel if triton is None else triton.jit(kernel)


__all__ = ["Fused", "supports"]

#: Samples of a program: the least that the units for matrix products take, so that a batch makes many programs.
SAMPLES = 16
#: Entries of the state in a tile, at most. A program has the tiles of its states in registers, and those of A pass
#: through shared memory one by one; 128 x 128 take 72 KB, and each card since Ampere has 99.
TILE = 128
#: The largest widths for which the compiler keeps the states of a program in registers: in float32, and in less.
WIDEST, WIDEST_ROUNDED = 128, 256

_KINDS = {TANH: 0, RELU: 1, SMOOTH_RELU: 2}


@_jit
@no_type_check
def _activate(z, KIND: tl.constexpr):
    """sigma(z); NaN stays NaN."""
    if KIND == 0:
        # Moshier, Cephes, tanhf.c: near zero a polynomial, since there the quotient cancels.
        s, far = z * z, 1 - 2 / (tl.exp(2 * tl.abs(z)) + 1)
        near = -5.70498872745e-3 * s + 2.06390887954e-2
        near = ((near * s - 5.37397155531e-2) * s + 1.33314422036e-1) * s - 3.33332819422e-1
        return tl.where(tl.abs(z) < 0.625, near * s * z + z, tl.where(z < 0, -far, far))
    rectified = tl.where(z < 0, 0.0, z)
    if KIND == 1:
        return rectified
    return tl.where(tl.abs(z) < 0.1, (z + 0.1) * (z + 0.1) * 2.5, rectified)


@_jit
@no_type_check
def _transpose(p, a, KIND: tl.constexpr):
    """sigma'(z) p from the value a = sigma(z)."""
    if KIND == 0:
        return p * (1 - a * a)
    if KIND == 1:
        return tl.where(a <= 0, 0.0, p)
    return p * tl.where(a > 0.1, 1.0, tl.sqrt(a * 10))


@_jit
@no_type_check
def _samples(j, batch, N: tl.constexpr, SAMPLES: tl.constexpr, TILE: tl.constexpr):
    """The places of tile j of the states of this program, and which of its entries exist."""
    row = tl.program_id(0) * SAMPLES + tl.arange(0, SAMPLES)[:, None]
    column = j * TILE + tl.arange(0, TILE)[None, :]
    return row * N + column, (row < batch) & (column < N)


@_jit
@no_type_check
def _weights(A, j, i, N: tl.constexpr, TILE: tl.constexpr):
    """The tile of A in block row j and block column i."""
    row = j * TILE + tl.arange(0, TILE)[:, None]
    column = i * TILE + tl.arange(0, TILE)[None, :]
    return tl.load(A + row * N + column, mask=(row < N) & (column < N), other=0.0)


@_jit
@no_type_check
def _forward(
    states, values, A, b, h, steps, batch, A_stride, b_stride,
    N: tl.constexpr, SAMPLES: tl.constexpr, TILE: tl.constexpr, TILES: tl.constexpr,
    KIND: tl.constexpr, FACTORS: tl.constexpr, ROUNDING: tl.constexpr,
):  # fmt: skip
    """States and values of f, starting from the first state."""
    x = ()
    for j in tl.static_range(TILES):
        place, there = _samples(j, batch, N, SAMPLES, TILE)
        x += (tl.load(states + place, mask=there, other=0.0).to(tl.float32),)
    for _ in range(steps):
        states += batch * N
        after = ()
        for j in tl.static_range(TILES):
            column = j * TILE + tl.arange(0, TILE)[None, :]
            z = tl.load(b + column, mask=column < N, other=0.0).to(tl.float32) + tl.full((SAMPLES, TILE), 0, tl.float32)
            for i in tl.static_range(TILES):
                At = tl.trans(_weights(A, j, i, N, TILE).to(FACTORS))
                z = tl.dot(x[i].to(FACTORS), At, acc=z, input_precision=ROUNDING)
            a = _activate(z, KIND)
            place, there = _samples(j, batch, N, SAMPLES, TILE)
            tl.store(values + place, a, mask=there)
            tl.store(states + place, x[j] + h * a, mask=there)
            after += (x[j] + h * a,)
        x = after
        values += batch * N
        A += A_stride
        b += b_stride


@_jit
@no_type_check
def _backward(
    costate, values, A, h, steps, batch, A_stride,
    N: tl.constexpr, SAMPLES: tl.constexpr, TILE: tl.constexpr, TILES: tl.constexpr,
    KIND: tl.constexpr, FACTORS: tl.constexpr, ROUNDING: tl.constexpr,
):  # fmt: skip
    """From the costate at the end to that at the start; cotangents take the place of the values.

    ``values`` and ``A`` point at the last step.
    """
    p = ()
    for j in tl.static_range(TILES):
        place, there = _samples(j, batch, N, SAMPLES, TILE)
        p += (tl.load(costate + place, mask=there, other=0.0).to(tl.float32),)
    for _ in range(steps):
        z = ()
        for j in tl.static_range(TILES):
            place, there = _samples(j, batch, N, SAMPLES, TILE)
            a = tl.load(values + place, mask=there, other=0.0).to(tl.float32)
            cotangent = _transpose(p[j], a, KIND)
            tl.store(values + place, cotangent, mask=there)
            z += (cotangent.to(FACTORS),)
        before = ()
        for i in tl.static_range(TILES):
            by_state = tl.full((SAMPLES, TILE), 0, tl.float32)
            for j in tl.static_range(TILES):
                Aji = _weights(A, j, i, N, TILE).to(FACTORS)
                by_state = tl.dot(z[j], Aji, acc=by_state, input_precision=ROUNDING)
            before += (p[i] + h * by_state,)
        p = before
        values -= batch * N
        A -= A_stride
    for j in tl.static_range(TILES):
        place, there = _samples(j, batch, N, SAMPLES, TILE)
        tl.store(costate + place, p[j], mask=there)


def supports(tableau: Tableau | None, problem: StateEquation, x: Tensor) -> bool:
    """Whether `Fused` can take the steps of a problem from such a state."""
    f = problem.dynamics
    return (
        hasattr(tl, "tuple")  # since Triton 3.3
        and x.is_cuda
        and torch.version.cuda is not None
        and torch.cuda.get_device_capability(x.device) >= (8, 0)
        and x.dtype in (torch.float32, torch.bfloat16)
        and tableau == EULER
        and problem.running_cost is None
        and type(f) is Dense
        and type(f.weight) in (Free, Antisymmetric)
        and f.activation in _KINDS
        and f.width <= (WIDEST if _factors(x.dtype) == (tl.float32, "ieee") else WIDEST_ROUNDED)
    )


class Fused:
    """Explicit Euler steps of dense layers, forward in one kernel and backward in another.

    It remembers all states and all values of f. Sums, activations and the steps themselves are in float32. The factors
    of products are in bfloat16 if states and controls are; otherwise in float32 or, as
    `torch.set_float32_matmul_precision` allows, in TF32 (``"high"``) or bfloat16 (``"medium"``).

    It takes at most ``steps`` steps at a time, from states like x.
    """

    def __init__(self, grid: TimeGrid, steps: int, x: Tensor):
        self.grid = grid
        self._states, self._values = x.new_empty(steps + 1, *x.shape), x.new_empty(steps, 1, *x.shape)
        self._times = torch.tensor(grid.nodes[:-1], dtype=x.dtype).to(x.device)[:, None]

    def took(self, problem: StateEquation, first: int, path: Tensor) -> None:
        """Set what `forward` sets besides its storage; called alone after its operations were replayed."""
        self._layer: Any = problem.dynamics  # a `Dense`
        self._first, self._path = first, path
        self.states, self.end = self._states[: len(path) + 1], self._states[len(path)]

    def returned(self) -> None:
        """Nothing to do: `backward` sets only its storage."""

    def forward(self, problem: StateEquation, first: int, x: Tensor, path: Tensor) -> None:
        self.took(problem, first, path)
        self._states[0].copy_(x)
        layers = self._layers()
        A, b = layers.A, layers.b
        sizes = len(path), len(x), A.stride(0), b.stride(0)
        self._launch(_forward, self._states, self._values, A, b, self.grid.h, *sizes)

    def backward(self, p: Tensor, derivative: Tensor) -> Tensor:
        layers, p, last = self._layers(), p.contiguous(), len(self._path) - 1
        sizes = last + 1, len(p), layers.A.stride(0)
        self._launch(_backward, p, self._values[last], layers.A[last], self.grid.h, *sizes)
        layers.by_control(derivative)
        return p

    def _layers(self) -> Any:
        S = len(self._path)
        t, x, values = self._times[self._first : self._first + S], self._states[:S, None], self._values[:S]
        return self._layer.over(self._path, Stages(self.grid.h, t, x, values, (), values.unbind(0)))

    def _launch(self, kernel: Any, *arguments: Any) -> None:
        blocks = triton.cdiv(self._states.shape[1], SAMPLES)
        with torch.cuda.device_of(self._states):
            kernel[(blocks,)](*arguments, **_constants(self._layer, self._states.dtype))


def _constants(layer: Dense, dtype: torch.dtype) -> dict[str, Any]:
    """The constants for which a kernel is compiled."""
    tile = min(max(triton.next_power_of_2(layer.width), 16), TILE)
    factors, rounding = _factors(dtype)
    return {
        "N": layer.width,
        "SAMPLES": SAMPLES,
        "TILE": tile,
        "TILES": triton.cdiv(layer.width, tile),
        "KIND": _KINDS[layer.activation],
        "FACTORS": factors,
        "ROUNDING": rounding,
        "num_warps": tile // 16,
        "num_stages": 3 if tile < TILE else 1,  # small tiles are fetched ahead, for large ones there is no room
    }


def _factors(dtype: torch.dtype) -> tuple[Any, str]:
    """The type of the factors of a product, and how those of float32 are rounded."""
    allowed = torch.get_float32_matmul_precision()
    if dtype == torch.bfloat16 or allowed == "medium":
        return tl.bfloat16, "ieee"
    return tl.float32, "ieee" if allowed == "highest" else "tf32"
