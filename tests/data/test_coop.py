"""Folders in CoOp's layout: exactly the images and labels that the split file names, or one line of what is wrong."""

import json
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image

from clipvp.config.schema import DataConfig
from clipvp.data.loaders.raw import RawTask
from clipvp.data.sets import ImageSet
from clipvp.data.task import load_task
from clipvp.images import Resize
from clipvp.registry import UserError

NAMES = ["abyssinian", "american_bulldog", "basset_hound", "beagle", "bengal"]
PER_CLASS = {"train": 20, "val": 6, "test": 3}


@pytest.fixture(autouse=True)
def private_cache(tmp_path_factory, monkeypatch):
    monkeypatch.setenv("CLIPVP_CACHE", str(tmp_path_factory.mktemp("cache")))


def write_split(root: Path, images: str = "images", change=lambda split: None) -> dict:
    """Lay out a folder as OxfordPets is; return its split file. An image's red is its number, its green its label."""
    split, number = {}, 0
    for role, count in PER_CLASS.items():
        rows = [(shot, label) for shot in range(count) for label in range(len(NAMES))]
        split[role] = []
        for shot, label in rows:
            path = f"{NAMES[label]}_{role}_{shot}.png"
            (root / images).mkdir(parents=True, exist_ok=True)
            Image.new("RGB", (4, 4), (number % 256, label, 0)).save(root / images / path)
            split[role].append([path, label, NAMES[label]])
            number += 1
    change(split)
    (root / "annotations").mkdir(exist_ok=True)
    (root / "split_zhou_OxfordPets.json").write_text(json.dumps(split))
    return split


def test_a_split_file_gives_exactly_what_it_names(tmp_path):
    split = write_split(tmp_path / "oxford_pets")
    (tmp_path / "oxford_pets" / "images" / "unlisted.png").write_bytes(b"no image, and never opened")
    task = load_task(str(tmp_path / "oxford_pets"))
    assert task.name == "oxford_pets" and task.class_names == NAMES
    assert task.info["val_from"] == "val" and task.info["test_from"] == "test"
    for role, rows in split.items():
        images = getattr(task, role)
        paths = [Path(images.item(row)) for row in range(len(images))]
        assert [path.relative_to(tmp_path / "oxford_pets" / "images").as_posix() for path in paths] == [
            path for path, _, _ in rows
        ]
        assert images.labels.tolist() == [label for _, label, _ in rows]
        pixels = task.tensors(role, Resize((2, 2)), progress=False)
        assert pixels.images[:, 1, 0, 0].tolist() == pixels.labels.tolist()


@pytest.mark.parametrize("images", ["jpg", "2750", "."])
def test_the_folder_of_images_may_have_any_name(tmp_path, images):
    write_split(tmp_path, images)
    assert len(load_task(str(tmp_path)).test) == 15


@pytest.mark.parametrize("shots", [1, 2, 4, 8, 16])
def test_few_shots_are_the_seeds_and_are_stored(tmp_path, shots):
    write_split(tmp_path)
    config = DataConfig(name=str(tmp_path), shots=shots)
    chosen = {}
    for seed in (1, 2, 3):
        task, again = (load_task(config, seed=seed) for _ in range(2))
        assert task.train.class_counts(5).tolist() == [shots] * 5
        assert task.val.class_counts(5).tolist() == [min(shots, 4)] * 5
        assert len(task.test) == 15 and task.split_hash == again.split_hash
        stored = task.describe()["indices"]
        assert stored == {"train": task.train.indices.tolist(), "val": task.val.indices.tolist()}
        assert stored == again.describe()["indices"]
        chosen[seed] = json.dumps(stored)
    assert len(set(chosen.values())) == 3


def test_base_and_new_classes_share_out_every_image(tmp_path):
    write_split(tmp_path)
    whole, base, new = (
        load_task(DataConfig(name=str(tmp_path), classes=classes)) for classes in ("all", "base", "new")
    )
    assert base.class_names == NAMES[:3] and new.class_names == NAMES[3:]  # the odd class is a base class
    for role in PER_CLASS:
        parts = [getattr(task, role) for task in (base, new)]
        assert sorted(np.concatenate([part.indices for part in parts])) == list(
            range(len(getattr(whole, role)))
        )
        for task, part in zip((base, new), parts, strict=True):
            names = [Path(part.item(row)).name.split(f"_{role}")[0] for row in range(len(part))]
            assert names == [task.class_names[label] for label in part.labels]
    assert len({task.split_hash for task in (whole, base, new)}) == 3
    few = load_task(DataConfig(name=str(tmp_path), classes="base", shots=4), seed=2)
    all_few = load_task(DataConfig(name=str(tmp_path), shots=4), seed=2)
    assert set(few.train.items[row] for row in few.train.indices) < set(
        all_few.train.items[row] for row in all_few.train.indices
    )


@settings(deadline=None)
@given(st.integers(2, 30), st.lists(st.integers(0, 29), max_size=60))
def test_halves_of_any_task(num_classes, labels):
    labels = np.array([*range(num_classes), *(label % num_classes for label in labels)])
    raw = RawTask(unique(num_classes), ImageSet(np.zeros(len(labels)), labels, "train"))
    base, new = raw.of_classes("base"), raw.of_classes("new")
    assert base.class_names + new.class_names == raw.class_names
    assert 0 <= len(base.class_names) - len(new.class_names) <= 1
    for half in (base, new):
        assert [half.class_names[label] for label in half.train.labels] == [
            raw.class_names[labels[row]] for row in half.train.indices
        ]


def unique(count):
    return [f"class {label}" for label in range(count)]


def test_the_registered_name_reads_the_folder(tmp_path):
    write_split(tmp_path / "oxford_pets")
    for folder in (tmp_path, tmp_path / "oxford_pets"):
        with pytest.raises(UserError, match="oxfordpets: found 5 classes, and the task has 37"):
            load_task(DataConfig(name="oxfordpets", folder=str(folder)))
    with pytest.raises(UserError, match=r"data\.folder: there is no folder"):
        load_task(DataConfig(name="oxfordpets", folder=str(tmp_path / "no")))
    with pytest.raises(UserError, match=r"holds no split_zhou_\*\.json"):
        load_task(DataConfig(name="dtd", folder=str(tmp_path)))


# Bad split files: one line each


def remove_images(split, root, count):
    for path, _, _ in split["test"][:count]:
        (root / "images" / path).unlink()


def test_missing_images_are_counted_and_named(tmp_path):
    split = write_split(tmp_path)
    remove_images(split, tmp_path, 12)
    with pytest.raises(
        UserError, match=r"12 of its 145 images are missing: .*abyssinian_test_0\.png.*and 2 more"
    ):
        load_task(str(tmp_path))


@pytest.mark.parametrize(
    "change, message",
    [
        (lambda s: s["test"].append(["x.png", 5, "elk"]), "test has classes that train lacks: 'elk'"),
        (lambda s: s["val"].append(["x.png", 0, "cat"]), "label 0 is called 'abyssinian' and 'cat'"),
        (lambda s: s["train"].append(["x.png", 7, "elk"]), "labels do not count from 0 to 5: there is no 5"),
        (lambda s: s.pop("val"), "no split file: KeyError 'val'"),
        (lambda s: s["train"].append(["x.png"]), "no split file: ValueError"),
        (lambda s: s["train"].append(["x.png", "cat", "cat"]), "no split file: ValueError"),
        (lambda s: s["train"].clear(), "its train split is empty"),
        (lambda s: s["val"].append(["../../x.png", 0, "abyssinian"]), "outside of its folder: '../../x.png'"),
        (lambda s: s["val"].append(["/x.png", 0, "abyssinian"]), "outside of its folder: '/x.png'"),
    ],
)
def test_split_files_that_do_not_fit_are_refused(tmp_path, change, message):
    write_split(tmp_path, change=change)
    with pytest.raises(UserError, match=message) as error:
        load_task(str(tmp_path))
    assert "\n" not in str(error.value)


def test_two_split_files_and_a_damaged_one(tmp_path):
    write_split(tmp_path)
    (tmp_path / "split_zhou_OxfordPets.json").write_text('{"train": [')
    with pytest.raises(UserError, match="no split file: JSONDecodeError"):
        load_task(str(tmp_path))
    (tmp_path / "split_zhou_Other.json").write_text("{}")
    with pytest.raises(UserError, match=r"several split files: 'split_zhou_Other\.json', 'split_zhou_Ox"):
        load_task(str(tmp_path))


# Layouts without a split file


def test_aircraft_lists_its_variants(tmp_path):
    names = ["707-320", "A340-300", "Eurofighter Typhoon"]
    (tmp_path / "images").mkdir()
    (tmp_path / "variants.txt").write_text("\n".join(names) + "\n")
    for role, first in (("train", 0), ("val", 100), ("test", 200)):
        lines = [f"{first + row:07d} {names[row % 3]}" for row in range(6)]
        (tmp_path / f"images_variant_{role}.txt").write_text("\n".join(lines) + "\n")
        for line in lines:
            Image.new("RGB", (4, 4)).save(tmp_path / "images" / f"{line[:7]}.jpg")
    task = load_task(str(tmp_path))
    assert task.class_names == names
    assert Path(task.val.item(5)).name == "0000105.jpg" and task.val.labels.tolist() == [0, 1, 2] * 2
    (tmp_path / "images_variant_test.txt").write_text("0000200 Concorde\n")
    with pytest.raises(UserError, match="lists of variants cannot be read: 'Concorde'"):
        load_task(str(tmp_path))


def test_class_folders_are_labelled_in_the_order_of_their_numbers(tmp_path):
    from clipvp.data.loaders.coop import load_class_folders

    for label in range(12):
        folder = tmp_path / "format-val" / str(label)
        folder.mkdir(parents=True)
        Image.new("RGB", (4, 4)).save(folder / "one.png")
    raw = load_class_folders(tmp_path, {"test": "format-val"}, unique(12))
    assert raw.train is None and [Path(path).parent.name for path in raw.test.items] == list(
        map(str, range(12))
    )
    with pytest.raises(UserError, match="has 12 class folders, and the task 13 classes"):
        load_class_folders(tmp_path, {"test": "format-val"}, unique(13))


def test_a_folder_as_the_authors_hand_it_out(tmp_path):
    root = tmp_path / "oxfordpets"
    write_split(root)
    listed = load_task(str(root))
    (root / "split_zhou_OxfordPets.json").rename(root / "split.json")
    task = load_task(str(root))
    assert (task.split_hash, task.class_names) == (listed.split_hash, NAMES)


def test_images_in_a_pickled_data_base_are_one_line(tmp_path):
    root = tmp_path / "oxfordpets"
    write_split(root)
    (root / "split_zhou_OxfordPets.json").rename(root / "split.json")
    for path in (root / "images").iterdir():
        path.unlink()
    (root / "train.lmdb").mkdir()
    with pytest.raises(
        UserError, match="'train.lmdb' as Python pickles, which may be code and are not read; put"
    ) as e:
        load_task(str(root))
    assert "\n" not in str(e.value)
