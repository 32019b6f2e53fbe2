"""Files that are truncated, too large, empty or need more than Pillow: one line, whatever the process has set."""

import io
import struct
import subprocess
import sys
import threading
import warnings
import zlib

import numpy as np
import pytest
from image_bytes import png, tiff
from PIL import Image, ImageFile

from clipvp.image_files import PIXELS_PER_BYTE, SMALL, check_size
from clipvp.images import ImageError, to_rgb

PHOTO = Image.fromarray(np.random.default_rng(0).integers(0, 256, (60, 70, 3), np.uint8))


def encoded(image: Image.Image, kind: str, **options) -> bytes:
    buffer = io.BytesIO()
    image.save(buffer, kind, **options)
    return buffer.getvalue()


def png_chunk(kind: bytes, data: bytes) -> bytes:
    return struct.pack(">I", len(data)) + kind + data + struct.pack(">I", zlib.crc32(kind + data))


def png_of_size(width: int, height: int, bits: int = 8, colour: int = 2) -> bytes:
    header = struct.pack(">IIBBBBB", width, height, bits, colour, 0, 0, 0)
    data = (
        png_chunk(b"IHDR", header) + png_chunk(b"IDAT", zlib.compress(bytes(300))) + png_chunk(b"IEND", b"")
    )
    return b"\x89PNG\r\n\x1a\n" + data


def patched(data: bytes, place: int, form: str, *values: int) -> bytes:
    packed = struct.pack(form, *values)
    return data[:place] + packed + data[place + len(packed) :]


SMALL_FILES = {
    kind: encoded(PHOTO.resize((4, 4)), kind)
    for kind in ("BMP", "GIF", "JPEG", "TGA", "PCX", "JPEG2000", "PPM")
}
JPEG_SIZE = SMALL_FILES["JPEG"].index(b"\xff\xc0") + 5
JPEG2000_SIZE = SMALL_FILES["JPEG2000"].index(b"ihdr") + 4
CODESTREAM = SMALL_FILES["JPEG2000"].index(b"\xff\x51") + 6
SIDE = 12000  # 144 million pixels: Pillow warns only
BOMBS = {
    "png": png_of_size(SIDE, SIDE),
    "png of 1 bit": png_of_size(SIDE, SIDE, 1, 0),
    "png of 16 bits": png_of_size(SIDE, SIDE, 16, 2),
    "png, too much for Pillow": png_of_size(100_000, 100_000),
    "bmp": patched(SMALL_FILES["BMP"], 18, "<ii", SIDE, SIDE),
    "bmp, lowest row last": patched(SMALL_FILES["BMP"], 18, "<ii", SIDE, -SIDE),
    "gif": patched(SMALL_FILES["GIF"], 6, "<HH", SIDE, SIDE),
    "jpeg": patched(SMALL_FILES["JPEG"], JPEG_SIZE, ">HH", SIDE, SIDE),
    "jpeg 2000": patched(
        patched(SMALL_FILES["JPEG2000"], JPEG2000_SIZE, ">II", SIDE, SIDE), CODESTREAM, ">II", SIDE, SIDE
    ),
    "tga": patched(SMALL_FILES["TGA"], 12, "<HH", SIDE, SIDE),
    "pcx": patched(SMALL_FILES["PCX"], 8, "<HH", SIDE - 1, SIDE - 1),
    "ppm": b"P6 12000 12000 255\n" + bytes(100),
    "pgm": b"P5 12000 12000 4095\n" + bytes(100),
    "pbm": b"P4 12000 12000\n" + bytes(100),
    **{
        f"tiff {bits}{order}": tiff(np.zeros((2, 3), kind), order=order)
        .replace(struct.pack(f"{order}HHII", 256, 4, 1, 3), struct.pack(f"{order}HHII", 256, 4, 1, SIDE))
        .replace(struct.pack(f"{order}HHII", 257, 4, 1, 2), struct.pack(f"{order}HHII", 257, 4, 1, SIDE))
        for order in "<>"
        for bits, kind in ((8, "u1"), (16, "u2"))
    },
}


@pytest.mark.parametrize("action", ["error", "ignore"])
@pytest.mark.parametrize("bomb", BOMBS)
def test_bombs_are_refused_before_they_are_decoded(bomb, action, monkeypatch):
    monkeypatch.setattr(ImageFile.ImageFile, "load", lambda self: pytest.fail("it was decoded"))
    with warnings.catch_warnings():
        warnings.simplefilter(action)
        with pytest.raises(ImageError, match=r"^photo: cannot be read as an image: .*pixels"):
            to_rgb(BOMBS[bomb], "photo")


def test_the_picture_inside_an_icon_is_no_bomb():
    inside = png_of_size(6000, 6000)
    icon = struct.pack("<HHHBBBBHHII", 0, 1, 1, 16, 16, 0, 0, 1, 32, len(inside), 22) + inside
    with pytest.raises(ImageError):
        to_rgb(icon)


def test_a_bomb_takes_no_memory():
    code = """if True:
        import resource, sys
        from clipvp.images import ImageError, to_rgb
        sys.path.insert(0, "tests")
        before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
        try:
            to_rgb(open(sys.argv[1], "rb").read())
        except ImageError:
            print(resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before)
    """
    pytest.importorskip("resource")
    for size in ((SIDE, SIDE), (5790, 5790)):  # refused; the largest that is decoded from so few bytes
        out = subprocess.run(
            [sys.executable, "-c", code, "/dev/stdin"], input=png_of_size(*size), capture_output=True
        )
        assert int(out.stdout) < 200 * 1024  # KiB


def test_large_photographs_are_read_and_bombs_are_not():
    check_size((15000, 10000), 5_000_000)  # 150 megapixels of strong compression
    check_size((5000, 5000), 100)  # small enough whatever the file holds
    with pytest.raises(ValueError, match="bomb"):
        check_size((15000, 10000), 15000 * 10000 // PIXELS_PER_BYTE - 1)
    with pytest.raises(ValueError, match="at most 179 million"):
        check_size((20000, 10000), 10**9)
    assert SMALL * 4 < 1 << 28  # bytes of an RGB image


@pytest.mark.parametrize("action", ["error", "always"])
@pytest.mark.parametrize("kind", ["PNG", "JPEG", "GIF", "TIFF", "BMP", "PPM"])
def test_one_limit_whatever_the_filters_of_warnings_say(kind, action, monkeypatch):
    pixels = PHOTO.width * PHOTO.height
    data = encoded(PHOTO, kind)
    expected = np.asarray(to_rgb(data))
    with warnings.catch_warnings(record=True) as told:
        warnings.simplefilter(action)
        monkeypatch.setattr(Image, "MAX_IMAGE_PIXELS", pixels - 1)  # Pillow warns
        np.testing.assert_array_equal(np.asarray(to_rgb(data)), expected)
        monkeypatch.setattr(Image, "MAX_IMAGE_PIXELS", pixels // 2 - 1)  # Pillow raises
        with pytest.raises(ImageError, match="million are read"):
            to_rgb(data)
        monkeypatch.setattr(Image, "MAX_IMAGE_PIXELS", None)
        np.testing.assert_array_equal(np.asarray(to_rgb(data)), expected)
    assert not told


@pytest.mark.parametrize("orientation", [1, 6])
@pytest.mark.parametrize("compression", [None, "tiff_lzw"])
def test_a_large_tiff_is_read_as_a_small_one(compression, orientation, monkeypatch):
    data = encoded(PHOTO, "TIFF", compression=compression, tiffinfo={274: orientation})
    expected = np.asarray(to_rgb(data))
    monkeypatch.setattr(Image, "MAX_IMAGE_PIXELS", PHOTO.width * PHOTO.height - 1)
    np.testing.assert_array_equal(np.asarray(to_rgb(data)), expected)


@pytest.mark.parametrize("kind", ["PNG", "JPEG", "GIF", "TIFF", "BMP", "PPM", "WEBP", "TGA"])
@pytest.mark.parametrize("kept", [0.3, 0.6, 0.9])
def test_truncated_files_are_errors_whatever_other_libraries_set(kind, kept, monkeypatch, tmp_path):
    monkeypatch.setattr(ImageFile, "LOAD_TRUNCATED_IMAGES", True)
    data = encoded(PHOTO, kind)
    to_rgb(data)
    (tmp_path / "photo").write_bytes(data[: int(kept * len(data))])
    for way in (data[: int(kept * len(data))], tmp_path / "photo"):
        with pytest.raises(ImageError):
            to_rgb(way)
    assert ImageFile.LOAD_TRUNCATED_IMAGES is True  # it is theirs


def test_truncated_files_are_errors_in_threads(monkeypatch):
    monkeypatch.setattr(ImageFile, "LOAD_TRUNCATED_IMAGES", True)
    data, wrong = encoded(PHOTO, "JPEG"), []

    def read(row: int) -> None:
        for turn in range(40):
            half = (row + turn) % 2
            try:
                to_rgb(data[: len(data) // 2] if half else data)
                wrong.append(half)
            except ImageError:
                wrong.append(not half)

    threads = [threading.Thread(target=read, args=(row,)) for row in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert len(wrong) == 160 and not any(wrong)
    assert ImageFile.LOAD_TRUNCATED_IMAGES is True


@pytest.mark.parametrize("size", [(0, 5), (5, 0), (0, 0)])
def test_images_without_pixels_are_refused(size):
    for empty in (png_of_size(*size), Image.new("RGB", size)):
        with pytest.raises(ImageError, match="cannot be read as an image"):
            to_rgb(empty)


def test_a_text_chunk_is_no_bomb():
    text = png_chunk(b"zTXt", b"a\0\0" + zlib.compress(bytes(1 << 26)))
    data = png(np.asarray(PHOTO), 8, 2)
    with pytest.raises(ImageError, match="too large"):
        to_rgb(data[:33] + text + data[33:])


def heic() -> bytes:
    import pillow_heif

    buffer = io.BytesIO()
    pillow_heif.from_pillow(Image.new("RGB", (64, 64), (200, 120, 40))).save(buffer, quality=95)
    return buffer.getvalue()


def test_heic_is_read_with_its_extra():
    got = np.asarray(to_rgb(heic())).astype(int)
    assert got.shape == (64, 64, 3) and np.abs(got - (200, 120, 40)).max() <= 3


@pytest.mark.parametrize("brand", [b"heic", b"heix", b"mif1"])
def test_heic_without_its_extra_names_it(brand, monkeypatch):
    monkeypatch.setitem(sys.modules, "pillow_heif", None)
    monkeypatch.setattr(Image, "ID", [kind for kind in Image.ID if kind != "HEIF"])
    data = b"\0\0\0\x18ftyp" + brand + b"\0\0\0\0" + b"mif1heic" + bytes(40)
    with pytest.raises(
        ImageError, match=r'it is HEIC, which needs pillow-heif: pip install "clipvp\[heif\]"'
    ):
        to_rgb(data)
