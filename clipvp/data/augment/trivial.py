"""TrivialAugment for a batch: one operation an image, of one of 31 strengths, all on the images' device.

The choice of operations stays on the CPU, so that a GPU is never waited for.
"""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor
from torchvision.transforms.v2 import functional

from .basic import sample

_STRENGTHS = 31


def trivial(images: Tensor, draws: Tensor) -> Tensor:
    """Change each image by one operation of one strength, all equally likely.

    Args:
        images: (B, 3, h, w) uint8.
        draws: (B, 3 or more) in [0, 1), on the CPU: they choose the operation, its strength and its sign.

    Source: TrivialAugment (Müller and Hutter, ICCV 2021, arXiv 2103.10158), the wide space; operations and rounding
    as torchvision's TrivialAugmentWide, what moves in from outside is black.
    """
    operation = (draws[:, 0] * len(OPERATIONS)).long()
    strength = (draws[:, 1] * _STRENGTHS).floor() / (_STRENGTHS - 1)
    sign = torch.where(draws[:, 2] < 0.5, -1.0, 1.0)
    changed = images.clone()
    for index, change in enumerate(OPERATIONS.values()):
        rows = (operation == index).nonzero()[:, 0]
        if len(rows):
            where = rows.to(images.device)
            changed[where] = change(images[where], strength[rows], sign[rows])
    return changed


def _warp(matrix: Callable[[Tensor, float, float], tuple]) -> Callable[[Tensor, Tensor, Tensor], Tensor]:
    """Return an operation that takes every pixel from an affine place.

    Args:
        matrix: Signed strengths (n,) and the image's height and width to a, b, c, d, e, f: the pixel at (x, y) from
            the image's middle comes from (a x + b y + c, d x + e y + f).
    """

    def change(images: Tensor, strength: Tensor, sign: Tensor) -> Tensor:
        height, width = images.shape[2:]
        rows = [torch.as_tensor(entry).expand(len(sign)) for entry in matrix(strength * sign, height, width)]
        a, b, c, d, e, f = torch.stack(rows).to(images.device)[:, :, None, None]
        y = (torch.arange(height, device=images.device) + 0.5 - height / 2)[None, :, None]
        x = (torch.arange(width, device=images.device) + 0.5 - width / 2)[None, None, :]
        return sample(
            images, a * x + b * y + c + width / 2, d * x + e * y + f + height / 2, "nearest", "zeros"
        )

    return change


def _blend(other: Callable[[Tensor], Tensor]) -> Callable[[Tensor, Tensor, Tensor], Tensor]:
    """Return an operation that moves images towards, or away from, a duller version of themselves."""

    def change(images: Tensor, strength: Tensor, sign: Tensor) -> Tensor:
        factor = (1 + 0.99 * strength * sign).to(images.device)[:, None, None, None]
        return (images * factor + other(images) * (1 - factor)).clamp(0, 255).to(torch.uint8)

    return change


def _rotation(strength: Tensor, height: float, width: float) -> tuple:
    angle = torch.deg2rad(135 * strength)
    return angle.cos(), -angle.sin(), 0.0, angle.sin(), angle.cos(), 0.0


def _posterize(images: Tensor, strength: Tensor, sign: Tensor) -> Tensor:
    dropped = (6 * strength).round().to(torch.uint8).to(images.device)[:, None, None, None]
    return images >> dropped << dropped


def _solarize(images: Tensor, strength: Tensor, sign: Tensor) -> Tensor:
    threshold = (255 * (1 - strength)).to(images.device)[:, None, None, None]
    return torch.where(images >= threshold, 255 - images, images)


# Shears keep the top left corner, as the paper's code does.
OPERATIONS: dict[str, Callable[[Tensor, Tensor, Tensor], Tensor]] = {
    "identity": lambda images, strength, sign: images,
    "shear x": _warp(lambda s, height, width: (1.0, 0.99 * s, 0.99 * s * height / 2, 0.0, 1.0, 0.0)),
    "shear y": _warp(lambda s, height, width: (1.0, 0.0, 0.0, 0.99 * s, 1.0, 0.99 * s * width / 2)),
    "translate x": _warp(lambda s, height, width: (1.0, 0.0, -(32 * s).trunc(), 0.0, 1.0, 0.0)),
    "translate y": _warp(lambda s, height, width: (1.0, 0.0, 0.0, 0.0, 1.0, -(32 * s).trunc())),
    "rotate": _warp(_rotation),
    "brightness": _blend(torch.zeros_like),
    "colour": _blend(lambda images: functional.adjust_saturation(images, 0.0)),
    "contrast": _blend(lambda images: functional.adjust_contrast(images, 0.0)),
    "sharpness": _blend(lambda images: functional.adjust_sharpness(images, 0.0)),
    "posterize": _posterize,
    "solarize": _solarize,
    "auto contrast": lambda images, strength, sign: functional.autocontrast(images),
    "equalize": lambda images, strength, sign: functional.equalize(images),
}
