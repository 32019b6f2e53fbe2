"""Prompts with one trained tensor and a mask that says where it acts."""

from __future__ import annotations

from abc import abstractmethod
from collections.abc import Sequence

import torch
from torch import Tensor, nn

from .base import Learned, VisualPrompt

# Where the images of a task can be empty, by name: height and width to a mask (h, w), 1 where they are empty.
EMPTY = {"lower_triangle": lambda height, width: torch.ones(height, width, dtype=torch.float32).tril()}


class MaskedPrompt(VisualPrompt):
    """Base of prompts with one trained tensor, ``delta``, and a mask.

    Args:
        canvas: (H, W) of the prompted pixels.
        image_size: (h, w) of the images that ``forward`` takes.
        mask: (1, H, W) or broadcastable to (3, H, W), 1 where delta acts and 0 elsewhere.
        settings: Further keyword arguments that build this prompt again.

    Attributes:
        delta: Parameter (3, H, W), ``initial()`` at the start.
        added: Whether the prompt is added to the image; else it takes the place of pixels.
    """

    added: bool

    def __init__(self, canvas: Sequence[int], image_size: Sequence[int], mask: Tensor, **settings):
        super().__init__(canvas, image_size, **settings)
        self.delta = nn.Parameter(torch.zeros(3, *self.canvas, dtype=torch.float32))
        self.register_buffer("mask", mask.to(torch.float32), persistent=False)

    @abstractmethod
    def pixels(self, delta: Tensor) -> Tensor:
        """Return what a prompt with this delta shows or adds, (3, H, W) in pixel values."""

    def masked(self, values: Tensor) -> Tensor:
        """Return values (3, H, W) times the mask, with their gradient times the mask if ``masks_gradient``."""
        shown = values * self.mask
        return shown if self.masks_gradient else shown + (values - values.detach()) * (1 - self.mask)

    def initial(self) -> Tensor:
        """Return delta before training."""
        return torch.zeros_like(self.delta)

    @torch.no_grad()
    def learned(self) -> Learned:
        mask = (self.mask > 0).expand_as(self.delta).any(0)
        start = self.pixels(self.initial())
        return Learned(self.pixels(self.delta), mask, start, self.added)

    def num_trainable(self) -> int:
        return int(self.mask.expand_as(self.delta).sum().item())
