"""A linear mapping folded into the source's last layer, or into the text matrix of a CLIP."""

from __future__ import annotations

import torch
from torch import Tensor
from torch.nn import functional as F

from .base import LabelMapping, Links


class FoldedMapping(LabelMapping):
    """Target logits are ``inputs @ weight + bias``, the inputs being features, or features divided by their norm.

    Made by ``PromptedClassifier.fold``; the source labels behind each class are those of the mapping that was folded.

    Args:
        num_source: D.
        num_target: T.
        normalise: Divide features by their norm, as a CLIP does.
        num_links: Source labels that are known of each class.
    """

    kind, takes = "folded", "features"

    def __init__(self, num_source: int, num_target: int, normalise: bool = False, num_links: int = 1):
        super().__init__(num_source, num_target, normalise=normalise, num_links=num_links)
        self.normalise = normalise
        self.register_buffer("weight", torch.zeros(num_source, num_target, dtype=torch.float32))
        self.register_buffer("bias", torch.zeros(num_target, dtype=torch.float32))
        self.register_buffer("link_index", torch.full((num_target, num_links), -1, dtype=torch.int64))
        self.register_buffer("link_weight", torch.zeros(num_target, num_links, dtype=torch.float32))

    @classmethod
    def of(cls, mapping: LabelMapping, head: Tensor, head_bias: Tensor, normalise: bool) -> FoldedMapping:
        """Return a mapping on logits folded into what makes them.

        Args:
            mapping: Its ``fold`` is not None.
            head: (S, D), of the source's last layer.
            head_bias: (S,).
            normalise: Whether the source divides features by their norm.
        """
        weight, bias = mapping.fold(head, head_bias)
        links = mapping.links(5)
        folded = cls(head.shape[1], mapping.num_target, normalise, links.index.shape[1]).to(weight.device)
        folded.weight.copy_(weight)
        folded.bias.copy_(bias)
        folded.link_index.copy_(links.index)
        folded.link_weight.copy_(links.weight)
        return folded

    def forward(self, outputs: Tensor) -> Tensor:
        return (F.normalize(outputs, dim=1) if self.normalise else outputs) @ self.weight + self.bias

    def links(self, k: int = 1) -> Links:
        return Links(self.link_index.cpu()[:, :k], self.link_weight.cpu()[:, :k])
