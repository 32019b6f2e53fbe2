"""The full prompt: every pixel of the image."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch

from .additive import AdditiveConfig, AdditivePrompt


@dataclass
class FullConfig(AdditiveConfig):
    """A learned picture of the canvas's size that is added to the image."""

    kind: str = "full"


class FullPrompt(AdditivePrompt):
    """An additive prompt on every pixel of the canvas."""

    kind = "full"

    def __init__(self, canvas: Sequence[int], scale=None, clip: bool = False, **start):
        super().__init__(canvas, torch.ones(1, *canvas, dtype=torch.float32), scale, clip, **start)

    @classmethod
    def from_config(cls, config: FullConfig, source) -> FullPrompt:
        return cls(source.canvas, **config.settings(source))
