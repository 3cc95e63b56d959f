"""Functions of torch operations: derivatives at one point, values at many points at once."""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from typing import Any, TypeVar, cast

import torch
from torch import Tensor
from torch.nn.attention import SDPBackend, sdpa_kernel

from ocp.problem.boundary import call, same, uncompiled

__all__ = [
    "Mapped",
    "gradients",
    "hvp",
    "jacobian",
    "jacobian_of",
    "jacobians",
    "jvp",
    "pullback",
]

Tensors = TypeVar("Tensors", bound=tuple[Tensor, ...])
Result = TypeVar("Result")


def gradients(output: Tensor, leaves: Tensors, cotangent: Tensor | None = None, **options: bool) -> Tensors:
    """Derivatives of ``output`` by the leaves of its tape, zero by those on which it does not depend.

    Parameters
    ----------
    cotangent : Tensor, optional
        Of the shape of the output; optional for a scalar.
    options
        ``retain_graph`` and ``create_graph`` of ``torch.autograd.grad``.
    """
    if not output.requires_grad:
        return cast(Tensors, tuple(torch.zeros_like(leaf) for leaf in leaves))
    grads = torch.autograd.grad(output, leaves, cotangent, allow_unused=True, **options)
    return cast(Tensors, tuple(torch.zeros_like(a) if g is None else g for a, g in zip(leaves, grads, strict=True)))


def jacobians(values: Tensor, leaves: tuple[Tensor, ...]) -> tuple[Tensor, ...]:
    """Jacobians at n points, flat: of values, shape (n, k), by leaves of shape (n, *shape). The tape is kept."""
    rows = [gradients(entry, leaves, torch.ones_like(entry), retain_graph=True) for entry in values.unbind(1)]
    return tuple(torch.stack(parts, 1).flatten(2) for parts in zip(*rows, strict=True))


def jacobian(pull: Callable[[Tensor], Tensor], x: Tensor) -> Tensor:
    """The Jacobian of each sample, shape (batch, n, n), for a function of states of n numbers like ``x``.

    Its transposed derivative ``pull`` is applied to all samples at once, to one unit vector after the other where
    ``torch.func.vmap`` cannot map it. No sample may depend on another one.
    """
    n = x[0].numel()
    units = torch.eye(n, dtype=x.dtype, device=x.device).view(n, 1, *x.shape[1:]).repeat(1, len(x), *[1] * (x.ndim - 1))
    try:
        rows = torch.func.vmap(pull)(units)
    except Exception:  # anything: the function was not written for vmap
        rows = torch.stack([pull(unit) for unit in units.unbind(0)])
    return rows.flatten(2).transpose(0, 1)


def jacobian_of(function: Any, x: Tensor) -> Tensor:
    """The `jacobian` of a function of a state, from the tape of one evaluation."""
    leaves, output = _recorded(function, (x,))
    return jacobian(lambda p: gradients(output, leaves, p, retain_graph=True)[0], x)


def pullback(function: Any, arguments: Tensors, cotangent: Tensor | None = None) -> Tensors:
    """Derivatives by all arguments of one evaluation of ``function``, transposed and applied to ``cotangent``.

    Parameters
    ----------
    function : callable
        Takes ``arguments`` and returns one tensor.
    cotangent : Tensor, optional
        Of the shape of the output; optional for a scalar.
    """
    leaves, output = _recorded(function, arguments)
    return gradients(output, leaves, cotangent)


def jvp(function: Any, arguments: Tensors, directions: Tensors) -> tuple[Tensor, Tensor]:
    """The value of ``function`` and its derivative along ``directions``: by forward mode, or by transposing twice.

    Raises a ``NotImplementedError`` if torch can do neither.
    """

    def forward() -> tuple[Tensor, Tensor]:
        value, derivative = torch.func.jvp(function, arguments, directions)[:2]
        return value, derivative

    def transposed() -> tuple[Tensor, Tensor]:
        return _transposed_twice(function, arguments, directions)

    return _possible("derivatives in forward mode", function, arguments, forward, transposed)


def hvp(function: Any, arguments: Tensors, directions: Tensors, cotangent: Tensor | None = None) -> Tensors:
    """The Hessian of <cotangent, function(arguments)> applied to ``directions``: two passes through one tape.

    Raises a ``NotImplementedError`` if torch cannot differentiate the function twice.

    Examples
    --------
    >>> x = torch.tensor([1.0, 2.0])
    >>> hvp(lambda x: x.pow(3).sum(), (x,), (torch.ones(2),))
    (tensor([ 6., 12.]),)
    """

    def product() -> Tensors:
        leaves, output = _recorded(function, arguments)
        return gradients(_slope(output, leaves, directions, cotangent), leaves)

    return _possible("second derivatives", function, arguments, product)


@torch.enable_grad()
def _transposed_twice(function: Any, arguments: Tensors, directions: Tensors) -> tuple[Tensor, Tensor]:
    """Value and derivative along directions, by transposing twice; a RuntimeError if a part of the tape is missing."""
    leaves, output = _recorded(function, arguments)
    # Any cotangent will do, since the slope is linear in it; one that is not zero shows whether its tape is whole.
    cotangent = torch.randn(output.shape, generator=torch.Generator().manual_seed(0)).to(output).requires_grad_()
    slopes = gradients(output, leaves, cotangent, create_graph=True)
    parts = [s * d for s, d in zip(slopes, directions, strict=True)]
    slope = torch.stack([part.sum() for part in parts]).sum()
    derivative = gradients(slope, (cotangent,))[0]
    terms = derivative * cotangent.detach()
    size = sum(float(part.detach().abs().sum()) for part in (*parts, terms))
    if float((terms.sum() - slope.detach()).abs()) > torch.finfo(output.dtype).eps ** 0.5 * size:
        raise RuntimeError("a derivative that autograd cannot differentiate again")
    return output.detach(), derivative.detach()


@torch.enable_grad()
def _recorded(function: Any, arguments: Tensors) -> tuple[Tensors, Tensor]:
    """The leaves and the output of one evaluation, with its tape."""
    leaves = cast(Tensors, tuple(a.detach().requires_grad_() for a in arguments))
    return leaves, function(*leaves)


@torch.enable_grad()
def _slope(output: Tensor, leaves: Tensors, directions: Tensors, cotangent: Tensor | None) -> Tensor:
    """The derivative of <cotangent, output> along directions, with its tape."""
    slopes = gradients(output, leaves, cotangent, create_graph=True)
    return torch.stack([(s * d).sum() for s, d in zip(slopes, directions, strict=True)]).sum()


def _possible(wanted: str, function: Any, arguments: Tensors, *ways: Callable[[], Result]) -> Result:
    """The result of the first way that torch implements for the operations of a function.

    Fused attention has first derivatives in reverse mode and no others; then plain operations take its place.
    """
    error: Exception | None = None
    for way in ways:
        for plain_attention in (False, True):
            try:
                if not plain_attention:
                    return way()
                with sdpa_kernel(SDPBackend.MATH):
                    result = way()
                return result
            except (NotImplementedError, RuntimeError) as failure:
                error = error or failure
    function(*arguments)  # an error of its own passes
    raise NotImplementedError(f"expected operations with {wanted}, got {error}") from error


class Mapped:
    """A function of a point (t, x, u) as a function of many points at once, by ``torch.func.vmap``.

    Python that needs numbers, such as ``math.sin(t)`` or ``if t > 1``, cannot be mapped, and a function may treat
    tensors and numbers differently. So the values are compared with those of the function itself; where they differ,
    or cannot be computed, points are taken one by one.

    Parameters
    ----------
    function : callable
        f(t, x, u) with a number t; returns one tensor.
    name : str
        What error messages call it.
    """

    def __init__(self, function: Callable[..., Tensor], name: str = "function"):
        self.function, self._plain, self.name = function, uncompiled(function), name
        self.agreed: bool | None = None  # whether it `agrees`, once that was tried

    def agrees(self, t: Tensor, x: Tensor, u: Tensor) -> bool:
        """Whether value and derivative of the mapped function are those of the function; remembered for later calls."""
        mapped, one_by_one = (partial(way, t) for way in (torch.func.vmap(self._plain), self._one_by_one))
        try:
            y = one_by_one(x, u).detach()
            pairs = zip(pullback(mapped, (x, u), y), pullback(one_by_one, (x, u), y), strict=True)
            self.agreed = same(mapped(x, u).detach(), y) and all(same(a, b) for a, b in pairs)
        except Exception:  # anything: the function was not written for such arguments
            self.agreed = False
        return self.agreed

    def agrees_near(self, x: Tensor, u: Tensor) -> bool:
        """Whether it `agrees` at a few points near a state and a control."""
        shift = torch.linspace(0, 0.2, 3, dtype=torch.float64).to(x)  # not rounded to single precision
        return self.agrees(shift, x + shift.view(-1, *[1] * x.ndim), u + shift[:, None])

    def agrees_at(self, t: Tensor, x: Tensor, u: Tensor) -> bool:
        """Whether the values of the mapped function are those of the function at all these times."""
        try:
            self._plain(_Untimely(), x, u)
        except Exception:  # anything: it uses the time
            x, u = (a.expand(len(t), *a.shape) for a in (x, u))
            return same(self.together(t, x, u).detach(), self._one_by_one(t, x, u).detach())
        return True

    def together(self, t: Tensor, x: Tensor, u: Tensor) -> Tensor:
        """The values at n points by the mapped function, stacked; autograd can follow. Raises what that raises."""
        mapped: Tensor = torch.func.vmap(self._plain)(t, x, u)
        return mapped

    def __call__(self, t: Tensor, x: Tensor, u: Tensor, values: Tensor | None = None) -> Tensor:
        """The values at n points, stacked; autograd can follow.

        If ``values`` from the function itself are given, they are compared; otherwise the first call is the test.
        """
        if self.agreed is None:
            self.agrees(t, x, u)
        if self.agreed:
            try:
                mapped = self.together(t, x, u)
                if values is None or same(mapped.detach(), values):
                    return mapped
            except Exception:  # it needs numbers after all
                self.agreed = False
        return self._one_by_one(t, x, u)

    def _one_by_one(self, t: Tensor, x: Tensor, u: Tensor) -> Tensor:
        points = zip(t.tolist(), x.unbind(0), u.unbind(0), strict=True)
        return torch.stack([call(self.name, self.function, t=t, x=x, u=u) for t, x, u in points])


class _Untimely:
    """A stand-in for the time in functions that ignore it; using it as a number raises."""

    def __eq__(self, other: object) -> bool:
        raise TypeError("time is not to be compared")

    def __bool__(self) -> bool:
        raise TypeError("time is not a truth value")
