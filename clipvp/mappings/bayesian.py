"""Bayesian label mapping: every source label votes for every class, by counts (BLM) or probabilities (BLM+)."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from ..registry import UserError, check_positive
from .base import LabelMapping
from .refresh import RefreshConfig, Refreshed
from .statistic import CellSums, Counts, SoftCounts


@dataclass
class BayesianConfig(RefreshConfig):
    """BLM: each label's share of a class among the images that it is seen as, scaled to a sum of 1 for each class.

    Args:
        smoothing: Added to the count of each source label.
    """

    kind: str = "blm"
    smoothing: float = 1.0

    def __post_init__(self):
        super().__post_init__()
        check_positive("mapping.smoothing", self.smoothing, zero=True)


@dataclass
class SoftBayesianConfig(BayesianConfig):
    """BLM+: as BLM, from the probabilities of each image's k most probable labels.

    Args:
        top_k: k; a share of the classes, max(1, int(0.15 T)), when empty.
    """

    kind: str = "blm_plus"
    top_k: int | None = None

    def __post_init__(self):
        super().__post_init__()
        check_positive("mapping.top_k", self.top_k)


class BayesianMapping(Refreshed, LabelMapping):
    """BLM: target logits are ``z @ w``, w from counts N of labels s by classes t.

    P[s, t] = N[s, t] / (sum over t of N[s, t] + smoothing) and w[s, t] = P[s, t] / sum over s of P[s, t]: every column
    sums to 1. The column of a class without counts is 0.

    Args:
        num_source: S.
        num_target: T.
        refresh, statistics: See ``Refreshed``.
        smoothing: Added to the count of each label, 0 or more.

    Source: BLM (arXiv 2410.24018), section 4; w in float64, rounded.
    """

    kind = "blm"

    def __init__(
        self,
        num_source: int,
        num_target: int,
        refresh: int | str = 1,
        statistics: str = "exact",
        smoothing: float = 1.0,
        **settings,
    ):
        settings |= {"refresh": refresh, "statistics": statistics, "smoothing": smoothing}
        super().__init__(num_source, num_target, **settings)
        self.set_refresh(refresh, statistics)
        self.smoothing = smoothing
        self.register_buffer("weight", torch.zeros(num_source, num_target, dtype=torch.float32))

    @classmethod
    def from_config(cls, config, source, class_names, seed) -> BayesianMapping:
        return cls(len(source.labels), len(class_names), config.refresh, config.statistics, config.smoothing)

    def forward(self, outputs: Tensor) -> Tensor:
        return outputs @ self.weight

    def matrix(self) -> Tensor:
        return self.weight

    def statistic(self) -> CellSums:
        return Counts(self.num_source, self.num_target)

    def fit(self, statistic: CellSums) -> None:
        labels, classes, values = statistic.cells
        values = values.double() / getattr(statistic, "ONE", 1)
        of_label = torch.zeros(self.num_source, dtype=torch.float64).index_add_(0, labels, values)
        share = values / (of_label[labels] + self.smoothing)
        of_class = torch.zeros(self.num_target, dtype=torch.float64).index_add_(0, classes, share)
        weight = torch.zeros(self.num_source, self.num_target, dtype=torch.float64)
        weight[labels, classes] = torch.where(share > 0, share / of_class[classes], 0)
        self.weight.copy_(weight)


class SoftBayesianMapping(BayesianMapping):
    """BLM+: BLM from the summed probabilities of each image's k most probable labels.

    Args:
        top_k: k, at most S; max(1, int(0.15 T)) when None.

    Source: BLM+ (arXiv 2410.24018), section 4; its code's share of 0.15, which gives k = 0 below 7 classes.
    """

    kind = "blm_plus"

    def __init__(self, num_source: int, num_target: int, *given, top_k: int | None = None, **settings):
        super().__init__(num_source, num_target, *given, top_k=top_k, **settings)
        self.top_k = min(top_k or max(1, int(0.15 * num_target)), num_source)

    @classmethod
    def from_config(cls, config, source, class_names, seed) -> SoftBayesianMapping:
        size = len(source.labels), len(class_names)
        check_at_most_labels(config.top_k, size[0])
        return cls(*size, config.refresh, config.statistics, config.smoothing, top_k=config.top_k)

    def statistic(self) -> SoftCounts:
        return SoftCounts(self.num_source, self.num_target, self.top_k)


def check_at_most_labels(k: int | None, num_source: int) -> None:
    """Raise ``UserError`` where k labels are asked of fewer."""
    if k is not None and k > num_source:
        raise UserError(f"mapping.top_k: {k} is above the source's {num_source} labels")
