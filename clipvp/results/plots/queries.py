"""A picture of accuracies by the queries to the source."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any

from ..tables import EPOCH_COLUMNS, QUERIES_NAME
from .base import BLUE, GREEN, ORANGE, PURPLE, SKY, VERMILION, YELLOW, finite, new_figure, shorten, title

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

_COLOURS = (BLUE, VERMILION, GREEN, ORANGE, PURPLE, SKY, YELLOW)


def plot_queries(
    runs: Mapping[str, Sequence[Mapping[str, Any]]], key: str = "val_acc1", ax: Axes | None = None
) -> Figure:
    """Draw an accuracy of several runs over the queries to the source so far, which has a logarithmic axis.

    Args:
        runs: The name of each run and its history, one row an epoch with ``queries`` and ``key``.
        key: An accuracy in the rows, 0..1.
        ax: Axes to draw into; a new figure when None.

    Returns:
        The figure.
    """
    from matplotlib.ticker import LogLocator, NullFormatter, PercentFormatter, StrMethodFormatter

    series = {
        name: [(row["queries"], row[key]) for row in history if row.get("queries") and finite(row.get(key))]
        for name, history in runs.items()
    }
    if not any(series.values()):
        raise ValueError(f"no run has rows with queries and {key}")
    if ax is None:
        figure = new_figure(7.0, 4.2)
        ax = figure.subplots()
        title(figure, f"{EPOCH_COLUMNS.get(key, key).capitalize()} by queries")
    else:
        figure = ax.figure.canvas.figure
    for place, (name, points) in enumerate(series.items()):
        look = {"color": _COLOURS[place % len(_COLOURS)], "linestyle": "-" if place < len(_COLOURS) else "--"}
        look |= {"marker": "o" if len(points) <= 30 else "", "markersize": 3.5, "linewidth": 1.6}
        ax.plot(*(zip(*points, strict=True) if points else ((), ())), label=shorten(name, 40), **look)
    ax.set_xscale("log")
    ax.xaxis.set_major_locator(LogLocator(subs=(1, 2, 5)))
    ax.xaxis.set_major_formatter(StrMethodFormatter("{x:,.0f}"))
    ax.xaxis.set_minor_formatter(NullFormatter())
    ax.grid(color="0.9", linewidth=0.6)
    ax.yaxis.set_major_formatter(PercentFormatter(1.0, decimals=None, symbol=" %"))
    ax.set(xlabel=QUERIES_NAME, ylabel=EPOCH_COLUMNS.get(key, key))
    ax.legend(frameon=False, fontsize="small")
    return figure
