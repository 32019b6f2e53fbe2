"""Which runs a comparison has, checked before any of them starts."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
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
        if repeated := sorted({str(value) for value in given if list(given).count(value) > 1}):
            raise UserError(f"--{what}: {repeated[0]} is given twice")
    if not seeds:
        raise UserError("--seeds is empty; give one or more, such as [0, 1, 2]")
    chosen = not methods and not vary
    read = {name: read_method(name) for name in (DEFAULT_METHODS if chosen else methods)}
    for what, keys in (("--vary", vary), *((f"method {name!r}", own) for name, own in read.items())):
        for key in _OF_EACH_RUN:
            if key in keys:
                raise UserError(f"{what}: {key} is set by the comparison; give seeds with --seeds")
    cells = grid(read, vary, tasks=tasks, sources=sources)
    if empty := [key for key, values in vary.items() if not list(values)]:
        raise UserError(f"--vary: {empty[0]} has no values")
    jobs: dict[str, list[Job]] = {}
    for cell in cells:
        folder = output / cell.folder
        jobs[cell.name] = [
            Job(cell, with_overrides(config, cell.overrides, seed, folder / f"seed{seed}")) for seed in seeds
        ]
    own = {key for values in read.values() for key in values if chooses_images(key)} - vary.keys()
    return Plan(_regrouped(jobs, sorted(own)), chosen)


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
