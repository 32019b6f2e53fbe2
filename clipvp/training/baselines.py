"""Baselines without a prompt: a linear probe on frozen features, and full fine-tuning.

Both are a source whose labels are the target classes, so that scores and results are made as for a prompt.
"""

from __future__ import annotations

import copy
from collections.abc import Sequence

import torch
from accelerate import Accelerator
from torch import Tensor, nn
from torch.nn import functional as F

from ..config.schema import RunConfig
from ..cpu import float32_default
from ..data.batches import Batches, epoch_order
from ..labels.space import LabelSpace
from ..mappings.identity import IdentityMapping
from ..model import PromptedClassifier
from ..progress import Progress
from ..prompts.none import NoPrompt
from ..registry import UserError
from ..scoring.scores import EvalResult, Scores
from ..sources.base import Source
from .optim import ScheduledOptimizer


class HeadSource(Source):
    """A source whose classifier layer is a new one with T outputs.

    Args:
        source: Gives the network up to its last linear layer.
        class_names: The T target classes.
        train_network: Fine-tune every weight; else the head alone trains.

    Raises:
        UserError: Fine-tuning of weights in half precision.
    """

    def __init__(self, source: Source, class_names: Sequence[str], train_network: bool):
        if train_network and source.precision != "fp32":
            raise UserError(f"source.precision: {source.precision} weights do not train; give fp32")
        if source.is_compiled:
            raise UserError(
                "source.compile: true goes with prompts; a linear probe and fine-tuning run uncompiled"
            )
        super().__init__(
            source.headless_network(),
            LabelSpace(tuple(class_names)),
            source.preprocessing,
            source.name,
            source.revision,
            source.precision,
            fingerprint=source.fingerprint,
        )
        self.head = nn.Linear(source.num_features, len(class_names))
        nn.init.zeros_(self.head.weight)
        nn.init.zeros_(self.head.bias)
        self.train_network = train_network
        if train_network:
            self.network.requires_grad_(True)

    def train(self, mode: bool = True) -> HeadSource:
        """Follow ``mode`` when the network trains, stay in evaluation mode when it does not."""
        return nn.Module.train(self, mode and self.train_network)

    def encode(self, pixels: Tensor) -> Tensor:
        return self.run_network(pixels)

    def score(self, features: Tensor) -> Tensor:
        return self.head(features)

    def forward(self, pixels: Tensor) -> Tensor:
        return self.score(self.encode(pixels))


def head_classifier(source: Source, class_names: Sequence[str], train_network: bool) -> PromptedClassifier:
    """Return a classifier without a prompt whose source has a new head for the task's classes."""
    headed = HeadSource(source, class_names, train_network)
    count = len(class_names)
    classifier = PromptedClassifier(
        NoPrompt(source.canvas), headed, IdentityMapping(count, count, range(count)), class_names
    )
    return classifier.to(source.mean.device)


@float32_default()
@torch.no_grad()
def extract_features(
    source: Source, batches: Batches, batch_size: int, progress: Progress, phase: str
) -> Tensor:
    """Return the features (N, D) float32 of all images of a split, in order, on the device."""
    watched = progress.watch(len(batches), phase)(batches.local_batches(batch_size))
    return torch.cat([source.encode(images) for images, _ in watched])


@float32_default()
def fit_linear_probe(
    classifier: PromptedClassifier,
    features: dict[str, Tensor],
    labels: dict[str, Tensor],
    config: RunConfig,
    accelerator: Accelerator,
) -> tuple[dict[str, EvalResult], dict | None]:
    """Train the head on features that were computed once.

    Args:
        classifier: From ``head_classifier`` with a frozen network; its head is trained in place.
        features: (N, D) by split; train and test, val if there is one.
        labels: (N,) by split.
        config: ``optim``, ``train`` and ``seed`` rule.
        accelerator: One process; the head is too small to share.

    Returns:
        Scores of the test images (``last``, and ``best_val`` if there is validation), and the best validation.

    Source: the linear probe of ILM-VP's reference: Adam 0.1 on the head.
    """
    head, count = classifier.source.head, len(labels["train"])
    steps = -(-count // config.train.batch_size)
    optimizer = ScheduledOptimizer(
        config.optim, {"source": list(head.parameters())}, steps, config.train.epochs
    )
    best, best_state = None, None

    def scored(split: str) -> EvalResult:
        with torch.no_grad():
            logits = head(features[split])
        scores = Scores(len(classifier.class_names), len(classifier.class_names), accelerator.device)
        scores.add(logits, logits, labels[split])
        return scores.result(accelerator)

    for epoch in range(config.train.epochs):
        batches = epoch_order(count, config.seed, epoch).split(config.train.batch_size)
        for step, batch in enumerate(batches):
            batch = batch.to(accelerator.device)
            F.cross_entropy(head(features["train"][batch]), labels["train"][batch]).backward()
            optimizer.step(epoch * steps + step)
        if "val" in features:
            result = scored("val")
            if best is None or result.acc1 > best["acc1"]:
                best = {"epoch": epoch + 1, **result.to_dict()}
                best_state = copy.deepcopy(head.state_dict())
    test = {"last": scored("test")}
    if best is not None:
        head.load_state_dict(best_state)
        test["best_val"] = scored("test")
    return test, best
