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
    """The images as they are; the prompt trains nothing.

    Args:
        squash: Give images the canvas's size without keeping the aspect, bilinear, in the place of the model's own
            preprocessing.
    """

    kind: str = "none"
    squash: bool = False

    def __post_init__(self):
        super().__post_init__()
        if self.views > 1:
            raise UserError(
                f"prompt.views: {self.views} prompts of kind none are one; give 1, or another kind"
            )


class NoPrompt(VisualPrompt):
    """The images as they are; ``squash`` as in ``NoPromptConfig``."""

    kind = "none"

    def __init__(self, canvas: Sequence[int], squash: bool = False):
        super().__init__(canvas, canvas, **({"squash": True} if squash else {}))

    @classmethod
    def from_config(cls, config: NoPromptConfig, source) -> NoPrompt:
        return cls(source.canvas, config.squash)

    def forward(self, images: Tensor) -> Tensor:
        self.check(images)
        return images
