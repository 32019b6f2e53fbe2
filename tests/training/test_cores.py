"""What no prompt pixel reaches is computed once for all epochs, kept whole, and changes nothing but rounding."""

import os

import numpy as np
import pytest
import torch
from accelerate import Accelerator
from conftest import closed_source, small_config, untimed, write_image_folder
from torch import nn

from clipvp import PromptedClassifier, Task, fit, load_task
from clipvp.config.schema import DataConfig, TrainConfig
from clipvp.data.cache import list_cores
from clipvp.images import Resize
from clipvp.labels.space import LabelSpace
from clipvp.mappings.frequency import FrequencyMapping
from clipvp.mappings.statistic import Counts
from clipvp.prompts.border import BorderPrompt
from clipvp.prompts.padding import PaddingPrompt
from clipvp.prompts.patch import PatchPrompt
from clipvp.sharing import CoreTape
from clipvp.sources.base import Preprocessing
from clipvp.sources.black_box import BlackBoxSource
from clipvp.training import core_depth, cores
from clipvp.training.statistics import count_pass

CANVAS = (48, 48)
PROMPTS = {"padding": lambda: PaddingPrompt(CANVAS, (40, 40)), "frame": lambda: BorderPrompt(CANVAS, 4)}


def classifier(prompt="padding", seed=0) -> PromptedClassifier:
    torch.manual_seed(seed)
    layers = [
        nn.Conv2d(3, 6, 3, 1, 1),
        nn.ReLU(),
        nn.Conv2d(6, 6, 3, 2, 1),
        nn.ReLU(),
        nn.Conv2d(6, 6, 3, 1, 1),
    ]
    network = nn.Sequential(*layers, nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(6, 5))
    source = closed_source(network, 5, CANVAS)
    return PromptedClassifier(
        PROMPTS[prompt](), source, FrequencyMapping(5, 3), ["class0", "class1", "class2"]
    )


@pytest.fixture
def task(tmp_path):
    folder = write_image_folder(tmp_path / "data", {"train": 37, "val": 12, "test": 12}, 3)
    return lambda: load_task(DataConfig(str(folder), cache_dir=str(tmp_path / "cache")))


def run(task, tmp_path, keep, name=None, prompt="padding", **train):
    config = small_config("test", tmp_path / (name or keep), train={"keep_core": keep, **train})
    made = classifier(prompt)
    return made, fit(made, task(), config)


@pytest.mark.parametrize("prompt", PROMPTS)
def test_a_run_with_a_kept_core_is_one_without(prompt, task, tmp_path):
    found = {keep: run(task, tmp_path, keep, prompt=prompt) for keep in ("off", "memory", "disk")}
    plain, expected = found.pop("off")
    for made, result in found.values():
        assert untimed(result.history) == untimed(found["memory"][1].history)
        assert torch.equal(made.prompt.delta, found["memory"][0].prompt.delta)  # wherever it is kept
        torch.testing.assert_close(made.prompt.delta, plain.prompt.delta, rtol=1e-3, atol=1e-3)
        for one, two in zip(result.history, expected.history, strict=True):
            assert one["train_loss"] == pytest.approx(two["train_loss"], rel=1e-4)
            assert one["val_acc1"] == two["val_acc1"] and one["source_index"] == two["source_index"]
        assert "core" in result.results["seconds"]
    [train, val] = list_cores(tmp_path / "cache")  # of the run on disk
    assert train.num_bytes > val.num_bytes > 0
    assert train.what == "data/train at 48x48, 37 of 37 images"


def passes_with_a_core(monkeypatch) -> list[tuple[bool, int]]:
    """Return the passes from now on that are given what is kept: whether with a gradient, and of how many images."""
    played, read = [], CoreTape.read

    def noted(self, values, height, width):
        if not self.records and self._place == 0:
            played.append((torch.is_grad_enabled(), len(self.values)))
        return read(self, values, height, width)

    monkeypatch.setattr(CoreTape, "read", noted)
    return played


def test_steps_counting_and_validating_are_given_the_core(task, tmp_path, monkeypatch):
    played = passes_with_a_core(monkeypatch)
    monkeypatch.setattr(core_depth, "_TRIED", 2)
    run(task, tmp_path, "memory")
    steps = [(True, 16), (True, 16), (True, 5)]
    passes = [(False, 16), (False, 16), (False, 5)]
    assert [each for each in played if each[1] != 2] == 3 * [
        *passes,
        *steps,
        (False, 12),
    ]  # 2: the trial of depths


def test_nothing_is_kept_of_augmented_images(task, tmp_path, monkeypatch):
    monkeypatch.setattr(cores, "best_depth", lambda *given: pytest.fail("it was tried"))
    run(task, tmp_path, "disk", augment="flip", epochs=1)


@pytest.mark.parametrize(
    "keep, where", [("auto", "memory"), ("memory", "memory"), ("disk", "disk"), ("off", None)]
)
def test_where_the_core_is_kept(keep, where):
    made, cpu, gpu = classifier(), torch.device("cpu"), torch.device("cuda")
    settings = {"keep_core": keep, "epochs": 10}
    assert cores.where_to_keep(made, TrainConfig(**settings), 100, cpu) == where
    others = [
        cores.where_to_keep(made, TrainConfig(**settings), 99, cpu),  # a short run
        cores.where_to_keep(made, TrainConfig(**settings), 100, gpu),
        cores.where_to_keep(made, TrainConfig(**{**settings, "epochs": 1}), 5000, cpu),
    ]
    assert others == [None if keep == "auto" else where] * 3
    assert cores.where_to_keep(made, TrainConfig(**settings, augment="flip"), 100, cpu) is None


def test_nothing_is_kept_that_does_not_fit(task, tmp_path, monkeypatch):
    monkeypatch.setattr(cores, "_most_bytes", lambda where: 1000)
    monkeypatch.setattr(cores, "_compute", lambda *given: pytest.fail("it was computed"))
    run(task, tmp_path, "memory")


def test_by_itself_the_core_is_kept_where_the_epochs_save_more_than_building_costs(
    task, tmp_path, monkeypatch
):
    asked, best = [], cores.best_depth
    monkeypatch.setattr(cores, "_LEAST_IMAGES", 1)
    monkeypatch.setattr(cores, "best_depth", lambda *given: asked.append(given[2]) or best(*given))
    for name, keep, epochs in (("few", "auto", 2), ("many", "auto", 40), ("asked", "memory", 2)):
        run(task, tmp_path, keep, name, epochs=epochs)
    assert asked == [0.5, 0.05, 0.05]
    assert best(classifier(), least_saved=0.01) is not None and best(classifier(), least_saved=0.99) is None


def test_a_container_has_less_memory_than_its_machine(tmp_path, monkeypatch):
    (tmp_path / "limit").write_text("8000\n")
    (tmp_path / "none").write_text("max\n")
    monkeypatch.setattr(cores, "_CONTAINER_LIMITS", (tmp_path / "none", tmp_path / "missing"))
    assert cores._most_bytes("memory") > 8000
    monkeypatch.setattr(cores, "_CONTAINER_LIMITS", (tmp_path / "none", tmp_path / "limit"))
    assert cores._most_bytes("memory") == 1000 and cores._most_bytes("disk") == float("inf")


def test_a_prompt_without_a_core_keeps_nothing(task):
    made = classifier()
    for prompt in (PatchPrompt(CANVAS, 8, (4, 4)), PaddingPrompt(CANVAS, (40, 40), empty="lower_triangle")):
        made.prompt = prompt
        assert not cores._has_core(made)
    made.prompt = PROMPTS["frame"]()
    assert cores._has_core(made)
    made.share_border = False
    assert not cores._has_core(made)


def test_the_depth_is_that_of_the_fewest_operations_that_fits():
    made = classifier()
    best = cores.best_depth(made)
    assert best.num_bytes == 4 * sum(read.count for read in best.plan) > 0
    assert cores.best_depth(made, best.num_bytes) == best
    smaller = cores.best_depth(made, best.num_bytes - 1)
    assert smaller is None or (
        smaller.num_bytes < best.num_bytes and smaller.operations >= best.operations - 1
    )


def computed(monkeypatch) -> list[int]:
    """Return the first images of the batches that are computed from now on."""
    seen, compute = [], cores._compute

    def noted(classifier, batches, depth, own):
        seen.extend(int(indices[0]) for indices in own)
        return compute(classifier, batches, depth, own)

    monkeypatch.setattr(cores, "_compute", noted)
    return seen


def test_a_run_killed_while_building_goes_on_where_it_was(task, tmp_path, monkeypatch):
    monkeypatch.setattr(cores, "BATCH", 8)
    compute = cores._compute

    def dies(*given):
        for number, values in enumerate(compute(*given)):
            if number == 3:
                os._exit(9)  # as a kill: nothing is closed or tidied
            yield values

    child = os.fork()
    if child == 0:
        cores._compute = dies
        run(task, tmp_path, "disk", "killed")
        os._exit(0)
    assert os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) == 9
    seen = computed(monkeypatch)
    made, _ = run(task, tmp_path, "disk", "after")
    assert seen == [24, 32, 0, 8]  # the rest of train, then val
    other, _ = run(task, tmp_path, "memory")
    assert torch.equal(made.prompt.delta, other.prompt.delta)


def test_a_damaged_image_is_computed_again(task, tmp_path, monkeypatch):
    monkeypatch.setattr(cores, "BATCH", 8)
    made, _ = run(task, tmp_path, "disk", "first")
    largest = list_cores(tmp_path / "cache")[0].path / "pixels.u8"
    values = np.memmap(largest, np.uint8, mode="r+")
    values[len(values) // 37 * 20 + 5] ^= 1  # of image 20
    values.flush()
    seen = computed(monkeypatch)
    again, _ = run(task, tmp_path, "disk", "second")
    assert seen == [16] and torch.equal(again.prompt.delta, made.prompt.delta)
    seen.clear()
    run(task, tmp_path, "disk", "third")
    assert seen == []


def test_a_disk_that_cannot_be_written_keeps_nothing(task, tmp_path, monkeypatch):
    def full(*given):
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(cores.CoreEntry, "write", full)
    with pytest.warns(UserWarning, match="No space left on device"):
        made, _ = run(task, tmp_path, "disk")
    plain, _ = run(task, tmp_path, "off")
    assert torch.equal(made.prompt.delta, plain.prompt.delta)


@pytest.mark.parametrize("what", ["weights", "images", "frame"])
def test_other_weights_images_and_frames_have_entries_of_their_own(what, task):
    one, data = classifier(), task()
    two = classifier("frame" if what == "frame" else "padding", seed=1 if what == "weights" else 0)
    images = [data.train, data.val if what == "images" else data.train]
    depth, skipped = cores.best_depth(one), type("Batches", (), {"skipped": []})
    first, second = (
        cores._identity(made, skipped, own, depth) for made, own in zip((one, two), images, strict=True)
    )
    assert first != second and first == cores._identity(classifier(), skipped, data.train, depth)


def test_a_single_image_in_a_batch_is_kept_too(task):
    made, data = classifier(), task()
    batches = cores.Batches(data.tensors("train", made.resize, progress=False), Accelerator(cpu=True))
    depth, whole = cores.best_depth(made), torch.arange(37)
    rows = np.concatenate(
        [values for values, _ in cores._compute(made, batches, depth, [whole[:36], whole[36:]])]
    )
    kept = cores.CoreBatches(batches, depth, rows)
    for indices in (whole[34:37], whole[36:]):
        found = kept.outputs(made, kept.take(indices)[0])
        torch.testing.assert_close(found, made.source_outputs(batches.take(indices)[0]), rtol=1e-4, atol=1e-5)


def some_batches(made, task, split="train"):
    return cores.Batches(task.tensors(split, made.resize, progress=False), Accelerator(cpu=True))


def kept_batches(made, batches):
    depth = cores.best_depth(made)
    parts = cores._compute(made, batches, depth, [torch.arange(len(batches))])
    return cores.CoreBatches(batches, depth, np.concatenate([values for values, _ in parts]))


@torch.no_grad()
def test_what_is_computed_in_fp32_takes_no_core_of_another_precision(task):
    """Counts and scores of train.protocol paper, where the steps are in bf16."""
    made, rows = classifier(), torch.arange(8)
    made.source.precision, made.source.keeps_weights = "bf16", True
    batches = some_batches(made, task())
    kept = kept_batches(made, batches)
    images, taken = batches.take(rows)[0], kept.take(rows)[0]
    taken.tape.values += 1  # to be seen where it is used
    with made.source.full_precision():
        assert torch.equal(kept.outputs(made, taken), made.source_outputs(images))
    assert not torch.allclose(kept.outputs(made, taken), made.source_outputs(images), atol=0.1)


def test_features_of_plain_images_are_gathered_of_batches_with_a_core_too(task):
    class Plain(Counts):
        plain = True

    made = classifier()
    batches = some_batches(made, task())
    made.mapping.statistic = lambda: Plain(6, 3)
    expected, found = (
        count_pass(made, each, 16).tensors() for each in (batches, kept_batches(made, batches))
    )
    assert expected.keys() == found.keys() and all(torch.equal(found[name], expected[name]) for name in found)


def test_a_source_that_only_answers_is_not_asked_for_a_core(task, tmp_path):
    asked = []

    def answer(pixels):
        asked.append(len(pixels))
        return pixels.reshape(len(pixels), -1)[:, :5]

    preprocessing = Preprocessing(Resize(CANVAS), (0.5,), (0.5,))
    source = BlackBoxSource(answer, LabelSpace(tuple("abcde")), preprocessing, "f", name="onnx:f")
    made = PromptedClassifier(
        PROMPTS["padding"](), source, FrequencyMapping(5, 3), ["class0", "class1", "class2"]
    )
    config = small_config(
        "test", tmp_path / "run", train={"keep_core": "memory", "gradient": "spsa", "epochs": 1}
    )
    result = fit(made, task(), config)
    assert sum(asked) == result.results["queries"]["total"]


def test_an_entry_may_be_larger_than_memory(tmp_path):
    with cores.CoreEntry(tmp_path, "pictures", {"format": 0}, 1_000_000, 1_000_000) as entry:
        row = np.arange(1_000_000).astype(np.uint8)[None]
        entry.write(np.array([999_999]), row, np.zeros(1, np.uint64))
        assert entry.check(np.array([999_998, 999_999])).tolist() == [False, True]
        assert np.array_equal(entry.pixels()[999_999:], row)
    [listed] = list_cores(tmp_path)  # what is not there yet takes no place
    assert listed.what.endswith("1 of 1000000 images") and listed.num_bytes < 20_000_000


def test_images_without_a_file_are_said_not_to_be_kept_on_disk(tmp_path, capsys):
    images = [(np.full((40, 40, 3), 7 * place, np.uint8), place % 3) for place in range(36)]
    own = Task.from_dataset(images[:24], images[24:30], images[30:], ["class0", "class1", "class2"])
    train = {"keep_core": "disk", "epochs": 1, "progress": True}
    fit(classifier(), own, small_config("test", tmp_path / "run", train=train))
    printed = capsys.readouterr().out
    assert "nothing is kept of train and val, whose images have no file" in printed
    assert "is kept (disk)" not in printed
