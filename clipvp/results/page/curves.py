"""Geometry of the page's curves; the template draws them, and the style sheet colours them."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import NamedTuple

WIDTH, HEIGHT = 420, 260
LEFT, RIGHT, TOP, BOTTOM = 52, 12, 10, 40  # margins
COLOURS = 8  # of the style sheet; further lines are dashed
_MOST_DOTS = 30

Points = Sequence[tuple[float, float]]


class Line(NamedTuple):
    """One curve: its name, its classes in the style sheet, and its points; ``dots`` holds those drawn as circles."""

    name: str
    look: str
    points: list[tuple[float, float]]
    dots: list[tuple[float, float]]


class Chart(NamedTuple):
    """A chart ``WIDTH`` x ``HEIGHT``: its curves, the ticks of both axes, each a place and a text, and what x is."""

    title: str
    lines: list[Line]
    y_ticks: list[tuple[float, str]]
    x_ticks: list[tuple[float, str]]
    x_name: str


def look(index: int) -> str:
    """Return the classes in the style sheet of the curve with an index."""
    return f"c{index % COLOURS}" + (" dashed" if index // COLOURS % 2 else "")


def chart(title: str, series: Sequence[tuple[str, Points]], share: bool, x_name: str = "epoch") -> Chart:
    """Return a chart with a curve for each (name, [(x, value), ...]), x whole numbers; ``share`` writes values in %."""
    epochs = [x for _, points in series for x, _ in points]
    values = [y for _, points in series for _, y in points]
    ticks = nice_ticks(min(values) if share else min(0, *values), max(values))
    if share:  # round values around equal ones may leave 0 to 100 %
        ticks = [tick for tick in ticks if -1e-9 <= tick <= 1 + 1e-9]
    low, high = ticks[0], ticks[-1]
    first, last = min(epochs), max(epochs)

    def x_of(epoch: float) -> float:
        return LEFT + (WIDTH - LEFT - RIGHT) * ((epoch - first) / (last - first) if last > first else 0.5)

    def y_of(value: float) -> float:
        return HEIGHT - BOTTOM - (HEIGHT - TOP - BOTTOM) * (value - low) / (high - low)

    lines = []
    for index, (name, points) in enumerate(series):
        places = [(round(x_of(x), 1), round(y_of(y), 1)) for x, y in points]
        lines.append(Line(name, look(index), places, places if len(places) <= _MOST_DOTS else []))
    y_ticks = [(round(y_of(tick), 1), f"{100 * tick:.4g} %" if share else f"{tick:.4g}") for tick in ticks]
    x_ticks = [(round(x_of(tick), 1), str(tick)) for tick in whole_ticks(first, last)]
    return Chart(title, lines, y_ticks, x_ticks, x_name)


def nice_ticks(low: float, high: float, number: int = 5) -> list[float]:
    """Return about ``number`` round values, at least two, from at most ``low`` to at least ``high``."""
    if high - low < 1e-9:  # equal accuracies or losses
        margin = abs(low) * 0.1 or 0.1
        low, high = low - margin, high + margin
    raw = (high - low) / number
    size = 10 ** math.floor(math.log10(raw))
    step = next(size * factor for factor in (1, 2, 5, 10) if size * factor >= raw * 0.999)
    first, last = math.floor(low / step + 1e-9), math.ceil(high / step - 1e-9)
    return [index * step for index in range(first, last + 1)]


def whole_ticks(first: int, last: int, most: int = 8) -> list[int]:
    """Return at most about ``most`` whole numbers from first to last."""
    steps = (factor * 10**power for power in range(18) for factor in (1, 2, 5))
    step = next(step for step in steps if (last - first) / step <= most)
    return [first] if first == last else list(range(-(-first // step) * step, last + 1, step))
