"""Text embeddings are made once, and a cache that is not right is as good as none."""

import json
import subprocess
import sys
import time

import pytest
import torch
from conftest import full_disk
from safetensors.torch import save_file
from torch.nn import functional as F

from clipvp import UserError, load_source
from clipvp.files import cache_root
from clipvp.sources.text import encode_in_batches, text_embeddings

TEXTS = [f"a photo of number {i}" for i in range(600)]
KEY = {"model": "test", "revision": None, "weights": "0123", "precision": "fp32"}


class Encoder:
    """A text tower that counts its calls and texts: each text's letters, weighted by their place."""

    def __init__(self):
        self.calls, self.texts = 0, []

    def __call__(self, texts: list[str]) -> torch.Tensor:
        self.calls += 1
        self.texts += texts
        assert torch.is_grad_enabled() is False
        codes = torch.zeros(len(texts), 32, dtype=torch.float64)
        for row, text in enumerate(texts):
            codes[row, : len(text)] = torch.tensor([ord(letter) for letter in text], dtype=torch.float64)
        return codes


@pytest.fixture(autouse=True)
def cache(tmp_path, monkeypatch):
    monkeypatch.setenv("CLIPVP_CACHE", str(tmp_path / "cache"))
    return tmp_path / "cache" / "text"


def only_file(cache):
    (file,) = cache.glob("*.safetensors")
    return file


def test_embeddings_are_normalised_float32_rows_in_the_order_of_the_texts():
    encode = Encoder()
    found = encode_in_batches(encode, TEXTS)
    assert found.shape == (600, 32) and found.dtype == torch.float32 and not found.is_inference()
    with torch.no_grad():
        expected = F.normalize(Encoder()(TEXTS), dim=1).float()
    torch.testing.assert_close(found, expected)
    assert encode.texts == TEXTS and 1 < encode.calls < 10


def test_a_second_time_encodes_nothing_and_gives_the_same(cache):
    first, second = Encoder(), Encoder()
    one = text_embeddings(first, TEXTS, KEY)
    other = text_embeddings(second, TEXTS, KEY)
    assert first.texts == TEXTS and second.calls == 0 and torch.equal(one, other)
    assert cache == cache_root() / "text" and only_file(cache).stat().st_size > 600 * 32 * 4


@pytest.mark.parametrize("part", ["model", "revision", "weights", "precision", "texts", "order"])
def test_everything_that_decides_the_embeddings_is_in_the_key(part, cache):
    text_embeddings(Encoder(), TEXTS, KEY)
    again, texts, key = Encoder(), list(TEXTS), dict(KEY)
    if part == "texts":
        texts[3] += "!"
    elif part == "order":
        texts.reverse()
    else:
        key[part] = "another"
    torch.testing.assert_close(text_embeddings(again, texts, key), encode_in_batches(Encoder(), texts))
    assert again.texts == texts and len(list(cache.glob("*.safetensors"))) == 2


def test_a_text_that_is_there_twice_is_encoded_once(cache):
    twice = [*TEXTS[:300], *TEXTS[100:400], TEXTS[0]]
    encode = Encoder()
    found = text_embeddings(encode, twice, KEY)
    assert encode.texts == TEXTS[:400]
    distinct = encode_in_batches(Encoder(), TEXTS[:400])
    assert torch.equal(found, distinct[[*range(300), *range(100, 400), 0]])
    after = Encoder()
    assert torch.equal(text_embeddings(after, twice, KEY), found)
    assert torch.equal(text_embeddings(after, TEXTS[:400], KEY), distinct) and after.calls == 0
    assert len(list(cache.glob("*.safetensors"))) == 1


def flip(path) -> None:
    data = bytearray(path.read_bytes())
    data[-100] ^= 4
    path.write_bytes(data)


def of_another_key(path) -> None:
    text_embeddings(Encoder(), TEXTS[::-1], KEY)
    (other,) = set(path.parent.glob("*.safetensors")) - {path}
    other.replace(path)


def foreign(path) -> None:
    save_file({"embeddings": torch.zeros(600, 32)}, path, {"format": "pt"})


DAMAGES = {
    "cut": lambda path: path.write_bytes(path.read_bytes()[:-1000]),
    "empty": lambda path: path.write_bytes(b""),
    "text": lambda path: path.write_text("embeddings"),
    "one bit": flip,
    "of another program": foreign,
    "of another key": of_another_key,
    "a folder": lambda path: (path.unlink(), path.mkdir()),
}


@pytest.mark.parametrize("damage", [name for name in DAMAGES if name != "a folder"])
def test_a_file_that_is_not_what_was_written_is_made_again(damage, cache):
    right = text_embeddings(Encoder(), TEXTS, KEY)
    path = only_file(cache)
    DAMAGES[damage](path)
    encode = Encoder()
    assert torch.equal(text_embeddings(encode, TEXTS, KEY), right) and encode.texts == TEXTS
    after = Encoder()
    assert torch.equal(text_embeddings(after, TEXTS, KEY), right) and after.calls == 0


def test_without_a_place_to_write_the_embeddings_are_there_all_the_same(tmp_path, monkeypatch):
    (tmp_path / "file").write_text("")
    monkeypatch.setenv("CLIPVP_CACHE", str(tmp_path / "file"))  # no folder can be made in a file, by nobody
    encode = Encoder()
    with pytest.warns(UserWarning, match="text embeddings are made anew each time"):
        found = text_embeddings(encode, TEXTS, KEY)
    assert encode.texts == TEXTS and torch.equal(found, encode_in_batches(Encoder(), TEXTS))


def test_a_file_system_without_locks_is_told_and_keeps_the_embeddings(cache, monkeypatch):
    class NoLock:
        def __init__(self, path):
            pass

        def __enter__(self):
            raise NotImplementedError

        def __exit__(self, *_):
            pass

    monkeypatch.setattr("clipvp.sources.text.FileLock", NoLock)
    with pytest.warns(UserWarning, match="each encode the texts: the file system has no locks"):
        found = text_embeddings(Encoder(), TEXTS, KEY)
    after = Encoder()
    assert torch.equal(text_embeddings(after, TEXTS, KEY), found) and after.calls == 0


def test_a_disk_that_fills_up_leaves_no_file_and_no_error(cache):
    with full_disk(), pytest.warns(UserWarning, match="made anew each time: .*cannot write"):
        text_embeddings(Encoder(), TEXTS, KEY)
    assert not list(cache.glob("*.safetensors")) and not list(cache.glob("*.part"))


def test_a_path_that_a_folder_takes_is_no_error(cache):
    text_embeddings(Encoder(), TEXTS, KEY)
    DAMAGES["a folder"](only_file(cache))
    encode = Encoder()
    with pytest.warns(UserWarning, match="anew"):
        assert text_embeddings(encode, TEXTS, KEY).shape == (600, 32)
    assert encode.texts == TEXTS


def test_a_check_comes_before_encoding_and_not_where_nothing_is_encoded():
    def refuse():
        raise UserError("too long")

    encode = Encoder()
    with pytest.raises(UserError, match="too long"):
        text_embeddings(encode, TEXTS, KEY, refuse)
    assert encode.calls == 0
    text_embeddings(encode, TEXTS, KEY)
    text_embeddings(encode, TEXTS, KEY, refuse)


RACE = """
import json, sys, time, torch
from pathlib import Path
from clipvp.sources.text import text_embeddings
count = 0
def encode(texts):
    global count
    count += len(texts)
    time.sleep(0.3)
    return torch.tensor([[float(len(text)), float(ord(text[-1]))] for text in texts])
Path(sys.argv[1], f"ready{sys.argv[2]}").touch()
while not Path(sys.argv[1], "go").exists():
    time.sleep(0.01)
found = text_embeddings(encode, [f"text {i}" for i in range(300)], {"model": "test"})
print(json.dumps([count, found.sum().item()]))
"""


def test_two_processes_at_once_encode_once(tmp_path):
    runs = [
        subprocess.Popen(
            [sys.executable, "-c", RACE, str(tmp_path), str(i)], stdout=subprocess.PIPE, text=True
        )
        for i in range(2)
    ]
    while len(list(tmp_path.glob("ready*"))) < 2 and all(run.poll() is None for run in runs):
        time.sleep(0.02)
    (tmp_path / "go").touch()
    (one, sum_of_one), (other, sum_of_other) = [json.loads(run.communicate(timeout=120)[0]) for run in runs]
    assert one + other == 300 and sum_of_one == sum_of_other


# With a model


def count_texts(monkeypatch) -> list[int]:
    """Count the texts that any source encodes from now on."""
    from clipvp.sources import text

    seen, real = [], text.encode_in_batches

    def counting(encode, texts, progress=True):
        return real(lambda batch: seen.append(len(batch)) or encode(batch), texts, progress)

    monkeypatch.setattr(text, "encode_in_batches", counting)
    return seen


@pytest.mark.parametrize("kind", ["open_clip_vit", "hf_siglip2"])
def test_a_label_space_is_encoded_once_for_a_model(kind, tiny_model, monkeypatch):
    seen = count_texts(monkeypatch)
    first = load_source(tiny_model(kind), class_names=["cat", "dog"], templates="simple")
    assert sum(seen) == 14
    again = load_source(tiny_model(kind), class_names=["cat", "dog"], templates="simple")
    assert sum(seen) == 14 and torch.equal(first.text_features, again.text_features)
    load_source(tiny_model(kind), canvas=64, class_names=["cat", "dog"], templates="simple")
    assert sum(seen) == 14  # the canvas is the image tower's alone
    load_source(tiny_model(kind), class_names=["dog", "cat"], templates="simple")
    assert sum(seen) == 28
    load_source(tiny_model(kind, seed=1), class_names=["cat", "dog"], templates="simple")
    assert sum(seen) == 42
