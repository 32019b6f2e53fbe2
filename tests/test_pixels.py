"""Each depth and mode gives the colours that the definition of its format says, or one line that names the option."""

import io
import warnings

import numpy as np
import pytest
from image_bytes import pfm, png, pnm, tiff
from PIL import Image

from clipvp.images import ImageError, ImageWarning, to_rgb
from clipvp.registry import UserError

SHAPE = (9, 11)


def ramp(white: int, dtype: str = "u2", shape: tuple = SHAPE) -> np.ndarray:
    """Values 0..white without order: both ends, and all bytes of a sample differ."""
    values = np.random.default_rng(white).integers(0, white + 1, shape)
    values.flat[:2] = 0, white
    return values.astype(dtype)


def eight(values: np.ndarray, white: float) -> np.ndarray:
    """The definition: 0 is black, ``white`` is white, in between linear and rounded."""
    eight = np.floor(values.astype(np.float64) * 255 / white + 0.5).astype(np.uint8)
    return np.stack([eight] * 3, -1) if eight.ndim == 2 else eight


def check(image, expected: np.ndarray, within: int = 0, **options) -> None:
    got = np.asarray(to_rgb(image, **options)).astype(int)
    assert got.shape == expected.shape
    assert np.abs(got - expected).max() <= within


def encoded(image: Image.Image, kind: str, **options) -> bytes:
    buffer = io.BytesIO()
    image.save(buffer, kind, **options)
    return buffer.getvalue()


COLOUR = (*SHAPE, 3)
FOUR = (*SHAPE, 4)


def most(white: int, number: int = 281, count: int = 1):
    return [(number, "H", [white] * count)]


def significant(bits: int, count: int = 1):
    return ((b"sBIT", bytes([bits] * count)),)


def scaled_up(values: np.ndarray, bits: int) -> np.ndarray:
    """Samples of fewer bits as PNG demands them: scaled to 16 bits."""
    return np.rint(values * (65535 / (2**bits - 1))).astype("u2")


def packed_palette(bits: int):
    values = ramp(2**bits - 1, "u1")
    palette = ramp(255, "u1", (2**bits, 3))
    return png(values, bits, 3, ((b"PLTE", palette.tobytes()),)), palette[values]


# A case: the file, what it means, options of to_rgb.
DEPTHS = {
    **{f"png grey {bits}": (png(ramp(2**bits - 1), bits, 0), eight(ramp(2**bits - 1), 2**bits - 1), {})
       for bits in (1, 2, 4, 8, 16)},
    **{f"png palette {bits}": (*packed_palette(bits), {}) for bits in (1, 2, 4, 8)},
    "png rgb 16": (png(ramp(65535, shape=COLOUR), 16, 2), eight(ramp(65535, shape=COLOUR), 65535), {}),
    "png rgba 16": (png(ramp(65535, shape=FOUR), 16, 6), eight(ramp(65535, shape=FOUR), 65535)[..., :3], {}),
    "png grey alpha 16": (png(ramp(65535, shape=(*SHAPE, 2)), 16, 4),
                          eight(ramp(65535, shape=(*SHAPE, 2))[..., 0], 65535), {}),
    **{f"png grey, {bits} bits set": (png(ramp(2**bits - 1), 16, 0), eight(ramp(2**bits - 1), 2**bits - 1),
                                      {"bits": bits}) for bits in (1, 8, 10, 12, 14)},
    "png rgb, 12 bits set": (png(ramp(4095, shape=COLOUR), 16, 2), eight(ramp(4095, shape=COLOUR), 4095), {"bits": 12}),
    "png rgba, 10 bits set": (png(np.dstack([ramp(1023, shape=COLOUR), ramp(65535)]), 16, 6),
                              eight(ramp(1023, shape=COLOUR), 1023), {"bits": 10}),
    **{f"png sBIT {bits}, scaled": (png(scaled_up(ramp(2**bits - 1), bits), 16, 0, significant(bits)),
                                    eight(ramp(2**bits - 1), 2**bits - 1), {}) for bits in (8, 10, 12, 14)},
    **{f"png sBIT {bits}, not scaled": (png(ramp(2**bits - 1), 16, 0, significant(bits)),
                                        eight(ramp(2**bits - 1), 2**bits - 1), {}) for bits in (8, 10, 12, 14)},
    "png rgb sBIT 12, not scaled": (png(ramp(4095, shape=COLOUR), 16, 2, significant(12, 3)),
                                    eight(ramp(4095, shape=COLOUR), 4095), {}),
    "png sBIT 12, dark": (png(scaled_up(ramp(250), 12), 16, 0, significant(12)), eight(ramp(250), 4095), {}),
    **{f"tiff grey {bits}": (tiff(ramp(2**bits - 1), bits=bits), eight(ramp(2**bits - 1), 2**bits - 1), {})
       for bits in (1, 2, 4, 12)},
    **{f"tiff {name}{order}": (tiff(ramp(white, dtype, shape), photometric, order),
                               eight(ramp(white, shape=shape), white), {})
       for order in "<>" for name, white, dtype, shape, photometric in (
           ("grey 8", 255, "u1", SHAPE, 1), ("grey 16", 65535, "u2", SHAPE, 1), ("signed 16", 32767, "i2", SHAPE, 1),
           ("rgb 8", 255, "u1", COLOUR, 2), ("rgb 16", 65535, "u2", COLOUR, 2))},
    "tiff rgba 16": (tiff(ramp(65535, shape=FOUR), 2, tags=[(338, "H", [2])]),
                     eight(ramp(65535, shape=FOUR)[..., :3], 65535), {}),
    "tiff white is zero 8": (tiff(ramp(255, "u1"), 0), 255 - eight(ramp(255), 255), {}),
    "tiff white is zero 16": (tiff(ramp(65535), 0), 255 - eight(ramp(65535), 65535), {}),
    "tiff white is zero float": (tiff((ramp(255) / 255).astype("f4"), 0), 255 - eight(ramp(255), 255), {}),
    **{f"tiff deflate {name}": (encoded(Image.open(io.BytesIO(data)), "TIFF", compression="tiff_adobe_deflate"),
                                meant, {})
       for name, data, meant in (
           ("grey 16<", tiff(ramp(65535)), eight(ramp(65535), 65535)),
           ("rgb 8", tiff(ramp(255, "u1", COLOUR), 2), eight(ramp(255, shape=COLOUR), 255)))},
    "tiff MaxSampleValue 4095": (tiff(ramp(4095), tags=most(4095)), eight(ramp(4095), 4095), {}),
    "tiff MaxSampleValue 1023 in rgb": (tiff(ramp(1023, shape=COLOUR), 2, tags=most(1023, count=3)),
                                        eight(ramp(1023, shape=COLOUR), 1023), {}),
    "tiff SMaxSampleValue 16383": (tiff(ramp(16383), tags=most(16383, 341)), eight(ramp(16383), 16383), {}),
    "tiff MaxSampleValue too small": (tiff(ramp(65535), tags=most(4095)), eight(ramp(65535), 65535), {}),
    "tiff MaxSampleValue of the image": (tiff(ramp(40000), tags=most(40000)), eight(ramp(40000), 65535), {}),
    "tiff 32, MaxSampleValue": (tiff(ramp(65535, "u4"), tags=most(65535)), eight(ramp(65535), 65535), {}),
    **{f"tiff {dtype}, {bits} bits set": (tiff(ramp(2**bits - 1, dtype)), eight(ramp(2**bits - 1, dtype), 2**bits - 1),
                                          {"bits": bits})
       for dtype, bits in (("u4", 8), ("i4", 16), ("u4", 20), ("i4", 31), ("f4", 8), ("f4", 16))},
    "tiff float": (tiff((ramp(255) / 255).astype("f4")), eight(ramp(255), 255), {}),
    "tiff float>": (tiff((ramp(255) / 255).astype("f4"), order=">"), eight(ramp(255), 255), {}),
    **{f"p{'gp'[colour]}m maxval {white}{' plain' * plain}": (
           pnm(ramp(white, shape=COLOUR if colour else SHAPE), white, plain),
           eight(ramp(white, shape=COLOUR if colour else SHAPE), white), {})
       for white in (1, 100, 255, 1023, 4095, 65535) for colour in (0, 1) for plain in (False, True)},
    "pgm maxval 1023, other bits set": (pnm(ramp(1023), 1023), eight(ramp(1023), 1023), {"bits": 14}),
    **{f"pfm{order}": (pfm(ramp(255) / 255, order), eight(ramp(255), 255), {}) for order in "<>"},
}  # fmt: skip
# Pillow scales these itself: to 16 bits, which are then scaled to 8, or halves to even.
NEAR = {name for name in DEPTHS if "pgm" in name and "65535" not in name or "maxval 100" in name}


@pytest.mark.parametrize("case", DEPTHS)
def test_each_depth_is_its_definition(case, tmp_path):
    data, expected, options = DEPTHS[case]
    options = {"report": [].append, **options}  # alpha is dropped here
    check(data, expected, within=case in NEAR, **options)
    (tmp_path / "image").write_bytes(data)  # Pillow reads some files in another way than bytes
    check(tmp_path / "image", expected, within=case in NEAR, **options)
    with Image.open(tmp_path / "image") as opened:
        check(opened, expected, within=case in NEAR, **options)


@pytest.mark.parametrize("bits", [8, 10, 12, 14])
@pytest.mark.parametrize(
    "make",
    [
        lambda values: png(values, 16, 0),
        lambda values: png(np.dstack([values] * 3), 16, 2),
        lambda values: png(np.dstack([values] * 3 + [values * 0 + 65535]), 16, 6),
        lambda values: tiff(values),
        lambda values: tiff(values, order=">"),
        lambda values: tiff(np.dstack([values] * 3), 2),
        lambda values: pnm(values, 65535),
        lambda values: values,
        lambda values: np.dstack([values] * 3),
        lambda values: Image.fromarray(values.astype(np.int32)),
    ],
)
def test_dark_16_bit_images_are_read_as_they_are_and_reported(make, bits):
    values = ramp(2**bits - 1)
    with pytest.warns(ImageWarning, match=f"set bits to {bits}") as told:
        check(make(values), eight(values, 65535))
    assert len(told) == 1
    notes = []
    check(make(values), eight(values, 65535), report=notes.append)
    check(
        make(values // 2 + 2 ** (bits - 1)), eight(values // 2 + 2 ** (bits - 1), 65535), report=notes.append
    )
    assert len(notes) == 2 and len(set(notes)) == 1  # one line for a data set, whatever its images
    check(make(values), eight(values, 65535), bits=16)  # the user says that they are dark


def test_the_warning_is_shown_once_for_many_images():
    with warnings.catch_warnings(record=True) as told:
        warnings.simplefilter("default")
        for white in (3000, 3500, 4000):
            to_rgb(png(ramp(white), 16, 0))
    assert len(told) == 1


@pytest.mark.parametrize("values", [np.zeros(SHAPE, "u2"), ramp(65535), ramp(16384)])
def test_black_and_bright_images_are_not_reported(values):
    check(png(values, 16, 0), eight(values, 65535))


NAN, INF = np.full(SHAPE, np.nan, "f4"), np.full(SHAPE, np.inf, "f4")


@pytest.mark.parametrize(
    "data, options, words",
    [
        (png(ramp(5000), 16, 0), {"bits": 12}, "0..5000 are not within 0..4095"),
        (png(ramp(5000, shape=COLOUR), 16, 2), {"bits": 12}, "0..5000 are not within 0..4095"),
        (tiff(ramp(255, "u4")), {}, "bits says which value is white"),
        (tiff(ramp(2**31 - 1, "i4")), {}, "bits says which value is white"),
        (tiff(-ramp(100, "i4")), {"bits": 8}, "-100..0 are not within 0..255"),
        (tiff(-ramp(1000, "i2")), {}, "-1000..0 are not within 0..32767"),
        (tiff(ramp(255, "f4")), {}, "0..255 are not within 0..1; bits says which value is white"),
        (tiff(ramp(65535, "f4")), {}, "bits says which value is white"),
        (tiff(-ramp(1, "f4")), {}, "-1..-0 are not within 0..1"),
        (tiff(NAN), {}, "nan..nan are not within 0..1"),
        (tiff(INF), {"bits": 8}, "inf..inf are not within 0..255"),
        (pfm(ramp(300), "<"), {}, "0..300 are not within 0..1"),
        (tiff(ramp(1023), bits=10), {}, "unknown pixel mode"),
        (tiff(ramp(65535), 0, ">"), {}, "unknown pixel mode"),
        (tiff(ramp(1, "f8")), {}, "unknown pixel mode"),
        (tiff(ramp(1, "f4", COLOUR), 2), {}, "unknown pixel mode"),
        (tiff(ramp(65535, shape=(*SHAPE, 2)), tags=[(338, "H", [2])]), {}, "unknown pixel mode"),
        (tiff(ramp(65535, shape=COLOUR), 2, tags=[(284, "H", [2])]), {}, "separate planes"),
    ],
)
def test_depths_that_are_not_clear_are_refused_in_one_line(data, options, words):
    with pytest.raises(ImageError, match=r"^scan: cannot be read as an image: ") as error:
        to_rgb(data, "scan", **options)
    assert words in str(error.value) and "\n" not in str(error.value)


@pytest.mark.parametrize("bits", [0, -1, 33, 12.0, "12"])
def test_wrong_bits_are_refused(bits):
    with pytest.raises(UserError, match="bits: .* from 1 to 32"):
        to_rgb(png(ramp(255), 8, 0), bits=bits)
