"""Antialiased resizing of parts of images of any size, as torch operations on any device: Pillow's pixels.

Pixels and weights are whole numbers, as in Pillow, and each is computed exactly. So an image comes out the same to the
bit, whichever images are resized with it.
"""

from __future__ import annotations

import math

import torch
from torch import Tensor

# A weight has 22 bits behind the point, as in Pillow. It is split in two, as float32 holds whole numbers up to 2**24.
_BITS, _LOW = 22, 8
_CHUNK = 32  # images at a time: bounds the memory


def _bilinear(x: Tensor) -> Tensor:
    return (1 - x.abs()).clamp(min=0)


def _bicubic(x: Tensor) -> Tensor:
    x = x.abs()
    near, far = (1.5 * x - 2.5) * x * x + 1, ((-0.5 * x + 2.5) * x - 4) * x + 2
    return torch.where(x < 1, near, torch.where(x < 2, far, 0))


def _lanczos(x: Tensor) -> Tensor:
    return torch.where(x.abs() < 3, torch.sinc(x) * torch.sinc(x / 3), 0)


# The filters by name, and how far they reach where nothing is made smaller.
FILTERS = {"bilinear": (_bilinear, 1.0), "bicubic": (_bicubic, 2.0), "lanczos": (_lanczos, 3.0)}


def resample(
    parts: Tensor,
    lengths: Tensor,
    resized: Tensor,
    offsets: Tensor,
    size: tuple[int, int],
    interpolation: str,
) -> Tensor:
    """Resize each image as a whole, and return a window of the result.

    Args:
        parts: (B, h, w, 3) uint8; image b is the upper left part of ``parts[b]``, the rest is ignored.
        lengths: (B, 2), height and width of each image.
        resized: (B, 2), height and width that it is resized to.
        offsets: (B, 2), where the window begins in the resized image, from the top and the left.
        size: (H, W) of the window.
        interpolation: A name in ``FILTERS``.

    Returns:
        (B, 3, H, W) uint8. Width first, then height, each rounded to a byte, as Pillow does.
    """
    found = []
    for chunk, *numbers in zip(
        parts.split(_CHUNK), *(values.split(_CHUNK) for values in (lengths, resized, offsets)), strict=True
    ):
        count, height, width, _ = chunk.shape
        rows, columns = (
            _weights(
                *(values[:, axis] for values in numbers), size[axis], extent, interpolation, chunk.device
            )
            for axis, extent in enumerate((height, width))
        )
        lines = chunk.permute(0, 1, 3, 2).reshape(count, height * 3, width).float()
        lines = _rounded(*(lines @ weights.transpose(1, 2) for weights in columns)).float()
        lines = lines.reshape(count, height, 3 * size[1])
        pixels = _rounded(*(weights @ lines for weights in rows))
        found.append(pixels.view(count, size[0], 3, size[1]).permute(0, 2, 1, 3).to(torch.uint8))
    return torch.cat(found).contiguous(memory_format=torch.channels_last)


def _rounded(high: Tensor, low: Tensor) -> Tensor:
    """Return bytes, int32, of sums by the two parts of the weights."""
    sums = (high.to(torch.int32) << _LOW) + low.to(torch.int32) + (1 << (_BITS - 1))
    return (sums >> _BITS).clamp_(0, 255)


def _weights(
    length: Tensor,
    resized: Tensor,
    offset: Tensor,
    size: int,
    width: int,
    interpolation: str,
    device: torch.device,
) -> list[Tensor]:
    """Return the two parts of the weights of one axis, whole numbers, each float32 (B, size, width), on the device.

    Args:
        length: (B,), pixels of each image.
        resized: (B,), pixels that they become.
        offset: (B,), the first of those that are wanted.
        size: How many are wanted.
        width: Of the tensor that holds the images, the longest length.
    """
    form, reach = FILTERS[interpolation]
    scale = (length.double() / resized.double())[:, None]
    taps = min(width, math.ceil(2 * reach * max(1.0, float(scale.max()))) + 1)
    # Small numbers alone go to the device, so that nothing waits for it. Those of Apple have no float64.
    home = torch.device("cpu") if device.type == "mps" else device
    scale, length, offset = (values.to(home) for values in (scale, length, offset))
    stretch = scale.clamp(min=1)  # an image that becomes smaller is blurred
    centre = (torch.arange(size, device=home) + offset[:, None] + 0.5) * scale
    low = (centre - reach * stretch + 0.5).floor().clamp(min=0)
    place = low[:, :, None] + torch.arange(taps, device=home)
    weight = form((place - centre[:, :, None] + 0.5) / stretch[:, :, None])
    high = (centre + reach * stretch + 0.5).floor().minimum(length[:, None])
    weight = weight * (place < high[:, :, None])
    weight = (weight / weight.sum(2, keepdim=True) * 2**_BITS).round()
    high, parts = (weight / 2**_LOW).round(), []
    for part in (high, weight - high * 2**_LOW):
        # The last columns take weights of 0 alone.
        dense = torch.zeros(len(length), size, width + taps, dtype=torch.float32, device=home)
        parts.append(dense.scatter_(2, place.long(), part.float())[:, :, :width].to(device))
    return parts
