"""A run is a function of its config: its order, its counts, its selection, and what it leaves behind."""

import json
import random

import numpy as np
import pytest
import torch
import yaml
from conftest import closed_source, coloured_images, trained, untimed, write_image_folder
from torch import nn
from torch.nn import functional as F

from clipvp import PromptedClassifier, Task, UserError, build_classifier, evaluate, fit, load_task
from clipvp.config.schema import DataConfig
from clipvp.config.values import from_dict
from clipvp.data.batches import Batches
from clipvp.files import load_state
from clipvp.mappings.assignment import assign_greedy
from clipvp.mappings.random import RandomMapping
from clipvp.mappings.statistic import CellSums, Counts
from clipvp.prompts.full import FullPrompt
from clipvp.results.folder import config_yaml, read_results
from clipvp.training.checkpoint import Checkpoints
from clipvp.training.step import Trainer

METHODS = {
    "RLM": {"kind": "random"},
    "FLM": {"kind": "frequency", "refresh": "never"},
    "ILM": {"kind": "frequency", "refresh": 1},
}


def images_of(task, classifier, split="train"):
    tensors = task.tensors(split, classifier.resize, progress=False)
    return tensors.images.float() / 255, tensors.labels


@torch.no_grad()
def counted(classifier, task) -> CellSums:
    """Count top-1 source labels by class over the training images, one image at a time."""
    counts = torch.zeros(len(classifier.source.labels), len(task.class_names), dtype=torch.int64)
    for image, label in zip(*images_of(task, classifier), strict=True):
        counts[int(classifier.source(classifier.prompt(image[None]))[0].argmax()), label] += 1
    return Counts.from_matrix(counts)


# One seed decides everything, and nothing outside it does


@pytest.mark.parametrize("method", METHODS)
def test_the_same_config_gives_the_same_bits(method, config, tiny_task, tmp_path):
    runs = []
    for name in ("first", "second"):
        torch.manual_seed(len(runs)), np.random.seed(len(runs)), random.seed(len(runs))
        settings = config(mapping=METHODS[method], output=str(tmp_path / name))
        classifier, result = trained(settings, tiny_task)
        runs.append((tmp_path / name, result))
    (first, one), (second, two) = runs
    weights = "prompt/model.safetensors"
    assert (first / weights).read_bytes() == (second / weights).read_bytes()
    assert untimed(one.history) == untimed(two.history)
    assert untimed(one.results) == untimed(two.results)
    for left, right in zip(
        Checkpoints(first / "checkpoints", 9).paths(),
        Checkpoints(second / "checkpoints", 9).paths(),
        strict=True,
    ):
        (tensors, values), (others, theirs) = load_state(left), load_state(right)
        assert left.name == right.name and untimed(values["state"]) == untimed(theirs["state"])
        assert tensors.keys() == others.keys() and "trained.prompt.delta" in tensors
        assert all(torch.equal(tensors[name], others[name]) for name in tensors)


def test_another_seed_gives_another_run(config, tiny_task, tmp_path):
    losses = set()
    for seed in (1, 2):
        _, result = trained(config(seed=seed, output=str(tmp_path / str(seed))), tiny_task)
        losses.add(result.history[-1]["train_loss"])
    assert len(losses) == 2


def test_every_method_sees_the_same_batches_and_no_random_state_moves(
    config, tiny_task, tmp_path, monkeypatch
):
    take, seen = Batches.take, {}

    def recorded(self, *where):
        images, labels = take(self, *where)
        if current.training:
            seen[method].append((images.clone(), labels.clone()))
        return images, labels

    monkeypatch.setattr(Batches, "take", recorded)
    for method, mapping in METHODS.items():
        settings = config(mapping=mapping, output=str(tmp_path / method))
        current, seen[method] = build_classifier(settings, tiny_task), []
        before = torch.get_rng_state(), np.random.get_state()[1].copy(), random.getstate()
        fit(current, tiny_task, settings)
        assert torch.equal(torch.get_rng_state(), before[0])
        assert (np.random.get_state()[1] == before[1]).all() and random.getstate() == before[2]
    assert len(seen["ILM"]) == 3 * 4  # 60 images in batches of 16, three times
    for method in ("FLM", "RLM"):
        assert len(seen[method]) == len(seen["ILM"])
        for one, other in zip(seen[method], seen["ILM"], strict=True):
            assert torch.equal(one[0], other[0]) and torch.equal(one[1], other[1])
    first, second = (torch.cat([labels for _, labels in seen["ILM"][start : start + 4]]) for start in (0, 4))
    assert first.bincount().tolist() == second.bincount().tolist() == [20, 20, 20]  # each image once an epoch
    assert not torch.equal(first, second)  # in an order of its own


# Counting and refreshing


def test_flm_counts_once_with_the_prompt_at_its_start(config, tiny_task):
    settings = config(mapping=METHODS["FLM"])
    start = build_classifier(settings, tiny_task)
    expected = assign_greedy(counted(start, tiny_task)).tolist()
    _, result = trained(settings, tiny_task)
    assert [row["source_index"] for row in result.history] == [expected] * 3
    assert [("mapping_changed" in row) for row in result.history] == [True, False, False]


def test_ilm_counts_before_each_epoch_with_the_current_prompt(config, tiny_task, tmp_path):
    expected = []
    for epochs in range(3):  # the prompt after so many epochs, from a run that ends there
        settings = config(train={"epochs": max(1, epochs)}, output=str(tmp_path / str(epochs)))
        classifier = build_classifier(settings, tiny_task)
        if epochs:
            task = Task(**{**vars(tiny_task), "val": None})  # ends with the last prompt
            fit(classifier, task, settings)
        expected.append(assign_greedy(counted(classifier, tiny_task)).tolist())
    _, result = trained(config(), tiny_task)
    assert [row["source_index"] for row in result.history] == expected


def test_the_first_epoch_of_ilm_is_that_of_flm(config, tiny_task, tmp_path):
    rows = []
    for method in ("FLM", "ILM"):
        settings = config(mapping=METHODS[method], output=str(tmp_path / method))
        rows.append(untimed(trained(settings, tiny_task)[1].history[0]))
    assert rows[0] == rows[1]


def test_refresh_every_second_epoch(config, tiny_task):
    _, result = trained(config(mapping={"refresh": 2}, train={"epochs": 4}), tiny_task)
    assert ["mapping_changed" in row for row in result.history] == [True, False, True, False]


def test_running_counts_cost_no_pass_and_are_the_exact_ones_while_the_prompt_does_not_change(
    config, tiny_task, tmp_path, monkeypatch
):
    passes, local_batches = [], Batches.local_batches
    monkeypatch.setattr(
        Batches, "local_batches", lambda self, size: passes.append(len(self)) or local_batches(self, size)
    )
    histories = {}
    for statistics in ("exact", "running"):
        passes.clear()
        settings = config(
            mapping={"statistics": statistics}, optim={"lr": 1e-12}, output=str(tmp_path / statistics)
        )
        _, result = trained(settings, tiny_task)
        histories[statistics] = [row["source_index"] for row in result.history]
        assert passes.count(60) == {"exact": 3, "running": 1}[statistics]
        assert result.results["mapping"]["statistics"] == statistics
    assert histories["exact"] == histories["running"]


# The steps


def test_a_step_of_sgd_is_the_gradient_of_the_mean_loss(config, tiny_task):
    settings = config(
        optim={"name": "sgd", "lr": 0.5, "momentum": 0.0},
        mapping=METHODS["RLM"],
        train={"epochs": 1, "batch_size": 64},
    )
    start = build_classifier(settings, tiny_task)
    images, labels = images_of(tiny_task, start)
    delta = start.prompt.delta
    F.cross_entropy(start.source(start.prompt(images))[:, start.mapping.source_index], labels).backward()
    expected = delta.detach() - 0.5 * delta.grad
    classifier, _ = trained(settings, tiny_task)
    torch.testing.assert_close(classifier.prompt.delta.detach(), expected, rtol=1e-4, atol=1e-7)
    assert not torch.equal(expected, delta)


def test_a_short_last_batch_weighs_its_images_alike(config, tiny_task):
    """The loss and accuracy of an epoch are means over images, whatever the batches."""
    results = []
    for size in (60, 17):
        settings = config(
            optim={"lr": 1e-12}, train={"epochs": 1, "batch_size": size}, output=f"{config().output}{size}"
        )
        results.append(trained(settings, tiny_task)[1].history[0])
    assert results[0]["train_acc1"] == results[1]["train_acc1"]
    assert results[0]["train_loss"] == pytest.approx(results[1]["train_loss"], rel=1e-5)


@pytest.mark.parametrize("statistics", ["exact", "running"])
def test_a_step_in_parts_is_the_same_step(statistics, config, tiny_task, tmp_path):
    """60 images in batches of 16: parts of 3, 3, 3, 3, 2 and 2, and a last batch of 12 in parts of 2."""
    runs = []
    for parts in (1, 6):
        settings = config(
            mapping={"statistics": statistics},
            train={"gradient_accumulation_steps": parts},
            output=str(tmp_path / str(parts)),
        )
        runs.append(trained(settings, tiny_task))
    (whole, one), (parted, other) = runs
    delta, theirs = whole.prompt.delta.detach(), parted.prompt.delta.detach()
    assert delta.norm() > 0 and (theirs - delta).norm() <= 1e-5 * delta.norm()
    for row, parts_row in zip(one.history, other.history, strict=True):
        assert parts_row["source_index"] == row["source_index"]
        assert (parts_row["train_acc1"], parts_row["val_acc1"]) == (row["train_acc1"], row["val_acc1"])
        assert parts_row["train_loss"] == pytest.approx(row["train_loss"], rel=1e-5)


@pytest.mark.parametrize("name, lr", [("adam", 0.1), ("adamw", 0.1), ("sgd", 3.0)])
def test_every_optimiser_learns(name, lr, config, tiny_task):
    settings = config(optim={"name": name, "lr": lr}, mapping=METHODS["FLM"], train={"epochs": 6})
    losses = [row["train_loss"] for row in trained(settings, tiny_task)[1].history]
    assert losses[-1] < losses[0]


@pytest.mark.parametrize("kind", ["border", "patch", "full"])
def test_other_prompts_learn_too(kind, config, tiny_task):
    prompt = {"kind": kind, "width": 6, "patch_size": 12, "space": "normalized"}
    settings = config(prompt=prompt, optim={"lr": 0.05}, mapping=METHODS["FLM"], train={"epochs": 6})
    losses = [row["train_loss"] for row in trained(settings, tiny_task)[1].history]
    assert losses[-1] < losses[0]


def test_without_a_prompt_only_the_mapping_is_learned(config, tiny_task):
    classifier, result = trained(config(prompt={"kind": "none"}), tiny_task)
    assert result.results["run_info"]["trainable_parameters"] == 0
    losses = [row["train_loss"] for row in result.history]
    assert losses == pytest.approx([losses[0]] * 3, rel=1e-5)
    assert [row.get("mapping_changed") for row in result.history] == [3, 0, 0]
    assert list(classifier.prompt.parameters()) == []


def test_the_source_is_as_it_was(config, tiny_task):
    settings = config()
    classifier = build_classifier(settings, tiny_task)
    before = {key: value.clone() for key, value in classifier.source.state_dict().items()}
    fit(classifier, tiny_task, settings)
    assert all(torch.equal(before[key], value) for key, value in classifier.source.state_dict().items())


# Selection never sees the test set


def test_the_test_set_is_scored_at_the_end_and_not_before(config, tiny_task, monkeypatch):
    score, order = Trainer.score, []
    monkeypatch.setattr(
        Trainer, "score", lambda self, split, phase: order.append(split) or score(self, split, phase)
    )
    _, result = trained(config(), tiny_task)
    times = 1 if result.results["best_epoch"] == 3 else 2
    assert order == ["val"] * 3 + ["test"] * times
    assert not any("test_acc1" in row for row in result.history)


def test_the_best_validation_is_what_is_kept(config, tiny_task, tmp_path):
    classifier, result = trained(config(optim={"lr": 1.0}, train={"epochs": 5}), tiny_task)
    accuracies = [row["val_acc1"] for row in result.history]
    metrics = result.results["metrics"]
    assert metrics["val.best"]["acc1"] == max(accuracies)
    assert result.results["best_epoch"] == 1 + accuracies.index(max(accuracies))  # the first of equals
    assert result.results["saved_prompt"] == "best_val"
    saved = PromptedClassifier.from_pretrained(tmp_path / "run" / "prompt")
    for name, split in (("val.best", "val"), ("test.best_val", "test")):
        for model in (classifier, saved):
            assert evaluate(model, tiny_task, split, progress=False).to_dict() == metrics[name]
    index = result.history[result.results["best_epoch"] - 1]["source_index"]
    assert [row["index"] for row in result.results["mapping_table"]] == index


def test_validation_only_as_often_as_asked_and_at_the_end(config, tiny_task):
    _, result = trained(config(train={"epochs": 5, "eval_every": 2}), tiny_task)
    assert ["val_acc1" in row for row in result.history] == [False, True, False, True, True]


def test_the_papers_protocol_trains_on_everything_and_reports_the_last_epoch(config, tmp_path):
    images = coloured_images(30, 3), coloured_images(12, 3, seed=1)
    names = ["a", "b", "c"]
    settings = config(train={"protocol": "paper", "test_every_epoch": True})
    task = Task.from_dataset(*images, class_names=names, seed=1, protocol="paper")
    classifier, result = trained(settings, task)
    metrics = result.results["metrics"]
    assert result.results["num_train"] == 30 and result.results["num_val"] == 0
    assert result.results["saved_prompt"] == "last" and result.results["best_epoch"] is None
    empty = {"acc1": None, "acc5": None, "mean_per_class_recall": None, "n": 0}
    assert metrics["val.best"] == metrics["test.best_val"] == empty
    tested = [row["test_acc1"] for row in result.history]
    assert metrics["test.last"]["acc1"] == tested[-1]
    assert metrics["test.best_on_test"]["acc1"] == max(tested)
    assert metrics["test.best_on_test"]["epoch"] == 1 + tested.index(max(tested))
    assert evaluate(classifier, task, progress=False).to_dict() == metrics["test.last"]


def test_the_papers_protocol_ignores_a_validation_split(config, tiny_task):
    _, result = trained(config(train={"protocol": "paper"}), tiny_task)
    assert result.results["num_val"] == 0 and result.results["saved_prompt"] == "last"
    assert not any("val_acc1" in row for row in result.history)


# What a run leaves


def test_results_say_all_that_the_design_asks_for(config, tiny_task, tmp_path):
    settings = config()
    classifier, result = trained(settings, tiny_task)
    results = json.loads((tmp_path / "run" / "results.json").read_text(), parse_constant=pytest.fail)
    assert results == result.results == read_results(tmp_path / "run")
    assert results["seed"] == 1 and results["num_train"] == 60 and results["num_classes"] == 3
    assert results["split_hash"] == tiny_task.split_hash and results["task"] == "custom"
    assert results["source"]["name"] == settings.source.name and results["source"]["canvas"] == [32, 32]
    assert results["source"]["fingerprint"] == classifier.source.fingerprint
    assert results["prompt"]["kind"] == "padding" and results["prompt"]["image_size"] == [16, 16]
    assert results["mapping"]["kind"] == "frequency" and results["mapping"]["refresh"] == 1
    for name, n in (("test.last", 25), ("test.best_val", 25), ("val.best", 18)):
        assert set(results["metrics"][name]) == {"acc1", "acc5", "mean_per_class_recall", "n"}
        assert results["metrics"][name]["n"] == n and results["metrics"][name]["acc5"] is None
        assert 0 <= results["metrics"][name]["acc1"] <= 1
    assert [row["class"] for row in results["mapping_table"]] == tiny_task.class_names
    for row in results["mapping_table"]:
        assert row["label"] == classifier.source.labels.names[row["index"]] and row["count"] >= 0
    assert {"counting", "training", "validating", "testing"} <= set(results["seconds"])
    info = results["run_info"]
    assert info["trainable_parameters"] == 3 * (32 * 32 - 16 * 16) and info["world_size"] == 1
    assert info["peak_memory_bytes"] > 10**7 and info["device"] == "cpu"
    assert {"git_commit", "versions"} <= set(info) and info["versions"]["torch"]
    assert from_dict(results["config"]) == settings


def test_metrics_have_a_line_an_epoch(config, tiny_task, tmp_path):
    _, result = trained(config(), tiny_task)
    lines = (tmp_path / "run" / "metrics.jsonl").read_text().splitlines()
    rows = [json.loads(line, parse_constant=pytest.fail) for line in lines]
    assert rows == result.history and [row["epoch"] for row in rows] == [1, 2, 3]
    for row in rows:
        assert {"train_loss", "train_acc1", "val_acc1", "lr", "seconds", "source_index"} <= set(row)


def test_the_written_config_runs_the_same_again(config, tiny_task, tmp_path):
    settings = config()
    _, result = trained(settings, tiny_task)
    written = from_dict(yaml.safe_load((tmp_path / "run" / "config.yaml").read_text()))
    assert written == settings and (tmp_path / "run" / "config.yaml").read_text() == config_yaml(settings)
    written.overwrite = True
    _, again = trained(written, tiny_task)
    assert untimed(again.history) == untimed(result.history)


def test_a_folder_with_a_run_is_left_alone_unless_asked(config, tiny_task, tmp_path):
    trained(config(), tiny_task)
    mine = tmp_path / "run" / "notes.txt"
    mine.write_text("keep me")
    before = {path: path.read_bytes() for path in (tmp_path / "run").rglob("*") if path.is_file()}
    with pytest.raises(UserError, match="holds a run already.*--overwrite"):
        trained(config(seed=2), tiny_task)
    assert {path: path.read_bytes() for path in (tmp_path / "run").rglob("*") if path.is_file()} == before
    _, result = trained(config(seed=2, overwrite=True, train={"epochs": 1}), tiny_task)
    assert mine.read_text() == "keep me"
    assert read_results(tmp_path / "run")["seed"] == 2
    assert len((tmp_path / "run" / "metrics.jsonl").read_text().splitlines()) == 1
    assert len(Checkpoints(tmp_path / "run" / "checkpoints", 9).paths()) == 1


def test_an_output_that_is_a_file_is_refused(config, tiny_task, tmp_path):
    (tmp_path / "run").write_text("")
    with pytest.raises(UserError, match="is a file, not a folder"):
        trained(config(), tiny_task)


def test_checkpoints_are_whole_and_few(config, tiny_task, tmp_path):
    classifier, _ = trained(config(train={"epochs": 4, "keep": 2}), tiny_task)
    checkpoints = Checkpoints(tmp_path / "run" / "checkpoints", 2)
    assert len(checkpoints.paths()) == 2
    _, tensors, values, damaged = checkpoints.newest()
    assert damaged == [] and any(name.endswith("prompt.delta") for name in tensors)


def test_going_on_never_replaces_what_cannot_be_gone_on_with(config, tiny_task, tmp_path):
    _, result = trained(config(resume="auto"), tiny_task)  # an empty folder: a start
    _, again = trained(config(resume="auto"), tiny_task)  # a finished run: nothing is left to train
    assert untimed(again.history) == untimed(result.history)
    assert untimed(again.results) == untimed(result.results)
    for path in (tmp_path / "run" / "checkpoints").iterdir():
        path.write_bytes(path.read_bytes()[:-1])
    before = {path: path.read_bytes() for path in (tmp_path / "run").rglob("*") if path.is_file()}
    with pytest.raises(UserError, match="without a whole checkpoint; --overwrite true"):
        trained(config(resume="auto"), tiny_task)
    assert {path: path.read_bytes() for path in (tmp_path / "run").rglob("*") if path.is_file()} == before


# What goes wrong


class Poisoned(nn.Module):
    """A network that gives no number from some training batch on."""

    def __init__(self, from_batch: int):
        super().__init__()
        self.linear, self.left = nn.Linear(3, 20), from_batch

    def forward(self, pixels):
        logits = self.linear(pixels.mean((2, 3)))
        if torch.is_grad_enabled():
            self.left -= 1
            if self.left <= 0:
                return logits * float("nan")
        return logits


def test_a_loss_that_is_no_number_stops_the_run_and_says_where(config, tiny_task, tmp_path):
    source = closed_source(Poisoned(from_batch=4 + 4 + 2), 20, canvas=(12, 12))
    classifier = PromptedClassifier(FullPrompt((12, 12)), source, RandomMapping(20, 3), tiny_task.class_names)
    with pytest.raises(UserError, match=r"epoch 3, step 2; .*checkpoints up to epoch 2 are whole"):
        fit(classifier, tiny_task, config(train={"epochs": 5}))
    checkpoints = Checkpoints(tmp_path / "run" / "checkpoints", 2)
    assert len(checkpoints.paths()) == 2
    _, tensors, _, damaged = checkpoints.newest()
    assert damaged == [] and all(value.isfinite().all() for value in tensors.values())
    assert len((tmp_path / "run" / "metrics.jsonl").read_text().splitlines()) == 2
    assert not (tmp_path / "run" / "results.json").exists() and not (tmp_path / "run" / "prompt").exists()


def test_a_learning_rate_that_is_far_too_large_stops_the_run(config, tiny_task):
    settings = config(prompt={"kind": "full"}, optim={"name": "sgd", "lr": 1e38})
    with pytest.raises(UserError, match=r"NaN or infinite at epoch \d, step \d; optim.lr is 1e\+38"):
        trained(settings, tiny_task)


def test_more_classes_than_labels_name_both(config):
    names = [f"class {i}" for i in range(21)]
    task = Task.from_dataset(coloured_images(42, 21), coloured_images(21, 21, seed=1), class_names=names)
    with pytest.raises(UserError, match="21 target classes.* has 20"):
        trained(config(), task)


def test_bad_images_are_listed_or_left_out_and_counted(config, tmp_path):
    folder = write_image_folder(tmp_path / "images", {"train": 12, "test": 6}, 3)
    bad = [folder / "train" / "class0" / "0.png", folder / "train" / "class2" / "2.png"]
    for path in bad:
        path.write_bytes(b"not an image")
    data = {"name": str(folder), "val": 0.0}
    with pytest.raises(UserError, match="2 of 12 images cannot be read") as error:
        trained(config(data=data), load_task(DataConfig(**data)))
    assert all(str(path) in str(error.value) for path in bad)
    assert not (tmp_path / "run").exists()  # nothing half-written
    data["on_error"] = "skip"
    _, result = trained(config(data=data), load_task(DataConfig(**data)))
    assert result.results["skipped_images"] == {"train": 2, "test": 0} and result.results["num_train"] == 10


def test_a_class_whose_images_are_all_bad_is_named(config, tmp_path):
    folder = write_image_folder(tmp_path / "images", {"train": 9, "test": 6}, 3)
    for path in (folder / "train" / "class1").iterdir():
        path.write_bytes(b"")
    data = {"name": str(folder), "val": 0.0, "on_error": "skip"}
    with pytest.raises(UserError, match="without training images: 'class1'"):
        trained(config(data=data), load_task(DataConfig(**data)))
    assert not (tmp_path / "run").exists()
