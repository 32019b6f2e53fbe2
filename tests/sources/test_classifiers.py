"""Classifiers that transformers loads: of every class, also with teacher heads, and those of timm."""

import json

import pytest
import torch
from conftest import photo
from tiny_models import PATCH, SIZE, VISION, _spread, timm_classifier

from clipvp import UserError, load_source

IMAGES = {"image_size": SIZE, "patch_size": PATCH}
LEVIT = {
    "hidden_sizes": [16, 32, 48],
    "num_attention_heads": [1, 2, 3],
    "depths": [1, 1, 1],
    "key_dim": [8, 8, 8],
}
PERCEIVER = {
    "num_latents": 8,
    "d_latents": 32,
    "num_blocks": 1,
    "num_self_attends_per_block": 1,
    "num_self_attention_heads": 2,
    "num_cross_attention_heads": 2,
    "image_size": SIZE,
}
LCNET = {"scale": 0.25, "class_expand": 16}
# Class, its config, and the image processor.
CLASSES = {
    "DeiTForImageClassificationWithTeacher": ("DeiTConfig", {**VISION, **IMAGES}, "ViTImageProcessor"),
    "DeiTForImageClassification": ("DeiTConfig", {**VISION, **IMAGES}, "ViTImageProcessor"),
    "LevitForImageClassificationWithTeacher": (
        "LevitConfig",
        {**LEVIT, "image_size": SIZE},
        "ViTImageProcessor",
    ),
    "PerceiverForImageClassificationLearned": ("PerceiverConfig", PERCEIVER, "ViTImageProcessor"),
    "PPLCNetForImageClassification": ("PPLCNetConfig", LCNET, "ViTImageProcessor"),
}


def save(kind: str, folder, **options):
    """Write a small classifier and return it."""
    import transformers

    config, settings, processor = CLASSES[kind]
    torch.manual_seed(0)
    config = getattr(transformers, config)(**settings, num_labels=5, **options)
    model = _spread(getattr(transformers, kind)(config), 0)
    model.save_pretrained(folder)
    getattr(transformers, processor)(size={"height": SIZE, "width": SIZE}).save_pretrained(folder)
    return model


@pytest.mark.parametrize("kind", CLASSES)
def test_a_classifier_of_any_class_gives_transformers_own_logits(kind, tmp_path):
    model = save(kind, tmp_path)
    source = load_source(f"hf:{tmp_path}")
    pixels = torch.rand(3, 3, SIZE, SIZE, requires_grad=True)
    logits = source(pixels)
    with torch.no_grad():
        output = model(pixel_values=source.normalize(pixels))
        expected = output.last_hidden_state if kind.startswith("PPLC") else output.logits
    assert expected.std() > 1e-3
    torch.testing.assert_close(logits, expected, rtol=1e-4, atol=1e-5)
    logits.logsumexp(1).sum().backward()
    assert (pixels.grad.flatten(1).abs().sum(1) > 0).all()


def test_two_heads_have_no_features(tmp_path):
    save("DeiTForImageClassificationWithTeacher", tmp_path)
    with pytest.raises(UserError, match="does not end in a linear layer"):
        load_source(f"hf:{tmp_path}").encode(torch.rand(1, 3, SIZE, SIZE))


def test_labels_that_have_no_names_are_numbered(tmp_path):
    save("DeiTForImageClassification", tmp_path)
    path = tmp_path / "config.json"
    path.write_text(json.dumps({**json.loads(path.read_text()), "id2label": None, "num_labels": 5}))
    assert load_source(f"hf:{tmp_path}").labels.names == tuple(f"LABEL_{i}" for i in range(5))


@pytest.mark.parametrize("canvas", [None, 64, (32, 64)])
def test_a_model_of_timm_by_hf_is_the_same_as_by_timm(canvas, tmp_path):
    timm_classifier(tmp_path)
    ours, theirs = (load_source(f"{scheme}:{tmp_path}", canvas=canvas) for scheme in ("hf", "timm:local-dir"))
    image = torch.from_numpy(ours.resize(photo(50, 40))).permute(2, 0, 1)[None] / 255
    with torch.no_grad():
        assert torch.equal(ours(image), theirs(image))
    assert ours.preprocessing == theirs.preprocessing and ours.labels == theirs.labels
    assert ours.fingerprint == theirs.fingerprint and ours.name == f"hf:{tmp_path}"


@pytest.mark.parametrize("scheme", ["hf", "timm:local-dir"])
def test_a_model_of_timm_that_transformers_saved_keeps_its_logits(scheme, tmp_path):
    import timm
    from timm.models import save_for_hf
    from transformers import AutoModelForImageClassification

    torch.manual_seed(0)
    network = _spread(timm.create_model("test_vit", num_classes=3), 0)
    save_for_hf(network, tmp_path / "timm", {"label_names": ["a", "b", "c"]}, safe_serialization=True)
    path = tmp_path / "timm" / "config.json"
    config = json.loads(path.read_text())
    del config["model_args"]  # as in the repositories of timm; transformers does not take "num_classes" there
    config["pretrained_cfg"]["fixed_input_size"] = True
    path.write_text(json.dumps(config))
    model = AutoModelForImageClassification.from_pretrained(path.parent).eval()
    model.save_pretrained(tmp_path / "saved")
    assert json.loads((tmp_path / "saved" / "config.json").read_text())["model_args"] is None
    source = load_source(f"{scheme}:{tmp_path / 'saved'}")
    assert source.labels.names == ("a", "b", "c")
    pixels = torch.rand(2, 3, *source.canvas)
    with torch.no_grad():
        expected = model(pixel_values=source.normalize(pixels)).logits
        torch.testing.assert_close(source(pixels), expected, rtol=1e-5, atol=1e-5)
    assert load_source(f"{scheme}:{tmp_path / 'saved'}", canvas=64).canvas == (64, 64)


def test_code_of_a_repository_is_not_run_and_not_asked_about(tmp_path, monkeypatch, capfd):
    save("DeiTForImageClassification", tmp_path)
    path = tmp_path / "config.json"
    code = {"model_type": "mine", "auto_map": {"AutoConfig": "mine.Config"}}
    path.write_text(json.dumps({**json.loads(path.read_text()), **code}))
    (tmp_path / "mine.py").write_text("raise SystemExit('it ran')")
    monkeypatch.setattr("builtins.input", lambda *_: pytest.fail("it asked"))
    with pytest.raises(UserError, match="contains custom code") as error:
        load_source(f"hf:{tmp_path}")
    assert "\n" not in str(error.value)


def test_a_network_that_fails_in_any_way_is_one_line(tmp_path, monkeypatch):
    import transformers

    save("DeiTForImageClassification", tmp_path)

    def forward(self, pixel_values=None, **options):
        raise TypeError("takes tokens\nand no pixels")

    monkeypatch.setattr(transformers.DeiTForImageClassification, "forward", forward)
    with pytest.raises(UserError, match="does not take 32x32 pixels: takes tokens$"):
        load_source(f"hf:{tmp_path}")
