"""Every family of networks under every prompt and every mapping: forward, gradient, features, save, load, export."""

import json
from functools import cache

import pytest
import torch
from torch.nn import functional as F

from clipvp import PromptedClassifier, load_source
from clipvp.config.schema import MappingConfig, PromptConfig
from clipvp.export import export_onnx
from clipvp.mappings.statistic import gather
from clipvp.prompts.build import build_prompt
from clipvp.registry import MAPPINGS, PROMPTS

NAMES = ["red cat", "ship", "cat"]
CLOSED = ["timm_classifier", "timm_convnext", "timm_resnet", "timm_efficientnet", "timm_swin", "hf_dinov2"]
CLIPS = ["open_clip_resnet", "open_clip_vit", "hf_clip", "hf_siglip"]
OF_PROMPT = {
    "none": {},
    "padding": {"image_size": 20},
    "border": {"width": 4, "space": "normalized", "start": "normal"},
    "patch": {"patch_size": 8},
    "full": {},
    "low_rank": {},
    "scaled": {"image_size": 20, "image_scale": 1.2},
    "smm": {},
    "coordinator": {},
    "several": {"kind": "padding", "image_size": 20, "views": 2},
    "dga": {"image_size": 20, "levels": 1, "crops": 1, "crop_step": 4},
}
OF_CLIP_ALONE = ["several", "dga"]
# Models and prompts have these mappings in turn, so that each mapping meets several of both.
MAPPINGS_OF_CLOSED = [
    ("frequency", {}),
    ("blm_plus", {}),
    ("linear", {"takes": "features"}),
    ("random", {}),
    ("semantic", {}),
    ("logistic", {}),
    ("linear", {"takes": "logits"}),
    ("blm", {}),
    ("top_k_mean", {"top_k": 1}),
    ("identity", {}),
]
MAPPINGS_OF_CLIP = [
    ("frequency", {}),
    ("prototypes", {}),
    ("text_pool", {}),
    ("lp_plus_plus", {}),
    ("text_counts", {}),
    ("tip_adapter", {}),
    ("text_mixing", {}),
]
DGA = ("dga", {"levels": 1, "crops": 1})


def mapping_of(model: str, prompt: str) -> tuple[str, dict]:
    """Return the mapping of a model and a prompt, and its keys."""
    if prompt == "dga":
        return DGA
    mappings = MAPPINGS_OF_CLIP if model in CLIPS else MAPPINGS_OF_CLOSED
    if prompt == "several":  # one-to-one mappings may take no text of one of the prompts
        mappings = [mapping for mapping in mappings if takes_logits(mapping[0]) and mapping[0] != "frequency"]
    place = [*CLOSED, *CLIPS].index(model) + list(OF_PROMPT).index(prompt)
    return mappings[place % len(mappings)]


def takes_logits(mapping: str) -> bool:
    return MAPPINGS.get(mapping).takes_of(MappingConfig(kind=mapping)) == "logits"


EVERY = [
    (model, prompt)
    for model in [*CLOSED, *CLIPS]
    for prompt in OF_PROMPT
    if model in CLIPS or prompt not in OF_CLIP_ALONE
]
# Model, prompt and mapping of each export: all mappings, each with a prompt of its own as long as there are some.
EXPORTED = [
    (CLOSED[place % len(CLOSED)], list(OF_PROMPT)[place % (len(OF_PROMPT) - len(OF_CLIP_ALONE))], mapping)
    for place, mapping in enumerate(MAPPINGS_OF_CLOSED)
]
EXPORTED += [
    (CLIPS[place % len(CLIPS)], "several" if takes_logits(mapping[0]) else "border", mapping)
    for place, mapping in enumerate(MAPPINGS_OF_CLIP)
]
EXPORTED += [(CLIPS[-1], "dga", DGA)]


def test_all_that_can_be_chosen_is_here():
    mappings = {name for name in MAPPINGS.names() if not MAPPINGS.plugin(name)} - {"folded"}
    prompts = {name for name in PROMPTS.names() if not PROMPTS.plugin(name)}
    assert {mapping_of(*pair)[0] for pair in EVERY} == {mapping[0] for *_, mapping in EXPORTED} == mappings
    assert {prompt for _, prompt in EVERY} == {prompt for _, prompt, _ in EXPORTED} == prompts
    assert {model for model, *_ in EXPORTED} == {*CLOSED, *CLIPS}


@pytest.fixture(scope="module")
def loaded(tiny_model):
    """A function from a model to its source, loaded once."""

    @cache
    def source(model: str):
        texts = {"class_names": NAMES, "templates": ["a {}.", "the {}."]} if model in CLIPS else {}
        return load_source(tiny_model(model), **texts)

    return source


def images_of(classifier, count=3):
    generator = torch.Generator().manual_seed(0)
    return torch.rand(count, 3, *classifier.prompt.image_size, generator=generator)


@pytest.fixture
def classifier_of(tiny_model):
    """A function to a classifier with a fitted mapping and a prompt that is not as it started."""

    def make(source, kind: str, mapping: tuple[str, dict]) -> PromptedClassifier:
        names = NAMES if source.labels.is_text else list(source.labels.names[:3])
        own, name = {"kind": kind, **OF_PROMPT[kind]}, mapping[0]
        if kind == "coordinator":
            own["encoder"] = tiny_model("timm_classifier").removeprefix("timm:")
        config = MappingConfig(kind=name, **mapping[1])
        if name == "semantic":
            config.text_source = tiny_model("hf_clip")
        source.outputs = MAPPINGS.get(name).takes_of(config)
        prompt = build_prompt(PromptConfig(**own), source, seed=1)
        mapping = MAPPINGS.get(name).from_config(config, source, names, 0)
        classifier = PromptedClassifier(prompt, source, mapping, names).eval()
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
                images = images_of(classifier, 9)
                if statistic.plain:
                    outputs = source.encode(F.interpolate(images, source.canvas))
                else:
                    outputs = classifier.source_outputs(images)
                mapping.fit(gather(statistic, [(outputs, torch.arange(9) % 3)]))
        return classifier

    return make


@pytest.mark.parametrize("model, kind", EVERY)
def test_forward_gradient_features_save_and_load(model, kind, loaded, classifier_of, tmp_path):
    source = loaded(model)
    classifier = classifier_of(source, kind, mapping_of(model, kind))
    images = images_of(classifier)
    logits = classifier(images)
    assert logits.shape == (3, 3) and logits.dtype == torch.float32 and logits.isfinite().all()

    trains = list(classifier.prompt.parameters())
    loss = F.cross_entropy(logits, torch.arange(3))
    if trains:
        gradients = torch.autograd.grad(loss, trains)
        assert all(gradient.isfinite().all() for gradient in gradients)
        if kind == "dga":  # a crop that is not more certain than the image has no weight
            gradients = gradients[: len(classifier.prompt.levels)]
        assert all((gradient != 0).any() for gradient in gradients)

    with torch.no_grad():
        pixels = classifier.prompt(images)
        features = source.encode(pixels)
        assert features.shape == (3 * classifier.prompt.views, source.num_features)
        torch.testing.assert_close(source.score(features), source(pixels), rtol=1e-4, atol=1e-4)

    classifier.save_pretrained(tmp_path / "prompt")
    loaded = PromptedClassifier.from_pretrained(tmp_path / "prompt")
    with torch.no_grad():
        assert torch.equal(loaded(images), classifier(images))
    assert json.loads((tmp_path / "prompt" / "config.json").read_text())["prompt"]["kind"] == kind


@pytest.mark.slow
@pytest.mark.parametrize("model, kind, mapping", EXPORTED)
def test_export(model, kind, mapping, loaded, classifier_of, tmp_path):
    for package in ("onnx", "onnxruntime", "onnxscript"):
        pytest.importorskip(package)
    classifier = classifier_of(loaded(model), kind, mapping)
    classifier.share_border = False
    assert export_onnx(classifier, tmp_path / "model.onnx") <= 1e-4
