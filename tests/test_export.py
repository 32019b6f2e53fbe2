"""The ONNX file and the classifier agree, for closed and for text label spaces."""

import json

import numpy as np
import pytest
import torch
from conftest import photo

from clipvp import PromptedClassifier, UserError, load_source
from clipvp.export import export_onnx
from clipvp.mappings.random import RandomMapping
from clipvp.prompts.border import BorderPrompt
from clipvp.prompts.padding import PaddingPrompt

NAMES = ["red cat", "grün", "ship"]

pytest.importorskip("onnx")
onnxruntime = pytest.importorskip("onnxruntime")
pytest.importorskip("onnxscript")


def padded(source) -> PaddingPrompt:
    return PaddingPrompt(source.canvas, [side // 2 for side in source.canvas])


def bordered(source) -> BorderPrompt:
    return BorderPrompt(source.canvas, 4, scale=source.preprocessing.std)


def make(name: str, prompt, share_border: bool = False) -> PromptedClassifier:
    texts = {} if name.startswith("timm") else {"class_names": NAMES, "templates": ["a {}.", "the {}."]}
    source = load_source(name, canvas=32, **texts)
    prompt = prompt(source)
    with torch.no_grad():
        prompt.delta.normal_(generator=torch.Generator().manual_seed(0))
    return PromptedClassifier(
        prompt, source, RandomMapping(len(source.labels), 3), NAMES, share_border
    ).eval()


@pytest.mark.parametrize("kind, prompt", [("timm", padded), ("hf_clip", bordered), ("open_clip_vit", padded)])
def test_onnx_and_classifier_agree(kind, prompt, tiny_timm, tiny_model, tmp_path):
    classifier = make(tiny_timm if kind == "timm" else tiny_model(kind), prompt)
    worst = export_onnx(classifier, tmp_path / "model.onnx", logits=kind == "timm")
    assert worst <= 1e-4
    session = onnxruntime.InferenceSession(tmp_path / "model.onnx", providers=["CPUExecutionProvider"])
    metadata = session.get_modelmeta().custom_metadata_map
    assert json.loads(metadata["class_names"]) == NAMES
    pictures = [photo(30, 40, seed) for seed in range(7)]
    for count in (1, 7):
        images = np.stack([classifier.resize(picture) for picture in pictures[:count]])
        (found,) = session.run(None, {"images": images})
        with torch.no_grad():
            expected = classifier(torch.from_numpy(images).permute(0, 3, 1, 2).float() / 255)
        expected = expected if kind == "timm" else expected.softmax(1)
        np.testing.assert_allclose(found, expected.numpy(), atol=1e-4, rtol=1e-4)


def test_what_cannot_be_exported_is_told(tiny_timm, tmp_path):
    with pytest.raises(UserError, match=r"\.onnx"):
        export_onnx(make(tiny_timm, padded), tmp_path / "model.bin")
    with pytest.raises(ValueError, match="share_border=False"):
        export_onnx(make(tiny_timm, padded, share_border=True), tmp_path / "model.onnx")
