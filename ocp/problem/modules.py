"""An ``nn.Module`` as a function of one flat parameter vector; derivatives of one evaluation."""

from __future__ import annotations

import copy
from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch import Tensor, nn

__all__ = ["FlatModule", "Mapped", "hvp", "jvp", "leaving", "pullback", "uncompiled"]


class FlatModule:
    """A module as a function of one flat vector of its parameters, in the order of ``named_parameters``.

    Parameters that require no gradient are frozen: they are not part of the vector, and keep their values.

    Parameters
    ----------
    module : nn.Module
        Must be deterministic: with dropout or batch statistics, value and derivative belong to different functions.

    Raises
    ------
    TypeError
        If ``module`` is not an ``nn.Module``.
    ValueError
        If it holds dropout or batch-statistics layers in training mode.

    Examples
    --------
    >>> flat = FlatModule(nn.Linear(3, 2))
    >>> flat.size, flat(torch.zeros(flat.size), torch.ones(5, 3)).shape
    (8, torch.Size([5, 2]))
    """

    def __init__(self, module: nn.Module):
        if not isinstance(module, nn.Module):
            raise TypeError(f"module: expected an nn.Module, got {type(module).__name__}")
        for name, part in module.named_modules():
            if part.training and _varies(part):
                raise ValueError(
                    f"module: expected a deterministic module, got {type(part).__name__} ({name}) in training mode; "
                    "remove it or call .eval() on it"
                )
        self.module = module
        self._shapes = {name: p.shape for name, p in module.named_parameters() if p.requires_grad}
        parameters = self._trained(module)
        self._sizes = [shape.numel() for shape in self._shapes.values()]
        self.size = sum(self._sizes)
        # The places of each parameter: several if it is shared.
        self._places = [
            [(part._parameters, name) for part in module.modules() for name, q in part._parameters.items() if q is p]
            for p in parameters
        ]

    def _trained(self, module: nn.Module) -> list[nn.Parameter]:
        """The parameters that are not frozen, of the module or of a copy."""
        return [p for name, p in module.named_parameters() if name in self._shapes]

    def start(self) -> Tensor:
        """The module's own parameters as a flat vector, shape (size,)."""
        parts = [p.detach().reshape(-1) for p in self._trained(self.module)]
        return torch.cat(parts) if parts else torch.zeros(0)

    def __call__(self, flat: Tensor, x: Tensor) -> Tensor:
        """The module's output on ``x`` with the parameters ``flat``."""
        parts = self._parts(flat)
        return nn.functional.linear(x, *parts) if self._is_linear() else self.call(parts, x)

    def pullback(self, flat: Tensor, x: Tensor, cotangent: Tensor) -> tuple[Tensor, Tensor]:
        """Derivative of one evaluation, transposed and applied to ``cotangent``: by the parameters, and by the input.

        That of a plain ``nn.Linear`` is written by hand: compared with a few time steps, a tape is expensive.
        """
        if self._is_linear():
            return self.by_parameters(flat, x, cotangent), cotangent @ self._parts(flat)[0]
        by_parameters, by_input = pullback(self, (flat, x), cotangent)
        return by_parameters, by_input

    def by_parameters(self, flat: Tensor, x: Tensor, cotangent: Tensor) -> Tensor:
        """The first part of `pullback` alone."""
        if not self._is_linear():
            return pullback(lambda w: self(w, x), (flat,), cotangent)[0]
        rows, derivative = cotangent.reshape(-1, cotangent.shape[-1]), torch.empty_like(flat)
        weight, *bias = self._parts(derivative)
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

    def _parts(self, flat: Tensor) -> list[Tensor]:
        """Views on the parameters in a flat vector."""
        parts = flat.split_with_sizes(self._sizes) if self._sizes else ()
        return [part.view(shape) for part, shape in zip(parts, self._shapes.values(), strict=True)]

    def parts(self, flats: Tensor) -> list[Tensor]:
        """Views on the parameters in S flat vectors, shape (S, size): one of shape (S, *shape) for each parameter."""
        parts = flats.split(self._sizes, dim=1) if self._sizes else ()
        return [part.view(len(flats), *shape) for part, shape in zip(parts, self._shapes.values(), strict=True)]

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

    def with_parameters(self, flat: Tensor) -> nn.Module:
        """A copy of the module that owns the parameters ``flat``, and those that are frozen."""
        module = copy.deepcopy(self.module)
        parts = flat.detach().split(self._sizes) if self._sizes else ()
        with torch.no_grad():
            for parameter, part in zip(self._trained(module), parts, strict=True):
                parameter.data = part.reshape(parameter.shape).clone()
        return module


def leaving(name: str, function: Callable[..., Tensor], **arguments: Any) -> Tensor:
    """The value of a user's function, which must leave its arguments unchanged.

    Raises
    ------
    ValueError
        If it writes to one of them; the message begins with ``name``.
    """
    versions = {n: a._version for n, a in arguments.items() if isinstance(a, Tensor)}
    try:
        value = function(*arguments.values())
    except RuntimeError as error:
        if "in-place" in str(error) or "inplace" in str(error):  # from torch, if autograd was recording
            raise ValueError(f"{name}: expected it to leave its arguments as they are, got: {error}") from error
        raise
    changed = [n for n, version in versions.items() if arguments[n]._version != version]
    if changed:
        at = f" at t = {arguments['t']:g}" if "t" in arguments else ""
        raise ValueError(
            f"{name}: expected it to leave its arguments as they are, got {', '.join(changed)} changed{at}"
        )
    return value


def uncompiled(function: Any) -> Any:
    """The function or module that was given to ``torch.compile``; one that is not compiled, unchanged.

    Compiled functions cannot be used with ``vmap`` and forward mode, which leave them uncompiled, nor differentiated
    twice.
    """
    return getattr(function, "_orig_mod", getattr(function, "_torchdynamo_orig_callable", function))


class Mapped:
    """A function of a point (t, x, u) as a function of many points at once, by ``torch.func.vmap``.

    Python that wants numbers, such as ``math.sin(t)`` or ``if t > 1``, cannot be mapped, and a function may do
    something else for a tensor than for a number. So its values are compared with those of the function itself; where
    they differ, or where there are none, points are taken one by one.

    Parameters
    ----------
    function : callable
        f(t, x, u) with a number t; returns one tensor.
    name : str
        What error messages call it.
    """

    def __init__(self, function: Callable[..., Tensor], name: str = "function"):
        self.function, self._plain, self.name = function, uncompiled(function), name
        self._agreed: bool | None = None

    def agrees(self, t: Tensor, x: Tensor, u: Tensor) -> bool:
        """Whether the mapped function agrees with the function at these points; remembered for later calls."""
        with torch.no_grad():
            try:
                self._agreed = _same(torch.func.vmap(self._plain)(t, x, u), self._one_by_one(t, x, u))
            except Exception:  # anything: the function was not written for such arguments
                self._agreed = False
        return self._agreed

    def __call__(self, t: Tensor, x: Tensor, u: Tensor, values: Tensor | None = None) -> Tensor:
        """The values at n points, stacked; autograd can follow.

        If ``values`` from the function itself are given, they are compared; otherwise the first call is the test.
        """
        if self._agreed is None:
            self.agrees(t, x, u)
        if self._agreed:
            try:
                mapped: Tensor = torch.func.vmap(self._plain)(t, x, u)
                if values is None or _same(mapped.detach(), values):
                    return mapped
            except Exception:  # it decides by numbers after all
                self._agreed = False
        return self._one_by_one(t, x, u)

    def _one_by_one(self, t: Tensor, x: Tensor, u: Tensor) -> Tensor:
        points = zip(t.tolist(), x.unbind(0), u.unbind(0), strict=True)
        return torch.stack([leaving(self.name, self.function, t=t, x=x, u=u) for t, x, u in points])


def _same(a: Tensor, b: Tensor) -> bool:
    """Whether two tensors agree up to rounding: sums over many points are taken in another order than for one."""
    if a.shape != b.shape or a.dtype != b.dtype:
        return False
    rtol = torch.finfo(a.dtype).eps ** 0.75
    finite = b.nan_to_num(0.0, 0.0, 0.0).abs()
    return torch.allclose(a, b, rtol=rtol, atol=rtol * float(finite.max()) if b.numel() else 0.0, equal_nan=True)


def _varies(part: nn.Module) -> bool:
    """Whether two evaluations in training mode can differ, or change the module."""
    if isinstance(part, nn.modules.dropout._DropoutNd):
        return part.p > 0
    if isinstance(part, nn.MultiheadAttention | nn.RNNBase):
        return part.dropout > 0
    if isinstance(part, nn.modules.instancenorm._InstanceNorm):
        return part.track_running_stats
    return isinstance(part, nn.RReLU | nn.modules.batchnorm._BatchNorm)


def pullback(function: Any, arguments: tuple[Tensor, ...], cotangent: Tensor | None = None) -> tuple[Tensor, ...]:
    """Derivative of one evaluation of ``function``, transposed and applied to ``cotangent``.

    The tape lives for this one evaluation. The derivative by an unused argument is zero.

    Parameters
    ----------
    function : callable
        Takes ``arguments`` and returns one tensor.
    cotangent : Tensor, optional
        Of the shape of the output; optional if the output is a scalar.

    Returns
    -------
    tuple of Tensor
        One for each argument, of its shape.
    """
    with torch.enable_grad():
        leaves = tuple(a.detach().requires_grad_() for a in arguments)
        output = function(*leaves)
        if not output.requires_grad:
            return tuple(torch.zeros_like(a) for a in arguments)
        grads = torch.autograd.grad(output, leaves, cotangent, allow_unused=True)
    return tuple(torch.zeros_like(a) if g is None else g for a, g in zip(arguments, grads, strict=True))


def jvp(function: Any, arguments: tuple[Tensor, ...], directions: tuple[Tensor, ...]) -> tuple[Tensor, Tensor]:
    """The value of ``function`` and its directional derivative, by forward mode.

    Parameters
    ----------
    function : callable
        Takes ``arguments`` and returns one tensor.
    directions : tuple of Tensor
        One for each argument, of its shape.
    """
    value, derivative = torch.func.jvp(function, arguments, directions)[:2]
    return value, derivative


def hvp(
    function: Any, arguments: tuple[Tensor, ...], directions: tuple[Tensor, ...], cotangent: Tensor | None = None
) -> tuple[Tensor, ...]:
    """Second derivative of one evaluation: the Hessian of <cotangent, function(arguments)> applied to ``directions``.

    Two backward passes through the tape of this one evaluation.

    Parameters
    ----------
    function : callable
        Takes ``arguments`` and returns one tensor.
    directions : tuple of Tensor
        One for each argument, of its shape.
    cotangent : Tensor, optional
        Of the shape of the output; optional if the output is a scalar.

    Returns
    -------
    tuple of Tensor
        One for each argument, of its shape.

    Examples
    --------
    >>> x = torch.tensor([1.0, 2.0])
    >>> hvp(lambda x: x.pow(3).sum(), (x,), (torch.ones(2),))
    (tensor([ 6., 12.]),)
    """
    with torch.enable_grad():
        leaves = tuple(a.detach().requires_grad_() for a in arguments)
        output = function(*leaves)
        if not output.requires_grad:
            return tuple(torch.zeros_like(a) for a in arguments)
        grads = torch.autograd.grad(output, leaves, cotangent, create_graph=True, allow_unused=True)
        # If the function is linear in an argument, its derivative is a constant without a tape.
        slopes = [(g * d).sum() for g, d in zip(grads, directions, strict=True) if g is not None and g.requires_grad]
        if not slopes:
            return tuple(torch.zeros_like(a) for a in arguments)
        grads = torch.autograd.grad(torch.stack(slopes).sum(), leaves, allow_unused=True)
    return tuple(torch.zeros_like(a) if g is None else g for a, g in zip(arguments, grads, strict=True))
