"""The decoded originals of training images, from which augmentation takes its crops."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import torch
from torch import Tensor

from ..images import Shrink
from ..registry import check_choice
from .augment.resample import FILTERS, resample
from .cache import unpack


class OriginalImages:
    """N images of any size, uint8, in memory or in the cache's file.

    Args:
        base: M images, each for ``cache.unpack``.
        rows: (N,) int64, the place of each image in the base.
        shrink: How they were made.
        size: (h, w) of what is cut from them, the prompt's image size.

    Raises:
        UserError: The prompt's images are resized by an interpolation that has no filter here.
    """

    def __init__(self, base: Sequence[np.ndarray], rows: np.ndarray, shrink: Shrink, size: tuple[int, int]):
        check_choice("train.augment: crops of originals resized by", shrink.interpolation, FILTERS)
        self.base, self.rows, self.shrink, self.size = base, rows, shrink, size

    def __len__(self) -> int:
        return len(self.rows)

    def image(self, index: int) -> np.ndarray:
        """Return one image, (h, w, 3) uint8."""
        return unpack(self.base[int(self.rows[index])])

    def batch(self, indices: Tensor, device: torch.device) -> OriginalBatch:
        """Return the images at ``indices`` (B,); what is made of them is on ``device``."""
        images = [self.image(index) for index in indices.tolist()]
        return OriginalBatch(images, self.size, self.shrink.interpolation, device)


class OriginalBatch:
    """What an augmentation that takes originals is given.

    Args:
        images: B images, (h, w, 3) uint8, of different sizes.
        size: (H, W) of what is made of them.
        interpolation: How they are resized.
        device: Where that is done.

    Attributes:
        sizes: int64 (B, 2), height and width of each image.
    """

    def __init__(
        self, images: list[np.ndarray], size: tuple[int, int], interpolation: str, device: torch.device
    ):
        self.images, self.size, self.interpolation, self.device = images, size, interpolation, device
        self.sizes = torch.tensor([image.shape[:2] for image in images])

    def window(self, boxes: Tensor, resized: Tensor, offsets: Tensor) -> Tensor:
        """Cut a box out of each image, resize it, and return a window of the result, (B, 3, H, W) uint8.

        Args:
            boxes: int64 (B, 4): top, left, height and width in the image.
            resized: int64 (B, 2), height and width that the box is resized to.
            offsets: int64 (B, 2), where the window begins in it.
        """
        pinned = self.device.type == "cuda"
        height, width = boxes[:, 2:].amax(0).tolist()
        parts = torch.empty(len(boxes), height, width, 3, dtype=torch.uint8, pin_memory=pinned)
        cells = parts.numpy()
        for cell, image, (top, left, h, w) in zip(cells, self.images, boxes.tolist(), strict=True):
            cell[:h, :w] = image[top : top + h, left : left + w]
        parts = parts.to(self.device, non_blocking=True)
        return resample(parts, boxes[:, 2:], resized, offsets, self.size, self.interpolation)
