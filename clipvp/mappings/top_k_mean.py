"""Several source labels for each class, and the mean of their logits."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from ..registry import UserError, check_positive
from .base import LabelMapping, Links
from .refresh import RefreshConfig, Refreshed
from .statistic import CellSums, Counts


@dataclass
class TopKMeanConfig(RefreshConfig):
    """AutoVP's frequency mapping: k source labels a class, which no other class takes, and the mean of their logits.

    Args:
        top_k: Labels of a class.
    """

    kind: str = "top_k_mean"
    top_k: int = 5

    def __post_init__(self):
        super().__post_init__()
        check_positive("mapping.top_k", self.top_k)


class TopKMeanMapping(Refreshed, LabelMapping):
    """The target logit of a class is the mean of the source logits of its k labels, chosen greedily by counts.

    Args:
        num_source: S.
        num_target: T; T times k is at most S.
        top_k: k.
        refresh, statistics: See ``Refreshed``.

    Attributes:
        source_index: int64 (T, k), the labels of each class, the largest count first; -1 before the first fit.
        chosen_count: int64 (T, k), their counts; -1 likewise.
        class_count: int64 (T,), the images of each class that were counted; -1 likewise.

    Raises:
        UserError: T times k is above S.

    Source: AutoVP (arXiv 2310.08381), its frequency-based mapping.
    """

    kind = "top_k_mean"

    def __init__(
        self,
        num_source: int,
        num_target: int,
        top_k: int = 5,
        refresh: int | str = 1,
        statistics: str = "exact",
    ):
        if num_target * top_k > num_source:
            raise UserError(
                f"mapping.top_k: {top_k} labels for each of {num_target} classes are more than the source's "
                f"{num_source}; give at most {num_source // num_target}"
            )
        settings = {"top_k": top_k, "refresh": refresh, "statistics": statistics}
        super().__init__(num_source, num_target, **settings)
        self.set_refresh(refresh, statistics)
        self.top_k = top_k
        for name in ("source_index", "chosen_count"):
            self.register_buffer(name, torch.full((num_target, top_k), -1, dtype=torch.int64))
        self.register_buffer("class_count", torch.full((num_target,), -1, dtype=torch.int64))

    @classmethod
    def from_config(cls, config, source, class_names, seed) -> TopKMeanMapping:
        options = config.top_k, config.refresh, config.statistics
        return cls(len(source.labels), len(class_names), *options)

    def forward(self, outputs: Tensor) -> Tensor:
        return outputs[:, self.source_index].mean(2)

    def matrix(self) -> Tensor:
        matrix = torch.zeros(
            self.num_source, self.num_target, device=self.source_index.device, dtype=torch.float32
        )
        if bool((self.source_index >= 0).all()):
            matrix.scatter_(0, self.source_index.T, 1 / self.top_k)
        return matrix

    def statistic(self) -> Counts:
        return Counts(self.num_source, self.num_target)

    def fit(self, statistic: CellSums) -> None:
        index = assign_greedy_k(statistic, self.top_k)
        self.source_index.copy_(index)
        classes = torch.arange(self.num_target)[:, None].expand_as(index)
        self.chosen_count.copy_(statistic.at(index.flatten(), classes.flatten()).view_as(index))
        self.class_count.copy_(statistic.by_class())

    def links(self, k: int = 1) -> Links:
        index, count = self.source_index.cpu()[:, :k], self.chosen_count.cpu()[:, :k]
        weight = (index >= 0).to(torch.float32) / self.top_k
        counted = bool((count >= 0).all())
        return Links(index, weight, *((count, self.class_count.cpu()) if counted else (None, None)))


def assign_greedy_k(counts: CellSums, k: int) -> Tensor:
    """Return k source labels for each class, greedily.

    The largest count gives its label to its class; the label leaves, and the class when it has k labels. Ties, and
    places that are left when only zeros remain: as in ``assign_greedy``.

    Returns:
        int64 (T, k), in the order in which they were given, on the CPU.
    """
    labels, classes, values = counts.cells
    free, rows = [True] * counts.num_source, [[] for _ in range(counts.num_target)]
    order = (-values).argsort(stable=True)
    for label, target in zip(labels[order].tolist(), classes[order].tolist(), strict=True):
        if free[label] and len(rows[target]) < k:
            rows[target].append(label)
            free[label] = False
    left = iter([label for label in range(counts.num_source) if free[label]])
    for row in rows:
        row += [next(left) for _ in range(k - len(row))]
    return torch.tensor(rows, dtype=torch.int64)
