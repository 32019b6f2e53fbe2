"""Colour modes, alpha, profiles and frames: the colours that the format defines, as torchvision and timm see them."""

import io
import struct
import zlib

import numpy as np
import pytest
from image_bytes import png, tiff
from PIL import Image, ImageCms

from clipvp.images import ImageWarning, to_rgb
from clipvp.pixels import NOTICES
from clipvp.registry import UserError

SHAPE = (9, 11)
rng = np.random.default_rng(0)
GREY = rng.integers(0, 256, SHAPE, np.uint8)
COLOUR = rng.integers(0, 256, (*SHAPE, 3), np.uint8)
ALPHA = rng.integers(0, 256, SHAPE, np.uint8)
ALPHA[0], ALPHA[1] = 0, 255  # hidden colours, and colours that show
THREE = np.stack([GREY] * 3, -1)
INDEX = rng.integers(0, 16, SHAPE, np.uint8)
PALETTE = rng.integers(0, 256, (16, 3), np.uint8)
COLOUR_MAP = [int(value) * 257 for value in np.pad(PALETTE, ((0, 240), (0, 0))).T.flat]  # TIFF's
CMYK = rng.integers(0, 256, (*SHAPE, 4), np.uint8)
INK_TO_RGB = np.rint((255 - CMYK[..., :3].astype(int)) * (255 - CMYK[..., 3:].astype(int)) / 255)
FLAT = np.full((16, 16, 3), (200, 120, 40), np.uint8)


def encoded(image: Image.Image, kind: str, **options) -> bytes:
    buffer = io.BytesIO()
    image.save(buffer, kind, **options)
    return buffer.getvalue()


def check(image, expected: np.ndarray, within: int = 0) -> None:
    notices: list[str] = []
    got = to_rgb(image, report=notices.append)
    assert got.mode == "RGB" and set(notices) <= {NOTICES[-1]}
    assert np.abs(np.asarray(got).astype(int) - expected).max() <= within


def palette_image(mode: str = "P") -> Image.Image:
    image = Image.fromarray(INDEX, "P") if mode == "P" else Image.new(mode, SHAPE[::-1])
    image.putpalette(PALETTE.tobytes())
    return image


def ycbcr(rgb: np.ndarray) -> np.ndarray:
    """JFIF's definition."""
    r, g, b = np.moveaxis(rgb.astype(float), -1, 0)
    y = 0.299 * r + 0.587 * g + 0.114 * b
    return (
        np.rint(np.stack([y, (b - y) / 1.772 + 128, (r - y) / 1.402 + 128], -1)).clip(0, 255).astype(np.uint8)
    )


def lab_to_srgb(lab: np.ndarray) -> np.ndarray:
    """CIELAB of the white D50 to sRGB by the definitions; L in 0..100."""
    y = (lab[..., 0] + 16) / 116
    f = np.stack([y + lab[..., 1] / 500, y, y - lab[..., 2] / 200], -1)
    xyz = np.where(f > 6 / 29, f**3, (f - 4 / 29) * 3 * (6 / 29) ** 2) * (0.96422, 1.0, 0.82521)
    matrix = [
        [3.1338561, -1.6168667, -0.4906146],
        [-0.9787684, 1.9161415, 0.0334540],
        [0.0719453, -0.2289914, 1.4052427],
    ]
    linear = (xyz @ np.array(matrix).T).clip(0, 1)
    return 255 * np.where(linear > 0.0031308, 1.055 * linear ** (1 / 2.4) - 0.055, 12.92 * linear)


LAB = np.stack(np.meshgrid([10, 100, 180, 250], [-12, 0, 15], [-14, 0, 9], indexing="ij"), -1).reshape(
    4, 9, 3
)
LAB_BYTES = np.concatenate([LAB[..., :1], LAB[..., 1:] % 256], -1).astype(np.uint8)  # a and b with a sign
LAB_MEANT = lab_to_srgb(np.concatenate([LAB[..., :1] / 2.55, LAB[..., 1:]], -1))
PROFILE = ImageCms.ImageCmsProfile(ImageCms.createProfile("LAB")).tobytes()
RGBA = Image.fromarray(np.dstack([COLOUR, ALPHA]))
# Premultiplied colours: white is alpha, so that the exact colours come back.
PREMULTIPLIED = np.dstack([np.where(COLOUR > 127, ALPHA[..., None], 0), np.maximum(ALPHA, 1)]).astype(
    np.uint8
)
BRIGHT = np.where((COLOUR > 127) & (ALPHA[..., None] > 0), 255, 0)

# A case: an image or a file, the colours that it means, by how much they may differ.
MODES = {
    "L": (Image.fromarray(GREY), THREE, 0),
    "1": (Image.fromarray(GREY > 127), np.where(THREE > 127, 255, 0), 0),
    "P": (palette_image(), PALETTE[INDEX], 0),
    "RGB": (Image.fromarray(COLOUR), COLOUR, 0),
    "RGBX": (Image.fromarray(COLOUR).convert("RGBX"), COLOUR, 0),
    "RGBA": (RGBA, COLOUR, 0),
    "LA": (Image.merge("LA", [Image.fromarray(GREY), Image.fromarray(ALPHA)]), THREE, 0),
    "PA": (palette_image().convert("PA"), PALETTE[INDEX], 0),
    "RGBa": (Image.frombytes("RGBa", SHAPE[::-1], PREMULTIPLIED.tobytes()), BRIGHT, 0),
    "La": (Image.merge("LA", [Image.fromarray(GREY), Image.new("L", SHAPE[::-1], 255)]).convert("La"), THREE, 0),
    "CMYK": (Image.fromarray(CMYK, "CMYK"), INK_TO_RGB, 1),
    "YCbCr": (Image.fromarray(ycbcr(COLOUR), "YCbCr"), COLOUR, 3),
    "HSV": (Image.fromarray(np.array([[[0, 255, 255], [85, 255, 255], [170, 255, 255], [0, 0, 90]]], "u1"), "HSV"),
            np.array([[[255, 0, 0], [0, 255, 0], [0, 0, 255], [90, 90, 90]]]), 0),
    "png index is transparent": (encoded(palette_image(), "PNG", transparency=3), PALETTE[INDEX], 0),
    "png alpha table": (encoded(palette_image(), "PNG", transparency=bytes(range(16))), PALETTE[INDEX], 0),
    "png grey is transparent": (png(GREY, 8, 0, ((b"tRNS", b"\0\x05"),)), THREE, 0),
    "png 1 bit is transparent": (png(GREY > 127, 1, 0, ((b"tRNS", b"\0\x01"),)), np.where(THREE > 127, 255, 0), 0),
    "png colour is transparent": (png(COLOUR, 8, 2, ((b"tRNS", struct.pack(">3H", *COLOUR[0, 0])),)), COLOUR, 0),
    "png grey and alpha": (png(np.dstack([GREY, ALPHA]), 8, 4), THREE, 0),
    "png rgba": (png(np.dstack([COLOUR, ALPHA]), 8, 6), COLOUR, 0),
    "png wholly transparent": (png(np.dstack([COLOUR, ALPHA * 0]), 8, 6), COLOUR, 0),
    "png gamma": (png(COLOUR, 8, 2, ((b"gAMA", struct.pack(">I", 100000)),)), COLOUR, 0),
    "png profile": (png(COLOUR, 8, 2, ((b"iCCP", b"wide\0\0" + zlib.compress(PROFILE)),)), COLOUR, 0),
    "jpeg profile": (encoded(Image.fromarray(FLAT), "JPEG", quality=100, icc_profile=PROFILE), FLAT, 1),
    "webp rgba": (encoded(RGBA, "WEBP", lossless=True, exact=True), COLOUR, 0),
    "gif": (encoded(palette_image(), "GIF"), PALETTE[INDEX], 0),
    "gif transparent": (encoded(palette_image(), "GIF", transparency=3), PALETTE[INDEX], 0),
    "bmp palette": (encoded(palette_image(), "BMP"), PALETTE[INDEX], 0),
    "tga rgba": (encoded(RGBA, "TGA"), COLOUR, 0),
    "tiff palette": (tiff(INDEX, 3, tags=[(320, "H", COLOUR_MAP)]), PALETTE[INDEX], 0),
    "tiff rgba": (tiff(np.dstack([COLOUR, ALPHA]), 2, tags=[(338, "H", [2])]), COLOUR, 0),
    "tiff premultiplied": (tiff(PREMULTIPLIED, 2, tags=[(338, "H", [1])]), BRIGHT, 0),
    "tiff grey alpha": (tiff(np.dstack([GREY, ALPHA]), 1, tags=[(338, "H", [2])]), THREE, 0),
    "tiff cmyk": (tiff(CMYK, 5), INK_TO_RGB, 1),
    "tiff cmyk 16": (tiff(CMYK.astype(np.uint16) * 257, 5), INK_TO_RGB, 1),
    "tiff lab": (tiff(LAB_BYTES, 8), LAB_MEANT, 3),
    "jpeg cmyk": (encoded(Image.fromarray(np.repeat(np.repeat(CMYK, 8, 0), 8, 1), "CMYK"), "JPEG", quality=100),
                  np.repeat(np.repeat(INK_TO_RGB, 8, 0), 8, 1), 3),
    "jpeg grey": (encoded(Image.fromarray(THREE[..., 0].repeat(8, 0).repeat(8, 1)), "JPEG", quality=100),
                  THREE.repeat(8, 0).repeat(8, 1), 1),
}  # fmt: skip


@pytest.mark.parametrize("case", MODES)
def test_each_mode_is_its_definition(case):
    image, expected, within = MODES[case]
    check(image, expected, within)


def without_adobe(data: bytes) -> bytes:
    start = data.index(b"\xff\xee")
    return data[:start] + data[start + 2 + struct.unpack(">H", data[start + 2 : start + 4])[0] :]


def test_cmyk_jpegs_are_inverted_as_adobe_does():
    block = np.full((16, 16, 4), (10, 200, 60, 30), np.uint8)
    data = encoded(Image.fromarray(block, "CMYK"), "JPEG", quality=100)  # has Adobe's marker, stored inverted
    meant = np.full((16, 16, 3), [(255 - ink) * 225 / 255 for ink in (10, 200, 60)])
    check(data, meant, 2)
    check(without_adobe(data), meant, 2)  # no standard says what this is: Pillow, so all others, read it so


@pytest.mark.parametrize("kind", ["PNG", "WEBP", "TIFF"])
@pytest.mark.parametrize("orientation", range(1, 9))
def test_orientation_is_applied_once_in_every_format(kind, orientation):
    # The definition of EXIF: where row 0 and column 0 of the stored pixels lie in the upright picture.
    rows = {1: "top", 2: "top", 3: "bottom", 4: "bottom", 5: "left", 6: "right", 7: "right", 8: "left"}[
        orientation
    ]
    columns = {1: "left", 2: "right", 3: "right", 4: "left", 5: "top", 6: "top", 7: "bottom", 8: "bottom"}[
        orientation
    ]
    upright = COLOUR if rows in ("top", "bottom") else COLOUR.transpose(1, 0, 2)
    if "bottom" in (rows, columns):
        upright = upright[::-1]
    if "right" in (rows, columns):
        upright = upright[:, ::-1]
    exif = Image.Exif()
    exif[0x0112] = orientation
    options = {"lossless": True} if kind == "WEBP" else {}
    check(encoded(Image.fromarray(COLOUR), kind, exif=exif, **options), upright)
    check(encoded(RGBA, kind, exif=exif, **options, **({"exact": True} if kind == "WEBP" else {})), upright)


def test_orientation_of_deep_images():
    values = (COLOUR[..., 0].astype(np.uint16) * 257)[..., None] + np.zeros(3, np.uint16)
    expected = np.rot90(COLOUR[..., :1].repeat(3, -1), -1)
    exif = Image.Exif()
    exif[0x0112] = 6
    chunk = ((b"eXIf", exif.tobytes()[6:]),)
    check(png(values, 16, 2, chunk), expected)
    check(png(values[..., 0], 16, 0, chunk), expected)
    for deep, photometric in ((values, 2), (values[..., 0], 1)):
        check(tiff(deep, photometric, tags=[(0x0112, "H", [6])]), expected)


def test_orientation_beside_a_damaged_tag():
    # Orientation 6, then a tag whose value lies outside of the block.
    block = b"MM\0\x2a\0\0\0\x08\0\x02" + struct.pack(">HHIHH", 0x0112, 3, 1, 6, 0)
    block += struct.pack(">HHII", 0x8769, 4, 1, 90000) + b"\0\0\0\0"
    check(png(COLOUR, 8, 2, ((b"eXIf", block),)), np.rot90(COLOUR, -1))


def test_the_largest_picture_of_an_icon_is_read():
    icon = Image.fromarray(np.full((64, 64, 4), (10, 20, 30, 255), np.uint8))
    data = encoded(icon, "ICO", sizes=[(16, 16), (64, 64), (32, 32)])
    assert to_rgb(data).size == (64, 64)
    check(data, np.full((64, 64, 3), (10, 20, 30)))


def gif_block(left: int, top: int, colours: np.ndarray) -> bytes:
    """A GIF of 8 x 8, black, whose first frame is a smaller block at an offset: 0 black, 1 white."""
    image = Image.fromarray(colours, "P")
    image.putpalette([0, 0, 0, 255, 255, 255])
    data = bytearray(encoded(image, "GIF", optimize=False))
    data[6:10] = struct.pack("<2H", 8, 8)
    start = data.index(b"\x2c", 13)
    data[start + 1 : start + 5] = struct.pack("<2H", left, top)
    return bytes(data)


def test_the_first_frame_of_a_gif_keeps_its_place():
    colours = np.array([[1, 0, 1, 1], [0, 1, 1, 1], [1, 1, 1, 0]], np.uint8)
    expected = np.zeros((8, 8, 3))
    expected[3:6, 2:6] = colours[..., None] * 255
    check(gif_block(2, 3, colours), expected)


@pytest.mark.parametrize("kind", ["GIF", "PNG", "WEBP", "TIFF", "MPO"])
def test_the_first_frame_is_read(kind):
    frames = [Image.new("RGB", (16, 16), colour) for colour in ((200, 0, 0), (0, 200, 0), (0, 0, 200))]
    data = encoded(frames[0], kind, save_all=True, append_images=frames[1:])
    check(data, np.full((16, 16, 3), (200, 0, 0)), 3)


def test_avif():
    pytest.importorskip("PIL.AvifImagePlugin")
    check(encoded(Image.fromarray(FLAT), "AVIF", quality=100), FLAT, 3)


RAMP = np.arange(16).astype(np.uint8)  # the alphas of 16 colours of a palette
DEEP = (np.dstack([COLOUR, ALPHA]).astype(np.uint16) * 257).astype(">u2")
TRANSPARENT = {
    "RGBA": (RGBA, COLOUR, ALPHA),
    "LA": (Image.merge("LA", [Image.fromarray(GREY), Image.fromarray(ALPHA)]), THREE, ALPHA),
    "RGBa": (Image.frombytes("RGBa", SHAPE[::-1], PREMULTIPLIED.tobytes()), BRIGHT, PREMULTIPLIED[..., 3]),
    "png rgba": (png(np.dstack([COLOUR, ALPHA]), 8, 6), COLOUR, ALPHA),
    "png index": (encoded(palette_image(), "PNG", transparency=3), PALETTE[INDEX], np.where(INDEX == 3, 0, 255)),
    "png alpha table": (encoded(palette_image(), "PNG", transparency=bytes(RAMP)), PALETTE[INDEX], RAMP[INDEX]),
    "png grey": (  # the first value is transparent
        png(GREY, 8, 0, ((b"tRNS", b"\0" + bytes([GREY[0, 0]])),)), THREE, np.where(GREY[0, 0] == GREY, 0, 255)),
    "gif": (encoded(palette_image(), "GIF", transparency=3), PALETTE[INDEX], np.where(INDEX == 3, 0, 255)),
    "webp": (encoded(RGBA, "WEBP", lossless=True, exact=True), COLOUR, ALPHA),
    "tiff": (tiff(np.dstack([COLOUR, ALPHA]), 2, tags=[(338, "H", [2])]), COLOUR, ALPHA),
    "png 16 bit rgba": (png(DEEP, 16, 6), COLOUR, ALPHA),
    "png 16 bit grey and alpha": (png(DEEP[..., 2:], 16, 4), COLOUR[..., 2:].repeat(3, -1), ALPHA),
    "png 16 bit key": (png(DEEP[..., :3], 16, 2, ((b"tRNS", DEEP[0, 0, :3].tobytes()),)), COLOUR,
                       np.where((COLOUR[0, 0] == COLOUR).all(-1), 0, 255)),
    "array": (np.dstack([COLOUR, ALPHA]), COLOUR, ALPHA),
    "array of floats": (np.dstack([COLOUR, ALPHA]) / 255, COLOUR, ALPHA),
    "array of 16 bits": (DEEP, COLOUR, ALPHA),
    "array with two channels": (np.dstack([GREY, ALPHA]), THREE, ALPHA),
}  # fmt: skip


@pytest.mark.parametrize("background, ground", [("white", (255, 255, 255)), ("#0a6432", (10, 100, 50))])
@pytest.mark.parametrize("case", TRANSPARENT)
def test_the_background_shows_beneath_transparent_pixels(case, background, ground):
    image, colour, alpha = TRANSPARENT[case]
    share = np.asarray(alpha, float)[..., None] / 255
    got = np.asarray(to_rgb(image, background=background)).astype(int)  # a notice would be an error here
    assert np.abs(got - (share * colour + (1 - share) * ground)).max() <= 0.5 + 1e-9


@pytest.mark.parametrize("case", TRANSPARENT)
def test_transparent_pixels_without_a_background_are_reported(case):
    notices: list[str] = []
    to_rgb(TRANSPARENT[case][0], report=notices.append)
    assert notices == [NOTICES[-1]]
    with pytest.warns(ImageWarning, match="data.background"):
        to_rgb(TRANSPARENT[case][0])


def test_an_opaque_image_with_alpha_is_not_reported():
    opaque = Image.fromarray(np.dstack([COLOUR, np.full(SHAPE, 255, np.uint8)]))
    np.testing.assert_array_equal(np.asarray(to_rgb(opaque)), COLOUR)


@pytest.mark.parametrize("background", ["whit", "#12", 7, ""])
def test_a_background_that_is_no_colour_is_refused(background):
    with pytest.raises(UserError, match="background: .* is no colour; give a name such as white"):
        to_rgb(RGBA, background=background)


@pytest.mark.parametrize("kind", ["PNG", "JPEG"])
def test_an_orientation_that_was_set_after_opening_is_applied(kind):
    opened = Image.open(io.BytesIO(encoded(Image.fromarray(FLAT[:8]), kind)))
    opened.getexif()[0x0112] = 6
    assert to_rgb(opened).size == (8, 16)


def test_an_orientation_in_xmp_is_applied():
    text = b'<x:xmpmeta xmlns:x="adobe:ns:meta/"><rdf:Description tiff:Orientation="6"/></x:xmpmeta>'
    chunk = (b"iTXt", b"XML:com.adobe.xmp\0\0\0\0\0" + text)
    assert to_rgb(png(COLOUR, 8, 2, (chunk,))).size == (SHAPE[0], SHAPE[1])
