"""Every family of networks under every prompt: forward, gradient, features, save and load, export."""

import json

import pytest
import torch

from clipvp import PromptedClassifier, load_source
from clipvp.config.schema import MappingConfig, PromptConfig
from clipvp.export import export_onnx
from clipvp.mappings.statistic import gather
from clipvp.prompts.build import build_prompt
from clipvp.registry import MAPPINGS

NAMES = ["red cat", "ship", "cat"]
CLOSED = ["timm_classifier", "timm_convnext", "timm_resnet", "timm_efficientnet", "timm_swin", "hf_dinov2"]
CLIPS = ["open_clip_resnet", "open_clip_vit", "hf_clip", "hf_siglip"]
PROMPTS = {
    "none": {},
    "padding": {"image_size": 20},
    "border": {"width": 4, "space": "normalized", "start": "normal"},
    "patch": {"patch_size": 8},
    "full": {},
    "low_rank": {},
    "scaled": {"image_size": 20, "image_scale": 1.2},
    "smm": {},
}
# One mapping for each prompt in turn, so that all kinds meet all families.
OF_CLOSED = [
    ("frequency", {}),
    ("blm_plus", {}),
    ("linear", {"takes": "features"}),
    ("linear", {"takes": "logits"}),
]
OF_CLIP = [("frequency", {}), ("blm_plus", {}), ("prototypes", {}), ("text_pool", {})]


@pytest.fixture(scope="module")
def source(request, tiny_model):
    kind = request.param
    texts = {"class_names": NAMES, "templates": ["a {}.", "the {}."]} if kind in CLIPS else {}
    return load_source(tiny_model(kind), **texts)


def images_of(classifier, count=3):
    generator = torch.Generator().manual_seed(0)
    return torch.rand(count, 3, *classifier.prompt.image_size, generator=generator)


def classifier_of(source, kind: str) -> PromptedClassifier:
    """Return a classifier with a fitted mapping and a prompt that is not as it started."""
    mappings = OF_CLIP if source.labels.is_text else OF_CLOSED
    name, keys = mappings[list(PROMPTS).index(kind) % len(mappings)]
    config = MappingConfig(kind=name, **keys)
    source.outputs = MAPPINGS.get(name).takes_of(config)
    prompt = build_prompt(PromptConfig(kind=kind, **PROMPTS[kind]), source, seed=1)
    mapping = MAPPINGS.get(name).from_config(config, source, NAMES, 0)
    classifier = PromptedClassifier(prompt, source, mapping, NAMES).eval()
    generator = torch.Generator().manual_seed(2)
    with torch.no_grad():
        for name, value in prompt.named_parameters():
            if name != "scale":
                value.add_(0.1 * torch.randn(value.shape, generator=generator))
        mapping.begin(9)
        for value in mapping.parameters():
            value.add_(0.1 * torch.randn(value.shape, generator=generator))
        statistic = mapping.statistic()
        if statistic is not None:
            outputs = classifier.source_outputs(images_of(classifier, 9))
            mapping.fit(gather(statistic, [(outputs, torch.arange(9) % 3)]))
    return classifier


@pytest.mark.parametrize("kind", PROMPTS)
@pytest.mark.parametrize("source", [*CLOSED, *CLIPS], indirect=True)
def test_forward_gradient_features_save_and_load(source, kind, tmp_path):
    classifier = classifier_of(source, kind)
    images = images_of(classifier)
    logits = classifier(images)
    assert logits.shape == (3, 3) and logits.dtype == torch.float32 and logits.isfinite().all()

    trains = list(classifier.prompt.parameters())
    loss = torch.nn.functional.cross_entropy(logits, torch.arange(3))
    if trains:
        gradients = torch.autograd.grad(loss, trains)
        assert all(gradient.isfinite().all() for gradient in gradients)
        assert all((gradient != 0).any() for gradient in gradients)

    with torch.no_grad():
        pixels = classifier.prompt(images)
        features = source.encode(pixels)
        assert features.shape == (3, source.num_features)
        torch.testing.assert_close(source.score(features), source(pixels), rtol=1e-4, atol=1e-4)

    classifier.save_pretrained(tmp_path / "prompt")
    loaded = PromptedClassifier.from_pretrained(tmp_path / "prompt")
    with torch.no_grad():
        assert torch.equal(loaded(images), classifier(images))
    assert json.loads((tmp_path / "prompt" / "config.json").read_text())["prompt"]["kind"] == kind


@pytest.mark.slow
@pytest.mark.parametrize("source", [*CLOSED, *CLIPS], indirect=True)
def test_export(source, tmp_path):
    for package in ("onnx", "onnxruntime", "onnxscript"):
        pytest.importorskip(package)
    kinds = [*CLOSED, *CLIPS]
    place = next(place for place, kind in enumerate(kinds) if kind in source.name)
    classifier = classifier_of(source, ["smm", "scaled", "low_rank"][place % 3])
    classifier.share_border = False
    assert export_onnx(classifier, tmp_path / "model.onnx") <= 1e-4
