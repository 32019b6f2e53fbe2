"""The padding prompt: a learned frame around a small image."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor
from torch.nn import functional as F

from ..config.schema import PromptConfig
from ..images import Resize
from ..registry import UserError, check_choice, check_positive
from .base import Box
from .masked import EMPTY, MaskedPrompt

RESIZES = {"squash": ("squash", "bilinear"), "crop": ("crop", "bicubic")}  # rule and interpolation


@dataclass
class PaddingConfig(PromptConfig):
    """A learned frame around a small image.

    Args:
        image_size: Side in pixels of the image inside the canvas; half the canvas when empty.
        resize: How an image gets that size: squash (aspect not kept, bilinear) or crop (the shorter side, bicubic, then
            the centre).
        bounded: The frame is sigmoid(delta), grey at first; else delta itself, black at first.
    """

    kind: str = "padding"
    image_size: int | None = None
    resize: str = "squash"
    bounded: bool = True

    def __post_init__(self):
        super().__post_init__()
        check_positive("prompt.image_size", self.image_size)
        check_choice("prompt.resize", self.resize, RESIZES)


class PaddingPrompt(MaskedPrompt):
    """The image at the centre of the canvas, a learned frame around it.

    ``pixels = pad(x) + sigmoid(delta) * mask``; mask is 1 on the frame and 0 on the image. Left and top
    padding is ``(canvas - image + 1) // 2``, right and bottom ``(canvas - image) // 2``. Delta starts at
    0, a frame of 0.5 grey. Where ``bounded`` is false, delta takes the place of its sigmoid.

    Args:
        canvas: (H, W) in pixels.
        image_size: (h, w) in pixels, at most the canvas.
        empty: A name in ``EMPTY``: where images are empty, and mask is 1 as on the frame.
        resize: squash or crop, see ``PaddingConfig``.
        bounded: See ``PaddingConfig``.

    Raises:
        UserError: The image is larger than the canvas, or ``empty`` or ``resize`` is not a known name.

    Source: ILM-VP (arXiv 2211.11635), section 3, and its reference's expansive prompt; crop as in AttrVR (arXiv
    2501.13982); unbounded as in EVP (arXiv 2212.10556).
    """

    kind = "padding"
    added = False

    def __init__(
        self,
        canvas: Sequence[int],
        image_size: Sequence[int],
        empty: str | None = None,
        resize: str = "squash",
        bounded: bool = True,
    ):
        check_choice("prompt.resize", resize, RESIZES)
        (height, width), (h, w) = canvas, image_size
        if h > height or w > width:
            raise UserError(f"prompt.image_size: {h}x{w} is larger than the source's canvas {height}x{width}")
        if min(h, w) < 1:
            raise UserError(f"prompt.image_size: {h}x{w} is not a size; give 1 pixel or more")
        top, left = (height - h + 1) // 2, (width - w + 1) // 2
        mask = torch.ones(1, height, width, dtype=torch.float32)
        mask[:, top : top + h, left : left + w] = 0
        super().__init__(canvas, image_size, mask)
        self.settings["image_size"] = list(self.image_size)
        self._resize = RESIZES[resize]
        if resize != "squash":
            self.settings["resize"] = resize
        self.bounded = bounded
        if not bounded:
            self.settings["bounded"] = False
        self.box: Box = (top, left, top + h, left + w)
        if empty is not None:
            self.fill(empty)

    @classmethod
    def from_config(cls, config: PaddingConfig, source) -> PaddingPrompt:
        height, width = source.canvas
        size = config.image_size
        size = (size, size) if size else (height // 2, width // 2)
        return cls(source.canvas, size, resize=config.resize, bounded=config.bounded)

    def resize(self, source_resize: Resize) -> Resize:
        rule, interpolation = self._resize
        return Resize(self.image_size, rule=rule, interpolation=interpolation)

    def fill(self, empty: str) -> None:
        check_choice("empty", empty, EMPTY)
        top, left, bottom, right = self.box
        self.mask[:, top:bottom, left:right] = EMPTY[empty](bottom - top, right - left)
        self.settings["empty"] = empty

    def pixels(self, delta: Tensor) -> Tensor:
        return self.masked(torch.sigmoid(delta) if self.bounded else delta)

    def padded(self, images: Tensor) -> Tensor:
        """Return the images (B, 3, h, w) on a canvas of zeros, (B, 3, H, W)."""
        self.check(images)
        top, left, bottom, right = self.box
        return F.pad(images, (left, self.canvas[1] - right, top, self.canvas[0] - bottom))

    def forward(self, images: Tensor) -> Tensor:
        return self.padded(images) + self.pixels(self.delta)

    def surroundings(self) -> tuple[Tensor, Box] | None:
        return (
            None
            if "empty" in self.settings or not self.masks_gradient
            else (self.pixels(self.delta)[None], self.box)
        )

    def acts_on(self) -> tuple[Box, Box | None]:
        return (0, 0, *self.canvas), None if "empty" in self.settings else self.box
