"""How long a run will take, from a short measurement of its parts on a few images and on made-up features."""

from __future__ import annotations

import math
import time
from collections.abc import Callable
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
import torch
from accelerate import Accelerator
from torch import Tensor

from ..build import build_classifier
from ..config.schema import RunConfig
from ..data.batches import Batches
from ..data.task import Task
from ..model import PromptedClassifier
from ..progress import Progress
from ..registry import UserError
from ..training.outputs import OutputBatches, fixed_outputs
from ..training.step import Trainer

_FEW = 16  # images that are encoded or trained on
_ROWS = 512  # features that a head is solved or trained on, at most


@dataclass(frozen=True)
class Cost:
    """Seconds of one run.

    Args:
        run: Everything but features.
        train_features: Features of the training and validation images, which runs with the same seed share.
        test_features: Features of the test images, which all runs of a source share.
        train_key: Runs with the same text and seed share features; empty where none are computed once.
        test_key: The same of test features, whatever the seed.
    """

    run: float
    train_features: float = 0.0
    test_features: float = 0.0
    train_key: str = ""
    test_key: str = ""

    @property
    def on_features(self) -> bool:
        return bool(self.train_key)


def check_fit(config: RunConfig, task: Task, device: torch.device) -> PromptedClassifier:
    """Return the untrained classifier of a run.

    Raises:
        UserError: Its parts do not go together.
    """
    classifier = build_classifier(config, task, device)
    if config.train.patience and (task.val is None or config.train.protocol != "val"):
        raise UserError("train.patience needs validation images; this run has none")
    fixed_outputs(classifier, config.train)
    return classifier


def measure(config: RunConfig, task: Task, accelerator: Accelerator) -> Cost:
    """Return what a run will take; every process must call it.

    Raises:
        UserError: The parts of the config do not go together.
    """
    start = time.perf_counter()
    classifier = check_fit(config, task, accelerator.device).to(accelerator.device)
    classifier.reading = classifier.reading.updated(task.reading)
    loading = time.perf_counter() - start
    selects = task.val is not None and config.train.protocol == "val"
    sizes = {split: len(task.images(split)) for split in ("train", "test", *(["val"] if selects else []))}
    images, decoding = _few(task, classifier)
    few = Batches(images, accelerator)
    fixed = fixed_outputs(classifier, config.train)
    rounds = _rounds(config, classifier, sizes)
    if fixed:
        features, encoding = _encode(classifier, few)
        seconds = _on_features(classifier, config, accelerator, features, few, sizes["train"])
        views = 1 + (config.train.feature_views or 0)
        train = encoding * (views * sizes["train"] + sizes.get("val", 0))
        network, data = (config.source, config.prompt), config.data
        keys = repr((network, data, views)), repr((network, data.name, data.max_test))
        more = (train, encoding * sizes["test"], *keys)
    else:
        seconds, more = _parts(classifier, config, accelerator, few, warm=True), ()
    counting, training, scoring = (spent * rounds[part] for part, spent in seconds.items())
    total = loading + decoding * sum(sizes.values()) + counting + training + scoring
    return Cost(total, *more)


def _rounds(config: RunConfig, classifier: PromptedClassifier, sizes: dict[str, int]) -> dict[str, int]:
    """Return how many images pass in each part of a run, where the time of a solved head is that of one image."""
    epochs = config.train.epochs
    tested = 2 + (epochs if config.train.test_every_epoch else 0)
    return {
        "counting": sizes["train"] * sum(classifier.mapping.due(epoch) for epoch in range(epochs)),
        "training": sizes["train"] * epochs,
        "scoring": tested * sizes["test"] + math.ceil(epochs / config.train.eval_every) * sizes.get("val", 0),
    }


def _few(task: Task, classifier: PromptedClassifier) -> tuple[Any, float]:
    """Return a few decoded training images, and the seconds that one took."""
    whole = task.images("train")
    rows = np.unique(np.linspace(0, len(whole) - 1, _FEW).astype(int))
    resize = replace(classifier.resize, reading=classifier.reading)
    decode = whole.subset(rows).tensors
    options: dict[str, Any] = {"cache_dir": task.cache_dir, "on_error": "skip", "progress": False}
    images, seconds = _timed(lambda: decode(resize, **options))
    if not len(images):
        raise UserError(f"{whole.name}: none of {len(rows)} images can be read, such as {images.skipped[0]}")
    return images, seconds / len(rows)


def _encode(classifier: PromptedClassifier, few: Batches) -> tuple[Tensor, float]:
    """Return what the source gives of a few images, and the seconds of one image."""
    source, wanted = classifier.source, classifier.source.outputs
    source.outputs = "features" if _has_features(classifier) else "logits"
    classifier.eval()
    pixels, _ = few.take(torch.arange(len(few)))
    try:
        with torch.no_grad():
            outputs = classifier.source_outputs(pixels)
            _, seconds = _timed(lambda: classifier.source_outputs(pixels))
    finally:
        source.outputs = wanted
    return outputs.float().cpu(), seconds / len(few) / few.world


def _has_features(classifier: PromptedClassifier) -> bool:
    try:
        return classifier.source.num_features > 0
    except UserError:
        return False


def _on_features(
    classifier: PromptedClassifier,
    config: RunConfig,
    accelerator: Accelerator,
    seen: Tensor,
    few: Batches,
    count: int,
) -> dict[str, float]:
    """Return seconds by part, one image each, on features drawn about the mean of those seen.

    A head that is solved once is timed with two numbers of images, and its time grows with a power of them.
    """
    solved, rest = [], {}
    sizes = [min(count, _ROWS) // 2 or 1, min(count, _ROWS)]
    for size in sizes:
        generator = torch.Generator().manual_seed(0)
        labels = torch.arange(size) % len(classifier.class_names)
        centres = torch.randn(len(classifier.class_names), seen.shape[1], generator=generator)
        noise = torch.randn(size, seen.shape[1], generator=generator)
        drawn = seen.mean(0) + seen.std(0, correction=0) * (0.5 * centres[labels] + noise)
        batches = Batches.__new__(Batches)
        batches.__dict__ |= {**few.__dict__, "labels": labels, "skipped": []}
        data = OutputBatches(batches, drawn, _has_features(classifier))
        rest = _parts(classifier, config, accelerator, data, warm=False)
        solved.append(rest["counting"] * size)
    power = 1.0
    if solved[0] > 0.01 and sizes[1] > sizes[0]:
        power = min(max(math.log(solved[1] / solved[0]) / math.log(sizes[1] / sizes[0]), 1.0), 2.0)
    rest["counting"] = solved[1] * (count / sizes[1]) ** power / count
    return rest


def _parts(
    classifier: PromptedClassifier, config: RunConfig, accelerator: Accelerator, data: Batches, warm: bool
) -> dict[str, float]:
    """Return the seconds of counting, training and scoring, one image each, on the images given.

    With ``warm`` the first epoch, which prepares buffers, is not counted.
    """
    small = replace(config, train=replace(config.train, batch_size=min(config.train.batch_size, len(data))))
    trainer = Trainer(classifier, {"train": data}, small, accelerator, Progress(False))
    counting = 0.0
    if classifier.mapping.due(0):
        _, counting = _timed(lambda: trainer.refresh_mapping("measuring"))
    training = 0.0
    for _ in range(2 if warm else 1):
        _, training = _timed(lambda: trainer.train_epoch("measuring"))
        trainer.state.step = 0
    _, scoring = _timed(lambda: trainer.score("train", "measuring"))
    return {
        name: seconds / len(data)
        for name, seconds in (("counting", counting), ("training", training), ("scoring", scoring))
    }


def _timed(act: Callable[[], Any]) -> tuple[Any, float]:
    start = time.perf_counter()
    result = act()
    if torch.cuda.is_available():
        torch.cuda.synchronize()
    return result, time.perf_counter() - start


class Estimate:
    """Seconds that jobs will take, one after the other; features that an earlier one computed are not counted again.

    The estimates of runs on features and of others are each scaled by how long finished ones took.
    """

    def __init__(self):
        self.have: set[Any] = set()
        self.spent: dict[bool, list[float]] = {True: [0.0, 0.0], False: [0.0, 0.0]}

    def seconds(self, cost: Cost, seed: int, have: set[Any] | None = None) -> float:
        """Return the seconds of a run; with ``have``, note there which features it leaves."""
        known = self.have if have is None else have
        total = cost.run
        if cost.on_features:
            keys = {(cost.train_key, seed): cost.train_features, cost.test_key: cost.test_features}
            total += sum(spent for key, spent in keys.items() if key not in known)
            if have is not None:
                have.update(keys)
        estimated, took = self.spent[cost.on_features]
        return total * min(max(took / estimated, 0.2), 5.0) if estimated else total

    def total(self, costs: list[tuple[Cost, int]]) -> float:
        """Return the seconds of runs, each a cost and a seed."""
        have = set(self.have)
        return sum(self.seconds(cost, seed, have) for cost, seed in costs)

    def done(self, cost: Cost, seed: int, took: float) -> None:
        """Note how long a run took."""
        before = self.spent[cost.on_features]
        self.spent[cost.on_features] = [0.0, 0.0]
        estimated = self.seconds(cost, seed, self.have)
        self.spent[cost.on_features] = [before[0] + estimated, before[1] + took]
