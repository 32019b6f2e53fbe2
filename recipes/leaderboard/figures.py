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
from .differences import paired
from .outcomes import read_outcomes
from .pages import markdown
from .tables import RESULTS, Table, read_tables

_MARKED = re.compile(r"<!-- figures: ([^>]+) -->\n(.*?)<!-- end -->", re.DOTALL)
_TABLE = re.compile(r"<!-- table: \S+ -->\n.*?<!-- end -->", re.DOTALL)
_CODE = re.compile(r"```.*?```|`[^`\n]*`", re.DOTALL)
_LINK = re.compile(r"\]\([^)]*\)")
# Names with numbers, which are no figures.
_NAMES = re.compile(r"CIFAR-10\b|MobileNetV2|ViT-[BL]/\d+|\b[BL]/\d+|95 %(?= (?:t )?intervals?)")
_NUMBER = r"(?<![\w.,])(?:\d{1,3}(?:,\d{3})+|\d+)(?:\.\d+)?(?![\w]|\.\d)"
_UNIT = (
    r"(?:\*\*)? ?(?:%|points?\b|±|ms\b|s\b|minutes?\b|seconds?\b|hours?\b|times as\b|kB\b|MB\b|GB\b|images/s)"
)
_WITH_UNIT = re.compile(rf"({_NUMBER})(?={_UNIT})")
_DECIMAL = re.compile(r"(?<![\w.,])\d+\.\d+(?![\w]|\.\d)")
_SIGNED = re.compile(r"(?<![\w.,+-])[+-](\d+\.\d+)(?![\w]|\.\d)")
_NO_SHARES = {"p", "p_holm", "seconds", "train_seconds", "best_tpe"}  # keys of numbers that are no shares
_END = r"(?:[+-]\d+(?:\.\d+)?|\d+\.\d+)"
_RANGE = re.compile(rf"(?<![\w.,+-])({_END}) to ({_END})(?![\w]|\.\d)")
_DIFFERENCE = re.compile(
    rf"(?<![\w.,+-])([+-]?\d+\.\d+)(?:\*\*)?(?:[^\d|+]{{0,30}}?)({_END}) to ({_END})(?![\w]|\.\d)"
)


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
            missing += [
                " to ".join(ends)
                for ends in _RANGE.findall(body)
                if not any(f.has_range(*ends) for f in files)
            ]
            for mean, low, high in _DIFFERENCE.findall(body):
                if not any(each.has_range(low, high, mean) for each in files):
                    missing.append(f"{mean} ({low} to {high})")
            if missing:
                found.append(f"{path}: {', '.join(missing)}: not in {', '.join(names)}")
    return found


def marked(text: str) -> list[tuple[list[str], str]]:
    """Return what a page says by hand of kept results: the names of their files, and the text without code."""
    return [(names.split(", "), _plain(body)) for names, body in _MARKED.findall(text)]


def unmarked_figures(text: str) -> list[str]:
    """Return the figures of a page that stand outside the marked places and outside code.

    A figure is a number with a unit of accuracy, time or size, a decimal number with a sign or in an interval, or one
    in a row of a table. A decimal number without all that may be a setting.
    """
    rest = _plain(_TABLE.sub("", _MARKED.sub("", text)))
    return list(
        dict.fromkeys(_measured(rest) + [each for row in _rows(rest) for each in _DECIMAL.findall(row)])
    )


def figures_in(text: str) -> list[str]:
    """Return all decimal numbers of a text, and whole numbers with a unit or in a row of a table."""
    whole = _measured(text) + [number for row in _rows(text) for number in re.findall(_NUMBER, row)]
    return list(dict.fromkeys(_DECIMAL.findall(text) + whole))


def _measured(text: str) -> list[str]:
    ends = [end.lstrip("+-") for found in _RANGE.findall(text) for end in found]
    return _WITH_UNIT.findall(text) + _SIGNED.findall(text) + ends


def _rows(text: str) -> list[str]:
    return [line for line in text.splitlines() if line.lstrip().startswith("|")]


def _plain(text: str) -> str:
    """Return a text without code, addresses of links and names with numbers; a paragraph is one line."""
    text = _NAMES.sub("", _LINK.sub("]", _CODE.sub("", text)))
    return re.sub(r"(?<!\n)\n(?![\n|])", " ", text)


@dataclass
class Given:
    """The numbers and the intervals that a file gives."""

    numbers: set[float] = field(default_factory=set)
    ranges: set[tuple[float, float, float | None]] = field(default_factory=set)  # low, high and mean

    @classmethod
    def of_text(cls, text: str) -> Given:
        numbers = {float(number.replace(",", "")) for number in re.findall(_NUMBER, text)}
        ranges = {(float(low), float(high), None) for low, high in _RANGE.findall(text)}
        ranges |= {(float(low), float(high), float(mean)) for mean, low, high in _DIFFERENCE.findall(text)}
        return cls(numbers, ranges)

    def has(self, figure: str) -> bool:
        """Return whether a number is a page's figure up to rounding, whatever the sign.

        >>> Given({-31.2}).has("31"), Given({31.2}).has("31.0"), Given({1234.0}).has("1,234")
        (True, False, True)
        """
        return any(_rounds_to(abs(each), figure) for each in self.numbers)

    def has_range(self, low: str, high: str, mean: str | None = None) -> bool:
        """Return whether an interval is a page's up to rounding, as it is or turned round, with its mean if given.

        >>> given = Given(ranges={(-0.52, 1.0, 0.24)})
        >>> given.has_range("-0.5", "+1.0"), given.has_range("-1.0", "+0.5", "-0.2"), given.has_range("-0.5", "+0.9")
        (True, True, False)
        >>> given.has_range("-0.5", "+1.0", "0.2"), given.has_range("-0.5", "+1.0", "-0.2")
        (True, False)
        """
        found = [*self.ranges, *((-high, -low, middle and -middle) for low, high, middle in self.ranges)]
        found = [middle for *ends, middle in found if _rounds_to(ends[0], low) and _rounds_to(ends[1], high)]
        known = [middle for middle in found if middle is not None]
        if mean is None or not known:
            return bool(found)
        signed = mean[0] in "+-"
        return any(_rounds_to(middle if signed else abs(middle), mean) for middle in known)


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
    """Return the numbers of a table, and the paired differences of any two methods."""
    if not outcomes["cells"]:
        return Given()
    found = [markdown(table, outcomes)]
    groups: dict[tuple[str, str], list[dict[int, dict]]] = {}
    for cell in outcomes["cells"]:
        runs = {run["seed"]: run for run in cell["runs"]}
        groups.setdefault((cell["source"], cell["task"]), []).append(runs)
    for cells in groups.values():
        found += [paired(one, other, table.score) for one in cells for other in cells if one is not other]
    return Given.of_text("\n".join(found))


def given_by_values(held: Any) -> Given:
    """Return all numbers of a JSON value and its intervals (``low`` and ``high`` with the ``mean``, or a list of two).

    Both also times 100 where they are shares: up to 1, and neither seconds nor a p.

    >>> found = given_by_values({"accuracy": 0.25, "interval": {"low": -0.1, "high": 0.5}, "p": 0.01})
    >>> sorted(found.numbers), sorted(found.ranges)
    ([-10.0, -0.1, 0.01, 0.25, 0.5, 25.0, 50.0], [(-10.0, 50.0, None), (-0.1, 0.5, None)])
    """
    found = Given()
    _gather(held, found, True)
    return found


def _gather(held: Any, found: Given, share: bool) -> None:
    if isinstance(held, dict):
        if {"low", "high"} <= held.keys():
            _add_range(found, held["low"], held["high"], held.get("mean"))
        for key, value in held.items():
            _gather(value, found, share and key not in _NO_SHARES)
    elif isinstance(held, list):
        if len(held) == 2 and all(isinstance(each, int | float) for each in held):
            _add_range(found, *held, None)
        for value in held:
            _gather(value, found, share)
    elif isinstance(held, int | float) and not isinstance(held, bool):
        found.numbers |= {float(held), 100 * held} if share and abs(held) <= 1 else {float(held)}


def _add_range(found: Given, low: float, high: float, mean: float | None) -> None:
    found.ranges.add((low, high, mean))
    if max(abs(low), abs(high)) <= 1:
        found.ranges.add((100 * low, 100 * high, None if mean is None else 100 * mean))
