"""Where nothing before the mapping trains, the source's outputs are computed once, and nothing else changes."""

import shutil
from pathlib import Path

import pytest
import torch
from accelerate import Accelerator
from conftest import trained, untimed, write_image_folder

from clipvp import build_classifier, fit, load_task
from clipvp.config.schema import DataConfig, TrainConfig
from clipvp.data.batches import Batches
from clipvp.files import list_features
from clipvp.progress import Progress
from clipvp.registry import UserError
from clipvp.training import fit as fit_module
from clipvp.training.outputs import OutputBatches, fixed_outputs, with_outputs

PLAIN = {"kind": "none"}


@pytest.fixture
def folder_task(tmp_path):
    folder = write_image_folder(tmp_path / "data", {"train": 30, "val": 12, "test": 12}, 3)
    return lambda: load_task(str(folder))


@pytest.mark.parametrize(
    "mapping",
    [{"kind": "frequency"}, {"kind": "blm"}, {"kind": "linear", "standardise": True}, {"kind": "logistic"}],
)
def test_a_run_on_outputs_is_a_run_on_images(mapping, config, tiny_task, tmp_path, monkeypatch):
    run = config(prompt=PLAIN, mapping=mapping, output=str(tmp_path / "outputs"))
    classifier, result = trained(run, tiny_task)
    monkeypatch.setattr(fit_module, "fixed_outputs", lambda *given: False)
    run = config(prompt=PLAIN, mapping=mapping, output=str(tmp_path / "images"))
    other, expected = trained(run, tiny_task)
    assert "features" in result.results["seconds"] and "features" not in expected.results["seconds"]
    # An optimum of separated classes moves far with little rounding.
    close = {"rtol": 0.1, "atol": 0.02} if mapping["kind"] == "logistic" else {"rtol": 1e-3, "atol": 1e-4}
    for name, value in classifier.trained_state().items():
        torch.testing.assert_close(value, other.trained_state()[name], **close)
    for one, two in zip(result.history, expected.history, strict=True):
        assert one["val_acc1"] == two["val_acc1"]
        assert one["train_loss"] == pytest.approx(two["train_loss"], rel=1e-2)
    assert result.results["metrics"] == expected.results["metrics"]


def test_an_epoch_touches_no_image(config, folder_task, monkeypatch):
    run = config(prompt=PLAIN, mapping={"kind": "linear"}, train={"epochs": 3})
    task = folder_task()
    classifier = build_classifier(run, task)
    seen, encode = [], type(classifier.source).encode

    def counted(self, pixels):
        seen.append(len(pixels))
        return encode(self, pixels)

    monkeypatch.setattr(type(classifier.source), "encode", counted)
    fit(classifier, task, run)
    assert sum(seen) == 30 + 12 + 12
    seen.clear()
    again = config(prompt=PLAIN, mapping={"kind": "logistic"}, output=run.output + "-again", seed=7)
    fit(build_classifier(again, task), folder_task(), again)
    assert seen == []  # another method and seed, on what the first left on the disk


@pytest.mark.parametrize("change", ["weights", "canvas", "images"])
def test_other_weights_sizes_and_images_have_outputs_of_their_own(change, config, tmp_path, tiny_model):
    folder = write_image_folder(tmp_path / "data", {"train": 30, "test": 12}, 3)
    cache = str(tmp_path / "cache")
    for changed in (False, True):
        run = config(
            prompt=PLAIN, mapping={"kind": "linear"}, train={"epochs": 1}, output=str(tmp_path / f"{changed}")
        )
        data = {"name": str(folder), "cache_dir": cache, "val": 0.0}
        run.data = DataConfig(**data, max_test=6 if changed and change == "images" else None)
        run.source.canvas = 40 if changed and change == "canvas" else 32
        run.source.name = (
            tiny_model("timm_classifier", 3) if changed and change == "weights" else run.source.name
        )
        task = load_task(run.data)
        fit(build_classifier(run, task), task, run)
    # Of train and test; the same train where fewer images are tested.
    assert len(list_features(cache)) == (3 if change == "images" else 4)


def test_damaged_outputs_are_computed_again(config, folder_task, tmp_path):
    task = folder_task()
    task.cache_dir = str(tmp_path / "cache")
    run = config(prompt=PLAIN, mapping={"kind": "linear"})
    _, expected = trained(run, task)
    for path in Path(task.cache_dir, "features").glob("*/values.safetensors"):
        data = bytearray(path.read_bytes())
        data[-5] ^= 1
        path.write_bytes(data)
    shutil.rmtree(run.output)
    _, result = trained(run, task)
    assert untimed(result.results) == untimed(expected.results)


@pytest.mark.parametrize(
    "prompt, augment, fixed",
    [("none", "none", True), ("none", "flip", False), ("padding", "none", False), ("full", "none", False)],
)
def test_what_trains_or_augments_is_not_fixed(prompt, augment, fixed, config, tiny_task):
    classifier = build_classifier(config(prompt={"kind": prompt}), tiny_task)
    given = TrainConfig(augment=augment)
    assert fixed_outputs(classifier, given) == fixed
    classifier.source.network.requires_grad_(True)
    assert not fixed_outputs(classifier, given)


def test_epochs_take_one_augmented_view_after_the_other(config, folder_task, tmp_path, monkeypatch):
    """With as many views as epochs, a run on views is a run that augments and encodes anew."""
    settings = {"prompt": PLAIN, "mapping": {"kind": "linear", "start": "means"}}
    train = {"epochs": 3, "augment": "random_resized_crop"}
    run = config(**settings, train=train | {"feature_views": 3}, output=str(tmp_path / "views"))
    task = folder_task()
    classifier, result = trained(run, task)
    other, expected = trained(config(**settings, train=train, output=str(tmp_path / "anew")), folder_task())
    assert "features" in result.results["seconds"] and "features" not in expected.results["seconds"]
    for one, two in zip(result.history, expected.history, strict=True):
        assert one["train_loss"] == pytest.approx(two["train_loss"], rel=1e-3)
    for name, value in classifier.trained_state().items():
        torch.testing.assert_close(value, other.trained_state()[name], rtol=1e-3, atol=1e-4)
    plain, _ = trained(config(**settings, train={"epochs": 3}, output=str(tmp_path / "plain")), folder_task())
    assert not torch.allclose(plain.mapping.weight, classifier.mapping.weight, rtol=1e-3, atol=1e-4)

    def encode(self, pixels):
        raise AssertionError("an image was encoded")

    monkeypatch.setattr(type(classifier.source), "encode", encode)
    again = config(**settings, train=train | {"feature_views": 2}, output=str(tmp_path / "again"))
    trained(again, folder_task())  # the first two views, from the disk


def test_views_need_features_that_stay_the_same(config, tiny_task, tmp_path):
    run = config(train={"augment": "flip", "feature_views": 2})
    with pytest.raises(UserError, match="feature_views: 2 needs .* the padding prompt trains") as error:
        trained(run, tiny_task)
    assert "\n" not in str(error.value) and not Path(run.output).exists()
    with pytest.raises(UserError, match="feature_views: 2 needs train.augment"):
        TrainConfig(feature_views=2)


def test_a_network_without_features_keeps_its_logits(config, tiny_task, monkeypatch):
    classifier = build_classifier(config(prompt=PLAIN), tiny_task)
    classifier.source._ends_in_linear = False
    accelerator = Accelerator()
    batches = Batches(tiny_task.tensors("test", classifier.resize, progress=False), accelerator)
    kept = with_outputs(classifier, batches, tiny_task.test, accelerator, Progress(False))
    assert isinstance(kept, OutputBatches) and not kept.are_features
    rows = torch.tensor([3, 0, 5])
    with torch.no_grad():
        images, labels = batches.take(rows)
        expected = classifier.source_outputs(images)
    taken, same = kept.take(rows)
    torch.testing.assert_close(kept.outputs(classifier, taken), expected, rtol=1e-4, atol=1e-5)
    assert torch.equal(labels, same)
