"""Label mappings: what a source gives becomes target logits (B, T)."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Sequence
from typing import TYPE_CHECKING, NamedTuple

import torch
from torch import Tensor, nn

from ..config.schema import MappingConfig
from ..registry import UserError
from .statistic import Statistic

if TYPE_CHECKING:
    from ..sources.base import Source


class Links(NamedTuple):
    """The source labels behind each class, the most important first.

    Args:
        index: int64 (T, k), source labels; -1 where a class has no such label.
        weight: float32 (T, k), how much each adds to the class's logit.
        count: int64 (T, k), training images of the class with that top-1 label when the mapping was last fitted; None
            where nothing was counted.
        total: int64 (T,), training images of the class that were counted; None likewise.
    """

    index: Tensor
    weight: Tensor
    count: Tensor | None = None
    total: Tensor | None = None


class LabelMapping(nn.Module, ABC):
    """Base of all mappings.

    Args:
        num_source: How many numbers an image has in what ``forward`` takes: S logits, or D features.
        num_target: T.
        settings: Further keyword arguments that build this mapping again.

    Attributes:
        kind: The registered name.
        takes: "logits" or "features": what ``forward`` is given.
        views: Views of an image whose outputs ``forward`` is given apart, (B, views, S) where above 1.
        running: Whether the training steps gather the statistic, after a first pass.
        why_no_links: What people read where ``links`` names no source label.
        settings: The keyword arguments that build this mapping again, ready for JSON.
    """

    kind: str
    takes = "logits"
    views = 1
    running = False
    why_no_links = "the mapping gives no source label a weight of its own"

    def __init__(self, num_source: int, num_target: int, **settings):
        super().__init__()
        self.num_source, self.num_target = num_source, num_target
        self.settings = {"num_source": num_source, "num_target": num_target, **settings}

    @classmethod
    def from_config(
        cls, config: MappingConfig, source: Source, class_names: Sequence[str], seed: int
    ) -> LabelMapping:
        """Build the mapping that a config describes for a source and a task's classes."""
        raise UserError(f"mapping.kind: a {cls.kind} mapping is not built from a config")

    @classmethod
    def takes_of(cls, config: MappingConfig) -> str:
        """Return what a mapping of a config takes, logits or features."""
        return cls.takes

    @abstractmethod
    def forward(self, outputs: Tensor) -> Tensor:
        """Return target logits (B, T) of source logits (B, S), or of features (B, D)."""

    def begin(self, num_images: int) -> None:
        """Prepare for training on so many images, before the optimiser is made; it may make new parameters."""

    def due(self, epoch: int) -> bool:
        """Return whether the mapping is to be fitted before the steps of ``epoch`` (0, 1, ...)."""
        return False

    def statistic(self) -> Statistic | None:
        """Return an empty statistic for a pass to fill; None where the mapping is never fitted."""
        return None

    def fit(self, statistic: Statistic) -> None:
        """Take over what a pass gathered."""
        raise TypeError(f"a {self.kind} mapping is not fitted to a statistic")

    def extra_loss(self, outputs: Tensor, targets: Tensor) -> Tensor | None:
        """Return what training adds to the cross-entropy of ``forward``, summed over the images; None for nothing.

        Args:
            outputs: What ``forward`` is given.
            targets: int64 (B,).
        """
        return None

    def matrix(self) -> Tensor | None:
        """Return the matrix (S, T) with ``forward(x) == x @ matrix``, float32; None where the mapping is not linear."""
        return None

    @torch.no_grad()
    def fold(self, head: Tensor, head_bias: Tensor) -> tuple[Tensor, Tensor] | None:
        """Return weight (D, T) and bias (T,) with ``forward(x @ head.T + head_bias) == x @ weight + bias``.

        Args:
            head: (S, D), of the layer that makes the source logits.
            head_bias: (S,).

        Returns:
            None where the mapping is not linear on logits.
        """
        matrix = self.matrix() if self.takes == "logits" else None
        return None if matrix is None else (head.T @ matrix, head_bias @ matrix)

    def links(self, k: int = 1) -> Links:
        """Return the source labels behind each class, at most ``k``, for people; by default by the matrix."""
        matrix = self.matrix() if self.takes == "logits" else None
        if matrix is None:
            return Links(
                torch.full((self.num_target, 1), -1), torch.zeros(self.num_target, 1, dtype=torch.float32)
            )
        weight, index = matrix.detach().T.cpu().topk(min(k, self.num_source), dim=1)
        return Links(index.where(weight != 0, -1), weight)

    def num_fitted(self) -> int:
        """Return how many numbers ``fit`` sets once and for all, such as a solved head's; 0 where they train on."""
        return 0

    def parameter_groups(self) -> dict[str, list[nn.Parameter]]:
        """Return the parameters that train by group, for ``optim.groups``; each in one group."""
        return {"mapping": [parameter for parameter in self.parameters() if parameter.requires_grad]}

    def extra_repr(self) -> str:
        return ", ".join(f"{key}={value}" for key, value in self.settings.items())


def check_texts(kind: str, source: Source) -> None:
    """Raise ``UserError`` where a kind of mapping needs a CLIP's texts and the source has none."""
    if not source.labels.is_text:
        raise UserError(
            f"mapping.kind: {kind} needs a CLIP; {source.name!r} has a closed label set and no texts"
        )
