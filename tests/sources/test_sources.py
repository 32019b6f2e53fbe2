"""A source gives what its own library gives, from pixels in [0, 1], and nothing in it ever moves."""

import json
import os
import shutil
from pathlib import Path

import numpy as np
import pytest
import torch
from conftest import closed_source, photo
from torch import nn
from torch.utils._python_dispatch import TorchDispatchMode

from clipvp import UserError, load_source
from clipvp.images import to_rgb
from clipvp.labels.space import unique_names
from clipvp.sources.base import PixelsInParts, Source, _ScaleGradient, check_forward
from clipvp.sources.preprocessing import hf_preprocessing

CLOSED = ["tiny_timm", "tiny_timm_vit", "tiny_hf", "tiny_hf_vit"]


def folder_of(name: str) -> Path:
    return Path(name.rpartition(":")[2])


def pixels_of(source: Source, image) -> torch.Tensor:
    """Bring an image to the canvas as the library itself says: (1, 3, H, W) in [0, 1]."""
    return torch.from_numpy(source.resize(to_rgb(image))).permute(2, 0, 1)[None].float() / 255


@pytest.fixture(params=CLOSED)
def name(request) -> str:
    return request.getfixturevalue(request.param)


# The library's own logits


@pytest.mark.parametrize("fixture", ["tiny_timm", "tiny_timm_vit"])
def test_logits_are_timms_own_from_the_image_on(fixture, request):
    import timm

    name = request.getfixturevalue(fixture)
    network = timm.create_model(name.partition(":")[2], pretrained=True).eval()
    config = timm.data.resolve_model_data_config(network)
    transform = timm.data.create_transform(**config, is_training=False)
    source = load_source(name)
    for size in [(200, 300), (181, 170), (90, 64)]:
        image = photo(*size)
        with torch.no_grad():
            theirs, ours = network(transform(image)[None]), source(pixels_of(source, image))
        torch.testing.assert_close(ours, theirs, rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize("fixture", ["tiny_hf", "tiny_hf_vit"])
def test_logits_are_transformers_own(fixture, request):
    from transformers import AutoImageProcessor, AutoModelForImageClassification

    name = request.getfixturevalue(fixture)
    source = load_source(name)
    network = AutoModelForImageClassification.from_pretrained(folder_of(name)).eval()
    processor = AutoImageProcessor.from_pretrained(folder_of(name))
    for seed in range(3):
        image = photo(*(round(side / source.resize.crop_pct) for side in source.canvas), seed)
        with torch.no_grad():  # nothing is resized, so both see the same pixels
            theirs = network(**processor(image, return_tensors="pt")).logits
            ours = source(pixels_of(source, image))
        torch.testing.assert_close(ours, theirs, rtol=1e-5, atol=1e-5)


SQUARE = {"height": 64, "width": 64}
PROCESSORS = [
    ("ViTImageProcessor", {"size": {"height": 48, "width": 64}, "resample": 3}),
    ("ViTImageProcessor", {"size": SQUARE, "do_normalize": False}),
    ("ConvNextImageProcessor", {"size": {"shortest_edge": 96}}),
    ("ConvNextImageProcessor", {"size": {"shortest_edge": 384}}),
    ("DeiTImageProcessor", {"size": {"height": 72, "width": 72}, "crop_size": SQUARE}),
    ("CLIPImageProcessor", {"size": {"shortest_edge": 64}, "crop_size": SQUARE}),
    ("EfficientNetImageProcessor", {"size": SQUARE}),
    ("EfficientNetImageProcessor", {"size": SQUARE, "rescale_factor": 1 / 127.5, "rescale_offset": True}),
    ("EfficientNetImageProcessor", {"size": SQUARE, "include_top": False}),
    ("MobileNetV2ImageProcessor", {"size": {"shortest_edge": 72}, "crop_size": SQUARE}),
    ("LevitImageProcessor", {"size": {"shortest_edge": 56}, "crop_size": {"height": 56, "width": 56}}),
    ("PoolFormerImageProcessor", {"size": {"shortest_edge": 54}, "crop_size": {"height": 54, "width": 54}}),
    ("SiglipImageProcessor", {"size": SQUARE}),
    ("PvtImageProcessor", {"size": SQUARE}),
]


@pytest.mark.parametrize(
    "kind, options", PROCESSORS, ids=lambda value: value if isinstance(value, str) else ""
)
def test_preprocessing_is_the_image_processors_own(kind, options, tmp_path):
    import transformers

    getattr(transformers, kind)(**options).save_pretrained(tmp_path)
    processor = transformers.AutoImageProcessor.from_pretrained(tmp_path)
    preprocessing = hf_preprocessing(processor.to_dict())
    mean, std = (torch.tensor(v).view(3, 1, 1) for v in (preprocessing.mean, preprocessing.std))
    for size in [(120, 160), (128, 96), (64, 64)]:
        image = photo(*size)
        theirs = processor(image, return_tensors="pt").pixel_values[0]
        ours = torch.from_numpy(preprocessing.resize(image)).permute(2, 0, 1) / 255
        steps = ((ours - mean) / std - theirs).abs() * std * 255  # in steps of 8-bit pixels
        assert steps.max() < 2.01 and steps.mean() < 0.1  # Pillow and torchvision round differently


def test_an_image_processor_that_pads_is_refused():
    from transformers import MobileViTImageProcessor

    with pytest.raises(UserError, match="crops 256x256 out of a smaller image"):
        hf_preprocessing(MobileViTImageProcessor().to_dict())


# Frozen, and open to the gradient of the pixels


def test_nothing_moves_and_the_gradient_reaches_the_pixels(name):
    source = load_source(name)
    outer = nn.ModuleDict({"source": source, "other": nn.Dropout()})
    before = {key: value.clone() for key, value in source.state_dict().items()}
    outer.train()
    assert outer["other"].training and not any(module.training for module in source.modules())
    pixels = torch.rand(3, 3, *source.canvas, requires_grad=True)
    logits = source(pixels)
    assert logits.shape == (3, len(source.labels)) and logits.dtype == torch.float32
    logits.logsumexp(1).sum().backward()
    assert (pixels.grad.flatten(1).abs().sum(1) > 0).all()
    assert not any(parameter.requires_grad for parameter in source.parameters())
    assert all(parameter.grad is None for parameter in source.parameters())
    after = source.state_dict()
    assert all(torch.equal(before[key], after[key]) for key in before)


def test_a_batch_is_scored_image_by_image(name):
    source = load_source(name)
    pixels = torch.rand(3, 3, *source.canvas)
    with torch.no_grad():
        together, alone = source(pixels), torch.cat([source(image[None]) for image in pixels])
    torch.testing.assert_close(together, alone, rtol=1e-4, atol=1e-5)


def test_normalisation_is_inside_and_in_float32(name):
    source = load_source(name)
    pixels = torch.rand(2, 3, *source.canvas)
    mean, std = source.preprocessing.mean, source.preprocessing.std
    for channel in range(3):
        expected = (pixels[:, channel] - mean[channel]) / std[channel]
        torch.testing.assert_close(source.normalize(pixels)[:, channel], expected)
    with torch.no_grad():
        torch.testing.assert_close(source(pixels), source.network(source.normalize(pixels)))


def test_features_and_head_make_the_logits(name):
    source = load_source(name)
    pixels = torch.rand(2, 3, *source.canvas)
    with torch.no_grad():
        features = source.encode(pixels)
        assert features.shape == (2, source.num_features) and features.dtype == torch.float32
        torch.testing.assert_close(source.score(features), source(pixels))
        torch.testing.assert_close(source.classifier_head()(features), source(pixels))
        headless = source.headless_network()
        torch.testing.assert_close(headless(source.normalize(pixels)), features)
    assert source(pixels).shape == (2, len(source.labels))  # the source itself kept its head
    assert not source.classifier_head()._forward_pre_hooks


def test_the_gradient_passes_through_features_and_score(name):
    source = load_source(name)
    pixels = [torch.rand(2, 3, *source.canvas, generator=torch.Generator().manual_seed(0)) for _ in range(2)]
    source(pixels[0].requires_grad_()).logsumexp(1).sum().backward()
    source.score(source.encode(pixels[1].requires_grad_())).logsumexp(1).sum().backward()
    torch.testing.assert_close(pixels[1].grad, pixels[0].grad, rtol=1e-4, atol=1e-7)
    assert pixels[0].grad.abs().sum() > 0


@pytest.mark.parametrize("precision", ["fp32", "bf16", "fp16"])
def test_features_are_float32_in_any_precision_and_make_the_logits(precision):
    source = closed_source(linear_network(), 5, precision=precision)
    pixels = torch.rand(2, 3, 4, 4)
    with torch.no_grad():
        features = source.encode(pixels)
        assert features.dtype == source.score(features).dtype == torch.float32
        torch.testing.assert_close(source.score(features), source(pixels), rtol=1e-3, atol=1e-3)


@pytest.mark.parametrize("network", ["no linear layer", "a linear layer of another size"])
def test_a_network_without_a_last_linear_layer_has_logits_only(network):
    torch.manual_seed(0)
    layers = [nn.Conv2d(3, 5, 4), nn.Flatten()]
    if network != "no linear layer":
        layers = [nn.Flatten(), nn.Linear(48, 80), nn.Unflatten(1, (5, 16)), nn.AvgPool1d(16), nn.Flatten()]
    source = closed_source(nn.Sequential(*layers), 5)
    pixels = torch.rand(2, 3, 4, 4)
    assert source(pixels).shape == (2, 5)
    for ask in (
        lambda: source.encode(pixels),
        lambda: source.score(pixels),
        lambda: source.num_features,
        lambda: source.headless_network(),
    ):
        with pytest.raises(UserError, match="^source 'test' does not end in a linear layer, .* no features$"):
            ask()


class TwoHeads(nn.Module):
    """The mean of two heads, as a distilled vision transformer gives it."""

    def __init__(self):
        super().__init__()
        self.body = nn.Sequential(nn.Conv2d(3, 8, 3), nn.Flatten())
        self.heads = nn.ModuleList(nn.Linear(32, 5) for _ in range(2))

    def forward(self, pixels):
        features = self.body(pixels)
        return sum(head(features) for head in self.heads) / 2


@pytest.mark.parametrize("network", ["two heads", "softmax", "scale"])
def test_logits_that_are_not_those_of_the_last_linear_layer_have_no_features(network):
    torch.manual_seed(0)
    last = {"softmax": [nn.Softmax(1)], "scale": [nn.Threshold(0.05, 0.05)]}.get(network)
    source = closed_source(nn.Sequential(linear_network(), *last) if last else TwoHeads(), 5)
    check_forward(source)
    pixels = torch.rand(2, 3, 4, 4)
    assert source(pixels).shape == (2, 5)
    for ask in (lambda: source.encode(pixels), lambda: source.num_features, source.headless_network):
        with pytest.raises(UserError, match="does not end in a linear layer"):
            ask()
    assert not any(module._forward_hooks for module in source.modules())


def test_a_source_that_was_looked_at_still_has_its_features():
    source = check_forward(closed_source(linear_network(), 5))
    assert source.num_features == 32 and not source.classifier_head()._forward_hooks


# What all images of a batch have in common


def border_of(source: Source, count: int, seed: int = 0) -> tuple[PixelsInParts, torch.Tensor]:
    """Return a shared border with small images at its centre, and the same as plain pixels."""
    generator = torch.Generator().manual_seed(seed)
    height, width = source.canvas
    top, left = 3 * height // 8, 3 * width // 8
    bottom, right = top + height // 4, left + width // 4
    surroundings = torch.rand(1, 3, height, width, generator=generator)
    images = torch.rand(count, 3, bottom - top, right - left, generator=generator)
    pixels = surroundings.repeat(count, 1, 1, 1)
    pixels[:, :, top:bottom, left:right] = images
    made_from = (surroundings,)
    return PixelsInParts(surroundings, images, (top, left, bottom, right), made_from), pixels


@pytest.mark.parametrize("fixture", ["tiny_timm", "tiny_hf"])
@pytest.mark.parametrize("way", ["forward", "encode"])
def test_a_shared_border_is_computed_as_plain_pixels_are(way, fixture, request):
    source = load_source(request.getfixturevalue(fixture), canvas=64)
    border, pixels = border_of(source, 5)
    run = getattr(source, way)
    with torch.no_grad():
        expected = run(pixels)
        for _ in range(2):  # with the work on the border to be done, and kept
            torch.testing.assert_close(run(border), expected, rtol=1e-4, atol=1e-5)
        border.surroundings.mul_(0.5)
        _, other = border_of(source, 5)
        top, left, bottom, right = border.box
        other.mul_(0.5)[:, :, top:bottom, left:right] = border.images
        torch.testing.assert_close(run(border), run(other), rtol=1e-4, atol=1e-5)
        assert not torch.allclose(run(border), expected, rtol=1e-3, atol=1e-4)
    assert source._split_network.reason is None  # it was shared, not put together


@pytest.mark.parametrize("fixture", ["tiny_timm", "tiny_hf"])
@pytest.mark.parametrize("way", ["forward", "encode"])
def test_the_gradient_of_a_shared_border_is_that_of_plain_pixels(way, fixture, request):
    source = load_source(request.getfixturevalue(fixture), canvas=64)
    border, pixels = border_of(source, 5)
    run, (top, left, bottom, right) = getattr(source, way), border.box
    weights = torch.randn(run(pixels).shape, generator=torch.Generator().manual_seed(1))
    pixels.requires_grad_(), border.surroundings.requires_grad_(), border.images.requires_grad_()
    (run(pixels) * weights).sum().backward()
    (run(border) * weights).sum().backward()
    images = pixels.grad[:, :, top:bottom, left:right]
    around = pixels.grad.sum(0, keepdim=True)
    around[:, :, top:bottom, left:right] = 0
    for found, expected in ((border.images.grad, images), (border.surroundings.grad, around)):
        assert (found - expected).norm() < 1e-4 * expected.norm() and expected.norm() > 0


# Canvas


@pytest.mark.parametrize("canvas", [64, (48, 96), (80, 64)])
def test_any_canvas_that_the_architecture_allows(name, canvas):
    source = load_source(name, canvas=canvas)
    size = (canvas, canvas) if isinstance(canvas, int) else canvas
    assert source.canvas == size and source.resize.size == size
    logits = source(torch.rand(2, 3, *size))
    assert logits.shape == (2, len(source.labels)) and logits.isfinite().all()
    own = load_source(name)
    assert source.labels == own.labels
    assert (source.preprocessing.mean, source.preprocessing.std) == (
        own.preprocessing.mean,
        own.preprocessing.std,
    )


def test_the_models_own_canvas_by_number_changes_nothing(name):
    source = load_source(name)
    again = load_source(name, canvas=source.canvas)
    pixels = torch.rand(2, 3, *source.canvas)
    with torch.no_grad():
        torch.testing.assert_close(again(pixels), source(pixels), rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize("canvas", [33, 3])
def test_a_canvas_that_patches_do_not_fill_is_refused(tiny_timm_vit, canvas):
    with pytest.raises(UserError, match=rf"canvas.* {canvas}x{canvas} pixels"):
        load_source(tiny_timm_vit, canvas=canvas)


# Precision


def test_half_precision_on_a_cpu_warns_and_gives_float32(tiny_timm):
    for precision in ("bf16", "fp16"):
        with pytest.warns(UserWarning, match=f"{precision} is slower than fp32 on a CPU"):
            source = load_source(tiny_timm, precision=precision)
        assert source.precision == "fp32"
        assert {value.dtype for value in source.parameters()} == {torch.float32}


@pytest.mark.parametrize("factor", [2.0**12, 2.0**-12, 2.0**30])
def test_scaling_the_gradient_by_a_power_of_two_and_back_is_exact(factor):
    values = torch.randn(1000, requires_grad=True)
    weights = torch.randn(1000)
    out = _ScaleGradient.apply(_ScaleGradient.apply(values, 1 / factor), factor)
    assert torch.equal(out, values)
    (out * weights).sum().backward()
    assert torch.equal(values.grad, weights)


def linear_network() -> nn.Module:
    torch.manual_seed(0)
    return nn.Sequential(nn.Conv2d(3, 8, 3), nn.ReLU(), nn.Flatten(), nn.Linear(32, 5))


@pytest.mark.parametrize("precision, tolerance", [("fp16", 2e-3), ("bf16", 2e-2)])
def test_half_precision_is_near_float32_and_small_gradients_survive(precision, tolerance):
    full, half = closed_source(linear_network(), 5), closed_source(linear_network(), 5, precision=precision)
    assert half.fingerprint == full.fingerprint  # of the weights as they were loaded
    assert half.normalize(torch.rand(1, 3, 4, 4)).dtype == torch.float32
    gradients = []
    for source in (full, half):
        pixels = torch.rand(2, 3, 4, 4, generator=torch.Generator().manual_seed(1)).requires_grad_()
        logits = source(pixels)
        assert logits.dtype == torch.float32
        (logits.softmax(1)[:, 0].sum() * 1e-6).backward()  # one image of a very large batch
        gradients.append(pixels.grad)
    difference = (gradients[0] - gradients[1]).norm() / gradients[0].norm()
    assert 0 < difference < tolerance * 5


# Fingerprint and labels


def test_the_fingerprint_is_that_of_the_weights(tiny_timm, tiny_hf):
    source = load_source(tiny_timm)
    assert source.fingerprint == load_source(tiny_timm).fingerprint != load_source(tiny_hf).fingerprint
    for parameter in (next(source.parameters()), list(source.network.buffers())[-2]):
        changed = load_source(tiny_timm)
        value = dict(changed.network.state_dict())[
            next(
                key for key, v in source.network.state_dict().items() if v.data_ptr() == parameter.data_ptr()
            )
        ]
        value[(0,) * value.ndim] += 1e-3
        assert changed.fingerprint != source.fingerprint


def test_labels_are_read_from_the_model_and_told_apart(tiny_hf):
    names = load_source(tiny_hf).labels.names
    assert names[0] == "cat" and names[1] == "dog"
    assert names[2] != names[3] and names[2].startswith("crane") and "machine" in names[3]


def test_unique_names_adds_details_only_where_they_are_needed():
    assert unique_names(["a", "b", "a"], ["x", "y", "z"]) == ("a (x)", "b", "a (z)")


# The model out of a pip package


def test_lite0_knows_photographs():
    from sklearn.datasets import load_sample_image

    source = load_source("offline:lite0")
    names = source.labels.names
    assert len(names) == len(set(names)) == 1000 and source.canvas == (224, 224)
    assert "tabby" in names and sum(name.startswith("crane") for name in names) == 2
    pixels = torch.cat(
        [pixels_of(source, load_sample_image(f"{photo}.jpg")) for photo in ("china", "flower")]
    )
    with torch.no_grad():
        scores = source(pixels).softmax(1)
    top = [[names[i] for i in row] for row in scores.topk(5).indices.tolist()]
    assert set(top[0]) & {"palace", "monastery", "boathouse", "bell cote", "stupa", "dome"}, top[0]
    assert set(top[1]) & {"daisy", "pot", "bee", "sea urchin", "cardoon", "artichoke"}, top[1]


def test_lite0_takes_a_small_canvas_and_passes_the_gradient():
    source = load_source("offline:lite0", canvas=(64, 96))
    pixels = torch.rand(2, 3, 64, 96, requires_grad=True)
    source(pixels).max().backward()
    assert source.canvas == (64, 96) and pixels.grad.abs().max() > 0


# Loading changes nothing around it


def settings_of_the_process() -> dict:
    """Return what computing in this process depends on."""
    backends = torch.backends
    return {
        "denormals": float(torch.tensor([1e-42]) * 1.0) != 0,
        "threads": torch.get_num_threads(),
        "dtype": torch.get_default_dtype(),
        "device": torch.get_default_device(),
        "gradients": torch.is_grad_enabled(),
        "inference": torch.is_inference_mode_enabled(),
        "deterministic": torch.are_deterministic_algorithms_enabled(),
        "matmul": torch.get_float32_matmul_precision(),
        "cudnn": (backends.cudnn.enabled, backends.cudnn.benchmark, backends.cudnn.deterministic),
        "mkldnn": backends.mkldnn.enabled,
        "environment": dict(os.environ),
    }


@pytest.mark.parametrize("kind", ["tiny_timm", "tiny_hf", "hf_clip", "open_clip_vit", "offline:lite0"])
def test_loading_a_source_changes_no_setting_of_the_process(kind, request, tiny_model):
    is_clip = "clip" in kind
    name = kind if ":" in kind else tiny_model(kind) if is_clip else request.getfixturevalue(kind)
    before = settings_of_the_process()
    assert before["denormals"]
    source = load_source(name, **({"class_names": ["cat", "dog"]} if is_clip else {}))
    assert settings_of_the_process() == before
    source(torch.rand(1, 3, *source.canvas))
    assert settings_of_the_process() == before


# Names and folders that are wrong


@pytest.mark.parametrize(
    "name, words",
    [
        ("resnet18", ["'resnet18'", "scheme:model", "timm:", "hf:", "offline:"]),
        ("tim:resnet18", ["did you mean 'timm:'"]),
        ("", ["scheme:model"]),
        ("timm:resnt18", ["no 'resnt18'", "resnet18"]),
        ("timm:resnet18.a1_in2k", ["'resnet18' has no weights 'a1_in2k'", "resnet18.a1_in1k"]),
        ("timm:test_vit5", ["no 'test_vit5'"]),
        ("timm:", ["no ''"]),
        ("timm:local-dir:/no/such/folder", ["/no/such/folder", "config.json"]),
        ("hf:/no/such/folder", ["there is no folder '/no/such/folder'"]),
        ("hf:./nothing", ["there is no folder './nothing'"]),
        ("hf:", ["hf:", "ORG/NAME"]),
        ("offline:lite1", ["'lite1'", "did you mean 'lite0'"]),
        ("offline:", ["lite0"]),
        ("timm:resnet18.a1_in1k", ["not in the local hub cache", "hf download timm/resnet18.a1_in1k"]),
        ("timm:resnet18", ["not in the local hub cache", "hf download timm/resnet18.a1_in1k"]),
        ("hf:microsoft/resnet-50", ["not in the local hub cache", "hf download microsoft/resnet-50"]),
    ],
)
def test_a_wrong_name_is_told_in_one_line_with_what_would_be_right(name, words):
    with pytest.raises(UserError) as error:
        load_source(name)
    message = str(error.value)
    assert "\n" not in message
    assert all(word in message for word in words), message


@pytest.mark.parametrize(
    "name, start",
    [
        ("timm:resnet19", "did you mean 'resnet18'?"),
        ("timm:resnet50.a1_in2k", "did you mean 'resnet50.a1_in1k'?"),
        ("open_clip:vit-b-31/openai", "did you mean 'ViT-B-3"),
        ("open_clip:ViT-B-32/laion2b_s34b_b79", "did you mean 'laion2b_s34b_b79k'?"),
    ],
)
def test_a_mistyped_model_or_tag_gets_the_nearest_few(name, start):
    with pytest.raises(UserError) as error:
        load_source(name, class_names=["cat"])
    names = str(error.value).partition("allowed: ")[2].split(", ")
    assert (
        start in str(error.value) and len(names) == 5 and "more" in names[-1] and len(str(error.value)) < 300
    )


def copied(name: str, tmp_path: Path) -> tuple[str, Path]:
    folder = tmp_path / "copy"
    shutil.copytree(folder_of(name), folder)
    return f"{name.rpartition(':')[0]}:{folder}", folder


DAMAGES = {
    "truncated weights": lambda folder: _cut(folder / "model.safetensors"),
    "weights of zeros": lambda folder: (folder / "model.safetensors").write_bytes(bytes(1000)),
    "no weights": lambda folder: (folder / "model.safetensors").unlink(),
    "empty config": lambda folder: (folder / "config.json").write_text(""),
    "no JSON": lambda folder: (folder / "config.json").write_text("{'a': 1"),
    "a config of nothing": lambda folder: (folder / "config.json").write_text("{}"),
    "a list for a config": lambda folder: (folder / "config.json").write_text("[1]"),
    "no config": lambda folder: (folder / "config.json").unlink(),
    "another architecture": lambda folder: _edit(folder, architecture="nonsense", model_type="nonsense"),
}


def _cut(path: Path) -> None:
    path.write_bytes(path.read_bytes()[:-100])


def _edit(folder: Path, **values) -> None:
    config = json.loads((folder / "config.json").read_text())
    (folder / "config.json").write_text(json.dumps({**config, **values}))


@pytest.mark.parametrize("damage", DAMAGES)
@pytest.mark.parametrize("fixture", ["tiny_timm", "tiny_hf"])
def test_a_damaged_folder_is_a_clear_error(damage, fixture, request, tmp_path):
    name, folder = copied(request.getfixturevalue(fixture), tmp_path)
    DAMAGES[damage](folder)
    with pytest.raises(UserError) as error:
        load_source(name)
    message = str(error.value)
    assert "\n" not in message and name in message and len(message) < 600, message


def test_a_folder_without_an_image_processor_is_a_clear_error(tiny_hf, tmp_path):
    name, folder = copied(tiny_hf, tmp_path)
    for path in folder.glob("*processor*.json"):
        path.unlink()
    with pytest.raises(UserError, match="copy") as error:
        load_source(name)
    assert "\n" not in str(error.value)


def test_a_network_whose_logits_do_not_fit_its_labels_is_refused():
    with pytest.raises(UserError, match=r"logits \(1, 5\) for 6 labels"):
        check_forward(closed_source(linear_network(), 6))
    assert np.isfinite(check_forward(closed_source(linear_network(), 5)).mean.numpy()).all()


class _Clones(TorchDispatchMode):
    """Counts the copies that are made."""

    def __init__(self):
        super().__init__()
        self.count = 0

    def __torch_dispatch__(self, function, types, arguments=(), options=None):
        self.count += function is torch.ops.aten.clone.default
        return function(*arguments, **(options or {}))


@pytest.mark.parametrize("kind", [nn.ReLU6, nn.SiLU, nn.Hardswish, nn.Hardsigmoid, nn.Mish, nn.ReLU])
def test_no_activation_copies_its_input_for_the_gradient(kind):
    torch.manual_seed(0)
    activation = kind(inplace=True)
    layers = [nn.Conv2d(3, 4, 3), activation, nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(4, 5)]
    source = closed_source(nn.Sequential(*layers), 5)

    def run() -> tuple[int, torch.Tensor, torch.Tensor]:
        pixels = torch.rand(2, 3, 4, 4, generator=torch.Generator().manual_seed(0)).requires_grad_()
        with _Clones() as clones:
            logits = source(pixels)
            logits.square().sum().backward()
        return clones.count, logits, pixels.grad

    copies, *ours = run()
    activation.inplace = True
    copies_in_place, *plain = run()
    assert copies == 0 and copies_in_place == (kind is not nn.ReLU)
    assert all(torch.equal(one, other) for one, other in zip(ours, plain, strict=True))


@pytest.mark.slow
@pytest.mark.filterwarnings("default")  # of torch's compiler, about its own workings
def test_a_compiled_network_gives_the_same(tiny_timm):
    source = load_source(tiny_timm, canvas=32)
    keys = source.state_dict().keys()

    def run(size: int) -> tuple[torch.Tensor, torch.Tensor]:
        pixels = torch.rand(size, 3, 32, 32, generator=torch.Generator().manual_seed(size)).requires_grad_()
        logits = source(pixels)
        logits.square().sum().backward()
        return logits.detach(), pixels.grad

    plain = [run(size) for size in (3, 2)]
    source.compile_network()
    torch._dynamo.utils.counters.clear()
    compiled = [run(size) for size in (3, 2, 3)]
    assert torch._dynamo.utils.counters["stats"]["unique_graphs"] == 2  # once for each size
    torch.testing.assert_close(compiled, [*plain, plain[0]], rtol=1e-4, atol=1e-5)
    pixels = torch.rand(2, 3, 32, 32)
    with torch.no_grad():  # of features too, which a compiled network does not show
        torch.testing.assert_close(source.score(source.encode(pixels)), source(pixels), rtol=1e-4, atol=1e-5)
    assert source.state_dict().keys() == keys


def test_a_network_that_cannot_be_compiled_is_one_line(tiny_timm, monkeypatch):
    source = load_source(tiny_timm, canvas=32)

    def fails(pixels):
        raise torch._dynamo.exc.TorchDynamoException("\n  no compiler was found\nmore")

    monkeypatch.setattr(torch, "compile", lambda function, dynamic: fails)
    source.compile_network()
    with pytest.raises(
        UserError, match="^source.compile: 'timm:.*' cannot be compiled here: no compiler was found$"
    ):
        source(torch.zeros(1, 3, 32, 32))
