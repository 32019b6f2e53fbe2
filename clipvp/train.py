"""The training loop: counts to the mapping, gradients to the prompt, numbers to the run folder.

The loop knows no kind of prompt, source or mapping. The order of the images depends on seed and epoch
alone and the learning rate on the step alone, so a run is a function of its config.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
from accelerate import Accelerator
from torch import Tensor
from torch.nn import functional as F

from .checkpoint import Checkpoints
from .config import RunConfig
from .data import Task
from .data.batches import Batches, epoch_order
from .evaluate import EvalResult, score
from .mappings import count_matrix
from .model import PromptedClassifier
from .optim import build_optimizer, lr_at
from .progress import Clock, Progress
from .registry import UserError
from .report import build_results, epoch_line
from .run import CHECKPOINTS, PROMPT, RunFolder


@dataclass
class FitResult:
    """What a run gave.

    Args:
        results: The content of results.json.
        history: One row an epoch, the content of metrics.jsonl.
        test: Scores of the test images with the ``last`` prompt, and the ``best_val`` one if there is one.
        output: The run's folder.
    """

    results: dict[str, Any]
    history: list[dict[str, Any]]
    test: dict[str, EvalResult]
    output: Path


@dataclass
class State:
    """Where a run stands after some epochs, beside the tensors that train.

    Args:
        history: One row a finished epoch.
        best: Epoch and scores of the best validation so far.
        best_state: What was trained then.
    """

    history: list[dict[str, Any]] = field(default_factory=list)
    best: dict[str, Any] | None = None
    best_state: dict[str, Tensor] = field(default_factory=dict)


class Trainer:
    """The steps of ``fit``, on one process of many.

    Args:
        classifier: On the accelerator's device.
        data: Decoded splits by name; train and test, and val if there is one.
        config: The run.
        accelerator: Processes and device.
        progress: Bars and lines.
    """

    def __init__(
        self,
        classifier: PromptedClassifier,
        data: dict[str, Batches],
        config: RunConfig,
        accelerator: Accelerator,
        progress: Progress,
    ):
        self.classifier, self.data, self.config = classifier, data, config
        self.accelerator, self.progress = accelerator, progress
        self.parameters = [parameter for parameter in classifier.parameters() if parameter.requires_grad]
        self.optimizer = build_optimizer(config.optim, self.parameters) if self.parameters else None
        self.state = State()

    def score(self, split: str, phase: str) -> EvalResult:
        """Score one split with the classifier as it stands."""
        batches = self.data[split]
        watch = self.progress.watch(batches.mine(), phase)
        return score(self.classifier, batches, self.config.train.batch_size, self.accelerator, watch)

    @torch.no_grad()
    def refresh_mapping(self, phase: str) -> int:
        """Fit the mapping to new counts, summed over processes; return how many classes changed their label."""
        mapping, train = self.classifier.mapping, self.data["train"]
        counts = mapping.running_counts()
        if counts is None:
            self.classifier.eval()
            batches = self.progress.watch(train.mine(), phase)(train.in_turn(self.config.train.batch_size))
            pairs = ((self.classifier.source_logits(images), labels) for images, labels in batches)
            counts = count_matrix(pairs, mapping.num_source, mapping.num_target)
        before = mapping.source_index.clone()
        mapping.fit(self.accelerator.reduce(counts.to(self.accelerator.device), "sum"))
        return int((before != mapping.source_index).sum())

    def train_epoch(self, epoch: int, phase: str) -> dict[str, Any]:
        """Take every step of an epoch (0, 1, ...); return lr, mean loss and accuracy over its images.

        Raises:
            UserError: The loss is no number.
        """
        train, config = self.data["train"], self.config
        batches = epoch_order(len(train), config.seed, epoch).split(config.train.batch_size)
        losses = torch.zeros(len(batches), device=self.accelerator.device)
        hits = torch.zeros((), dtype=torch.int64, device=self.accelerator.device)
        seen, lr = 0, 0.0
        self.classifier.train()
        with self.progress.bar(train.mine(), phase) as bar:
            for step, batch in enumerate(batches):
                lr = lr_at(config.optim, epoch * len(batches) + step, len(batches), config.train.epochs)
                images, labels = train.take(train.share(batch))
                if len(labels):  # a last batch may have fewer images than there are processes
                    source_logits = self.classifier.source_logits(images)
                    logits = self.classifier.mapping(source_logits)
                    loss = F.cross_entropy(logits, labels, reduction="sum")
                    losses[step] = loss.detach()
                    hits += (logits.argmax(1) == labels).sum()
                    self.classifier.mapping.observe(source_logits, labels)
                    if self.optimizer is not None:
                        (loss / len(batch)).backward()
                self._update(lr)
                seen += len(labels)
                bar.advance(
                    len(labels), lambda n=seen: {"loss": float(losses.sum()) / n, "acc": int(hits) / n}
                )
        losses, hits = self.accelerator.reduce(losses, "sum"), self.accelerator.reduce(hits, "sum")
        bad = (~losses.isfinite()).nonzero()
        if len(bad) or not all(parameter.isfinite().all() for parameter in self.parameters):
            self._stop(epoch, int(bad[0]) if len(bad) else len(batches) - 1)
        return {
            "lr": lr,
            "train_loss": float(losses.sum()) / len(train),
            "train_acc1": int(hits) / len(train),
        }

    def _update(self, lr: float) -> None:
        """Sum the gradients over processes and take the optimiser's step."""
        if self.optimizer is None:
            return
        for parameter in self.parameters:
            if parameter.grad is None:
                parameter.grad = torch.zeros_like(parameter)
            if self.accelerator.num_processes > 1:
                parameter.grad = self.accelerator.reduce(parameter.grad, "sum")
        for group in self.optimizer.param_groups:
            group["lr"] = lr
        self.optimizer.step()
        self.optimizer.zero_grad()

    def _stop(self, epoch: int, step: int) -> None:
        done = len(self.state.history)
        kept = f"the checkpoints up to epoch {done} are whole" if done else "no epoch was finished"
        raise UserError(
            f"the loss turned NaN or infinite at epoch {epoch + 1}, step {step + 1}; "
            f"optim.lr is {self.config.optim.lr}, try a smaller one; {kept}"
        )

    def snapshot(self) -> dict[str, Tensor]:
        """Return a copy of what training changes."""
        return {name: value.detach().clone() for name, value in self.classifier.trained_state().items()}

    def keep_best(self, epoch: int, result: EvalResult) -> None:
        """Remember the classifier as it stands where it validates better than ever before."""
        if self.state.best is None or result.acc1 > self.state.best["acc1"]:
            self.state.best = {"epoch": epoch, **result.to_dict()}
            self.state.best_state = self.snapshot()


def fit(
    classifier: PromptedClassifier, task: Task, config: RunConfig, accelerator: Accelerator | None = None
) -> FitResult:
    """Train a classifier's prompt and mapping on a task, score it, and leave a run folder.

    Args:
        classifier: Changed in place. It ends with the best prompt on validation, or with the last one
            where the task has no validation split.
        task: The target task.
        config: ``optim``, ``train``, ``seed``, ``output`` and ``overwrite`` rule; the rest is recorded.
        accelerator: Processes and device; a new one when None.

    Raises:
        UserError: The output folder holds another run, images cannot be read, or the loss is no number.

    Source: ILM-VP (arXiv 2211.11635), algorithm 1.
    """
    accelerator = accelerator or Accelerator()
    run = RunFolder(config.output, writes=accelerator.is_main_process)
    run.check(resume=False, overwrite=config.overwrite)
    accelerator.wait_for_everyone()
    clock, progress = Clock(), Progress(config.train.progress and accelerator.is_main_process)
    classifier.to(accelerator.device)
    with clock("data"):
        data = {}
        for split in ["train", "val", "test"] if task.val is not None else ["train", "test"]:
            tensors = task.tensors(split, classifier.resize, progress=progress.shown)
            data[split] = Batches(tensors, accelerator)
    run.start(config, config.overwrite)
    checkpoints = Checkpoints(run.path / CHECKPOINTS, config.train.keep)
    trainer = Trainer(classifier, data, config, accelerator, progress)
    state, epochs = trainer.state, config.train.epochs

    for epoch in range(epochs):
        where = f"epoch {epoch + 1}/{epochs}"
        row: dict[str, Any] = {"epoch": epoch + 1}
        if classifier.mapping.due(epoch):
            with clock("counting"):
                row["mapping_changed"] = trainer.refresh_mapping(f"{where} counting")
        with clock("training"):
            row |= trainer.train_epoch(epoch, f"{where} training")
        if "val" in data and ((epoch + 1) % config.train.eval_every == 0 or epoch + 1 == epochs):
            with clock("validating"):
                result = trainer.score("val", f"{where} validating")
                row["val_acc1"] = result.acc1
                trainer.keep_best(epoch + 1, result)
        if config.train.test_every_epoch:
            with clock("testing"):
                row["test_acc1"] = trainer.score("test", f"{where} testing").acc1
        row |= {"source_index": classifier.mapping.source_index.tolist(), "seconds": clock.lap()}
        state.history.append(row)
        progress.line(epoch_line(row, epochs))
        with clock("saving"):
            run.write_metrics(state.history)
            if run.writes and ((epoch + 1) % config.train.save_every == 0 or epoch + 1 == epochs):
                checkpoints.save(epoch + 1, classifier.trained_state(), {"epoch": epoch + 1})

    with clock("testing"):
        test = {"last": trainer.score("test", "testing the last prompt")}
        if state.best is not None:
            classifier.load_trained_state(state.best_state)
            same = state.best["epoch"] == epochs
            test["best_val"] = test["last"] if same else trainer.score("test", "testing the best prompt")
    method = "visual prompt" if classifier.is_prompt else "fine-tuning"
    results = build_results(config, classifier, task, data, state.best, test, clock, accelerator, method)
    if run.writes:
        if classifier.is_prompt:
            classifier.save_pretrained(run.path / PROMPT)
        run.write_results(results)
    accelerator.wait_for_everyone()
    return FitResult(results, state.history, test, run.path)
