"""Augmentation is a function of seed, epoch and index, and each one is its definition, image by image."""

import random
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from conftest import trained
from hypothesis import given, settings
from hypothesis import strategies as st
from torch.nn import functional as F
from torchvision.transforms.v2 import TrivialAugmentWide

from clipvp.config.schema import TrainConfig
from clipvp.data.augment.basic import NUM_DRAWS, crop_boxes, crop_flip, epoch_augmentation, takes_originals
from clipvp.data.augment.trivial import OPERATIONS, trivial
from clipvp.data.batches import Batches
from clipvp.data.sets import ImageTensors
from clipvp.registry import AUGMENTATIONS, UserError

NAMES = [name for name in AUGMENTATIONS.names() if not takes_originals(name)]  # the others: test_originals.py
RANDOM = [name for name in NAMES if name != "none"]


def noise(count=12, height=20, width=17, seed=0):
    generator = torch.Generator().manual_seed(seed)
    return torch.randint(0, 256, (count, 3, height, width), generator=generator, dtype=torch.uint8)


def smooth(count=3, size=40):
    return (
        F.interpolate(noise(count, 5, 5).float(), size=(size, size), mode="bicubic")
        .clamp(0, 255)
        .to(torch.uint8)
    )


def batches(images, rank=0, world=1):
    process = SimpleNamespace(process_index=rank, num_processes=world, device=torch.device("cpu"))
    return Batches(ImageTensors(images, torch.arange(len(images))), process)


# What it depends on


@settings(max_examples=20, deadline=None)
@given(
    st.sampled_from(NAMES),
    st.integers(0, 2**40),
    st.integers(0, 300),
    st.permutations(range(12)),
    st.integers(1, 5),
)
def test_an_image_in_an_epoch_is_the_same_in_every_batch_and_on_every_process(
    name, seed, epoch, order, parts
):
    images, order = noise(), torch.tensor(order)
    whole, _ = batches(images).take(torch.arange(12), epoch_augmentation(name, 12, seed, epoch))
    torch.manual_seed(parts), np.random.seed(parts), random.seed(parts)  # whatever state the process is in
    for rank in range(parts):
        view = batches(images, rank, parts)
        [share] = view.share(order)
        found, labels = view.take(share, epoch_augmentation(name, 12, seed, epoch))
        assert torch.equal(found, whole[share]) and torch.equal(labels, share)


@pytest.mark.parametrize("name", RANDOM)
def test_epochs_seeds_and_images_differ(name):
    images = noise(1).expand(40, -1, -1, -1)
    rows = torch.arange(40)
    first, later, other = (
        epoch_augmentation(name, 40, seed, epoch)(images, rows) for seed, epoch in ((0, 0), (0, 1), (1, 0))
    )
    assert not torch.equal(first, later) and not torch.equal(first, other)
    assert len(first.flatten(1).unique(dim=0)) > 1


@pytest.mark.parametrize("name", NAMES)
def test_no_random_state_moves_and_the_images_stay(name):
    images = noise()
    before, kept = torch.get_rng_state(), images.clone()
    found = epoch_augmentation(name, 12, 3, 4)(images, torch.arange(12))
    assert found.dtype == torch.uint8 and found.shape == images.shape
    assert torch.equal(torch.get_rng_state(), before) and torch.equal(images, kept)


def test_passes_are_never_augmented():
    images = noise()
    found = torch.cat([part for part, _ in batches(images).local_batches(5)])
    assert torch.equal(found, images.float() / 255)


def test_an_unknown_augmentation_is_refused():
    with pytest.raises(UserError, match="train.augment: unknown value 'flop'; did you mean 'flip'"):
        TrainConfig(augment="flop")


# What each one is


def test_flip_mirrors_half_of_the_images():
    images = noise(1).expand(400, -1, -1, -1)
    found = epoch_augmentation("flip", 400, 0, 0)(images, torch.arange(400))
    mirrored = (found == images.flip(-1)).flatten(1).all(1)
    assert (mirrored | (found == images).flatten(1).all(1)).all()
    assert 150 < mirrored.sum() < 250


@settings(max_examples=60, deadline=None)
@given(
    st.lists(st.lists(st.floats(0, 1, exclude_max=True, width=32), min_size=4, max_size=4), min_size=1),
    st.integers(1, 300),
    st.integers(1, 300),
)
def test_a_crop_lies_in_the_image(draws, height, width):
    top, left, h, w = crop_boxes(torch.tensor(draws), height, width).unbind(1)
    assert (h >= 1).all() and (w >= 1).all() and (top >= 0).all() and (left >= 0).all()
    assert (top + h <= height).all() and (left + w <= width).all()
    for values in (top, left, h, w):
        assert torch.equal(values, values.round())


def test_crops_have_the_areas_and_ratios_that_are_asked_for():
    draws = torch.rand(5000, 4, generator=torch.Generator().manual_seed(0))
    _, _, h, w = crop_boxes(draws, 1000, 1000).unbind(1)
    share, ratio = h * w / 1e6, w / h
    assert 0.079 < share.min() < 0.1 and 0.98 < share.max() <= 1 and abs(share.mean() - 0.54) < 0.01
    assert 0.745 < ratio.min() < 0.76 and 1.32 < ratio.max() < 1.34
    assert abs(ratio.log().mean()) < 0.01  # as wide as high


def test_crop_is_a_crop_that_is_resized():
    images = noise(30, 24, 31)
    draws = torch.rand(30, NUM_DRAWS, generator=torch.Generator().manual_seed(1))
    found = crop_flip(images, draws)
    for image, draw, one in zip(images, draws, found, strict=True):
        top, left, h, w = (int(side) for side in crop_boxes(draw[None, 1:5], 24, 31)[0])
        part = image[None, :, top : top + h, left : left + w].float()
        expected = F.interpolate(part, size=(24, 31), mode="bilinear", align_corners=False)
        expected = expected.flip(-1) if draw[0] < 0.5 else expected
        assert (one - expected[0]).abs().max() <= 0.51  # rounded to a byte


TORCHVISION = dict(zip(OPERATIONS, TrivialAugmentWide._AUGMENTATION_SPACE, strict=True))


@pytest.mark.parametrize("operation", OPERATIONS)
def test_trivial_augments_operations_are_torchvisions(operation):
    images = smooth()
    theirs = TrivialAugmentWide()
    strengths, signed = theirs._AUGMENTATION_SPACE[TORCHVISION[operation]]
    strengths = strengths(31, 40, 40)
    index = (list(OPERATIONS).index(operation) + 0.5) / len(OPERATIONS)
    for place in (0, 7, 18, 30):
        for sign in (-1, 1) if signed else (1,):
            draws = torch.tensor([[index, (place + 0.5) / 31, 0.25 if sign < 0 else 0.75]] * len(images))
            found = trivial(images, draws)
            strength = 0.0 if strengths is None else sign * float(strengths[place])
            for image, one in zip(images, found, strict=True):
                expected = theirs._apply_image_or_video_transform(
                    image, TORCHVISION[operation], strength, "nearest", {torch.Tensor: None}
                )
                off = (one.int() - expected.int()).abs()
                assert (off > 1).float().mean() < 0.01, (
                    place,
                    sign,
                )  # a place between two pixels may round either way


def test_trivial_takes_every_operation_equally_often():
    draws = torch.rand(20000, NUM_DRAWS, generator=torch.Generator().manual_seed(0))
    counts = torch.bincount((draws[:, 0] * len(OPERATIONS)).long(), minlength=len(OPERATIONS))
    assert len(counts) == 14 and counts.min() > 1250 and counts.max() < 1600


# In a run


def run_with(config, task, **train):
    # Not Adam, whose first steps are as long for a gradient that is rounding alone as for one of 1.
    optim = {"name": "sgd", "lr": 3.0, "momentum": 0.0}
    settings = config(train={"epochs": 2, **train}, mapping={"refresh": "never"}, optim=optim)
    settings.output = f"{settings.output}-{'-'.join(map(str, train.values()))}"
    return trained(settings, task)


@pytest.mark.parametrize("name", RANDOM)
def test_training_is_augmented_alike_in_any_number_of_parts(name, config, tiny_task):
    plain, _ = run_with(config, tiny_task, augment="none")
    whole, result = run_with(config, tiny_task, augment=name)
    parts, other = run_with(config, tiny_task, augment=name, gradient_accumulation_steps=3)
    plain, whole, parts = (run.prompt.delta.detach() for run in (plain, whole, parts))
    assert (whole - plain).norm() > 5e-3 * whole.norm() > 0
    assert (parts - whole).norm() < 1e-4 * whole.norm()
    for row, theirs in zip(result.history, other.history, strict=True):
        assert theirs["train_loss"] == pytest.approx(row["train_loss"], rel=1e-4)


def test_counting_and_scoring_see_the_images_as_they_are(config, tiny_task, monkeypatch):
    monkeypatch.setitem(AUGMENTATIONS._loaded, "black", lambda images, draws: torch.zeros_like(images))
    still = {"lr": 1e-12}
    histories = []
    for name in ("none", "black"):
        settings = config(train={"augment": name}, mapping={"refresh": 1}, optim=still)
        settings.output = f"{settings.output}-{name}"
        histories.append(trained(settings, tiny_task)[1].history)
    for plain, black in zip(*histories, strict=True):
        assert black["source_index"] == plain["source_index"] and black["val_acc1"] == plain["val_acc1"]
        assert black["train_loss"] != pytest.approx(plain["train_loss"], rel=1e-3)
