"""No prompt: the images as they are, for baselines and for a mapping alone."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from torch import Tensor

from ..config.schema import PromptConfig
from ..registry import UserError
from .base import VisualPrompt


@dataclass
class NoPromptConfig(PromptConfig):
    """The images as they are; the prompt trains nothing."""

    kind: str = "none"

    def __post_init__(self):
        super().__post_init__()
        if self.views > 1:
            raise UserError(
                f"prompt.views: {self.views} prompts of kind none are one; give 1, or another kind"
            )


class NoPrompt(VisualPrompt):
    """The images as they are."""

    kind = "none"

    def __init__(self, canvas: Sequence[int]):
        super().__init__(canvas, canvas)

    @classmethod
    def from_config(cls, config: NoPromptConfig, source) -> NoPrompt:
        return cls(source.canvas)

    def forward(self, images: Tensor) -> Tensor:
        self.check(images)
        return images
