"""Figures from results. This is the only module that knows matplotlib."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from math import nan
from typing import Any

import numpy as np
from matplotlib import colormaps
from matplotlib.axes import Axes
from matplotlib.colors import LinearSegmentedColormap
from matplotlib.figure import Figure
from matplotlib.lines import Line2D
from matplotlib.ticker import NullFormatter
from torch import Tensor

from ocp.adjoint.trajectory import Trajectory
from ocp.run.results import Record, Result, Target
from ocp.verification.verify import Report

__all__ = ["convergence", "grids", "taylor", "trajectory"]

#: Colors that stay apart in print and for color-blind readers: Wong (2011), "Points of view: color blindness".
COLORS = ("#0072B2", "#D55E00", "#009E73", "#CC79A7", "#E69F00", "#56B4E9")
#: Dashes keep lines apart that lie on each other.
DASHES = ("-", "-", (0, (4, 2)), (0, (1, 1)))

#: Opacity of what happened on coarse grids.
COARSE = 0.45

#: Most components drawn as lines, twice as many as there are colors; those of the second half are dashed.
LINES = 2 * len(COLORS)
#: A component of less than this share of the largest one is hard to see, and is enlarged; below the other it is noise.
SMALL, SMALLEST = 0.05, 1e-6
#: Over samples: the shares below the band, below the line, and below or in the band.
QUANTILES = (0.05, 0.5, 0.95)
#: For numbers of both signs, and for those of one.
SIGNED = LinearSegmentedColormap.from_list("signed", (COLORS[0], "white", COLORS[1]))
UNSIGNED = LinearSegmentedColormap.from_list("unsigned", ("white", COLORS[0], "black"))


def convergence(results: Result | Mapping[str, Result | Sequence[Result]], target: Target | None = None) -> Figure:
    """Objective, and accuracy or the derivative's norm, against work and against seconds.

    Thin lines are single runs, a dot marks the median run's end. Steps on coarse grids are drawn lighter than those on
    the finest one. Objective and accuracy are those of the control prolonged to the finest grid; where a run did not
    watch the finest grid, the objective of its coarse steps is that of their own grid.

    Parameters
    ----------
    results : Result or mapping
        From a label to a result, or to the results of several seeds; a result alone is labeled "run".
    target : Target, optional
        Drawn as a dashed line.

    Returns
    -------
    Figure
        Save it with ``figure.savefig("convergence.png")``.

    Examples
    --------
    >>> convergence({})
    Traceback (most recent call last):
    ValueError: results: expected at least one labeled result, got none
    """
    if isinstance(results, Result):
        results = {"run": results}
    if not isinstance(results, Mapping):
        raise TypeError(f"results: expected a Result, or results by their labels, got {type(results).__name__}")
    lists = {label: _results(label, r) for label, r in results.items()}
    groups = {label: [r for r in group if r.history] for label, group in lists.items()}
    groups = {label: group for label, group in groups.items() if group}
    if not groups:
        raise ValueError("results: expected at least one labeled result, got none")
    has_accuracy = any(rec.validation_accuracy is not None for g in groups.values() for r in g for rec in r.history)
    lower = "validation_accuracy" if has_accuracy else "derivative_norm"
    figure = Figure(figsize=(10, 7), layout="constrained")
    axes = figure.subplots(2, 2, sharex="col", sharey="row")
    for row, quantity in enumerate(("value", lower)):
        for column, abscissa in enumerate(("work_units", "seconds")):
            for number, (label, group) in enumerate(groups.items()):
                look = {"color": COLORS[number % len(COLORS)], "linestyle": DASHES[number % len(DASHES)]}
                _lines(axes[row, column], group, abscissa, quantity, look)
                _end(axes[row, column], group, abscissa, quantity, look, label)
    _dress(axes, lower, target)
    handles, labels = axes[0, 0].get_legend_handles_labels()
    if any(record.level > 0 for group in groups.values() for result in group for record in result.history):
        handles, labels = [*handles, Line2D([], [], color="black", alpha=COARSE)], [*labels, "on coarse grids"]
    axes[0, 0].legend(handles, labels, frameon=False)
    return figure


def _results(label: str, found: Any) -> list[Result]:
    """One result or several, as a list."""
    group = [found] if isinstance(found, Result) or not isinstance(found, Iterable) else list(found)
    wrong = next((r for r in group if not isinstance(r, Result)), None)
    if wrong is not None:
        raise TypeError(f"results: expected a Result or several for {label!r}, got {type(wrong).__name__}")
    return group


def _lines(axis: Axes, group: Sequence[Result], abscissa: str, quantity: str, look: Mapping[str, Any]) -> None:
    """The runs of one label, coarse parts lighter."""
    for result in group:
        for records, fine in _parts(result.history):
            x, y = [getattr(r, abscissa) for r in records], [_ordinate(r, quantity) for r in records]
            axis.plot(x, y, linewidth=1.4 if fine else 1.0, alpha=0.9 if fine else COARSE, **look)


def _end(
    axis: Axes, group: Sequence[Result], abscissa: str, quantity: str, look: Mapping[str, Any], label: str
) -> None:
    """A dot where the run with the median work ends."""
    ends = sorted(group, key=lambda r: r.history[-1].work_units)
    end = ends[len(ends) // 2].history[-1]
    axis.plot(getattr(end, abscissa), _ordinate(end, quantity), marker="o", markersize=5, label=label, **look)


def _ordinate(record: Record, quantity: str) -> float:
    """What is drawn of a record; of the objective, the value on the finest grid where it is known."""
    if quantity == "value" and record.finest_value is not None:
        return record.finest_value
    value = getattr(record, quantity)
    return float("nan") if value is None else value


def _parts(history: Sequence[Record]) -> list[tuple[list[Record], bool]]:
    """The history in a coarse and a fine part that share their boundary."""
    first = next((i for i, record in enumerate(history) if record.level == 0), len(history))
    parts = [(list(history[: first + 1]), False), (list(history[first:]), True)]
    return [(records, fine) for records, fine in parts if records]


def _dress(axes: Sequence[Sequence[Axes]], lower: str, target: Target | None) -> None:
    """Scales, labels and the target."""
    titles = {
        "value": "objective",
        "validation_accuracy": "validation accuracy",
        "derivative_norm": "dual norm of the derivative",
    }
    goal = {"accuracy": "validation_accuracy", "value": "value"}[target.quantity] if target else None
    for row, quantity in zip(axes, ("value", lower), strict=True):
        row[0].set_ylabel(titles[quantity])
        for axis in row:
            if quantity != "validation_accuracy" and axis.dataLim.y1 > 10 * axis.dataLim.y0 > 0:
                axis.set_yscale("log")
            if axis.dataLim.x1 > 10 * axis.dataLim.minposx:
                axis.set_xscale("log", nonpositive="mask")
                axis.xaxis.set_minor_formatter(NullFormatter())
            if target is not None and goal == quantity:
                axis.axhline(target.threshold, color="black", linewidth=0.8, linestyle="--")
            axis.grid(alpha=0.25)
            axis.spines[["top", "right"]].set_visible(False)
    axes[1][0].set_xlabel("work units (gradients on the finest grid, all samples)")
    axes[1][1].set_xlabel("seconds")


def grids(result: Result) -> Figure:
    """What the grids did in one run, against work.

    On top the objective, colored by the grid that was worked on. In the middle the grids: a bar where one was worked
    on, thinner ones below for what cycles asked of coarser grids, blue where the correction was taken and red where it
    was refused. At the bottom, for each correction, the share of it that was taken, what the objective gained by what
    the coarse model expected, and the mismatch that the model had to be corrected for, |tau| by the size of the
    restricted derivative; all three are cut at 2.

    Parameters
    ----------
    result : Result
        With a history.

    Raises
    ------
    ValueError
        If it has none.
    """
    if not isinstance(result, Result):
        raise TypeError(f"result: expected a Result, got {type(result).__name__}")
    if not result.history:
        raise ValueError("result: expected one with a history, got none")
    figure = Figure(figsize=(10, 8), layout="constrained")
    top, middle, bottom = figure.subplots(3, 1, sharex=True, height_ratios=(3, 2, 2))
    steps = sorted({r.steps for r in result.history} | {n for v in result.visits for n in (v.steps, v.coarse)})
    height = {n: k for k, n in enumerate(steps)}
    shades = colormaps["viridis"](np.linspace(0.9, 0.1, len(steps)))  # the finest grid is the darkest
    for stay in _stays(result.history):
        n = stay[-1].steps
        color = shades[height[n]]
        work = [r.work_units for r in stay]
        top.plot(
            work, [_ordinate(r, "value") for r in stay], color=color, linewidth=1.4, label=f"{n} step{'s' * (n > 1)}"
        )
        middle.barh(height[n], work[-1] - work[0], left=work[0], height=0.7, color=color)
    for visit in result.visits:
        color = COLORS[5] if visit.step else COLORS[1]
        middle.barh(height[visit.coarse], visit.end - visit.begin, left=visit.begin, height=0.35, color=color)
    _diagnose(bottom, result)
    if top.dataLim.y1 > 10 * top.dataLim.y0 > 0:
        top.set_yscale("log")
    top.set_ylabel("objective")
    top.legend(frameon=False, fontsize="small")
    middle.set_yticks(range(len(steps)), [str(n) for n in steps])
    middle.set_ylabel("steps of the grid")
    bottom.set_xlabel("work units (gradients on the finest grid, all samples)")
    for axis in (top, middle, bottom):
        axis.grid(alpha=0.25)
        axis.spines[["top", "right"]].set_visible(False)
    return figure


def _stays(history: Sequence[Record]) -> list[list[Record]]:
    """The history by grids; each part begins where the one before ended."""
    stays = [[history[0]]]
    for record in history:
        if record.steps == stays[-1][-1].steps:
            stays[-1].append(record)
        else:
            stays.append([replace(record, work_units=stays[-1][-1].work_units), record])
    return stays


def _diagnose(axis: Axes, result: Result) -> None:
    """Share, success and mismatch of each correction of a run."""
    work = [visit.end for visit in result.visits]
    for name, marker, color, values in (
        ("share taken", "o", COLORS[0], [v.step for v in result.visits]),
        (
            "gained / expected",
            "v",
            COLORS[2],
            [v.decrease / v.expected if v.expected > 0 else nan for v in result.visits],
        ),
        ("mismatch", "_", COLORS[1], [v.mismatch for v in result.visits]),
    ):
        axis.plot(work, np.clip(values, -0.1, 2.0), marker, color=color, label=name, markersize=5)
    axis.set_ylim(-0.15, 2.05)
    axis.set_ylabel("corrections")
    if result.visits:
        axis.legend(frameon=False, fontsize="small", ncols=3)
    else:
        axis.text(0.5, 0.5, "no corrections were asked for", transform=axis.transAxes, ha="center")


def trajectory(trajectory: Trajectory, names: Mapping[str, Sequence[str]] | None = None) -> Figure:
    """States, control and costates against time; where there are bounds, these and the gradient, too.

    Up to 12 components are lines, more are an image. Of several samples the median is drawn with a band that holds 90 %
    of them, for each component, or for all together where there are more than 6. A component too small to be seen
    next to the others is multiplied by a power of ten, which the legend states.

    Parameters
    ----------
    trajectory : Trajectory
    names : mapping, optional
        Names of the components: of the state, and so of the costate, under ``"x"``, of the control under ``"u"``.

    Returns
    -------
    Figure

    Raises
    ------
    ValueError
        If there is not one name for each component.

    Examples
    --------
    >>> import torch
    >>> from ocp import ControlProblem, discretize
    >>> x = torch.ones(1, 2)
    >>> problem = ControlProblem(lambda t, x, u: u - x, x, lambda x: x.square().sum(), control_size=2)
    >>> figure = trajectory(discretize(problem, steps=4).trajectory(torch.zeros(8)), {"x": ("left", "right")})
    >>> [axis.get_ylabel() for axis in figure.axes]
    ['state', 'control', 'costate']
    """
    panels = _panels(trajectory, names or {})
    figure = Figure(figsize=(8, 0.6 + 2.2 * len(panels)), layout="constrained")
    axes = figure.subplots(len(panels), sharex=True)
    t = trajectory.t.cpu().numpy()
    for axis, panel in zip(axes, panels, strict=True):
        samples, components = panel.values.shape[1:]
        axis.set_ylabel(panel.title)
        axis.spines[["top", "right"]].set_visible(False)
        if samples == 1 and components > LINES:
            _image(axis, t, panel)
        else:
            _curves(axis, t, panel if samples == 1 or components <= len(COLORS) else panel.together())
    axes[-1].set_xlabel("time")
    axes[-1].set_xlim(t[0], t[-1])
    figure.align_ylabels()
    return figure


@dataclass(frozen=True, eq=False)
class _Panel:
    """A quantity at all nodes, shape (N + 1, samples, components), with bounds of shape (N + 1, components).

    What is ``held`` on a step stands at the node where the step begins, and the last once more at the end.
    """

    title: str
    values: np.ndarray
    labels: Sequence[str]
    held: bool = False
    bounds: tuple[np.ndarray, ...] = ()

    def together(self) -> _Panel:
        """The numbers of all components as samples of one."""
        return replace(self, values=self.values.reshape(len(self.values), -1, 1), labels=["all components"])


def _panels(trajectory: Trajectory, names: Mapping[str, Sequence[str]]) -> list[_Panel]:
    """What there is to draw, from top to bottom."""
    if not isinstance(trajectory, Trajectory):
        raise TypeError(
            f"trajectory: expected a Trajectory, such as result.trajectory(problem), got {type(trajectory).__name__}"
        )
    if not set(names) <= {"x", "u"}:
        raise ValueError(f"names: expected names for x and u, got names for {', '.join(names)}")
    x, p = (values.flatten(2).cpu().numpy() for values in (trajectory.x, trajectory.p))
    u, gradient = (_at_nodes(values)[:, None] for values in (trajectory.u, trajectory.gradient))
    bounds = tuple(_at_nodes(bound) for bound in (trajectory.lower, trajectory.upper) if bound is not None)
    panels = [
        _Panel("state", x, _labels("x", x, names.get("x"))),
        _Panel("control", u, _labels("u", u, names.get("u")), True, bounds),
        _Panel("costate", p, _labels("p", p, names.get("x"))),
    ]
    return [*panels, _Panel("gradient", gradient, _labels("g", gradient, names.get("u")), True)] if bounds else panels


def _at_nodes(held: Tensor) -> np.ndarray:
    values = held.cpu().numpy()
    return np.concatenate((values, values[-1:]))


def _labels(symbol: str, values: np.ndarray, names: Sequence[str] | None) -> Sequence[str]:
    size = values.shape[-1]
    if names is None:
        return [f"${symbol}_{{{i + 1}}}$" for i in range(size)] if size > 1 else [f"${symbol}$"]
    if isinstance(names, str) or len(names) != size:
        raise ValueError(f"names: expected a sequence of {size}, one for each component, got {names!r}")
    return names


def _curves(axis: Axes, t: np.ndarray, panel: _Panel) -> None:
    """A line for each component, and over several samples a band."""
    held: dict[str, Any] = {"drawstyle": "steps-post"} if panel.held else {}
    exponents = _exponents(panel.values)
    for i, (label, exponent) in enumerate(zip(panel.labels, exponents, strict=True)):
        color, dash = COLORS[i % len(COLORS)], DASHES[2 * (i // len(COLORS))]
        label = rf"{label} $\times\,10^{{{exponent}}}$" if exponent else label
        with np.errstate(invalid="ignore"):  # what is not finite leaves a gap
            low, middle, high = np.quantile(10.0**exponent * panel.values[:, :, i], QUANTILES, axis=1)
        axis.plot(t, middle, color=color, linestyle=dash, linewidth=1.4, label=label, **held)
        if panel.values.shape[1] > 1:
            axis.fill_between(t, low, high, color=color, alpha=0.15, linewidth=0)
    _bounds(axis, t, [10.0**exponents * bound for bound in panel.bounds], held)
    axis.grid(alpha=0.25)
    samples = panel.values.shape[1]
    title = f"median, 90 %\nof {samples} numbers" if samples > 1 else None
    axis.legend(loc="center left", bbox_to_anchor=(1, 0.5), frameon=False, title=title, ncols=1 + (len(exponents) > 6))


def _bounds(axis: Axes, t: np.ndarray, bounds: Sequence[np.ndarray], style: Mapping[str, Any]) -> None:
    """Bounds as dashed lines; those far away are left outside, so that the control stays visible."""
    low, high = axis.get_ylim()
    reach = 2 * max(abs(low), abs(high))
    for number, bound in enumerate(bounds):
        for i, column in enumerate(np.where(np.isfinite(bound), bound, np.nan).T):
            label = None if number + i else "bounds"
            axis.plot(t, column, color=COLORS[i % len(COLORS)], linewidth=1.0, linestyle="--", label=label, **style)
    if bounds:
        axis.set_ylim(max(axis.get_ylim()[0], low - reach), min(axis.get_ylim()[1], high + reach))


def _exponents(values: np.ndarray) -> np.ndarray:
    """The power of ten for each component that makes it as large as the largest one; zero where it can be seen."""
    sizes = np.abs(np.where(np.isfinite(values), values, 0.0)).max(axis=(0, 1))
    shares = sizes / max(sizes.max(), np.finfo(values.dtype).tiny)
    small = (shares > SMALLEST) & (shares < SMALL)
    return np.where(small, -np.ceil(np.log10(np.where(small, shares, 1.0))), 0.0).astype(int)


def _image(axis: Axes, t: np.ndarray, panel: _Panel) -> None:
    """Components against time; white is zero where there are both signs."""
    edges = t if panel.held else np.concatenate((t[:1], (t[1:] + t[:-1]) / 2, t[-1:]))
    values = panel.values[: len(edges) - 1, 0].T
    finite = values[np.isfinite(values)]
    low, high = (float(finite.min()), float(finite.max())) if finite.size else (0.0, 1.0)
    signed, size = low < 0 < high, max(-low, high)
    mesh = axis.pcolormesh(
        edges,
        np.arange(len(values) + 1) + 0.5,
        np.ma.masked_invalid(values),
        cmap=SIGNED if signed else UNSIGNED,
        vmin=-size if signed else low,
        vmax=size if signed else high,
        rasterized=True,
    )
    axis.figure.colorbar(mesh, cax=axis.inset_axes((1.02, 0, 0.02, 1)))
    axis.set_ylabel(f"{panel.title}, by component")


def taylor(report: Report) -> Figure:
    """Remainders of the Taylor test against the step length, with lines of slope one and two, and three where known.

    Parameters
    ----------
    report : Report

    Returns
    -------
    Figure
    """
    if not isinstance(report, Report):
        raise TypeError(f"report: expected that of ocp.verify(objective), got {type(report).__name__}")
    figure = Figure(figsize=(6, 4.5), layout="constrained")
    axis = figure.subplots()
    test = report.taylor
    lines = [(test.first, 1, COLORS[0], "value alone"), (test.second, 2, COLORS[1], "with the derivative")]
    if test.third is not None:
        lines.append((test.third, 3, COLORS[2], "with the Hessian"))
    for remainders, order, color, label in lines:
        axis.loglog(test.steps, remainders, "o-", color=color, markersize=4, label=label)
        guide = [remainders[0] * (e / test.steps[0]) ** order for e in test.steps]
        guide = [r if r > test.noise else nan for r in guide]
        axis.loglog(test.steps, guide, color=color, linewidth=0.8, linestyle="--", label=f"slope {order}")
    axis.axhspan(axis.get_ylim()[0], test.noise, color="0.9", label="rounding errors")
    axis.set_xlabel("step length")
    axis.set_ylabel("remainder")
    axis.spines[["top", "right"]].set_visible(False)
    axis.legend(frameon=False)
    return figure
