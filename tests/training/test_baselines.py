"""The baselines: a new head on frozen features, and every weight; the given source does not change."""

import math

import pytest
import torch
from accelerate import Accelerator
from conftest import closed_source
from torch import nn
from torch.nn import functional as F

from clipvp import UserError, evaluate, fit, load_source
from clipvp.config.values import from_dict
from clipvp.data.batches import Batches, epoch_order
from clipvp.progress import Progress
from clipvp.training.baselines import extract_features, fit_linear_probe, head_classifier

NAMES = ["red thing", "green thing", "blue thing"]


@pytest.fixture(params=["tiny_timm", "tiny_hf"])
def source(request):
    return load_source(request.getfixturevalue(request.param), canvas=32)


def config(tmp_path=None, **train):
    train = {"epochs": 3, "batch_size": 16, "progress": False, **train}
    optim = {"lr": 0.01, "schedule": "constant"}
    return from_dict(
        {"optim": optim, "train": train, "seed": 1, "output": str(tmp_path and tmp_path / "run")}
    )


def decoded(task, source):
    accelerator = Accelerator()
    data = {
        s: Batches(task.tensors(s, source.resize, progress=False), accelerator)
        for s in ("train", "val", "test")
    }
    progress = Progress(False)
    features = {split: extract_features(source, data[split], 7, progress, split) for split in data}
    return features, {split: batches.labels for split, batches in data.items()}


@pytest.mark.parametrize("train_network", [False, True])
def test_a_new_head_starts_at_zero_and_knows_the_target_classes(train_network, source):
    classifier = head_classifier(source, NAMES, train_network)
    logits = classifier(torch.rand(2, 3, 32, 32))
    assert torch.equal(logits, torch.zeros(2, 3))
    assert classifier.source.labels.names == tuple(NAMES) and not classifier.source_is_frozen
    assert classifier.resize == source.resize  # the model's own preprocessing, and nothing more
    trained = [name for name, p in classifier.named_parameters() if p.requires_grad]
    assert len(trained) == (len(list(source.network.parameters())) if train_network else 2)


def test_features_are_in_order_and_what_the_head_is_given(source, tiny_task):
    features, _ = decoded(tiny_task, source)
    images = tiny_task.tensors("val", source.resize, progress=False).images.float() / 255
    with torch.no_grad():
        expected = torch.cat([source.encode(image[None]) for image in images])
    torch.testing.assert_close(features["val"], expected, rtol=1e-4, atol=1e-5)


def test_the_linear_probe_asks_the_network_once_an_image(source, tiny_task):
    seen = []
    hook = source.network.register_forward_pre_hook(lambda module, inputs: seen.append(len(inputs[0])))
    features, labels = decoded(tiny_task, source)
    assert sum(seen) == 60 + 18 + 25
    classifier = head_classifier(source, NAMES, train_network=False)
    classifier.source.network.register_forward_pre_hook(lambda *_: pytest.fail("the network is asked again"))
    seen.clear()
    fit_linear_probe(classifier, features, labels, config(epochs=4), Accelerator())
    hook.remove()
    assert seen == []


def test_the_linear_probe_is_a_plain_loop_over_features(source, tiny_task):
    features, labels = decoded(tiny_task, source)
    settings = config()
    classifier = head_classifier(source, NAMES, train_network=False)
    test, best = fit_linear_probe(classifier, features, labels, settings, Accelerator())
    head = nn.Linear(source.num_features, 3)
    nn.init.zeros_(head.weight), nn.init.zeros_(head.bias)
    optimizer = torch.optim.Adam(head.parameters(), lr=0.01)
    best_accuracy, kept = -1.0, None
    for epoch in range(3):
        for batch in epoch_order(60, 1, epoch).split(16):
            optimizer.zero_grad()
            F.cross_entropy(head(features["train"][batch]), labels["train"][batch]).backward()
            optimizer.step()
        accuracy = (head(features["val"]).argmax(1) == labels["val"]).double().mean().item()
        if accuracy > best_accuracy:
            best_accuracy, kept = accuracy, (epoch + 1, head.weight.detach().clone())
    assert best["acc1"] == best_accuracy and best["epoch"] == kept[0]
    torch.testing.assert_close(classifier.source.head.weight.detach(), kept[1])
    assert test["last"].acc1 == (head(features["test"]).argmax(1) == labels["test"]).double().mean().item()
    assert evaluate(classifier, tiny_task, progress=False).to_dict() == test["best_val"].to_dict()


def test_a_probe_moves_nothing_but_its_head(source, tiny_task):
    features, labels = decoded(tiny_task, source)
    classifier = head_classifier(source, NAMES, train_network=False)
    before = {name: value.clone() for name, value in classifier.source.network.state_dict().items()}
    classifier.train()
    classifier(torch.rand(4, 3, 32, 32)).sum().backward()
    fit_linear_probe(classifier, features, labels, config(), Accelerator())
    after = classifier.source.network.state_dict()
    assert all(torch.equal(before[name], after[name]) for name in before)
    assert classifier.source.head.weight.abs().sum() > 0


def test_finetuning_moves_weights_and_statistics_of_a_copy(source, tiny_task, tmp_path):
    given = {name: value.clone() for name, value in source.state_dict().items()}
    classifier = head_classifier(source, NAMES, train_network=True)
    start = {name: value.clone() for name, value in classifier.source.network.state_dict().items()}
    result = fit(classifier, tiny_task, config(tmp_path, epochs=4))
    moved = [
        name
        for name, value in classifier.source.network.state_dict().items()
        if not torch.equal(start[name], value)
    ]
    assert any("running_mean" in name for name in moved) and any("weight" in name for name in moved)
    assert all(torch.equal(given[name], value) for name, value in source.state_dict().items())
    assert not any(parameter.requires_grad for parameter in source.parameters()) and not source.training
    losses = [row["train_loss"] for row in result.history]
    assert losses[0] < 1.5 * math.log(3) and losses[-1] < losses[0]
    assert result.results["method"] == "fine-tuning" and result.results["saved_prompt"] is None
    parameters = sum(p.numel() for p in classifier.source.parameters())
    assert result.results["run_info"]["trainable_parameters"] == parameters
    assert not (tmp_path / "run" / "prompt").exists()


def test_finetuning_ends_with_the_best_weights_on_validation(source, tiny_task, tmp_path):
    classifier = head_classifier(source, NAMES, train_network=True)
    result = fit(classifier, tiny_task, config(tmp_path, epochs=4))
    metrics = result.results["metrics"]
    assert evaluate(classifier, tiny_task, "val", progress=False).acc1 == metrics["val.best"]["acc1"]
    assert evaluate(classifier, tiny_task, progress=False).to_dict() == metrics["test.best_val"]


def test_half_precision_weights_do_not_train():
    network = nn.Sequential(nn.Flatten(), nn.Linear(48, 5))
    source = closed_source(network, 5, precision="bf16")
    with pytest.raises(UserError, match="bf16 weights do not train; give fp32"):
        head_classifier(source, NAMES, train_network=True)
    probe = head_classifier(source, NAMES, train_network=False)
    assert probe(torch.rand(2, 3, 4, 4)).dtype == torch.float32 and probe.source.precision == "bf16"


def test_a_network_without_a_linear_layer_is_refused():
    source = closed_source(nn.Sequential(nn.Conv2d(3, 5, 4), nn.Flatten()), 5)
    with pytest.raises(UserError, match="does not end in a linear layer"):
        head_classifier(source, NAMES, train_network=False)
