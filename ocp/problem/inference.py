"""Out of ``torch.inference_mode``: autograd records nothing in it, and refuses the tensors made in it."""

from __future__ import annotations

from collections.abc import Callable
from functools import wraps
from typing import ParamSpec, TypeVar

import torch
from torch import Tensor

__all__ = ["ordinary", "outside"]

Arguments = ParamSpec("Arguments")
Result = TypeVar("Result")


def outside(function: Callable[Arguments, Result]) -> Callable[Arguments, Result]:
    """Run a function outside inference mode. The mode is left only if it is on, since that takes microseconds."""

    @wraps(function)
    def run(*arguments: Arguments.args, **options: Arguments.kwargs) -> Result:
        if not torch.is_inference_mode_enabled():
            return function(*arguments, **options)
        with torch.inference_mode(False):
            return function(*arguments, **options)

    return run


@outside
def ordinary(tensor: Tensor) -> Tensor:
    """The tensor without its tape; a copy if it was made in inference mode."""
    return tensor.clone() if tensor.is_inference() else tensor.detach()
