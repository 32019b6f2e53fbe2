"""A checkpoint is whole or not there; what was damaged is never taken for what was written."""

import json
import os
import threading

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from safetensors.torch import save_file

from clipvp.files import Damaged, digest, load_state, save_state, write_atomic, write_json, write_text
from clipvp.training.checkpoint import Checkpoints

VALUES = {"epoch": 3, "history": [{"loss": 0.1, "who": "Zoë"}], "none": None}


def tensors(seed: int = 0) -> dict[str, torch.Tensor]:
    generator = torch.Generator().manual_seed(seed)
    values = torch.randn(4, 5, generator=generator)
    return {
        "floats": values,
        "turned": values.T,
        "half": values.to(torch.bfloat16),
        "counts": torch.arange(6).reshape(2, 3),
        "yes": torch.tensor([True, False]),
        "one": torch.tensor(7.5),
        "none": torch.zeros(0, 3),
    }


def same(left: dict[str, torch.Tensor], right: dict[str, torch.Tensor]) -> bool:
    return left.keys() == right.keys() and all(
        torch.equal(left[name], right[name]) and left[name].dtype == right[name].dtype for name in left
    )


@pytest.fixture(scope="module")
def written(tmp_path_factory):
    path = tmp_path_factory.mktemp("whole") / "state.safetensors"
    save_state(path, tensors(), VALUES)
    return path, path.read_bytes()


def test_what_was_saved_is_what_is_loaded(written):
    loaded, values = load_state(written[0])
    assert same(loaded, tensors()) and values == VALUES


@settings(max_examples=150, deadline=None)
@given(st.data())
def test_a_cut_file_is_damaged_wherever_it_is_cut(written, data):
    path, content = written
    cut = path.with_name("cut.safetensors")
    cut.write_bytes(content[: data.draw(st.integers(0, len(content) - 1))])
    with pytest.raises(Damaged, match="cut.safetensors"):
        load_state(cut)


@settings(max_examples=400, deadline=None)
@given(st.data())
def test_a_changed_file_is_damaged_or_says_the_same(written, data):
    path, content = written
    changed, damaged = bytearray(content), path.with_name("changed.safetensors")
    for _ in range(data.draw(st.integers(1, 3))):
        place = data.draw(st.integers(0, len(content) - 1))
        changed[place] ^= 1 << data.draw(st.integers(0, 7))
    damaged.write_bytes(changed)
    try:
        loaded, values = load_state(damaged)
    except Damaged as error:
        assert "changed.safetensors" in str(error) and "\n" not in str(error)
    else:  # a bit of the format's own that carries nothing
        assert same(loaded, tensors()) and values == VALUES


@pytest.mark.parametrize(
    "content", [b"", b"\0" * 100, b"{}", b"\xff" * 64, os.urandom(300), b"\x02" + b"\0" * 7 + b"{}"]
)
def test_other_files_are_damaged(tmp_path, content):
    path = tmp_path / "a.safetensors"
    path.write_bytes(content)
    with pytest.raises(Damaged):
        load_state(path)


def test_a_safetensors_file_of_another_program_is_damaged(tmp_path):
    for number, metadata in enumerate([None, {"values": "{}"}, {"values": "{}", "sha256": "0"}]):
        path = tmp_path / f"{number}.safetensors"
        save_file({"a": torch.ones(2)}, path, metadata)
        with pytest.raises(Damaged):
            load_state(path)
    with pytest.raises(Damaged):
        load_state(tmp_path / "nothing.safetensors")


def test_a_value_that_is_no_number_is_refused_before_anything_is_written(tmp_path):
    with pytest.raises(ValueError, match="JSON"):
        save_state(tmp_path / "a.safetensors", tensors(), {"loss": float("nan")})
    with pytest.raises(ValueError, match="JSON"):
        write_json(tmp_path / "a.json", {"acc": float("inf")})
    assert list(tmp_path.iterdir()) == []


# Whole or not there


def test_a_write_that_fails_leaves_what_was_there(tmp_path):
    path = tmp_path / "deep" / "a.txt"
    write_text(path, "first")

    def fail(aside):
        aside.write_text("half of the sec")
        raise OSError("disk full")

    with pytest.raises(OSError, match="disk full"):
        write_atomic(path, fail)
    assert path.read_text() == "first" and list(path.parent.iterdir()) == [path]


def test_a_reader_never_sees_half_a_file(tmp_path):
    path, stop, seen = tmp_path / "a.json", threading.Event(), set()
    long = {"values": list(range(5000))}
    write_json(path, long)

    def write():
        while not stop.is_set():
            write_json(path, long)

    writers = [threading.Thread(target=write) for _ in range(2)]
    for writer in writers:
        writer.start()
    try:
        for _ in range(60):
            seen.add(json.dumps(json.loads(path.read_text())))
    finally:
        stop.set()
        for writer in writers:
            writer.join()
    assert seen == {json.dumps(long)} and list(tmp_path.iterdir()) == [path]


def test_files_have_the_rights_that_any_new_file_has(tmp_path):
    (tmp_path / "plain").write_text("")
    write_text(tmp_path / "atomic", "")
    assert (tmp_path / "atomic").stat().st_mode == (tmp_path / "plain").stat().st_mode


# The folder of a run's checkpoints


def filled(folder, keep=3, steps=(1, 2, 9, 10, 100)) -> Checkpoints:
    checkpoints = Checkpoints(folder, keep)
    for step in steps:
        checkpoints.save(step, tensors(step), {"epoch": step})
    return checkpoints


def test_the_newest_few_are_kept_in_the_order_of_their_steps(tmp_path):
    (tmp_path / "step-notes.txt").write_text("not ours")
    checkpoints = filled(tmp_path)
    assert [int(path.stem.removeprefix("step-")) for path in checkpoints.paths()] == [9, 10, 100]
    assert (tmp_path / "step-notes.txt").exists()
    path, loaded, values, damaged = checkpoints.newest()
    assert values == {"epoch": 100} and same(loaded, tensors(100)) and damaged == []


def test_the_newest_whole_one_is_taken_and_the_damaged_are_named(tmp_path):
    checkpoints = filled(tmp_path)
    oldest, middle, newest = checkpoints.paths()
    newest.write_bytes(newest.read_bytes()[:-1])
    middle.write_bytes(b"")
    path, loaded, values, damaged = checkpoints.newest()
    assert path == oldest and values == {"epoch": 9} and same(loaded, tensors(9))
    assert len(damaged) == 2 and newest.name in damaged[0] and middle.name in damaged[1]


def test_a_save_that_fails_leaves_the_earlier_ones(tmp_path, monkeypatch):
    checkpoints = filled(tmp_path)
    before = checkpoints.paths()
    monkeypatch.setattr("clipvp.files.os.replace", lambda *_: (_ for _ in ()).throw(OSError("disk full")))
    with pytest.raises(OSError, match="disk full"):
        checkpoints.save(101, tensors(), {})
    assert checkpoints.paths() == before and len(list(tmp_path.iterdir())) == 3
    assert checkpoints.newest()[2] == {"epoch": 100}


@pytest.mark.parametrize("content", [None, b"x"])
def test_none_where_there_is_no_whole_one(tmp_path, content):
    if content:
        (tmp_path / "step-00000001.safetensors").write_bytes(content)
    assert Checkpoints(tmp_path / "nothing", 2).newest() is None
    assert Checkpoints(tmp_path, 2).newest() is None


class OnDevice(torch.Tensor):
    """A tensor that has no array before it is copied to the CPU, as on an accelerator."""

    def cpu(self):
        return self.as_subclass(torch.Tensor)

    def numpy(self):
        raise TypeError("can't convert a tensor of a device to numpy")


def test_the_digest_of_tensors_on_a_device_is_that_of_the_cpu():
    plain = tensors()
    there = {name: value.as_subclass(OnDevice) for name, value in plain.items()}
    assert digest(there) == digest(plain)
