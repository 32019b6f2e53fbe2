"""One vector for each class, compared with an image's features by their cosine: TaskRes, ZS-LP, the text ensemble."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from ..config.schema import MappingConfig
from ..registry import UserError, check_choice, check_positive
from .base import LabelMapping
from .feature_statistics import FeatureSums
from .linear import class_texts


@dataclass
class PrototypesConfig(MappingConfig):
    """A vector for each class: the start plus alpha times what trains, compared by cosine.

    Args:
        start: text (for CLIP, the mean text of each class) or means (the mean image of each class).
        alpha: Factor of what trains.
        scale: Factor of the cosine; the CLIP's own, or 100, when empty.
        train: Whether it trains; else it stays at its start.
    """

    kind: str = "prototypes"
    start: str = "text"
    alpha: float = 1.0
    scale: float | None = None
    train: bool = True

    def __post_init__(self):
        super().__post_init__()
        check_choice("mapping.start", self.start, ["text", "means"])
        check_positive("mapping.alpha", self.alpha)
        check_positive("mapping.scale", self.scale)


class PrototypesMapping(LabelMapping):
    """The target logit of class t is ``scale * cos(features, start_t + alpha * residual_t)``.

    Args:
        num_source: D.
        num_target: T.
        start: text or means.
        alpha: Factor of the residual.
        scale: Factor of the cosine.
        train: Whether the residual trains, from 0; weight decay pulls to the start.

    Source: TaskRes (arXiv 2211.10277), alpha 0.5; ZS-LP (arXiv 2312.12730), alpha 1. Not trained and from texts,
    CLIP's ensemble of templates (arXiv 2103.00020), section 3.1.4.
    """

    kind, takes = "prototypes", "features"

    def __init__(
        self,
        num_source: int,
        num_target: int,
        start: str = "text",
        alpha: float = 1.0,
        scale: float = 100.0,
        train: bool = True,
    ):
        settings = {"start": start, "alpha": alpha, "scale": scale, "train": train}
        super().__init__(num_source, num_target, **settings)
        self.start, self.alpha, self.scale = start, alpha, scale
        self.register_buffer("prototypes", torch.zeros(num_target, num_source, dtype=torch.float32))
        self.residual = nn.Parameter(
            torch.zeros(num_target, num_source, dtype=torch.float32), requires_grad=train
        )

    @classmethod
    def from_config(cls, config, source, class_names, seed) -> PrototypesMapping:
        if config.start == "text" and not source.labels.is_text:
            raise UserError(
                f"mapping.start: text needs a CLIP; {source.name!r} has a closed label set; give means"
            )
        scale = config.scale or float(getattr(source, "scale", 100.0))
        mapping = cls(source.num_features, len(class_names), config.start, config.alpha, scale, config.train)
        if config.start == "text":
            mapping.prototypes.copy_(class_texts(source))
        return mapping

    def forward(self, outputs: Tensor) -> Tensor:
        vectors = F.normalize(self.prototypes + self.alpha * self.residual, dim=1)
        return self.scale * F.normalize(outputs, dim=1) @ vectors.T

    def due(self, epoch: int) -> bool:
        return epoch == 0 and self.start == "means"

    def statistic(self) -> FeatureSums | None:
        return FeatureSums(self.num_source, self.num_target) if self.start == "means" else None

    def fit(self, statistic: FeatureSums) -> None:
        self.prototypes.copy_(F.normalize(statistic.class_means(), dim=1))
