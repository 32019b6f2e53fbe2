"""Queries: the images that a run asks its source about, counted by phase and bounded by ``train.max_queries``.

What is found on the disk counts too (features, and answers of a service), so the counts do not depend on earlier runs.
"""

from __future__ import annotations

from ..config.schema import TrainConfig
from ..data.batches import Batches
from ..model import PromptedClassifier
from ..registry import UserError


class Queries:
    """What the phases of a run cost in queries. An image under V views is V queries.

    Args:
        classifier: Its prompt says how many views there are, its mapping when it is fitted to a pass.
        data: Splits by name.
        config: ``max_queries`` and ``batch_size`` are used.
        evaluations: How often a step asks about each of its images.
        counts: The queries so far by phase, which are updated here.
    """

    def __init__(
        self,
        classifier: PromptedClassifier,
        data: dict[str, Batches],
        config: TrainConfig,
        evaluations: int,
        counts: dict[str, int],
    ):
        self.mapping, self.views, self.data = classifier.mapping, classifier.prompt.views, data
        self.limit, self.batch_size = config.max_queries, min(config.batch_size, len(data["train"]))
        self.evaluations, self.counts = evaluations, counts

    def asked(self, phase: str, images: int) -> None:
        """Count images that the source was asked about."""
        if images:
            self.counts[phase] = self.counts.get(phase, 0) + images

    def of_outputs(self) -> int:
        """Return the queries of outputs that were computed once, before the first epoch."""
        kept = [batches for batches in self.data.values() if not batches.asks_source]
        return sum(len(batches) * (1 + len(batches.views)) for batches in kept) * self.views

    def of_pass(self, split: str) -> int:
        """Return the queries of a pass over a split; 0 for a split that is not there, or asks nothing."""
        batches = self.data.get(split)
        return len(batches) * self.views if batches is not None and batches.asks_source else 0

    def of_counting(self) -> int:
        """Return the queries of the pass that the mapping is fitted to; without a prompt an image is seen once."""
        plain = self.data["train"].asks_source and self.mapping.statistic().plain
        return len(self.data["train"]) if plain else self.of_pass("train")

    def of_step(self, images: int) -> int:
        asks = self.data["train"].asks_source
        return images * self.evaluations * self.views if asks else 0

    def counted(self, epoch: int) -> bool:
        """Return whether a pass over the training images comes before the steps of an epoch."""
        return self.mapping.due(epoch) and (not self.mapping.running or epoch == 0)

    def allowed(self, images: int) -> bool:
        """Return whether so many queries more are within the limit, and a validation after them."""
        used = sum(count for phase, count in self.counts.items() if phase != "testing")
        return self.limit is None or used + images + self.of_pass("val") <= self.limit

    def epoch_allowed(self, epoch: int) -> bool:
        """Return whether the first step of an epoch is within the limit, and the counting before it."""
        counting = self.of_counting() if self.counted(epoch) else 0
        return self.allowed(counting + self.of_step(self.batch_size))

    def check(self) -> None:
        """Raise ``UserError`` where the limit does not allow a single step."""
        if not self.epoch_allowed(0):
            counting = self.of_counting() if self.counted(0) else 0
            raise UserError(
                f"train.max_queries: {self.limit} does not allow a first step: it takes "
                f"{self.of_step(self.batch_size)}, counting before it {counting}, and validation {self.of_pass('val')}"
            )


def check_outputs(limit: int | None, data: dict[str, Batches], more_views: int, prompt_views: int) -> None:
    """Raise ``UserError`` where the limit does not allow the outputs that are computed before the first epoch.

    Args:
        limit: ``train.max_queries``.
        data: Splits by name.
        more_views: Augmented views of each training image.
        prompt_views: Of an image under the prompt.
    """
    images = (sum(map(len, data.values())) + more_views * len(data["train"])) * prompt_views
    if limit is not None and images > limit:
        raise UserError(
            f"train.max_queries: {limit} does not allow this run: it asks about all its {images} images, those of "
            "the tests too, once before the first epoch"
        )
