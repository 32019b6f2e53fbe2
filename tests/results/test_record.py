"""The end of a run: the text on the terminal, and what a saved prompt holds of the results."""

import copy
import json
import subprocess
import sys
from pathlib import Path

import torch
from accelerate import Accelerator
from conftest import closed_source, small_task

from clipvp import EvalResult, PromptedClassifier, RunConfig
from clipvp.config.values import settings_of
from clipvp.mappings.frequency import FrequencyMapping
from clipvp.mappings.statistic import Counts
from clipvp.progress import Clock
from clipvp.prompts.padding import PaddingPrompt
from clipvp.results.record import (
    build_results,
    epoch_line,
    git_commit,
    peak_memory,
    saved_results,
    summary,
    versions,
)
from clipvp.results.tables import MAPPING_COLUMNS, SAVED_PROMPTS
from clipvp.results.tables import SCORES as NAMES

SCORES = {"acc1": 0.5, "acc5": None, "mean_per_class_recall": 0.25, "n": 8}
EMPTY = {"acc1": None, "acc5": None, "mean_per_class_recall": None, "n": 0}


def results(**changes) -> dict:
    row = {"class": "zero", "label": "ring", "index": 3, "count": 7, "share": 0.7, "acc1": 0.9}
    never = {"class": "one", "label": "pole", "index": 4, "count": None, "share": None, "acc1": None}
    base = {
        "method": "visual prompt",
        "mapping_table": [row, never],
        "metrics": {"test.last": SCORES, "test.best_val": {**SCORES, "acc1": 0.625}, "val.best": SCORES},
        "best_epoch": 4,
        "saved_prompt": "best_val",
        "skipped_images": {"train": 0, "test": 0},
        "seconds": {"training": 3.0, "counting": 1.25},
    }
    return copy.deepcopy({**base, **changes})


def test_the_summary_of_a_prompt_has_mapping_accuracies_time_and_place():
    page = summary(results(), Path("runs/x"))
    lines = page.splitlines()
    (zero,) = [line for line in lines if line.startswith("zero")]
    assert [part for part in zero.split("  ") if part.strip()] != [] and "ring" in zero and "7" in zero
    assert "70.0 %" in zero and "90.0 %" in zero
    (one,) = [line for line in lines if line.startswith("one")]
    assert "pole" in one and one.count("-") == 3  # no count, no share, no accuracy
    assert any(NAMES["test.last"] in line and "50.0 %" in line and line.split()[-1] == "8" for line in lines)
    assert any(NAMES["test.best_val"] in line and "62.5 %" in line for line in lines)
    assert f"best validation at epoch 4; prompt/ holds {SAVED_PROMPTS['best_val']}" in page
    assert all(name in lines[0] for name in MAPPING_COLUMNS.values())
    assert "time 4.2 s: training 3.0 s, counting 1.2 s" in page and lines[-1] == "run  runs/x"
    assert "None" not in page and "nan" not in page and "unreadable" not in page


def test_missing_scores_are_not_mentioned():
    metrics = {"test.last": SCORES, "test.best_val": EMPTY, "val.best": EMPTY}
    page = summary(results(metrics=metrics, best_epoch=None, saved_prompt="last"), Path("r"))
    assert "validation" not in page and f"prompt/ holds {SAVED_PROMPTS['last']}" in page
    metrics["test.best_on_test"] = {**SCORES, "acc1": 0.75, "epoch": 2}
    page = summary(results(metrics=metrics, best_epoch=None, saved_prompt="last"), Path("r"))
    assert any(NAMES["test.best_on_test"] in line and "75.0 %" in line for line in page.splitlines())


def test_columns_without_any_value_are_left_out():
    table = [
        {**row, "label": None, "index": -1, "count": None, "share": None}
        for row in results()["mapping_table"]
    ]
    page = summary(results(mapping_table=table), Path("r"))
    assert MAPPING_COLUMNS["label"] not in page and MAPPING_COLUMNS["count"] not in page
    assert "zero" in page and "90.0 %" in page


def test_several_labels_of_a_class_are_ranked_with_their_weights():
    links = [
        {"label": name, "weight": weight}
        for name, weight in (("ring", 0.5), ("pole", 0.25), ("cup", 0.125), ("x", 0.1))
    ]
    page = summary(results(mapping_table=[{**results()["mapping_table"][0], "links": links}]), Path("r"))
    assert "ring (0.5), pole (0.25), cup (0.12)" in page and "x (0.1)" not in page


def test_a_long_mapping_is_cut_and_says_so():
    table = [{**results()["mapping_table"][0], "class": f"class {i}"} for i in range(45)]
    page = summary(results(mapping_table=table), Path("r"))
    assert "class 39" in page and "class 40" not in page and "and 5 more classes in results.json" in page


def test_images_that_were_left_out_are_counted():
    page = summary(results(skipped_images={"train": 2, "val": 0, "test": 1}), Path("r"))
    assert "3 unreadable images were left out" in page


def test_numbers_in_class_names_stay_as_they_are():
    table = [{**results()["mapping_table"][0], "class": "007", "label": "1e3"}]
    page = summary(results(mapping_table=table), Path("r"))
    assert "007" in page and "1e3" in page


# What is recorded


def whole_run(mapping, matrix, **config) -> dict:
    """Return the results of a run with a mapping of 6 labels and 3 classes whose test images have given counts."""
    source = closed_source(torch.nn.Flatten(), 6, canvas=(8, 8))
    source.name = "timm:local-dir:/home/me/models/net"
    task = small_task()
    classifier = PromptedClassifier(PaddingPrompt((8, 8), (4, 4)), source, mapping, task.class_names)
    data = {split: Sized(number) for split, number in (("train", 60), ("test", 25))}
    test = {"last": EvalResult(0.5, None, 0.25, 25, torch.tensor([[3, 1, 0], [0, 0, 0], [5, 5, 10]]), matrix)}
    config = RunConfig(output="/home/me/runs/x", **config)
    return build_results(config, classifier, task, data, None, test, Clock({"training": 1.0}), Accelerator())


class Sized(list):
    skipped = ("one",)

    def __init__(self, number: int):
        super().__init__(range(number))


def test_a_mapping_to_one_label_a_class_is_recorded_with_its_counts():
    counts = torch.tensor([[0, 1, 0], [7, 0, 2], [0, 0, 8], [3, 0, 0], [0, 4, 0], [0, 0, 0]])
    mapping = FrequencyMapping(6, 3)
    mapping.fit(Counts.from_matrix(counts))
    found = json.loads(json.dumps(whole_run(mapping, Counts(6, 3)), allow_nan=False))
    assert found["mapping_table"] == [
        {
            "class": name,
            "label": f"label {index}",
            "index": index,
            "count": count,
            "share": share,
            "acc1": acc1,
        }
        for name, index, count, share, acc1 in (
            ("red thing", 1, 7, 0.7, 0.75),
            ("green thing", 4, 4, 0.8, None),
            ("blue thing", 2, 8, 0.8, 0.5),
        )
    ]
    assert (found["num_train"], found["num_val"], found["num_test"]) == (60, 0, 25)
    assert found["metrics"]["test.last"] == {
        "acc1": 0.5,
        "acc5": None,
        "mean_per_class_recall": 0.25,
        "n": 25,
    }
    assert found["saved_prompt"] == "last" and found["skipped_images"] == {"train": 1, "test": 1}
    assert found["run_info"]["trainable_parameters"] == 3 * (64 - 16)
    text = summary(found, Path("r"))
    assert "70.0 %" in text and "2 unreadable images" in text


def test_a_mapping_before_its_first_fit_has_no_labels_and_no_counts():
    rows = whole_run(FrequencyMapping(6, 3), Counts(6, 3))["mapping_table"]
    assert [(row["label"], row["index"], row["count"], row["share"]) for row in rows] == [
        (None, -1, None, None)
    ] * 3


def test_a_saved_prompt_holds_nothing_of_the_machine():
    found = whole_run(FrequencyMapping(6, 3), Counts(6, 3), plugins=["/home/me/votes.py"])
    config = settings_of(RunConfig())
    config["source"]["name"] = "mine:/home/me/models/net"
    config["data"] = {
        "name": "/home/me/data/task",
        "folder": "/home/me/data",
        "tables": ["~/a/b.csv", "c.csv"],
    }
    config["mapping"] = {"kind": "votes", "k": 3, "bank": "/home/me/bank.json", "templates": "my/own.txt"}
    config["optim"]["groups"] = {"mapping": {"table": "../me/rates.json", "page": "https://home.me/x"}}
    saved = saved_results(
        {**found, "config": {**config, "output": "/home/me/runs/x", "plugins": ["/home/me/v.py"]}}
    )
    assert saved["config"]["mapping"] == {
        "kind": "votes",
        "k": 3,
        "bank": "bank.json",
        "templates": "own.txt",
    }
    assert saved["config"]["data"] == {"name": found["task"], "tables": ["b.csv", "c.csv"]}
    assert saved["config"]["source"]["name"] == "mine:net"
    assert saved["config"]["optim"]["groups"]["mapping"] == {
        "table": "rates.json",
        "page": "https://home.me/x",
    }
    text = json.dumps(saved)
    assert "/home" not in text.replace("https://home.me", "") and "device" not in text and "v.py" not in text
    assert saved["per_class"] == [0.75, None, 0.5] and saved["versions"] == found["run_info"]["versions"]


def test_a_saved_prompt_keeps_the_texts_of_its_templates():
    found = whole_run(FrequencyMapping(6, 3), Counts(6, 3))
    for templates in ("a photo of a {}.", ["a {}.", "the {}"], None, "imagenet"):
        found["config"]["mapping"]["templates"] = templates
        assert saved_results(found)["config"]["mapping"]["templates"] == templates
    assert saved_results(found)["config"]["source"]["name"] == "offline:lite0"


def test_memory_is_unknown_where_the_system_does_not_tell(monkeypatch):
    assert peak_memory(torch.device("cpu")) > 10**6
    monkeypatch.setitem(sys.modules, "resource", None)  # as on Windows
    assert peak_memory(torch.device("cpu")) is None


# Lines and versions


def test_an_epochs_line():
    row = {
        "epoch": 3,
        "train_loss": 1.5,
        "train_acc1": 0.25,
        "val_acc1": 0.5,
        "seconds": {"a": 1.0, "b": 2.0},
    }
    line = epoch_line({**row, "mapping_changed": 4}, 10)
    for part in ("epoch  3/10", "loss 1.500", "train 25.0 %", "val 50.0 %", "4 classes remapped", "3.0 s"):
        assert part in line
    assert "test" not in line and "remapped" not in epoch_line(row, 10)


def test_versions_name_what_results_depend_on():
    found = versions()
    assert found["python"] and found["torch"] and found["clipvp"]
    assert all(value is None or isinstance(value, str) for value in found.values())


def test_the_commit_is_that_of_the_checkout_or_unknown(monkeypatch):
    commit = git_commit()
    assert commit is None or len(commit.removesuffix("-dirty")) >= 7

    def no_git(*_, **__):
        raise FileNotFoundError("git")

    monkeypatch.setattr(subprocess, "run", no_git)
    assert git_commit() is None
