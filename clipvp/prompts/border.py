"""The border prompt: a learned frame on the image."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch

from ..registry import UserError, check_positive
from .additive import AdditiveConfig, AdditivePrompt
from .base import Box


@dataclass
class BorderConfig(AdditiveConfig):
    """A learned frame that is added to the image.

    Args:
        width: Width in pixels of the frame.
    """

    kind: str = "border"
    width: int = 30

    def __post_init__(self):
        super().__post_init__()
        check_positive("prompt.width", self.width)


class BorderPrompt(AdditivePrompt):
    """An additive frame ``width`` pixels wide on the image: the paper's watermark for CLIP, 30 at 224."""

    kind = "border"

    def __init__(self, canvas: Sequence[int], width: int = 30, scale=None, clip: bool = False, **start):
        if not 0 <= 2 * width <= min(canvas):
            raise UserError(f"prompt.width: {width} is not 0 to half the canvas {canvas[0]}x{canvas[1]}")
        mask = torch.ones(1, *canvas, dtype=torch.float32)
        mask[:, width : canvas[0] - width, width : canvas[1] - width] = 0
        super().__init__(canvas, mask, scale, clip, width=width, **start)
        self.width = width

    @classmethod
    def from_config(cls, config: BorderConfig, source) -> BorderPrompt:
        return cls(source.canvas, config.width, **config.settings(source))

    def acts_on(self) -> tuple[Box, Box | None]:
        (height, width), frame = self.canvas, self.width
        inside = (frame, frame, height - frame, width - frame)
        return (0, 0, height, width), inside if 2 * frame < min(height, width) else None
