"""Figures from results. This is the only module that knows matplotlib."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from itertools import cycle, groupby, product
from math import nan
from typing import Any

import numpy as np
import torch
from matplotlib import colormaps
from matplotlib.axes import Axes
from matplotlib.colors import LinearSegmentedColormap
from matplotlib.figure import Figure
from matplotlib.lines import Line2D
from matplotlib.ticker import NullFormatter
from torch import Tensor

from ocp.adjoint.trajectory import Trajectory
from ocp.run.fit import Fit
from ocp.run.results import Record, Result, Target
from ocp.verification.verify import Report

__all__ = ["convergence", "grids", "residuals", "taylor", "trajectory"]

#: Colors that stay apart in print and for color-blind readers: Wong (2011), "Points of view: color blindness".
COLORS = ("#0072B2", "#D55E00", "#009E73", "#CC79A7", "#E69F00", "#56B4E9")
#: Dashes keep lines apart that lie on each other.
DASHES = ("-", "-", (0, (4, 2)), (0, (1, 1)))

#: Opacity of what happened on coarse grids.
COARSE = 0.45

#: At most this many components are drawn as lines, twice as many as there are colors; the second half is dashed.
LINES = 2 * len(COLORS)
#: Shares of the largest component. One below the first is hard to see, and is enlarged; one below the second is noise.
SMALL, SMALLEST = 0.05, 1e-6
#: Of the samples: the lower end of the band, the line, the upper end of the band.
QUANTILES = (0.05, 0.5, 0.95)
#: For numbers of both signs, and for those of one.
SIGNED = LinearSegmentedColormap.from_list("signed", (COLORS[0], "white", COLORS[1]))
UNSIGNED = LinearSegmentedColormap.from_list("unsigned", ("white", COLORS[0], "black"))

#: Fields of records as they are named on axes.
LABELS = {
    "value": "objective",
    "validation_accuracy": "validation accuracy",
    "derivative_norm": "dual norm of the derivative",
    "work_units": "work units (gradients on the finest grid, all samples)",
    "seconds": "seconds",
}


def convergence(results: Result | Mapping[str, Result | Sequence[Result]], target: Target | None = None) -> Figure:
    """Objective, and accuracy or the derivative's norm, against work and against seconds.

    Thin lines are single runs; a dot marks the end of the run with the median work. Steps on coarse grids are drawn
    lighter than those on the finest one. Objective and accuracy are those of the control prolonged to the finest grid;
    where a run did not watch the finest grid, the objective of its coarse steps is that of their own grid. To write an
    image, call ``savefig("convergence.png")`` on the figure.

    Parameters
    ----------
    results : Result or mapping
        From a label to a result, or to the results of several seeds, all of one problem; a result alone is labeled
        "run".
    target : Target, optional
        Drawn as a dashed line.

    Examples
    --------
    >>> convergence({})
    Traceback (most recent call last):
    ValueError: results: expected at least one labeled result, got none
    """
    groups = _groups(results)
    records = [record for group in groups.values() for result in group for record in result.history]
    lower = "derivative_norm" if all(r.validation_accuracy is None for r in records) else "validation_accuracy"
    figure, axes = _figure((10, 7), 2, 2, sharex="col", sharey="row")
    for axis, (quantity, abscissa) in zip(axes.flat, product(("value", lower), ("work_units", "seconds")), strict=True):
        for number, (label, group) in enumerate(groups.items()):
            look = {"color": COLORS[number % len(COLORS)], "linestyle": DASHES[number % len(DASHES)]}
            _runs(axis, group, abscissa, quantity, label, look)
        if quantity != "validation_accuracy":
            _logarithmic(axis)
        if axis.dataLim.x1 > 10 * axis.dataLim.minposx:
            axis.set_xscale("log", nonpositive="mask")
            axis.xaxis.set_minor_formatter(NullFormatter())
        if target is not None and quantity.endswith(target.quantity):  # the accuracy is that of validation
            axis.axhline(target.threshold, color="black", linewidth=0.8, linestyle="--")
        axis.set(xlabel=LABELS[abscissa], ylabel=LABELS[quantity])
        axis.label_outer()
    handles, labels = axes[0, 0].get_legend_handles_labels()
    if any(record.level > 0 for record in records):
        handles, labels = [*handles, Line2D([], [], color="black", alpha=COARSE)], [*labels, "on coarse grids"]
    axes[0, 0].legend(handles, labels, frameon=False)
    return figure


def _groups(results: Any) -> dict[str, list[Result]]:
    """The results of each label, without those that have no history."""
    if isinstance(results, Result):
        results = {"run": results}
    if not isinstance(results, Mapping):
        raise TypeError(f"results: expected a Result, or results by their labels, got {type(results).__name__}")
    groups = {}
    for label, found in results.items():
        group = list(found) if isinstance(found, Iterable) else [found]
        for result in group:
            if not isinstance(result, Result):
                raise TypeError(f"results: expected a Result or several for {label!r}, got {type(result).__name__}")
        if any(result.history for result in group):
            groups[label] = [result for result in group if result.history]
    if not groups:
        raise ValueError("results: expected at least one labeled result, got none")
    problems = {_problem(result): label for label, group in groups.items() for result in group if _problem(result)}
    if len(problems) > 1:
        got = " and ".join(f"{problem} ({label})" for problem, label in problems.items())
        raise ValueError(f"results: expected those of one problem, got {got}")
    return groups


def _problem(result: Result) -> str:
    """The problem and its settings as far as the result names them."""
    name, options = result.about.get("problem", ""), result.about.get("options")
    return ", ".join((name, *options.get("sets", ()))) if isinstance(options, Mapping) else name


def _figure(size: tuple[float, float], rows: int, columns: int = 1, **options: Any) -> tuple[Figure, np.ndarray]:
    """A figure, and its axes as an array of shape (rows, columns)."""
    figure = Figure(figsize=size, layout="constrained")
    axes = figure.subplots(rows, columns, squeeze=False, **options)
    for axis in axes.flat:
        axis.grid(alpha=0.25)
        axis.spines[["top", "right"]].set_visible(False)
    return figure, axes


def _logarithmic(axis: Axes) -> None:
    """A logarithmic ordinate, if all numbers are positive and span more than a decade."""
    if axis.dataLim.y1 > 10 * axis.dataLim.y0 > 0:
        axis.set_yscale("log")


def _runs(
    axis: Axes, group: Sequence[Result], abscissa: str, quantity: str, label: str, look: Mapping[str, Any]
) -> None:
    """The runs of one label, coarse parts lighter, and a dot where the run with the median work ends."""
    for history in (result.history for result in group):
        x, y = _series(history, abscissa), _series(history, quantity)
        fine = next((k for k, record in enumerate(history) if record.level == 0), len(history))
        axis.plot(x[: fine + 1], y[: fine + 1], linewidth=1.0, alpha=COARSE, **look)
        axis.plot(x[fine:], y[fine:], linewidth=1.4, alpha=0.9, **look)
    end = sorted((result.history for result in group), key=lambda h: h[-1].work_units)[len(group) // 2][-1:]
    axis.plot(_series(end, abscissa), _series(end, quantity), marker="o", markersize=5, label=label, **look)


def _series(records: Sequence[Record], name: str) -> np.ndarray:
    """A field of records as numbers; of the objective, the value on the finest grid if it is known."""
    if name == "value":
        return np.array([r.value if r.finest_value is None else r.finest_value for r in records])
    return np.array([getattr(record, name) for record in records], dtype=float)  # None becomes nan


def grids(result: Result) -> Figure:
    """What the grids did in one run, against work.

    On top the objective, colored by the grid that was worked on. In the middle the grids: a thick bar where one was
    worked on, thin bars for the visits of cycles to coarser grids, blue where the correction was taken and orange where
    it was refused. At the bottom, for each correction, the share of it that was taken, the objective's decrease divided
    by the one that the coarse model expected, and the mismatch that the model had to be corrected for: |tau| divided by
    the size of the restricted derivative. All three are cut at 2. A result without history raises a `ValueError`.
    """
    if not isinstance(result, Result):
        raise TypeError(f"result: expected a Result, got {type(result).__name__}")
    if not result.history:
        raise ValueError("result: expected one with a history, got none")
    figure, axes = _figure((10, 8), 3, sharex=True, height_ratios=(3, 2, 2))
    top, middle, bottom = axes.flat
    steps = sorted({r.steps for r in result.history} | {n for v in result.visits for n in (v.steps, v.coarse)})
    shades = colormaps["viridis"](np.linspace(0.9, 0.1, len(steps)))  # the finest grid is the darkest
    begin = result.history[0].work_units
    for n, stay in groupby(result.history, key=lambda record: record.steps):
        records = tuple(stay)
        color, work, values = shades[steps.index(n)], _series(records, "work_units"), _series(records, "value")
        top.plot((begin, *work), (values[0], *values), color=color, linewidth=1.4, label=f"{n} step{'s' * (n > 1)}")
        middle.barh(steps.index(n), work[-1] - begin, left=begin, height=0.7, color=color)
        begin = work[-1]
    for visit in result.visits:
        color = COLORS[5] if visit.step else COLORS[1]
        middle.barh(steps.index(visit.coarse), visit.end - visit.begin, left=visit.begin, height=0.35, color=color)
    end = [visit.end for visit in result.visits]
    gained = [v.decrease / v.expected if v.expected > 0 else nan for v in result.visits]
    for name, marker, color, numbers in (
        ("share taken", "o", COLORS[0], [v.step for v in result.visits]),
        ("gained / expected", "v", COLORS[2], gained),
        ("mismatch", "x", COLORS[1], [v.mismatch for v in result.visits]),
    ):
        bottom.plot(end, np.clip(numbers, -0.1, 2.0), marker, color=color, fillstyle="none", label=name, markersize=6)
    if result.visits:
        bottom.legend(frameon=False, fontsize="small", ncols=3)
    else:
        bottom.text(0.5, 0.5, "no corrections were asked for", transform=bottom.transAxes, ha="center")
    _logarithmic(top)
    top.set_ylabel(LABELS["value"])
    top.legend(frameon=False, fontsize="small")
    middle.set_yticks(range(len(steps)), [str(n) for n in steps])
    middle.set_ylabel("steps of the grid")
    bottom.set(ylim=(-0.15, 2.1), xlabel=LABELS["work_units"], ylabel="corrections")
    return figure


def trajectory(trajectory: Trajectory) -> Figure:
    """States, control and costates against time; if there are bounds, these and the gradient, too.

    Up to 12 components are lines; more are an image. Of several samples the median is drawn, with a band that holds
    90 % of them, for each component, or for all together if there are more than 6. A component too small to be seen
    next to the others is multiplied by a power of ten, which the legend states.

    Parameters
    ----------
    trajectory : Trajectory
        Its ``names`` are those of the problem.

    Examples
    --------
    >>> import torch
    >>> from ocp import ControlProblem, discretize
    >>> x = torch.ones(1, 2)
    >>> problem = ControlProblem(
    ...     lambda t, x, u: u - x, x, lambda x: x.square().sum(), control_size=2, names={"x": ("left", "right")}
    ... )
    >>> figure = trajectory(discretize(problem, steps=4).trajectory(torch.zeros(8)))
    >>> [axis.get_ylabel() for axis in figure.axes]
    ['state', 'control', 'costate']
    """
    if not isinstance(trajectory, Trajectory):
        kind = type(trajectory).__name__
        raise TypeError(f"trajectory: expected a Trajectory, such as result.trajectory(problem), got {kind}")
    t, x, p = (values.cpu().numpy() for values in (trajectory.t, trajectory.x.flatten(2), trajectory.p.flatten(2)))
    u, gradient = (_at_nodes(held)[:, None] for held in (trajectory.u, trajectory.gradient))
    bounds = [_at_nodes(bound) for bound in (trajectory.lower, trajectory.upper) if bound is not None]
    panels = [("state", "x", x), ("control", "u", u), ("costate", "p", p), ("gradient", "g", gradient)]
    panels = [panel for panel in (panels if bounds else panels[:-1]) if panel[2].shape[2]]  # there may be no control
    figure, axes = _figure((8, 0.6 + 2.2 * len(panels)), len(panels), sharex=True)
    for axis, (title, symbol, values) in zip(axes.flat, panels, strict=True):
        samples, components = values.shape[1:]
        held = symbol in "ug"
        labels = _labels(symbol, components, trajectory.names.get("u" if held else "x"))
        axis.set_ylabel(title)
        if samples == 1 and components > LINES:
            _image(axis, t, values, held)
            continue
        if samples > 1 and components > len(COLORS):
            values, labels = values.reshape(len(t), -1, 1), ["all components"]
        _curves(axis, t, values, labels, held, bounds if title == "control" else ())
    axis.set(xlabel="time", xlim=(t[0], t[-1]))
    figure.align_ylabels()
    return figure


def _at_nodes(held: Tensor) -> np.ndarray:
    """What is held on steps, at the nodes where they begin, and the last once more at the end."""
    return torch.cat((held, held[-1:])).cpu().numpy()


def _labels(symbol: str, size: int, names: Sequence[str] | None) -> Sequence[str]:
    if not names:
        return [f"${symbol}_{{{i + 1}}}$" for i in range(size)] if size > 1 else [f"${symbol}$"]
    return names


def _curves(
    axis: Axes, t: np.ndarray, values: np.ndarray, labels: Sequence[str], held: bool, bounds: Sequence[np.ndarray]
) -> None:
    """A line for each component, a band if there are several samples, and bounds as dashed lines."""
    samples, exponents = values.shape[1], _exponents(values)
    style: dict[str, Any] = {"drawstyle": "steps-post"} if held else {}
    for i, (label, exponent) in enumerate(zip(labels, exponents, strict=True)):
        color, dash = COLORS[i % len(COLORS)], DASHES[2 * (i // len(COLORS))]
        label = rf"{label} $\times\,10^{{{exponent}}}$" if exponent else label
        with np.errstate(invalid="ignore"):  # what is not finite leaves a gap
            low, middle, high = np.quantile(10.0**exponent * values[:, :, i], QUANTILES, axis=1)
        axis.plot(t, middle, color=color, linestyle=dash, linewidth=1.4, label=label, **style)
        if samples > 1:
            axis.fill_between(t, low, high, color=color, alpha=0.15, linewidth=0)
    if bounds:
        low, high = axis.get_ylim()
        for bound in bounds:
            finite = np.where(np.isfinite(bound), 10.0**exponents * bound, nan)
            for color, column in zip(cycle(COLORS), finite.T, strict=False):
                axis.plot(t, column, color=color, linewidth=1.0, linestyle="--", **style)
        axis.get_lines()[len(labels)].set_label("bounds")
        # Bounds far away are left outside, so that the control stays visible.
        reach = 2 * max(abs(low), abs(high))
        axis.set_ylim(max(axis.get_ylim()[0], low - reach), min(axis.get_ylim()[1], high + reach))
    title = f"median, 90 %\nof {samples} numbers" if samples > 1 else None
    axis.legend(loc="center left", bbox_to_anchor=(1, 0.5), frameon=False, title=title, ncols=1 + (len(labels) > 6))


def _exponents(values: np.ndarray) -> np.ndarray:
    """The power of ten for each component that makes it as large as the largest one; zero where it can be seen."""
    sizes = np.abs(np.where(np.isfinite(values), values, 0.0)).max(axis=(0, 1))
    shares = sizes / max(sizes.max(), np.finfo(values.dtype).tiny)
    small = (shares > SMALLEST) & (shares < SMALL)
    return np.where(small, -np.ceil(np.log10(np.where(small, shares, 1.0))), 0.0).astype(int)


def _image(axis: Axes, t: np.ndarray, values: np.ndarray, held: bool) -> None:
    """Components against time; white is zero where there are both signs."""
    edges = t if held else np.concatenate((t[:1], (t[1:] + t[:-1]) / 2, t[-1:]))
    values = np.ma.masked_invalid(values[: len(edges) - 1, 0].T)
    low, high = (values.min(), values.max()) if values.count() else (0.0, 1.0)
    colors = UNSIGNED
    if low < 0 < high:
        colors, low, high = SIGNED, min(low, -high), max(-low, high)
    rows = np.arange(len(values) + 1) + 0.5
    mesh = axis.pcolormesh(edges, rows, values, cmap=colors, vmin=low, vmax=high, rasterized=True)
    axis.figure.colorbar(mesh, cax=axis.inset_axes((1.02, 0, 0.02, 1)))
    axis.set_ylabel(f"{axis.get_ylabel()}, by component")
    axis.grid(False)


def residuals(fit: Fit) -> Figure:
    """A fit: data and what is observed of the fitted trajectory on top, residuals in standard deviations below.

    A color for each number that is observed at a time, for all samples alike. The band holds 95 % of normal noise.
    """
    if not isinstance(fit, Fit):
        raise TypeError(f"fit: expected a Fit, as from ocp.fit(problem, steps), got {type(fit).__name__}")
    figure, axes = _figure((8, 5.5), 2, sharex=True, height_ratios=(3, 2))
    (top, bottom), measurements = axes.flat, fit.measurements
    t, curves, left = fit.trajectory.t.cpu().numpy(), fit.fitted.cpu().numpy(), fit.residuals.cpu()
    values = measurements.values.to(left).expand(left.shape).numpy()
    times = np.broadcast_to(measurements.times.cpu().numpy(), left.shape[:2])
    scaled = (left * (measurements.weights.to(left) / fit.variance).sqrt()).numpy()
    for i in range(left.shape[2]):
        color, label = COLORS[i % len(COLORS)], f"$y_{{{i + 1}}}$" if left.shape[2] > 1 else "$y$"
        top.plot(t, curves[:, :, i], color=color, linewidth=1.2, alpha=0.8)
        top.plot(times.ravel(), values[:, :, i].ravel(), "o", color=color, markersize=4, fillstyle="none", label=label)
        bottom.plot(times.ravel(), scaled[:, :, i].ravel(), "o", color=color, markersize=4, fillstyle="none")
    bottom.axhspan(-1.96, 1.96, color="0.9", zorder=0)
    bottom.axhline(0.0, color="black", linewidth=0.8)
    bottom.set(xlabel="time", xlim=(t[0], t[-1]), ylabel="residual / std. deviation")
    top.set_ylabel("observed")
    top.legend(loc="center left", bbox_to_anchor=(1, 0.5), frameon=False)
    return figure


def taylor(report: Report) -> Figure:
    """Remainders of the Taylor test against the step length, with lines of slope one and two, and three where known."""
    if not isinstance(report, Report):
        raise TypeError(f"report: expected that of ocp.verify(objective), got {type(report).__name__}")
    figure, axes = _figure((8, 4.5), 1)
    axis, test = axes[0, 0], report.taylor
    lines = ((test.first, "value alone"), (test.second, "with the derivative"), (test.third, "with the Hessian"))
    for order, (remainders, label) in enumerate(lines, start=1):
        if remainders is not None:
            color = COLORS[order - 1]
            axis.loglog(test.steps, remainders, "o-", color=color, markersize=4, label=label)
            guide = remainders[0] * (np.array(test.steps) / test.steps[0]) ** order
            guide[guide <= test.noise] = nan
            axis.loglog(test.steps, guide, color=color, linewidth=0.8, linestyle="--", label=f"slope {order}")
    axis.axhspan(axis.get_ylim()[0], test.noise, color="0.9", label="rounding errors")
    axis.set(xlabel="step length", ylabel="remainder")
    axis.legend(loc="center left", bbox_to_anchor=(1, 0.5), frameon=False)
    return figure
