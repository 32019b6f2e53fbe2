"""Weights of a class's texts by how often they fit its training images best (DVP's reweighting)."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from ..registry import UserError, check_positive
from .base import LabelMapping, check_texts
from .refresh import RefreshConfig, Refreshed
from .statistic import Statistic


@dataclass
class TextCountsConfig(RefreshConfig):
    """The weighted mean of a class's texts; a text weighs as often as it is among the best of a training image.

    Args:
        top_k: Texts of its own class that an image counts for.
    """

    kind: str = "text_counts"
    top_k: int = 3

    def __post_init__(self):
        super().__post_init__()
        check_positive("mapping.top_k", self.top_k)


class TextCountsMapping(Refreshed, LabelMapping):
    """The target logit of class t is the sum over its texts of weight times logit; the weights of a class sum to 1.

    An image of class t counts for the ``top_k`` of the class's own texts with the largest logits. The weights are the
    counts divided by their sum over the class. A class without images keeps equal weights, the start of all.

    Args:
        num_source: S texts.
        num_target: T.
        class_of: The class of each text; template-major when empty.
        top_k: Texts that an image counts for; all of the class's where it has fewer.
        refresh: Epochs between two refreshes, or "never".
        statistics: exact or running.

    Source: DVP (arXiv 2506.01000), its reweighting matrix; k 3, no smoothing. The paper renews it at an epoch's end
    from the epoch's steps and tests with it, and its first epoch only counts. Here running counts of an epoch are used
    from the next one on: validation and test use the weights of the epoch's training, the counts of the last epoch are
    not used, and the first epoch trains, after a counting pass.
    """

    kind = "text_counts"

    def __init__(
        self,
        num_source: int,
        num_target: int,
        class_of: Sequence[int] | None = None,
        top_k: int = 3,
        refresh: int | str = 1,
        statistics: str = "exact",
    ):
        settings = {} if class_of is None else {"class_of": list(class_of)}
        settings |= {"top_k": top_k, "refresh": refresh, "statistics": statistics}
        super().__init__(num_source, num_target, **settings)
        self.set_refresh(refresh, statistics)
        self.top_k = top_k
        owner = torch.arange(num_source) % num_target if class_of is None else torch.tensor(class_of)
        if owner.shape != (num_source,) or set(owner.tolist()) != set(range(num_target)):
            raise UserError(f"a mapping of texts needs one text or more for each of {num_target} classes")
        self.register_buffer("class_of", owner, persistent=False)
        sizes = torch.bincount(owner, minlength=num_target)
        self.register_buffer("weight", 1 / sizes[owner].float())

    @classmethod
    def from_config(cls, config, source, class_names, seed) -> TextCountsMapping:
        labels = source.labels
        check_texts(cls.kind, source)
        class_of = None if labels.is_grid else labels.class_of
        options = config.top_k, config.refresh, config.statistics
        return cls(len(labels), len(class_names), class_of, *options)

    def forward(self, outputs: Tensor) -> Tensor:
        own = outputs.new_zeros(outputs.shape[0], self.num_target)
        return own.index_add(1, self.class_of, outputs * self.weight)

    def statistic(self) -> TextCounts:
        return TextCounts(self.class_of.cpu(), self.top_k)

    @torch.no_grad()
    def fit(self, statistic: TextCounts) -> None:
        owner = self.class_of.cpu()
        totals = torch.zeros(self.num_target, dtype=torch.int64).index_add_(0, owner, statistic.counts)
        sizes = torch.bincount(owner, minlength=self.num_target)
        weight = statistic.counts / totals.clamp(min=1)[owner]
        self.weight.copy_(torch.where(totals[owner] > 0, weight, 1 / sizes[owner].float()))

    def matrix(self) -> Tensor:
        own = torch.zeros(self.num_source, self.num_target, device=self.weight.device, dtype=torch.float32)
        own[torch.arange(self.num_source, device=own.device), self.class_of] = self.weight
        return own


class TextCounts(Statistic):
    """For each text, the images of its class for which it is among the ``top_k`` best of the class's texts.

    Args:
        class_of: int64 (S,), on the CPU.
        top_k: See above.
    """

    def __init__(self, class_of: Tensor, top_k: int):
        self.class_of, self.top_k = class_of, top_k
        self.counts = torch.zeros(len(class_of), dtype=torch.int64)

    def add(self, outputs: Tensor, targets: Tensor) -> None:
        owner = self.class_of.to(outputs.device)
        own = outputs.detach().masked_fill(owner != targets[:, None], -torch.inf)
        best = own.topk(min(self.top_k, own.shape[1]), dim=1)
        texts = best.indices[best.values > -torch.inf].cpu()
        self.counts += torch.bincount(texts, minlength=len(self.counts))

    def tensors(self) -> dict[str, Tensor]:
        return {"counts": self.counts}

    def add_tensors(self, tensors: dict[str, Tensor]) -> None:
        self.counts += tensors["counts"]
