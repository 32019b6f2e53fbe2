"""Visual prompts: images in [0, 1] become prompted pixels of the size of the source's canvas.

A prompt never changes the images that it is given, and it does not know models or labels.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Sequence
from typing import TYPE_CHECKING, NamedTuple

from torch import Tensor, nn

from ..config.schema import PromptConfig
from ..images import Resize

if TYPE_CHECKING:
    from ..sources.base import Source

Size = tuple[int, int]
Box = tuple[int, int, int, int]


class Learned(NamedTuple):
    """What a prompt has learned, as a picture.

    Args:
        pixels: (3, H, W) in pixel values: what the prompt shows, or what it adds to an image.
        mask: (H, W) bool, where the prompt acts.
        start: (3, H, W), ``pixels`` before training.
        added: Whether ``pixels`` are added to the image; else they take its place.
    """

    pixels: Tensor
    mask: Tensor
    start: Tensor
    added: bool


class VisualPrompt(nn.Module, ABC):
    """Base of all prompts.

    Args:
        canvas: (H, W) of the prompted pixels.
        image_size: (h, w) of the images that ``forward`` takes.
        settings: Further keyword arguments that build this prompt again.

    Attributes:
        kind: The registered name.
        views: V, how many prompted versions of an image ``forward`` gives.
        kept_views: How many of them ``merge`` keeps apart, for a mapping that takes so many.
        settings: The keyword arguments that build this prompt again, ready for JSON.
        masks_gradient: Whether the gradient of what trains is 0 where a mask is 0. Optimisers that look at the whole
            canvas set it to False; the prompted pixels are the same. Only prompts with a fixed mask heed it.
    """

    kind: str
    views = 1
    kept_views = 1
    masks_gradient = True

    def __init__(self, canvas: Sequence[int], image_size: Sequence[int], **settings):
        super().__init__()
        self.canvas: Size = (int(canvas[0]), int(canvas[1]))
        self.image_size: Size = (int(image_size[0]), int(image_size[1]))
        self.settings = {"canvas": list(self.canvas), **settings}

    def __init_subclass__(cls, **options):
        super().__init_subclass__(**options)
        makes_pixels = {"__init__", "fill", "forward", "inside", "masked", "padded", "pixels"}
        says = next(base for base in cls.__mro__ if "acts_on" in vars(base))
        makers = {base for base in cls.__mro__ if makes_pixels & vars(base).keys()}
        # A class knows what it inherits from. What makes other pixels, as a mixin, must say itself where it acts.
        if not makers <= set(says.__mro__):
            cls.acts_on = VisualPrompt.acts_on

    @classmethod
    def from_config(cls, config: PromptConfig, source: Source) -> VisualPrompt:
        """Build the prompt that a config describes for a source."""
        raise TypeError(f"{cls.__name__} does not say how it is built from a config")

    @abstractmethod
    def forward(self, images: Tensor) -> Tensor:
        """Return prompted pixels (V*B, 3, H, W), view by view, of images (B, 3, h, w) in [0, 1]."""

    def parts(self) -> list[VisualPrompt]:
        """Return prompts whose prompted pixels, one after the other, are those of ``forward``; itself by default."""
        return [self]

    def take_over(self, other: VisualPrompt, source: Source, own_source: Source) -> None:
        """Take over what another prompt of this kind has learned, for another label space.

        Args:
            other: Trained.
            source: The source of ``other``.
            own_source: The source of this prompt, the same model with other labels.
        """
        self.load_state_dict(other.state_dict())

    def merge(self, outputs: Tensor) -> Tensor:
        """Return one row for each image of what the source gives for the views (V*B, ...): (B, ...), or
        (B, kept_views, ...) where it keeps several apart."""
        if self.views != 1:
            raise TypeError(
                f"{type(self).__name__} has {self.views} views and does not say how to merge them"
            )
        return outputs

    def resize(self, source_resize: Resize) -> Resize:
        """Return how raw images are brought to ``image_size``; by default the source's own way, or squashed to the
        canvas where ``settings`` have ``squash``."""
        return Resize(self.canvas) if self.settings.get("squash") else source_resize

    def draw(self, seed: int) -> None:
        """Draw the random numbers that the prompt starts with and note the seed in ``settings``; by default none."""

    def constrain(self) -> None:
        """Bring what trains back into its range, after each step; by default there is none."""

    def masks(self, images: Tensor) -> Tensor | None:
        """Return what the prompt makes of each image, (B, 3, H, W): its factors, or the pixel values that it adds; None
        where they do not depend on images."""
        return None

    def fill(self, empty: str) -> None:
        """Act where the task's images are empty, too; ``empty`` is a name in ``masked.EMPTY``. Ignored by default."""

    def surroundings(self) -> tuple[Tensor, Box] | None:
        """Return the pixels that all prompted images have in common, (1, 3, H, W), and the box (top, left, bottom,
        right) that holds the images themselves, unchanged; None where a prompt changes the images or has several
        views. Values inside the box are ignored but must be finite."""
        return None

    def inside(self, images: Tensor) -> Tensor:
        """Return what lies in the box of ``surroundings``, (B, 3, height, width of the box); by default the images."""
        return images

    def acts_on(self) -> tuple[Box, Box | None] | None:
        """Return a box outside of which no prompted pixel depends on what trains, and a box inside it where none does
        either, each (top, left, bottom, right); the second may be None, for no such box. None where a prompt does not
        say; then every pixel gets a gradient."""
        return None

    def learned(self) -> Learned | None:
        """Return what the prompt has learned as a picture, without gradient; None where no picture shows it."""
        return None

    def parameter_groups(self) -> dict[str, list[nn.Parameter]]:
        """Return the parameters that train by group, for ``optim.groups``; each in one group."""
        return {"prompt": [parameter for parameter in self.parameters() if parameter.requires_grad]}

    def num_trainable(self) -> int:
        """Return the number of effective trainable parameters."""
        return sum(parameter.numel() for parameter in self.parameters() if parameter.requires_grad)

    def check(self, images: Tensor) -> None:
        """Raise ``ValueError`` where images are not (B, 3, h, w) of ``image_size``."""
        if images.ndim != 4 or images.shape[1] != 3 or tuple(images.shape[2:]) != self.image_size:
            raise ValueError(
                f"{self.kind} prompt takes images (B, 3, {self.image_size[0]}, {self.image_size[1]}), "
                f"got {tuple(images.shape)}"
            )

    def extra_repr(self) -> str:
        return ", ".join(f"{key}={value}" for key, value in self.settings.items())
