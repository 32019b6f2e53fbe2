"""The identity mapping: classes and source labels of the same name."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch

from ..config.schema import MappingConfig
from ..registry import UserError
from .one_to_one import OneToOneMapping


@dataclass
class IdentityConfig(MappingConfig):
    """Labels and classes with the same names; for CLIP, one template and every class its own text (VP + TP)."""

    default_templates = "This is a photo of a {}."

    kind: str = "identity"


class IdentityMapping(OneToOneMapping):
    """Each class takes the source label of its own name; for CLIP, its own text (VP + TP).

    Args:
        num_source: S.
        num_target: T.
        source_index: The source label of each class.
    """

    kind = "identity"

    def __init__(self, num_source: int, num_target: int, source_index: Sequence[int]):
        super().__init__(num_source, num_target, source_index=list(source_index))
        self.source_index.copy_(torch.tensor(list(source_index)))

    @classmethod
    def from_config(cls, config, source, class_names, seed) -> IdentityMapping:
        labels = source.labels
        if labels.is_text:
            if sorted(labels.class_of) != list(range(len(class_names))):
                raise UserError(
                    f"mapping.kind: identity takes one text a class, and {len(class_names)} classes have "
                    f"{len(labels)} texts; set mapping.templates to one template, such as {labels.wordings[0]!r}"
                )
            place = {target: label for label, target in enumerate(labels.class_of)}
            return cls(len(labels), len(class_names), [place[target] for target in range(len(class_names))])

        def plain(name: str) -> str:
            return " ".join(name.replace("_", " ").casefold().split())

        index = {plain(name): position for position, name in reversed(list(enumerate(labels.names)))}
        missing = [name for name in class_names if plain(name) not in index]
        if missing:
            raise UserError(
                f"mapping.kind: identity needs a source label for each class; {len(missing)} of {len(class_names)} "
                f"have none, the first: {', '.join(map(repr, missing[:5]))}; mapping.kind: frequency needs no names"
            )
        return cls(len(labels), len(class_names), [index[plain(name)] for name in class_names])
