"""Figures from results. This is the only module that knows matplotlib."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.lines import Line2D
from matplotlib.ticker import NullFormatter

from ocp.result import Record, Result, Target
from ocp.verify import Report

__all__ = ["convergence", "taylor"]

#: Colors that stay apart in print and for color-blind readers: Wong (2011), "Points of view: color blindness".
COLORS = ("#0072B2", "#D55E00", "#009E73", "#CC79A7", "#E69F00", "#56B4E9")
#: Dashes keep lines apart that lie on each other.
DASHES = ("-", "-", (0, (4, 2)), (0, (1, 1)))

#: Opacity of what happened on coarse grids.
COARSE = 0.45


def convergence(results: Mapping[str, Result | Sequence[Result]], target: Target | None = None) -> Figure:
    """Objective, and accuracy or the derivative's norm, against work and against seconds.

    Thin lines are single runs, a dot marks the median run's end. Steps on coarse grids are drawn lighter than those on
    the finest one. Objective and accuracy are those of the control prolonged to the finest grid; where a run did not
    watch the finest grid, the objective of its coarse steps is that of their own grid.

    Parameters
    ----------
    results : mapping
        From a label to a result, or to the results of several seeds.
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
    lists = {label: [r] if isinstance(r, Result) else list(r) for label, r in results.items()}
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


def taylor(report: Report) -> Figure:
    """Remainders of the Taylor test against the step length, with lines of slope one and two.

    Parameters
    ----------
    report : Report

    Returns
    -------
    Figure
    """
    figure = Figure(figsize=(6, 4.5), layout="constrained")
    axis = figure.subplots()
    test = report.taylor
    for remainders, order, color, label in (
        (test.first, 1, COLORS[0], "value alone"),
        (test.second, 2, COLORS[1], "with the derivative"),
    ):
        axis.loglog(test.steps, remainders, "o-", color=color, markersize=4, label=label)
        guide = [remainders[0] * (e / test.steps[0]) ** order for e in test.steps]
        axis.loglog(test.steps, guide, color=color, linewidth=0.8, linestyle="--", label=f"slope {order}")
    axis.axhspan(axis.get_ylim()[0], test.noise, color="0.9", label="rounding errors")
    axis.set_xlabel("step length")
    axis.set_ylabel("remainder")
    axis.spines[["top", "right"]].set_visible(False)
    axis.legend(frameon=False)
    return figure
