"""Whether a module is a function of its input and its parameters, found out by running it a few times."""

from __future__ import annotations

import random
from typing import TYPE_CHECKING, Any

import numpy
import torch
from torch import Tensor

from ocp.problem.boundary import identical, same, uncompiled
from ocp.problem.differences import disagreement, nearby
from ocp.problem.functions import pullback

if TYPE_CHECKING:
    from ocp.problem.modules import FlatModule

__all__ = ["rehearse"]

#: The most samples on which a module is run.
SAMPLES = 8


@torch.no_grad()
def rehearse(flat: FlatModule, q: Tensor, x: Tensor) -> bool:
    """Run a module a few times; whether it also runs while its derivative is taken, as ``torch.utils.checkpoint`` does.

    Raises
    ------
    ValueError
        If it fails; if it returns something other than a floating-point tensor; if it changes its input, parameters or
        buffers; if it is random; if it uses parameters other than its own, or copies of them; or if its derivative
        disagrees with differences.
    """
    expected = f"{flat.name}: expected a module that"
    x = x[:SAMPLES].clone()
    q = q + 0.01 * torch.linspace(-1, 1, len(q), dtype=q.dtype).to(q)  # so that no zero hides a dependence
    given, weights, buffers = x.clone(), q.clone(), {name: b.clone() for name, b in flat.buffers()}
    y = _run(flat, q, x)
    if not isinstance(y, Tensor) or not y.is_floating_point():
        got = y.dtype if isinstance(y, Tensor) else f"a {type(y).__name__}"
        raise ValueError(f"{expected} returns a floating-point tensor, got {got}")
    if not identical(x, given):
        raise ValueError(f"{expected} leaves its input unchanged, got one that writes to it")
    if not identical(q, weights):
        raise ValueError(f"{expected} leaves its parameters unchanged, got one that writes to them")
    changed = [name for name, b in flat.buffers() if name not in buffers or not identical(b, buffers[name])]
    if changed:
        raise ValueError(
            f"{expected} leaves its buffers unchanged, got one that changes {', '.join(changed)}; call .eval() on it"
        )
    if _draws(flat, q, x) or not same(_run(flat, q, x), y):
        raise ValueError(f"{expected} is deterministic, got random output; call .eval() on it")
    if not same(flat.with_parameters(q)(x), y):
        raise ValueError(f"{expected} reads its parameters each time it runs, got one that keeps copies of them")
    again = _runs_again(flat, q, x)
    if uncompiled(flat.module) is flat.module and (found := _disagreement(flat, q, x)):
        raise ValueError(f"{expected} autograd can follow, got the derivative {found}")
    return again


def _disagreement(flat: FlatModule, q: Tensor, x: Tensor) -> str:
    """What differences say against the derivative by parameters and input, if anything."""

    def value(q: Tensor, x: Tensor = x) -> Tensor:
        return flat.call(flat.parts(q), x)

    given = {"parameters": q, "input": x} if x.is_floating_point() else {"parameters": q}
    return disagreement(value, lambda p, *at: pullback(value, at, p), nearby(given))


def _run(flat: FlatModule, q: Tensor, x: Tensor) -> Any:
    try:
        return flat.call(flat.parts(q), x)
    except (AttributeError, IndexError, RuntimeError, TypeError, ValueError) as error:
        raise ValueError(
            f"{flat.name}: expected a module that takes one tensor, here of shape {tuple(x.shape)} and {x.dtype}, "
            f"got {type(error).__name__}: {error}"
        ) from error


@torch.enable_grad()
def _runs_again(flat: FlatModule, q: Tensor, x: Tensor) -> bool:
    """Whether the derivative depends on the parameters that are in place while it is taken."""
    derivatives = []
    for later in (q, q + 1):
        leaves = [q.clone().requires_grad_(), x.clone().requires_grad_(x.is_floating_point())]
        y = flat.call(flat.parts(leaves[0]), leaves[1])
        if not y.requires_grad:
            return False
        if any(all(leaf is not own for own in leaves) for leaf in _leaves(y)):
            raise ValueError(
                f"{flat.name}: expected a module that uses no parameters other than its own, got one that does; "
                "register them, and let no function in it refer to the module, which is copied"
            )
        flat.put(flat.parts(later.clone().requires_grad_()))
        wanted = [leaf for leaf in leaves if leaf.requires_grad]
        try:
            derivatives.append(torch.autograd.grad(y, wanted, torch.ones_like(y), allow_unused=True))
        except RuntimeError as error:
            if derivatives:  # torch.utils.checkpoint may notice what has changed
                return True
            raise ValueError(
                f"{flat.name}: expected a module that torch.autograd.grad can differentiate, got {error}"
            ) from error
    pairs = zip(*derivatives, strict=True)
    return not all(a is b if a is None or b is None else same(a, b) for a, b in pairs)


def _leaves(y: Tensor) -> list[Tensor]:
    """The tensors by which the tape of ``y`` can be differentiated."""
    seen: set[Any] = set()
    nodes, found = [y.grad_fn], []
    while nodes:
        node = nodes.pop()
        if node is not None and node not in seen:
            seen.add(node)
            found += [node.variable] if hasattr(node, "variable") else []
            nodes += [after for after, _ in node.next_functions]
    return found


def _draws(flat: FlatModule, q: Tensor, x: Tensor) -> bool:
    """Whether each run of the module draws random numbers; other threads may draw some now and then."""
    for _ in range(3):
        before = _random_states(x)
        _run(flat, q, x)
        if _random_states(x) == before:
            return False
    return True


def _random_states(x: Tensor) -> tuple[Any, ...]:
    """The states of the generators that a module may draw from."""
    state = numpy.random.get_state(legacy=False)["state"]
    numbers = {k: v.tolist() if isinstance(v, numpy.ndarray) else v for k, v in state.items()}
    cuda = torch.cuda.get_rng_state(x.device).tolist() if x.is_cuda else ()
    return torch.get_rng_state().tolist(), cuda, random.getstate(), numbers
