"""The runs of tables shared out over any number of worker processes that see one folder."""

from __future__ import annotations

import shutil
import time
from pathlib import Path

from filelock import FileLock, Timeout

from clipvp.config.schema import RunConfig
from clipvp.results.compare import finished
from clipvp.results.folder import CHECKPOINTS

from .tables import Run

_LOOK_SECONDS = 5  # between two looks at the runs that other workers have


def run_all(runs: list[Run], locks: Path) -> list[str]:
    """Run what is not finished; several workers may do so at once. Return what failed, one line each.

    A run that another worker has is left to it, and looked at again at the end. A killed worker's run is free again,
    and goes on from its last checkpoint.

    Args:
        runs: In their order.
        locks: Folder of the lock files.

    Raises:
        UserError: A folder holds a run of another config.
    """
    for run in runs:
        _ = run.cell.config  # values that are not allowed are told first
    left = [run for run in runs if finished(run.config) is None]  # and a wrong folder too
    print(f"{len(runs)} runs, {len(runs) - len(left)} finished before", flush=True)
    locks.mkdir(parents=True, exist_ok=True)
    failed: list[str] = []
    while left:
        busy = []
        for run in left:
            name = "-".join(run.folder.parts[-3:])
            try:
                with FileLock(locks / f"{name}.lock", timeout=0):
                    if finished(run.config) is None:
                        _run_one(run, failed)
            except Timeout:
                busy.append(run)
        if len(busy) == len(left):
            time.sleep(_LOOK_SECONDS)
        left = busy
    return failed


def _run_one(run: Run, failed: list[str]) -> None:
    from clipvp.training.failures import why_failed

    try:
        results = run_cell(run.config)
    except Exception as error:
        if (reason := why_failed(error)) is None:
            raise
        failed.append(f"{run.name}: {reason}")
        print(f"failed: {failed[-1]}", flush=True)
        return
    shutil.rmtree(run.folder / CHECKPOINTS, ignore_errors=True)
    accuracy = results["metrics"]["test.last"]["acc1"]
    seconds = sum(results["seconds"].values())
    print(f"{run.name}: {100 * accuracy:.1f} %, {seconds:.0f} s", flush=True)


def run_cell(config: RunConfig) -> dict:
    """Train one run and return its results."""
    from clipvp import build_classifier, fit, load_task

    task = load_task(config.data, seed=config.seed, protocol=config.train.protocol)
    classifier = build_classifier(config, task)
    return fit(classifier, task, config).results
