"""Many processes give what one gives: the counts and the mapping exactly, the prompt to float rounding."""

import json
import os
import socket
import subprocess
import sys
from pathlib import Path
from types import SimpleNamespace

import pytest
import torch
from conftest import write_image_folder
from hypothesis import given, settings
from hypothesis import strategies as st
from safetensors.torch import load_file

from clipvp import UserError, build_classifier, fit, load_task
from clipvp.cli import parse
from clipvp.data import ImageTensors
from clipvp.data.batches import Batches

ROOT = Path(__file__).parents[1]


def ranks(count: int, world: int) -> list[Batches]:
    tensors = ImageTensors(torch.zeros(count, 3, 1, 1, dtype=torch.uint8), torch.arange(count))
    device = torch.device("cpu")
    return [
        Batches(tensors, SimpleNamespace(process_index=rank, num_processes=world, device=device))
        for rank in range(world)
    ]


@settings(max_examples=100, deadline=None)
@given(st.integers(1, 50), st.integers(1, 9), st.integers(1, 20))
def test_processes_share_a_batch_and_a_pass_without_loss_or_repetition(count, world, size):
    views = ranks(count, world)
    batch = torch.randperm(count)[:size]
    assert torch.equal(torch.cat([view.share(batch) for view in views]), batch)
    passes = [torch.cat([labels for _, labels in view.in_turn(size)] or [batch[:0]]) for view in views]
    assert torch.cat(passes).tolist() == list(range(count))
    assert [view.mine() for view in views] == [len(part) for part in passes]


def test_processes_that_do_not_know_of_each_other_are_refused(tiny_timm, tiny_task, tmp_path, monkeypatch):
    config, _ = parse("a test", arguments=settings_of("digits", tiny_timm, tmp_path / "run", "exact"))
    classifier = build_classifier(config, tiny_task.class_names)
    monkeypatch.setenv("WORLD_SIZE", "2")
    with pytest.raises(
        UserError, match="2 processes were launched, and accelerate sees 1; .*ACCELERATE_USE_CPU"
    ):
        fit(classifier, tiny_task, config)
    assert not (tmp_path / "run").exists()


def settings_of(folder: Path | str, source: str, output: Path, statistics: str) -> list[str]:
    values = {
        "source.name": source,
        "source.canvas": 32,
        "prompt.image_size": 16,
        "mapping.statistics": statistics,
        "data.name": folder,
        "data.cache_dir": f"{output}-cache",
        "optim.lr": 0.1,
        "train.epochs": 3,
        "train.batch_size": 16,
        "train.progress": "false",
        "output": output,
    }
    return [f"--{key}={value}" for key, value in values.items()]


def alone(arguments: list[str]) -> None:
    """Train in this process."""
    config, _ = parse("a test", arguments=arguments)
    task = load_task(config.data, seed=config.seed)
    fit(build_classifier(config, task.class_names), task, config)


def launched(processes: int, arguments: list[str]) -> str:
    """Train in so many processes on the CPU; return what they print."""
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    # accelerate's --cpu starts a single process where there is no MPI; so it is told twice.
    launcher = ["-m", "accelerate.commands.launch", "--multi_gpu", "--num_processes", str(processes)]
    launcher += ["--num_machines", "1", "--mixed_precision", "no", "--dynamo_backend", "no"]
    launcher += ["--main_process_port", str(port), str(ROOT / "recipes" / "train.py")]
    environment = {**os.environ, "OMP_NUM_THREADS": "1", "ACCELERATE_USE_CPU": "true"}
    command = [sys.executable, *launcher, *arguments]
    done = subprocess.run(command, capture_output=True, text=True, timeout=300, env=environment)
    assert done.returncode == 0, done.stderr[:3000]
    return done.stdout


def left_by(output: Path) -> tuple[dict, list[dict], torch.Tensor]:
    rows = [json.loads(line) for line in (output / "metrics.jsonl").read_text().splitlines()]
    delta = load_file(output / "prompt" / "model.safetensors")["prompt.delta"]
    return json.loads((output / "results.json").read_text()), rows, delta


@pytest.mark.slow
@pytest.mark.parametrize("processes, statistics", [(2, "exact"), (3, "running")])
def test_many_processes_give_what_one_gives(processes, statistics, tiny_timm, tmp_path):
    # Neither the batches of 16, nor the last one of 7, nor the 29 test images divide by the processes.
    folder = write_image_folder(tmp_path / "images", {"train": 55, "val": 11, "test": 29}, 3)
    alone(settings_of(folder, tiny_timm, tmp_path / "one", statistics))
    printed = launched(processes, settings_of(folder, tiny_timm, tmp_path / "many", statistics))
    assert printed.count("test, last prompt") == 1  # one process speaks
    one, rows, delta = left_by(tmp_path / "one")
    many, their_rows, their_delta = left_by(tmp_path / "many")
    assert (one["run_info"]["world_size"], many["run_info"]["world_size"]) == (1, processes)
    for key in ("metrics", "mapping_table", "split_hash", "num_train", "best_epoch"):
        assert many[key] == one[key]
    for row, theirs in zip(rows, their_rows, strict=True):
        for key in ("source_index", "train_acc1", "val_acc1", "lr"):
            assert theirs[key] == row[key]
        assert theirs["train_loss"] == pytest.approx(row["train_loss"], rel=1e-5)
    assert delta.norm() > 0 and (their_delta - delta).norm() <= 1e-5 * delta.norm()
