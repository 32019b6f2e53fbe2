"""The ONNX file and the classifier agree, for closed and for text label spaces."""

import json

import numpy as np
import pytest
import torch
from conftest import full_disk, photo

from clipvp import PromptedClassifier, UserError, export, load_source
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


def test_weights_that_do_not_fit_into_the_file_are_beside_it(tiny_timm, tmp_path, monkeypatch):
    classifier = make(tiny_timm, padded)
    export_onnx(classifier, tmp_path / "small.onnx")
    monkeypatch.setattr(export, "LARGEST", 1000)
    assert export_onnx(classifier, tmp_path / "large.onnx") <= 1e-4
    assert sorted(path.name for path in tmp_path.iterdir()) == ["large.onnx", "large.onnx.data", "small.onnx"]
    size = {path.name: path.stat().st_size for path in tmp_path.iterdir()}
    weights = sum(value.nbytes for value in classifier.source.network.parameters())
    assert size["large.onnx.data"] > 0.9 * weights and size["large.onnx"] < size["small.onnx"] - 0.9 * weights
    (tmp_path / "moved").mkdir()
    for name in ("large.onnx", "large.onnx.data"):
        (tmp_path / name).rename(tmp_path / "moved" / name)
    pixels = np.random.default_rng(0).integers(0, 256, (3, *classifier.prompt.image_size, 3), np.uint8)
    found = [
        onnxruntime.InferenceSession(tmp_path / name).run(None, {"images": pixels})[0]
        for name in ("small.onnx", "moved/large.onnx")
    ]
    np.testing.assert_array_equal(*found)


def test_graph_and_weights_are_written_together_or_not_at_all(tmp_path):
    (tmp_path / "made").mkdir()
    file, path = tmp_path / "made" / "a.onnx", tmp_path / "a.onnx"
    weights = file.with_name("a.onnx.data")
    file.write_bytes(b"graph"), weights.write_bytes(bytes(100))
    export._put(file, path)
    assert path.read_bytes() == b"graph" and path.with_name("a.onnx.data").read_bytes() == bytes(100)
    file.write_bytes(b"other"), weights.write_bytes(bytes(5000))
    with full_disk(1000), pytest.raises(OSError, match="cannot write"):
        export._put(file, path)
    assert path.read_bytes() == b"graph" and path.with_name("a.onnx.data").read_bytes() == bytes(100)
    assert sorted(entry.name for entry in tmp_path.iterdir()) == ["a.onnx", "a.onnx.data", "made"]


def test_a_file_that_onnxruntime_cannot_run_is_told_in_one_line(tiny_timm, tmp_path, monkeypatch):
    class FirstOfTwo(PaddingPrompt):
        def forward(self, images):
            return (
                super().forward(images).view(2, 3, *self.canvas)
            )  # true of the two images of the export alone

    classifier = make(
        tiny_timm, lambda source: FirstOfTwo(source.canvas, [side // 2 for side in source.canvas])
    )
    with pytest.raises(
        UserError, match="onnxruntime cannot run the exported file: .*; it was not written"
    ) as error:
        export_onnx(classifier, tmp_path / "model.onnx")
    assert "\n" not in str(error.value) and not list(tmp_path.iterdir())


def test_what_cannot_be_exported_is_told(tiny_timm, tmp_path):
    with pytest.raises(UserError, match=r"\.onnx"):
        export_onnx(make(tiny_timm, padded), tmp_path / "model.bin")
    with pytest.raises(ValueError, match="share_border=False"):
        export_onnx(make(tiny_timm, padded, share_border=True), tmp_path / "model.onnx")
