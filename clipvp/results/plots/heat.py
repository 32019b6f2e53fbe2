"""Parts of a labelled heat map: axes of the right size, cells with names, numbers and outlines."""

from __future__ import annotations

from collections.abc import Iterable, Sequence

import numpy as np

from .base import TEXT_SIZE, VERMILION, Sheet, name_axis, text_width, writing


def sheet_for(
    ax,
    rows: Sequence[str],
    columns: Sequence[str],
    cell: tuple[float, float],
    size: int | None = None,
    both: bool = False,
    lines: int = 4,
) -> Sheet:
    """Return a sheet for the cells and their names.

    Args:
        ax: Axes to draw into; those of a new figure when None.
        rows: Names of the rows, at the left.
        columns: Names of the columns, at the bottom and, with ``both``, at the top.
        cell: Width and height of a cell in inches, in a new figure.
        size: Number of rows and of columns, if they have no names.
        both: Whether the columns are named at the top too.
        lines: Lines of text below the picture.
    """
    names = text_width(columns, TEXT_SIZE) * (1.7 if both else 0.85)
    margins = (text_width(rows, TEXT_SIZE) + 1.5, names + 0.7 + 0.15 * lines)
    return Sheet.of(ax, size or len(columns), size or len(rows), cell, margins)


def draw_heat(
    sheet: Sheet,
    shares: np.ndarray,
    rows: Sequence[str],
    columns: Sequence[str],
    label: str = "share of the class's images",
    aspect: str = "auto",
    both: bool = False,
) -> None:
    """Draw shares (R, C) with names and a colour bar; the square-root scale makes small shares visible."""
    from matplotlib.colors import PowerNorm

    ax = sheet.ax
    ax.grid(False)
    heat = ax.imshow(shares, cmap="Blues", norm=PowerNorm(0.5, 0, float(shares.max()) or 1.0), aspect=aspect)
    if max(shares.shape) <= 100:
        for axis, number in ((ax.xaxis, shares.shape[1]), (ax.yaxis, shares.shape[0])):
            axis.set_ticks(np.arange(number + 1) - 0.5, minor=True)
        ax.tick_params(which="minor", length=0)
        ax.grid(which="minor", color="0.88", linewidth=0.4)
    name_axis(ax.yaxis, range(len(rows)), rows, sheet.font_size())
    size = sheet.font_size(sheet.cell[0])
    look = {}
    if text_width(columns, size) > sheet.cell[0] * 0.95:
        angle = 90 if sheet.cell[0] < 0.25 else 50
        look = {"rotation": angle, "rotation_mode": "anchor", "va": "center", "ha": "right"}
    name_axis(ax.xaxis, range(len(columns)), columns, size, **look)
    if both:
        look.update({"ha": "left"} if look else {})
        names, plain = writing(columns)
        ax.tick_params(labeltop=True, top=True)
        for tick, name in zip(ax.xaxis.get_major_ticks(), names, strict=True):
            tick.label2.set(text=name, fontsize=size, **plain, **look)
    height = sheet.cell[1] * shares.shape[0]
    ax.figure.colorbar(heat, ax=ax, label=label, shrink=min(1.0, 4.0 / height), anchor=(0, 1), pad=0.02)


def cell_texts(counts: np.ndarray) -> list[list[str]]:
    """Return counts (R, C) as texts, empty for 0."""
    return [[f"{number}" if number else "" for number in row] for row in counts.tolist()]


def draw_numbers(sheet: Sheet, texts: list[list[str]]) -> bool:
    """Write texts (R, C) into the cells if they are large enough, and return whether they are."""
    longest = max((len(text) for row in texts for text in row), default=0)
    size = min(8.0, sheet.cell[1] * 72 * 0.62, sheet.cell[0] * 72 * 0.92 / (0.62 * max(longest, 1)))
    if size < 5 or len(texts[0]) > 16:
        return False
    heat = sheet.ax.images[-1]
    dark = np.asarray(heat.norm(heat.get_array())) > 0.62
    for row, column in np.ndindex(dark.shape):
        if texts[row][column]:
            ink = "white" if dark[row, column] else "0.15"
            sheet.ax.text(column, row, texts[row][column], fontsize=size, color=ink, ha="center", va="center")
    return True


def draw_outlines(sheet: Sheet, cells: Iterable[tuple[int, int]], strength: float = 1.0) -> None:
    """Outline cells, each given as (row, column); ``strength`` is a factor of the line's width."""
    from matplotlib.patches import Rectangle

    width = strength * float(np.clip(min(sheet.cell) * 8, 0.8, 1.8))
    look = {"fill": False, "edgecolor": VERMILION, "linewidth": width, "zorder": 3, "clip_on": False}
    for row, column in cells:
        sheet.ax.add_patch(Rectangle((column - 0.5, row - 0.5), 1, 1, **look))
