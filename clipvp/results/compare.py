"""Grids of runs: methods, tasks, sources and config values times seeds, and one table of them in several formats."""

from __future__ import annotations

import csv
import io
import itertools
import re
import statistics
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from ..config.schema import SECTIONS, RunConfig
from ..config.values import differences, from_dict, to_dict
from ..registry import UserError
from .folder import RESULTS, read_results
from .tables import COMPARISON_COLUMNS, SCORES, signed

PICKED = "*"  # before the name of the cell that was picked
# Parts of a run's seconds that are no training: other runs share the first two.
_NO_TRAINING = ("data", "features", "testing")


@dataclass(frozen=True)
class Cell:
    """One cell of a grid: its name, and the dotted keys that it sets with their values.

    Args:
        name: Differs from those of the other cells.
        overrides: Dotted keys and values.
        group: The settings of its data, which tell it from cells that learn from other images; empty where all learn
            from the same.
    """

    name: str
    overrides: dict[str, Any]
    group: str = field(default="", compare=False)

    @property
    def folder(self) -> str:
        """The name as that of a folder."""
        return re.sub(r'[\\/:*?"<>|]', "-", self.name.replace(" ", "_"))


def grid(
    methods: Mapping[str, Mapping[str, Any]],
    vary: Mapping[str, Sequence[Any]],
    tasks: Sequence[str] = (),
    sources: Sequence[str] = (),
) -> list[Cell]:
    """Return every method with every task, source and combination of values.

    Args:
        methods: Name to dotted keys and values; may be empty.
        vary: Dotted key to the values it takes; may be empty.
        tasks: Names of tasks; those of the config when empty.
        sources: Names of sources; that of the config when empty.
    """
    axes = {"data.name": list(tasks), "source.name": list(sources)}
    axes = {key: values for key, values in axes.items() if values}
    short = {key: short_names(values) for key, values in axes.items()}
    axes |= {key: list(values) for key, values in vary.items()}
    several = {key for key, values in axes.items() if len(values) > 1}
    cells = []
    for (method, own), combination in itertools.product(
        methods.items() or [("", {})], itertools.product(*axes.values())
    ):
        values = dict(zip(axes, combination, strict=True))
        told = {
            key: short[key][value] if key in short else f"{key}={value}"
            for key, value in values.items()
            if key in several or key not in short
        }
        group = [text for key, text in told.items() if chooses_images(key)]
        name = " ".join([*([method] if method else []), *told.values()]) or "base"
        cells.append(Cell(name, {**own, **values}, ", ".join(group)))
    return cells


def chooses_images(key: str) -> bool:
    """Return whether a dotted key decides which images train, validate and test."""
    return key.startswith("data.") or key == "train.protocol"


def short_names(names: Sequence[str]) -> dict[str, str]:
    """Return for each name of a source or task its last part, or more of it where two would be alike.

    >>> short_names(["offline:lite0", "timm:hf-hub:timm/resnet18"])
    {'offline:lite0': 'lite0', 'timm:hf-hub:timm/resnet18': 'resnet18'}
    """
    short = {name: re.split(r"[/\\:]", name.rstrip("/\\"))[-1] for name in names}
    alike = {text for text in short.values() if list(short.values()).count(text) > 1}
    return {name: name if text in alike or not text else text for name, text in short.items()}


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


def tested_score(results: Mapping[str, Any]) -> str:
    """Return the key of the score that counts: of the best validation, or of the last epoch where nothing validates."""
    return "test.best_val" if results["metrics"].get("test.best_val", {}).get("n") else "test.last"


def train_seconds(results: Mapping[str, Any]) -> float:
    """Return the seconds of a run without reading images, computing features, and tests."""
    return sum(spent for part, spent in results["seconds"].items() if part not in _NO_TRAINING)


def learned_numbers(results: Mapping[str, Any]) -> int | None:
    """Return how many numbers a run learned: those that train, and those of a head that is solved; None if unknown."""
    info = results["run_info"]
    trained = info.get("trainable_parameters")
    return None if trained is None else trained + info.get("fitted_numbers", 0)


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

    body, headers = table_of(rows)
    align = ("left", *["right"] * (len(headers) - 1))
    return tabulate(body, headers, tablefmt="github", disable_numparse=True, colalign=align)


def as_latex(rows: Sequence[dict[str, Any]]) -> str:
    """Return the rows as a LaTeX table with the rules of booktabs."""
    from tabulate import tabulate

    body, headers = table_of(rows)
    align = ("left", *["right"] * (len(headers) - 1))
    text = tabulate(body, headers, tablefmt="latex_booktabs", disable_numparse=True, colalign=align)
    return text.replace("±", r"$\pm$")


def as_csv(rows: Sequence[dict[str, Any]]) -> str:
    """Return the rows as CSV, numbers as they are; lists and settings are left out."""
    lines = [_flat(row) for row in rows]
    columns = list(dict.fromkeys(key for line in lines for key in line))
    text = io.StringIO()
    writer = csv.DictWriter(text, columns, lineterminator="\n")
    writer.writeheader()
    writer.writerows(lines)
    return text.getvalue()


def _flat(values: Mapping[str, Any], prefix: str = "") -> dict[str, Any]:
    found: dict[str, Any] = {}
    for key, value in values.items():
        if isinstance(value, Mapping):
            found |= _flat(value, f"{prefix}{key}.")
        elif key == "seeds":
            found[f"{prefix}{key}"] = len(value)
        elif not isinstance(value, list):
            found[f"{prefix}{key}"] = value
    return found


def table_of(rows: Sequence[dict[str, Any]]) -> tuple[list[list[str]], list[str]]:
    """Return a table's rows and headers as text; columns that no row has are left out."""
    scores = [metric for metric in SCORES if any(row.get(metric) for row in rows)]
    others = [key for key in COMPARISON_COLUMNS if any(row.get(key) is not None for row in rows)]
    columns = [*scores[:1], *(key for key in ("interval", "minus_pick") if key in others), *scores[1:]]
    columns += [key for key in others if key not in columns]
    picks = any(row.get("pick") for row in rows)
    mark = {True: f"{PICKED} ", False: "  " if picks else ""}
    body = [
        [(mark[bool(row.get("pick"))] + row["cell"]).rstrip(), *(_text(key, row) for key in columns)]
        for row in rows
    ]
    names = [f"{SCORES[key]} (%)" if key in SCORES else COMPARISON_COLUMNS[key] for key in columns]
    return body, [f"{PICKED} picked by validation" if picks else "", *names]


def _text(key: str, row: Mapping[str, Any]) -> str:
    """Return one cell of the table."""
    value = row.get(key)
    if value is None:
        return "-"
    if key in SCORES:
        mean = f"{100 * value['mean']:.1f}"
        return mean if value["std"] is None else f"{mean} ± {100 * value['std']:.1f}"
    if key == "interval":
        return f"{100 * value['low']:.1f} to {100 * value['high']:.1f}"
    if key == "minus_pick":
        ends = "" if value["low"] is None else f" ({signed(value['low'])} to {signed(value['high'])})"
        return signed(value["mean"]) + ends
    if key == "seeds":
        return str(len(value))
    if key == "bytes":
        return f"{value / 1000:.0f}"
    if key == "numbers":
        return f"{value:,}"
    return f"{value:.1f}" if key == "train_seconds" else f"{value:.0f}"
