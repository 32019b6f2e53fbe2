"""CLIP without training: single templates, their ensemble, and mappings, all from one pass over the images."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor
from torch.nn import functional as F

from ..config.schema import MappingConfig
from ..mappings.base import LabelMapping
from ..mappings.frequency import FrequencyMapping
from ..mappings.statistic import gather
from ..results.tables import mapping_rows, percent
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


# Mappings without a prompt, by what is said of them.
_UNPROMPTED = {"unprompted mapping, any label": None, "unprompted mapping, own labels": "class"}


def without_training(run: ZeroShot, seed: int = 0) -> dict[str, Any]:
    """Return the accuracies, 0..1, of templates, their ensemble and mappings, on all splits but train, ready for JSON.

    Args:
        run: Its splits hold train and test, and val if there is one, on which the best template is chosen.
        seed: Of the mappings.
    """
    labels, splits = run.source.labels, [split for split in run.features if split != "train"]
    singles = {split: run.single_templates(split) for split in splits}
    chosen = {"first template": 0}
    if "val" in singles:
        chosen["best template on validation"] = best_template(singles["val"])
    results: dict[str, Any] = {
        "num": {split: len(targets) for split, targets in run.targets.items()},
        "templates": list(labels.templates),
        "single": singles,
        "chosen": chosen,
        "mean": {split: sum(scores) / len(scores) for split, scores in singles.items()},
        "ensemble": {split: run.ensemble(split) for split in splits},
    }
    names = list(labels.class_names)
    for name, within in _UNPROMPTED.items():
        config = MappingConfig(within=within)
        mapping = FrequencyMapping.from_config(config, run.source, names, seed).to(run.source.mean.device)
        run.fit_mapping(mapping)
        rows = mapping_rows(mapping.links(), labels.names, names)
        results[name] = {**{split: run.mapped(split, mapping) for split in splits}, "table": rows}
    return results


def table(results: dict[str, Any], task: str) -> str:
    """Return what ``without_training`` found as a table for a terminal."""
    from tabulate import tabulate

    templates, splits = results["templates"], list(results["mean"])
    rows = [
        [f"{name}: {templates[index]}", *(results["single"][split][index] for split in splits)]
        for name, index in results["chosen"].items()
    ]
    named = {
        f"mean over the {len(templates)} templates alone": "mean",
        f"ensemble of {len(templates)} templates": "ensemble",
        **{name: name for name in _UNPROMPTED},
    }
    rows += [[name, *(results[key][split] for split in splits)] for name, key in named.items()]
    rows = [[name, *map(percent, values)] for name, *values in rows]
    return tabulate(rows, headers=[f"{task}, top-1", *splits], disable_numparse=True, colalign=("left",))
