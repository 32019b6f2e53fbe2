"""Crops of decoded originals: Pillow's pixels, and a function of seed, epoch and index alone."""

import io

import numpy as np
import pytest
import torch
from conftest import coloured_images, photo, trained
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image

from clipvp import PromptedClassifier, Task, UserError, build_classifier, fit
from clipvp.config.schema import DataConfig
from clipvp.data.augment.basic import NUM_DRAWS, crop_boxes, epoch_augmentation
from clipvp.data.augment.crops import random_resized_crop, short_side_crop, squash_crop
from clipvp.data.augment.resample import FILTERS, resample
from clipvp.data.cache import list_images, pack, unpack
from clipvp.data.originals import OriginalBatch, OriginalImages
from clipvp.data.sets import ImageSet
from clipvp.images import Resize, Shrink

CPU = torch.device("cpu")
CROPS = ["random_resized_crop", "squash_crop", "short_side_crop"]


def picture(height, width, seed=0, noise=True):
    if not noise:
        return np.array(photo(height, width, seed))
    return np.random.default_rng(seed).integers(0, 256, (height, width, 3), dtype=np.uint8)


def originals(pictures, size=(24, 20), interpolation="bicubic"):
    base = [pack(image) for image in pictures]
    return OriginalImages(base, np.arange(len(base)), Shrink(64, interpolation), size)


def pillow(image, box, resized, offset, size, interpolation):
    top, left, h, w = box
    part = Image.fromarray(image[top : top + h, left : left + w])
    whole = part.resize((resized[1], resized[0]), Image.Resampling[interpolation.upper()])
    top, left = offset
    return np.array(whole)[top : top + size[0], left : left + size[1]]


# The resampling


@settings(max_examples=60)
@given(st.data())
def test_an_image_is_resized_as_pillow_does(data):
    side = st.integers(1, 70)
    height, width, new_height, new_width = (data.draw(side) for _ in range(4))
    interpolation = data.draw(st.sampled_from(sorted(FILTERS)))
    image = picture(height, width, seed=height, noise=data.draw(st.booleans()))
    size = (data.draw(st.integers(1, new_height)), data.draw(st.integers(1, new_width)))
    offset = [
        data.draw(st.integers(0, whole - part))
        for whole, part in zip((new_height, new_width), size, strict=True)
    ]
    padded = np.full((1, height + 3, width + 2, 3), 99, np.uint8)
    padded[0, :height, :width] = image
    found = resample(
        torch.from_numpy(padded),
        torch.tensor([[height, width]]),
        torch.tensor([[new_height, new_width]]),
        torch.tensor([offset]),
        size,
        interpolation,
    )
    expected = pillow(image, (0, 0, height, width), (new_height, new_width), offset, size, interpolation)
    assert found.dtype == torch.uint8
    np.testing.assert_array_equal(found[0].permute(1, 2, 0).numpy(), expected)


def test_photographs_are_resized_as_pillow_does():
    shapes = [(375, 500, 192, 192), (333, 250, 224, 224), (40, 30, 96, 96), (192, 192, 192, 192)]
    for height, width, new_height, new_width in shapes:
        image = picture(height, width, noise=False)
        lengths, resized = torch.tensor([[height, width]]), torch.tensor([[new_height, new_width]])
        zero, size = torch.zeros(1, 2, dtype=torch.int64), (new_height, new_width)
        found = resample(torch.from_numpy(image)[None], lengths, resized, zero, size, "bicubic")[0]
        expected = pillow(image, (0, 0, height, width), size, (0, 0), size, "bicubic")
        np.testing.assert_array_equal(found.permute(1, 2, 0).numpy(), expected)


# The crops


@pytest.mark.parametrize("interpolation", ["bicubic", "bilinear"])
def test_each_crop_is_its_definition_in_pillow(interpolation):
    pictures = [picture(h, w, seed=h) for h, w in ((50, 70), (33, 21), (64, 64), (9, 100), (24, 20)) * 4]
    source, (height, width) = originals(pictures, interpolation=interpolation), (24, 20)
    draws = torch.rand(len(pictures), NUM_DRAWS, generator=torch.Generator().manual_seed(3))
    batch = source.batch(torch.arange(len(pictures)), CPU)
    found = {
        crop.__name__: crop(batch, draws) for crop in (random_resized_crop, squash_crop, short_side_crop)
    }
    for index, image in enumerate(pictures):
        draw, (h, w) = draws[index], image.shape[:2]
        box = crop_boxes(draw[None, 1:5], h, w)[0].long().tolist()
        factor = max(height / h, width / w)
        short = (max(height, int(h * factor + 1e-6)), max(width, int(w * factor + 1e-6)))
        expected = {"random_resized_crop": (box, (height, width))}
        expected |= {"squash_crop": ((0, 0, h, w), (height + 32, width + 32))}
        expected |= {"short_side_crop": ((0, 0, h, w), short)}
        for name, (part, resized) in expected.items():
            spare = [resized[0] - height, resized[1] - width]
            assert min(spare) >= 0
            offset = [min(int((free + 1) * float(d)), free) for free, d in zip(spare, draw[1:3], strict=True)]
            offset = (0, 0) if name == "random_resized_crop" else offset
            cut = pillow(image, part, resized, offset, (height, width), interpolation)
            cut = cut[:, ::-1] if draw[0] < 0.5 else cut
            np.testing.assert_array_equal(found[name][index].permute(1, 2, 0).numpy(), cut)


@pytest.mark.parametrize("name", CROPS)
def test_an_image_is_the_same_to_the_bit_in_every_batch(name):
    shapes = np.random.default_rng(1).integers(5, 90, (40, 2))
    source = originals([picture(h, w, seed=i) for i, (h, w) in enumerate(shapes)])
    change = epoch_augmentation(name, 40, 7, 2)
    whole = change(source.batch(torch.arange(40), CPU), torch.arange(40))
    assert whole.shape == (40, 3, 24, 20) and whole.dtype == torch.uint8
    order = torch.randperm(40, generator=torch.Generator().manual_seed(0))
    for part in order.split(7):
        assert torch.equal(change(source.batch(part, CPU), part), whole[part])
    later = epoch_augmentation(name, 40, 7, 3)
    assert not torch.equal(later(source.batch(order, CPU), order), whole[order])


def test_an_interpolation_without_filter_is_refused():
    with pytest.raises(UserError, match="crops of originals resized by: unknown value 'nearest'"):
        originals([picture(4, 4)], interpolation="nearest")


# The cache


def files(shapes):
    encoded = []
    for index, (height, width) in enumerate(shapes):
        buffer = io.BytesIO()
        Image.fromarray(picture(height, width, seed=index)).save(buffer, "PNG")
        encoded.append(buffer.getvalue())
    return encoded


def test_an_original_is_kept_or_made_smaller():
    shrink = Shrink(20)
    for height, width, expected in [
        (12, 15, (12, 15)),  # as it is
        (20, 900, (4, 189)),  # so long that both sides are smaller
        (40, 60, (20, 30)),
        (61, 41, (29, 20)),
    ]:
        image = picture(height, width)
        found = shrink.read(image)
        assert found.shape == (*expected, 3) and found.shape[0] * found.shape[1] <= 2 * 20**2
        resized = Image.fromarray(image).resize(expected[::-1], Image.Resampling.BICUBIC)
        np.testing.assert_array_equal(found, np.array(resized) if expected != image.shape[:2] else image)
    assert shrink.read(picture(1, 5000)).shape == (1, 800, 3)
    assert np.array_equal(unpack(pack(image)), image)


def test_originals_are_decoded_once_and_damage_is_seen(tmp_path, monkeypatch):
    shapes = [(30, 40), (10, 12), (50, 25), (8, 300)]
    encoded, shrink, asked = files(shapes), Shrink(20), []
    shrunk = Shrink.__call__
    monkeypatch.setattr(Shrink, "__call__", lambda self, image: asked.append(1) or shrunk(self, image))
    images = ImageSet(encoded, np.zeros(4), "pictures", "f")
    expected = [shrink.read(data) for data in encoded]

    def read(chosen=images):
        asked.clear()
        found = chosen.originals(shrink, (8, 8), cache_dir=tmp_path, progress=False)
        rows = chosen.indices if chosen.fingerprint else range(len(chosen))
        for index, row in enumerate(rows):
            np.testing.assert_array_equal(found.image(index), expected[row])
        return len(asked)

    assert read(images.subset(np.array([2, 0]))) == 2
    assert read() == 2 and read() == 0
    [entry] = list_images(tmp_path)
    assert "pictures at 20 (at most), 4 of 4 images" in entry.what and entry.num_bytes < 100_000
    images.tensors(Resize((8, 8)), cache_dir=tmp_path, progress=False)  # an entry of its own
    assert len(list_images(tmp_path)) == 2
    for place in (0, 5, 30):  # the height, the width, a pixel
        with open(entry.path / "pixels.u8", "r+b") as file:
            file.seek(place)
            byte = file.read(1)
            file.seek(place)
            file.write(bytes([byte[0] ^ 255]))
        assert read() == 1
    assert read(ImageSet(encoded, np.zeros(4), "pictures")) == 4  # in memory


def test_a_base_of_more_places_than_memory_holds_is_kept_on_disk(tmp_path):
    [data] = files([(30, 40)])
    images = ImageSet([data] * 400_000, np.zeros(400_000), "pictures", "f").subset(np.array([7, 399_999]))
    for _ in range(2):  # a warning would be an error
        found = images.originals(Shrink(256), (8, 8), cache_dir=tmp_path, progress=False)
        np.testing.assert_array_equal(found.image(1), Shrink(256).read(data))
    [entry] = list_images(tmp_path)
    assert entry.num_bytes < 10_000_000


def test_unreadable_images_are_left_out_of_both(tmp_path):
    encoded = files([(30, 40), (10, 12), (50, 25)])
    encoded[1] = encoded[1][:50]
    images = ImageSet(encoded, np.arange(3), "pictures", "f")
    small = images.tensors(Resize((8, 8)), cache_dir=tmp_path, on_error="skip", progress=False)
    large = images.originals(Shrink(20), (8, 8), cache_dir=tmp_path, on_error="skip", progress=False)
    assert len(large) == len(small) == 2
    for index, row in enumerate((0, 2)):
        np.testing.assert_array_equal(large.image(index), Shrink(20).read(encoded[row]))


# In a run


def test_a_run_crops_originals_alike_in_any_number_of_parts(config, tiny_task, tmp_path):
    def run(name, **train):
        settings = config(
            train={"epochs": 2, "augment": name, **train},
            mapping={"refresh": 1},
            optim={"name": "sgd", "lr": 3.0, "momentum": 0.0},
        )
        settings.output = str(tmp_path / "-".join([name, *map(str, train.values())]))
        return trained(settings, tiny_task)

    plain, _ = run("none")
    whole, result = run("random_resized_crop")
    parts, other = run("random_resized_crop", gradient_accumulation_steps=3)
    plain_delta, delta, other_delta = (c.prompt.delta.detach() for c in (plain, whole, parts))
    assert (delta - plain_delta).norm() > 5e-3 * delta.norm()
    assert (other_delta - delta).norm() < 1e-4 * delta.norm()
    for row, theirs in zip(result.history, other.history, strict=True):
        assert theirs["train_loss"] == pytest.approx(row["train_loss"], rel=1e-4)


def test_counting_and_scores_see_no_crop(config, tiny_task, tmp_path):
    histories = []
    for name in ("none", "random_resized_crop"):
        settings = config(train={"augment": name}, mapping={"refresh": 1}, optim={"lr": 1e-12})
        settings.output = str(tmp_path / name)
        histories.append(trained(settings, tiny_task)[1].history)
    for plain, crop in zip(*histories, strict=True):
        assert crop["source_index"] == plain["source_index"] and crop["val_acc1"] == plain["val_acc1"]
        assert crop["train_loss"] != plain["train_loss"]


def test_a_run_trains_on_crops_of_the_whole_image_and_scores_its_centre(config, monkeypatch):
    """Wide images with red sides, which the centre crop does not see, and a random crop may."""

    def wide(count: int, seed: int) -> list:
        pairs = coloured_images(count, 3, size=48, seed=seed)
        red = np.broadcast_to(np.array([255, 0, 0], np.uint8), (24, 12, 3))
        return [(np.concatenate([red, image[:24], red], axis=1), label) for image, label in pairs]

    seen: dict[bool, list] = {True: [], False: []}
    outputs = PromptedClassifier.source_outputs

    def watched(self, images, *rest):
        seen[self.training].append(images.detach().cpu())
        return outputs(self, images, *rest)

    monkeypatch.setattr(PromptedClassifier, "source_outputs", watched)
    data, test = (wide(60, 0), wide(20, 1)), wide(25, 2)
    task = Task.from_dataset(data[0], test, val=data[1], class_names=["one", "two", "three"])
    run = config(prompt={"resize": "crop"}, train={"augment": "random_resized_crop", "epochs": 2})
    classifier = build_classifier(run, task)
    result = fit(classifier, task, run)

    def has_red(images: torch.Tensor) -> torch.Tensor:
        red, *others = images.unbind(1)
        return ((red > 0.99) & (others[0] < 0.01) & (others[1] < 0.01)).flatten(1).any(1)

    trained_on, others = torch.cat(seen[True]), torch.cat(seen[False])
    assert len(trained_on) == 2 * 60 and 0 < int(has_red(trained_on).sum()) < 2 * 60
    assert len(others) >= 60 + 20 + 25 and not has_red(others).any()  # counted, validated, tested
    centres = [
        Image.fromarray(image).resize((48, 16), Image.Resampling.BICUBIC).crop((16, 0, 32, 16))
        for image, _ in test
    ]
    pixels = torch.tensor(np.stack([np.array(image) for image in centres])).permute(0, 3, 1, 2) / 255
    assert torch.equal(others[-len(test) :], pixels)
    right = classifier.eval()(pixels).argmax(1) == torch.tensor([label for _, label in test])
    assert result.test["best_val"].acc1 == pytest.approx(float(right.float().mean()))


def test_a_side_that_is_none_is_one_line():
    with pytest.raises(UserError, match="data.cache_side: 0 is not allowed"):
        DataConfig(cache_side=0)
    assert isinstance(OriginalBatch([picture(3, 4)], (2, 2), "bicubic", CPU).sizes, torch.Tensor)
