"""Training: statistics to the mapping, gradients to what trains, numbers to the run folder.

``fit`` is independent of the kind of prompt, source and mapping.
"""

from __future__ import annotations

import os
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from accelerate import Accelerator
from accelerate.utils import broadcast_object_list
from torch import Tensor

from ..config.schema import RunConfig
from ..config.values import differences, to_dict
from ..cpu import float32_default
from ..data.augment.basic import takes_originals
from ..data.batches import Batches
from ..data.task import Task
from ..model import PromptedClassifier
from ..notebook import html_table
from ..progress import Clock, Estimate, Progress
from ..registry import UserError
from ..results.correct import pack, write_correct
from ..results.folder import CHECKPOINTS, PROMPT, PROMPT_AVERAGE, RESULTS, RunFolder
from ..results.record import build_results, epoch_line, saved_results
from ..results.tables import EPOCH_COLUMNS, SCORE_COLUMNS, percent, scores_table
from ..scoring.scores import EvalResult
from .checkpoint import Checkpoints, texts_hash
from .cores import describe, where_to_keep, with_cores
from .gradients import check_gradient
from .interrupt import Interrupted, StopRequest
from .outputs import fixed_outputs, with_outputs
from .processes import fail_together, main_first
from .queries import check_outputs
from .step import Trainer, copied, exact_scores
from .tracking import Tracking, check_trackers

# Steps between two checks of clock and signals; with several processes each check is a small exchange.
_LOOK_EVERY = 8
# Seconds between two checkpoints at the ends of epochs, where an epoch touches no image.
_FEATURES_SAVE_SECONDS = 10

# Is given the history, one row a finished epoch, and returns whether the run ends here.
AfterEpoch = Callable[[list[dict[str, Any]]], bool]


@dataclass
class FitResult:
    """What a run gave.

    Args:
        results: The content of results.json.
        history: One row an epoch, the content of metrics.jsonl.
        test: Scores of the test images with the ``last`` prompt, and the ``best_val`` one if there is one; empty
            where the task has no test images.
        output: The run's folder.
    """

    results: dict[str, Any]
    history: list[dict[str, Any]]
    test: dict[str, EvalResult]
    output: Path

    def _repr_html_(self) -> str:
        scores = html_table(
            f"run {self.output}", scores_table(self.results["metrics"]), ["", *SCORE_COLUMNS.values()]
        )
        keys = [key for key in EPOCH_COLUMNS if any(row.get(key) is not None for row in self.history)]
        rows = [[row["epoch"], *(_cell(key, row.get(key)) for key in keys)] for row in self.history]
        return scores + html_table("epochs", rows, ["epoch", *(EPOCH_COLUMNS[key] for key in keys)])


def _cell(key: str, value: Any) -> str | None:
    if value is None:
        return None
    return percent(value) if key.endswith("acc1") else f"{value:.4g}"


@float32_default()
def fit(
    classifier: PromptedClassifier,
    task: Task,
    config: RunConfig,
    accelerator: Accelerator | None = None,
    after_epoch: AfterEpoch | None = None,
) -> FitResult:
    """Train a classifier's prompt, mapping and weights on a task, score it, and leave a run folder.

    Args:
        classifier: Changed in place. It ends with the best prompt on validation, or with the last one
            where the task has no validation split.
        task: The target task; one ``without_test`` has no test scores.
        config: ``optim``, ``train``, ``seed``, ``output``, ``resume`` and ``overwrite`` are used; the rest is recorded.
        accelerator: Processes and device; a new one when None.
        after_epoch: Called on the main process after each epoch, and once when the run goes on from a checkpoint. The
            run ends, with its scores and files, where it returns True.

    Raises:
        UserError: The output folder holds another run, images cannot be read, or the loss is not a number.
        Interrupted: SIGTERM or SIGINT came; the run is saved.

    Source: ILM-VP (arXiv 2211.11635), algorithm 1.
    """
    accelerator = accelerator or Accelerator()
    _check_launch(accelerator)
    run = RunFolder(str(config.output), writes=accelerator.is_main_process)
    with fail_together(accelerator):
        if config.train.patience and (task.val is None or config.train.protocol != "val"):
            raise UserError("train.patience needs validation images; this run has none")
        check_trackers(config.train.report_to)
        check_gradient(classifier, config.train.gradient)
        fixed = fixed_outputs(classifier, config.train)
        run.claim(resume=config.resume == "auto", overwrite=config.overwrite)
    try:
        return _fit(classifier, task, config, accelerator, run, fixed, after_epoch)
    finally:
        run.release()


def _fit(
    classifier: PromptedClassifier,
    task: Task,
    config: RunConfig,
    accelerator: Accelerator,
    run: RunFolder,
    fixed: bool,
    after_epoch: AfterEpoch | None,
) -> FitResult:
    clock, progress = Clock(), Progress(config.train.progress and accelerator.is_main_process)
    classifier.to(accelerator.device)
    classifier.reading = classifier.reading.updated(task.reading)
    classifier.source.keeps_weights |= config.train.protocol == "paper"
    selects = task.val is not None and config.train.protocol == "val"
    splits = ["train", *(["val"] if selects else []), *(["test"] if task.test is not None else [])]
    crops = takes_originals(config.train.augment)
    with clock("data"):
        resize, shown = classifier.resize, progress.shown
        tensors, originals = main_first(
            accelerator,
            lambda: (
                [task.tensors(split, resize, progress=shown) for split in splits],
                task.originals(resize, progress=shown) if crops else None,
            ),
        )
        data = {
            split: Batches(images, accelerator, originals if split == "train" else None)
            for split, images in zip(splits, tensors, strict=True)
        }
    if fixed:
        views = [(config.train.augment, config.seed, view) for view in range(config.train.feature_views or 0)]
        check_outputs(config.train.max_queries, data, len(views), classifier.prompt.views)
        with clock("features"), exact_scores(classifier, config):
            for split, batches in data.items():
                data[split] = with_outputs(
                    classifier,
                    batches,
                    task.images(split),
                    accelerator,
                    progress,
                    cache_dir=task.cache_dir,
                    phase=f"features of {split}",
                    views=views if split == "train" else [],
                )
    trainer = Trainer(classifier, data, config, accelerator, progress)
    checkpoints = Checkpoints(run.path / CHECKPOINTS, config.train.keep)
    with fail_together(accelerator):
        run.tidy()
        hashes = {"split_hash": task.split_hash, "texts_hash": texts_hash(classifier.source.labels)}
        found = _find(checkpoints, config, hashes, progress) if run.writes else None
    # The other processes get it from the main one: they may not see its disk.
    [found] = broadcast_object_list([found])
    with fail_together(accelerator):
        if found is None:
            trainer.queries.check()
            run.start(config, config.overwrite or config.resume == "auto")
        else:
            trainer.restore(*found)
            clock.seconds = dict(trainer.state.seconds)
    with fail_together(accelerator):
        tracking = Tracking(accelerator, config, run.path)
    where_kept = where_to_keep(classifier, config.train, len(data["train"]), accelerator.device)
    if where_kept is not None and not fixed:
        with clock("core"):
            data |= with_cores(classifier, data, task, where_kept, config.train, accelerator, progress)
    epochs = config.train.epochs
    estimate = Estimate(progress, trainer.steps, epochs)
    last_saved = time.monotonic()

    def save() -> None:
        nonlocal last_saved
        with clock("saving"):
            trainer.check_finite()  # never save a prompt that is not finite
            tensors = trainer.tensors()
            trainer.state.seconds = {phase: round(spent, 3) for phase, spent in clock.seconds.items()}
            values = {
                "state": vars(trainer.state),
                "config": to_dict(config),
                **hashes,
            }
            step = trainer.state.epoch * trainer.steps + trainer.state.step
            with fail_together(accelerator):
                if run.writes:
                    checkpoints.save(step, tensors, values)
        last_saved = time.monotonic()

    def asked_to_end() -> bool:
        """Return whether the run ends before its last epoch; every process must call it."""
        told = False
        if after_epoch is not None:
            with fail_together(accelerator):
                told = accelerator.is_main_process and bool(after_epoch(trainer.state.history))
            [told] = _any_process(accelerator, told)
        return told or trainer.state.waited(config.train.patience)

    ended = found is not None and asked_to_end()
    with StopRequest() as stop:

        def after_step() -> None:
            estimate.step(trainer.state.step, epochs - trainer.state.epoch)
            if trainer.state.step % _LOOK_EVERY and accelerator.num_processes > 1:
                return
            late = (
                config.train.save_minutes and time.monotonic() - last_saved > 60 * config.train.save_minutes
            )
            stops, saves = _any_process(accelerator, stop.signal is not None, bool(late))
            if stops or saves:
                save()
            if stops:
                run.write_metrics(trainer.state.history)
                where = f"epoch {trainer.state.epoch + 1}, step {trainer.state.step}"
                raise Interrupted(
                    f"stopped at {where} and saved; go on with --resume auto --output {run.path}"
                )

        for epoch in range(trainer.state.epoch, epochs):
            if ended:
                break
            if trainer.state.step == 0 and not trainer.queries.epoch_allowed(epoch):
                break
            where, state = f"epoch {epoch + 1}/{epochs}", trainer.state
            if state.step == 0:
                state.row = {"epoch": epoch + 1}
                if classifier.mapping.due(epoch):
                    with clock("counting"):
                        changed = trainer.refresh_mapping(f"{where} counting")
                    if changed is not None:
                        state.row["mapping_changed"] = changed
            estimate.begin(state.step)
            with clock("training"):
                state.row |= trainer.train_epoch(f"{where} training", after_step)
            ends = epoch + 1 == epochs or not trainer.queries.epoch_allowed(epoch + 1)
            if "val" in data and ((epoch + 1) % config.train.eval_every == 0 or ends):
                with clock("validating"):
                    result = trainer.score("val", f"{where} validating")
                    state.row["val_acc1"] = result.acc1
                    trainer.keep_best(result)
            if config.train.test_every_epoch:
                with clock("testing"):
                    result = trainer.score("test", f"{where} testing")
                    state.row["test_acc1"] = result.acc1
                    if state.best_on_test is None or result.acc1 > state.best_on_test["acc1"]:
                        state.best_on_test = {"epoch": epoch + 1, **result.to_dict()}
            state.row |= {
                "source_index": classifier.mapping.links(1).index[:, 0].tolist(),
                "queries": sum(state.queries.values()),
                "seconds": clock.lap(),
            }
            tracking.epoch(state.row)
            line = epoch_line(state.row, epochs)
            trainer.end_epoch()
            ended = asked_to_end()
            last = ends or ended or not trainer.queries.epoch_allowed(epoch + 1)
            progress.epoch(line, epochs, last)
            # An epoch on features is quicker than a write to the disk.
            [writes] = _any_process(
                accelerator, not fixed or last or time.monotonic() - last_saved > _FEATURES_SAVE_SECONDS
            )
            if not writes:
                continue
            with fail_together(accelerator):
                run.write_metrics(state.history)
            if (epoch + 1) % config.train.save_every == 0 or last:
                save()

    state = trainer.state
    with clock("testing"):
        test, average = _final_scores(trainer) if "test" in data else ({}, None)
        if state.best is not None:
            classifier.load_trained_state(trainer.best_state)
    results = build_results(config, classifier, task, data, state.best, test, clock, accelerator)
    results["queries"] = {"total": sum(state.queries.values()), **state.queries}
    results["core"] = describe(data, where_kept)
    if state.best_on_test is not None:
        results["metrics"]["test.best_on_test"] = state.best_on_test
    with fail_together(accelerator):
        _save_prompts(classifier, run, results, average, test)
        if run.writes:
            right = {
                f"test.{name}": pack(result.correct)
                for name, result in test.items()
                if result.correct is not None
            }
            if (
                state.best is not None and "correct" in state.best
            ):  # a checkpoint of an earlier version has none
                right["val.best"] = state.best["correct"]
            write_correct(run.path, task.split_hash, task.test_hash, right)
        run.write_results(results)
    tracking.end(classifier, test.get(results["saved_prompt"]), results["metrics"], state.epoch)
    accelerator.wait_for_everyone()
    return FitResult(results, state.history, test, run.path)


def _final_scores(trainer: Trainer) -> tuple[dict[str, EvalResult], dict[str, Tensor] | None]:
    """Return the test scores of the last prompt, the average and the best one; and the average's state, if any."""
    classifier, state = trainer.classifier, trainer.state
    test = {"last": trainer.score("test", "testing the last prompt")}
    last = copied(classifier.trained_state())
    average = trainer.average_state() if trainer.config.train.average else None
    if average is not None:
        classifier.load_trained_state(average)
        test["average"] = trainer.score("test", "testing the average")
    if state.best is not None:
        classifier.load_trained_state(trainer.best_state)
        same = state.best["epoch"] == state.epoch
        test["best_val"] = test["last"] if same else trainer.score("test", "testing the best prompt")
    classifier.load_trained_state(last)
    return test, average


def _save_prompts(
    classifier: PromptedClassifier,
    run: RunFolder,
    results: dict[str, Any],
    average: dict[str, Tensor] | None,
    test: dict[str, EvalResult],
) -> None:
    """Write the prompt as it is, and the average if there is one."""
    if average is not None and run.writes:
        kept = copied(classifier.trained_state())
        classifier.load_trained_state(average)
        accuracies = test["average"].per_class()
        table = [row | {"acc1": acc1} for row, acc1 in zip(results["mapping_table"], accuracies, strict=True)]
        classifier.results = saved_results(results | {"saved_prompt": "average", "mapping_table": table})
        classifier.save_pretrained(run.path / PROMPT_AVERAGE)
        classifier.load_trained_state(kept)
    classifier.results = saved_results(results)
    if run.writes:
        classifier.save_pretrained(run.path / PROMPT)


def _any_process(accelerator: Accelerator, *flags: bool) -> list[bool]:
    """Return for each flag whether it is set on any process; with many processes all must call it."""
    if accelerator.num_processes == 1:
        return list(flags)
    asked = torch.tensor(flags, device=accelerator.device).int()
    return [bool(count) for count in accelerator.reduce(asked, "sum").tolist()]


def _check_launch(accelerator: Accelerator) -> None:
    """Refuse processes that are not in one group: each would train alone and write the same files."""
    launched = int(os.environ.get("WORLD_SIZE") or 1)
    if launched != accelerator.num_processes:
        raise UserError(
            f"{launched} processes were launched, and accelerate sees {accelerator.num_processes}; "
            "to run several on CPUs set ACCELERATE_USE_CPU=true"
        )


def _find(
    checkpoints: Checkpoints, config: RunConfig, hashes: dict[str, str], progress: Progress
) -> tuple[dict[str, Tensor], dict[str, Any]] | None:
    """Return the tensors and the state from which a run goes on, or None if it starts.

    Raises:
        UserError: The checkpoint was made with another config, other images or other texts, or all of them are damaged.
    """
    if config.resume != "auto":
        return None
    found = checkpoints.newest()
    if found is None:
        folder = checkpoints.folder.parent
        holds = checkpoints.paths() or (folder / RESULTS).exists()
        if holds and not config.overwrite:
            raise UserError(
                f"--resume auto: {folder} holds a run without a whole checkpoint; --overwrite true starts anew"
            )
        return None
    path, tensors, values, damaged = found
    for what in damaged:
        progress.line(f"damaged, so the one before it is used: {what}")
    differ = differences(values["config"], to_dict(config))
    if differ:
        raise UserError(
            f"--resume auto: {path.parent.parent} was started with another config: {'; '.join(differ)}"
        )
    for key, what in (("split_hash", "images or splits"), ("texts_hash", "texts of the classes")):
        if values.get(key, hashes[key]) != hashes[key]:  # an earlier version's has no hash of texts
            raise UserError(f"--resume auto: {path.parent.parent} was started with other {what}")
    state = values["state"]
    progress.line(f"going on from {path}, epoch {state['epoch'] + 1}, step {state['step']}")
    return tensors, state
