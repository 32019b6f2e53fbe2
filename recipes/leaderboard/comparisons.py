"""Kept comparisons (recipes/results/comparisons/NAME.json) as pages show them."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any


def comparison_tables(folder: Path) -> dict[str, str]:
    """Return the tables of all comparisons that a folder keeps as Markdown, each under ``comparisons/NAME``."""
    paths = sorted((folder / "comparisons").glob("*.json"))
    held = {f"comparisons/{path.stem}": json.loads(path.read_text(encoding="utf-8")) for path in paths}
    return {name: comparison_markdown(each["rows"]) for name, each in held.items()}


def comparison_markdown(rows: list[dict[str, Any]]) -> str:
    """Return the rows of a comparison, the pick first and then the best on test: accuracies in % and seconds."""
    headers = ["`*` picked by validation", "test, best on validation (%)", "95 % interval"]
    headers += ["minus the pick, with its interval", "validation (%)", "seconds a run"]
    lines = [headers, ["---", *["---:"] * (len(headers) - 1)]]
    for row in sorted(rows, key=lambda row: (not row["pick"], -row["test.best_val"]["mean"])):
        minus = row["minus_pick"]
        lines.append(
            [
                f"{'`*` ' if row['pick'] else ''}`{row['cell']}`",
                _spread(row["test.best_val"]),
                f"{100 * row['interval']['low']:.1f} to {100 * row['interval']['high']:.1f}",
                f"{100 * minus['mean']:+.1f} ({100 * minus['low']:+.1f} to {100 * minus['high']:+.1f})"
                if minus
                else "",
                _spread(row["val.best"]),
                f"{row['seconds']:.0f}",
            ]
        )
    return "\n".join(f"| {' | '.join(cells)} |" for cells in lines) + "\n"


def _spread(score: dict[str, float]) -> str:
    return f"{100 * score['mean']:.1f} ± {100 * score['std']:.1f}"
