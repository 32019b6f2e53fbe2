"""Prompts that are added to an image of the canvas's size."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from ..config.schema import PromptConfig
from ..registry import check_choice
from .masked import MaskedPrompt

STARTS = ("zeros", "normal")


@dataclass
class AdditiveConfig(PromptConfig):
    """Keys of every additive prompt.

    Args:
        space: pixel, or normalized: delta is added after the source's normalisation.
        clip: Clamp prompted pixels to [0, 1].
        start: Delta before training: zeros, or normal (drawn with deviation 1, of which the seed decides).
    """

    space: str = "pixel"
    clip: bool = False
    start: str = "zeros"

    def __post_init__(self):
        super().__post_init__()
        check_choice("prompt.space", self.space, ["pixel", "normalized"])
        check_choice("prompt.start", self.start, STARTS)

    def settings(self, source) -> dict:
        """Return the keyword arguments that every additive prompt takes."""
        scale = list(source.preprocessing.std) if self.space == "normalized" else None
        start = {"start": self.start} if self.start != "zeros" else {}
        return {"scale": scale, "clip": self.clip, **start}


class AdditivePrompt(MaskedPrompt):
    """``pixels = x + delta * scale * mask`` on images of the canvas's size.

    Args:
        canvas: (H, W) in pixels, of the images too.
        mask: (1, H, W), 1 where the prompt acts.
        scale: One factor a channel. The source's std puts delta into normalised space, as the paper
            has it for CLIP; empty means pixel space.
        clip: Clamp the result to [0, 1].
        start: zeros or normal, see ``AdditiveConfig``.
        seed: Draws a normal start; delta is 0 when None.

    Source: ILM-VP (arXiv 2211.11635), section 5, and its reference's additive prompt.
    """

    added = True

    def __init__(
        self,
        canvas: Sequence[int],
        mask: Tensor,
        scale: Sequence[float] | None = None,
        clip: bool = False,
        start: str = "zeros",
        seed: int | None = None,
        **settings,
    ):
        check_choice("prompt.start", start, STARTS)
        scale = [float(value) for value in scale] if scale is not None else None
        super().__init__(canvas, canvas, mask, **settings, scale=scale, clip=clip)
        self.clip = clip
        factors = torch.tensor(scale or [1.0, 1.0, 1.0], dtype=torch.float32).view(3, 1, 1)
        self.register_buffer("factors", factors, persistent=False)
        if start != "zeros":
            self.settings["start"] = start
            if seed is not None:
                self.draw(seed)

    @torch.no_grad()
    def draw(self, seed: int) -> None:
        if "start" in self.settings:
            self.settings["seed"] = seed
            self.delta.copy_(self.initial())

    def initial(self) -> Tensor:
        if "seed" not in self.settings:
            return super().initial()
        generator = torch.Generator().manual_seed(self.settings["seed"])
        return torch.randn(self.delta.shape, generator=generator).to(self.delta)

    def pixels(self, delta: Tensor) -> Tensor:
        return self.masked(delta * self.factors)

    def forward(self, images: Tensor) -> Tensor:
        self.check(images)
        pixels = images + self.pixels(self.delta)
        return pixels.clamp(0, 1) if self.clip else pixels
