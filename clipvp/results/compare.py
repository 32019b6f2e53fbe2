"""Grids of runs: methods and config values times seeds, one table of means and standard deviations."""

from __future__ import annotations

import itertools
import statistics
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from ..config.schema import SECTIONS, RunConfig
from ..config.values import differences, from_dict, to_dict
from ..registry import UserError
from .folder import RESULTS, read_results
from .tables import SCORES


@dataclass(frozen=True)
class Cell:
    """One cell of a grid: its name, and the dotted keys that it sets with their values."""

    name: str
    overrides: dict[str, Any]


def grid(methods: dict[str, dict[str, Any]], vary: dict[str, Sequence[Any]]) -> list[Cell]:
    """Return every method with every combination of values.

    Args:
        methods: Name to dotted keys and values; may be empty.
        vary: Dotted key to the values it takes; may be empty.
    """
    cells = []
    for method, combination in itertools.product(
        methods.items() or [("", {})], itertools.product(*vary.values())
    ):
        values = dict(zip(vary, combination, strict=True))
        parts = [method[0]] if method[0] else []
        parts += [f"{key}={value}" for key, value in values.items()]
        cells.append(Cell(" ".join(parts) or "base", {**method[1], **values}))
    return cells


def with_overrides(base: RunConfig, overrides: dict[str, Any], seed: int, output: Path) -> RunConfig:
    """Return the config with dotted keys replaced.

    Raises:
        UserError: A key that the config does not have, or a value that is not allowed.
    """
    values = to_dict(base)
    for key, value in overrides.items():
        *sections, last = key.split(".")
        target = values
        for section in sections:
            target = target.setdefault(section, {})
            if not isinstance(target, dict):
                raise UserError(f"unknown key {key!r}: {section} has no keys")
        target[last] = value
    values |= {"seed": seed, "output": str(output), "resume": "auto", "overwrite": False}
    config = from_dict(values)
    for key in overrides:  # keys of other choices are ignored above: the base may hold them
        name, _, inner = key.partition(".")
        if name in SECTIONS:
            choice = getattr(getattr(config, name), SECTIONS[name].key)
            if inner.partition(".")[0] not in SECTIONS[name].keys(choice):
                raise UserError(SECTIONS[name].unknown(inner, choice))
    return config


def finished(config: RunConfig) -> dict[str, Any] | None:
    """Return the results of a cell, or None if it has not finished.

    Raises:
        UserError: The folder holds results of another config.
    """
    if not (Path(config.output) / RESULTS).exists():
        return None
    results = read_results(config.output)
    differ = differences(results.get("config", {}), to_dict(config))
    if differ:
        raise UserError(
            f"{config.output!r} holds a run of another config ({'; '.join(differ)}); choose another --output"
        )
    return results


def summarise(cells: dict[str, list[dict[str, Any]]]) -> list[dict[str, Any]]:
    """Return one row a cell: mean and sample standard deviation of each score over the seeds.

    Args:
        cells: Cell name to the results of its seeds.
    """
    rows = []
    for name, runs in cells.items():
        row: dict[str, Any] = {"cell": name, "seeds": [run["seed"] for run in runs]}
        for metric in SCORES:
            values = [run["metrics"].get(metric, {}).get("acc1") for run in runs]
            row[metric] = None
            if values and None not in values:
                deviation = statistics.stdev(values) if len(values) > 1 else None
                row[metric] = {"mean": statistics.fmean(values), "std": deviation, "values": values}
        row["seconds"] = statistics.fmean(sum(run["seconds"].values()) for run in runs) if runs else None
        rows.append(row)
    return rows


def markdown(rows: Sequence[dict[str, Any]]) -> str:
    """Return the rows as a Markdown table; accuracies in % as mean ± standard deviation."""
    from tabulate import tabulate

    def cell(score: dict[str, Any] | None) -> str:
        if score is None:
            return "-"
        mean = f"{100 * score['mean']:.1f}"
        return mean if score["std"] is None else f"{mean} ± {100 * score['std']:.1f}"

    shown = [metric for metric in SCORES if any(row[metric] for row in rows)]
    table = [
        [
            row["cell"],
            *(cell(row[metric]) for metric in shown),
            len(row["seeds"]),
            f"{row['seconds'] or 0:.0f}",
        ]
        for row in rows
    ]
    headers = ["", *(f"{SCORES[metric]} (%)" for metric in shown), "seeds", "seconds a run"]
    align = ("left", *["right"] * (len(headers) - 1))
    return tabulate(table, headers, tablefmt="github", disable_numparse=True, colalign=align)
