"""Pictures of a comparison: accuracy against what it costs, and by the number of training images."""

from __future__ import annotations

import math
import re
from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any, NamedTuple

from ..tables import COMPARISON_COLUMNS, SCORES, SHOTS
from .base import BLUE, VERMILION, new_figure, shorten, text_width, title, writing

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

Rows = Sequence[Mapping[str, Any]]

_COSTS = ("numbers", "train_seconds")
_LOOKS = {True: (BLUE, "features computed once"), False: (VERMILION, "trained through the network")}
_NAME_SIZE, _LONGEST, _MOST_NAMES = 8.0, 34, 26
_LINES = ("#0072B2", "#D55E00", "#009E73", "#CC79A7", "#E69F00", "#56B4E9", "0.35")
_MARKERS = "osD^vP"


def pareto_front(points: Sequence[tuple[float, float]]) -> list[int]:
    """Return the places of points that no other point beats: none costs as little or less and has more.

    Args:
        points: (cost, score).

    Returns:
        Places from the cheapest to the dearest.

    >>> pareto_front([(1, 0.5), (2, 0.4), (3, 0.7), (3, 0.6)])
    [0, 2]
    """
    order = sorted(range(len(points)), key=lambda place: (points[place][0], -points[place][1]))
    front: list[int] = []
    for place in order:
        if not front or points[place][1] > points[front[-1]][1]:
            front.append(place)
    return front


def plot_costs(rows: Rows, cost: str = "numbers", ax: Axes | None = None) -> Figure:
    """Draw test accuracy against what a method costs: seeds as points, their mean above them, and the Pareto front.

    Args:
        rows: The content of compare.json, of one group.
        cost: numbers (that training sets) or train_seconds.
        ax: Axes to draw into; a new figure when None.

    Returns:
        The figure.
    """
    if cost not in _COSTS:
        raise ValueError(f"cost is {cost!r}, not one of {_COSTS}")
    rows = [row for row in rows if row.get(row.get("tested", "test.last")) and row.get(cost) is not None]
    if not rows:
        raise ValueError("no row has an accuracy and a cost")
    figure = new_figure(8.0, 5.2) if ax is None else ax.figure.canvas.figure
    ax = figure.subplots() if ax is None else ax
    xs = _costs([row[cost] for row in rows])
    means = [100 * row[row["tested"]]["mean"] for row in rows]
    for row, x, mean in zip(rows, xs, means, strict=True):
        colour = _LOOKS[bool(row.get("on_features"))][0]
        values = [100 * value for value in row[row["tested"]]["values"]]
        if len(values) > 1:
            ax.plot([x] * len(values), values, "o", color=colour, markersize=3, alpha=0.35, zorder=2)
        marker, size = ("*", 15) if row.get("pick") else ("o", 7)
        ax.plot([x], [mean], marker, color=colour, markersize=size, markeredgecolor="white", zorder=4)
    front = pareto_front(list(zip(xs, means, strict=True)))
    ax.plot(
        [xs[place] for place in front],
        [means[place] for place in front],
        color="0.55",
        linewidth=1.2,
        linestyle="--",
        drawstyle="steps-post",
        zorder=1,
    )
    ax.set_xscale("log")
    _name_costs(ax, xs, [row[cost] for row in rows])
    ax.set_xlabel(COMPARISON_COLUMNS[cost])
    ax.set_ylabel(f"{SCORES[rows[0]['tested']]} (%)")
    ax.grid(color="0.92", linewidth=0.6)
    ax.margins(x=0.08, y=0.08)
    _explain(ax, rows)
    if figure.axes == [ax]:
        title(figure, f"Accuracy against {COMPARISON_COLUMNS[cost]}, {_seeds(rows)}")
    named = sorted(range(len(rows)), key=lambda place: -means[place])[:_MOST_NAMES]
    _name_points(ax, [(xs[place], means[place], rows[place]["cell"]) for place in named])
    return figure


def _costs(values: Sequence[float]) -> list[float]:
    """Return places on a logarithmic axis: zero is a decade left of the smallest other cost."""
    least = min((value for value in values if value > 0), default=1.0)
    return [value if value > 0 else least / 10 for value in values]


def _name_costs(ax: Axes, xs: Sequence[float], values: Sequence[float]) -> None:
    """Write powers of ten as plain numbers, and 0 where costs of zero are."""
    from matplotlib.ticker import FuncFormatter, NullLocator

    zero = next((x for x, value in zip(xs, values, strict=True) if value <= 0), None)

    def text(x: float, _: int) -> str:
        if zero is not None and x <= zero * 1.5:
            return ""
        return f"{x:,.0f}" if x >= 1 else f"{x:g}"

    ax.xaxis.set_major_formatter(FuncFormatter(text))
    ax.xaxis.set_minor_locator(NullLocator())
    if zero is not None:
        ax.annotate(
            "0",
            (zero, 0),
            (0, -7),
            xycoords=("data", "axes fraction"),
            textcoords="offset points",
            ha="center",
            va="top",
            fontsize=10,
        )


def _name_points(ax: Axes, points: Sequence[tuple[float, float, str]]) -> None:
    """Write a name beside each point, where it covers no other name and no point; a line leads to one that is moved."""
    figure = ax.figure.canvas.figure
    figure.draw_without_rendering()
    scale, frame = figure.dpi / 72, ax.get_window_extent()
    step = 1.3 * _NAME_SIZE * scale
    at = [ax.transData.transform(point[:2]) for point in points]
    taken = [_Rectangle(px - 4 * scale, py - 4 * scale, px + 4 * scale, py + 4 * scale) for px, py in at]
    for (px, py), (x, y, name) in zip(at, points, strict=True):
        name = shorten(name, _LONGEST)
        width = text_width([name], _NAME_SIZE) * figure.dpi
        right_first = px < frame.x0 + 0.6 * frame.width
        places = [
            _Place(right, moved, px, py, width, step, scale)
            for moved in sorted(range(-_MOST_NAMES, _MOST_NAMES + 1), key=abs)
            for right in (right_first, not right_first)
        ]
        inside = [place for place in places if place.rectangle.is_inside(frame)] or places
        place = next(
            (each for each in inside if not any(map(each.rectangle.overlaps, taken))),
            inside[0],
        )
        taken.append(place.rectangle)
        (text,), look = writing([name])
        ax.annotate(
            text,
            (x, y),
            (place.offset, place.moved * step / scale),
            textcoords="offset points",
            ha="left" if place.right else "right",
            va="center",
            fontsize=_NAME_SIZE,
            arrowprops={"arrowstyle": "-", "color": "0.7", "linewidth": 0.6} if place.moved else None,
            zorder=5,
            bbox={"boxstyle": "square,pad=0.1", "facecolor": "white", "edgecolor": "none", "alpha": 0.7},
            **look,
        )


class _Rectangle(NamedTuple):
    """In pixels of the figure."""

    x0: float
    y0: float
    x1: float
    y1: float

    def overlaps(self, other: _Rectangle) -> bool:
        across = self.x0 < other.x1 and other.x0 < self.x1
        return across and self.y0 < other.y1 and other.y0 < self.y1

    def is_inside(self, other: Any) -> bool:
        across = other.x0 <= self.x0 and self.x1 <= other.x1
        return across and other.y0 <= self.y0 and self.y1 <= other.y1


class _Place(NamedTuple):
    """Where a name may be: to the right of its point (px, py) or to the left, so many steps above it."""

    right: bool
    moved: int
    px: float
    py: float
    width: float
    step: float
    scale: float

    @property
    def offset(self) -> float:
        """In points, from the point to the near end of the name."""
        return (22 if self.moved else 9) * (1 if self.right else -1)

    @property
    def rectangle(self) -> _Rectangle:
        near, middle = self.px + self.offset * self.scale, self.py + self.moved * self.step
        low, high = sorted((near, near + (self.width if self.right else -self.width)))
        return _Rectangle(low, middle - self.step / 2, high, middle + self.step / 2)


def _explain(ax: Axes, rows: Rows) -> None:
    from matplotlib.lines import Line2D

    kinds = sorted({bool(row.get("on_features")) for row in rows}, reverse=True)
    handles = [
        Line2D([], [], color=_LOOKS[kind][0], marker="o", linestyle="", label=_LOOKS[kind][1])
        for kind in kinds
    ]
    if any(row.get("pick") for row in rows):
        handles.append(
            Line2D([], [], color="0.3", marker="*", markersize=11, linestyle="", label="picked by validation")
        )
    handles.append(Line2D([], [], color="0.55", linestyle="--", label="Pareto front"))
    ax.figure.canvas.figure.legend(
        handles=handles, loc="outside lower center", ncols=4, fontsize=8.5, frameon=False
    )


def _seeds(rows: Rows) -> str:
    counts = sorted({len(row["seeds"]) for row in rows})
    several = f"{counts[0]} to {counts[-1]}" if len(counts) > 1 else str(counts[0])
    return f"{several} seed{'' if counts == [1] else 's'}"


def shots_of(rows: Rows) -> dict[str, list[Mapping[str, Any]]]:
    """Return the rows of each method by the images a class that it learned from; only of those with two or more."""
    lines: dict[str, list[Mapping[str, Any]]] = {}
    for row in rows:
        if (row.get("settings") or {}).get("shots") is not None and row.get(row.get("tested", "")):
            name = re.sub(r"\s*\bdata\.shots=\d+", "", row["cell"]).strip()
            lines.setdefault(name or "base", []).append(row)
    found = {name: sorted(own, key=lambda row: row["settings"]["shots"]) for name, own in lines.items()}
    return {name: own for name, own in found.items() if len(own) > 1}


def plot_shots(rows: Rows, ax: Axes | None = None) -> Figure:
    """Draw test accuracy by training images a class: a line a method through its means, seeds as points.

    Args:
        rows: The content of compare.json, with several values of ``data.shots``.
        ax: Axes to draw into; a new figure when None.

    Returns:
        The figure.
    """
    lines = shots_of(rows)
    if not lines:
        raise ValueError("no method has two numbers of training images a class")
    figure = new_figure(8.0, 5.0) if ax is None else ax.figure.canvas.figure
    ax = figure.subplots() if ax is None else ax
    lines = dict(sorted(lines.items(), key=lambda line: -line[1][-1][line[1][-1]["tested"]]["mean"]))
    shots = sorted({row["settings"]["shots"] for own in lines.values() for row in own})
    for index, (name, own) in enumerate(lines.items()):
        colour = _LINES[index % len(_LINES)]
        marker = _MARKERS[index // len(_LINES) % len(_MARKERS)]
        xs = [math.log2(row["settings"]["shots"]) for row in own]
        means = [100 * row[row["tested"]]["mean"] for row in own]
        (label,), _ = writing([shorten(name, _LONGEST)])
        ax.plot(xs, means, marker + "-", color=colour, linewidth=1.6, markersize=5, label=label, zorder=3)
        for x, row in zip(xs, own, strict=True):
            values = [100 * value for value in row[row["tested"]]["values"]]
            if len(values) > 1:
                ax.plot([x] * len(values), values, "o", color=colour, markersize=2.6, alpha=0.35, zorder=2)
    ax.set_xticks([math.log2(count) for count in shots], [str(count) for count in shots])
    ax.set_xlabel(SHOTS)
    ax.set_ylabel(f"{SCORES[next(iter(lines.values()))[0]['tested']]} (%)")
    ax.grid(color="0.92", linewidth=0.6)
    widest = text_width([shorten(name, _LONGEST) for name in lines], 8.5)
    columns = max(1, min(len(lines), int(7.4 / (widest + 0.6))))
    figure.legend(loc="outside lower center", ncols=columns, fontsize=8.5, frameon=False)
    if figure.axes == [ax]:
        title(figure, f"Accuracy by {SHOTS}, {_seeds(rows)}")
    return figure
