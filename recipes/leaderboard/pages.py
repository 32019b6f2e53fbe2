"""Tables in Markdown, and the marked places of pages that show them.

A page holds a table between ``<!-- table: NAME -->`` and ``<!-- end -->``; what is between is written by
recipes/leaderboard.py and never by hand. ``speed/NAME`` is a benchmark's.
"""

from __future__ import annotations

import re
import statistics
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Any

from clipvp.registry import UserError

from .tables import Table

ROOT = Path(__file__).parents[2]
_MARKED = re.compile(r"(<!-- table: (\S+) -->\n)(.*?)(<!-- end -->)", re.DOTALL)


def pages() -> list[Path]:
    """Return the pages that may show tables: README.md and all of docs."""
    found = [ROOT / "README.md", *sorted((ROOT / "docs").rglob("*.md"))]
    return [path for path in found if path.exists()]  # an installed package has none


def marked(text: str) -> dict[str, str]:
    """Return the tables that a page shows, by name."""
    return {name: body for _, name, body, _ in _MARKED.findall(text)}


def filled(text: str, tables: dict[str, str]) -> str:
    """Return a page with its marked tables renewed.

    Raises:
        UserError: The page marks a table that there is not.
    """

    def body(found: re.Match) -> str:
        if found[2] not in tables:
            raise UserError(f"a page marks the table {found[2]!r}, which recipes/results does not describe")
        return f"{found[1]}{tables[found[2]]}{found[4]}"

    return _MARKED.sub(body, text)


def markdown(table: Table, outcomes: dict[str, Any]) -> str:
    """Return a table as Markdown: mean and deviation in %, and the paired difference to the reference.

    Args:
        table: Says what is shown, in which order.
        outcomes: The content of its JSON file.
    """
    columns = [(source, task) for task in table.tasks for source in table.sources]
    found = {(cell["source"], cell["task"], cell["method"]): cell["runs"] for cell in outcomes["cells"]}
    columns = [pair for pair in columns if any((*pair, method) in found for method in table.methods)]
    headers = ["", *table.columns]
    for source, task in columns:
        name = task if len(table.sources) == 1 else f"{task}, {source}"
        headers += [f"{name} (%)", f"minus {table.reference}", "seeds"]
    rows = []
    for method in table.methods:
        cells = [found.get((*pair, method), []) for pair in columns]
        if not any(cells):
            continue
        row = [
            f"`{method}`",
            *(_column(name, [run for runs in cells for run in runs]) for name in table.columns),
        ]
        for pair, runs in zip(columns, cells, strict=True):
            scores = {run["seed"]: run for run in runs}
            others = {run["seed"]: run for run in found.get((*pair, table.reference), [])}
            row += [
                spread([run["scores"][table.score] for run in runs]),
                "" if method == table.reference else paired(scores, others, table.score),
                str(len(runs)),
            ]
        rows.append(row)
    if not rows:
        return "No run has finished yet.\n"
    align = ["---", *["---:"] * (len(headers) - 1)]
    lines = [f"| {' | '.join(cells)} |" for cells in ([*headers], align, *rows)]
    return "\n".join([*lines, "", caption(table, outcomes), ""])


def _column(name: str, runs: Sequence[dict[str, Any]]) -> str:
    """Return a figure of a method's runs: their numbers of trained weights, or the median of queries or seconds."""
    if name == "trainable":
        return " / ".join(dict.fromkeys(f"{run[name]:,}" for run in runs))
    return f"{statistics.median(run[name] for run in runs):,.0f}"


def spread(shares: Sequence[float]) -> str:
    """Return mean and sample standard deviation of shares in %.

    >>> spread([0.5, 0.6]), spread([0.25]), spread([])
    ('55.0 ± 7.1', '25.0', '-')
    """
    if not shares:
        return "-"
    mean = f"{100 * statistics.fmean(shares):.1f}"
    return mean if len(shares) == 1 else f"{mean} ± {100 * statistics.stdev(shares):.1f}"


def paired(runs: dict[int, dict], others: dict[int, dict], score: str) -> str:
    """Return the mean difference over the seeds that both have, in points, with its 95 % t interval over the seeds.

    Raises:
        UserError: A seed was not trained and tested on the same images.
    """
    seeds = sorted(runs.keys() & others.keys())
    for seed in seeds:
        if runs[seed]["split"] != others[seed]["split"]:
            raise UserError(
                f"seed {seed}: two runs of one table are of different images, so they are not paired"
            )
    values = [100 * (runs[seed]["scores"][score] - others[seed]["scores"][score]) for seed in seeds]
    if not values:
        return "-"
    if len(values) == 1:
        return f"{values[0]:+.1f}"
    from clipvp.scoring.significance import over_seeds

    found = over_seeds(values)
    return f"{found.mean:+.1f} ({found.low:+.1f} to {found.high:+.1f})"


def caption(table: Table, outcomes: dict[str, Any]) -> str:
    """Return what is said below a table."""
    seconds = [run["seconds"] for cell in outcomes["cells"] for run in cell["runs"]]
    devices = dict.fromkeys(environment["device"] or "CPU" for environment in outcomes["environments"])
    return (
        f"{table.about.strip()} Top-1 in %, mean ± standard deviation over the seeds; differences to "
        f"`{table.reference}` are paired by seed, with their 95 % t interval. {len(seconds)} runs of "
        f"{statistics.median(seconds):.0f} s each (median; {', '.join(devices)}): "
        f"`python recipes/leaderboard.py --only {table.name}`."
    )


def write_pages(tables: dict[str, str], paths: Iterable[Path]) -> list[Path]:
    """Renew the marked tables of pages; return the pages that changed."""
    from clipvp.files import write_text

    changed = []
    for path in paths:
        before = path.read_text(encoding="utf-8")
        after = filled(before, tables)
        if after != before:
            write_text(path, after)
            changed.append(path)
    return changed
