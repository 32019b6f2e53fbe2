"""A prompt saved folded: a CLIP is loaded without its text tower, and classifies as before."""

import json

import pytest
import torch
from conftest import coloured_images

from clipvp import PromptedClassifier, Task, UserError, build_classifier, evaluate, load_source
from clipvp.config.values import from_dict
from clipvp.sources import text

NAMES = ["tench", "goldfish", "sea snake"]
TEXTS = {"templates": ["a photo of a {}.", "{}", "the {}."]}


@pytest.fixture
def task():
    images = [coloured_images(count, 3, seed=seed) for seed, count in enumerate((18, 9, 9))]
    return Task.from_dataset(*images, class_names=NAMES)


def classifier_of(source: str, mapping: dict, task, **more) -> PromptedClassifier:
    config = from_dict(
        {
            "source": {"name": source, **more},
            "mapping": mapping,
            "prompt": {"kind": "padding", "image_size": 16},
        }
    )
    classifier = build_classifier(config, task)
    with torch.no_grad():
        classifier.prompt.delta.normal_(generator=torch.Generator().manual_seed(0))
    if classifier.mapping.due(0):
        outputs = classifier.source_outputs(torch.rand(12, 3, 16, 16))
        statistic = classifier.mapping.statistic()
        statistic.add(outputs, torch.arange(12) % 3)
        classifier.mapping.fit(statistic)
    return classifier.eval()


@pytest.mark.parametrize("mapping", [{"kind": "blm", **TEXTS}, {"kind": "prototypes", **TEXTS}])
@pytest.mark.parametrize("model", ["open_clip_vit", "hf_clip", "hf_siglip"])
def test_a_clip_is_loaded_without_its_text_tower(model, mapping, task, tiny_model, tmp_path, monkeypatch):
    classifier = classifier_of(tiny_model(model), mapping, task)
    classifier.save_pretrained(tmp_path / "folded", folded=True)
    classifier.save_pretrained(tmp_path / "plain")
    config = json.loads((tmp_path / "folded" / "config.json").read_text())
    assert config["source"]["text_tower"] is False
    images = torch.rand(5, 3, 16, 16, generator=torch.Generator().manual_seed(1))

    def encode(*given, **more):
        raise AssertionError("texts were encoded")

    with monkeypatch.context() as patch:
        patch.setattr(text, "encode_in_batches", encode)
        patch.setattr("clipvp.sources.clip.text_embeddings", encode)
        loaded = PromptedClassifier.from_pretrained(tmp_path / "folded")
        with torch.no_grad():
            torch.testing.assert_close(loaded(images), classifier(images), rtol=1e-4, atol=1e-4)
        names = [name for name, _ in loaded.source.named_parameters()]
        assert names and not [name for name in names if "text_model" in name or "transformer.token" in name]
        pictures = [image for image, _ in coloured_images(4, 3, seed=9)]
        for one, two in zip(loaded.predict(pictures), classifier.predict(pictures), strict=True):
            assert [row["label"] for row in one] == [row["label"] for row in two]
            assert one[0]["source_label"] == two[0]["source_label"]
        result = evaluate(loaded, task, "test", progress=False)
    assert result.acc1 == evaluate(classifier, task, "test", progress=False).acc1
    loaded.save_pretrained(tmp_path / "again")
    again, folded = (
        json.loads((tmp_path / name / "config.json").read_text()) for name in ("again", "folded")
    )
    assert again == folded
    with pytest.raises(UserError, match="loaded without its text tower"):
        loaded.source(torch.zeros(1, 3, *loaded.source.canvas))


def test_other_weights_of_the_image_tower_are_refused(task, tiny_model, tmp_path):
    classifier = classifier_of(tiny_model("open_clip_vit"), {"kind": "blm", **TEXTS}, task)
    classifier.save_pretrained(tmp_path, folded=True)
    with pytest.raises(UserError, match="another version of the model"):
        PromptedClassifier.from_pretrained(tmp_path, source=tiny_model("open_clip_vit", 7))


def test_a_closed_source_is_saved_folded_too(task, tiny_timm, tmp_path):
    classifier = classifier_of(tiny_timm, {"kind": "blm"}, task, canvas=32)
    classifier.save_pretrained(tmp_path, folded=True)
    loaded = PromptedClassifier.from_pretrained(tmp_path)
    images = torch.rand(5, 3, 16, 16)
    with torch.no_grad():
        torch.testing.assert_close(loaded(images), classifier(images), rtol=1e-4, atol=1e-4)
    assert loaded.mapping.kind == "folded" and loaded.source.has_logits


def test_a_closed_source_has_no_text_tower_to_leave_out(tiny_timm):
    with pytest.raises(UserError, match="text_tower"):
        load_source(tiny_timm, canvas=32, text_tower=False)
