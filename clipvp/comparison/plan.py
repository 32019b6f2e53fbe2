"""Which runs a comparison has, checked before any of them starts."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from ..config.schema import RunConfig
from ..config.values import flat, to_dict
from ..registry import UserError
from ..results.compare import Cell, chooses_images, grid, with_overrides
from .methods import DEFAULT_METHODS, read_method

_OF_EACH_RUN = ("seed", "output", "resume", "overwrite")


@dataclass(frozen=True, eq=False)
class Job:
    """One run of a comparison.

    Args:
        cell: What is compared; its other jobs have other seeds.
        config: The run.
    """

    cell: Cell
    config: RunConfig

    @property
    def folder(self) -> Path:
        return Path(self.config.output)

    @property
    def key(self) -> str:
        return self.folder.as_posix()

    def __str__(self) -> str:
        return f"{self.cell.name}, seed {self.config.seed}"


@dataclass(frozen=True)
class Plan:
    """The runs of a comparison.

    Args:
        jobs: By the name of a cell, one job a seed.
        chosen: Whether the methods were chosen here; those that do not fit a source are then left out.
    """

    jobs: dict[str, list[Job]]
    chosen: bool


def make_plan(
    config: RunConfig,
    *,
    methods: Sequence[str],
    tasks: Sequence[str],
    sources: Sequence[str],
    vary: Mapping[str, Sequence[Any]],
    seeds: Sequence[int],
    output: Path,
) -> Plan:
    """Return every method with every task, source, combination of values and seed.

    Raises:
        UserError: A name, key or value is wrong, or there is nothing to run.
    """
    for what, given in (("methods", methods), ("tasks", tasks), ("sources", sources), ("seeds", seeds)):
        _check_once(f"--{what}: ", given)
    if not seeds:
        raise UserError("--seeds is empty; give one or more, such as [0, 1, 2]")
    vary = _values_to_vary(vary)
    for option, key, given in (("tasks", "data.name", tasks), ("sources", "source.name", sources)):
        if given and key in vary:
            raise UserError(f"--{option} and --vary both set {key}; give all values in one of them")
    chosen = not methods and not vary
    read = {name: read_method(name) for name in (DEFAULT_METHODS if chosen else methods)}
    for what, keys in (("--vary", vary), *((f"method {name!r}", own) for name, own in read.items())):
        for key in _OF_EACH_RUN:
            if key in keys:
                raise UserError(f"{what}: {key} is set by the comparison; give seeds with --seeds")
    cells = grid(read, vary, tasks=tasks, sources=sources)
    _check_folders((repr(cell.name), cell.folder) for cell in cells)
    jobs: dict[str, list[Job]] = {}
    for cell in cells:
        folder = output / cell.folder
        jobs[cell.name] = [
            Job(cell, with_overrides(config, cell.overrides, seed, folder / f"seed{seed}")) for seed in seeds
        ]
    own = {key for values in read.values() for key in values if chooses_images(key)} - vary.keys()
    jobs = _regrouped(jobs, sorted(own))
    groups = dict.fromkeys(row[0].cell.group for row in jobs.values())
    _check_folders((f"{group!r}", f"best/{group_folder(group)}") for group in groups)
    return Plan(jobs, chosen)


def group_folder(group: str) -> str:
    """Return the name of the folder of a group's picked prompt."""
    return "".join(letter if letter.isalnum() or letter in "._=-" else "_" for letter in group)


def _values_to_vary(vary: Any) -> dict[str, list[Any]]:
    """Return the dotted keys of ``--vary`` with their lists of values.

    Raises:
        UserError: It is not keys with lists of different values.
    """
    if not isinstance(vary, Mapping):
        raise UserError(
            f"--vary: {vary!r} is not dotted keys with lists of values, such as {{optim.lr: [0.1, 1]}}"
        )
    found = {}
    for key, values in vary.items():
        if not isinstance(key, str):
            raise UserError(f"--vary: {key!r} is not a dotted key, such as optim.lr")
        if isinstance(values, (str, bytes, Mapping)) or not isinstance(values, Iterable):
            raise UserError(f"--vary: {key}: {values!r} is not a list of values; give [{values}]")
        found[key] = list(values)
        if not found[key]:
            raise UserError(f"--vary: {key} has no values")
        _check_once(f"--vary: {key}=", found[key])
    return found


def _check_once(what: str, values: Sequence[Any]) -> None:
    """Raise ``UserError`` where two values are equal, or have the same text and so the same name."""
    for place, value in enumerate(values):
        if any(value == other or str(value) == str(other) for other in values[:place]):
            raise UserError(f"{what}{value} is given twice")


def _check_folders(folders: Iterable[tuple[str, str]]) -> None:
    """Raise ``UserError`` where two names have the same folder."""
    owners: dict[str, str] = {}
    for name, folder in folders:
        if folder in owners:
            raise UserError(
                f"{owners[folder]} and {name} would share the folder {folder}; rename one of them"
            )
        owners[folder] = name


def _regrouped(jobs: dict[str, list[Job]], keys: Sequence[str]) -> dict[str, list[Job]]:
    """Return the jobs with groups that tell apart methods whose own settings of ``keys`` differ."""
    settings = {name: flat(to_dict(row[0].config)) for name, row in jobs.items()} if keys else {}
    told: dict[str, list[str]] = {name: [] for name in jobs}
    for key in keys:
        if len({repr(values.get(key)) for values in settings.values()}) > 1:
            for name, values in settings.items():
                told[name].append(f"{key}={values.get(key)}")

    def grouped(cell: Cell) -> Cell:
        return replace(cell, group=", ".join([*filter(None, [cell.group]), *told[cell.name]]))

    return {name: [replace(job, cell=grouped(job.cell)) for job in row] for name, row in jobs.items()}
