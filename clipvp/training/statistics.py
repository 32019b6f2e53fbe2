"""Passes over images that gather what a mapping is fitted to, over all processes."""

from __future__ import annotations

from collections.abc import Callable, Iterable

import torch

from ..data.batches import Batches
from ..mappings.statistic import Statistic, gather, sum_over_processes
from ..model import PromptedClassifier


@torch.no_grad()
def count_pass(
    classifier: PromptedClassifier,
    batches: Batches,
    batch_size: int,
    watch: Callable[[Iterable], Iterable] = iter,
) -> Statistic:
    """Return the statistic of this process's share of some images, as the classifier's mapping wants it.

    The pass sees the images as they are, in evaluation mode, and moves no random state.
    """
    classifier.eval()
    statistic = classifier.mapping.statistic()

    outputs = batches.plain_features if statistic.plain else batches.outputs
    batches_seen = watch(batches.local_batches(batch_size))
    return gather(statistic, ((outputs(classifier, images), labels) for images, labels in batches_seen))


def fit_mapping(classifier: PromptedClassifier, own: Statistic) -> int | None:
    """Fit the mapping to the statistics of all processes.

    Returns:
        How many classes changed their first label; None where no class has a label.
    """
    mapping = classifier.mapping
    before = mapping.links(1).index.clone()  # it may share the memory that the fit writes to
    mapping.fit(sum_over_processes(own, mapping.statistic()))
    index = mapping.links(1).index
    return int((before != index).any(1).sum()) if (index >= 0).any() else None
