"""The source's own weights: nothing changes at the start, what trains is saved, runs resume and processes agree."""

import json
from pathlib import Path

import pytest
import torch
from conftest import closed_source, coloured_images, left_by, small_config, small_task
from torch import nn
from torch.nn import functional as F

from clipvp import PromptedClassifier, Task, UserError, build_classifier, fit
from clipvp.demo.look import load_side_by_side
from clipvp.training.step import Trainer
from clipvp.weights.attention import SplitAttention
from clipvp.weights.dropout import ImageDropout, image_keys
from clipvp.weights.full import FullWeights
from clipvp.weights.lora import LoraWeights

HEAD = {
    "prompt": {"kind": "none"},
    "mapping": {"kind": "linear"},
    "optim": {"lr": 0.01, "schedule": "constant"},
}
LORA = {"kind": "lora", "rank": 2, "dropout": 0.25}


def run_of(source: str, output: Path, weights: dict, **more):
    return small_config(source, output, **HEAD | {"weights": weights} | more)


SOURCES = [
    "tiny_timm",
    "tiny_timm_vit",
    "tiny_hf_vit",
    "hf_clip",
    "hf_siglip",
    "open_clip_vit",
    "open_clip_timm",
]


@pytest.fixture
def source_name(request, tiny_model):
    name = request.param
    return request.getfixturevalue(name) if name.startswith("tiny") else tiny_model(name)


def features(classifier, images):
    with torch.no_grad():
        return classifier.eval().source_outputs(images)


@pytest.mark.parametrize("source_name", SOURCES, indirect=True)
def test_adapters_start_as_the_source_and_each_of_them_counts(source_name, tiny_task, tmp_path):
    kinds = {"kind": "frozen"}, {**LORA, "dropout": 0.0}
    frozen, lora = (run_of(source_name, tmp_path, weights) for weights in kinds)
    frozen.source.canvas = lora.source.canvas = 32 if "timm:" in source_name else None
    one, two = build_classifier(frozen, tiny_task), build_classifier(lora, tiny_task)
    images = torch.rand(2, 3, *one.resize.size)
    torch.testing.assert_close(features(two, images), features(one, images), rtol=1e-4, atol=1e-5)
    assert two.source.fingerprint == one.source.fingerprint
    trained = {name: p for name, p in two.source.named_parameters() if p.requires_grad}
    assert trained and all(".lora_" in name for name in trained)
    with torch.no_grad():
        for value in trained.values():
            value.add_(0.1)
    outputs = two.source_outputs(images).square().sum()
    gradients = torch.autograd.grad(outputs, list(trained.values()))
    # A layer may lie behind a ReLU that is closed.
    assert sum(bool(gradient.any()) for gradient in gradients) > 0.7 * len(gradients)


def test_an_adapter_is_the_formula_of_lora():
    torch.manual_seed(0)
    network = nn.Sequential(nn.Flatten(), nn.Linear(48, 8), nn.Tanh(), nn.Linear(8, 5))
    first, head = network[1].weight.clone(), network[3]
    source = closed_source(network, 5)
    LoraWeights(rank=2, alpha=3, scaling="root").apply(source, seed=4)
    tensors = dict(source.weights.tensors(source.network))
    [a] = [value for name, value in tensors.items() if "lora_A" in name]
    [b] = [value for name, value in tensors.items() if "lora_B" in name]
    assert a.shape == (2, 48) and a.abs().max() <= 48**-0.5 and not b.any() and len(tensors) == 2
    b.data.uniform_(-1, 1)
    pixels = torch.rand(3, 3, 4, 4)
    x = source.normalize(pixels).flatten(1)
    expected = head(torch.tanh(F.linear(x, first + 3 / 2**0.5 * b @ a, network[1].base_layer.bias)))
    torch.testing.assert_close(source(pixels), expected)


def test_only_the_named_layers_get_adapters():
    """The name of one layer may be the end of another's."""
    inner = nn.Sequential(nn.Identity(), nn.Tanh())
    network = nn.Sequential(nn.Flatten(), nn.Linear(48, 8), inner, nn.Linear(8, 5))
    weights = LoraWeights(rank=2, targets="linear")
    weights.apply(closed_source(network, 5))
    assert {name.partition(".")[0] for name in weights.tensors(network)} == {"1"}
    assert type(network[2][1]) is nn.Tanh


def test_a_split_attention_is_the_attention():
    whole = nn.MultiheadAttention(12, 3, batch_first=True).eval()
    nn.init.uniform_(whole.in_proj_bias)
    assert SplitAttention.fits(whole)
    split, x = SplitAttention(whole), torch.rand(2, 5, 12)
    torch.testing.assert_close(split(x, x, x)[0], whole(x, x, x, need_weights=False)[0])


def test_dropout_depends_on_seed_epoch_and_image_alone():
    images = torch.arange(6)
    x = torch.rand(6, 7, 5)

    def dropped(rows, seed=1, epoch=2):
        with ImageDropout(image_keys(seed, epoch, images[rows])):
            return F.dropout(x[rows], 0.25), F.dropout(x[rows], 0.25)

    whole, second = dropped(slice(0, 6))
    parts = [dropped(slice(0, 2))[0], dropped(slice(2, 6))[0]]
    assert torch.equal(torch.cat(parts), whole)
    for other in (second, dropped(slice(0, 6), seed=2)[0], dropped(slice(0, 6), epoch=3)[0]):
        assert not torch.equal(other, whole)
    assert not torch.equal(whole[0] == 0, whole[1] == 0)
    many = torch.ones(400, 100)
    with ImageDropout(image_keys(0, 0, torch.arange(400))):
        kept = F.dropout(many, 0.25)
        assert torch.equal(F.dropout(many, 0.25, training=False), many)
    assert (kept != 0).float().mean().item() == pytest.approx(0.75, abs=0.01)
    assert kept.max().item() == pytest.approx(1 / 0.75)


@pytest.mark.parametrize("weights", [LORA, {"kind": "full"}], ids=["lora", "full"])
def test_a_run_is_saved_loaded_and_predicts(weights, tiny_timm, tiny_task, tmp_path):
    run = run_of(tiny_timm, tmp_path / "run", weights)
    classifier = build_classifier(run, tiny_task)
    before = {name: value.clone() for name, value in classifier.source.network.state_dict().items()}
    result = fit(classifier, tiny_task, run)
    assert result.results["metrics"]["test.last"]["acc1"] > 0.5  # chance is 1/3
    moved = {
        name
        for name, value in classifier.source.network.state_dict().items()
        if not torch.equal(before[name], value)
    }
    kept = set(classifier.source.weights.tensors(classifier.source.network))
    assert moved and moved <= kept
    assert any("running_mean" in name for name in moved) == (weights["kind"] == "full")
    assert all(".lora_" in name for name in kept) == (weights["kind"] == "lora")
    loaded = PromptedClassifier.from_pretrained(tmp_path / "run" / "prompt")
    pictures = [image for image, _ in coloured_images(4, 3, seed=2)]
    assert loaded.predict(pictures) == classifier.predict(pictures)
    again = loaded.save_pretrained(tmp_path / "again")
    assert again is None and loaded.source.weights.settings == classifier.source.weights.settings
    files = [tmp_path / name / "model.safetensors" for name in ("run/prompt", "again")]
    assert files[0].read_bytes() == files[1].read_bytes()


def test_a_clip_with_adapters_reads_its_own_texts(tiny_model, tmp_path):
    task = Task.from_dataset(
        coloured_images(36, 3),
        coloured_images(12, 3, seed=1),
        coloured_images(9, 3, seed=2),
        class_names=list("abc"),
    )
    sections = {
        "prompt": {"kind": "none"},
        "mapping": {"kind": "identity"},
        "optim": {"name": "adamw", "lr": 0.01},
    }
    run = small_config(
        tiny_model("open_clip_vit"), tmp_path / "run", weights={**LORA, "targets": "qkv"}, **sections
    )
    run.source.canvas = None
    classifier = build_classifier(run, task)
    result = fit(classifier, task, run)
    losses = [row["train_loss"] for row in result.history]
    assert losses[-1] < losses[0]
    folder = tmp_path / "folded"
    classifier.save_pretrained(folder, folded=True)  # without the text tower
    images = torch.rand(2, 3, *classifier.resize.size)
    with torch.no_grad():
        expected = classifier.eval()(images)
        torch.testing.assert_close(
            PromptedClassifier.from_pretrained(folder)(images), expected, rtol=1e-4, atol=1e-4
        )


class Stopped(Exception):
    pass


@pytest.mark.parametrize("weights", [LORA, {"kind": "full"}], ids=["lora", "full"])
def test_a_run_with_weights_goes_on_to_the_same_bits(weights, tiny_timm_vit, tmp_path, monkeypatch):
    task = small_task()
    fit(build_classifier(run := run_of(tiny_timm_vit, tmp_path / "one", weights), task), task, run)
    run = run_of(tiny_timm_vit, tmp_path / "two", weights, resume="auto")
    end, epochs = Trainer.end_epoch, []

    def stopping(self):
        end(self)
        epochs.append(self.state.epoch)
        if len(epochs) == 2:
            raise Stopped

    monkeypatch.setattr(Trainer, "end_epoch", stopping)
    with pytest.raises(Stopped):
        fit(build_classifier(run, task), task, run)
    fit(build_classifier(run, task), task, run)
    assert epochs == [1, 2, 2, 3]  # from the checkpoint of the first epoch
    one, two = left_by(tmp_path / "one"), left_by(tmp_path / "two")
    assert one[0] == two[0] and one[1] == two[1]


def test_parts_of_a_step_do_not_change_a_run_with_dropout(tiny_timm_vit, tmp_path):
    task, states = small_task(), []
    for parts in (1, 3):
        run = run_of(
            tiny_timm_vit,
            tmp_path / f"{parts}",
            {**LORA, "dropout": 0.5},
            train={"epochs": 2, "gradient_accumulation_steps": parts},
        )
        classifier = build_classifier(run, task)
        fit(classifier, task, run)
        states.append(classifier.trained_state())
    for name, value in states[0].items():
        torch.testing.assert_close(states[1][name], value, rtol=1e-2, atol=1e-4)


def test_weights_that_cannot_train_are_one_line(tiny_timm, tiny_task, tmp_path):
    half = closed_source(nn.Sequential(nn.Flatten(), nn.Linear(48, 5)), 5, precision="bf16")
    with pytest.raises(UserError, match="bf16 weights do not train; give fp32"):
        FullWeights().apply(half)
    with pytest.raises(UserError, match="has no qkv layers; give linear or all"):
        build_classifier(run_of(tiny_timm, tmp_path, {**LORA, "targets": "qkv"}), tiny_task)
    with pytest.raises(UserError, match="weights.kind|unknown weights 'lorra'; did you mean 'lora'"):
        run_of(tiny_timm, tmp_path, {"kind": "lorra"})
    with pytest.raises(UserError, match="weights.dropout: 1"):
        run_of(tiny_timm, tmp_path, {**LORA, "dropout": 1.0})


def test_results_say_which_weights_trained(tiny_timm, tiny_task, tmp_path):
    run = run_of(tiny_timm, tmp_path / "run", LORA, train={"epochs": 1})
    classifier = build_classifier(run, tiny_task)
    fit(classifier, tiny_task, run)
    results = json.loads((tmp_path / "run" / "results.json").read_text())
    assert results["weights"] == {"kind": "lora", **classifier.source.weights.settings}
    adapters = sum(p.numel() for name, p in classifier.source.named_parameters() if ".lora_" in name)
    head = sum(p.numel() for p in classifier.mapping.parameters())
    assert results["run_info"]["trainable_parameters"] == adapters + head


@pytest.mark.parametrize("weights", [LORA, {"kind": "full"}], ids=["lora", "full"])
def test_a_loaded_source_is_not_shared_with_trained_weights(weights, tiny_timm, tiny_task, tmp_path):
    pictures = [image for image, _ in coloured_images(4, 3, seed=2)]
    folders, alone = {}, {}
    for name, own in (("head", {"kind": "frozen"}), ("weights", weights)):
        run = run_of(tiny_timm, tmp_path / name, own, train={"epochs": 1})
        fit(build_classifier(run, tiny_task), tiny_task, run)
        folders[name] = str(tmp_path / name / "prompt")
        alone[name] = PromptedClassifier.from_pretrained(folders[name]).predict(pictures)
    for names in (("head", "weights"), ("weights", "head")):
        side_by_side = load_side_by_side([folders[name] for name in names])
        for name, classifier in zip(names, side_by_side, strict=True):
            assert classifier.predict(pictures) == alone[name]
        with pytest.raises(UserError, match="not shared"):
            PromptedClassifier.from_pretrained(folders[names[1]], source=side_by_side[0].source)
