"""A worker of a sweep: it runs trials until all are done, then writes what was found.

The runs of a sweep have no test images: they are taken out of the task before the first trial.
"""

from __future__ import annotations

import time
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

from accelerate import Accelerator
from optuna.trial import FrozenTrial, Trial, TrialState

from ..build import build_classifier
from ..config.schema import RunConfig
from ..config.values import settings_of
from ..data.task import Task, load_task
from ..progress import Progress
from ..registry import UserError
from ..results.record import versions
from ..results.sweep_files import BEST
from ..results.tables import percent
from ..training.failures import why_failed
from ..training.fit import fit
from .check import check_sweep
from .importance import importances
from .space import Space, SweepConfig
from .study import Study, after_epoch
from .write import write_sweep

_LOOK_SECONDS = 0.5  # between two looks for a trial that another worker left
_STATES = {TrialState.COMPLETE: "complete", TrialState.PRUNED: "pruned", TrialState.FAIL: "failed"}


@dataclass
class SweepResult:
    """What a sweep found.

    Args:
        best: The config of the best trial, to train and test with; its output is ``best`` in the sweep's folder.
        val_acc1: The best trial's validation accuracy, 0..1.
        trials: One row a trial: number, state, val_acc1, epochs, params, seconds, error.
        output: The sweep's folder.
    """

    best: RunConfig
    val_acc1: float
    trials: list[dict[str, Any]]
    output: Path


def sweep(
    config: RunConfig,
    settings: SweepConfig,
    task: Task | None = None,
    accelerator: Accelerator | None = None,
) -> SweepResult:
    """Search over config keys for the best validation accuracy, as one worker of maybe many.

    Any number of processes, on any machines that see the output folder and the storage, may call it with the same
    arguments, also later with more trials. A trial whose worker was killed goes on from its checkpoint. The function
    returns when all trials have ended. No trial has test images.

    Args:
        config: What all trials share; ``output`` is the sweep's folder.
        settings: Space, sampler, pruner, trials and storage.
        task: The target task; loaded as the config says when None.
        accelerator: The device; a new one when None.

    Returns:
        The best trial and all others; the same is in the folder as sweep.json, best.yaml, pictures and report.html.

    Raises:
        UserError: A wrong space, a task without validation images, a storage of another sweep, or no trial that worked.
        Interrupted: SIGTERM or SIGINT came; the trial is saved and goes on in the next worker.

    Source: Optuna (arXiv 1907.10902); TPE (Bergstra et al. 2011); ASHA (arXiv 1810.05934).
    """
    output = Path(config.output)
    space = check_sweep(config, settings)
    accelerator = accelerator or Accelerator()
    if task is None:
        task = load_task(config.data, seed=config.seed, protocol=config.train.protocol)
    if task.val is None:
        raise UserError(
            f"a sweep chooses by validation, and {task.name} has no validation images; set data.val"
        )
    task = task.without_test()
    study = Study(settings, space, config, output)
    worker = _Worker(study, task, accelerator, Progress(config.train.progress))
    while study.unfinished():
        if claimed := study.claim():
            worker.run(*claimed)
        else:  # another worker runs it, or is killed and leaves it
            time.sleep(_LOOK_SECONDS)
    return _write(study, task)


@dataclass
class _Worker:
    study: Study
    task: Task
    accelerator: Accelerator
    progress: Progress

    def run(self, trial: Trial, params: dict[str, Any]) -> None:
        """Run a trial to its end; its folder is locked, and is free when this returns or raises."""
        study = self.study
        try:
            config = study.space.config(params, str(study.folder(trial.number)))
            classifier = build_classifier(config, self.task, self.accelerator.device)
            report = partial(after_epoch, trial, config.train.epochs)
            result = fit(classifier, self.task, config, self.accelerator, report)
            seconds = sum(result.results["seconds"].values())
            trial.set_user_attr("seconds", round(seconds, 3))
            trial.set_user_attr("epochs", len(result.history))
            value = result.results["metrics"]["val.best"]["acc1"]
            trial.set_user_attr("val_acc1", value)
            if "pruned_at" in trial.user_attrs:
                study.study.tell(trial, state=TrialState.PRUNED)
            else:
                study.study.tell(trial, value)
        except Exception as error:
            if (reason := why_failed(error)) is None:
                raise
            study.fail(trial, " ".join(reason.split()))
        finally:
            study.leave(trial.number)
        row = trial_row(next(t for t in study.trials() if t.number == trial.number), study.space)
        self.progress.line(trial_line(row))


def trial_row(trial: FrozenTrial, space: Space) -> dict[str, Any]:
    """Return what sweep.json says of a trial; ``val_acc1`` is that of its best epoch, None of a failed one."""
    params = {key: space.axes[key].read(trial.params[key]) for key in space.axes if key in trial.params}
    return {
        "number": trial.number,
        "state": _STATES.get(trial.state, "running"),
        "val_acc1": trial.user_attrs.get("val_acc1"),
        "epochs": trial.user_attrs.get("epochs", trial.last_step or 0),
        "begun": len(trial.user_attrs.get("begun_at", [])),
        "seconds": trial.user_attrs.get("seconds"),
        "params": params,
        "error": trial.user_attrs.get("error"),
    }


def trial_line(row: dict[str, Any]) -> str:
    """Return one trial in one line."""
    said = ", ".join(f"{key} {_short(value)}" for key, value in row["params"].items())
    what = row["error"] if row["state"] == "failed" else f"validation {percent(row['val_acc1'])}"
    ended = f"stopped after epoch {row['epochs']}" if row["state"] == "pruned" else f"{row['epochs']} epochs"
    return f"trial {row['number']:>3}  {what}  {ended}  {said}"


def _short(value: Any) -> str:
    return f"{value:.3g}" if isinstance(value, float) else str(value)


def _write(study: Study, task: Task) -> SweepResult:
    """Write what was found, the same whichever worker does it."""
    trials = study.trials()[: study.total]
    rows = [trial_row(trial, study.space) for trial in trials]
    done = [row for row in rows if row["state"] == "complete"]
    if not done:
        errors = [row["error"] for row in rows if row["error"]]
        raise UserError(
            f"none of {len(rows)} trials worked; the first: {errors[0] if errors else 'no trial ended'}"
        )
    best = max(done, key=lambda row: (row["val_acc1"], -row["number"]))
    config = study.space.config(best["params"], str(study.output / Path(BEST).stem))
    config.resume = study.base.resume
    settings = study.settings
    write_sweep(
        study.output,
        {
            "task": task.name,
            "split_hash": task.split_hash,
            "num_val": len(task.val),
            "space": study.space.given,
            "sampler": settings.sampler,
            "pruner": settings.pruner,
            "min_epochs": settings.min_epochs,
            "seed": study.base.seed,
            "best": best["number"],
            "importance": importances(study.study, study.space),
            "trials": rows,
            "versions": versions(),
            "config": settings_of(study.base),
        },
        config,
    )
    return SweepResult(config, best["val_acc1"], rows, study.output)
