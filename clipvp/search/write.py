"""Write what a sweep found: as data, the best config, pictures and the page."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from ..config.schema import RunConfig
from ..files import write_json, write_text
from ..registry import UserError
from ..results.folder import PLOTS, config_yaml
from ..results.page.sweep import write_sweep_page
from ..results.plots.base import save_figure
from ..results.plots.sweep import plot_history, plot_importance, plot_slices
from ..results.sweep_files import BEST, SWEEP


def write_sweep(folder: Path, found: dict[str, Any], best: RunConfig) -> None:
    """Write sweep.json, best.yaml, the pictures where matplotlib is installed, and report.html.

    Args:
        folder: Of the sweep.
        found: The content of sweep.json.
        best: The config of the best trial.
    """
    write_json(folder / SWEEP, found)
    done = sum(row["state"] != "failed" for row in found["trials"])
    row = next(row for row in found["trials"] if row["number"] == found["best"])
    header = (
        f"# The best of {done} trials by validation: trial {row['number']}, {100 * row['val_acc1']:.1f} % of "
        f"{found['num_val']} validation images.\n"
        f"# No trial has seen a test image; clipvp train --config {BEST} scores them.\n"
    )
    write_text(folder / BEST, header + config_yaml(best))
    try:
        figures = {"history": plot_history(found), "slices": plot_slices(found)}
        figures |= {"importance": plot_importance(found)} if found["importance"] else {}
        for name, figure in figures.items():
            save_figure(figure, folder / PLOTS / f"{name}.png")
    except UserError as error:  # matplotlib is missing
        if "matplotlib" not in str(error):
            raise
    write_sweep_page(folder)
