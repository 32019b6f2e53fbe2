"""Images of any kind to PIL RGB images, and these to uint8 pixels of one size.

An unreadable image is always an ``ImageError``. Labels, tensors and the disk cache are handled elsewhere.
"""

from __future__ import annotations

import io
import math
import os
from contextlib import suppress
from dataclasses import asdict, dataclass
from typing import Any

import numpy as np
from PIL import ExifTags, Image, ImageOps

from .registry import UserError, check_choice

with suppress(ImportError):  # the extra heif: then HEIC files open like any other
    from pillow_heif import register_heif_opener

    register_heif_opener()

INTERPOLATIONS = ("bilinear", "bicubic", "nearest", "lanczos")


class ImageError(UserError):
    """An image cannot be read; the message names it."""


def to_rgb(image: Any, name: str | None = None) -> Image.Image:
    """Return ``image`` as an upright PIL RGB image, the first frame of an animated file.

    Alpha is dropped, as ``convert("RGB")`` does: torchvision, timm and transformers see the same colours.
    The EXIF orientation is applied, as transformers and datasets do. 16-bit grey is scaled to 8 bits.

    Args:
        image: A path, the bytes of a file, a PIL image (returned itself when nothing is to be done), or an
            array of shape (h, w), (h, w, c) or (c, h, w) with c of 1, 3 or 4 (also 2 when last): uint8 or
            another integer type with values 0..255, uint16 with 0..65535, bool, or float with 0..1.
        name: What to call the image in an error; the path when empty.

    Raises:
        ImageError: The image is damaged, empty, of an unknown format, or its values are out of range.
    """
    try:
        if isinstance(image, (str, os.PathLike)):
            with Image.open(image) as opened:
                return _pil_to_rgb(opened)
        if isinstance(image, (bytes, bytearray, memoryview)):
            with Image.open(io.BytesIO(image)) as opened:
                return _pil_to_rgb(opened)
        if isinstance(image, Image.Image):
            return _pil_to_rgb(image)
        if hasattr(image, "__array__"):
            return _pil_to_rgb(_array_to_pil(np.asarray(image)))
        raise TypeError(
            f"{type(image).__name__} is not an image; give a path, bytes, a PIL image or an array"
        )
    except Exception as error:  # PIL raises a dozen unrelated types on damaged files
        what = name or (os.fspath(image) if isinstance(image, (str, os.PathLike)) else type(image).__name__)
        if isinstance(error, Image.UnidentifiedImageError):
            reason = "no known image format"
        else:
            reason = getattr(error, "strerror", None) or str(error)
        raise ImageError(f"{what}: cannot be read as an image: {reason or type(error).__name__}") from error


def _pil_to_rgb(image: Image.Image) -> Image.Image:
    image.load()
    with suppress(Exception):  # a damaged EXIF block leaves good pixels good
        if image.getexif().get(ExifTags.Base.Orientation, 1) != 1:
            image = ImageOps.exif_transpose(image)
    if image.mode == "RGB":
        return image
    if image.mode == "F" or image.mode == "I" or image.mode.startswith("I;16"):
        values = np.asarray(image)
        if image.mode == "I":  # 32-bit storage: older Pillows open 16-bit files so
            if values.size and not 0 <= values.min() <= values.max() <= 65535:
                raise ValueError(f"values {values.min()}..{values.max()} do not fit in 16 bits")
            values = values.astype(np.uint16)
        image = _array_to_pil(values)
    if image.mode in ("P", "PA") and (image.mode == "PA" or "transparency" in image.info):
        image = image.convert("RGBA")  # the same colours, but Pillow does not warn
    return image.convert("RGB")


def _array_to_pil(values: np.ndarray) -> Image.Image:
    if values.ndim == 3 and values.shape[0] in (1, 3, 4) and values.shape[2] not in (1, 2, 3, 4):
        values = values.transpose(1, 2, 0)
    if values.ndim == 3 and values.shape[2] == 1:
        values = values[:, :, 0]
    if (
        values.ndim not in (2, 3)
        or (values.ndim == 3 and values.shape[2] not in (2, 3, 4))
        or not values.size
    ):
        raise ValueError(
            f"an array of shape {values.shape} is not an image; give (h, w), (h, w, c) or (c, h, w)"
        )
    if values.dtype == bool:
        values = values * np.uint8(255)
    elif values.dtype == np.uint16:
        values = (values.astype(np.uint32) + 128) // 257  # rounded; 65535 is 255 * 257
    elif np.issubdtype(values.dtype, np.floating):
        if not -1e-3 <= values.min() <= values.max() <= 1 + 1e-3:  # not-a-number fails too
            raise ValueError(f"float values {values.min():g}..{values.max():g} are not within 0..1")
        values = np.rint(values.clip(0, 1) * 255)
    elif not np.issubdtype(values.dtype, np.integer):
        raise ValueError(f"an array of {values.dtype} is no image")
    elif values.dtype != np.uint8 and not 0 <= values.min() <= values.max() <= 255:
        raise ValueError(f"{values.dtype} values {values.min()}..{values.max()} are not within 0..255")
    return Image.fromarray(np.ascontiguousarray(values, dtype=np.uint8))


@dataclass(frozen=True)
class Resize:
    """How an image of any size becomes pixels of one size.

    Args:
        size: (h, w) of the result.
        rule: squash (aspect not kept, the paper's) or crop (the shorter side to size / crop_pct, rounded
            down, then the centre: the evaluation transform of timm, torchvision and CLIP).
        crop_pct: Share of the resized image's side that the centre crop keeps.
        interpolation: bilinear, bicubic, nearest or lanczos; antialiased, as Pillow does.
        half: Where a crop begins when its middle falls between two pixels: even (rounded half to even:
            torchvision, timm, open_clip) or down (transformers).
    """

    size: tuple[int, int]
    rule: str = "squash"
    crop_pct: float = 1.0
    interpolation: str = "bilinear"
    half: str = "even"

    def __post_init__(self):
        object.__setattr__(self, "size", tuple(int(side) for side in self.size))
        if len(self.size) != 2 or min(self.size) < 1:
            raise UserError(f"size: {self.size} is not (height, width) in pixels")
        check_choice("rule", self.rule, ["squash", "crop"])
        check_choice("interpolation", self.interpolation, INTERPOLATIONS)
        check_choice("half", self.half, ["even", "down"])
        if not 0 < self.crop_pct <= 1:
            raise UserError(f"crop_pct: {self.crop_pct} is not a share; give a number above 0, up to 1")

    def __call__(self, image: Image.Image) -> np.ndarray:
        """Return the pixels of a PIL RGB image: uint8, shape (h, w, 3)."""
        h, w = self._resized(image.height, image.width)
        resample = Image.Resampling[self.interpolation.upper()]
        image = image.resize((w, h), resample)
        whole = (
            round if self.half == "even" else math.floor
        )  # Python rounds half to even, as torchvision does
        top, left = whole((h - self.size[0]) / 2), whole((w - self.size[1]) / 2)
        return np.array(image.crop((left, top, left + self.size[1], top + self.size[0])))

    def _resized(self, height: int, width: int) -> tuple[int, int]:
        # timm rounds down; the small term mends quotients such as 224 / (224 / 354) = 353.99999999999994.
        h, w = (math.floor(side / self.crop_pct + 1e-6) for side in self.size)
        if self.rule == "squash":
            return h, w
        if h == w:
            short, long = min(height, width), max(height, width)
            return (h, int(h * long / short)) if height == short else (int(h * long / short), h)
        ratio = min(height / h, width / w)
        return round(height / ratio), round(width / ratio)

    def to_dict(self) -> dict[str, Any]:
        """Return plain values, ready for JSON."""
        return {**asdict(self), "size": list(self.size)}

    @classmethod
    def from_dict(cls, values: dict[str, Any]) -> Resize:
        return cls(**values)
