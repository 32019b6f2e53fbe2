"""What a table is: its YAML file, the runs that it asks for, and where each run lies."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import MISSING, dataclass, field, fields, replace
from functools import cached_property
from pathlib import Path
from typing import Any

from clipvp.config.parse import flat_sections, from_dict, read_yaml
from clipvp.config.schema import RunConfig
from clipvp.presets import methods
from clipvp.registry import UserError, check_choice
from clipvp.results.compare import with_overrides
from clipvp.results.tables import SCORES

RESULTS = Path(__file__).parents[1] / "results"  # NAME.yaml and NAME.json
COLUMNS = ("trainable", "queries", "seconds")


@dataclass(eq=False)
class Cell:
    """The runs of one source, task and method: they differ in their seeds.

    Args:
        source: Its title in the table.
        task: Its title.
        method: Its name.
        base: Config values that all runs of the table share.
        values: Those of the cell, with the places of data and models on this machine.
        folder: Folder of the cell's runs.
    """

    source: str
    task: str
    method: str
    base: dict[str, Any]
    values: dict[str, Any]
    folder: Path

    @cached_property
    def config(self) -> RunConfig:
        return with_overrides(from_dict(nested(self.base)), self.values, 0, self.folder)


@dataclass(eq=False)
class Run:
    """One run of a cell."""

    cell: Cell
    seed: int

    @property
    def name(self) -> str:
        return f"{self.cell.source}, {self.cell.task}, {self.cell.method}, seed {self.seed}"

    @property
    def folder(self) -> Path:
        return self.cell.folder / f"seed{self.seed}"

    @property
    def config(self) -> RunConfig:
        return replace(self.cell.config, seed=self.seed, output=str(self.folder))


@dataclass
class Table:
    """A table of runs: each source, task, method and seed is one. Values are config values by dotted key.

    Args:
        name: Its file's, without the ending.
        about: What it shows, in one or two sentences below the table.
        base: Config values that all runs share.
        sources: Title of a source to its values.
        tasks: Title of a task to its values.
        methods: Name of a file in recipes/configs/methods to values that differ from it; or a name of its own whose
            values say which file with the key ``method``.
        seeds: One run for each.
        reference: The method that the others are compared with, on the same seeds.
        score: What is shown of a run, a key of its ``metrics``.
        columns: What stands beside the accuracies: of trainable (numbers), queries (images that the source was asked
            about) and seconds (a run, median).
        picture: A file in docs/pages/images for the validation accuracy by queries; None for no picture.
    """

    name: str
    about: str
    base: dict[str, Any]
    sources: dict[str, dict[str, Any]]
    tasks: dict[str, dict[str, Any]]
    methods: dict[str, dict[str, Any]]
    reference: str
    seeds: list[int] = field(default_factory=lambda: [0, 1, 2, 3, 4])
    score: str = "test.last"
    columns: list[str] = field(default_factory=lambda: ["trainable"])
    picture: str | None = None

    def __post_init__(self):
        self.methods = {name: method_values(name, more or {}) for name, more in self.methods.items()}
        check_choice(f"{self.name}: reference", self.reference, self.methods)
        check_choice(f"{self.name}: score", self.score, SCORES)
        for column in self.columns:
            check_choice(f"{self.name}: columns", column, COLUMNS)

    def values(self, source: str, task: str, method: str) -> dict[str, Any]:
        """Return the config values in which a run differs from ``base``."""
        return {**self.sources[source], **self.tasks[task], **self.methods[method]}

    def runs(self, output: Path, places: dict[str, str]) -> list[Run]:
        """Return all runs, the first seed of all methods first.

        Args:
            output: Folder of all tables' runs.
            places: Where a task or model lies that ``data.name`` or the end of ``source.name`` names.
        """
        cells = []
        for task in self.tasks:
            for source in self.sources:
                for method in self.methods:
                    values = located(self.values(source, task, method), places)
                    folder = output / self.name / "-".join(f"{source}-{task}-{method}".split())
                    cells.append(Cell(source, task, method, self.base, values, folder))
        return [Run(cell, seed) for seed in self.seeds for cell in cells]


def read_tables(names: Sequence[str] = (), folder: Path | None = None) -> list[Table]:
    """Return the tables that a folder (recipes/results when None) describes, or those named, in their order.

    Raises:
        UserError: There is no such table, or its file is not one.
    """
    folder = folder or RESULTS
    known = sorted(path.stem for path in folder.glob("*.yaml"))
    for name in names:
        check_choice("--only", name, known)
    return [_read(folder / f"{name}.yaml") for name in names or known]


def _read(path: Path) -> Table:
    import yaml

    values = yaml.safe_load(path.read_text(encoding="utf-8"))
    keys = [item for item in fields(Table) if item.name != "name"]
    for key in values:
        check_choice(str(path), key, [item.name for item in keys])
    needed = [item.name for item in keys if item.default is MISSING and item.default_factory is MISSING]
    if missing := [key for key in needed if key not in values]:
        raise UserError(f"{path}: {missing[0]} is missing")
    return Table(path.stem, **values)


def method_values(name: str, more: dict[str, Any]) -> dict[str, Any]:
    """Return the dotted keys and values of a method's file, with those that differ."""
    more = dict(more)
    file = more.pop("method", name)
    files = methods()
    check_choice("method", file, files)
    return flat_sections(read_yaml(str(files[file]))) | more


def nested(values: dict[str, Any]) -> dict[str, Any]:
    """Return dotted keys as nested dictionaries.

    >>> nested({"train.epochs": 2, "seed": 1})
    {'train': {'epochs': 2}, 'seed': 1}
    """
    found: dict[str, Any] = {}
    for key, value in values.items():
        *sections, last = key.split(".")
        target = found
        for section in sections:
            target = target.setdefault(section, {})
        target[last] = value
    return found


def read_places(given: Sequence[str], tables: Sequence[Table]) -> dict[str, str]:
    """Return the places of ``--data [NAME=PLACE, ...]``.

    Raises:
        UserError: Something given has no name or no place, or no table has a task or model of that name.
    """
    every = [values for table in tables for values in (*table.sources.values(), *table.tasks.values())]
    names = {
        values[key].rpartition(":")[2]
        for values in every
        for key in ("data.name", "source.name")
        if key in values
    }
    found = {}
    for text in given:
        name, _, place = text.partition("=")
        if not name or not place:
            raise UserError(f"--data: {text!r} is not NAME=PLACE, such as cifar10=path/to/cifar10")
        check_choice("--data", name, sorted(names))
        found[name] = place
    return found


def located(values: dict[str, Any], places: dict[str, str]) -> dict[str, Any]:
    """Return config values with the places of tasks and models in the place of their names."""
    found = dict(values)
    for key in ("data.name", "source.name"):
        scheme, colon, name = str(values.get(key, "")).rpartition(":")
        if name in places:
            found[key] = f"{scheme}{colon}{places[name]}"
    return found
