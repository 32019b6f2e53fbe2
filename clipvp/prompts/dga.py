"""DGA's prompts: one for each level of a class tree, one that these share, and one for each of a ladder of crops."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor, nn

from ..images import Resize
from ..registry import UserError, check_positive
from .base import Box, Learned, VisualPrompt
from .padding import PaddingConfig, PaddingPrompt


@dataclass
class DgaConfig(PaddingConfig):
    """Padding prompts for a mapping of kind dga, whose ``levels`` and ``crops`` are the same numbers.

    Args:
        levels: Levels of the class tree above the classes; each has a prompt, and so have the classes.
        crops: Crops of the image, each with a prompt.
        crop_step: Pixels by which each crop is smaller than the one before it, the first than the image; a twelfth of
            the image when empty, 16 of 192.
    """

    kind: str = "dga"
    levels: int = 2
    crops: int = 2
    crop_step: int | None = None

    def __post_init__(self):
        super().__post_init__()
        check_positive("prompt.levels", self.levels)
        check_positive("prompt.crops", self.crops, zero=True)
        check_positive("prompt.crop_step", self.crop_step)
        if not self.bounded:
            raise UserError("prompt.bounded: false does not go with kind dga")
        if self.views > 1:
            raise UserError(
                f"prompt.views: {self.views} does not go with kind dga, whose views are levels and crops"
            )


class DgaPrompt(VisualPrompt):
    """Views of an image: under the prompt of each level 0..L, under their mean, and of each crop.

    Level 0 are the classes. Crop e is the centre of the image, e times ``crop_step`` pixels smaller on both sides, at
    the middle of the canvas; its frame is so much wider. The paper's crops are at random places; here the places differ
    in training where ``train.augment`` crops, and an image is scored in one way.

    Args:
        canvas: (H, W) in pixels.
        image_size: (h, w) in pixels.
        levels: L.
        crops: E.
        crop_step: In pixels.
        resize: See ``PaddingConfig``.
        empty: As for ``PaddingPrompt``.

    Source: DGA (Wu et al., CVPR 2026), its prompts.
    """

    kind = "dga"

    def __init__(
        self,
        canvas: Sequence[int],
        image_size: Sequence[int],
        levels: int = 2,
        crops: int = 2,
        crop_step: int = 16,
        resize: str = "squash",
        empty: str | None = None,
    ):
        counts = {"levels": levels, "crops": crops, "crop_step": crop_step}
        super().__init__(canvas, image_size, **counts, resize=resize)
        self.settings["image_size"] = list(self.image_size)
        least = min(self.image_size) - crops * crop_step
        if least < 1:
            raise UserError(
                f"prompt.crops: {crops} crops, each {crop_step} pixels smaller, leave {least} of "
                f"{min(self.image_size)} pixels; give fewer, or a smaller prompt.crop_step"
            )
        self.levels = nn.ModuleList(
            PaddingPrompt(canvas, self.image_size, resize=resize) for _ in range(levels + 1)
        )
        self.crops = nn.ModuleList(_Crop(canvas, self.image_size, e * crop_step) for e in range(1, crops + 1))
        self.views = self.kept_views = levels + 2 + crops
        if empty is not None:
            self.fill(empty)

    @classmethod
    def from_config(cls, config: DgaConfig, source) -> DgaPrompt:
        height, width = source.canvas
        size = (config.image_size,) * 2 if config.image_size else (height // 2, width // 2)
        step = config.crop_step or max(1, min(size) // 12)
        return cls(source.canvas, size, config.levels, config.crops, step, config.resize)

    def parts(self) -> list[VisualPrompt]:
        return [*self.levels, _Mean(self.levels), *self.crops]

    def forward(self, images: Tensor) -> Tensor:
        return torch.cat([part(images) for part in self.parts()])

    def merge(self, outputs: Tensor) -> Tensor:
        return outputs.view(self.views, -1, outputs.shape[1]).transpose(0, 1)

    def resize(self, source_resize: Resize) -> Resize:
        return self.levels[0].resize(source_resize)

    def fill(self, empty: str) -> None:
        for part in (*self.levels, *self.crops):
            part.fill(empty)
        self.settings["empty"] = empty

    def learned(self) -> Learned:
        return _Mean(self.levels).learned()

    def num_trainable(self) -> int:
        return sum(part.num_trainable() for part in (*self.levels, *self.crops))


class _Mean(VisualPrompt):
    """The padding prompt whose delta is the mean of those of others; it has no parameters of its own."""

    kind = "dga"

    def __init__(self, levels: nn.ModuleList):
        super().__init__(levels[0].canvas, levels[0].image_size)
        self.levels = levels

    def _pixels(self) -> Tensor:
        return self.levels[0].pixels(torch.stack([level.delta for level in self.levels]).mean(0))

    def forward(self, images: Tensor) -> Tensor:
        return self.levels[0].padded(images) + self._pixels()

    def surroundings(self) -> tuple[Tensor, Box] | None:
        alone = self.levels[0].surroundings()
        return None if alone is None else (self._pixels()[None], alone[1])

    @torch.no_grad()
    def learned(self) -> Learned:
        return self.levels[0].learned()._replace(pixels=self._pixels())


class _Crop(VisualPrompt):
    """The padding prompt on the centre of an image, ``less`` pixels smaller on both sides."""

    kind = "dga"

    def __init__(self, canvas: Sequence[int], image_size: Sequence[int], less: int):
        super().__init__(canvas, image_size)
        height, width = image_size
        self.prompt = PaddingPrompt(canvas, (height - less, width - less))
        self.top = self.left = less // 2

    def inside(self, images: Tensor) -> Tensor:
        height, width = self.prompt.image_size
        return images[:, :, self.top : self.top + height, self.left : self.left + width]

    def forward(self, images: Tensor) -> Tensor:
        self.check(images)
        return self.prompt(self.inside(images))

    def fill(self, empty: str) -> None:
        self.prompt.fill(empty)

    def surroundings(self) -> tuple[Tensor, Box] | None:
        return self.prompt.surroundings()

    def learned(self) -> Learned:
        return self.prompt.learned()

    def num_trainable(self) -> int:
        return self.prompt.num_trainable()
