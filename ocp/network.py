"""Residual networks as control problems, and back: torch modules in, a plain torch module out."""

from __future__ import annotations

import copy
from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor, fx, nn

from ocp.control import Control, ControlSpace
from ocp.dynamics import ModuleDynamics
from ocp.grid import TimeGrid
from ocp.integrators import ExplicitRungeKutta, Integrator, as_integrator
from ocp.modules import FlatModule
from ocp.problem import ControlProblem, Opening
from ocp.costs import Readout
from ocp.tableaus import Tableau

__all__ = ["from_blocks", "from_sequential", "residual_network", "to_module"]


def residual_network(
    inputs: Tensor,
    cost: Any,
    block: Any,
    opening: nn.Module | None = None,
    closing: nn.Module | None = None,
    horizon: float = 1.0,
    control_cost: Any = None,
    generator: torch.Generator | None = None,
) -> ControlProblem:
    """The training of a residual network as a control problem, with a start.

    The state is opening(inputs), the dynamics are the block, and the cost is seen through closing. The parameters of
    opening and closing are the parameters q, in this order. The start holds the modules' own parameters; the block's are
    the same on every step, so that the start is one function of time on all grids.

    Parameters
    ----------
    inputs : Tensor
        Shape (batch, *features).
    cost : TerminalCost
        `CrossEntropy` or `LeastSquares` on as many samples.
    block : nn.Module or layer
        Right-hand side of x' = f(x): a residual block without its skip connection, or a layer of `ocp.layers`, whose
        initial weights come from ``generator``.
    opening, closing : nn.Module, optional
        Left out, the inputs are the state, and the state is what the cost sees.
    horizon : float
        Final time T; N layers have the step T / N.
    control_cost : ControlCost or sequence of ControlCost, optional
    generator : torch.Generator, optional
        For the initial weights of a layer; seed 0 where it is left out.

    Raises
    ------
    ValueError
        If the inputs are not finite.

    Examples
    --------
    >>> from ocp import CrossEntropy, layers
    >>> problem = residual_network(
    ...     torch.rand(5, 3), CrossEntropy(torch.tensor([0, 1, 1, 0, 1])), layers.Dense(4), nn.Linear(3, 4), nn.Linear(4, 2)
    ... )
    >>> problem.control_size, problem.parameter_size
    (20, 26)
    """
    bad = int((~torch.isfinite(inputs)).sum())
    if bad:
        raise ValueError(f"inputs: expected finite numbers, got {bad} of {inputs.numel()} that are NaN or infinite")
    first, last = FlatModule(opening or nn.Identity()), FlatModule(closing or nn.Identity())
    dynamics = ModuleDynamics(block) if isinstance(block, nn.Module) else block
    like: dict[str, Any] = {"dtype": inputs.dtype, "device": inputs.device}
    if isinstance(dynamics, ModuleDynamics):
        weights = dynamics.flat.start()
    else:
        weights = dynamics.initial(generator or torch.Generator(inputs.device).manual_seed(0), **like)
    start = torch.cat((weights.to(**like), first.start().to(**like), last.start().to(**like)))
    space = ControlSpace(TimeGrid(horizon, 1), dynamics.control_size, first.size + last.size)
    return ControlProblem(
        dynamics=dynamics,
        initial_state=Opening(first, inputs),
        terminal_cost=Readout(last, cost, offset=first.size),
        control_cost=control_cost,
        horizon=horizon,
        parameter_size=first.size + last.size,
        start=Control(space, start),
    )
