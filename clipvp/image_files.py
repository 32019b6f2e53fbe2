"""Open the file of an image with Pillow, whatever other libraries and Python's warning filters have set.

Only headers are read here. A file that says it is far larger than its bytes can hold is refused before it is decoded.
"""

from __future__ import annotations

import io
import struct
import threading
from typing import BinaryIO

from PIL import Image, ImageFile

# An image of up to SMALL pixels (134 MB as RGB) is decoded whatever the size of its file; a larger one needs a byte of
# file for each PIXELS_PER_BYTE. Photographs have below 60 pixels in a byte, decompression bombs 300 and more.
SMALL = 1 << 25
PIXELS_PER_BYTE = 256
_HEIF_BRANDS = {b"heic", b"heix", b"heim", b"heis", b"hevc", b"hevx", b"mif1", b"msf1"}


def open_image(file: BinaryIO, path: str = "") -> Image.Image:
    """Return the image of a file without decoding it, as ``PIL.Image.open`` does.

    ``PIL.Image.open`` warns or raises, as Python's filters say, for images above ``PIL.Image.MAX_IMAGE_PIXELS``. Here
    one rule holds: ``check_size``.

    Raises:
        ValueError: The format is not known or not readable, or the image is too large.
    """
    prefix, reasons, tried = file.read(16), [], set()
    for load_plugins in (Image.preinit, Image.init, lambda: _register_heif(prefix)):
        load_plugins()
        for kind in [kind for kind in Image.ID if kind not in tried]:
            tried.add(kind)
            factory, accepts = Image.OPEN[kind]
            try:
                accepted = accepts is None or accepts(prefix)
                if isinstance(accepted, str):  # why the plugin cannot read what it knows
                    reasons.append(accepted)
                if not accepted or isinstance(accepted, str):
                    continue
                file.seek(0)
                image = factory(file, path)
            except (SyntaxError, IndexError, TypeError, struct.error) as error:
                if accepts is not None and prefix:
                    reasons.append(f"{kind}: {error}")
                continue
            check_size(image.size, file.seek(0, io.SEEK_END))
            _skip_size_warning(image)
            return image
    if reasons:
        raise ValueError(f"Pillow does not read this kind of file ({'; '.join(reasons)}); save it as RGB PNG")
    raise ValueError("no known image format")


def _register_heif(prefix: bytes) -> None:
    """Let Pillow read HEIC when the file is one."""
    if prefix[4:8] != b"ftyp":
        return
    if prefix[8:12] in (b"avif", b"avis") and "AVIF" not in Image.ID:
        raise ValueError("it is AVIF, which needs Pillow 11.3 or newer")
    if prefix[8:12] in _HEIF_BRANDS and "HEIF" not in Image.ID:
        try:
            from pillow_heif import register_heif_opener
        except ImportError:
            raise ValueError('it is HEIC, which needs pillow-heif: pip install "clipvp[heif]"') from None
        register_heif_opener()


def check_size(size: tuple[int, int], num_bytes: int) -> None:
    """Refuse an image of (w, h) ``size`` that is too large, or too large for a file of ``num_bytes``.

    At most ``2 * PIL.Image.MAX_IMAGE_PIXELS`` are read, 179 megapixels, as Pillow does; None there means no limit.
    """
    width, height = size
    pixels = width * height
    if Image.MAX_IMAGE_PIXELS is not None and pixels > 2 * Image.MAX_IMAGE_PIXELS:
        raise ValueError(
            f"{width} x {height} are {pixels / 1e6:.0f} million pixels; at most "
            f"{2 * Image.MAX_IMAGE_PIXELS / 1e6:.0f} million are read (2 * PIL.Image.MAX_IMAGE_PIXELS)"
        )
    if pixels > max(SMALL, PIXELS_PER_BYTE * num_bytes):
        raise ValueError(
            f"a file of {num_bytes} bytes says that it holds {width} x {height} pixels: "
            "it is damaged or a decompression bomb"
        )


def _skip_size_warning(image: Image.Image) -> None:
    """Make the memory of a large TIFF, for which Pillow would warn once more; it has passed ``check_size``."""
    limit = Image.MAX_IMAGE_PIXELS
    if image.format == "TIFF" and limit is not None and image.width * image.height > limit:
        extents = [tile[1] for tile in image.tile]
        stored = max(extent[2] for extent in extents), max(extent[3] for extent in extents)
        image.im = Image.core.new(image.mode, stored)  # turned when it is loaded


class _Strict:
    """While a thread is inside, a truncated file is an error, whatever another library told Pillow.

    The switch is Pillow's global ``LOAD_TRUNCATED_IMAGES``: it is put back when the last thread leaves.
    """

    def __init__(self) -> None:
        self._lock, self._inside, self._before = threading.Lock(), 0, False

    def __enter__(self) -> None:
        with self._lock:
            if self._inside == 0:
                self._before, ImageFile.LOAD_TRUNCATED_IMAGES = ImageFile.LOAD_TRUNCATED_IMAGES, False
            self._inside += 1

    def __exit__(self, *exception: object) -> None:
        with self._lock:
            self._inside -= 1
            if self._inside == 0:
                ImageFile.LOAD_TRUNCATED_IMAGES = self._before


strict = _Strict()
