"""The picture of a table: the validation accuracy by queries, the mean over seeds."""

from __future__ import annotations

import json
import statistics
from pathlib import Path

from clipvp.results.folder import METRICS
from clipvp.results.plots import plot_queries, save_figure

from .tables import Run, Table

_KEYS = ("queries", "val_acc1")


def draw_queries(table: Table, runs: list[Run], path: Path) -> bool:
    """Draw the methods of a table; one that asks about each image once is a point.

    Args:
        table: One task and one source.
        runs: All of the table.
        path: Of the picture.

    Returns:
        Whether it was drawn: the histories of all runs must lie on this machine.
    """
    if not all((run.folder / METRICS).exists() for run in runs):
        return False
    curves = {}
    for method in table.methods:
        histories = [_validated(run) for run in runs if run.cell.method == method]
        points = list(zip(*histories, strict=False))  # runs may stop one validation apart
        curve = [{key: statistics.fmean(row[key] for row in each) for key in _KEYS} for each in points]
        asked_once = curve and curve[0]["queries"] == curve[-1]["queries"]
        curves[method] = curve[-1:] if asked_once else curve
    save_figure(plot_queries(curves), path)
    return True


def _validated(run: Run) -> list[dict[str, float]]:
    rows = map(json.loads, (run.folder / METRICS).read_text(encoding="utf-8").splitlines())
    return [row for row in rows if all(key in row for key in _KEYS)]
