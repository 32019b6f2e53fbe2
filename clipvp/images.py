"""Images of any kind to PIL RGB images, and these to uint8 pixels of one size.

An unreadable image is always an ``ImageError``. Labels, tensors and the disk cache are handled elsewhere.
"""

from __future__ import annotations

import io
import math
import os
import warnings
from abc import ABC, abstractmethod
from collections.abc import Callable
from dataclasses import asdict, dataclass, replace
from typing import Any

import numpy as np
from PIL import Image, ImageColor

from .image_files import check_size, open_image, strict
from .pixels import array_to_rgb, image_to_rgb
from .registry import UserError, check_choice

INTERPOLATIONS = ("bilinear", "bicubic", "nearest", "lanczos")


class ImageError(UserError):
    """An image cannot be read; the message names it."""


class ImageWarning(UserWarning):
    """Images may be read otherwise than they are meant; the message names the option that decides."""


@dataclass(frozen=True)
class Reading:
    """What an image's file does not say, and a person knows.

    Args:
        bits: White is ``2**bits - 1`` where samples have more than 8 bits, or are floats, and the file does not say it.
            From 1 to 32.
        background: The colour beneath transparent pixels, a name ("white") or "#rrggbb"; alpha is dropped when None.
    """

    bits: int | None = None
    background: str | None = None

    def __post_init__(self):
        if self.bits is not None and not (type(self.bits) is int and 1 <= self.bits <= 32):
            raise UserError(f"data.bits: {self.bits!r} is not allowed; give a whole number from 1 to 32")
        self.colour  # noqa: B018, it raises

    def updated(self, other: Reading) -> Reading:
        """Return this with what ``other`` says."""
        return replace(self, **{key: value for key, value in asdict(other).items() if value is not None})

    @property
    def colour(self) -> tuple[int, int, int] | None:
        """The background as red, green and blue, 0..255."""
        if self.background is None:
            return None
        try:
            return ImageColor.getrgb(self.background)[:3]
        except (ValueError, TypeError, AttributeError):
            raise UserError(
                f"data.background: {self.background!r} is no colour; give a name such as white, or #rrggbb"
            ) from None


def to_rgb(
    image: Any,
    name: str | None = None,
    *,
    bits: int | None = None,
    background: str | None = None,
    report: Callable[[str], None] | None = None,
) -> Image.Image:
    """Return ``image`` as an upright PIL RGB image, the first frame of an animated file.

    As in torchvision, timm and transformers (``convert("RGB")``), alpha is dropped without ``background``: the colours
    beneath transparent pixels show, and an image that has such pixels is reported. ICC profiles and gamma are ignored.
    CIELAB becomes sRGB. The EXIF orientation is applied, as transformers and datasets do.

    Samples of more than 8 bits are scaled by the value that is white, and rounded. In order: what the file says (a
    PGM's or PPM's maxval, a TIFF's BitsPerSample below 16, a TIFF's MaxSampleValue of 2**n - 1, a PNG's sBIT when the
    samples were not scaled), ``bits``, then 65535 for 16 bits, 32767 for 16 bits with a sign, 1 for floats. A 32-bit
    integer TIFF that says nothing is refused without ``bits``. A 16-bit image whose values stay below a quarter of
    white is read as it is, and reported: it is dark, or has 8 to 14 bits.

    Files of more than 179 million pixels (``2 * PIL.Image.MAX_IMAGE_PIXELS``), and files above 33 million pixels with
    more than 256 pixels in a byte, are refused before they are decoded. Truncated files are refused.

    Args:
        image: A path, the bytes of a file, a file open to read bytes, a PIL image (returned itself when nothing is to
            be done), or an array of shape (h, w), (h, w, c) or (c, h, w) with c of 1, 3 or 4 (also 2 when last): uint8
            or another integer type with values 0..255, uint16 with 0..65535, bool, or float with 0..1. Also a torch
            tensor on any device.
        name: What to call the image in an error; the path when empty.
        bits: See ``Reading``.
        background: See ``Reading``.
        report: Called with one line about an image that may be meant otherwise, one of ``NOTICES``; an
            ``ImageWarning`` when None.

    Raises:
        ImageError: The image is damaged, truncated, empty, too large or of an unknown format, or its values are out of
            range.
    """
    ground = None if bits is background is None else Reading(bits, background).colour
    notes: list[str] = []
    try:
        rgb = _read(image, bits, ground, notes.append)
    except Exception as error:  # PIL raises a dozen unrelated types on damaged files
        what = name or (os.fspath(image) if isinstance(image, (str, os.PathLike)) else type(image).__name__)
        raise ImageError(_unreadable(what, error)) from error
    for note in notes:
        if report is not None:
            report(note)
        else:
            warnings.warn(note, ImageWarning, stacklevel=2)
    return rgb


def check_image(path: str | os.PathLike) -> None:
    """Raise ``ImageError`` if a file is not an image; its headers alone are read."""
    try:
        with open(os.path.expanduser(path), "rb") as file:
            open_image(file, os.fspath(path))
    except Exception as error:
        raise ImageError(_unreadable(os.fspath(path), error)) from error


def _unreadable(what: str, error: Exception) -> str:
    reason = getattr(error, "strerror", None) or str(error) or type(error).__name__
    return f"{what}: cannot be read as an image: {reason}"


def _read(image: Any, *how: Any) -> Image.Image:
    if isinstance(image, Image.Image):
        with strict:
            return image_to_rgb(image, *how)
    if isinstance(image, (str, os.PathLike)):
        path = os.path.expanduser(image)
        with open(path, "rb") as file:
            return _read_file(file, path, *how)
    if isinstance(image, (bytes, bytearray, memoryview)):
        return _read_file(io.BytesIO(image), "", *how)
    if hasattr(image, "__array__"):
        return array_to_rgb(image, *how)
    if hasattr(image, "read"):  # an open file
        return _read_file(io.BytesIO(image.read()), str(getattr(image, "name", "")), *how)
    raise TypeError(
        f"{type(image).__name__} is not an image; give a path, bytes, an open file, a PIL image or an array"
    )


def _read_file(file: Any, path: str, *how: Any) -> Image.Image:
    with strict:
        image = open_image(file, path)
        if image.format in ("ICO", "ICNS"):  # only now the size of the PNG inside is known
            image.load()
            check_size(image.size, file.seek(0, io.SEEK_END))
        return image_to_rgb(image, *how)


class _Reads(ABC):
    """Base of what makes pixels of an image as ``reading`` says."""

    reading: Reading

    def read(
        self, image: Any, name: str | None = None, report: Callable[[str], None] | None = None
    ) -> np.ndarray:
        """Return the pixels, uint8 (h, w, 3), of anything that ``to_rgb`` takes."""
        bits, background = self.reading.bits, self.reading.background
        return self(to_rgb(image, name, bits=bits, background=background, report=report))

    @abstractmethod
    def __call__(self, image: Image.Image) -> np.ndarray:
        """Return the pixels of a PIL RGB image: uint8, shape (h, w, 3)."""

    def _to_dict(self) -> dict[str, Any]:
        values = asdict(self)
        if self.reading == Reading():
            del values["reading"]
        return values


@dataclass(frozen=True)
class Resize(_Reads):
    """How an image of any size becomes pixels of one size.

    Args:
        size: (h, w) of the result.
        rule: squash (aspect not kept, the paper's) or crop (the shorter side to size / crop_pct, rounded
            down, then the centre: the evaluation transform of timm, torchvision and CLIP).
        crop_pct: Share of the resized image's side that the centre crop keeps.
        interpolation: bilinear, bicubic, nearest or lanczos; antialiased, as Pillow does.
        half: Where a crop begins when its middle falls between two pixels: even (rounded half to even:
            torchvision, timm, open_clip) or down (transformers).
        reading: What the images' files do not say.
    """

    size: tuple[int, int]
    rule: str = "squash"
    crop_pct: float = 1.0
    interpolation: str = "bilinear"
    half: str = "even"
    reading: Reading = Reading()

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
        if (w, h) != image.size:
            image = image.resize((w, h), Image.Resampling[self.interpolation.upper()])
        if (h, w) == self.size:
            return np.array(image)
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
            return with_short_side(height, width, h)
        ratio = min(height / h, width / w)
        return round(height / ratio), round(width / ratio)

    def to_dict(self) -> dict[str, Any]:
        """Return plain values, ready for JSON; ``reading`` where it says something."""
        return {**self._to_dict(), "size": list(self.size)}

    @classmethod
    def from_dict(cls, values: dict[str, Any]) -> Resize:
        return cls(**{**values, "reading": Reading(**values.get("reading", {}))})


def with_short_side(height: int, width: int, side: int) -> tuple[int, int]:
    """Return height and width where the shorter side becomes ``side``; the longer one is rounded down."""
    long = int(side * max(height, width) / min(height, width))
    return (side, long) if height <= width else (long, side)


@dataclass(frozen=True)
class Shrink(_Reads):
    """How an image is kept at its own size, or at a smaller one of about the same shape.

    Args:
        side: Most pixels of the shorter side; a longer one is reduced to it, a shorter one stays. Where the image would
            then have more than ``2 * side**2`` pixels, both sides are reduced further.
        interpolation: As for ``Resize``.
        reading: What the images' files do not say.
    """

    side: int
    interpolation: str = "bicubic"
    reading: Reading = Reading()

    @property
    def most_pixels(self) -> int:
        return 2 * self.side**2

    def __call__(self, image: Image.Image) -> np.ndarray:
        """Return the pixels of a PIL RGB image: uint8, shape (h, w, 3)."""
        h, w = image.height, image.width
        if min(h, w) > self.side:
            h, w = with_short_side(h, w, self.side)
        if h * w > self.most_pixels:
            share = math.sqrt(self.most_pixels / (h * w))
            h, w = max(1, int(h * share)), max(1, int(w * share))
            h, w = min(h, self.most_pixels), min(w, self.most_pixels // h)
        if (w, h) != image.size:
            image = image.resize((w, h), Image.Resampling[self.interpolation.upper()])
        return np.array(image)

    def to_dict(self) -> dict[str, Any]:
        """Return plain values, ready for JSON; ``reading`` where it says something."""
        return {**self._to_dict(), "rule": "at most"}
