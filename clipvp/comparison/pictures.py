"""The pictures of a comparison, as files."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

from ..registry import UserError
from ..results.plots import plot_costs, plot_shots, save_figure
from ..results.plots.comparison import shots_of


def save_comparison_pictures(rows: Sequence[Mapping[str, Any]], folder: Path) -> list[Path]:
    """Write the pictures that the rows of a comparison allow; none where matplotlib is missing.

    Args:
        rows: The content of compare.json.
        folder: Where to.
    """
    groups: dict[str, list[Mapping[str, Any]]] = {}
    for row in rows:
        groups.setdefault(row["group"], []).append(row)
    draws: dict[str, Callable[[], Any]] = {}
    for place, own in enumerate(groups.values()):
        end = f"_{place + 1}" if len(groups) > 1 else ""
        if len(own) > 1:
            draws[f"numbers{end}"] = lambda own=own: plot_costs(own, "numbers")
            draws[f"seconds{end}"] = lambda own=own: plot_costs(own, "train_seconds")
    if shots_of(rows):
        draws["shots"] = lambda: plot_shots(rows)
    try:
        return [save_figure(draw(), folder / f"{name}.png") for name, draw in draws.items()]
    except UserError:  # no matplotlib
        return []
