"""Images are decoded once, whatever happens: later runs open none, and a killed builder leaves nothing wrong."""

import os
import subprocess
import sys
import time

import numpy as np
import pytest
from conftest import photo, write_image_folder

from clipvp import build_classifier, fit, load_task
from clipvp.data import cache, decode
from clipvp.data.cache import list_images
from clipvp.data.sets import ImageSet
from clipvp.images import Resize

RESIZE = Resize((32, 32))


def test_a_second_run_opens_no_image_file(config, tmp_path):
    folder = write_image_folder(tmp_path / "images", {"train": 24, "test": 9}, 3)
    opened = None

    def watch(event, arguments):
        if event == "open" and opened is not None and str(arguments[0]).startswith(str(folder)):
            opened.add(arguments[0])

    sys.addaudithook(
        watch
    )  # sees whatever opens a file; it cannot be removed, and does nothing once opened is None
    seen = []
    for name in ("first", "second"):
        data = {"name": str(folder), "cache_dir": str(tmp_path / "cache")}
        settings = config(data=data, train={"epochs": 1})
        settings.output = str(tmp_path / name)
        opened = set()
        task = load_task(settings.data, seed=settings.seed)
        fit(build_classifier(settings, task), task, settings)
        seen.append(opened)
    opened = None
    assert len(seen[0]) == 24 + 9 and seen[1] == set()


def test_a_subset_reads_the_map_and_copies_nothing(tmp_path):
    pixels = np.random.default_rng(0).integers(0, 256, (20, 8, 8, 3), dtype=np.uint8)
    images = ImageSet(list(pixels), np.zeros(20), "pictures", "f")
    rows = np.array([3, 4, 9, 17])
    mapped, places, *_ = decode.load_pixels(
        images.subset(rows), Resize((8, 8)), cache_dir=tmp_path, progress=False
    )
    assert isinstance(mapped.base, np.memmap) and places.tolist() == rows.tolist()
    tensors = images.subset(rows).tensors(Resize((8, 8)), cache_dir=tmp_path)
    assert len(tensors) == 4 and tensors.base.shape == (20, 3, 8, 8)
    np.testing.assert_array_equal(tensors.images.permute(0, 2, 3, 1).numpy(), pixels[rows])


def test_what_a_killed_builder_left_goes_when_it_is_surely_nobodys(tmp_path):
    images = ImageSet([np.zeros((8, 8, 3), np.uint8)] * 3, np.zeros(3), "pictures", "f")
    images.tensors(RESIZE, cache_dir=tmp_path)
    (entry,) = list_images(tmp_path)
    old, young = entry.path / ".pixels.u8.abc.part", entry.path / ".crc.u64.def.part"
    for path, age in ((old, 2 * cache.ABANDONED), (young, 0)):
        path.write_bytes(b"half")
        os.utime(path, (time.time() - age,) * 2)
    images.tensors(RESIZE, cache_dir=tmp_path)
    assert not old.exists() and young.exists()


# A process that has imported everything forks the builders, so that a try costs only what it builds.
KILLS = """
import os, random, signal, sys, time
from pathlib import Path
import numpy as np
from clipvp.data.sets import ImageSet
from clipvp.data import cache
from clipvp.data.cache import list_images
from clipvp.files import remove_entries
from clipvp.data.decode import load_pixels
from clipvp.images import Resize

folder, root, kills = sys.argv[1], sys.argv[2], int(sys.argv[3])
paths = sorted(str(path) for path in Path(folder).iterdir())
resize = Resize((32, 32))
images = ImageSet(paths, np.zeros(len(paths)), "pictures", "f")

def builder(where):
    child = os.fork()
    if child == 0:
        load_pixels(images, resize, cache_dir=where, progress=False)
        os._exit(0)
    return child

begun = time.monotonic()
os.waitpid(builder(root + "-timed"), 0)
whole = time.monotonic() - begun
truth = load_pixels(images, resize, cache_dir=root + "-timed", progress=False)[0]
chance, killed, half = random.Random(0), 0, 0
while killed < kills:
    child = builder(root)
    time.sleep(chance.uniform(0, whole / 2))
    os.kill(child, signal.SIGKILL)
    _, status = os.waitpid(child, 0)
    with cache.Entry(root, images.name, images.fingerprint, len(paths), resize) as entry:
        trusted = entry.check(images.indices)
        assert (entry.pixels()[trusted] == truth[trusted]).all(), "it trusts what is wrong"
    killed += os.WIFSIGNALED(status)
    half += 0 < trusted.sum() < len(paths)
    if trusted.all() and killed < kills:
        remove_entries(list_images(root))
print(killed, half)
"""


@pytest.mark.slow
def test_twenty_kills_while_building_leave_a_correct_cache(tmp_path, monkeypatch):
    folder, root = tmp_path / "images", tmp_path / "cache"
    folder.mkdir()
    for index in range(300):
        photo(96, 120, seed=index).save(folder / f"{index:03}.jpg")
    command = [sys.executable, "-c", KILLS, str(folder), str(root), "20"]
    done = subprocess.run(command, capture_output=True, text=True, timeout=300)
    assert done.returncode == 0, done.stderr
    killed, half = map(int, done.stdout.split())
    assert killed == 20 and half > 3  # some of them in the middle of it

    paths = sorted(str(path) for path in folder.iterdir())
    images = ImageSet(paths, np.zeros(len(paths)), "pictures", "f")
    expected = ImageSet(paths, np.zeros(len(paths))).tensors(RESIZE).images
    assert images.tensors(RESIZE, cache_dir=root).images.equal(expected)
    monkeypatch.setattr(decode, "decode_one", None)  # nothing is left to be decoded
    monkeypatch.setattr(cache, "ABANDONED", 0.0)
    assert images.tensors(RESIZE, cache_dir=root).images.equal(expected)
    (entry,) = list_images(root)
    assert entry.what.endswith("300 of 300 images")
    assert sorted(path.name for path in entry.path.iterdir()) == ["crc.u64", "entry.json", "pixels.u8"]
