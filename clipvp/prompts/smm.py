"""SMM: an added picture times a mask that a small network makes of each image."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor, nn

from ..config.schema import PromptConfig
from ..registry import UserError, check_positive
from .base import Learned, VisualPrompt
from .part_norm import PartNorm

_CHANNELS, _LARGE_CHANNELS = (8, 16, 32, 64), (8, 16, 32, 64, 128)
_LARGE = 384  # pixels, the canvas from which the larger network is the default


@dataclass
class SMMConfig(PromptConfig):
    """A learned picture that is added to the image, times a mask made of the image.

    Args:
        patch_size: Side in pixels of the squares on which the mask has one value; a power of two.
        channels: Widths of the mask network's hidden layers; when empty the paper's, [8, 16, 32, 64], and from a canvas
            of 384 on also 128.
        squash: Give images the canvas's size without keeping the aspect, bilinear, as the paper does, in the place of
            the model's own preprocessing.
    """

    kind: str = "smm"
    patch_size: int = 8
    channels: list[int] | None = None
    squash: bool = False

    def __post_init__(self):
        super().__post_init__()
        check_positive("prompt.patch_size", self.patch_size)
        if self.patch_size & (self.patch_size - 1):
            raise UserError(
                f"prompt.patch_size: {self.patch_size} is not a power of two; give 1, 2, 4, 8, ..."
            )
        for width in self.channels or []:
            check_positive("prompt.channels", width)


class MaskNetwork(nn.Sequential):
    """Normalised images (B, 3, H, W) to one value a channel and patch, (B, 3, H / patch, W / patch), rounded up.

    3 x 3 convolutions, batch norm and ReLU after each but the last; 2 x 2 max pools after the first log2(patch size).
    """

    def __init__(self, patch_size: int, channels: Sequence[int]):
        pools = patch_size.bit_length() - 1
        layers: list[nn.Module] = []
        for place, (before, width) in enumerate(zip((3, *channels[:-1]), channels, strict=True)):
            layers += [_convolution(before, width), PartNorm(width), nn.ReLU()]
            if place < pools:
                layers.append(nn.MaxPool2d(2, ceil_mode=True))
        super().__init__(*layers, _convolution(channels[-1], 3))

    @torch.no_grad()
    def draw(self, generator: torch.Generator) -> None:
        """Draw the convolutions as torch does by default: uniform within 1 / sqrt(fan-in)."""
        for layer in self:
            if isinstance(layer, nn.Conv2d):
                bound = 1 / math.sqrt(layer.weight[0].numel())
                for values in (layer.weight, layer.bias):
                    values.copy_((2 * torch.rand(values.shape, generator=generator) - 1) * bound)


def _convolution(before: int, width: int) -> nn.Conv2d:
    layer = nn.utils.skip_init(nn.Conv2d, before, width, 3, padding=1, dtype=torch.float32)
    nn.init.zeros_(layer.weight)
    nn.init.zeros_(layer.bias)
    return layer


class SMMPrompt(VisualPrompt):
    """``pixels = x + std * delta * mask(n)`` with n = (x - mean) / std, the image as the source normalises it.

    The mask has one value for each channel and patch, unbounded. Delta starts at 0, so that the images are unchanged at
    first. Images and canvas have the same size.

    The paper's code counts labels on augmented images, in its first epoch with the batch norms in training mode. Here
    these are in training mode in steps alone, and counts and scores use the running statistics and the images as they
    are. A batch norm sees one part of a step, so that a run with another number of parts (processes times
    ``train.gradient_accumulation_steps``) is another run; with equal numbers of parts the bits are equal.

    Args:
        canvas: (H, W) in pixels.
        mean: The source's, one a channel.
        std: The source's.
        patch_size: See ``SMMConfig``.
        channels: Widths of the hidden layers; by the canvas when None.
        seed: Draws the mask network's start; all 0 when None.
        squash: See ``SMMConfig``.

    Raises:
        UserError: The mask network needs a larger canvas or more layers.

    Source: SMM (Cai et al. 2024, arXiv 2406.03150), equations 4 and 5 and its code.
    """

    kind = "smm"

    def __init__(
        self,
        canvas: Sequence[int],
        mean: Sequence[float],
        std: Sequence[float],
        patch_size: int = 8,
        channels: Sequence[int] | None = None,
        seed: int | None = None,
        squash: bool = False,
    ):
        channels = list(channels or (_LARGE_CHANNELS if min(canvas) >= _LARGE else _CHANNELS))
        if patch_size > min(canvas):
            raise UserError(
                f"prompt.patch_size: {patch_size} is larger than the source's canvas {canvas[0]}x{canvas[1]}"
            )
        if patch_size > 2 ** len(channels):
            raise UserError(
                f"prompt.patch_size: {patch_size} needs {patch_size.bit_length() - 1} hidden layers, and "
                f"prompt.channels has {len(channels)}: at most {2 ** len(channels)}"
            )
        normalisation = {"mean": [float(value) for value in mean], "std": [float(value) for value in std]}
        own = {"patch_size": patch_size, "channels": channels, **({"squash": True} if squash else {})}
        super().__init__(canvas, canvas, **normalisation, **own)
        self.patch_size = patch_size
        self.delta = nn.Parameter(torch.zeros(3, *self.canvas, dtype=torch.float32))
        self.network = MaskNetwork(patch_size, channels)
        for name, values in normalisation.items():
            column = torch.tensor(values, dtype=torch.float32).view(3, 1, 1)
            self.register_buffer(name, column, persistent=False)
        if seed is not None:
            self.draw(seed)

    @classmethod
    def from_config(cls, config: SMMConfig, source) -> SMMPrompt:
        known = source.preprocessing
        own = {"patch_size": config.patch_size, "channels": config.channels, "squash": config.squash}
        return cls(source.canvas, known.mean, known.std, **own)

    def draw(self, seed: int) -> None:
        self.settings["seed"] = seed
        self.network.draw(torch.Generator().manual_seed(seed))

    def masks(self, images: Tensor) -> Tensor:
        values = self.network((images - self.mean) / self.std)
        (height, width), side = self.canvas, self.patch_size
        return values.repeat_interleave(side, 2).repeat_interleave(side, 3)[:, :, :height, :width]

    def forward(self, images: Tensor) -> Tensor:
        self.check(images)
        return images + self.std * self.delta * self.masks(images)

    @torch.no_grad()
    def learned(self) -> Learned:
        """Return delta in pixel values, as it is where the mask is 1."""
        everywhere = torch.ones(self.canvas, dtype=torch.bool, device=self.delta.device)
        return Learned(self.std * self.delta, everywhere, torch.zeros_like(self.delta), True)

    def parameter_groups(self) -> dict[str, list[nn.Parameter]]:
        return {"prompt": [self.delta], "prompt.mask": list(self.network.parameters())}
