"""CLIP without training: single templates, their ensemble, and mappings, all from one pass over the images."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor
from torch.nn import functional as F

from ..mappings.base import LabelMapping
from ..mappings.statistic import gather
from ..sources.clip import ClipSource

_BATCH = 1024


@dataclass
class ZeroShot:
    """Image features of the splits of a task, scored against a source's label space in many ways.

    Args:
        source: A CLIP with a label space of K templates x T classes.
        features: By split, image features (N, D) as ``source.encode`` gives them.
        targets: By split, classes (N,) int64.
    """

    source: ClipSource
    features: dict[str, Tensor]
    targets: dict[str, Tensor]

    @property
    def num_classes(self) -> int:
        return len(self.source.labels.class_names)

    def template_features(self) -> Tensor:
        """Return the text features as (K, T, D)."""
        return self.source.text_features.view(len(self.source.labels.templates), self.num_classes, -1)

    def accuracy(self, split: str, class_features: Tensor) -> float:
        """Return the top-1 accuracy, 0..1, of a classifier of L2-normalised class features (T, D)."""
        images = F.normalize(self.features[split], dim=1)
        return float(((images @ class_features.T).argmax(1) == self.targets[split]).double().mean())

    def single_templates(self, split: str) -> list[float]:
        """Return the accuracy of each template alone."""
        return [self.accuracy(split, class_features) for class_features in self.template_features()]

    def ensemble(self, split: str) -> float:
        """Return the accuracy of each class's mean embedding over all templates.

        Source: CLIP (arXiv 2103.00020), section 3.1.4.
        """
        return self.accuracy(split, F.normalize(self.template_features().mean(0), dim=1))

    def batches(self, split: str):
        """Yield source logits (B, S) and classes (B,) of a split, a batch at a time."""
        pairs = zip(self.features[split].split(_BATCH), self.targets[split].split(_BATCH), strict=True)
        for features, targets in pairs:
            yield self.source.score(features), targets

    def fit_mapping(self, mapping: LabelMapping) -> None:
        """Fit a mapping to the counts of the training images without a prompt."""
        mapping.fit(gather(mapping.statistic(), self.batches("train")))

    def mapped(self, split: str, mapping: LabelMapping) -> float:
        """Return the accuracy of a mapping without a prompt."""
        hits = sum(
            int((mapping(logits).argmax(1) == targets).sum()) for logits, targets in self.batches(split)
        )
        return hits / len(self.targets[split])


def best_template(scores: list[float]) -> int:
    """Return the index of the highest score, the first of equals."""
    return int(torch.tensor(scores, dtype=torch.float64).argmax())
