"""The textbook loop and the library do the same."""

import runpy
import sys
from pathlib import Path

import torch
from conftest import small_config, write_image_folder
from textbook import TextbookEpoch

from clipvp import build_classifier, fit, load_task
from clipvp.data.batches import epoch_order

RECIPE = Path(__file__).parents[2] / "recipes" / "textbook.py"


def test_two_epochs_of_the_textbook_are_those_of_the_library(tiny_timm, tmp_path):
    folder = write_image_folder(tmp_path / "images", {"train": 24, "test": 9}, 3)
    sections = {"data": {"name": str(folder), "val": 0.0}, "train": {"epochs": 2, "batch_size": 8}}
    config = small_config(tiny_timm, tmp_path / "run", optim={"lr": 0.01, "schedule": "constant"}, **sections)
    task = load_task(config.data, seed=config.seed)
    start = build_classifier(config, task)
    textbook = TextbookEpoch(start.source, task, start.prompt, start.resize, 8, "fp32", 0, 0.01)
    found = [textbook.epoch(epoch_order(24, config.seed, epoch).tolist()) for epoch in range(2)]
    classifier = build_classifier(config, task)
    result = fit(classifier, task, config)
    losses = [row["train_loss"] for row in result.history]
    torch.testing.assert_close([loss for loss, _ in found], losses, rtol=1e-4, atol=1e-5)
    counts = classifier.mapping.links()
    index = counts.index[:, 0]
    assert textbook.counts[index, torch.arange(3)].tolist() == counts.count[:, 0].tolist()
    torch.testing.assert_close(textbook.delta.detach(), classifier.prompt.delta.detach(), rtol=0, atol=2e-3)


def test_the_recipe_prints_a_line_an_epoch(tiny_timm, tmp_path, monkeypatch, capsys):
    folder = write_image_folder(tmp_path / "images", {"train": 24, "test": 9}, 3)
    given = {"source.name": tiny_timm, "source.canvas": 32, "data.name": folder, "train.epochs": 2}
    monkeypatch.setattr(sys, "argv", [str(RECIPE), *(f"--{key}={value}" for key, value in given.items())])
    runpy.run_path(str(RECIPE), run_name="__main__")
    lines = capsys.readouterr().out.splitlines()
    assert [line.split("  ")[0] for line in lines] == ["epoch 1/2", "epoch 2/2"] and "test" in lines[0]
