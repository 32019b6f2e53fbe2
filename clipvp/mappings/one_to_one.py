"""Mappings in which one source label serves one class."""

from __future__ import annotations

import torch
from torch import Tensor

from .assignment import check_sizes
from .base import LabelMapping, Links


class OneToOneMapping(LabelMapping):
    """Target logit t is the source logit of the label that class t takes.

    Args:
        num_source: S.
        num_target: T, at most S.

    Attributes:
        source_index: int64 (T,), the source label of each class; -1 before the first fit.
        chosen_count: int64 (T,), the count of the chosen cell at the last fit; -1 where nothing was counted.
        class_count: int64 (T,), the images of each class counted at the last fit; -1 likewise.

    Raises:
        UserError: T > S.
    """

    def __init__(self, num_source: int, num_target: int, **settings):
        check_sizes(num_source, num_target)
        super().__init__(num_source, num_target, **settings)
        for name in ("source_index", "chosen_count", "class_count"):
            self.register_buffer(name, torch.full((num_target,), -1, dtype=torch.int64))

    def forward(self, outputs: Tensor) -> Tensor:
        return outputs.index_select(1, self.source_index)

    def matrix(self) -> Tensor:
        matrix = torch.zeros(
            self.num_source, self.num_target, device=self.source_index.device, dtype=torch.float32
        )
        (taken,) = (self.source_index >= 0).nonzero(as_tuple=True)
        matrix[self.source_index[taken], taken] = 1
        return matrix

    @torch.no_grad()
    def fold(self, head: Tensor, head_bias: Tensor) -> tuple[Tensor, Tensor]:
        return head[self.source_index].T, head_bias[self.source_index]

    def links(self, k: int = 1) -> Links:
        index, count = self.source_index.cpu()[:, None], self.chosen_count.cpu()[:, None]
        counted = bool((count >= 0).all())
        weight = (index >= 0).to(torch.float32)
        return Links(index, weight, *((count, self.class_count.cpu()) if counted else (None, None)))
