"""A mapping on features, as a plug-in registers it: trained, saved and loaded as every other one."""

import json
from dataclasses import dataclass

import pytest
import torch
from conftest import trained
from torch import nn
from torch.nn import functional as F

from clipvp import PromptedClassifier, UserError, build_classifier, evaluate
from clipvp.config.schema import MappingConfig
from clipvp.config.values import from_dict, to_dict
from clipvp.data.batches import epoch_order
from clipvp.mappings.base import LabelMapping
from clipvp.registry import MAPPINGS


@dataclass
class LinearConfig(MappingConfig):
    """A linear layer on the features.

    Args:
        bias: Add a number to each class's logit.
    """

    kind: str = "linear_features"
    bias: bool = True


class LinearFeatures(LabelMapping):
    """Features times a matrix that trains; it starts at zero."""

    takes = "features"

    def __init__(self, num_source: int, num_target: int, bias: bool = True):
        super().__init__(num_source, num_target, bias=bias)
        self.layer = nn.Linear(num_source, num_target, bias=bias)
        for parameter in self.layer.parameters():
            nn.init.zeros_(parameter)

    @classmethod
    def from_config(cls, config, source, class_names, seed):
        return cls(source.num_features, len(class_names), bias=config.bias)

    def forward(self, outputs):
        return self.layer(outputs)


@pytest.fixture(autouse=True)
def registered():
    MAPPINGS.register("linear_features", LinearFeatures, config=LinearConfig)
    yield
    MAPPINGS.unregister("linear_features")


def probe(config, **sections):
    """Return the config of a run without a prompt, in which the mapping alone trains."""
    mapping = {"kind": "linear_features", **sections.pop("mapping", {})}
    return config(prompt={"kind": "none"}, mapping=mapping, **sections)


@pytest.mark.parametrize("bias", [True, False])
def test_alone_it_is_a_plain_loop_over_features(bias, config, tiny_task):
    run = probe(config, mapping={"bias": bias}, train={"epochs": 12, "protocol": "paper"})
    classifier, result = trained(run, tiny_task)
    source = classifier.source
    train = tiny_task.tensors("train", classifier.resize, progress=False)
    with torch.no_grad():
        features = source.encode(train.images.float() / 255)
    layer = nn.Linear(features.shape[1], 3, bias=bias)
    for parameter in layer.parameters():
        nn.init.zeros_(parameter)
    optimizer = torch.optim.Adam(layer.parameters(), lr=0.1)
    for epoch in range(12):
        for batch in epoch_order(60, run.seed, epoch).split(16):
            optimizer.zero_grad()
            F.cross_entropy(layer(features[batch]), train.labels[batch]).backward()
            optimizer.step()
    for name, value in layer.state_dict().items():
        found = classifier.mapping.layer.state_dict()[name]
        torch.testing.assert_close(found, value, rtol=1e-3, atol=1e-5)
    assert result.results["run_info"]["trainable_parameters"] == sum(p.numel() for p in layer.parameters())
    assert result.history[-1]["train_loss"] < result.history[0]["train_loss"]
    # Chance is 1/3; the colour of an image tells its class.
    assert result.results["metrics"]["test.last"]["acc1"] > 0.9


@pytest.mark.parametrize("prompt", ["none", "padding"])
def test_trained_through_fit_it_is_saved_and_loaded(prompt, config, tiny_task, tmp_path):
    kind = {"kind": "linear_features", "bias": False}
    groups = {"mapping": {"lr": 0.01}} if prompt == "padding" else {}
    run = config(prompt={"kind": prompt}, mapping=kind, optim={"lr": 0.1, "groups": groups})
    classifier, result = trained(run, tiny_task)
    assert classifier.source.outputs == "features" and classifier.mapping.layer.weight.abs().sum() > 0
    if prompt == "padding":
        assert classifier.prompt.delta.abs().sum() > 0
    folder = tmp_path / "run" / "prompt"
    stored = json.loads((folder / "config.json").read_text())
    size = classifier.source.num_features
    assert stored["mapping"] == {
        "kind": "linear_features",
        "num_source": size,
        "num_target": 3,
        "bias": False,
    }
    assert stored["source"]["outputs"] == "features" and stored["plugins"] == ["test_feature_mapping.py"]
    assert all(row["label"] is None and row["count"] is None for row in stored["mapping_table"])
    again = PromptedClassifier.from_pretrained(folder)
    images = torch.rand(4, 3, *classifier.resize.size)
    with torch.no_grad():
        assert torch.equal(again(images), classifier.eval()(images))
    found = evaluate(again, tiny_task, progress=False)
    assert found.to_dict() == result.results["metrics"]["test.best_val"]


def test_scores_of_a_mapping_on_features_count_source_labels(config, tiny_task):
    """The scores of any classifier hold the top-1 source labels of the images."""
    classifier = build_classifier(probe(config), tiny_task).eval()
    test = tiny_task.tensors("test", classifier.resize, progress=False)
    with torch.no_grad():
        labels = classifier.source(test.images.float() / 255).argmax(1)
    counts = evaluate(classifier, tiny_task, progress=False).counts
    assert counts.by_label().tolist() == labels.bincount(minlength=20).tolist()


def test_without_its_plugin_a_saved_prompt_says_what_it_needs(config, tiny_task, tmp_path):
    build_classifier(probe(config), tiny_task).save_pretrained(tmp_path)
    MAPPINGS.unregister("linear_features")
    with pytest.raises(UserError) as error:
        PromptedClassifier.from_pretrained(tmp_path)
    words = ["needs the mapping 'linear_features'", "plug-in test_feature_mapping.py", "--plugins"]
    assert "\n" not in str(error.value) and all(word in str(error.value) for word in words)


def test_outputs_that_the_mapping_does_not_take_are_refused(config, tiny_task):
    for kind, outputs, takes in (
        ("linear_features", "logits", "features"),
        ("frequency", "features", "logits"),
    ):
        values = to_dict(config(mapping={"kind": kind}))
        values["source"]["outputs"] = outputs
        run = from_dict(values)
        with pytest.raises(
            UserError, match=f"source.outputs: {outputs} does not go with .*{kind}.* takes {takes}"
        ):
            build_classifier(run, tiny_task)
