"""The folder of a run: its files, who may write them, and reading its results."""

from __future__ import annotations

import atexit
import json
import os
import shutil
from pathlib import Path
from typing import Any

from ..config.schema import RunConfig
from ..config.values import settings_of
from ..files import remove_asides, write_json, write_text
from ..registry import UserError
from . import lock

CONFIG, METRICS, RESULTS = "config.yaml", "metrics.jsonl", "results.json"
CHECKPOINTS, PROMPT, PLOTS, LOGS = "checkpoints", "prompt", "plots", "logs"
COMPARISON = "compare.json"  # in a folder of many runs
PROMPT_AVERAGE, PAGE, CORRECT = "prompt_average", "report.html", "correct.json"
_ALL = (CONFIG, METRICS, RESULTS, CORRECT, CHECKPOINTS, PROMPT, PROMPT_AVERAGE, PLOTS, LOGS, PAGE)


class RunFolder:
    """The files of one run.

    Args:
        path: The folder; nothing is created before ``start``.
        writes: Whether this process writes; only the main process does.
    """

    def __init__(self, path: str | Path, writes: bool = True):
        self.path, self.writes = Path(path), writes

    def holds_run(self) -> bool:
        return any((self.path / name).exists() for name in _ALL)

    def check(self, resume: bool, overwrite: bool) -> None:
        """Raise ``UserError`` if the folder cannot be written, or already holds a run and neither option is set."""
        if not self.writes:
            return
        nearest = next(path for path in (self.path, *self.path.absolute().parents) if path.exists())
        if not nearest.is_dir():
            raise UserError(f"output: {str(nearest)!r} is a file, not a folder")
        if not os.access(nearest, os.W_OK | os.X_OK):
            raise UserError(f"output: {str(nearest)!r} may not be written")
        if self.holds_run() and not resume and not overwrite:
            raise UserError(
                f"output: {str(self.path)!r} holds a run already; choose another folder, go on with "
                "--resume auto, or replace it with --overwrite true"
            )

    def claim(self, resume: bool, overwrite: bool) -> None:
        """``check`` the folder and lock it, so that no other run writes to it until ``release``."""
        if not self.writes:
            return
        self.check(resume=True, overwrite=True)
        lock.take(self.path)
        try:
            self.check(resume, overwrite)
        except UserError:
            self.release()
            raise

    def release(self) -> None:
        if self.writes:
            lock.give_back(self.path)

    def tidy(self) -> None:
        """Remove files that a killed process did not finish writing."""
        if self.writes and self.holds_run():
            for name in ("", CHECKPOINTS, PROMPT, PROMPT_AVERAGE):
                remove_asides(self.path / name)

    def start(self, config: RunConfig, overwrite: bool) -> None:
        """Create the folder and write the config; with ``overwrite``, first remove the files of an old run."""
        if not self.writes:
            return
        if overwrite:
            for name in _ALL:
                target = self.path / name
                shutil.rmtree(target) if target.is_dir() else target.unlink(missing_ok=True)
        self.path.mkdir(parents=True, exist_ok=True)
        write_text(self.path / CONFIG, config_yaml(config))

    def write_metrics(self, history: list[dict[str, Any]]) -> None:
        """Write one line an epoch. The whole file is written each time, so that a resumed run leaves no line twice."""
        if self.writes:
            write_text(
                self.path / METRICS, "".join(json.dumps(row, allow_nan=False) + "\n" for row in history)
            )

    def write_results(self, results: dict[str, Any]) -> None:
        if self.writes:
            write_json(self.path / RESULTS, results)


def claim_output(config: RunConfig, resumes: bool = True) -> RunFolder:
    """Check the output folder and lock it until this process ends, before heavy imports; return it.

    Several processes do so together, in ``fit``.

    Args:
        config: ``output``, ``resume`` and ``overwrite`` are used.
        resumes: Whether this kind of run can go on from a checkpoint.

    Raises:
        UserError: The folder cannot be written, holds a run already, or another run writes to it now.
    """
    run = RunFolder(config.output)
    if os.environ.get("WORLD_SIZE", "1") == "1":
        run.claim(resume=resumes and config.resume == "auto", overwrite=config.overwrite)
        atexit.register(run.release)
    return run


def config_yaml(config: RunConfig) -> str:
    """Return a config as YAML that ``--config`` reads."""
    import yaml

    values = settings_of(config)
    text = yaml.safe_dump(values, sort_keys=False, allow_unicode=True)
    # YAML loses a few control characters that it writes as they are.
    return text if yaml.safe_load(text) == values else yaml.safe_dump(values, sort_keys=False)


def read_results(folder: str | Path) -> dict[str, Any]:
    """Return the results of a finished run.

    Raises:
        UserError: The folder holds no finished run.
    """
    path = Path(folder) / RESULTS
    try:
        return json.loads(path.read_text(encoding="utf-8"))
    except FileNotFoundError:
        runs = sorted(str(inner.parent) for inner in Path(folder).glob(f"*/*/{RESULTS}"))  # of a comparison
        hint = f"; did you mean {runs[0]!r}?" if runs else ""
        raise UserError(f"{str(folder)!r} holds no finished run: {RESULTS} is missing{hint}") from None
    except json.JSONDecodeError as error:
        raise UserError(f"{str(path)!r} is damaged: {error}") from error
