"""The benchmark from its command line to its file, and the laws of what it measures with."""

import json
import re
import runpy
import sys
import time
from itertools import count
from pathlib import Path

import pytest
import torch
from benchmark import measure, others
from benchmark import texts as bank
from benchmark.config import BenchmarkConfig
from benchmark.measure import Phases, Times, alternate, peak_memory
from conftest import write_image_folder
from hypothesis import given
from hypothesis import strategies as st
from textbook import greedy_loop

from clipvp.mappings.assignment import assign_greedy
from clipvp.mappings.statistic import Counts
from clipvp.registry import UserError

RECIPE = Path(__file__).parents[2] / "recipes" / "benchmark.py"
CPU = torch.device("cpu")
SMALL = {
    "canvas": 32,
    "image-size": 16,
    "batch-size": 8,
    "images": 30,
    "classes": 3,
    "workers": 0,
    "seconds": 0.01,
    "rounds": 2,
    "device": "cpu",
    "json": "found.json",
}


@pytest.fixture
def run(monkeypatch, capsys, tmp_path):
    """Return a function that runs the recipe and gives its file and what it printed."""
    monkeypatch.chdir(tmp_path)

    def run(**options):
        arguments = [f"--{key}={value}" for key, value in {**SMALL, **options}.items()]
        monkeypatch.setattr(sys, "argv", [str(RECIPE), *arguments])
        runpy.run_path(str(RECIPE), run_name="__main__")
        return json.loads(Path("found.json").read_text()), capsys.readouterr().out

    return run


def test_the_smallest_benchmark_of_all_parts(run, tiny_timm, monkeypatch):
    monkeypatch.setattr(others, "SIZES", ((20, 3), (50, 7)))
    parts = "[step,memory,epoch,data,assignment]"
    found, printed = run(only=parts, source=tiny_timm)
    for key in (
        "step_over_bare",
        "step_over_bare_without_sharing",
        "count_over_bare",
        "textbook_over_exact",
        "textbook_over_running",
        "examples_per_second",
    ):
        assert found[key] > 0, key
    assert found["peak_memory_over_bare"] is None or found["peak_memory_over_bare"] > 0
    assert set(found["assign_seconds"]) == {"20x3", "50x7"}
    assert found["device"]["type"] == "cpu" and torch.__version__.startswith(found["versions"]["torch"])
    for part in ("step", "memory", "epoch", "data", "assignment"):
        assert f"\n{part}: " in printed and found["seconds"][part] >= 0
    epoch = found["epoch"]
    assert epoch["images"] == {"train": 30, "scored": 6} and epoch["rounds"] == 2
    for name, phases in epoch["seconds_by_phase"].items():
        assert sum(phases.values()) <= epoch["seconds"][name] * 1.5 + 0.05, name
    assert epoch["seconds_by_phase"]["running"]["counting"] < epoch["seconds_by_phase"]["exact"]["counting"]


@pytest.mark.parametrize("prompt", ["padding", "border"])
def test_the_textbook_counts_as_we_do(run, tiny_timm, tmp_path, prompt):
    """Real files, several source labels, and a prompt that has moved: the same counts after each epoch."""
    data = write_image_folder(tmp_path / "images", {"train": 30, "test": 9}, 3)
    canvas = 128 if prompt == "border" else 32
    keep = prompt == "border"
    found, printed = run(
        only="epoch", source=tiny_timm, prompt=prompt, data=data, canvas=canvas, keep_core=keep
    )
    assert found["counts_equal"] and "the same counts" in printed
    epoch = found["epoch"]
    assert epoch["images_counted_differently"] == [0, 0] and epoch["labels_seen"] > 1
    assert max(epoch["prompts_apart"]) < 0.05
    assert (epoch["core"] is not None) == keep == ("with the core kept: " in printed)


def test_a_bank_of_texts_is_encoded_once_and_read_once(run, monkeypatch):
    from clipvp.sources import text as texts

    encoded, encode = [], texts.encode_in_batches
    monkeypatch.setattr(texts, "encode_in_batches", lambda *a: encoded.append(len(a[1])) or encode(*a))
    monkeypatch.setattr(bank, "SPACES", {"described": (3, 4), "templates": (2, None)})
    found, printed = run(only="text_bank", canvas=64)
    spaces = found["text_bank"]["spaces"]
    assert {name: row["texts"] for name, row in spaces.items()} == {"described": 3 * 4, "templates": 2 * 81}
    assert encoded == [
        998,
        1,
        12,
        162,
    ]  # the first two before the clock starts; two of 1,000 names are there twice
    for row in spaces.values():
        assert row["embedding_bytes"] == row["texts"] * 384 * 4
        assert set(row["batch_seconds"]) == {"logits", "mean", "top 3", "text_counts", "counting"}
    assert re.search(r"\| templates +\| +162 ", printed)


def test_text_is_encoded_once_for_each_cold_load(run, tiny_model, monkeypatch):
    from clipvp.sources import text as texts

    encoded, encode = [], texts.encode_in_batches
    monkeypatch.setattr(texts, "encode_in_batches", lambda *a: encoded.append(len(a[1])) or encode(*a))
    found, _ = run(only="text", source=tiny_model("hf_clip"))
    text = found["text"]
    # The benchmark's own source, the load that fills the cache, and one cold load a round; cached loads encode nothing.
    assert encoded == [81 * 3] * (2 + text["rounds"])
    assert text["texts"] == 81 * 3 and text["source"] == tiny_model("hf_clip")
    assert set(text["seconds"]) == {"cold", "cached"}


def test_architectures_with_random_weights(run):
    sizes = {"image_sizes": "[16,32,64]", "architectures": "[test_efficientnet,test_vit]"}
    found, printed = run(only="architectures", **sizes)
    for name in ("test_efficientnet", "test_vit"):
        row = found["architectures"][name]
        assert set(row["over_bare"]) == {"16", "32"}  # 64 does not fit the canvas
        assert row["bare_seconds"] > 0 and row["over_bare_without_sharing"] > 0 and name in printed
    found, _ = run(only="step", source="timm:test_efficientnet", **{"random-weights": "true"})
    assert found["step_over_bare"] > 0


def test_sharing_by_architecture_and_prompt(run):
    sizes = {"image_sizes": "[8,48,80]", "frames": "[6,40]", "canvas": 64, "batch-size": 4}
    found, printed = run(only="sharing", architectures="[resnet10t]", **sizes)
    rows = found["sharing"]["resnet10t"]
    assert set(rows) == {"image 8", "image 48", "frame 6"}  # the others do not fit the canvas
    assert "image 48" in printed and "family" in found["device"]["name"]
    assert set(rows["image 48"]["over_bare"]) == {"plain", "border", "core", "kept"}
    assert set(rows["frame 6"]["over_bare"]) == {"plain", "core", "kept"}
    for row in rows.values():
        assert all(ratio > 0 for ratio in row["over_bare"].values()) and row["rounds"] == 2
        operations = row["operations_over_bare"]
        assert operations["plain"] == pytest.approx(1, abs=0.01)
        assert operations["core"] <= operations.get("border", operations["plain"])
        assert operations.get("kept", 0) < operations["core"]
        assert (row["kept_bytes_an_image"] is None) == ("kept" not in operations)


@pytest.mark.parametrize(
    "options, message",
    [
        ({"only": "steps"}, "only: unknown value 'steps'; did you mean 'step'"),
        ({"source": "hf:a/b", "random-weights": "true", "only": "step"}, "give a timm architecture"),
        (
            {"source": "timm:test_vit", "random-weights": "true", "canvas": 33, "only": "step"},
            "'timm:test_vit' cannot be built",
        ),
        ({"batch-size": 0}, "batch_size: 0 is not allowed"),
        ({"sorce": "a"}, "unknown key 'sorce'; did you mean 'source'"),
    ],
)
def test_what_is_wrong_is_told_in_a_line(run, capsys, options, message):
    with pytest.raises(SystemExit) as end:
        run(**options)
    error = capsys.readouterr().err
    assert end.value.code == 2 and message in error and error.count("\n") == 1


def test_a_device_that_is_not_there_is_told(monkeypatch):
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    from benchmark.setting import Setting

    with pytest.raises(UserError, match="no cuda device"):
        Setting(BenchmarkConfig(device="cuda"))


# What is measured with


def test_candidates_take_turns_and_every_second_round_goes_backwards():
    ran = []
    runs = {name: lambda name=name: ran.append(name) for name in "abc"}
    times = alternate(runs, CPU, 0, least=3, before_round=lambda: ran.append("|"))
    assert "".join(ran) == "abc|abc|cba|abc"
    assert times.rounds == 3 and all(len(seconds) == 3 for seconds in times.seconds.values())


def test_a_ratio_is_a_median_of_ratios_side_by_side():
    times = Times({"ours": [2.0, 30.0, 5.0], "bare": [1.0, 10.0, 4.0]})
    assert times.ratio("ours", "bare") == 2 and times.spread("ours", "bare") == [1.25, 3]
    assert times.median("ours") == 5


def test_each_second_is_in_one_phase(monkeypatch):
    ticks = count()
    monkeypatch.setattr(measure, "now", lambda device: float(next(ticks)))
    phases = Phases(CPU)
    with phases("outer"):  # 0 to 1, 2 to 3, 4 to 5
        with phases("inner"):  # 1 to 2
            pass
        with phases("inner"):  # 3 to 4
            pass
    assert phases.lap() == {"outer": 3.0, "inner": 2.0} and phases.lap() == {}


def test_peak_memory_is_what_was_in_use_at_once():
    megabytes = 200

    def two_in_turn() -> None:
        for _ in range(2):
            torch.ones(megabytes << 18)

    peak = peak_memory(two_in_turn, CPU)
    assert (peak is None) == (not measure._CLEAR.exists())  # a system without that file does not tell
    if peak is not None:
        assert 0.9 * megabytes < peak / 2**20 < 1.5 * megabytes
        assert peak_memory(lambda: time.sleep(0), CPU) < 20 << 20


@given(st.data())
def test_the_loop_over_the_whole_matrix_is_the_greedy_assignment(data):
    num_target = data.draw(st.integers(1, 6))
    num_source = data.draw(st.integers(num_target, 12))
    cells = st.lists(st.integers(0, 3), min_size=num_source * num_target, max_size=num_source * num_target)
    counts = torch.tensor(data.draw(cells)).view(num_source, num_target)
    assert torch.equal(greedy_loop(counts), assign_greedy(Counts.from_matrix(counts)))
