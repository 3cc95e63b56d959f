"""Residual networks as control problems, and back: torch modules in, a plain torch module out."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from itertools import groupby
from operator import itemgetter
from types import SimpleNamespace
from typing import Any

import torch
from torch import Tensor, fx, nn

from ocp.integrators.integrator import Integrator
from ocp.integrators.runge_kutta import RungeKutta
from ocp.objective.solution import Solution, control_and_scheme
from ocp.problem.boundary import data
from ocp.problem.control_problem import ControlProblem
from ocp.problem.costs import Readout
from ocp.problem.dynamics import ModuleDynamics
from ocp.problem.equation import OfPart
from ocp.problem.initial_state import Opening
from ocp.problem.modules import FlatModule
from ocp.problem.protocols import Dynamics, Exportable, Initializable, TerminalCost
from ocp.space.control import Control, ControlSpace
from ocp.space.grid import TimeGrid

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
    shared: bool = False,
) -> ControlProblem:
    """The training of a residual network as a control problem, with a start.

    The state is opening(inputs), the dynamics are the block, and the cost is that of closing(final state). The
    parameters q are those of opening and closing, in this order. The start holds the modules' own parameters, those of
    the block on every step, so that it is the same function of time on every grid. Frozen parameters
    (``requires_grad=False``) are not part of the control, and keep their values.

    Parameters
    ----------
    inputs : Tensor
        Shape (batch, *features).
    cost : TerminalCost
        `CrossEntropy` or `LeastSquares` on as many samples.
    block : nn.Module or layer
        Right-hand side of x' = f(x): a residual block without its skip connection, or a layer of `ocp.layers`.
    opening, closing : nn.Module, optional
        By default the inputs are the state, and the cost sees the final state.
    horizon : float
        Final time T; N layers have the step T / N.
    control_cost : ControlCost or sequence of ControlCost, optional
    generator : torch.Generator, optional
        Of the CPU, for the initial weights of a layer; seed 0 by default.
    shared : bool
        Whether all steps share the weights of the block, as in a neural ODE: Chen, Rubanova, Bettencourt & Duvenaud
        (2018), "Neural ordinary differential equations". They are the last of the parameters q then, and there is no
        control, so that methods on one grid apply.

    Raises
    ------
    TypeError, ValueError
        If the inputs are not a tensor of finite numbers, ``block`` is neither a layer nor a module with parameters to
        train, or ``cost`` is not a `TerminalCost`, such as a loss of torch.

    Examples
    --------
    >>> from ocp.problem.costs import CrossEntropy
    >>> from ocp.problem.layers import Dense
    >>> loss = CrossEntropy(torch.tensor([0, 1, 1, 0, 1]))
    >>> problem = residual_network(torch.rand(5, 3), loss, Dense(4), nn.Linear(3, 4), nn.Linear(4, 2))
    >>> problem.control_size, problem.parameter_size
    (20, 26)
    """
    like = _like(inputs)
    dynamics: Dynamics
    _check_ties({"opening": opening, "block": block if isinstance(block, nn.Module) else None, "closing": closing})
    if isinstance(block, nn.Module):
        dynamics = ModuleDynamics(block, "block")
        weights = dynamics.flat.start().to(**like)
    elif isinstance(block, Initializable):
        dynamics = block
        # Drawn in double precision on the CPU, so that a seed gives the same weights in every type and on every device.
        weights = block.initial(generator or torch.Generator().manual_seed(0), dtype=torch.float64).to(**like)
    else:
        raise TypeError(f"block: expected an nn.Module or a layer of ocp.layers, got {type(block).__name__}")
    rows = weights.unsqueeze(0)
    return _assemble(inputs, cost, dynamics, rows, opening, closing, horizon, control_cost, shared)


def from_blocks(
    opening: nn.Module | None,
    blocks: Sequence[nn.Module],
    closing: nn.Module | None,
    inputs: Tensor,
    cost: Any,
    control_cost: Any = None,
) -> ControlProblem:
    """The further training of a residual network, given as its parts, as a control problem.

    Each block maps x to x + F(x), including its skip connection. The dynamics are F, and the horizon is the number of
    blocks: explicit Euler with one step for each block is the given network. The start holds its weights. For the other
    parameters, see `residual_network`.

    Parameters
    ----------
    blocks : sequence of nn.Module
        Alike except for the values of their parameters.

    Raises
    ------
    TypeError, ValueError
        If the inputs are not a tensor of finite numbers, a part is not an ``nn.Module``, there is no block, the blocks
        are not alike, or a block changes the shape of the state.

    Examples
    --------
    >>> from ocp.problem.costs import LeastSquares
    >>> class Block(nn.Linear):
    ...     def forward(self, x):
    ...         return x + torch.tanh(super().forward(x))
    >>> blocks = [Block(4, 4) for _ in range(6)]
    >>> problem = from_blocks(None, blocks, nn.Linear(4, 1), torch.rand(5, 4), LeastSquares(torch.zeros(5, 1)))
    >>> problem.start.path.shape, problem.horizon
    (torch.Size([6, 20]), 6.0)
    """
    like, named = _like(inputs), {f"block {k}": block for k, block in enumerate(blocks)}
    if not named:
        raise ValueError("blocks: expected at least one residual block, got none")
    flats = [FlatModule(block, name=name) for name, block in named.items()]
    _check_ties({"opening": opening, **named, "closing": closing})
    for name, block in named.items():
        if (kind := _kind(block)) != (first := _kind(blocks[0])):
            raise ValueError(
                "blocks: expected one class and equal parameter shapes, "
                f"got {first[1]} as block 0 and {kind[1]} as {name}"
            )
    weights = torch.stack([flat.start().to(**like) for flat in flats])
    _check_blocks(FlatModule(opening or nn.Identity()), flats, weights, inputs)
    dynamics = ModuleDynamics(_WithoutSkip(blocks[0]), "blocks")
    return _assemble(inputs, cost, dynamics, weights, opening, closing, float(len(blocks)), control_cost)


def from_sequential(model: nn.Sequential, inputs: Tensor, cost: Any, control_cost: Any = None) -> ControlProblem:
    """The further training of an ``nn.Sequential`` with a run of residual blocks as a control problem.

    The longest run of consecutive children of one class, with equal parameter shapes and outputs of the shape of their
    inputs, are the blocks of `from_blocks`; the children before and after it are the opening and the closing.

    Raises
    ------
    TypeError, ValueError
        If ``model`` is not an ``nn.Sequential`` with a run of at least two blocks; otherwise as in `from_blocks`.

    Examples
    --------
    >>> from ocp.problem.costs import LeastSquares
    >>> class Block(nn.Linear):
    ...     def forward(self, x):
    ...         return x + torch.relu(super().forward(x))
    >>> blocks = (Block(4, 4) for _ in range(3))
    >>> model = nn.Sequential(nn.Linear(2, 4), nn.Tanh(), *blocks, nn.Linear(4, 1))
    >>> problem = from_sequential(model, torch.rand(5, 2), LeastSquares(torch.zeros(5, 1)))
    >>> problem.start.space.grid.steps, problem.parameter_size
    (3, 17)
    """
    if not isinstance(model, nn.Sequential):
        raise TypeError(f"model: expected an nn.Sequential, got {type(model).__name__}")
    like, children, kinds = _like(inputs), list(model), []
    with torch.no_grad():
        x = inputs[:1]
        for child in children:
            flat = FlatModule(child)
            y = flat(flat.start().to(**like), x)
            kinds.append(_kind(child) if flat.size and y.shape == x.shape else None)
            x = y
    runs = ([k for k, _ in run] for kind, run in groupby(enumerate(kinds), itemgetter(1)) if kind is not None)
    best = max(runs, key=len, default=[])
    if len(best) < 2:
        raise ValueError(
            "model: expected at least 2 consecutive residual blocks of one class with equal parameter shapes "
            "and an output of the shape of their input, got the children "
            f"{', '.join(type(child).__name__ for child in children)}"
        )
    begin, end = best[0], best[-1] + 1
    opening, closing = nn.Sequential(*children[:begin]), nn.Sequential(*children[end:])
    return from_blocks(opening, children[begin:end], closing, inputs, cost, control_cost)


def to_module(
    problem: ControlProblem, solution: Solution | Control, integrator: Integrator | str | None = None
) -> nn.Module:
    """A trained network as a plain torch module, with ordinary weights, independent of this package.

    It predicts what opening, time steps and closing of the problem predict. It is a ``torch.fx.GraphModule`` with the
    children ``opening``, ``blocks``, one for each time step, and, if the cost is a `Readout`, ``closing``. It can be
    trained further, saved with ``torch.save``, and loaded where only torch and the user's own modules are installed.

    Parameters
    ----------
    problem : ControlProblem
        From `residual_network`, `from_blocks` or `from_sequential`.
    solution : Result or Control
        Typically the result of `minimize`; the grid of its control gives the number of blocks.
    integrator : str or Integrator, optional
        The one with which the control was found, an explicit Runge-Kutta scheme. A result knows it; with a `Control`
        alone it is required.

    Raises
    ------
    TypeError, ValueError
        If the problem is not a network, the control belongs to another problem, the integrator is missing, of another
        kind or not that of the result.

    Examples
    --------
    >>> from ocp.problem.costs import LeastSquares
    >>> from ocp.problem.layers import Dense
    >>> problem = residual_network(torch.rand(5, 3), LeastSquares(torch.zeros(5, 4)), Dense(4), nn.Linear(3, 4))
    >>> to_module(problem, problem.start, "euler").blocks
    Module(
      (0): Sequential(
        (0): Linear(in_features=4, out_features=4, bias=True)
        (1): Tanh()
      )
    )
    """
    start = problem.initial_state
    if not isinstance(start, Opening):
        raise TypeError(f"problem: expected a network, whose initial state is an Opening, got {type(start).__name__}")
    dynamics: Any = problem.dynamics.dynamics if isinstance(problem.dynamics, OfPart) else problem.dynamics
    if not isinstance(dynamics, Exportable):
        raise TypeError(
            f"problem: expected a network, whose dynamics have a method to_module(u), got {type(dynamics).__name__}"
        )
    control, scheme = control_and_scheme(solution, integrator)
    if not isinstance(scheme, RungeKutta) or not scheme.tableau.explicit:
        raise TypeError(f"integrator: expected an explicit Runge-Kutta scheme, got {scheme.name}")
    problem.check_space("control", control.space)
    q, last = control.parameters, problem.terminal_cost
    if isinstance(problem.dynamics, OfPart):
        blocks = [dynamics.to_module(problem.dynamics.part(q))] * control.space.grid.steps
    else:
        blocks = [dynamics.to_module(u) for u in control.path]
    network = _Unrolled(
        start.module.with_parameters(q),
        blocks,
        last.module.with_parameters(q) if isinstance(last, Readout) else None,
        scheme,
        control.space.grid.h,
    )
    return _without_ocp(network)


class _WithoutSkip(nn.Module):
    """The right-hand side F of a block x + F(x)."""

    def __init__(self, block: nn.Module):
        super().__init__()
        self.block = block

    def forward(self, x: Tensor) -> Tensor:
        F: Tensor = self.block(x) - x
        return F


class _Unrolled(nn.Module):
    """Opening, one step for each block, closing."""

    def __init__(self, opening: nn.Module, blocks: Any, closing: nn.Module | None, integrator: RungeKutta, h: float):
        super().__init__()
        self.opening, self.blocks, self.closing = opening, nn.ModuleList(blocks), closing
        self.integrator, self.h = integrator, h

    def forward(self, inputs: Tensor) -> Tensor:
        x: Tensor = self.opening(inputs)
        for block in self.blocks:
            equation = SimpleNamespace(dynamics=lambda t, x, u, block=block: block(x), running_cost=None)
            x, _ = self.integrator.step(equation, 0.0, self.h, x, x)  # the control is not used
        if self.closing is not None:
            x = self.closing(x)
        return x


def _without_ocp(network: nn.Module) -> nn.Module:
    """The same network as generated code over modules that are not defined in this package."""

    # Local, since a GraphModule saves a reference to the class of its tracer unless that one is local.
    class Tracer(fx.Tracer):
        def is_leaf_module(self, m: nn.Module, module_qualified_name: str) -> bool:
            return all(type(part).__module__.split(".")[0] != "ocp" for part in m.modules())

    graph = Tracer().trace(network)
    for node in graph.nodes:
        node.type = None  # postponed annotations are strings, which a GraphModule cannot save
    return fx.GraphModule(network, graph)


def _like(inputs: Tensor) -> dict[str, Any]:
    """Type and device of the numbers of a network, from its inputs, which are checked."""
    inputs = data("inputs", inputs)
    dtype = inputs.dtype if inputs.is_floating_point() else torch.get_default_dtype()
    return {"dtype": dtype, "device": inputs.device}


def _kind(block: nn.Module) -> tuple[type, str]:
    """Class, and a description with its name and parameter shapes."""
    shapes = ", ".join(f"{name} {tuple(p.shape)}" for name, p in block.named_parameters())
    return type(block), f"{type(block).__name__} with {shapes}"


@torch.no_grad()
def _check_blocks(opening: FlatModule, blocks: Sequence[FlatModule], weights: Tensor, inputs: Tensor) -> None:
    """Refuse blocks that differ in more than their weights, or that change the shape of the state."""
    x = opening(opening.start().to(weights), inputs[:8])  # a few samples show another buffer or activation
    for k, (block, w) in enumerate(zip(blocks, weights, strict=True)):
        y = block(w, x)
        if y.shape != x.shape:
            raise ValueError(
                f"blocks: expected outputs of the shape of the state {tuple(x.shape)}, got {tuple(y.shape)} "
                f"from block {k}"
            )
        if not torch.allclose(blocks[0](w, x), y, equal_nan=True):
            raise ValueError(
                "blocks: expected blocks that differ in nothing but the parameters that are trained, "
                f"got block {k}, which with equal parameters is another function than block 0"
            )
        x = y


def _check_ties(parts: Mapping[str, nn.Module | None]) -> None:
    """Refuse parts that share parameters: each gets values of its own."""
    owners: dict[int, str] = {}
    for name, part in parts.items():
        for place, p in part.named_parameters() if part is not None else ():
            if p.requires_grad and owners.setdefault(id(p), name) != name:
                raise ValueError(
                    f"{owners[id(p)]}, {name}: expected parameters of their own, got {place} in both; "
                    "copy.deepcopy gives a part of its own"
                )


def _assemble(
    inputs: Tensor,
    cost: Any,
    dynamics: Dynamics,
    weights: Tensor,
    opening: nn.Module | None,
    closing: nn.Module | None,
    horizon: float,
    control_cost: Any,
    shared: bool = False,
) -> ControlProblem:
    """The problem whose start has the given weights, shape (steps, control_size), on as many steps."""
    if not isinstance(cost, TerminalCost):
        raise TypeError(
            "cost: expected CrossEntropy(labels), LeastSquares(target) or another TerminalCost, which has a method "
            f"derivative(x, q), got {type(cost).__name__}"
        )
    first = FlatModule(opening or nn.Identity(), name="opening")
    last = FlatModule(closing or nn.Identity(), first.size, "closing")
    parts = [first.start().to(weights), last.start().to(weights)]
    if shared:
        dynamics, weights, parts = OfPart(dynamics, first.size + last.size), weights[:, :0], [*parts, weights[0]]
    parameters = torch.cat(parts)
    space = ControlSpace(TimeGrid(horizon, len(weights)), dynamics.control_size, len(parameters))
    return ControlProblem(
        dynamics=dynamics,
        initial_state=Opening(first, inputs),
        terminal_cost=Readout(last, cost),
        control_cost=control_cost,
        horizon=horizon,
        parameters=space.parameter_size,
        start=Control(space, space.join(weights, parameters)),
    )
