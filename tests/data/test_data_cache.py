"""The decode-once cache: decodes what is absent, trusts nothing but checksums, and never stops a run."""

import errno
import io
import json
import os
import subprocess
import sys
import threading
import zlib
from collections.abc import Sequence
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from PIL import Image

from clipvp.data import cache as cache_module
from clipvp.data import decode as decode_module
from clipvp.data.cache import list_images
from clipvp.data.sets import ImageSet
from clipvp.files import cache_root, remove_entries
from clipvp.images import Resize, to_rgb
from clipvp.registry import UserError

RESIZE = Resize((6, 5))


class Files(Sequence):
    """Encoded images that count how often each is asked for; those in ``bad`` are truncated."""

    def __init__(self, count=40, bad=()):
        rng = np.random.default_rng(0)
        self.files = []
        for index in range(count):
            buffer = io.BytesIO()
            Image.fromarray(rng.integers(0, 256, (9, 7, 3), dtype=np.uint8)).save(buffer, "PNG")
            data = buffer.getvalue()
            self.files.append(data[: len(data) // 2] if index in bad else data)
        self.asked = []

    def __len__(self):
        return len(self.files)

    def __getitem__(self, index):
        self.asked.append(index)
        return self.files[index]


def image_set(files, fingerprint="f", **options):
    return ImageSet(files, np.arange(len(files)) % 4, "pictures", fingerprint, **options)


def expected(files, indices=None, resize=RESIZE):
    indices = range(len(files)) if indices is None else indices
    return np.stack([resize(to_rgb(files.files[index])) for index in indices])


def pixels(tensors):
    return tensors.images.permute(0, 2, 3, 1).numpy()


def decoded_again(files, cache_dir, resize=RESIZE):
    """Return the images that a second pass decodes, having checked that it gets the right pixels."""
    files.asked.clear()
    tensors = image_set(files).tensors(resize, cache_dir=cache_dir, progress=False)
    np.testing.assert_array_equal(pixels(tensors), expected(files, resize=resize))
    return sorted(files.asked)


@pytest.fixture
def filled(tmp_path):
    """A filled cache: its files, its folder, and the folder of its one entry."""
    files = Files()
    image_set(files).tensors(RESIZE, cache_dir=tmp_path, progress=False)
    return files, tmp_path, list_images(tmp_path)[0].path


# What comes out


@pytest.mark.parametrize("fingerprint", ["f", None])
def test_tensors_are_the_decoded_images_and_their_labels(tmp_path, fingerprint):
    files = Files()
    rows = np.array([3, 17, 18, 2])
    for chosen in (np.arange(len(files)), np.arange(5, 30), rows):
        images = image_set(files, fingerprint).subset(chosen)
        tensors = images.tensors(RESIZE, cache_dir=tmp_path, progress=False)
        assert tensors.images.shape == (len(chosen), 3, 6, 5) and tensors.images.dtype == torch.uint8
        assert tensors.images.stride()[1:] == (1, 15, 3)
        assert tensors.labels.dtype == torch.int64 and tensors.labels.tolist() == (chosen % 4).tolist()
        np.testing.assert_array_equal(pixels(tensors), expected(files, chosen))


def test_a_subset_of_a_subset_is_the_right_images():
    files = Files()
    images = image_set(files).subset(np.arange(10, 30)).subset(np.array([1, 5]))
    assert [images.item(row) for row in (0, 1)] == [files.files[11], files.files[15]]
    assert images.labels.tolist() == [3, 3] and images.class_counts(6).tolist() == [0, 0, 0, 2, 0, 0]


def test_changing_the_tensors_changes_no_file(filled):
    files, folder, _ = filled
    tensors = image_set(files).tensors(RESIZE, cache_dir=folder)
    tensors.images.fill_(7)
    assert decoded_again(files, folder) == []


# What is decoded


def test_a_second_pass_opens_no_image(filled):
    files, folder, _ = filled
    assert decoded_again(files, folder) == []


def test_only_what_is_needed_is_decoded(tmp_path):
    files = Files()
    image_set(files).subset(np.arange(0, 40, 3)).tensors(RESIZE, cache_dir=tmp_path)
    assert sorted(files.asked) == list(range(0, 40, 3))
    assert decoded_again(files, tmp_path) == [index for index in range(40) if index % 3]


@pytest.mark.parametrize(
    "other",
    [
        Resize((5, 6)),
        Resize((6, 5), "crop"),
        Resize((6, 5), interpolation="nearest"),
        Resize((6, 5), "crop", 0.9),
    ],
)
def test_another_resize_is_another_entry(filled, other):
    files, folder, _ = filled
    assert decoded_again(files, folder, other) == list(range(40))
    assert decoded_again(files, folder) == [] and len(list_images(folder)) == 2


def test_another_fingerprint_is_another_entry(filled):
    files, folder, _ = filled
    other = Files(41)
    np.random.default_rng(1).shuffle(other.files)
    tensors = image_set(other, "g").tensors(RESIZE, cache_dir=folder)
    np.testing.assert_array_equal(pixels(tensors), expected(other))


def test_no_fingerprint_writes_nothing(tmp_path):
    image_set(Files(), None).tensors(RESIZE, cache_dir=tmp_path)
    assert list(tmp_path.iterdir()) == []


# What is trusted


def test_damaged_pixels_and_checksums_are_decoded_again(filled):
    files, folder, entry = filled
    with open(entry / "pixels.u8", "r+b") as file:
        file.seek(3 * 90 + 11)
        byte = file.read(1)[0]
        file.seek(3 * 90 + 11)
        file.write(bytes([byte ^ 1]))
    with open(entry / "crc.u64", "r+b") as file:
        file.seek(20 * 8)
        file.write(bytes(8))
    assert decoded_again(files, folder) == [3, 20]
    assert decoded_again(files, folder) == []


@pytest.mark.parametrize("name", ["pixels.u8", "crc.u64"])
@pytest.mark.parametrize("damage", ["truncated", "longer", "gone", "empty", "noise"])
def test_damaged_files_are_rebuilt(filled, name, damage):
    files, folder, entry = filled
    path = entry / name
    data = path.read_bytes()
    noise = np.random.default_rng(5).bytes(len(data))
    path.write_bytes({"truncated": data[:-5], "longer": data + b"x", "noise": noise}.get(damage, b""))
    if damage == "gone":
        path.unlink()
    assert decoded_again(files, folder) == list(range(40))
    assert decoded_again(files, folder) == []


@pytest.mark.parametrize("text", ["", "[]", "{", '{"format": 0}', None])
def test_an_entry_of_unknown_origin_is_not_trusted(filled, text):
    files, folder, entry = filled
    known = json.loads((entry / "entry.json").read_text())
    assert known["name"] == "pictures" and known["count"] == 40
    (entry / "entry.json").write_text(json.dumps({**known, "fingerprint": "other"}) if text is None else text)
    assert decoded_again(files, folder) == list(range(40))
    assert decoded_again(files, folder) == []


def test_an_image_whose_checksum_is_zero_is_present(tmp_path, monkeypatch):
    monkeypatch.setattr(cache_module, "zlib", SimpleNamespace(crc32=lambda data: 0))
    files = Files()
    image_set(files).tensors(RESIZE, cache_dir=tmp_path)
    assert decoded_again(files, tmp_path) == []


def test_an_interrupted_build_is_resumed(tmp_path, monkeypatch):
    monkeypatch.setattr(decode_module, "CHUNK", 4)
    files = Files()

    class Interrupting(Files):
        def __getitem__(self, index):
            if index == 30:
                raise KeyboardInterrupt
            return super().__getitem__(index)

    with pytest.raises(KeyboardInterrupt):
        image_set(Interrupting()).tensors(RESIZE, cache_dir=tmp_path)
    again = decoded_again(files, tmp_path)
    assert 0 < len(again) < 40 and 30 in again


# Many at once


def test_threads_that_fill_one_entry_agree(tmp_path, monkeypatch):
    monkeypatch.setattr(decode_module, "CHUNK", 2)
    results = [None] * 4

    def fill(number):
        results[number] = pixels(image_set(Files()).tensors(RESIZE, cache_dir=tmp_path, progress=False))

    threads = [threading.Thread(target=fill, args=(number,)) for number in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    for result in results:
        np.testing.assert_array_equal(result, expected(Files()))
    assert decoded_again(Files(), tmp_path) == []


def test_processes_that_fill_one_entry_agree(tmp_path):
    code = (
        "import sys, zlib; sys.path.insert(0, sys.argv[1]);"
        "from test_data_cache import *;"
        "print(zlib.crc32(pixels(image_set(Files(400)).tensors(RESIZE, cache_dir=sys.argv[2]))))"
    )
    here = os.path.dirname(__file__)
    command = [sys.executable, "-c", code, here, str(tmp_path)]
    environment = {**os.environ, "PYTHONPATH": os.pathsep.join([os.path.dirname(here), *sys.path])}
    running = [subprocess.Popen(command, stdout=subprocess.PIPE, env=environment) for _ in range(2)]
    found = {int(process.communicate(timeout=100)[0]) for process in running}
    files = Files(400)
    assert found == {zlib.crc32(expected(files))}
    assert decoded_again(files, tmp_path) == []


# What goes wrong


def test_all_unreadable_images_are_listed(tmp_path):
    files = Files(bad=range(5, 20))
    with pytest.raises(UserError) as error:
        image_set(files).tensors(RESIZE, cache_dir=tmp_path)
    text = str(error.value)
    assert "pictures: 15 of 40 images cannot be read" in text and "\n" not in text
    assert all(f"pictures[{index}]" in text for index in range(5, 15)) and "5 more" in text
    assert "data.on_error: skip" in text


@pytest.mark.parametrize("fingerprint", ["f", None])
def test_unreadable_images_can_be_left_out(tmp_path, fingerprint):
    files = Files(bad=[2, 39])
    kept = np.delete(np.arange(40), [2, 39])
    for _ in range(2):
        images = image_set(files, fingerprint)
        tensors = images.tensors(RESIZE, cache_dir=tmp_path, on_error="skip")
        assert tensors.skipped == ["pictures[2]", "pictures[39]"]
        assert tensors.labels.tolist() == (kept % 4).tolist()
        np.testing.assert_array_equal(pixels(tensors), expected(files, kept))


def test_a_path_is_named_in_full(tmp_path):
    bad = tmp_path / "bad.png"
    bad.write_bytes(b"no image")
    images = ImageSet([str(bad)], np.array([0]), "pictures", "f")
    with pytest.raises(UserError, match=str(bad)):
        images.tensors(RESIZE, cache_dir=tmp_path)
    assert images.tensors(RESIZE, cache_dir=tmp_path, on_error="skip").skipped == [str(bad)]


def test_a_folder_that_cannot_be_written_costs_only_the_cache(tmp_path):
    (tmp_path / "file").write_text("in the way")
    files = Files()
    with pytest.warns(UserWarning, match="stay in memory"):
        tensors = image_set(files).tensors(RESIZE, cache_dir=tmp_path / "file")
    np.testing.assert_array_equal(pixels(tensors), expected(files))


def test_a_full_disk_costs_only_the_cache(tmp_path, monkeypatch):
    monkeypatch.setattr(decode_module, "CHUNK", 4)
    write = cache_module.Entry.write

    def full(self, indices, *values):
        if indices[0] > 10:
            raise OSError(errno.ENOSPC, "No space left on device")
        write(self, indices, *values)

    monkeypatch.setattr(cache_module.Entry, "write", full)
    files = Files(bad=[1])
    with pytest.warns(UserWarning, match="No space left") as caught:
        tensors = image_set(files).tensors(RESIZE, cache_dir=tmp_path, on_error="skip")
    assert len(caught) == 1 and tensors.skipped == ["pictures[1]"]
    np.testing.assert_array_equal(pixels(tensors), expected(files, np.delete(np.arange(40), 1)))


def test_a_read_only_cache_serves_what_it_holds(filled, monkeypatch):
    files, folder, _ = filled
    real_open = open

    def read_only(path, mode="r", *arguments, **options):
        if "+" in mode or "w" in mode:
            raise PermissionError(errno.EACCES, "Permission denied", str(path))
        return real_open(path, mode, *arguments, **options)

    monkeypatch.setattr("builtins.open", read_only)
    assert decoded_again(files, folder) == []


# The folder


def test_where_the_cache_lies(tmp_path, monkeypatch):
    monkeypatch.setenv("HOME", str(tmp_path))
    monkeypatch.delenv("CLIPVP_CACHE", raising=False)
    monkeypatch.delenv("XDG_CACHE_HOME", raising=False)
    assert cache_root() == tmp_path / ".cache" / "clipvp"
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "x"))
    assert cache_root() == tmp_path / "x" / "clipvp"
    monkeypatch.setenv("CLIPVP_CACHE", str(tmp_path / "c"))
    assert cache_root() == tmp_path / "c"
    assert cache_root("~/mine") == tmp_path / "mine"


def test_entries_are_listed_and_cleared_and_nothing_else_is(tmp_path):
    assert list_images(tmp_path / "none") == [] and remove_entries(list_images(tmp_path / "none")) == 0
    files = Files()
    image_set(files).subset(np.arange(7)).tensors(RESIZE, cache_dir=tmp_path)
    (tmp_path / "images" / "mine").mkdir()
    (tmp_path / "images" / "mine" / "keep.txt").write_text("keep")
    (entry,) = list_images(tmp_path)
    assert entry.what == "pictures at 6x5 (squash), 7 of 40 images" and entry.num_bytes > 0
    assert remove_entries(list_images(tmp_path)) == entry.num_bytes
    assert list_images(tmp_path) == [] and (tmp_path / "images" / "mine" / "keep.txt").exists()


def test_a_large_entry_takes_only_the_room_of_its_images(tmp_path):
    files = Files(2000)
    big = Resize((64, 64))
    image_set(files).subset(np.arange(2)).tensors(big, cache_dir=tmp_path)
    (entry,) = list_images(tmp_path)
    counts_blocks = hasattr(os.stat(tmp_path), "st_blocks")  # elsewhere a file takes its whole length
    assert (entry.num_bytes < 2000 * 64 * 64 * 3 / 10) == counts_blocks
