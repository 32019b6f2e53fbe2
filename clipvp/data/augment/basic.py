"""Augmentation of training batches, on their device: what an image becomes depends on seed, epoch and its index.

So it is the same for any number of processes and parts of a batch, and no global random state is read or moved.
Counting and evaluating see the images as they are.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
import torch
from torch import Tensor
from torch.nn import functional as F

from ...registry import AUGMENTATIONS

NUM_DRAWS = 5  # random numbers in [0, 1) that an image has in an epoch
_STREAM = 0xA06  # keeps the draws apart from other numbers of the same seed and epoch

_CROP_AREA = (0.08, 1.0)  # share of the image's area
_CROP_RATIO = (3 / 4, 4 / 3)  # width to height


class EpochAugmentation:
    """The augmentation of one epoch: a function of images and their indices (B,) among the training images.

    Args:
        change: A registered augmentation.
        draws: (N, NUM_DRAWS) random numbers in [0, 1), on the CPU.

    Attributes:
        takes_originals: Whether it is given an ``originals.OriginalBatch``; else images (B, 3, h, w) uint8.
    """

    def __init__(self, change: Callable[[Any, Tensor], Tensor], draws: Tensor):
        self.change, self.draws = change, draws
        self.takes_originals = getattr(change, "takes_originals", False)

    def __call__(self, images: Any, indices: Tensor) -> Tensor:
        return self.change(images, self.draws[indices.cpu()])


def of_originals(change: Callable[[Any, Tensor], Tensor]) -> Callable[[Any, Tensor], Tensor]:
    """Mark an augmentation as one that is given the decoded originals; a decorator."""
    change.takes_originals = True
    return change


def takes_originals(name: str) -> bool:
    """Return whether a registered augmentation is given the decoded originals."""
    return getattr(AUGMENTATIONS.get(name), "takes_originals", False)


def epoch_augmentation(name: str, count: int, seed: int, epoch: int) -> EpochAugmentation:
    """Return the augmentation of one epoch.

    Args:
        name: A registered augmentation.
        count: How many training images there are.
        seed: The run's seed.
        epoch: The epoch, from 0.

    Returns:
        A function of images (B, 3, h, w) uint8 on any device and their indices (B,) among the training images;
        it returns new images of the same kind. A registered augmentation takes the images, or an ``OriginalBatch``
        where it is marked ``of_originals``, and (B, NUM_DRAWS) random numbers in [0, 1), on the CPU, of these images in
        this epoch.
    """
    numbers = np.random.default_rng([seed % 2**64, epoch, _STREAM])
    draws = torch.from_numpy(numbers.random((count, NUM_DRAWS), dtype=np.float32))
    return EpochAugmentation(AUGMENTATIONS.get(name), draws)


def none(images: Tensor, draws: Tensor) -> Tensor:
    """Return the images as they are."""
    return images


def flip(images: Tensor, draws: Tensor) -> Tensor:
    """Mirror half of the images, by chance, left to right."""
    mirrored = (draws[:, 0] < 0.5).to(images.device)
    return torch.where(mirrored[:, None, None, None], images.flip(-1), images)


def crop_flip(images: Tensor, draws: Tensor) -> Tensor:
    """Resize a random part of each image to the whole, bilinearly, and mirror half of them.

    The part's area is uniform in 8 to 100 % of the image, the logarithm of its width to height uniform among what
    fits between 3:4 and 4:3. It is cut from the decoded image, which has the prompt's image size already;
    ``crops.random_resized_crop`` cuts it from the original.

    Source: the Inception crop (Szegedy et al., arXiv 1409.4842); defaults of torchvision's RandomResizedCrop, which
    draws again where a part does not fit.
    """
    height, width = images.shape[2:]
    top, left, h, w = crop_boxes(draws[:, 1:5], height, width).to(images.device).unbind(1)
    y = _crop_axis(top, h, height)[:, :, None].expand(-1, height, width)
    x = _crop_axis(left, w, width)[:, None, :].expand(-1, height, width)
    return flip(sample(images, x, y, "bilinear", "border"), draws)


def crop_boxes(draws: Tensor, height: Tensor | int, width: Tensor | int) -> Tensor:
    """Return top, left, h and w, (B, 4) in whole pixels, of a random part of each image, for four draws each."""
    height, width = (torch.as_tensor(side, dtype=torch.float32) for side in (height, width))
    low, high = _CROP_AREA
    share = low + (high - low) * draws[:, 0]
    # A part fits when its ratio lies between share * width / height and width / height / share.
    least = (share * width / height).clamp(min=_CROP_RATIO[0]).log()
    most = (width / height / share).clamp(max=_CROP_RATIO[1]).log()
    ratio = (least + (most - least).clamp(min=0) * draws[:, 1]).exp()
    area = share * (height * width)
    w = (area * ratio).sqrt().round().clamp(min=1).minimum(width)
    h = (area / ratio).sqrt().round().clamp(min=1).minimum(height)
    top = ((height - h + 1) * draws[:, 2]).floor().minimum(height - h)
    left = ((width - w + 1) * draws[:, 3]).floor().minimum(width - w)
    return torch.stack([top, left, h, w], 1)


def _crop_axis(start: Tensor, length: Tensor, size: int) -> Tensor:
    """Return where on one axis, in pixels (B, size), the pixels of a resized part come from."""
    start, length = start[:, None], length[:, None]
    places = torch.arange(size, device=start.device) + 0.5
    # Not beyond the middles of the outermost pixels: nothing from outside the part is mixed in.
    return start + (places * length / size).clamp(min=0.5).minimum(length - 0.5)


def sample(images: Tensor, x: Tensor, y: Tensor, mode: str, outside: str) -> Tensor:
    """Return the images at places (B, h, w) in pixels from the left and top edge, uint8."""
    height, width = images.shape[2:]
    grid = torch.stack([2 * x / width - 1, 2 * y / height - 1], -1)
    values = F.grid_sample(images.float(), grid, mode=mode, padding_mode=outside, align_corners=False)
    return values.round().to(torch.uint8)
