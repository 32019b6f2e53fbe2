"""Fine-tuning: every weight trains, with a new head; the given source does not change."""

import math

import pytest
import torch
from conftest import closed_source
from torch import nn

from clipvp import UserError, evaluate, fit, load_source
from clipvp.config.values import from_dict
from clipvp.training.finetune import finetune_classifier

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


def test_a_new_head_starts_at_zero_and_knows_the_target_classes(source):
    classifier = finetune_classifier(source, NAMES)
    logits = classifier(torch.rand(2, 3, 32, 32))
    assert torch.equal(logits, torch.zeros(2, 3))
    assert classifier.source.labels.names == tuple(NAMES) and not classifier.source_is_frozen
    assert classifier.resize == source.resize  # the model's own preprocessing, and nothing more
    trained = [name for name, p in classifier.named_parameters() if p.requires_grad]
    assert len(trained) == len(list(source.network.parameters()))


def test_finetuning_moves_weights_and_statistics_of_a_copy(source, tiny_task, tmp_path):
    given = {name: value.clone() for name, value in source.state_dict().items()}
    classifier = finetune_classifier(source, NAMES)
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
    classifier = finetune_classifier(source, NAMES)
    result = fit(classifier, tiny_task, config(tmp_path, epochs=4))
    metrics = result.results["metrics"]
    assert evaluate(classifier, tiny_task, "val", progress=False).acc1 == metrics["val.best"]["acc1"]
    assert evaluate(classifier, tiny_task, progress=False).to_dict() == metrics["test.best_val"]


def test_half_precision_weights_do_not_train():
    network = nn.Sequential(nn.Flatten(), nn.Linear(48, 5))
    source = closed_source(network, 5, precision="bf16")
    with pytest.raises(UserError, match="bf16 weights do not train; give fp32"):
        finetune_classifier(source, NAMES)


def test_a_network_without_a_linear_layer_is_refused():
    source = closed_source(nn.Sequential(nn.Conv2d(3, 5, 4), nn.Flatten()), 5)
    with pytest.raises(UserError, match="does not end in a linear layer"):
        finetune_classifier(source, NAMES)
