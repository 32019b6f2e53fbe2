"""Tables in Markdown, and the marked places of pages that show them.

A page holds a table between ``<!-- table: NAME -->`` and ``<!-- end -->``; what is between is written by
recipes/leaderboard.py and never by hand. ``speed/NAME`` is a benchmark's, ``comparisons/NAME`` a comparison's,
``summaries/NAME`` a short one of several.
"""

from __future__ import annotations

import re
import statistics
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Any

from clipvp.registry import UserError

from .differences import Cells, not_zero, paired
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
    columns: dict[tuple[str, str], Cells] = {}
    for cell in outcomes["cells"]:
        runs = {run["seed"]: run for run in cell["runs"]}
        columns.setdefault((cell["source"], cell["task"]), {})[cell["method"]] = runs
    pairs = [(source, task) for task in table.tasks for source in table.sources if (source, task) in columns]
    headers = ["", *table.columns]
    for source, task in pairs:
        name = task if len(table.sources) == 1 else f"{task}, {source}"
        headers += [f"{name} (%)", f"minus {table.reference}"]
    most = _most_runs(outcomes)
    apart = {pair: not_zero(columns[pair], table.reference, table.score) for pair in pairs}
    rows = []
    for method in table.methods:
        every = [columns[pair].get(method, {}) for pair in pairs]
        if not any(every):
            continue
        row = [f"`{method}`"]
        row += [_column(name, [list(runs.values()) for runs in every if runs]) for name in table.columns]
        for pair, runs in zip(pairs, every, strict=True):
            minus = paired(runs, columns[pair].get(table.reference, {}), table.score)
            if method == table.reference:
                minus = ""
            score = spread([run["scores"][table.score] for run in runs.values()])
            if 0 < len(runs) < most:
                score += f" (seeds: {len(runs)})"
            row += [score, f"**{minus}**" if method in apart[pair] else minus]
        rows.append(row)
    if not rows:
        return "No run has finished yet.\n"
    align = ["---", *["---:"] * (len(headers) - 1)]
    lines = [f"| {' | '.join(cells)} |" for cells in ([*headers], align, *rows)]
    return "\n".join([*lines, "", caption(table, outcomes), ""])


def _most_runs(outcomes: dict[str, Any]) -> int:
    """Return the number of seeds of the cell that has most."""
    return max((len(cell["runs"]) for cell in outcomes["cells"]), default=0)


def _column(name: str, cells: Sequence[Sequence[dict[str, Any]]]) -> str:
    """Return a figure of a method's runs, cell by cell: their numbers of trained weights, from the fewest to the most
    where seeds differ; or the median of queries or seconds over all."""
    if name == "trainable":
        found = [sorted({run[name] for run in runs}) for runs in cells]
        texts = [f"{each[0]:,}" + (f" to {each[-1]:,}" if len(each) > 1 else "") for each in found]
        return " / ".join(dict.fromkeys(texts))
    return f"{statistics.median(run[name] for runs in cells for run in runs):,.0f}"


def spread(shares: Sequence[float]) -> str:
    """Return mean and sample standard deviation of shares in %.

    >>> spread([0.5, 0.6]), spread([0.25]), spread([])
    ('55.0 ± 7.1', '25.0', '-')
    """
    if not shares:
        return "-"
    mean = f"{100 * statistics.fmean(shares):.1f}"
    return mean if len(shares) == 1 else f"{mean} ± {100 * statistics.stdev(shares):.1f}"


def caption(table: Table, outcomes: dict[str, Any]) -> str:
    """Return what is said below a table."""
    runs = [run for cell in outcomes["cells"] for run in cell["runs"]]
    most = _most_runs(outcomes)
    devices = dict.fromkeys(environment["device"] or "CPU" for environment in outcomes["environments"])
    over = "seeds and images" if all("right" in run for run in runs) else "seeds"
    return (
        f"{table.about.strip()} Top-1 in %, mean ± standard deviation over {most} seeds; differences to "
        f"`{table.reference}` are paired by seed, with their 95 % interval (t over {over}), and bold where they "
        f"are not 0 after Holm's correction over the column. {len(runs)} runs of "
        f"{statistics.median(run['seconds'] for run in runs):.0f} s each (median; {', '.join(devices)}): "
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
