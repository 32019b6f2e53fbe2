"""Read runs for the page: the files in their folders, and a name for each that differs from the others."""

from __future__ import annotations

import json
import os
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from ...config.values import differences
from ...registry import UserError
from ..folder import COMPARISON, METRICS, PLOTS, RESULTS, read_results
from ..tables import CAPTIONS

_CURVES = "curves"  # a picture that is left out, since the page draws curves


@dataclass(frozen=True)
class Run:
    """A finished run.

    Args:
        name: Differs from those of the other runs on the page.
        results: The content of results.json.
        history: One row an epoch; empty for a run without epochs.
        pictures: The files of its plots.
    """

    name: str
    results: dict[str, Any]
    history: list[dict[str, Any]]
    pictures: list[Path]


def read_runs(folders: Sequence[Path]) -> list[Run]:
    """Read finished runs.

    Raises:
        UserError: A folder is given twice, holds no finished run, or a file of it is damaged.
    """
    given, folders = folders, [run for folder in folders for run in _runs_of(folder)]
    if not folders:
        raise UserError(f"{str(given[0])!r} holds no finished run")
    paths = [folder.resolve() for folder in folders]
    for folder, path in zip(folders, paths, strict=True):
        if paths.count(path) > 1:
            raise UserError(f"the run {str(folder)!r} is given twice")
    shared = os.path.commonpath([path.parent for path in paths])
    return [_read(path, os.path.relpath(path, shared)) for path in paths]


def _runs_of(folder: Path) -> list[Path]:
    """Return the runs of a comparison's folder, or the folder itself."""
    if (folder / RESULTS).exists() or not (folder / COMPARISON).exists():
        return [folder]
    return sorted(path.parent for path in folder.glob(f"*/*/{RESULTS}"))


def _read(folder: Path, name: str) -> Run:
    results = read_results(folder)
    if not isinstance(results, dict) or not isinstance(results.get("metrics"), dict):
        raise UserError(f"{str(folder)!r}: its results are not those of a run")
    metrics, history = folder / METRICS, []
    if metrics.is_file():
        try:
            history = [json.loads(line) for line in metrics.read_text(encoding="utf-8").splitlines()]
        except ValueError as error:
            raise UserError(f"{str(metrics)!r} is damaged: {error}") from error
    found = {path.stem: path for path in sorted((folder / PLOTS).glob("*.png")) if path.stem != _CURVES}
    order = [name for name in CAPTIONS if name in found] + [name for name in found if name not in CAPTIONS]
    return Run(name, results, history, [found[name] for name in order])


def differing(runs: Sequence[Run]) -> list[tuple[str, list[Any]]]:
    """Return the settings in which runs differ: the dotted key, and each run's value."""
    first, keys = runs[0].results["config"], {}
    for run in runs[1:]:
        keys |= dict.fromkeys(line.partition(": ")[0] for line in differences(first, run.results["config"]))
    return [(key, [_value(run.results["config"], key) for run in runs]) for key in keys]


def _value(config: dict[str, Any], key: str) -> Any:
    for part in key.split("."):
        config = config.get(part) if isinstance(config, dict) else None
    return config
