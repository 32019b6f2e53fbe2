"""The patch prompt: a learned square on the image."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field

import torch

from ..registry import UserError, check_positive
from .additive import AdditiveConfig, AdditivePrompt
from .base import Box


@dataclass
class PatchConfig(AdditiveConfig):
    """A learned square that is added to the image.

    Args:
        patch_size: Side in pixels of the square.
        patch_position: [top, left] in pixels of the square.
    """

    kind: str = "patch"
    patch_size: int = 32
    patch_position: list[int] = field(default_factory=lambda: [0, 0])

    def __post_init__(self):
        super().__post_init__()
        check_positive("prompt.patch_size", self.patch_size)
        if len(self.patch_position) != 2 or min(self.patch_position) < 0:
            raise UserError(f"prompt.patch_position: {self.patch_position} is not [top, left] in pixels")


class PatchPrompt(AdditivePrompt):
    """An additive square of side ``size`` at a fixed place, ``position`` (top, left) in pixels."""

    kind = "patch"

    def __init__(
        self, canvas, size: int, position: Sequence[int] = (0, 0), scale=None, clip: bool = False, **start
    ):
        top, left = position
        if min(top, left) < 0 or size < 1 or top + size > canvas[0] or left + size > canvas[1]:
            raise UserError(
                f"prompt.patch_size: a square of {size} at {list(position)} leaves the canvas {canvas[0]}x{canvas[1]}"
            )
        mask = torch.zeros(1, *canvas, dtype=torch.float32)
        mask[:, top : top + size, left : left + size] = 1
        super().__init__(canvas, mask, scale, clip, size=size, position=list(position), **start)
        self.box: Box = (top, left, top + size, left + size)

    @classmethod
    def from_config(cls, config: PatchConfig, source) -> PatchPrompt:
        return cls(source.canvas, config.patch_size, config.patch_position, **config.settings(source))

    def acts_on(self) -> tuple[Box, None]:
        return self.box, None
