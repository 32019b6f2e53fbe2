"""A full disk, a folder that may not be written: one clear line, and what was saved before is whole."""

import contextlib
import errno
import os

import pytest
from conftest import full_disk, left_by, trained

from clipvp import UserError
from clipvp.artifact import save as pretrained
from clipvp.artifact.format import write_artifact
from clipvp.cli import user_errors
from clipvp.files import write_text
from clipvp.results.folder import RunFolder
from clipvp.training.checkpoint import Checkpoints


def fill_disk_at(monkeypatch, owner, name: str, time: int) -> None:
    """Have the disk be full at the n-th call of a function."""
    function, calls = getattr(owner, name), []

    def call(*args, **kwargs):
        calls.append(name)
        with full_disk() if len(calls) == time else contextlib.nullcontext():
            return function(*args, **kwargs)

    monkeypatch.setattr(owner, name, call)


@pytest.mark.parametrize(
    "owner, name, time, file",
    [
        (Checkpoints, "save", 2, "step-00000008.safetensors"),
        (RunFolder, "write_metrics", 2, "metrics.jsonl"),
        (RunFolder, "write_results", 1, "results.json"),
        (pretrained, "write_artifact", 1, "model.safetensors"),
    ],
)
def test_a_full_disk_loses_nothing_that_was_saved(
    owner, name, time, file, config, tiny_task, tmp_path, monkeypatch, capsys
):
    trained(config(output=str(tmp_path / "whole")), tiny_task)
    with monkeypatch.context() as patch:
        fill_disk_at(patch, owner, name, time)
        with pytest.raises(SystemExit) as stopped, user_errors():
            trained(config(), tiny_task)
    said = capsys.readouterr().err
    run = tmp_path / "run"
    assert stopped.value.code == 1 and said.count("\n") == 1
    assert said.startswith("error: ") and said.endswith(f"{file}: cannot write: {os.strerror(errno.EFBIG)}\n")
    assert Checkpoints(run / "checkpoints", 9).newest()[3] == [] and not list(run.rglob(".*"))
    assert not (run / "results.json").exists()
    trained(config(resume="auto"), tiny_task)
    assert left_by(run) == left_by(tmp_path / "whole")


def test_a_file_that_stood_there_stays_when_the_disk_is_full(tmp_path):
    write_text(tmp_path / "a.txt", "first")
    with full_disk(), pytest.raises(OSError, match="cannot write") as error:
        write_text(tmp_path / "a.txt", "x" * 1000)
    assert error.value.errno == errno.EFBIG and error.value.filename == str(tmp_path / "a.txt")
    assert (tmp_path / "a.txt").read_text() == "first" and len(list(tmp_path.iterdir())) == 1


def test_tensors_tell_a_full_disk_like_any_other_file(tmp_path):
    import torch

    with full_disk(), pytest.raises(OSError, match="cannot write") as error:
        write_artifact(tmp_path, {}, {"prompt.delta": torch.zeros(3, 64, 64)})
    assert error.value.errno == errno.EFBIG and list(tmp_path.iterdir()) == []


@pytest.mark.parametrize("place", ["file", "file/deep/run"])
def test_an_output_that_cannot_be_a_folder_is_told_before_any_work(
    place, config, tiny_task, tmp_path, monkeypatch
):
    (tmp_path / "file").write_text("mine")
    monkeypatch.setattr("clipvp.training.fit.main_first", lambda *_: pytest.fail("images were loaded"))
    with pytest.raises(UserError, match="output: .*file.* is a file, not a folder"):
        trained(config(output=str(tmp_path / place)), tiny_task)
    assert (tmp_path / "file").read_text() == "mine"


def test_an_output_that_may_not_be_written_is_told_before_any_work(config, tiny_task, tmp_path, monkeypatch):
    (tmp_path / "locked").mkdir(mode=0o500)
    if os.geteuid() == 0:  # the superuser may write anywhere, and is told that it may not
        monkeypatch.setattr("clipvp.results.folder.os.access", lambda *_: False)
    monkeypatch.setattr("clipvp.training.fit.main_first", lambda *_: pytest.fail("images were loaded"))
    with pytest.raises(UserError, match="output: .*locked.* may not be written"):
        trained(config(output=str(tmp_path / "locked" / "run")), tiny_task)
