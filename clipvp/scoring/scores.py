"""Scores of a classifier on a split; each image counts once, with any number of processes."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from dataclasses import dataclass, field, replace

import torch
from accelerate import Accelerator
from accelerate.utils import gather_object
from torch import Tensor

from ..config.schema import DataConfig
from ..cpu import float32_default
from ..data.batches import Batches
from ..data.task import Task, load_task
from ..mappings.statistic import Counts, sum_over_processes
from ..model import PromptedClassifier
from ..notebook import html_table
from ..progress import Progress
from ..registry import UserError, check_choice
from ..results.tables import SCORE_COLUMNS, percent


@dataclass
class EvalResult:
    """Scores on n images.

    Args:
        acc1: Top-1 accuracy, 0..1.
        acc5: Top-5 accuracy, 0..1; None for five classes or fewer.
        mean_per_class_recall: Mean over the classes that have images of their top-1 accuracy, 0..1.
        n: Images scored.
        confusion: int64 (T, T), true class by predicted class.
        counts: Of images by top-1 source label and true class.
        scored: Which images were scored, for people.
        class_names: The classes that were chosen from, in the order of the confusion matrix.
        correct: bool (n,), which images were right, in the split's order; None where that is not known.
    """

    acc1: float
    acc5: float | None
    mean_per_class_recall: float
    n: int
    confusion: Tensor
    counts: Counts
    scored: str = ""
    class_names: list[str] = field(default_factory=list)
    correct: Tensor | None = None

    def to_dict(self) -> dict:
        return {name: getattr(self, name) for name in ("acc1", "acc5", "mean_per_class_recall", "n")}

    def _repr_html_(self) -> str:
        scores = self.to_dict()
        rows = [
            [column, scores[key] if key == "n" else percent(scores[key])]
            for key, column in SCORE_COLUMNS.items()
        ]
        names = self.class_names or [f"class {place}" for place in range(len(self.confusion))]
        known = zip(names, map(percent, self.per_class()), strict=True)
        return html_table(self.scored or "scores", rows) + html_table(
            "each class", known, ["class", "accuracy"]
        )

    def per_class(self) -> list[float | None]:
        """Return the accuracy of each class, None where it has no images."""
        totals, hits = self.confusion.sum(1).tolist(), self.confusion.diagonal().tolist()
        return [hit / total if total else None for hit, total in zip(hits, totals, strict=True)]


class Scores:
    """Sums over one process's images, which become an ``EvalResult`` over all processes.

    Args:
        num_source: S.
        num_target: T.
        device: Where the logits are.
    """

    def __init__(self, num_source: int, num_target: int, device: torch.device):
        self.counts = Counts(num_source, num_target)
        # Predicted class by true class.
        self.confusion = torch.zeros(num_target, num_target, dtype=torch.int64, device=device)
        self.in_five = torch.zeros((), dtype=torch.int64, device=device)
        self.correct: list[Tensor] = []

    def add(self, source_logits: Tensor | None, logits: Tensor, labels: Tensor) -> None:
        """Add a batch: source logits (B, S) where there are any, target logits (B, T), classes (B,)."""
        if source_logits is not None:
            self.counts.add(source_logits, labels)
        predicted = logits.argmax(1)
        self.correct.append(predicted == labels)
        cells = predicted * logits.shape[1] + labels
        self.confusion.view(-1).index_add_(0, cells, torch.ones_like(cells))
        if logits.shape[1] > 5:
            self.in_five += (logits.topk(5, dim=1).indices == labels[:, None]).sum()

    def result(self, accelerator: Accelerator) -> EvalResult:
        """Return the scores over the batches of all processes."""
        counts = sum_over_processes(self.counts, Counts(self.counts.num_source, self.counts.num_target))
        confusion, in_five = (
            accelerator.reduce(value, "sum").cpu() for value in (self.confusion, self.in_five)
        )
        # Each process has a run of batches, and the runs are in the order of the processes.
        own = torch.cat([torch.zeros(0, dtype=torch.bool), *(part.cpu() for part in self.correct)])
        correct = torch.cat(gather_object([own]))
        confusion = confusion.T.contiguous()
        totals, hits = confusion.sum(1), confusion.diagonal()
        n, present = int(totals.sum()), totals > 0
        return EvalResult(
            acc1=int(hits.sum()) / n,
            acc5=int(in_five) / n if len(totals) > 5 else None,
            mean_per_class_recall=float((hits[present].double() / totals[present]).mean()),
            n=n,
            confusion=confusion,
            counts=counts,
            correct=correct,
        )


@torch.no_grad()
def score(
    classifier: PromptedClassifier,
    batches: Batches,
    batch_size: int,
    accelerator: Accelerator,
    watch: Callable[[Iterable], Iterable] = iter,
    columns: Tensor | None = None,
) -> EvalResult:
    """Score decoded images.

    Args:
        columns: int64 (T',), the classifier's classes that take part, in the order of the labels; all when None.
        watch: Wraps the batches, for a progress bar.
    """
    num_classes = len(classifier.class_names) if columns is None else len(columns)
    scores = Scores(len(classifier.source.labels), num_classes, accelerator.device)
    classifier.eval()
    for images, labels in watch(batches.local_batches(batch_size)):
        outputs = batches.outputs(classifier, images)
        logits, source_logits = classifier.mapping(outputs), classifier.source_logits(outputs)
        scores.add(source_logits, logits if columns is None else logits[:, columns], labels)
    return scores.result(accelerator)


@float32_default()
def evaluate(
    classifier: PromptedClassifier,
    task: Task | DataConfig | str,
    split: str | None = None,
    *,
    among: str = "prompt",
    batch_size: int = 128,
    accelerator: Accelerator | None = None,
    progress: bool = True,
    seed: int = 0,
) -> EvalResult:
    """Score a classifier on one split of a task.

    Args:
        classifier: Moved to the accelerator's device.
        task: Its classes must be the classifier's, or some of them. The name or config of data is loaded by
            ``load_task`` as a test set.
        split: train, val, test, or all where the data has no splits of its own. When None: the data's own test split,
            or all images where it has no splits; of the data that the classifier was trained on, the images that were
            carved for testing.
        among: Which classes are chosen from: prompt (all of the classifier's) or task (the task's alone, which gives
            a higher accuracy where those are fewer).
        batch_size: Images at a time, a process.
        accelerator: Shares the images between processes; a new one when None.
        progress: Show progress bars.
        seed: Chooses a carved validation split, where ``task`` is not a ``Task``.

    Raises:
        UserError: The task has no such split, or other classes.

    >>> from clipvp import RunConfig, build_classifier, evaluate, load_task
    >>> from clipvp.config import DataConfig, MappingConfig, PromptConfig, SourceConfig
    >>> config = RunConfig(
    ...     source=SourceConfig(name="offline:lite0", canvas=32),
    ...     prompt=PromptConfig(kind="none"),
    ...     mapping=MappingConfig(kind="random"),
    ...     data=DataConfig(name="digits", max_test=20),
    ... )
    >>> task = load_task(config.data)
    >>> result = evaluate(build_classifier(config, task), task, progress=False)
    >>> result.n, 0 <= result.acc1 <= 1
    (20, True)
    """
    check_choice("among", among, ["prompt", "task"])
    if not isinstance(task, Task):
        task = _load(classifier, task, split, seed)
    place = {name: index for index, name in enumerate(classifier.class_names)}
    if other := [name for name in task.class_names if name not in place]:
        raise UserError(
            f"task {task.name!r} has other classes than the classifier was made for, such as {other[0]!r}"
        )
    if split is None:
        split = "all" if task.whole is not None and not trained_on(classifier, task) else "test"
    accelerator = accelerator or Accelerator()
    tensors = task.tensors(split, classifier.resize, progress=progress)
    columns, names = None, classifier.class_names
    if list(task.class_names) != classifier.class_names:
        places = torch.tensor([place[name] for name in task.class_names])
        if among == "task":
            columns, names = places.to(accelerator.device), list(task.class_names)
        else:
            tensors = replace(tensors, labels=places[tensors.labels])
    batches = Batches(tensors, accelerator)
    shown = Progress(progress and accelerator.is_main_process)
    watch = shown.watch(batches.num_local_images(batch_size), f"scoring {split}")
    result = score(classifier.to(accelerator.device), batches, batch_size, accelerator, watch, columns)
    fewer = len(task.class_names) < len(classifier.class_names)
    those = f"the {len(names)} classes of {'the prompt' if among == 'prompt' else 'these images alone'}"
    return replace(
        result,
        scored=f"{'' if split == 'all' else f'{split}: '}{task.says(split)}"
        + (f"; among {those}" if fewer else ""),
        class_names=list(names),
    )


def _load(classifier: PromptedClassifier, data: DataConfig | str, split: str | None, seed: int) -> Task:
    """Load data to score on: as a test set, except where a split is asked for, or the classifier was trained on it."""
    if split not in (None, "all"):
        return load_task(data, seed=seed)
    task = load_task(data, seed=seed, test_set=True)
    if split is None and task.whole is not None and trained_on(classifier, task):
        return load_task(data, seed=seed)
    return task


def trained_on(classifier: PromptedClassifier, task: Task) -> bool:
    """Return whether a classifier was trained on a task's images, as far as its results tell."""
    results = classifier.results or {}
    if results.get("identity") and task.identity:
        return results["identity"] == task.identity
    return results.get("split_hash") == task.split_hash
