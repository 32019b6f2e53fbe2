"""The kept core where something is in its way: float64, a full disk, little memory, images that are read otherwise."""

import errno
import shutil
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from conftest import closed_source, coloured_images, small_config, write_image_folder
from test_cores import CANVAS, classifier, passes_with_a_core, run, some_batches
from torch import nn

from clipvp import PromptedClassifier, Task, fit, load_task
from clipvp.config.schema import DataConfig
from clipvp.data import cache
from clipvp.data.cache import CoreEntry, list_cores, remove_partial_core
from clipvp.mappings.frequency import FrequencyMapping
from clipvp.prompts.border import BorderPrompt
from clipvp.prompts.padding import PaddingPrompt
from clipvp.sharing import count_operations
from clipvp.training import cores


@pytest.fixture
def task(tmp_path):
    folder = write_image_folder(tmp_path / "data", {"train": 37, "val": 12, "test": 12}, 3)
    return lambda: load_task(DataConfig(str(folder), cache_dir=str(tmp_path / "cache")))


class DoubleConv(nn.Conv2d):
    def forward(self, x):
        return self._conv_forward(x.double(), self.weight.double(), self.bias.double())


class Float(nn.Module):
    def forward(self, x):
        return x.float()


def partly_double() -> PromptedClassifier:
    torch.manual_seed(0)
    layers = [DoubleConv(3, 6, 3, 1, 1), nn.ReLU(), DoubleConv(6, 6, 3, 1, 1), Float()]
    network = nn.Sequential(*layers, nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(6, 5))
    mapping, names = FrequencyMapping(5, 3), ["class0", "class1", "class2"]
    return PromptedClassifier(BorderPrompt(CANVAS, 4), closed_source(network, 5, CANVAS), mapping, names)


def test_what_a_network_reads_in_float64_is_kept_in_float64(task, tmp_path):
    made = {keep: partly_double() for keep in ("off", "memory", "disk", "disk again")}
    for name, each in made.items():
        train = {"keep_core": name.split()[0], "epochs": 2}
        fit(each, task(), small_config("test", tmp_path / name, train=train))
    depth = cores.best_depth(made["off"])
    assert depth.dtype == np.float64 and depth.num_bytes == 8 * sum(read.count for read in depth.plan)
    deltas = {name: each.prompt.delta for name, each in made.items()}
    assert deltas["off"].abs().max() > 0.1
    for name in ("disk", "disk again"):
        assert torch.equal(deltas[name], deltas["memory"])
    torch.testing.assert_close(deltas["memory"], deltas["off"], rtol=1e-3, atol=1e-3)
    batches = some_batches(made["off"], task())
    kept = kept_in_memory(made["off"], batches)
    images, taken = batches.take(torch.arange(8))[0], kept.take(torch.arange(8))[0]
    with torch.no_grad():
        found, plain = kept.outputs(made["off"], taken), made["off"].source_outputs(images)
    torch.testing.assert_close(found, plain, rtol=1e-6, atol=1e-6)


def accelerator_of(**settings):
    alone = {"num_processes": 1, "device": torch.device("cpu"), "reduce": lambda tensor, how: tensor}
    return SimpleNamespace(**{**alone, **settings})


def kept_in_memory(made, batches):
    depth = cores.best_depth(made)
    return cores.CoreBatches(
        batches, depth, cores._in_memory(made, batches, "train", depth, accelerator_of(), iter)
    )


def test_a_disk_that_gets_full_is_given_back_what_was_written(task, tmp_path, monkeypatch):
    write, written = CoreEntry.write, []

    def fills(self, *given):
        if written:
            raise OSError(errno.ENOSPC, "No space left on device")
        write(self, *given)
        written.append(list_cores(tmp_path / "cache")[0].num_bytes)

    monkeypatch.setattr(cores, "BATCH", 8)
    monkeypatch.setattr(cores.CoreEntry, "write", fills)
    with pytest.warns(UserWarning, match="the core of train is not kept: .*No space left on device"):
        _, result = run(task, tmp_path, "disk")
    assert written[0] > 0 and list_cores(tmp_path / "cache") == []
    assert not any((tmp_path / "cache" / "cores").iterdir()) and result.results["core"] is None


def test_a_partial_entry_stays_where_it_is_in_use_and_a_complete_one_always(tmp_path):
    rows, identity = np.ones((2, 4096), np.uint8), {"format": 0}
    whole = {"format": 1}
    with (
        CoreEntry(tmp_path, "a", identity, 3, 4096) as other,
        CoreEntry(tmp_path, "b", whole, 2, 4096) as full,
    ):
        other.write(np.arange(2), rows, np.zeros(2, np.uint64))
        full.write(np.arange(2), rows, np.zeros(2, np.uint64))
        view = other.pixels()
        remove_partial_core(tmp_path, identity)
        assert len(list_cores(tmp_path)) == 2
    remove_partial_core(tmp_path, identity)  # of a run that goes on with the map
    remove_partial_core(tmp_path, whole)
    assert view[1].all() and len(list_cores(tmp_path)) == 2
    del view, other
    remove_partial_core(tmp_path, identity)
    [left] = list_cores(tmp_path)
    assert left.what.endswith("2 of 2 images")


def test_nothing_is_begun_that_the_disk_has_no_place_for(task, tmp_path, monkeypatch):
    run(task, tmp_path, "disk", "first")
    complete = {entry.path for entry in list_cores(tmp_path / "cache")}
    usage = shutil.disk_usage(tmp_path)._replace(free=2_000_000)
    monkeypatch.setattr(cache.shutil, "disk_usage", lambda place: usage)
    made, result = run(task, tmp_path, "disk", "second")  # what is complete needs no place
    assert result.results["core"]["images"] == 49
    monkeypatch.setattr(cache.shutil, "disk_usage", lambda place: usage._replace(free=1000))
    with (
        CoreEntry(tmp_path, "a", {"format": 0}, 1, 950) as entry,
        pytest.raises(OSError, match="a tenth is left"),
    ):
        entry.check_free_space()
    monkeypatch.setattr(cores, "_compute", lambda *given: iter(given[3] and pytest.fail("it was computed")))
    with pytest.warns(
        UserWarning, match=r"train is not kept: it needs \d\.\d MB; of 0.0 MB that are free at .*cores"
    ):
        run(task, tmp_path, "disk", "third", prompt="frame")
    assert complete <= {entry.path for entry in list_cores(tmp_path / "cache")}


def test_a_read_only_cache_says_so(tmp_path, monkeypatch):
    with CoreEntry(tmp_path, "a", {"format": 0}, 2, 8):
        pass

    def read_only(path, mode):
        if mode != "rb":
            raise PermissionError(errno.EACCES, "Permission denied", str(path))
        return open(path, mode)

    monkeypatch.setattr(cache, "open", read_only, raising=False)
    with CoreEntry(tmp_path, "a", {"format": 0}, 2, 8) as entry, pytest.raises(OSError, match="read-only"):
        entry.write(np.zeros(1, int), np.ones((1, 8), np.uint8), np.zeros(1, np.uint64))


def test_the_processes_of_a_machine_share_its_memory(monkeypatch):
    monkeypatch.setattr(cores, "_most_bytes", lambda where: 12_000 if where == "memory" else float("inf"))
    others = torch.tensor([[0, 9_000], [1, 9_000], [2, 9_000]])  # of another machine, with less memory
    many = accelerator_of(num_processes=4, local_process_index=0, gather=lambda own: torch.cat([own, others]))
    assert cores._most_bytes_each("memory", accelerator_of()) == 12_000
    assert cores._most_bytes_each("memory", many) == 3_000
    assert cores._most_bytes_each("disk", many) == float("inf")


@pytest.mark.parametrize("keep", ["memory", "disk"])
def test_a_source_that_reads_images_otherwise_has_no_core(keep, task, tmp_path, monkeypatch):
    recorded = cores.recorded

    def other(classifier, images, share):
        plan, values = recorded(classifier, images, share)
        return plan[:-1] if len(images) == 5 else plan, values  # the last batch of train

    monkeypatch.setattr(cores, "recorded", other)
    with pytest.warns(UserWarning, match="the core of train is not kept: .*otherwise") as told:
        made, result = run(task, tmp_path, keep)
    assert len(told) == 1 and result.results["core"] is None
    plain, _ = run(task, tmp_path, "off")
    torch.testing.assert_close(made.prompt.delta, plain.prompt.delta, rtol=1e-3, atol=1e-3)


def test_where_another_process_fails_nothing_is_kept(task):
    made = classifier()
    batches, depth = some_batches(made, task()), cores.best_depth(made)
    fails = accelerator_of(reduce=lambda tensor, how: tensor + 1)
    with pytest.warns(UserWarning, match="another process"):
        assert cores._in_memory(made, batches, "train", depth, fails, iter) is None


def test_a_border_that_is_held_is_no_work_saved(monkeypatch):
    best, made = cores.best_depth(classifier()), classifier()
    images = torch.zeros(16, 3, 40, 40)
    with torch.no_grad():
        made.eval().source_outputs(images)
        later = count_operations(lambda: made.source_outputs(images))
    saved = 1 - best.operations / later
    assert cores.best_depth(classifier(), least_saved=saved - 0.001) == best
    assert cores.best_depth(classifier(), least_saved=saved + 0.001) is None


def test_prompts_that_change_fixed_pixels_otherwise_have_entries_of_their_own(task):
    class Darker(PaddingPrompt):
        factor = 0.5

        def inside(self, images):
            return images * self.factor

        def forward(self, images):
            return super().forward(self.inside(images))

        acts_on = PaddingPrompt.acts_on

    one, two, data = classifier(), classifier(), task()
    two.prompt = Darker(CANVAS, (40, 40))
    depth, batches = cores.best_depth(one), SimpleNamespace(skipped=[])

    def identity(made):
        return cores._identity(made, batches, data.train, depth)

    first, second = identity(one), identity(two)
    assert first["acts_on"] == second["acts_on"] and first != second
    two.prompt.factor = 0.6
    assert identity(two) not in (first, second)
    with torch.no_grad():
        one.prompt.delta.normal_()  # as after some steps
    assert identity(one) == first


def test_tests_in_each_epoch_are_given_the_core(tmp_path, monkeypatch):
    played = passes_with_a_core(monkeypatch)
    images = coloured_images(16, 3, 40), coloured_images(11, 3, 40, seed=1)
    own = Task.from_dataset(*images, class_names=["class0", "class1", "class2"], protocol="paper")
    for every, name in ((True, "each"), (False, "end")):
        played.clear()
        train = {"keep_core": "memory", "protocol": "paper", "test_every_epoch": every, "epochs": 2}
        result = fit(classifier(), own, small_config("test", tmp_path / name, train=train))
        assert played.count((False, 11)) == (3 if every else 0)  # two epochs and the end
        found = result.results["core"]
        assert found["where"] == "memory" and found["images"] == (27 if every else 16)
        assert found["bytes_an_image"] == cores.best_depth(classifier()).num_bytes


@pytest.mark.parametrize("prompt", ["padding", "frame"])
def test_under_autocast_as_exact_as_bf16(prompt, task):
    made, rows = classifier(prompt), torch.arange(8)
    made.source.precision, made.source.keeps_weights = "bf16", True
    batches = some_batches(made, task())
    kept = kept_in_memory(made, batches)
    results = []
    for outputs, own in ((made.source_outputs, batches), (lambda x: kept.outputs(made, x), kept)):
        made.prompt.delta.grad = None
        found = outputs(own.take(rows)[0])
        found.square().sum().backward()
        results.append((found.detach(), made.prompt.delta.grad))
    for one, other in zip(*results, strict=True):
        assert one.norm() > 0 and (one - other).norm() <= 0.02 * one.norm()
