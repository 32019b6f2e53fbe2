"""Random label mapping (RLM)."""

from __future__ import annotations

from dataclasses import dataclass

import torch

from ..config.schema import MappingConfig
from .one_to_one import OneToOneMapping


@dataclass
class RandomConfig(MappingConfig):
    """RLM: a random label for each class, fixed by the run's seed."""

    kind: str = "random"


class RandomMapping(OneToOneMapping):
    """RLM: a random one-to-one mapping, fixed by the seed.

    Source: ILM-VP (arXiv 2211.11635), section 4; the usual mapping of visual prompting before it.
    """

    kind = "random"

    def __init__(self, num_source: int, num_target: int, seed: int = 0):
        super().__init__(num_source, num_target, seed=seed)
        generator = torch.Generator().manual_seed(seed)
        self.source_index.copy_(torch.randperm(num_source, generator=generator)[:num_target])

    @classmethod
    def from_config(cls, config, source, class_names, seed) -> RandomMapping:
        return cls(len(source.labels), len(class_names), seed=seed)
