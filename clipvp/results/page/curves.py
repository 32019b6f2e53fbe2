"""Curves as inline SVG, coloured by the page's style sheet."""

from __future__ import annotations

import math
from collections.abc import Sequence
from html import escape

WIDTH, HEIGHT = 420, 260
_LEFT, _RIGHT, _TOP, _BOTTOM = 52, 12, 10, 40
COLOURS = 8  # of the style sheet; beyond them lines are dashed

Points = Sequence[tuple[float, float]]


def curves_svg(title: str, series: Sequence[tuple[str, Points]], share: bool) -> str:
    """Return a chart with a line for each (name, [(epoch, value), ...]); ``share`` writes values as per cent."""
    epochs = [x for _, points in series for x, _ in points]
    values = [y for _, points in series for _, y in points]
    ticks = nice_ticks(min(values) if share else min(0, *values), max(values))
    low, high = ticks[0], ticks[-1]
    first, last = min(epochs), max(epochs)

    def x_of(epoch: float) -> float:
        inner = WIDTH - _LEFT - _RIGHT
        return _LEFT + inner * ((epoch - first) / (last - first) if last > first else 0.5)

    def y_of(value: float) -> float:
        return HEIGHT - _BOTTOM - (HEIGHT - _TOP - _BOTTOM) * (value - low) / (high - low)

    parts = [f'<svg viewBox="0 0 {WIDTH} {HEIGHT}" role="img" aria-label="{escape(title)}">']
    for tick in ticks:
        text = f"{100 * tick:.4g} %" if share else f"{tick:.4g}"
        y = y_of(tick)
        parts.append(f'<line class="grid" x1="{_LEFT}" x2="{WIDTH - _RIGHT}" y1="{y:.1f}" y2="{y:.1f}"/>')
        parts.append(f'<text class="end" x="{_LEFT - 6}" y="{y + 4:.1f}">{text}</text>')
    for tick in whole_ticks(first, last):
        parts.append(f'<text class="mid" x="{x_of(tick):.1f}" y="{HEIGHT - _BOTTOM + 17}">{tick}</text>')
    parts.append(f'<text class="mid" x="{(_LEFT + WIDTH - _RIGHT) / 2}" y="{HEIGHT - 6}">epoch</text>')
    for index, (name, points) in enumerate(series):
        look = f"c{index % COLOURS}" + (" dashed" if index // COLOURS % 2 else "")
        path = " ".join(f"{x_of(x):.1f},{y_of(y):.1f}" for x, y in points)
        parts.append(f'<g class="{look}"><title>{escape(name)}</title><polyline points="{path}"/>')
        if len(points) <= 30:
            dots = (f'<circle cx="{x_of(x):.1f}" cy="{y_of(y):.1f}" r="2.6"/>' for x, y in points)
            parts.extend(dots)
        parts.append("</g>")
    return "".join([*parts, "</svg>"])


def nice_ticks(low: float, high: float, number: int = 5) -> list[float]:
    """Return about ``number`` round values that enclose low..high, at least two."""
    if high - low < 1e-9:  # one value, for accuracies and losses
        room = abs(low) * 0.1 or 0.1
        low, high = low - room, high + room
    raw = (high - low) / number
    size = 10 ** math.floor(math.log10(raw))
    step = next(size * factor for factor in (1, 2, 5, 10) if size * factor >= raw * 0.999)
    first, last = math.floor(low / step + 1e-9), math.ceil(high / step - 1e-9)
    return [index * step for index in range(first, last + 1)]


def whole_ticks(first: int, last: int, most: int = 8) -> list[int]:
    """Return at most about ``most`` whole numbers from first to last."""
    step = next(s for s in (1, 2, 5, 10, 20, 50, 100, 200, 500, 1000, 10**9) if (last - first) / s <= most)
    return [n for n in range(first, last + 1) if n % step == 0 or n == first == last]
