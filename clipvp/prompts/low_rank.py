"""The low-rank prompt: a picture that is the product of two small matrices, added to the image."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor, nn

from ..registry import UserError, check_positive
from .additive import AdditiveConfig
from .base import Learned, VisualPrompt

_DEVIATION = 0.01  # of the right factor's start


@dataclass
class LowRankConfig(AdditiveConfig):
    """A learned picture of low rank that is added to the image.

    Args:
        rank: Rank of each channel.
        squash: Give images the canvas's size without keeping the aspect, bilinear, as the paper does, in the place of
            the model's own preprocessing.
    """

    kind: str = "low_rank"
    rank: int = 4
    squash: bool = False

    def __post_init__(self):
        super().__post_init__()
        check_positive("prompt.rank", self.rank)
        if self.start != "zeros":
            raise UserError(f"prompt.start: a low_rank prompt starts at zeros, not {self.start!r}")


class LowRankPrompt(VisualPrompt):
    """``pixels = x + scale * left @ right``, by channel, on images of the canvas's size.

    ``left`` (3, H, r) starts at 0 and ``right`` (3, r, W) at normal numbers of deviation 0.01, so that the images are
    unchanged at first.

    Args:
        canvas: (H, W) in pixels, of the images too.
        rank: r.
        scale: As for ``AdditivePrompt``.
        clip: Clamp the result to [0, 1]; the paper does not.
        seed: Draws ``right``; all 0 when None.
        squash: See ``LowRankConfig``.

    Raises:
        UserError: The rank is above what the canvas has.

    Source: LoR-VP (Jin et al. 2025, arXiv 2502.00896), equation 3. Its released code never builds the prompt.
    """

    kind = "low_rank"

    def __init__(
        self,
        canvas: Sequence[int],
        rank: int = 4,
        scale: Sequence[float] | None = None,
        clip: bool = False,
        seed: int | None = None,
        squash: bool = False,
    ):
        height, width = canvas
        if rank > min(canvas):
            raise UserError(f"prompt.rank: {rank} is above the canvas {height}x{width}")
        scale = [float(value) for value in scale] if scale is not None else None
        own = {"squash": True} if squash else {}
        super().__init__(canvas, canvas, rank=rank, scale=scale, clip=clip, **own)
        self.clip = clip
        self.left = nn.Parameter(torch.zeros(3, height, rank, dtype=torch.float32))
        self.right = nn.Parameter(torch.zeros(3, rank, width, dtype=torch.float32))
        factors = torch.tensor(scale or [1.0, 1.0, 1.0], dtype=torch.float32).view(3, 1, 1)
        self.register_buffer("factors", factors, persistent=False)
        if seed is not None:
            self.draw(seed)

    @classmethod
    def from_config(cls, config: LowRankConfig, source) -> LowRankPrompt:
        return cls(source.canvas, config.rank, squash=config.squash, **config.settings(source))

    @torch.no_grad()
    def draw(self, seed: int) -> None:
        self.settings["seed"] = seed
        numbers = torch.randn(self.right.shape, generator=torch.Generator().manual_seed(seed))
        self.right.copy_(_DEVIATION * numbers)

    def pixels(self) -> Tensor:
        """Return what is added to an image, (3, H, W)."""
        return self.factors * (self.left @ self.right)

    def forward(self, images: Tensor) -> Tensor:
        self.check(images)
        pixels = images + self.pixels()
        return pixels.clamp(0, 1) if self.clip else pixels

    @torch.no_grad()
    def learned(self) -> Learned:
        pixels = self.pixels()
        everywhere = torch.ones(self.canvas, dtype=torch.bool, device=pixels.device)
        return Learned(pixels, everywhere, torch.zeros_like(pixels), True)
