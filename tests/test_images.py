"""Every kind of image becomes the RGB pixels a person sees, at the size other libraries give."""

import io
import json

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image

from clipvp.images import ImageError, Resize, to_rgb
from clipvp.registry import UserError


def photo(height: int, width: int, seed: int = 0) -> Image.Image:
    """A smooth colour picture: every side, corner and channel differs."""
    rng = np.random.default_rng(seed)
    small = Image.fromarray(rng.integers(0, 256, (5, 4, 3), dtype=np.uint8))
    return small.resize((width, height), Image.Resampling.BICUBIC)


def encoded(image: Image.Image, kind: str = "PNG", **options) -> bytes:
    buffer = io.BytesIO()
    image.save(buffer, kind, **options)
    return buffer.getvalue()


# to_rgb: what goes in


def test_path_bytes_image_and_arrays_are_one_image(tmp_path):
    image = photo(20, 30)
    pixels = np.asarray(image)
    path = tmp_path / "a.png"
    path.write_bytes(encoded(image))
    channels_first = pixels.transpose(2, 0, 1)
    ways = [path, str(path), path.read_bytes(), image, pixels, channels_first]
    ways += [pixels.astype(np.int64), pixels / 255, (channels_first / 255).astype(np.float32)]
    ways += [pixels.astype(np.uint16) * 257]
    for way in ways:
        got = to_rgb(way)
        assert got.mode == "RGB"
        np.testing.assert_array_equal(np.asarray(got), pixels)


def test_tensors_are_arrays():
    torch = pytest.importorskip("torch")
    pixels = torch.from_numpy(np.array(photo(8, 9))).permute(2, 0, 1)
    np.testing.assert_array_equal(np.asarray(to_rgb(pixels / 255)), np.asarray(photo(8, 9)))


PIXELS = np.asarray(photo(8, 9))
HALVES = PIXELS // 16 * 16  # few levels, which half precision keeps
READ_ONLY = PIXELS.copy()
READ_ONLY.flags.writeable = False


@pytest.mark.parametrize(
    "array, expected",
    [
        (READ_ONLY, PIXELS),
        (np.asfortranarray(PIXELS), PIXELS),
        (PIXELS[::-1, ::-1], PIXELS[::-1, ::-1]),
        (PIXELS.repeat(2, 1)[:, ::2], PIXELS),
        (np.dstack([PIXELS, PIXELS[..., 0]]), PIXELS),
        (np.dstack([PIXELS, PIXELS[..., 0]]).transpose(2, 0, 1), PIXELS),
        (PIXELS[..., :2], PIXELS[..., [0, 0, 0]]),
        (PIXELS[..., :1], PIXELS[..., [0, 0, 0]]),
        (PIXELS[..., 0][None], PIXELS[..., [0, 0, 0]]),
        *((PIXELS.astype(kind), PIXELS) for kind in ("<i2", ">i2", "<u4", ">i4", "i8", "u8", ">u8")),
        *((PIXELS.astype(kind) * 257, PIXELS) for kind in ("<u2", ">u2")),
        *(((PIXELS / 255).astype(kind), PIXELS) for kind in ("<f4", ">f4", "f8", ">f8", "g")),
        ((HALVES / 255).astype("f2"), HALVES),
        ((HALVES / 255).astype(">f2"), HALVES),
        (PIXELS > 127, np.where(PIXELS > 127, 255, 0)),
        ((PIXELS // 127).astype("i1") * 63, PIXELS // 127 * 63),
    ],
)
def test_arrays_of_every_kind(array, expected):
    np.testing.assert_array_equal(np.asarray(to_rgb(array, report=[].append)), expected)


@pytest.mark.parametrize("kind", ["u2", ">u2", "i2", "i4", "u8", "f4", "f8"])
def test_bits_say_which_value_of_an_array_is_white(kind):
    values = np.array([[0, 1365], [2730, 4095]]).astype(kind)
    assert np.asarray(to_rgb(values, bits=12))[..., 0].tolist() == [[0, 85], [170, 255]]
    assert np.asarray(to_rgb(Image.fromarray(values.astype("i4")), bits=12))[..., 0].tolist() == [
        [0, 85],
        [170, 255],
    ]


def test_tensors_with_gradients_of_every_kind():
    import torch

    for kind in ("uint8", "int16", "int64"):
        np.testing.assert_array_equal(to_rgb(torch.tensor(PIXELS).to(getattr(torch, kind))), PIXELS)
    for kind in ("float16", "bfloat16", "float32", "float64"):
        # Half precision keeps 8 bits of a value of up to 1: white, black and the powers of 2 are exact.
        values = torch.tensor([[0, 1.0], [0.5, 0.25]], dtype=getattr(torch, kind), requires_grad=True)
        assert np.asarray(to_rgb(values))[..., 0].tolist() == [[0, 255], [128, 64]]
    values = torch.tensor(PIXELS.astype(np.int32) * 257).to(torch.uint16)
    np.testing.assert_array_equal(to_rgb(values.permute(2, 0, 1)), PIXELS)
    with pytest.raises(ImageError, match="meta"):
        to_rgb(torch.zeros(3, 8, 9, device="meta"))


def test_whatever_makes_itself_an_array():
    class Picture:
        def __array__(self, dtype=None, copy=None):
            return PIXELS

    class Broken:
        def __array__(self, dtype=None, copy=None):
            raise RuntimeError("lost")

    np.testing.assert_array_equal(to_rgb(Picture()), PIXELS)
    with pytest.raises(ImageError, match="^Broken: .* lost"):
        to_rgb(Broken())


def test_brain_floats_of_numpy():
    bfloat16 = pytest.importorskip("ml_dtypes").bfloat16
    assert np.asarray(to_rgb(np.array([[0, 0.5], [0.25, 1]], bfloat16)))[..., 0].tolist() == [
        [0, 128],
        [64, 255],
    ]


@pytest.mark.parametrize("mode", ["1", "L", "LA", "P", "RGB", "RGBA", "CMYK", "YCbCr", "HSV"])
def test_every_mode_gives_what_convert_gives(mode):
    image = photo(12, 10).convert("L" if mode == "LA" else "RGB").convert(mode)
    np.testing.assert_array_equal(np.asarray(to_rgb(image)), np.asarray(image.convert("RGB")))


@pytest.mark.parametrize("mode", ["LA", "RGBA"])
def test_alpha_is_dropped_not_blended(mode):
    image = photo(12, 10).convert(mode)
    opaque = np.asarray(to_rgb(image))
    image.putalpha(0)
    np.testing.assert_array_equal(np.asarray(to_rgb(encoded(image), report=[].append)), opaque)


@pytest.mark.parametrize("transparency", [3, bytes(range(256))])
def test_palette_with_transparency_keeps_its_colours(transparency):
    image = photo(12, 10).convert("P", palette=Image.Palette.ADAPTIVE)
    got = to_rgb(encoded(image, transparency=transparency), report=[].append)
    np.testing.assert_array_equal(np.asarray(got), np.asarray(image.convert("RGB")))


@pytest.mark.parametrize("kind", ["PNG", "TIFF"])
def test_16_bit_grey_is_scaled_not_clipped(kind):
    values = np.linspace(0, 65535, 256).round().astype(np.uint16).reshape(16, 16)
    got = np.asarray(to_rgb(encoded(Image.fromarray(values), kind)))
    assert (got[..., 0] == got[..., 1]).all() and (got[..., 0] == got[..., 2]).all()
    np.testing.assert_array_equal(got[..., 0], np.arange(256).reshape(16, 16))
    np.testing.assert_array_equal(np.asarray(to_rgb(Image.fromarray(values.astype(np.int32)))), got)


def test_float_and_boolean_pixels_span_the_full_range():
    values = np.array([[0.0, 0.5], [1.0, 1.0]])
    expected = [[0, 128], [255, 255]]
    assert np.asarray(to_rgb(values))[..., 0].tolist() == expected
    assert np.asarray(to_rgb(Image.fromarray(values.astype(np.float32))))[..., 0].tolist() == expected
    assert np.asarray(to_rgb(values > 0.5))[..., 0].tolist() == [[0, 0], [255, 255]]


@pytest.mark.parametrize("orientation", range(1, 9))
def test_exif_orientation_is_applied(orientation):
    turns = {2: "FLIP_LEFT_RIGHT", 3: "ROTATE_180", 4: "FLIP_TOP_BOTTOM", 5: "TRANSPOSE"}
    turns |= {6: "ROTATE_270", 7: "TRANSVERSE", 8: "ROTATE_90"}
    image, exif = photo(20, 30), Image.Exif()
    exif[0x0112] = orientation
    upright = image.transpose(Image.Transpose[turns[orientation]]) if orientation > 1 else image
    got = to_rgb(encoded(image, exif=exif))
    np.testing.assert_array_equal(np.asarray(got), np.asarray(upright))


def test_damaged_exif_leaves_the_pixels():
    image = photo(20, 30)
    got = to_rgb(encoded(image, exif=b"Exif\0\0MM\0\x2a\xff\xff\xff\xff\xff"))
    np.testing.assert_array_equal(np.asarray(got), np.asarray(image))


@pytest.mark.parametrize("kind", ["GIF", "WEBP", "TIFF"])
def test_an_animated_file_gives_its_first_frame(kind):
    frames = [Image.new("RGB", (8, 8), colour) for colour in ("white", "black", "red")]
    data = encoded(frames[0], kind, save_all=True, append_images=frames[1:])
    assert (np.asarray(to_rgb(data)) == 255).all()


def test_the_given_image_is_not_changed():
    image = photo(6, 5).convert("RGBA")
    before = image.tobytes()
    to_rgb(image)
    assert image.mode == "RGBA" and image.tobytes() == before


@pytest.mark.parametrize(
    "bad, word",
    [
        (b"", "no known image format"),
        (b"not an image", "no known image format"),
        ("/no/such/file.png", "/no/such/file.png"),
        (None, "NoneType"),
        ([[1, 2]], "list"),
        (np.zeros((0, 4)), "shape"),
        (np.zeros((2, 3, 4, 5)), "shape"),
        (np.zeros((9, 8, 7)), "shape"),
        (np.full((4, 4), 300), "0..255"),
        (np.full((4, 4), 200.0), "0..1"),
        (np.full((4, 4), np.nan), "0..1"),
        (np.full((4, 4), "a"), "<U1"),
        (np.full((4, 4), -1), "0..255"),
        (np.full((4, 4), 300, np.uint32), "bits"),
        (np.full((4, 4), -1.0), "0..1"),
        (np.full((4, 4), np.inf), "0..1"),
        (np.full((4, 4), 1j), "complex128"),
        (np.full((4, 4), None), "object"),
        (np.full((4, 4), "2026-01-01", "M8[D]"), "datetime64"),
        (np.zeros(4), "shape"),
        (np.zeros(()), "shape"),
        (Image.fromarray(np.full((4, 4), 70000, np.int32)), "0..65535; bits"),
    ],
)
def test_what_is_no_image_is_refused_by_name(bad, word):
    with pytest.raises(ImageError, match="cannot be read as an image") as error:
        to_rgb(bad)
    assert word in str(error.value)
    with pytest.raises(ImageError, match=r"^photo 7: "):
        to_rgb(bad, "photo 7")


FILES = {
    kind: encoded(photo(24, 20), kind, **options)
    for kind, options in {
        "JPEG": {},
        "PNG": {},
        "GIF": {},
        "WEBP": {},
        "BMP": {},
        "TIFF": {},
        "PPM": {},
    }.items()
}


@pytest.mark.filterwarnings("ignore")  # Pillow warns of much damage before it gives up
@settings(max_examples=200, deadline=None)
@given(
    kind=st.sampled_from(sorted(FILES)),
    cut=st.floats(0, 1),
    damage=st.lists(st.tuples(st.floats(0, 1, exclude_max=True), st.integers(0, 255)), max_size=5),
)
def test_damaged_files_are_images_or_image_errors(kind, cut, damage):
    data = bytearray(FILES[kind][: int(cut * len(FILES[kind]))])
    for place, value in damage if data else []:
        data[int(place * len(data))] = value
    try:
        assert to_rgb(bytes(data)).mode == "RGB"
    except ImageError as error:
        assert "cannot be read" in str(error)


@pytest.mark.parametrize("kind", sorted(FILES))
def test_half_a_file_is_an_error(kind):
    with pytest.raises(ImageError):
        to_rgb(FILES[kind][: len(FILES[kind]) // 2])


# Resize: what comes out

SIDES = st.integers(3, 80)
INTERPOLATIONS = ["bilinear", "bicubic", "nearest", "lanczos"]


@settings(max_examples=60, deadline=None)
@given(SIDES, SIDES, SIDES, SIDES, st.sampled_from(INTERPOLATIONS))
def test_squash_is_torchvisions_resize(height, width, h, w, interpolation):
    transforms = pytest.importorskip("torchvision.transforms")
    mode = getattr(transforms.InterpolationMode, interpolation.upper())
    image = photo(height, width)
    got = Resize((h, w), interpolation=interpolation)(image)
    assert got.shape == (h, w, 3) and got.dtype == np.uint8
    np.testing.assert_array_equal(got, np.asarray(transforms.Resize((h, w), mode)(image)))


@settings(max_examples=60, deadline=None)
@given(SIDES, SIDES, st.integers(3, 60), st.integers(0, 20), st.sampled_from(INTERPOLATIONS))
def test_crop_is_torchvisions_resize_and_centre_crop(height, width, side, more, interpolation):
    transforms = pytest.importorskip("torchvision.transforms")
    mode = getattr(transforms.InterpolationMode, interpolation.upper())
    image = photo(height, width)
    expected = transforms.CenterCrop(side)(transforms.Resize(side + more, mode)(image))
    got = Resize((side, side), "crop", side / (side + more), interpolation)(image)
    np.testing.assert_array_equal(got, np.asarray(expected))


@settings(max_examples=60, deadline=None)
@given(
    SIDES,
    SIDES,
    st.sampled_from([(224, 224), (64, 64), (32, 48), (57, 33)]),
    st.sampled_from([0.8, 0.875, 0.9, 0.95, 0.965, 1.0]),
    st.sampled_from(["crop", "squash"]),
)
def test_both_rules_are_timms_evaluation_transforms(height, width, size, crop_pct, rule):
    transforms = pytest.importorskip("timm.data.transforms_factory")
    modes = {"crop": "center", "squash": "squash"}
    pipeline = transforms.transforms_imagenet_eval(
        size, crop_pct, modes[rule], interpolation="bicubic", normalize=False
    )
    image = photo(height, width)
    expected = np.asarray(pipeline(image)).transpose(1, 2, 0)
    np.testing.assert_array_equal(Resize(size, rule, crop_pct, "bicubic")(image), expected)


def test_resize_survives_json():
    resize = Resize((32, 48), "crop", 0.9, "bicubic")
    assert Resize.from_dict(json.loads(json.dumps(resize.to_dict()))) == resize
    assert hash(Resize([32, 48], "crop", 0.9, "bicubic")) == hash(resize)


@pytest.mark.parametrize(
    "arguments",
    [((0, 4),), ((4,),), ((4, 4), "stretch"), ((4, 4), "crop", 0.0), ((4, 4), "crop", 1.0, "box")],
)
def test_wrong_resizes_are_refused(arguments):
    with pytest.raises(UserError):
        Resize(*arguments)
