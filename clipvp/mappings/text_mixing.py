"""Mixing of a CLIP's texts: weights of a class's own texts, and of the classes among each other (RVP)."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor, nn

from ..config.schema import MappingConfig
from ..registry import UserError
from .base import LabelMapping, check_texts


@dataclass
class TextMixingConfig(MappingConfig):
    """RVP's mapping: softmax weights over the texts of a class, then I + E over the classes.

    Args:
        weights: Whether the weights of the texts train; else all texts of a class count alike.
        classes: Whether E, the mixing of classes, trains; else there is none.
    """

    kind: str = "text_mixing"
    weights: bool = True
    classes: bool = True


class TextMixingMapping(LabelMapping):
    """Target logits are ``f @ (I + E)``, with f[c] the sum over the texts of class c of softmax weight times logit.

    Args:
        num_source: S texts.
        num_target: T.
        class_of: The class of each text; template-major when empty.
        weights: Whether the logits of the weights train, from 0, that is from equal weights.
        classes: Whether E (T, T) trains, from 0.

    Source: RVP (arXiv 2609.36680), its text weights P and residual E.
    """

    kind = "text_mixing"

    def __init__(
        self,
        num_source: int,
        num_target: int,
        class_of: Sequence[int] | None = None,
        weights: bool = True,
        classes: bool = True,
    ):
        settings = {} if class_of is None else {"class_of": list(class_of)}
        super().__init__(num_source, num_target, weights=weights, classes=classes, **settings)
        owner = torch.arange(num_source) % num_target if class_of is None else torch.tensor(class_of)
        if owner.shape != (num_source,) or set(owner.tolist()) != set(range(num_target)):
            raise UserError(f"a mapping of texts needs one text or more for each of {num_target} classes")
        self.register_buffer("class_of", owner, persistent=False)
        self.text_logits = nn.Parameter(torch.zeros(num_source, dtype=torch.float32), requires_grad=weights)
        self.mixing = nn.Parameter(
            torch.zeros(num_target, num_target, dtype=torch.float32), requires_grad=classes
        )

    @classmethod
    def from_config(cls, config, source, class_names, seed) -> TextMixingMapping:
        labels = source.labels
        check_texts(cls.kind, source)
        class_of = None if labels.is_grid else labels.class_of
        return cls(len(labels), len(class_names), class_of, config.weights, config.classes)

    def text_weights(self) -> Tensor:
        """Return the weight of each text, (S,); those of a class sum to 1."""
        most = self.text_logits.detach().new_full((self.num_target,), -torch.inf)
        most = most.scatter_reduce(0, self.class_of, self.text_logits.detach(), "amax")
        powers = (self.text_logits - most[self.class_of]).exp()
        sums = torch.zeros_like(most).index_add(0, self.class_of, powers)
        return powers / sums[self.class_of]

    def forward(self, outputs: Tensor) -> Tensor:
        weighted = outputs * self.text_weights()
        own = outputs.new_zeros(outputs.shape[0], self.num_target).index_add(1, self.class_of, weighted)
        return own + own @ self.mixing

    def matrix(self) -> Tensor:
        own = torch.zeros(
            self.num_source, self.num_target, device=self.text_logits.device, dtype=torch.float32
        )
        own[torch.arange(self.num_source, device=own.device), self.class_of] = self.text_weights()
        return own + own @ self.mixing
