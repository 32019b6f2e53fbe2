"""The scaled prompt: a frame around a small image whose size is trained too."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from ..config.schema import PromptConfig
from ..images import Resize
from ..registry import UserError, check_positive
from .base import Learned, VisualPrompt

SMALLEST = 0.1  # of the scale
LARGEST = 5.0


@dataclass
class ScaledConfig(PromptConfig):
    """A learned frame around a small image whose size is trained too.

    Args:
        image_size: Side in pixels of the image at a scale of 1; half the canvas when empty.
        image_scale: The scale at the start, 0.1 to 5.
    """

    kind: str = "scaled"
    image_size: int | None = None
    image_scale: float = 1.0

    def __post_init__(self):
        super().__post_init__()
        check_positive("prompt.image_size", self.image_size)
        if not SMALLEST <= self.image_scale <= LARGEST:
            raise UserError(f"prompt.image_scale: {self.image_scale} is not {SMALLEST} to {LARGEST:g}")


class ScaledPrompt(VisualPrompt):
    """``pixels = where(inside, x at the scale s, sigmoid(delta))``; s and delta train.

    The image is put into the canvas where ``PaddingPrompt`` puts it, h * s by w * s pixels large around the same
    centre, by bilinear interpolation, through which s gets its gradient; what is larger than the canvas is cut off. A
    pixel is inside where its centre is within the scaled image, so the frame follows the scale. At s = 1 the pixels are
    those of the padding prompt. After each step s is brought back to 0.1 to 5. Delta has a gradient where the frame is,
    for each optimiser (``masks_gradient`` changes nothing): what is hidden now may be seen when the frame grows.

    The paper's code clips the gradients of s after the loss was scaled for half precision, which nearly always clips;
    here they are not clipped. For CLIP it adds delta, unbounded, to normalised pixels; here the frame is sigmoid(delta)
    for every source.

    Args:
        canvas: (H, W) in pixels.
        image_size: (h, w) in pixels, at a scale of 1.
        image_scale: s at the start.

    Source: AutoVP (Tsao et al. 2024, arXiv 2310.08381), section 3.1.
    """

    kind = "scaled"

    def __init__(self, canvas: Sequence[int], image_size: Sequence[int], image_scale: float = 1.0):
        super().__init__(canvas, image_size, image_scale=image_scale)
        self.settings["image_size"] = list(self.image_size)
        if min(self.image_size) < 1 or any(
            own > most for own, most in zip(self.image_size, self.canvas, strict=True)
        ):
            raise UserError(
                f"prompt.image_size: {image_size[0]}x{image_size[1]} is not 1 pixel up to the source's canvas "
                f"{canvas[0]}x{canvas[1]}"
            )
        self.delta = nn.Parameter(torch.zeros(3, *self.canvas, dtype=torch.float32))
        self.scale = nn.Parameter(torch.tensor(float(image_scale), dtype=torch.float32))
        for name, side, own in zip(("y", "x"), self.canvas, self.image_size, strict=True):
            centre = (side - own + 1) // 2 + own / 2
            places = torch.arange(side, dtype=torch.float32) + 0.5 - centre
            self.register_buffer(name, places / (own / 2), persistent=False)  # -1..1 in the image

    @classmethod
    def from_config(cls, config: ScaledConfig, source) -> ScaledPrompt:
        height, width = source.canvas
        size = (config.image_size,) * 2 if config.image_size else (height // 2, width // 2)
        return cls(source.canvas, size, config.image_scale)

    def resize(self, source_resize: Resize) -> Resize:
        return Resize(self.image_size)

    @torch.no_grad()
    def constrain(self) -> None:
        self.scale.clamp_(SMALLEST, LARGEST)

    def frame(self) -> Tensor:
        """Return where the prompt acts, (H, W) bool."""
        y, x = (places.abs() >= self.scale.detach() for places in (self.y, self.x))
        return y[:, None] | x[None, :]

    def forward(self, images: Tensor) -> Tensor:
        self.check(images)
        y, x = (places / self.scale for places in (self.y, self.x))
        grid = torch.stack([x[None, :].expand(self.canvas), y[:, None].expand(self.canvas)], -1)
        grid = grid.expand(images.shape[0], -1, -1, -1)
        inside = F.grid_sample(images, grid, "bilinear", "border", align_corners=False)
        return torch.where(self.frame(), torch.sigmoid(self.delta), inside)

    @torch.no_grad()
    def learned(self) -> Learned:
        frame = self.frame()
        return Learned(
            torch.sigmoid(self.delta) * frame, frame, torch.full_like(self.delta, 0.5) * frame, False
        )

    def parameter_groups(self) -> dict[str, list[nn.Parameter]]:
        return {"prompt": [self.delta], "prompt.scale": [self.scale]}

    def num_trainable(self) -> int:
        return 3 * int(self.frame().sum()) + 1
