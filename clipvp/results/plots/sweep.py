"""Pictures of a sweep: trials in their order, the keys that matter, and accuracy along each key."""

from __future__ import annotations

import json
import math
from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

from ..tables import CAPTIONS
from .base import BLUE, ORANGE, VERMILION, Sheet, name_axis, new_figure, shorten, text_width, title, writing

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

_LOOKS = {"complete": ("o", BLUE, "run to its end"), "pruned": ("x", ORANGE, "stopped early")}
_AXIS = "validation accuracy (%)"
_COLUMNS = 3


def plot_history(found: Mapping[str, Any], ax: Axes | None = None) -> Figure:
    """Draw the validation accuracy of each trial in their order, and the best one so far.

    Args:
        found: The content of sweep.json.
        ax: Axes to draw into; those of a new figure when None.
    """
    sheet = Sheet.of(ax, 1, 1, (6.5, 3.2), (0.8, 0.8))
    sheet.title("Trials of the sweep")
    _points(sheet.ax, found, lambda row: row["number"], legend=True)
    best, line = 0.0, []
    for row in found["trials"]:
        if row["state"] == "complete":
            best = max(best, row["val_acc1"])
        line.append((row["number"], 100 * best if best else math.nan))
    sheet.ax.plot(*zip(*line, strict=True), color=VERMILION, drawstyle="steps-post", label="best so far")
    sheet.ax.legend(loc="lower right", frameon=False)
    sheet.ax.xaxis.get_major_locator().set_params(integer=True)
    sheet.ax.set_ylabel(_AXIS)
    sheet.foot("trial", "")
    return sheet.figure


def plot_importance(found: Mapping[str, Any], ax: Axes | None = None) -> Figure:
    """Draw how much of the differences between trials each key explains.

    Args:
        found: The content of sweep.json; its ``importance`` is not empty.
        ax: Axes to draw into; those of a new figure when None.
    """
    names, shares = list(found["importance"])[::-1], list(found["importance"].values())[::-1]
    margin = text_width(names, 9) + 0.6
    sheet = Sheet.of(ax, 1, len(names), (5.0, 0.4), (margin, 1.0))
    sheet.title(CAPTIONS["importance"])
    sheet.ax.barh(range(len(names)), [100 * share for share in shares], color=BLUE)
    name_axis(sheet.ax.yaxis, range(len(names)), names, 9)
    sheet.foot("share of the differences (%)", "")
    return sheet.figure


def plot_slices(found: Mapping[str, Any]) -> Figure:
    """Draw the validation accuracy of the trials along each key, one panel a key."""
    keys = [key for key in found["space"] if any(key in row["params"] for row in found["trials"])]
    columns, rows = min(_COLUMNS, len(keys)), -(-len(keys) // _COLUMNS)
    figure = new_figure(3.4 * columns + 0.4, 2.7 * rows + 0.4)
    title(figure, CAPTIONS["slices"])
    panels = figure.subplots(rows, columns, squeeze=False, sharey=True)
    for panel, key in zip(panels.flat, keys, strict=False):
        _slice(panel, found, key)
    for panel in panels.flat[len(keys) :]:
        panel.set_visible(False)
    for panel in panels[:, 0]:
        panel.set_ylabel(_AXIS)
    return figure


def _slice(ax: Axes, found: Mapping[str, Any], key: str) -> None:
    values = found["space"][key]
    (name,), look = writing([key])
    ax.set_xlabel(name, **look)
    if isinstance(values, dict):
        _points(ax, found, lambda row: row["params"].get(key))
        if values.get("log"):
            ax.set_xscale("log")
        return
    places = {json.dumps(value): place for place, value in enumerate(values)}
    _points(
        ax, found, lambda row: places.get(json.dumps(row["params"][key])) if key in row["params"] else None
    )
    names = [shorten(value if isinstance(value, str) else json.dumps(value), 16) for value in values]
    name_axis(ax.xaxis, range(len(names)), names, 8, rotation=30 if len(names) > 3 else 0)
    ax.set_xlim(-0.5, len(names) - 0.5)


def _points(ax: Axes, found: Mapping[str, Any], place, legend: bool = False) -> None:
    for state, (marker, colour, label) in _LOOKS.items():
        rows = [
            row
            for row in found["trials"]
            if row["state"] == state and row["val_acc1"] is not None and place(row) is not None
        ]
        if rows:
            values = [100 * row["val_acc1"] for row in rows]
            ax.scatter(
                [place(row) for row in rows],
                values,
                marker=marker,
                s=22,
                color=colour,
                label=label if legend else None,
            )
