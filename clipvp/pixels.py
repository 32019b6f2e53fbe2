"""Samples of any depth and pixels of any mode become 8-bit RGB. ``clipvp.images.to_rgb`` states the rules."""

from __future__ import annotations

import struct
import sys
from collections.abc import Callable
from typing import Any

import numpy as np
from PIL import ExifTags, Image

_TURNS = {
    2: Image.Transpose.FLIP_LEFT_RIGHT,
    3: Image.Transpose.ROTATE_180,
    4: Image.Transpose.FLIP_TOP_BOTTOM,
    5: Image.Transpose.TRANSPOSE,
    6: Image.Transpose.ROTATE_270,
    7: Image.Transpose.TRANSVERSE,
    8: Image.Transpose.ROTATE_90,
}
_HOLD_EXIF = {
    "exif",
    "Raw profile type exif",
    "xmp",
    "XML:com.adobe.xmp",
}  # where Pillow keeps an orientation
_BITS, _PHOTOMETRIC, _PLANES, _MOST, _MOST_OF_KIND = 258, 262, 284, 281, 341  # TIFF tags
_SWAPPED = {"B": "L", "L": "B", "N": "B" if sys.byteorder == "little" else "L"}  # byte orders
_DARK = (
    "samples stored in 16 bits whose largest value fits in {fit} bits are read as 0..{white}, so the image is dark; if "
    "they have {fit} bits, set bits to {fit}, and if the image is dark in truth, set bits to {bits} (data.bits)"
)
_TRANSPARENT = (
    "transparent pixels are read without their alpha, so colours that cannot be seen count; set background "
    "(data.background) to the colour that belongs beneath them, such as white"
)
NOTICES = (
    *(_DARK.format(fit=fit, white=2**bits - 1, bits=bits) for bits in (16, 15) for fit in (8, 10, 12, 14)),
    _TRANSPARENT,
)
_Colour = tuple[int, int, int]
_WHICH_WHITE = "bits says which value is white: 8 for 255, 12 for 4095, 16 for 65535"


def image_to_rgb(
    image: Image.Image, bits: int | None, ground: _Colour | None, report: Callable[[str], None]
) -> Image.Image:
    """Return a PIL image as upright RGB; see ``to_rgb``.

    Args:
        ground: The colour beneath transparent pixels, 0..255; alpha is dropped when None.
    """
    if min(image.size) < 1:
        raise ValueError(f"it has no pixels ({image.width} x {image.height})")
    if image.mode == "RGB" and _raw_mode(image) in ("RGB", "") and "transparency" not in image.info:
        image.load()
        rgb = image  # most photographs
    else:
        rgb = _unturned_rgb(image, bits, ground, report)
    changed = getattr(image, "_exif", None) is not None  # by who opened it
    if image.format in ("PNG", "JPEG") and not changed and not image.info.keys() & _HOLD_EXIF:
        return rgb  # looking for an orientation takes a tenth of the time of a small file
    try:
        turn = _TURNS.get(image.getexif().get(ExifTags.Base.Orientation))
    except Exception:  # a damaged EXIF block leaves good pixels good
        turn = None
    return rgb.transpose(turn) if turn is not None else rgb


def _unturned_rgb(
    image: Image.Image, bits: int | None, ground: _Colour | None, report: Callable[[str], None]
) -> Image.Image:
    said = _said_white(image)
    raw = _raw_mode(image)
    values, alpha = _deep_colour(image, raw)
    image.load()
    if values is None and (image.mode in ("I", "F") or image.mode.startswith("I;16")):
        values = np.asarray(image)
    key = image.info.get("transparency")
    if values is not None and isinstance(key, (int, tuple)):  # the value of 16 bits that is transparent
        hidden = values == np.asarray(key)
        alpha = np.where(hidden.all(2) if hidden.ndim == 3 else hidden, 0, 255).astype(np.uint8)
    if values is None:
        rgb, alpha = _mode_to_rgb(image)
    else:
        said = _checked_white(said, values, image.format)
        white = _white(values, _stored_white(image), said, bits, report)
        eight = _to_8_bits(values, white)
        if _white_is_zero(image, raw):
            eight = 255 - eight
        rgb = Image.fromarray(eight).convert("RGB")
    return _on_ground(rgb, alpha, ground, report)


def array_to_rgb(
    image: Any, bits: int | None, ground: _Colour | None, report: Callable[[str], None]
) -> Image.Image:
    """Return an array or a tensor as RGB; see ``to_rgb``."""
    if hasattr(image, "detach"):  # a torch tensor: perhaps on a GPU, with a gradient, or bfloat16
        image = image.detach().cpu()
        if image.is_floating_point() and image.dtype.itemsize < 4:
            image = image.float()
    values = np.asarray(image)
    if values.ndim == 3 and values.shape[0] in (1, 3, 4) and values.shape[2] not in (1, 2, 3, 4):
        values = values.transpose(1, 2, 0)
    if values.ndim not in (2, 3) or (values.ndim == 3 and values.shape[2] > 4) or not values.size:
        raise ValueError(
            f"an array of shape {values.shape} is not an image; give (h, w), (h, w, c) or (c, h, w)"
        )
    if values.dtype.name.startswith(("bfloat", "float8", "float16")):
        values = values.astype(np.float32)
    values = values.astype(values.dtype.newbyteorder("="), copy=False)
    alpha = None
    if values.ndim == 3:
        if values.shape[2] in (2, 4):
            most = {"b": 1, "f": 1}.get(values.dtype.kind, 65535 if values.dtype == np.uint16 else 255)
            alpha = np.rint(values[:, :, -1].astype(np.float64).clip(0, most) * 255 / most).astype(np.uint8)
        values = values[:, :, :3] if values.shape[2] > 2 else values[:, :, 0]
    if values.dtype == bool:
        values = values * np.uint8(255)
    elif values.dtype == np.uint16:
        values = _to_8_bits(values, _white(values, 65535, None, bits, report))
    elif values.dtype.kind in "iuf":
        if values.dtype != np.uint8:
            usual = 1 if values.dtype.kind == "f" else 255
            values = _to_8_bits(values, _white(values, usual, None, bits, report))
    else:
        raise ValueError(f"an array of {values.dtype} is not an image")
    rgb = Image.fromarray(np.ascontiguousarray(values)).convert("RGB")
    return _on_ground(rgb, alpha, ground, report)


def _on_ground(
    rgb: Image.Image, alpha: Any, ground: _Colour | None, report: Callable[[str], None]
) -> Image.Image:
    """Return RGB pixels over a ground, as their alpha says: an 8-bit image or array (h, w), None for opaque ones."""
    if alpha is None:
        return rgb
    alpha = Image.fromarray(alpha) if isinstance(alpha, np.ndarray) else alpha
    if alpha.getextrema()[0] == 255:
        return rgb
    if ground is None:
        report(_TRANSPARENT)
        return rgb
    return Image.composite(rgb, Image.new("RGB", rgb.size, ground), alpha)


def _white(
    values: np.ndarray, usual: int | None, said: int | None, bits: int | None, report: Callable[[str], None]
) -> int:
    """Return which value is white, and check that all values are between black, 0, and it.

    Args:
        usual: White where neither the file nor ``bits`` says otherwise; None when it is not known.
        said: White by what the file says; it comes before ``bits``.
    """
    low, high = values.min(), values.max()
    kind = "float" if values.dtype.kind == "f" else "integer"
    white = said or (2**bits - 1 if bits else usual)
    if white is None:
        raise ValueError(f"32-bit integers {low}..{high} do not say which value is white; {_WHICH_WHITE}")
    slack = white / 1000 if kind == "float" else 0
    if not -slack <= low <= high <= white + slack:  # not-a-number fails too
        hint = f"; {_WHICH_WHITE}" if 0 <= low <= high < np.inf and not said else ""
        raise ValueError(f"{kind} values {low:g}..{high:g} are not within 0..{white}{hint}")
    if white > 255 and not said and not bits and 0 < high <= white / 4:
        fit = next(fit for fit in (8, 10, 12, 14) if high < 2**fit)
        report(_DARK.format(fit=fit, white=white, bits=white.bit_length()))
    return white


def _to_8_bits(values: np.ndarray, white: int) -> np.ndarray:
    """Return values 0..white as uint8 0..255, rounded; a block of rows at a time, which bounds the memory."""
    result = np.empty(values.shape, np.uint8)
    rows = max(1, (1 << 20) * len(values) // values.size)
    for start in range(0, len(values), rows):
        block = values[start : start + rows]
        if values.dtype.kind == "f":
            result[start : start + rows] = np.rint(block.clip(0, white) * 255 / white)
        else:
            wide = block.astype(np.uint32 if white < 1 << 24 else np.uint64)
            result[start : start + rows] = (wide * 255 + white // 2) // white
    return result


def _said_white(image: Image.Image) -> int | None:
    """Return which value is white by what the file of a deep image says; None when it says nothing."""
    file = getattr(image, "fp", None)
    if image.format == "PPM" and image.mode == "I" and image.tile:
        decoder, args = image.tile[0][0], image.tile[0][3]
        return 65535 if decoder.startswith("ppm") and args[-1] != 65535 else None  # Pillow has scaled it
    if image.format == "PNG" and file is not None and ";16" in _raw_mode(image):
        return _significant_white(file)
    if image.format == "TIFF" and max(image.tag_v2.get(_BITS, (1,))) > 8:
        stored = min(image.tag_v2[_BITS])
        if stored < 16:
            return 2**stored - 1
        for tag in (
            _MOST_OF_KIND,
            _MOST,
        ):  # often the largest value of this image: 2**n - 1 alone says the depth
            most = image.tag_v2.get(tag)
            most = max(most) if isinstance(most, tuple) else most
            if most in [2**bits - 1 for bits in range(8, 17)]:
                return int(most)
    return None


def _significant_white(file: Any) -> int | None:
    """Return white by a PNG's sBIT chunk, the significant bits before the samples were scaled to 16 bits."""
    place, white = file.tell(), None
    file.seek(8)
    while len(header := file.read(8)) == 8:
        length, kind = struct.unpack(">I4s", header)
        if kind == b"sBIT":
            counts = file.read(length)
            white = 2 ** max(counts[: 3 if length > 2 else 1], default=16) - 1
        if kind in (b"sBIT", b"PLTE", b"IDAT"):
            break
        file.seek(length + 4, 1)
    file.seek(place)
    return white


def _checked_white(said: int | None, values: np.ndarray, kind: str | None) -> int | None:
    """Return ``said`` if the values agree with it.

    PNG demands that samples of n significant bits are scaled to 16; a writer that forgot it is known by values that
    fit in n bits and whose low bits are not those of a scaled value.
    """
    if said is None or values.max() > said:
        return 65535 if said and kind == "PNG" else None
    if kind == "PNG" and said < 65535 and not (values & (65535 // (said + 1)) > 1).any():
        return 65535
    return said


def _stored_white(image: Image.Image) -> int | None:
    """Return the largest value that the samples of a deep grey image can hold; 1 for floats; None for 32-bit files."""
    if image.mode == "F":
        return 1
    if image.format == "TIFF" and image.mode == "I":
        return 32767 if image.tag_v2[_BITS][0] == 16 else None  # Pillow reads signed 16-bit samples so
    return 65535  # "I" too: older Pillows open 16-bit files so


def _white_is_zero(image: Image.Image, raw: str) -> bool:
    """Return whether a deep grey image is stored as a negative that Pillow leaves so, as it does above 8 bits."""
    left = image.format == "TIFF" and raw in ("I;16", "I;16N", "F;32F", "F;32BF")
    return left and image.tag_v2.get(_PHOTOMETRIC) == 0


def _raw_mode(image: Image.Image) -> str:
    """Return how an image that is not loaded is stored, in Pillow's words ("RGB;16B"); empty when not known."""
    tiles = getattr(image, "tile", None)
    args = tiles[0][3] if tiles else ""
    if isinstance(args, tuple):
        args = args[0] if args else ""
    return args if isinstance(args, str) else ""


def _deep_colour(image: Image.Image, raw: str) -> tuple[np.ndarray | None, np.ndarray | None]:
    """Return the samples of 16-bit colour, (h, w, 3) or (h, w) uint16, and alpha, (h, w) uint8; None for other images.

    Pillow keeps the high byte only. The same file, read in the other byte order, gives the low one.
    """
    planes = (
        image.format == "TIFF" and image.mode in ("RGB", "RGBA", "CMYK") and image.tag_v2.get(_PLANES) == 2
    )
    if planes and max(image.tag_v2[_BITS]) > 8:  # Pillow reads wrong samples
        raise ValueError("it has 16-bit colour in separate planes; save the TIFF with interleaved channels")
    colour, _, order = raw.partition(";16")
    if image.format not in ("PNG", "TIFF") or colour not in ("RGB", "RGBX", "RGBA", "LA") or not order:
        return None, None
    image.fp.seek(0)
    other = type(image)(image.fp)
    swapped = (
        f"{colour};16{_SWAPPED[order]}" if colour != "LA" else "RGBA"
    )  # all four bytes of grey and alpha
    other.tile = [_with_raw_mode(tile, swapped) for tile in other.tile]
    low = np.asarray(other)
    if colour == "LA":
        return low[:, :, 0] * np.uint16(256) + low[:, :, 1], np.ascontiguousarray(low[:, :, 2])
    high = np.asarray(image)
    alpha = np.ascontiguousarray(high[:, :, 3]) if colour == "RGBA" else None
    return high[:, :, :3] * np.uint16(256) + low[:, :, :3], alpha


def _with_raw_mode(tile: Any, raw: str) -> Any:
    args = (raw, *tile[3][1:]) if isinstance(tile[3], tuple) else raw
    return (
        tile._replace(args=args) if hasattr(tile, "_replace") else (*tile[:3], args)
    )  # named since Pillow 11


def _mode_to_rgb(image: Image.Image) -> tuple[Image.Image, Image.Image | None]:
    """Return an image of 8 bits or less as RGB, with the colours that ``convert("RGB")`` gives where it is defined,
    and its alpha, None where it has none.
    """
    if image.mode == "LAB":
        return _lab_to_rgb(image), None
    if image.mode in ("La", "RGBa"):  # colours that are multiplied by alpha
        image = image.convert(f"{image.mode[:-1]}A")
    elif image.mode == "PA" or (image.mode in ("P", "1", "L", "RGB") and "transparency" in image.info):
        image = image.convert("RGBA")
    alpha = image.getchannel("A") if image.mode in ("LA", "RGBA") else None
    return image if image.mode == "RGB" else image.convert("RGB"), alpha


def _lab_to_rgb(image: Image.Image) -> Image.Image:
    from PIL import ImageCms

    lab, srgb = ImageCms.createProfile("LAB"), ImageCms.createProfile("sRGB")
    return ImageCms.profileToProfile(image, lab, srgb, outputMode="RGB")
