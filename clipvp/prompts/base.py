"""Visual prompts: images in [0, 1] become prompted pixels of the size of the source's canvas.

A prompt holds one trained tensor, ``delta`` (3, H, W), and a mask that says where it acts. It never
changes the images it is given, and it knows nothing of models or labels.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from ..config.schema import PromptConfig
from ..images import Resize
from ..registry import PROMPTS, UserError, check_choice

Size = tuple[int, int]

# Where the images of a task can be empty, by name: height and width to a mask (h, w), 1 where there is nothing.
EMPTY = {"lower_triangle": lambda height, width: torch.ones(height, width).tril()}


class VisualPrompt(nn.Module):
    """Base of all prompts.

    Args:
        canvas: (H, W) of the prompted pixels.
        image_size: (h, w) of the images that ``forward`` takes.
        mask: (1, H, W) or broadcastable to (3, H, W), 1 where delta acts and 0 elsewhere.
        settings: Further keyword arguments that build this prompt again.

    Attributes:
        settings: The keyword arguments that build this prompt again, ready for JSON.
    """

    kind: str

    def __init__(
        self, canvas: Sequence[int], image_size: Sequence[int], mask: Tensor, settings: dict | None = None
    ):
        super().__init__()
        self.canvas: Size = (int(canvas[0]), int(canvas[1]))
        self.image_size: Size = (int(image_size[0]), int(image_size[1]))
        self.settings = {"canvas": list(self.canvas), **(settings or {})}
        self.delta = nn.Parameter(torch.zeros(3, *self.canvas))
        self.register_buffer("mask", mask.to(torch.float32), persistent=False)

    @classmethod
    def from_config(cls, config: PromptConfig, canvas: Size, std: Sequence[float]) -> VisualPrompt:
        """Build the prompt that a config describes for a source's canvas and normalisation."""
        raise TypeError(f"{cls.__name__} does not say how it is built from a config")

    def resize(self, source_resize: Resize) -> Resize:
        """Return how raw images are brought to ``image_size``; by default the source's own way."""
        return source_resize

    def fill(self, empty: str) -> None:
        """Act where the task's images are empty, too; ``empty`` is a name in ``EMPTY``. By default nothing changes."""

    def num_trainable(self) -> int:
        """Return how many elements of delta have an effect."""
        return int(self.mask.expand_as(self.delta).sum().item())

    def surroundings(self) -> tuple[Tensor, tuple[int, int, int, int]] | None:
        """Return what is the same on every prompted image, (1, 3, H, W), and the box (top, left, bottom, right)
        in which the images themselves lie unchanged; None where a prompt acts on the images."""
        return None

    def learned(self) -> Tensor:
        """Return what the prompt adds to the canvas, (3, H, W) in pixels, without gradient."""
        raise TypeError(f"{type(self).__name__} does not say what it adds")

    def _check(self, images: Tensor) -> None:
        if images.ndim != 4 or images.shape[1] != 3 or tuple(images.shape[2:]) != self.image_size:
            raise ValueError(
                f"{self.kind} prompt takes images (B, 3, {self.image_size[0]}, {self.image_size[1]}), "
                f"got {tuple(images.shape)}"
            )

    def extra_repr(self) -> str:
        return ", ".join(f"{key}={value}" for key, value in self.settings.items())


class PaddingPrompt(VisualPrompt):
    """The image at the centre of the canvas, a learned frame around it.

    ``pixels = pad(x) + sigmoid(delta) * mask``; mask is 1 on the frame and 0 on the image. Left and top
    padding is ``(canvas - image + 1) // 2``, right and bottom ``(canvas - image) // 2``. Delta starts at
    0, a frame of 0.5 grey.

    Args:
        canvas: (H, W) in pixels.
        image_size: (h, w) in pixels, at most the canvas; images are squashed to it, aspect not kept.
        empty: A name in ``EMPTY``: where images hold nothing, and mask is 1 as on the frame.

    Raises:
        UserError: The image is larger than the canvas, or no such emptiness is known.

    Source: ILM-VP (arXiv 2211.11635), section 3, and its reference's expansive prompt.
    """

    kind = "padding"

    def __init__(self, canvas: Sequence[int], image_size: Sequence[int], empty: str | None = None):
        (height, width), (h, w) = canvas, image_size
        if h > height or w > width:
            raise UserError(f"prompt.image_size: {h}x{w} is larger than the source's canvas {height}x{width}")
        if min(h, w) < 1:
            raise UserError(f"prompt.image_size: {h}x{w} is no size; give 1 pixel or more")
        top, left = (height - h + 1) // 2, (width - w + 1) // 2
        mask = torch.ones(1, height, width)
        mask[:, top : top + h, left : left + w] = 0
        super().__init__(canvas, image_size, mask, {"image_size": [int(h), int(w)]})
        self.box = (top, left, top + h, left + w)
        if empty is not None:
            self.fill(empty)

    @classmethod
    def from_config(cls, config: PromptConfig, canvas: Size, std: Sequence[float]) -> PaddingPrompt:
        size = config.image_size
        return cls(canvas, (size, size) if size else (canvas[0] // 2, canvas[1] // 2))

    def resize(self, source_resize: Resize) -> Resize:
        return Resize(self.image_size, rule="squash", interpolation="bilinear")

    def fill(self, empty: str) -> None:
        check_choice("empty", empty, EMPTY)
        top, left, bottom, right = self.box
        self.mask[:, top:bottom, left:right] = EMPTY[empty](bottom - top, right - left)
        self.settings["empty"] = empty

    def frame(self) -> Tensor:
        """Return the frame on an otherwise black canvas, (3, H, W) in [0, 1]."""
        return torch.sigmoid(self.delta) * self.mask

    def forward(self, images: Tensor) -> Tensor:
        self._check(images)
        top, left, bottom, right = self.box
        padded = F.pad(images, (left, self.canvas[1] - right, top, self.canvas[0] - bottom))
        return padded + self.frame()

    def surroundings(self) -> tuple[Tensor, tuple[int, int, int, int]] | None:
        return None if "empty" in self.settings else (self.frame()[None], self.box)

    def learned(self) -> Tensor:
        return self.frame().detach()


class AdditivePrompt(VisualPrompt):
    """``pixels = x + delta * scale * mask`` on images of the canvas's size; delta starts at 0.

    Args:
        canvas: (H, W) in pixels, of the images too.
        mask: (1, H, W), 1 where the prompt acts.
        scale: One factor a channel. The source's std puts delta into normalised space, as the paper
            has it for CLIP; empty means pixel space.
        clip: Clamp the result to [0, 1].

    Source: ILM-VP (arXiv 2211.11635), section 5, and its reference's additive prompt.
    """

    def __init__(self, canvas, mask: Tensor, scale: Sequence[float] | None, clip: bool, **settings):
        scale = [float(value) for value in scale] if scale is not None else None
        super().__init__(canvas, canvas, mask, {**settings, "scale": scale, "clip": clip})
        self.clip = clip
        factors = torch.tensor(scale or [1.0, 1.0, 1.0]).view(3, 1, 1)
        self.register_buffer("weight", factors * self.mask, persistent=False)

    @staticmethod
    def _shared(config: PromptConfig, std: Sequence[float]) -> dict:
        return {"scale": list(std) if config.space == "normalized" else None, "clip": config.clip}

    def forward(self, images: Tensor) -> Tensor:
        self._check(images)
        pixels = images + self.delta * self.weight
        return pixels.clamp(0, 1) if self.clip else pixels

    def learned(self) -> Tensor:
        return (self.delta * self.weight).detach()


class BorderPrompt(AdditivePrompt):
    """An additive frame ``width`` pixels wide on the image: the paper's watermark for CLIP, 30 at 224."""

    kind = "border"

    def __init__(self, canvas, width: int = 30, scale: Sequence[float] | None = None, clip: bool = False):
        if not 0 <= 2 * width <= min(canvas):
            raise UserError(f"prompt.width: {width} is not 0 to half the canvas {canvas[0]}x{canvas[1]}")
        mask = torch.ones(1, *canvas)
        mask[:, width : canvas[0] - width, width : canvas[1] - width] = 0
        super().__init__(canvas, mask, scale, clip, width=width)

    @classmethod
    def from_config(cls, config: PromptConfig, canvas: Size, std: Sequence[float]) -> BorderPrompt:
        return cls(canvas, config.width, **cls._shared(config, std))


class PatchPrompt(AdditivePrompt):
    """An additive square of side ``size`` at a fixed place, ``position`` (top, left) in pixels."""

    kind = "patch"

    def __init__(self, canvas, size: int, position: Sequence[int] = (0, 0), scale=None, clip: bool = False):
        top, left = position
        if min(top, left) < 0 or size < 1 or top + size > canvas[0] or left + size > canvas[1]:
            raise UserError(
                f"prompt.patch_size: a square of {size} at {list(position)} leaves the canvas {canvas[0]}x{canvas[1]}"
            )
        mask = torch.zeros(1, *canvas)
        mask[:, top : top + size, left : left + size] = 1
        super().__init__(canvas, mask, scale, clip, size=size, position=list(position))

    @classmethod
    def from_config(cls, config: PromptConfig, canvas: Size, std: Sequence[float]) -> PatchPrompt:
        return cls(canvas, config.patch_size, config.patch_position, **cls._shared(config, std))


class FullPrompt(AdditivePrompt):
    """An additive prompt on every pixel of the canvas."""

    kind = "full"

    def __init__(self, canvas, scale: Sequence[float] | None = None, clip: bool = False):
        super().__init__(canvas, torch.ones(1, *canvas), scale, clip)

    @classmethod
    def from_config(cls, config: PromptConfig, canvas: Size, std: Sequence[float]) -> FullPrompt:
        return cls(canvas, **cls._shared(config, std))


class NoPrompt(VisualPrompt):
    """The images as they are: for baselines and for mapping without a prompt. Nothing is trained."""

    kind = "none"

    def __init__(self, canvas: Sequence[int]):
        super().__init__(canvas, canvas, torch.zeros(1, *canvas))
        self.delta.requires_grad_(False)

    @classmethod
    def from_config(cls, config: PromptConfig, canvas: Size, std: Sequence[float]) -> NoPrompt:
        return cls(canvas)

    def forward(self, images: Tensor) -> Tensor:
        self._check(images)
        return images

    def learned(self) -> Tensor:
        return self.delta.detach()


def build_prompt(
    config: PromptConfig, canvas: Size, std: Sequence[float], empty: str | None = None
) -> VisualPrompt:
    """Return the registered prompt that a config names, for a source's canvas and standard deviations.

    Args:
        config: The prompt.
        canvas: (H, W) in pixels.
        std: The source's, by channel.
        empty: Where the task's images hold nothing, see ``VisualPrompt.fill``.
    """
    prompt = PROMPTS.get(config.kind).from_config(config, canvas, std)
    if empty is not None:
        prompt.fill(empty)
    return prompt
