"""A run that was stopped, between any two steps, and goes on is the run that was never stopped."""

import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest
import torch
from conftest import left_by, trained, write_image_folder

from clipvp import UserError
from clipvp.cli import user_errors
from clipvp.config.schema import PromptConfig
from clipvp.training.interrupt import EXIT_CODE, Interrupted, StopRequest
from clipvp.training.step import Trainer

ROOT = Path(__file__).parents[2]
STEPS = 3 * 4  # 60 images in batches of 16, three times
METHODS = {
    "ILM": {},
    "running": {"statistics": "running"},
    "every second epoch": {"refresh": 2},
    "FLM": {"refresh": "never"},
    "RLM": {"kind": "random"},
    "BLM+, running": {"kind": "blm_plus", "statistics": "running"},
    "linear head": {"kind": "linear", "start": "means", "standardise": True},
}


def stop_after(monkeypatch, step: int) -> None:
    """Have the process be asked to stop while it takes the given step, counted from here."""
    update, taken = Trainer._update, []

    def asked(self, parts):
        taken.append(len(parts))
        if len(taken) == step:
            signal.raise_signal(signal.SIGTERM)
        update(self, parts)

    monkeypatch.setattr(Trainer, "_update", asked)


@pytest.mark.parametrize("method", METHODS)
def test_stopped_and_resumed_is_never_stopped(method, config, tiny_task, tmp_path, monkeypatch):
    settings = {"mapping": METHODS[method], "optim": {"schedule": "cosine"}}
    trained(config(output=str(tmp_path / "whole"), **settings), tiny_task)
    whole = left_by(tmp_path / "whole")
    for step in range(1, STEPS + 1, 1 if method in ("ILM", "running") else 3):
        output = tmp_path / f"stopped-{step}"
        with monkeypatch.context() as patch:
            stop_after(patch, step)
            epoch, place = divmod(step - 1, 4)
            with pytest.raises(
                Interrupted, match=f"stopped at epoch {epoch + 1}, step {place + 1} and saved"
            ):
                trained(config(output=str(output), **settings), tiny_task)
            assert not (output / "results.json").exists()
        trained(config(output=str(output), resume="auto", **settings), tiny_task)
        assert left_by(output) == whole


def test_kept_features_that_train_are_resumed(config, tiny_task, tiny_model, tmp_path, monkeypatch):
    def run(output, **more):
        given = config(
            prompt={"kind": "none"},
            mapping={"kind": "tip_adapter", "train": True, "templates": "{}"},
            output=str(output),
            **more,
        )
        given.source.name, given.source.canvas = tiny_model("open_clip_vit"), None
        return given

    trained(run(tmp_path / "whole"), tiny_task)
    with monkeypatch.context() as patch:
        stop_after(patch, 6)
        with pytest.raises(Interrupted):
            trained(run(tmp_path / "stopped"), tiny_task)
    classifier, _ = trained(run(tmp_path / "stopped", resume="auto"), tiny_task)
    assert left_by(tmp_path / "stopped") == left_by(tmp_path / "whole")
    assert classifier.mapping.keys.shape == (60, classifier.source.num_features)


PROMPTS = {
    "smm": {"kind": "smm", "patch_size": 4, "channels": [4, 4]},
    "low_rank": {"kind": "low_rank"},
    "scaled": {"kind": "scaled", "image_size": 16},
    "border": {"kind": "border", "width": 4, "start": "normal"},
}


@pytest.mark.parametrize("kind", PROMPTS)
def test_every_prompt_is_resumed(kind, config, tiny_task, tmp_path, monkeypatch):
    def run(output, **more):
        made = config(
            output=str(tmp_path / output), train={"gradient_accumulation_steps": 2, "average": 2}, **more
        )
        made.prompt = PromptConfig(**PROMPTS[kind])
        return made

    trained(run("whole"), tiny_task)
    with monkeypatch.context() as patch:
        stop_after(patch, 6)
        with pytest.raises(Interrupted):
            trained(run("stopped"), tiny_task)
    trained(run("stopped", resume="auto"), tiny_task)
    assert left_by(tmp_path / "stopped") == left_by(tmp_path / "whole")
    average = [tmp_path / name / "prompt_average" / "model.safetensors" for name in ("stopped", "whole")]
    assert average[0].read_bytes() == average[1].read_bytes()


def test_stopped_at_every_step_of_one_run(config, tiny_task, tmp_path, monkeypatch):
    trained(config(output=str(tmp_path / "whole")), tiny_task)
    for _ in range(STEPS):
        with monkeypatch.context() as patch:
            stop_after(patch, 1)
            with pytest.raises(Interrupted):
                trained(config(resume="auto"), tiny_task)
    trained(config(resume="auto"), tiny_task)
    assert left_by(tmp_path / "run") == left_by(tmp_path / "whole")


def test_a_checkpoint_in_the_middle_of_an_epoch_every_so_many_minutes(config, tiny_task, tmp_path):
    _, result = trained(config(train={"save_minutes": 1e-9, "keep": 100}), tiny_task)
    names = sorted(path.name for path in (tmp_path / "run" / "checkpoints").iterdir())
    assert names == [f"step-{step:08d}.safetensors" for step in range(1, STEPS + 1)]
    whole = left_by(tmp_path / "run")
    for name in names[:0:-1]:  # each is enough to go on from
        (tmp_path / "run" / "checkpoints" / name).unlink()
        trained(config(resume="auto", train={"save_minutes": 1e9, "keep": 100}), tiny_task)
        assert left_by(tmp_path / "run") == whole
        for path in (tmp_path / "run" / "checkpoints").iterdir():
            if path.name >= name:
                path.unlink()


def test_a_damaged_newest_checkpoint_is_named_and_the_one_before_is_used(config, tiny_task, tmp_path, capsys):
    trained(config(), tiny_task)
    whole = left_by(tmp_path / "run")
    newest = max((tmp_path / "run" / "checkpoints").iterdir())
    newest.write_bytes(newest.read_bytes()[:-7])
    trained(config(resume="auto", train={"progress": True}), tiny_task)
    printed = capsys.readouterr().out
    assert f"damaged, so the one before it is used: {newest}" in printed
    assert "going on from" in printed and "epoch 3, step 0" in printed
    assert left_by(tmp_path / "run") == whole


def test_another_config_or_other_images_are_refused_and_nothing_is_lost(config, tiny_task, tmp_path):
    trained(config(), tiny_task)
    before = {path: path.read_bytes() for path in (tmp_path / "run").rglob("*") if path.is_file()}
    other = config(resume="auto", optim={"lr": 0.2}, mapping={"refresh": 2})
    with pytest.raises(UserError, match="optim.lr: 0.1, not 0.2") as error:
        trained(other, tiny_task)
    assert "mapping.refresh: 1, not 2" in str(error.value) and "\n" not in str(error.value)
    tiny_task.split_hash = "another"
    with pytest.raises(UserError, match="other images or splits"):
        trained(config(resume="auto"), tiny_task)
    assert {path: path.read_bytes() for path in (tmp_path / "run").rglob("*") if path.is_file()} == before


def test_other_texts_are_refused_and_the_same_ones_go_on(
    config, tiny_task, tiny_model, tmp_path, monkeypatch
):
    file = tmp_path / "texts.json"

    def describe(word: str) -> None:
        names = tiny_task.class_names
        file.write_text(
            json.dumps({name: [f"it is {i}.", f"it is {word} {i}."] for i, name in enumerate(names)})
        )

    def run(output="run", **more):
        made = config(
            mapping={"kind": "text_pool", "texts": str(file)}, output=str(tmp_path / output), **more
        )
        made.source.name, made.source.canvas = tiny_model("open_clip_vit"), None
        return made

    describe("this")
    trained(run("whole"), tiny_task)
    with monkeypatch.context() as patch:
        stop_after(patch, 6)
        with pytest.raises(Interrupted):
            trained(run(), tiny_task)
    describe("that")
    with pytest.raises(UserError, match="run was started with other texts of the classes$"):
        trained(run(resume="auto"), tiny_task)
    describe("this")
    trained(run(resume="auto"), tiny_task)
    assert left_by(tmp_path / "run") == left_by(tmp_path / "whole")


def test_several_prompts_and_counted_texts_are_resumed(config, tiny_task, tiny_model, tmp_path, monkeypatch):
    files = {group: tmp_path / f"{group}.json" for group in ("shape", "colour")}
    for group, file in files.items():
        own = {
            name: [f"its {group} is {word} {i}." for word in ("this", "that", "bright")]
            for i, name in enumerate(tiny_task.class_names)
        }
        file.write_text(json.dumps(own))

    def run(output, **more):
        texts = {group: str(file) for group, file in files.items()}
        made = config(
            prompt={"views": 2},
            mapping={"kind": "text_counts", "statistics": "running", "texts": texts, "top_k": 2},
            optim={"lr": 1.0},
            output=str(tmp_path / output),
            **more,
        )
        made.source.name, made.source.canvas = tiny_model("open_clip_vit"), None
        return made

    classifier, _ = trained(run("whole"), tiny_task)
    deltas = [part.delta for part in classifier.prompt.parts()]
    assert len(deltas) == 2 and not torch.equal(*deltas)
    for step in (2, 7):
        output = f"stopped-{step}"
        with monkeypatch.context() as patch:
            stop_after(patch, step)
            with pytest.raises(Interrupted):
                trained(run(output), tiny_task)
        trained(run(output, resume="auto"), tiny_task)
        assert left_by(tmp_path / output) == left_by(tmp_path / "whole")


def test_what_changes_no_result_may_differ(config, tiny_task, tmp_path, monkeypatch):
    trained(config(output=str(tmp_path / "whole")), tiny_task)
    with monkeypatch.context() as patch:
        stop_after(patch, 6)
        with pytest.raises(Interrupted):
            trained(config(), tiny_task)
    trained(config(resume="auto", train={"keep": 9, "save_every": 2, "progress": True}), tiny_task)
    assert left_by(tmp_path / "run") == left_by(tmp_path / "whole")


def test_what_a_killed_process_left_half_written_is_removed(config, tiny_task, tmp_path):
    trained(config(), tiny_task)
    run = tmp_path / "run"
    halves = [run / ".results.json.x.part", run / "checkpoints" / ".step-00000001.safetensors.y.part"]
    for path in halves:
        path.write_bytes(b"half")
    kept = run / "notes.part"
    kept.write_text("mine")
    trained(config(resume="auto"), tiny_task)
    assert not any(path.exists() for path in halves) and kept.exists()


# Signals


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT])
def test_a_signal_is_noted_and_the_handlers_are_given_back(number):
    before = signal.getsignal(number)
    with StopRequest() as stop:
        assert stop.signal is None
        signal.raise_signal(number)
        assert stop.signal == signal.Signals(number).name
    assert signal.getsignal(number) is before


def test_a_later_signal_ends_the_process_at_once():
    script = """
import signal
import time
from clipvp.training.interrupt import StopRequest
with StopRequest():
    signal.raise_signal(signal.SIGTERM)
    signal.raise_signal(signal.SIGTERM)  # a launcher's echo of the first
    print("working on", flush=True)
    time.sleep(1.1)
    signal.raise_signal(signal.SIGINT)
    print("never printed")
"""
    done = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, cwd=ROOT)
    assert (done.returncode, done.stdout) == (EXIT_CODE, "working on\n")


def test_a_stop_has_an_exit_code_of_its_own(capsys):
    with pytest.raises(SystemExit) as stopped, user_errors():
        raise Interrupted("stopped at epoch 1, step 2 and saved; go on with --resume auto --output runs/a")
    assert stopped.value.code == EXIT_CODE == 75
    assert capsys.readouterr().err.startswith("stopped at epoch 1, step 2 and saved")


@pytest.mark.slow
def test_a_recipe_that_is_asked_to_stop_saves_and_goes_on(tiny_timm, tmp_path):
    folder = write_image_folder(tmp_path / "images", {"train": 90, "val": 12, "test": 12}, 3)
    values = {"source.name": tiny_timm, "source.canvas": 32, "prompt.image_size": 16, "data.name": folder}
    values |= {"data.cache_dir": tmp_path / "cache", "train.batch_size": 4, "train.epochs": 8}
    values |= {"train.save_minutes": 1e-6, "output": tmp_path / "run", "resume": "auto"}
    command = [sys.executable, str(ROOT / "recipes" / "train.py"), *(f"--{k}={v}" for k, v in values.items())]
    running = subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)
    while running.poll() is None and not list((tmp_path / "run").glob("checkpoints/*.safetensors")):
        time.sleep(0.05)
    os.kill(running.pid, signal.SIGTERM)
    _, said = running.communicate(timeout=60)
    assert running.returncode == EXIT_CODE
    assert said.startswith("stopped at epoch ") and said.count("\n") == 1
    assert not (tmp_path / "run" / "results.json").exists()
    done = subprocess.run([*command, "--train.save_minutes=null"], capture_output=True, text=True)
    assert done.returncode == 0 and "going on from" in done.stdout
    assert len((tmp_path / "run" / "metrics.jsonl").read_text().splitlines()) == 8
