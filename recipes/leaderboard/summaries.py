"""Short tables of pages, made of cells of the large ones: recipes/results/summaries/NAME.yaml.

A cell is a text, or [table, methods, tasks], whose mean accuracies in % stand behind each other.
"""

from __future__ import annotations

import statistics
from functools import cache
from pathlib import Path
from typing import Any

from clipvp.registry import UserError

from .outcomes import read_outcomes
from .tables import read_tables


def summary_tables(folder: Path) -> dict[str, str]:
    """Return the short tables that a folder describes as Markdown, each under ``summaries/NAME``.

    Raises:
        UserError: A cell names what no kept file holds.
    """
    import yaml

    found = {}
    for path in sorted((folder / "summaries").glob("*.yaml")):
        described = yaml.safe_load(path.read_text(encoding="utf-8"))
        columns = described["columns"]
        lines = [columns, ["---", *["---:"] * (len(columns) - 1)]]
        lines += [
            [each if isinstance(each, str) else cell(folder, *each) for each in row]
            for row in described["rows"]
        ]
        found[f"summaries/{path.stem}"] = "\n".join(f"| {' | '.join(cells)} |" for cells in lines) + "\n"
    return found


def cell(folder: Path, table: str, methods: str | list[str], tasks: str | list[str]) -> str:
    """Return the mean accuracies in %, one decimal, of a table's methods on tasks."""
    methods, tasks = ([each] if isinstance(each, str) else each for each in (methods, tasks))
    held = _accuracies(folder, table)
    for key in ((task, method) for task in tasks for method in methods):
        if key not in held:
            raise UserError(f"recipes/results/summaries: {table}.json has no {' of '.join(reversed(key))}")
    return " / ".join(f"{held[task, method]:.1f}" for method in methods for task in tasks)


@cache
def _accuracies(folder: Path, name: str) -> dict[tuple[str, str], float]:
    (table,) = read_tables([name], folder)
    cells: list[dict[str, Any]] = read_outcomes(folder / f"{name}.json")["cells"]
    return {
        (cell["task"], cell["method"]): 100
        * statistics.fmean(run["scores"][table.score] for run in cell["runs"])
        for cell in cells
    }
