"""Semantic mapping: source labels by the meaning of their names, without an image."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from ..config.schema import MappingConfig
from .one_to_one import OneToOneMapping


@dataclass
class SemanticConfig(MappingConfig):
    """Each class takes the source label whose name means most the same, by the cosine of text embeddings.

    Args:
        text_source: A CLIP whose text tower embeds the names; the source itself when it is one.
    """

    kind: str = "semantic"
    text_source: str = "offline:lite0-minilm"


class SemanticMapping(OneToOneMapping):
    """Each class takes the source label of the most similar name that no class before it took.

    Args:
        num_source: S.
        num_target: T, at most S.

    Source: AutoVP (arXiv 2310.08381), its semantic mapping, with one label a class.
    """

    kind = "semantic"

    @classmethod
    def from_config(cls, config, source, class_names, seed) -> SemanticMapping:
        from ..labels.templates import text_class_names
        from ..sources.load import load_source

        labels = list(source.labels.names)
        targets = text_class_names(class_names, config.class_names)
        tower = source.name if source.labels.is_text else config.text_source
        texts = list(dict.fromkeys([*labels, *targets]))
        embeddings = load_source(tower, class_names=texts, templates=["{}"]).text_features
        place = {text: index for index, text in enumerate(texts)}
        rows, columns = ([place[text] for text in names] for names in (labels, targets))
        mapping = cls(len(labels), len(class_names))
        mapping.source_index.copy_(assign_in_turn(embeddings[rows] @ embeddings[columns].T))
        return mapping


def assign_in_turn(similarity: Tensor) -> Tensor:
    """Return the label of each class, int64 (T,): one class after the other takes the most similar one that is left.

    Args:
        similarity: (S, T). Ties: the lowest label.
    """
    left, chosen = similarity.clone(), torch.empty(similarity.shape[1], dtype=torch.int64)
    for target in range(similarity.shape[1]):
        chosen[target] = left[:, target].argmax()
        left[chosen[target]] = -torch.inf
    return chosen
