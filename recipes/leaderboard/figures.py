"""Figures that pages say by hand: each must stand in a marked place, and a kept file must give it.

What stands between ``<!-- figures: NAME, NAME -->`` and ``<!-- end -->`` is written by hand. A name is that of a table,
``comparisons/NAME``, ``speed/NAME`` (what recipes/benchmark.py wrote) or ``others/NAME`` (what other commands measured,
and what papers report).
"""

from __future__ import annotations

import json
import math
import re
from collections.abc import Iterable, Iterator
from functools import cache
from pathlib import Path
from typing import Any

from clipvp.registry import UserError

from .benchmarks import benchmark_markdown
from .outcomes import read_outcomes
from .pages import markdown, paired
from .tables import RESULTS, Table, read_tables

_MARKED = re.compile(r"<!-- figures: ([^>]+) -->\n(.*?)<!-- end -->", re.DOTALL)
_TABLE = re.compile(r"<!-- table: \S+ -->\n.*?<!-- end -->", re.DOTALL)
_CODE = re.compile(r"```.*?```|`[^`\n]*`", re.DOTALL)
_LINK = re.compile(r"\]\([^)]*\)")
_NUMBER = r"(?<![\w.,])(?:\d{1,3}(?:,\d{3})+|\d+)(?:\.\d+)?(?![\w]|\.\d)"
_UNIT = r" ?(?:%|points?\b|±|ms\b|s\b|minutes?\b|seconds?\b|times as\b|kB\b|MB\b|GB\b|images/s)"
_WITH_UNIT = re.compile(rf"({_NUMBER})(?={_UNIT})")
_RANGE = re.compile(rf"\(([+-]?{_NUMBER}) to ([+-]?{_NUMBER})\)")
_DECIMAL = re.compile(r"(?<![\w.,])\d+\.\d+(?![\w]|\.\d)")
_INTERVAL = re.compile(r"95 %(?= (?:t )?intervals?)")


def problems(paths: Iterable[Path]) -> list[str]:
    """Return a line for each place of some pages with figures that no kept file gives."""
    found = []
    for path in paths:
        text = path.read_text(encoding="utf-8")
        if loose := unmarked_figures(text):
            found.append(
                f"{path}: {', '.join(loose)}: outside the marked places; see recipes/leaderboard/figures.py"
            )
        for names, figures in marked_figures(text):
            numbers = set().union(*map(given, names))
            if missing := [figure for figure in figures if not is_given(figure, numbers)]:
                found.append(f"{path}: {', '.join(missing)}: not in {', '.join(names)}")
    return found


def marked_figures(text: str) -> list[tuple[list[str], list[str]]]:
    """Return what a page says by hand of kept results: the names of their files, and the figures."""
    return [(names.split(", "), figures_in(_plain(body))) for names, body in _MARKED.findall(text)]


def unmarked_figures(text: str) -> list[str]:
    """Return the figures of a page that stand outside the marked places and outside code.

    A figure is a number with a unit of accuracy, time or size, an interval, or a decimal number in a row of a table.
    """
    rest = _plain(_TABLE.sub("", _MARKED.sub("", text)))
    rows = [line for line in rest.splitlines() if line.startswith("|")]
    return _measured(rest) + [figure for line in rows for figure in _DECIMAL.findall(line)]


def figures_in(text: str) -> list[str]:
    """Return all decimal numbers of a text, and whole numbers with a unit."""
    return [*_DECIMAL.findall(text), *(each for each in _measured(text) if "." not in each)]


def _measured(text: str) -> list[str]:
    ranges = [bound.lstrip("+-") for found in _RANGE.findall(text) for bound in found]
    return _WITH_UNIT.findall(text) + ranges


def _plain(text: str) -> str:
    """Return a text without code, addresses of links and the size of its intervals."""
    return _INTERVAL.sub("", _LINK.sub("]", _CODE.sub("", text)))


def is_given(figure: str, numbers: set[float]) -> bool:
    """Return whether one of some numbers is a page's figure up to rounding, whatever the sign.

    >>> is_given("31", {-31.2}), is_given("31.0", {31.2}), is_given("1,234", {1234.0})
    (True, False, True)
    """
    digits = len(figure.partition(".")[2])
    value = float(figure.replace(",", ""))
    return any(math.isclose(abs(each), value, abs_tol=0.5000001 * 10**-digits) for each in numbers)


@cache
def given(name: str) -> set[float]:
    """Return the numbers that a kept file gives; shares of 1 also in %, and of a table the differences of all pairs.

    Raises:
        UserError: There is no such file.
    """
    known = {table.name: table for table in read_tables()}
    if name in known:
        return given_by_table(known[name], read_outcomes(RESULTS / f"{name}.json"))
    path = RESULTS / f"{name}.json"
    if not path.exists():
        raise UserError(f"a page names {name!r}, and recipes/results has no such file")
    held = json.loads(path.read_text(encoding="utf-8"))
    if name.startswith("speed/"):
        return {float(text.replace(",", "")) for text in re.findall(_NUMBER, benchmark_markdown(held))}
    return given_by_values(held)


def given_by_table(table: Table, outcomes: dict[str, Any]) -> set[float]:
    """Return the numbers of a table, its runs' scores in %, and the paired differences of any two methods."""
    if not outcomes["cells"]:
        return set()
    found = [markdown(table, outcomes)]
    groups: dict[tuple[str, str], list[dict[int, dict]]] = {}
    for cell in outcomes["cells"]:
        runs = {run["seed"]: run for run in cell["runs"]}
        groups.setdefault((cell["source"], cell["task"]), []).append(runs)
    for cells in groups.values():
        found += [paired(one, other, table.score) for one in cells for other in cells if one is not other]
    scores = {100 * run["scores"][table.score] for cell in outcomes["cells"] for run in cell["runs"]}
    return scores | {float(text.replace(",", "")) for text in re.findall(_NUMBER, " ".join(found))}


def given_by_values(held: Any) -> set[float]:
    """Return all numbers of a JSON value, and those up to 1 times 100.

    >>> sorted(given_by_values({"accuracy": 0.25, "seconds": [3], "seed": None}))
    [0.25, 3.0, 25.0]
    """
    numbers = {float(value) for value in _leaves(held)}
    return numbers | {100 * value for value in numbers if abs(value) <= 1}


def _leaves(held: Any) -> Iterator[float]:
    if isinstance(held, dict):
        held = list(held.values())
    if isinstance(held, list):
        for each in held:
            yield from _leaves(each)
    elif isinstance(held, int | float) and not isinstance(held, bool):
        yield held
