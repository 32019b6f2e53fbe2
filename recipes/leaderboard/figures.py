"""Figures that pages say by hand: each must stand in a marked place, and a kept file must give it.

What stands between ``<!-- figures: NAME, NAME -->`` and ``<!-- end -->`` is written by hand. A name is that of a table,
``comparisons/NAME``, ``speed/NAME`` (what recipes/benchmark.py wrote) or ``others/NAME`` (what other commands measured,
and what papers report). A number must be in one of the files up to rounding; an interval with both of its ends, as
it is or turned round, as A minus B is for B minus A.
"""

from __future__ import annotations

import json
import math
import re
from collections.abc import Iterable
from dataclasses import dataclass, field
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
_DECIMAL = re.compile(r"(?<![\w.,])\d+\.\d+(?![\w]|\.\d)")
_SIGNED = re.compile(r"(?<![\w.,+-])[+-](\d+\.\d+)(?![\w]|\.\d)")
_RANGE = re.compile(r"(?<![\w.,+-])([+-]?\d+\.\d+) to ([+-]?\d+\.\d+)(?![\w]|\.\d)")
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
        for names, body in marked(text):
            files = [given(name) for name in names]
            missing = [figure for figure in figures_in(body) if not any(each.has(figure) for each in files)]
            ranges = [
                pair for pair in _RANGE.findall(body) if not any(each.has_range(*pair) for each in files)
            ]
            if missing := [*missing, *map(" to ".join, ranges)]:
                found.append(f"{path}: {', '.join(missing)}: not in {', '.join(names)}")
    return found


def marked(text: str) -> list[tuple[list[str], str]]:
    """Return what a page says by hand of kept results: the names of their files, and the text without code."""
    return [(names.split(", "), _plain(body)) for names, body in _MARKED.findall(text)]


def unmarked_figures(text: str) -> list[str]:
    """Return the figures of a page that stand outside the marked places and outside code.

    A figure is a number with a unit of accuracy, time or size, a decimal number with a sign, in an interval or in a row
    of a table.
    """
    rest = _plain(_TABLE.sub("", _MARKED.sub("", text)))
    rows = [line for line in rest.splitlines() if line.startswith("|")]
    return _measured(rest) + [figure for line in rows for figure in _DECIMAL.findall(line)]


def figures_in(text: str) -> list[str]:
    """Return all decimal numbers of a text, and whole numbers with a unit."""
    return [*_DECIMAL.findall(text), *(each for each in _measured(text) if "." not in each)]


def _measured(text: str) -> list[str]:
    ranges = [bound.lstrip("+-") for found in _RANGE.findall(text) for bound in found]
    return list(dict.fromkeys(_WITH_UNIT.findall(text) + _SIGNED.findall(text) + ranges))


def _plain(text: str) -> str:
    """Return a text without code, addresses of links and the size of its intervals."""
    return _INTERVAL.sub("", _LINK.sub("]", _CODE.sub("", text)))


@dataclass
class Given:
    """The numbers and the intervals that a file gives."""

    numbers: set[float] = field(default_factory=set)
    ranges: set[tuple[float, float]] = field(default_factory=set)

    @classmethod
    def of_text(cls, text: str) -> Given:
        numbers = {float(number.replace(",", "")) for number in re.findall(_NUMBER, text)}
        return cls(numbers, {(float(low), float(high)) for low, high in _RANGE.findall(text)})

    def has(self, figure: str) -> bool:
        """Return whether a number is a page's figure up to rounding, whatever the sign.

        >>> Given({-31.2}).has("31"), Given({31.2}).has("31.0"), Given({1234.0}).has("1,234")
        (True, False, True)
        """
        return any(_rounds_to(abs(each), figure) for each in self.numbers)

    def has_range(self, low: str, high: str) -> bool:
        """Return whether an interval is a page's up to rounding, as it is or turned round.

        >>> one, other = Given(ranges={(-0.52, 1.0)}), Given(ranges={(0.5, 1.0)})
        >>> one.has_range("-0.5", "+1.0"), one.has_range("-1.0", "+0.5"), other.has_range("-0.5", "+1.0")
        (True, True, False)
        """
        both = [*self.ranges, *((-high, -low) for low, high in self.ranges)]
        return any(_rounds_to(ours[0], low) and _rounds_to(ours[1], high) for ours in both)


def _rounds_to(number: float, figure: str) -> bool:
    digits = len(figure.partition(".")[2])
    return math.isclose(number, float(figure.replace(",", "")), abs_tol=0.5000001 * 10**-digits)


@cache
def given(name: str) -> Given:
    """Return what a kept file gives; shares of 1 also in %, and of a table the differences of all pairs.

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
        return Given.of_text(benchmark_markdown(held))
    return given_by_values(held)


def given_by_table(table: Table, outcomes: dict[str, Any]) -> Given:
    """Return the numbers of a table, its runs' scores in %, and the paired differences of any two methods."""
    if not outcomes["cells"]:
        return Given()
    found = [markdown(table, outcomes)]
    groups: dict[tuple[str, str], list[dict[int, dict]]] = {}
    for cell in outcomes["cells"]:
        runs = {run["seed"]: run for run in cell["runs"]}
        groups.setdefault((cell["source"], cell["task"]), []).append(runs)
    for cells in groups.values():
        found += [paired(one, other, table.score) for one in cells for other in cells if one is not other]
    result = Given.of_text("\n".join(found))
    result.numbers |= {100 * run["scores"][table.score] for cell in outcomes["cells"] for run in cell["runs"]}
    return result


def given_by_values(held: Any) -> Given:
    """Return all numbers of a JSON value and its intervals (``low`` and ``high``, or a list of two), and both times 100
    where they are shares.

    >>> found = given_by_values({"accuracy": 0.25, "interval": {"low": -0.1, "high": 0.5}, "seed": None})
    >>> sorted(found.numbers), sorted(found.ranges)
    ([-10.0, -0.1, 0.25, 0.5, 25.0, 50.0], [(-10.0, 50.0), (-0.1, 0.5)])
    """
    found = Given()
    _gather(held, found)
    found.numbers |= {100 * value for value in found.numbers if abs(value) <= 1}
    found.ranges |= {(100 * low, 100 * high) for low, high in found.ranges if max(abs(low), abs(high)) <= 1}
    return found


def _gather(held: Any, found: Given) -> None:
    if isinstance(held, dict):
        if {"low", "high"} <= held.keys():
            found.ranges.add((held["low"], held["high"]))
        held = list(held.values())
    if isinstance(held, list):
        if len(held) == 2 and all(isinstance(each, int | float) for each in held):
            found.ranges.add((held[0], held[1]))
        for each in held:
            _gather(each, found)
    elif isinstance(held, int | float) and not isinstance(held, bool):
        found.numbers.add(float(held))
