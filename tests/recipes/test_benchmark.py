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
from benchmark import epochs, measure, others, quickstart, sharing, steps
from benchmark import texts as bank
from benchmark.config import BenchmarkConfig
from benchmark.measure import Phases, Times, alternate, peak_memory
from benchmark.profile import KINDS, milliseconds
from benchmark.setting import Setting
from conftest import write_image_folder
from hypothesis import given
from hypothesis import strategies as st
from leaderboard.benchmarks import benchmark_markdown
from textbook import greedy_loop

from clipvp.mappings.assignment import assign_greedy
from clipvp.mappings.statistic import Counts
from clipvp.registry import UserError
from clipvp.training.cores import CoreBatches

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
    assert found["step"]["copied_bytes_per_second"] > 0 and "GB/s" in printed
    assert found["step"]["matmul_one_thread_over_all"] > 0 and "times as fast as one" in printed
    assert all(size[0].isdigit() for size in found["device"]["caches"].values())
    assert found["device"]["type"] == "cpu" and torch.__version__.startswith(found["versions"]["torch"])
    for part in ("step", "memory", "epoch", "data", "assignment"):
        assert f"\n{part}: " in printed and found["seconds"][part] >= 0
    epoch = found["epoch"]
    assert epoch["images"] == {"train": 30, "scored": 6} and epoch["rounds"] == 2
    for name, phases in epoch["seconds_by_phase"].items():
        assert sum(phases.values()) <= epoch["seconds"][name] * 1.5 + 0.05, name
    assert epoch["seconds_by_phase"]["running"]["counting"] < epoch["seconds_by_phase"]["exact"]["counting"]


@pytest.mark.parametrize("prompt", ["padding", "border"])
def test_the_textbook_counts_as_we_do(run, tiny_timm, tmp_path, monkeypatch, prompt):
    """Real files, several source labels, and a prompt that has moved: the same counts after each epoch."""
    data = write_image_folder(tmp_path / "images", {"train": 30, "test": 9}, 3)
    canvas = 128 if prompt == "border" else 32
    keep = prompt == "border"
    waited, taken, take = [], [], CoreBatches.take

    class Watched(Phases):
        def __call__(self, phase, **options):
            waited.append(phase == "waiting for data")
            return super().__call__(phase, **options)

    monkeypatch.setattr(epochs, "Phases", Watched)
    monkeypatch.setattr(CoreBatches, "take", lambda *a: taken.append(sum(waited)) or take(*a))
    more = {"width": 8} if prompt == "border" else {}
    found, printed = run(
        only="epoch", source=tiny_timm, prompt=prompt, data=data, canvas=canvas, keep_core=keep, **more
    )
    if keep:  # each batch with its core is clocked once, the textbook's and others not among them
        assert len(taken) > 0 and all(
            later - sooner >= 1 for sooner, later in zip(taken, taken[1:], strict=False)
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


SHARED = {"image_sizes": "[8,48,80]", "frames": "[6,40]", "canvas": 64, "batch-size": 4}


def test_sharing_by_architecture_and_prompt(run, monkeypatch):
    taken, take = [], CoreBatches.take
    monkeypatch.setattr(CoreBatches, "take", lambda *a: taken.append(a[1].tolist()) or take(*a))
    sizes = SHARED
    found, printed = run(only="sharing", architectures="[resnet10t]", **sizes)
    rows = found["sharing"]["resnet10t"]
    assert set(rows) == {"image 8", "image 48", "frame 6"}  # the others do not fit the canvas
    assert "image 48" in printed and "family" in found["device"]["name"]
    assert set(rows["image 48"]["over_bare"]) == {"plain", "border", "core", "kept"}
    assert set(rows["frame 6"]["over_bare"]) == {"plain", "core", "kept"}
    for row in rows.values():
        assert all(ratio > 0 for ratio in row["over_bare"].values()) and row["rounds"] == 2
        assert row["over_bare_wall"].keys() == row["over_bare"].keys() == row["spread"].keys()
        operations = row["operations_over_bare"]
        assert operations["plain"] == pytest.approx(1, abs=0.01)
        assert operations["core"] <= operations.get("border", operations["plain"])
        assert operations.get("kept", 0) < operations["core"]
        assert (row["kept_bytes_an_image"] is None) == ("kept" not in operations)
    # As in a run, each step takes what is kept of its images: to count operations, to warm up, and in two rounds.
    assert len(taken) == 4 * sum("kept" in row["over_bare"] for row in rows.values())
    assert all(sorted(indices) == [0, 1, 2, 3] for indices in taken)
    widest = max((high - low) / 2 for row in rows.values() for low, high in row["spread"].values())
    assert f"2 rounds; half from the lowest to the highest of their ratios: {widest:.2f} at most" in printed
    assert "processor time, of which the clock's ratios differ by" in printed


def test_a_profile_of_the_same_steps(run):
    found, printed = run(only="profile", architectures="[resnet10t]", **SHARED)
    rows = found["profile"]["rows"]["resnet10t"]
    assert set(rows) == {"image 8", "image 48", "frame 6"} and found["profile"]["rounds"] == 2
    assert set(rows["image 48"]) == {"bare", "plain", "border", "core", "kept"}
    for ways in rows.values():
        for way, kinds in ways.items():
            assert tuple(kinds) == KINDS
            assert all(kinds[kind] > 0 for kind in KINDS if kind != "windows copied")
            if way in ("bare", "plain"):
                assert kinds["windows copied"] == 0
    assert all(rows["image 48"][way]["windows copied"] > 0 for way in ("border", "core", "kept"))
    assert re.search(r"\| resnet10t +\| +image 48 +\| +kept +\| +\d", printed)


def test_a_profile_says_what_a_step_does():
    image, kernel = torch.ones(1, 3, 64, 64, requires_grad=True), torch.ones(3, 3, 3, 3)
    convolve = torch.nn.functional.conv2d
    found = milliseconds(lambda: convolve(image, kernel))
    assert found["convolutions forward"] > 0 == found["convolutions backward"] == found["pooling"]
    found = milliseconds(lambda: convolve(image, kernel).sum().backward())
    assert found["convolutions forward"] > 0 < found["convolutions backward"]
    found = milliseconds(lambda: torch.nn.functional.max_pool2d(image, 2).sum().backward())
    assert found["pooling"] > 0 == found["convolutions forward"] == found["windows copied"]
    found = milliseconds(lambda: time.sleep(0.05))
    assert found.pop("everything else") >= 50 and not any(found.values())


def test_the_quickstart_by_phase(run, tiny_timm, tmp_path, monkeypatch):
    data = write_image_folder(tmp_path / "images", {"train": 30, "test": 9}, 3)
    (tmp_path / "quick.yaml").write_text(
        f"source: {{name: '{tiny_timm}', canvas: 32}}\nprompt: {{kind: none}}\nmapping: {{kind: logistic}}\n"
        f"data: {{name: '{data}'}}\ntrain: {{epochs: 1}}\n"
    )
    monkeypatch.setattr(quickstart, "CONFIG", str(tmp_path / "quick.yaml"))
    found, printed = run(only="quickstart", rounds=1)
    phases = found["quickstart"]["seconds_by_phase"]
    assert {"loading the source", "data", "features", "counting", "testing", "everything else"} <= set(phases)
    assert sum(phases.values()) == pytest.approx(found["quickstart"]["seconds"])
    assert phases["everything else"] > -0.01 and 0 <= found["quickstart"]["acc1"] <= 1
    assert "| all " in printed and "1 round; " in printed and not (tmp_path / "runs").exists()


@pytest.mark.parametrize(
    "part, module, measured", [("sharing", sharing, "_measure"), ("architectures", steps, "_architecture")]
)
def test_what_is_measured_outlives_a_kill(run, monkeypatch, part, module, measured):
    measure_one, calls = getattr(module, measured), count(1)

    def killed(*arguments):
        if next(calls) == 2:
            raise KeyboardInterrupt
        return measure_one(*arguments)

    monkeypatch.setattr(module, measured, killed)
    with pytest.raises(KeyboardInterrupt):
        run(
            only=part,
            architectures="[test_efficientnet,test_vit]",
            **{**SHARED, "frames": "[]", "image_sizes": "[8]"},
        )
    found = json.loads(Path("found.json").read_text())
    assert list(found[part]) == ["test_efficientnet"] and found["seconds"][part] >= 0
    assert "| test_efficientnet " in benchmark_markdown(found)


def test_the_frame_has_the_width_that_is_asked_for(tiny_timm):
    given = {"source": tiny_timm, "canvas": 64, "prompt": "border", "device": "cpu"}
    for width, hole in ((8, (8, 8, 56, 56)), (16, (16, 16, 48, 48))):
        with Setting(BenchmarkConfig(width=width, **given)) as setting:
            assert setting.classifier().prompt.acts_on()[1] == hole


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
        ({"workers": -1}, "workers: -1 is not allowed; give a whole number >= 0"),
        ({"images": 4}, "images: 4 is not allowed; give a whole number >= 5"),
        ({"seconds": 0}, "seconds: 0.0 is not allowed"),
        ({"frames": "[8,0]"}, "frames: 0 is not allowed"),
        (
            {"only": "step", "keep_core": "true"},
            "keep_core: true is not allowed without the part epoch; add epoch to only, which is step",
        ),
        ({"width": 8}, "width: 8 is not allowed with prompt padding; give prompt border"),
        (
            {"only": "[step,sharing]", "architectures": "[resnet10t,resnet10x]"},
            "architectures: timm has no 'resnet10x'; did you mean 'resnet10t'?",
        ),
        ({"only": "sharing", "architectures": "[]"}, "architectures: [] is not allowed"),
        ({"only": "architectures", "image_sizes": "[]"}, "image_sizes: [] is not allowed"),
        (
            {"only": "sharing", "image_sizes": "[]", "frames": "[]"},
            "image_sizes and frames: [] is not allowed for both",
        ),
        (
            {
                "only": "architectures",
                "image_sizes": "[300]",
                "architectures": "[test_vit]",
                "canvas": "null",
            },
            "image_sizes [300]: none fits the canvas of test_vit, 160 pixels",
        ),
        (
            {"only": "sharing", "image_sizes": "[33]", "frames": "[16]", "architectures": "[test_vit]"},
            "image_sizes [33] and frames [16]: none fits the canvas of test_vit, 32 pixels, for the part sharing; "
            "give a size <= 32 or a frame < 16",
        ),
        ({"sorce": "a"}, "unknown key 'sorce'; did you mean 'source'"),
    ],
)
def test_what_is_wrong_is_told_in_a_line(run, capsys, options, message):
    with pytest.raises(SystemExit) as end:
        run(**options)
    error = capsys.readouterr().err
    assert end.value.code == 2 and message in error and error.count("\n") == 1
    assert not Path("found.json").exists()


def test_a_device_that_is_not_there_is_told(monkeypatch):
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
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
