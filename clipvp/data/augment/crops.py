"""Augmentation by crops of the decoded originals: each takes a random part, resizes it, and mirrors half of them.

Sizes and places are whole pixels, drawn on the CPU; cutting is done there too, and all else on the device.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

import torch
from torch import Tensor

from .basic import crop_boxes, flip, of_originals

if TYPE_CHECKING:
    from ..originals import OriginalBatch

MARGIN = 32  # pixels that an image is larger than its crop


@of_originals
def random_resized_crop(originals: OriginalBatch, draws: Tensor) -> Tensor:
    """Resize a random part of each original to the prompt's image size.

    Areas and shapes are those of ``crop_flip``.

    Source: the Inception crop (Szegedy et al., arXiv 1409.4842); AttrVR (arXiv 2501.13982) and DVP train with it.
    """
    height, width = originals.sizes.float().unbind(1)
    boxes = crop_boxes(draws[:, 1:5], height, width).long()
    whole = torch.tensor([originals.size]).expand(len(boxes), 2)
    return flip(originals.window(boxes, whole, torch.zeros_like(whole)), draws)


@of_originals
def squash_crop(originals: OriginalBatch, draws: Tensor) -> Tensor:
    """Resize each original to 32 pixels more on both sides, aspect not kept, and take a random part.

    Source: SMM (arXiv 2406.03150), in training.
    """
    larger = torch.tensor([originals.size]).expand(len(draws), 2) + MARGIN
    return _window(originals, larger, draws)


@of_originals
def short_side_crop(originals: OriginalBatch, draws: Tensor) -> Tensor:
    """Resize the shorter side of each original to the prompt's image size, and take a random part.

    Source: EVP (arXiv 2212.10556), in training.
    """
    size, lengths = torch.tensor([originals.size]), originals.sizes
    # The side that needs the larger factor gets its size, the other is rounded down, but never below its own size.
    factor = (size.double() / lengths).amax(1, keepdim=True)
    return _window(originals, (lengths * factor + 1e-6).floor().long().maximum(size), draws)


def _window(originals: OriginalBatch, resized: Tensor, draws: Tensor) -> Tensor:
    """Return random windows of the originals resized to (B, 2)."""
    size = torch.tensor([originals.size])
    offsets = ((resized - size + 1) * draws[:, 1:3]).floor().long().minimum(resized - size)
    whole = torch.cat([torch.zeros_like(originals.sizes), originals.sizes], 1)
    return flip(originals.window(whole, resized, offsets), draws)
