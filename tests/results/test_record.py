"""The end of a run on the terminal: what a person reads, and nothing that is not so."""

import copy
import subprocess
from pathlib import Path

import pytest

from clipvp.results.record import epoch_line, git_commit, percent, summary, versions

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


def test_a_prompts_page_says_mapping_accuracies_time_and_place():
    page = summary(results(), Path("runs/x"))
    lines = page.splitlines()
    (zero,) = [line for line in lines if line.startswith("zero")]
    assert [part for part in zero.split("  ") if part.strip()] != [] and "ring" in zero and "7" in zero
    assert "70.0 %" in zero and "90.0 %" in zero
    (one,) = [line for line in lines if line.startswith("one")]
    assert "pole" in one and one.count("-") == 3  # no count, no share, no accuracy
    assert any("test, last prompt" in line and "50.0 %" in line and line.split()[-1] == "8" for line in lines)
    assert any("test, best on validation" in line and "62.5 %" in line for line in lines)
    assert "best validation at epoch 4; prompt/ holds the best prompt" in page
    assert "time 4.2 s: training 3.0 s, counting 1.2 s" in page and lines[-1] == "run  runs/x"
    assert "None" not in page and "nan" not in page and "unreadable" not in page


def test_what_there_is_not_is_not_mentioned():
    metrics = {"test.last": SCORES, "test.best_val": EMPTY, "val.best": EMPTY}
    page = summary(results(metrics=metrics, best_epoch=None, saved_prompt="last"), Path("r"))
    assert "validation" not in page and "prompt/ holds the last prompt" in page
    metrics["test.best_on_test"] = {**SCORES, "acc1": 0.75, "epoch": 2}
    page = summary(results(metrics=metrics, best_epoch=None, saved_prompt="last"), Path("r"))
    assert any("best on test" in line and "75.0 %" in line for line in page.splitlines())


def test_a_baseline_has_no_mapping_and_no_saved_prompt():
    page = summary(results(method="linear probe", saved_prompt=None), Path("r"))
    assert "source label" not in page and "prompt" not in page and "test accuracy" in page
    assert "test, last weights" in page


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


@pytest.mark.parametrize("share, text", [(None, "-"), (0.0, "0.0 %"), (1.0, "100.0 %"), (0.12345, "12.3 %")])
def test_percent(share, text):
    assert percent(share) == text


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
