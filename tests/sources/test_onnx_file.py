"""Sources in ONNX files: the logits are the file's, what the file says is used, and what does not fit is refused."""

import json

import numpy as np
import pytest
import torch
from conftest import photo, small_config, trained

from clipvp import PromptedClassifier, UserError, build_classifier, fit, load_source
from clipvp.config.schema import SourceConfig
from clipvp.registry import PROMPTS

onnx = pytest.importorskip("onnx")
pytest.importorskip("onnxruntime")

WEIGHT = np.random.default_rng(0).normal(size=(4, 12)).astype(np.float32)
NAMES = ["ant", "bee", "cat", "dog"]
METADATA = {"mean": [0.5, 0.4, 0.3], "std": [0.2, 0.2, 0.4], "class_names": NAMES}


def write(
    path,
    size=(8, 8),
    batch="n",
    last=False,
    kind="FLOAT",
    probabilities=False,
    metadata=METADATA,
    channels=3,
    raw=False,
):
    """Write a model of four labels: means of 2 x 2 fields of the pixels, then a linear layer."""
    from onnx import TensorProto, helper, numpy_helper

    sides = [batch, *size, channels] if last else [batch, channels, *size]
    values = [("weight", WEIGHT.T.copy())]
    nodes = [helper.make_node("Cast", ["images"], ["floats"], to=TensorProto.FLOAT)]
    nodes += [
        helper.make_node("Transpose", ["floats"], ["maps"], perm=[0, 3, 1, 2] if last else [0, 1, 2, 3])
    ]
    if raw:  # no linear layer
        nodes += [helper.make_node("Identity", ["maps"], ["scores"])]
    else:
        nodes += [helper.make_node("AveragePool", ["maps"], ["means"], kernel_shape=[4, 4], strides=[4, 4])]
        nodes += [helper.make_node("Flatten", ["means"], ["flat"])]
        nodes += [helper.make_node("MatMul", ["flat", "weight"], ["logits"])]
        nodes += [helper.make_node("Softmax" if probabilities else "Identity", ["logits"], ["scores"])]
    graph = helper.make_graph(
        nodes,
        "small",
        [helper.make_tensor_value_info("images", getattr(TensorProto, kind), sides)],
        [helper.make_tensor_value_info("scores", TensorProto.FLOAT, None)],
        [numpy_helper.from_array(value, name) for name, value in values],
    )
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)], ir_version=9)
    for key, value in metadata.items():
        model.metadata_props.add(key=key, value=value if isinstance(value, str) else json.dumps(value))
    onnx.save(model, path)
    return f"onnx:{path}"


def by_hand(pixels: torch.Tensor, mean, std) -> torch.Tensor:
    pixels = (pixels - torch.tensor(mean).view(3, 1, 1)) / torch.tensor(std).view(3, 1, 1)
    return torch.nn.functional.avg_pool2d(pixels, 4).flatten(1) @ torch.from_numpy(WEIGHT).T


@pytest.fixture
def pixels():
    return torch.rand(5, 3, 8, 8, generator=torch.Generator().manual_seed(0))


@pytest.mark.parametrize("given", [{}, {"last": True}, {"batch": 2}, {"probabilities": True}])
def test_logits_are_the_models(given, pixels, tmp_path):
    source = load_source(write(tmp_path / "model.onnx", **given))
    assert source.labels.names == tuple(NAMES) and source.canvas == (8, 8)
    expected = by_hand(pixels, METADATA["mean"], METADATA["std"])
    found = source(pixels)
    if given.get("probabilities"):
        found, expected = found.softmax(1), expected.softmax(1)
    torch.testing.assert_close(found, expected, rtol=1e-4, atol=1e-5)
    assert source(pixels[:0]).shape == (0, 4)


def test_a_model_of_bytes_gets_bytes(pixels, tmp_path):
    source = load_source(write(tmp_path / "model.onnx", kind="UINT8", last=True, metadata={}))
    expected = by_hand((pixels * 255).round(), [0.0] * 3, [1.0] * 3)
    torch.testing.assert_close(source(pixels), expected, rtol=1e-4, atol=1e-2)
    assert source.labels.names == ("label 0", "label 1", "label 2", "label 3")


def test_the_config_says_what_the_file_does_not(pixels, tmp_path):
    (tmp_path / "names.txt").write_text("\n".join(NAMES))
    name = write(tmp_path / "model.onnx", size=("h", "w"), metadata={})
    options = {"label_names": str(tmp_path / "names.txt"), "mean": [0.5], "std": [0.25]}
    source = load_source(name, canvas=8, **options)
    assert source.labels.names == tuple(NAMES)
    torch.testing.assert_close(source(pixels), by_hand(pixels, [0.5] * 3, [0.25] * 3), rtol=1e-4, atol=1e-4)
    assert SourceConfig(name=name, **options).mean == [0.5]


def run_of(tmp_path, **sections):
    run = small_config(write(tmp_path / "model.onnx"), tmp_path / "run", **sections)
    run.source.canvas = None
    return run


def test_a_prompt_is_trained_without_gradient_saved_and_loaded(tiny_task, tmp_path):
    train = {"gradient": "spsa", "draws": 3, "epochs": 6}
    run = run_of(tmp_path, prompt={"kind": "full"}, train=train, optim={"lr": 0.05})
    classifier, result = trained(run, tiny_task)
    assert result.history[-1]["train_loss"] < 0.9 * result.history[0]["train_loss"]
    loaded = PromptedClassifier.from_pretrained(tmp_path / "run" / "prompt")
    images = [photo(20, 30, seed) for seed in range(3)]
    assert loaded.predict(images) == classifier.eval().predict(images)
    write(tmp_path / "model.onnx", metadata={**METADATA, "std": [1.0]})
    with pytest.raises(UserError, match="another version of the model"):
        PromptedClassifier.from_pretrained(tmp_path / "run" / "prompt")


def test_no_gradient_and_no_features(tiny_task, tmp_path):
    run = run_of(tmp_path, prompt={"kind": "padding", "image_size": 4})
    with pytest.raises(
        UserError, match="backpropagation needs a gradient, .* allowed: random_directions, spsa"
    ):
        fit(build_classifier(run, tiny_task), tiny_task, run)
    run = run_of(tmp_path, prompt={"kind": "none"}, mapping={"kind": "logistic"})
    with pytest.raises(UserError, match="gives logits and no features"):
        build_classifier(run, tiny_task)
    for kind in ("full", "lora"):
        run = run_of(tmp_path, weights={"kind": kind})
        with pytest.raises(
            UserError, match="weights.kind: .* gives no gradient, so its weights do not train"
        ):
            build_classifier(run, tiny_task)
    run = run_of(tmp_path, prompt={"kind": "none"})
    run.source.compile = True
    with pytest.raises(UserError, match="source.compile: .* cannot be compiled"):
        build_classifier(run, tiny_task)
    # A mapping that trains on logits needs no gradient of the source.
    run = run_of(tmp_path, prompt={"kind": "none"}, mapping={"kind": "linear", "takes": "logits"})
    assert fit(build_classifier(run, tiny_task), tiny_task, run).results["queries"]["features"] == 103


@pytest.mark.parametrize(
    "given, options, message",
    [
        (
            {"channels": 4, "raw": True},
            {},
            "its inputs are images tensor.float. .* give a model with one input of images",
        ),
        ({"kind": "INT64"}, {}, "its inputs are images tensor.int64."),
        ({"raw": True}, {}, "its first output is float32 .* not one row of scores an image"),
        ({}, {"canvas": 16}, "source.canvas: .* takes 8x8 pixels, not 16x16"),
        ({"size": ("h", "w")}, {}, "source.canvas: .* takes images of any size; give one"),
        ({"metadata": {}}, {}, "source.mean: .* takes floats and does not say"),
        ({"metadata": {"mean": [0.5]}}, {}, "source.std: .* takes floats and does not say"),
        (
            {"kind": "UINT8", "last": True},
            {"mean": [0.5], "std": [1]},
            "takes bytes, which it normalises itself",
        ),
        ({}, {"label_names": ["a", "b"]}, "source.label_names: 2 names for a model that scores 4 labels"),
        ({}, {"label_names": ["a", "b", "a", "c"]}, "name 2, 'a', is there twice"),
        ({}, {"mean": [0.5, 0.5], "std": [1]}, "mean has 2 values"),
        ({"metadata": {**METADATA, "class_names": "[ant"}}, {}, "metadata 'class_names' is not JSON"),
        (
            {"metadata": {**METADATA, "class_names": ["ant"]}},
            {},
            "^source 'onnx:.*model.onnx': its metadata 'class_names': 1 names for a model that scores 4 labels",
        ),
        (
            {"metadata": {**METADATA, "class_names": '"names.txt"'}},
            {},
            "'class_names' is not a list of names",
        ),
        (
            {"size": ("h", "w")},
            {"canvas": 1_000_000},
            "source.canvas: images of 1000000x1000000 pixels .* memory",
        ),
        ({}, {"label_name": ["a"]}, "unknown value 'label_name'; did you mean 'label_names'"),
        ({}, {"revision": "main"}, "is a file, which has no revisions"),
    ],
)
def test_what_does_not_fit_is_refused(given, options, message, tmp_path):
    name = write(tmp_path / "model.onnx", **given)
    with pytest.raises(UserError, match=message) as error:
        load_source(name, **options)
    assert "\n" not in str(error.value)


def test_a_file_that_is_none_is_refused(tmp_path):
    with pytest.raises(UserError, match="does not exist"):
        load_source(f"onnx:{tmp_path / 'missing.onnx'}")
    with pytest.raises(UserError, match="is a folder"):
        load_source(f"onnx:{tmp_path}")
    model = onnx.load(write(tmp_path / "nan.onnx").removeprefix("onnx:"))
    weight = model.graph.initializer[0]
    weight.raw_data = np.full((12, 4), np.nan, np.float32).tobytes()
    onnx.save(model, tmp_path / "nan.onnx")
    with pytest.raises(UserError, match="answers with NaN"):
        load_source(f"onnx:{tmp_path / 'nan.onnx'}")
    (tmp_path / "text.onnx").write_text("not a model")
    with pytest.raises(UserError, match="cannot be read") as error:
        load_source(f"onnx:{tmp_path / 'text.onnx'}")
    assert "\n" not in str(error.value)


def test_a_prompt_on_it_is_not_exported(tmp_path):
    from clipvp.export import export_onnx
    from clipvp.mappings.random import RandomMapping

    source = load_source(write(tmp_path / "model.onnx"))
    prompt = PROMPTS.get("none")(source.canvas)
    classifier = PromptedClassifier(prompt, source, RandomMapping(4, 4), NAMES, share_border=False).eval()
    with pytest.raises(
        UserError, match="is not computed by torch, so a prompt on it cannot be exported"
    ) as error:
        export_onnx(classifier, tmp_path / "out.onnx")
    assert "\n" not in str(error.value) and not (tmp_path / "out.onnx").exists()


@pytest.mark.slow
def test_what_export_writes_is_a_source(tiny_timm, tmp_path):
    pytest.importorskip("onnxscript")
    from clipvp.export import export_onnx
    from clipvp.mappings.random import RandomMapping

    inner = load_source(tiny_timm, canvas=32)
    prompt = PROMPTS.get("padding")(inner.canvas, (16, 16))
    with torch.no_grad():
        prompt.delta.normal_(generator=torch.Generator().manual_seed(0))
    classifier = PromptedClassifier(prompt, inner, RandomMapping(20, 4), NAMES, share_border=False).eval()
    export_onnx(classifier, tmp_path / "model.onnx")
    source = load_source(f"onnx:{tmp_path / 'model.onnx'}")
    assert source.labels.names == tuple(NAMES) and source.resize == classifier.resize
    pixels = (torch.rand(5, 3, 16, 16) * 255).round() / 255
    with torch.no_grad():
        expected = classifier(pixels).softmax(1)
    torch.testing.assert_close(source(pixels).softmax(1), expected, rtol=1e-3, atol=1e-4)
