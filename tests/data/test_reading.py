"""What is read of a user's folders and tables: which folder is which split, which files are used, which labels."""

import json
import os
import sys

import datasets
import numpy as np
import pillow_heif
import pytest
from conftest import coloured_images
from PIL import Image

from clipvp import Task, UserError, load_task
from clipvp.config import DataConfig
from clipvp.data.loaders import files
from clipvp.data.loaders.split_names import role_of
from clipvp.images import Resize


def picture(path, value=0, **how):
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.new("RGB", (5, 5), (value, 10, 20)).save(path, **how)


def tree(root, *places, count=10):
    for place in places:
        for number in range(count):
            picture(root / place / f"{number}.png", number)
    return root


def sizes(task):
    return {split: len(getattr(task, split)) for split in ("train", "val", "test") if getattr(task, split)}


@pytest.mark.parametrize(
    "name, role",
    [
        *(
            (name, "train")
            for name in ("train", "Train", "TRAINING", "train_set", "TrainSet", "train2017", "images_train")
        ),
        *((name, "val") for name in ("val", "valid", "Validation", "dev", "eval", "val-images")),
        *((name, "test") for name in ("test", "Testing", "test_data", "Test Images", "testset")),
        *(
            (name, None)
            for name in ("cat", "seg_train", "trained", "train_test", "testimony", "contest", "devil")
        ),
    ],
)
def test_the_role_of_a_name(name, role):
    assert role_of(name) == role


@pytest.mark.parametrize(
    "places, expected",
    [
        (["Training/a", "Training/b", "Testing/a", "Testing/b"], {"train": 18, "val": 2, "test": 20}),
        (["train/a", "train/b", "Test/a", "Test/b"], {"train": 18, "val": 2, "test": 20}),
        (["train/a", "train/b", "dev/a", "dev/b", "test/a", "test/b"], {"train": 20, "val": 20, "test": 20}),
        (["train/a", "train/b", "valid/a", "valid/b"], {"train": 18, "val": 2, "test": 20}),
        (["train/a", "train/b", "eval/a", "eval/b", "test/a"], {"train": 20, "val": 20, "test": 10}),
        (
            ["seg_train/seg_train/a", "seg_train/seg_train/b", "seg_test/seg_test/a"],
            {"train": 18, "val": 2, "test": 10},
        ),
        (["x/Train/a", "x/Train/b", "x/Validation/a", "x/Testing/b"], {"train": 20, "val": 10, "test": 10}),
        (["images/a", "images/b", "annotations"], {"train": 14, "val": 2, "test": 4}),
        (["pets/a", "pets/b"], {"train": 14, "val": 2, "test": 4}),
        (["bus", "train"], {"train": 14, "val": 2, "test": 4}),  # vehicles
        (["test/a", "test/b"], {"test": 20}),
        (["a", "b", "__MACOSX/a", "@eaDir"], {"train": 14, "val": 2, "test": 4}),
        (["train/a", "train/b", "test/a", "unlabeled"], {"train": 18, "val": 2, "test": 10}),
        (["a/deep/er", "b"], {"train": 14, "val": 2, "test": 4}),
    ],
    ids=lambda value: "+".join(value) if isinstance(value, list) else "",
)
def test_which_folder_is_which_split(places, expected, tmp_path):
    task = load_task(str(tree(tmp_path / "mine", *places)))
    assert sizes(task) == expected
    assert set(task.class_names) <= {"a", "b", "bus", "train"} and task.num_classes == 2
    for split in expected:  # every image has the class of its own folder
        images = getattr(task, split)
        for row, label in enumerate(images.labels):
            assert f"{os.sep}{task.class_names[label]}{os.sep}" in images.item(row)


@pytest.mark.parametrize(
    "places, message",
    [
        (
            ["train/a", "Training/a"],
            "'Training' and 'train' can each be the train split; set data.train_split",
        ),
        (["train/a", "train/b", "val/a", "validation/a"], "can each be the val split; set data.val_split"),
        (["train/a", "train/b", "test"], "'test' are in no class folders.*data.test_split: none"),
        (["train", "test"], "should hold one folder a class"),
        (["a", "b", "test/a", "test/b"], "'test' is named as a split, 'a', 'b' is not.*data.train_split"),
        (["images", "annotations"], "not in one folder a class; give a table"),
        (["a/train", "a/test", "b/train", "b/test"], "the splits 'test', 'train' are inside of the class"),
        (["train/a", "train/b", "test/a", "test/c"], "the training folder has no class 'c'"),
    ],
    ids=lambda value: "+".join(value) if isinstance(value, list) else "",
)
def test_what_is_ambiguous_is_refused(places, message, tmp_path):
    with pytest.raises(UserError, match=message):
        load_task(str(tree(tmp_path, *places)))


def test_a_key_decides_what_is_ambiguous(tmp_path):
    tree(tmp_path / "flat", "train/a", "train/b", "test")
    assert sizes(load_task(DataConfig(name=str(tmp_path / "flat"), test_split="none"))) == {
        "train": 14,
        "val": 2,
        "test": 4,
    }
    tree(tmp_path / "classes", "train", "test")
    assert load_task(DataConfig(name=str(tmp_path / "classes"), train_split=".")).class_names == [
        "test",
        "train",
    ]


def test_every_file_that_is_not_used_is_said(tmp_path, monkeypatch):
    monkeypatch.setattr(files, "find_spec", lambda name: None)  # without pillow-heif
    root = tree(tmp_path / "phone", "cat", "dog")
    for ending in ("jpe", "JPG", "jfif", "TIF"):
        picture(root / "dog" / f"x.{ending}", format="TIFF" if ending == "TIF" else "JPEG")
    picture(root / "dog" / "without", format="PNG")
    picture(root / "beside.png")
    (root / "dog" / "Thumbs.db").write_bytes(b"x")
    (root / "dog" / "notes.txt").write_text("x")
    (root / "cat" / "README").write_text("x")
    for number in range(3):
        (root / "cat" / f"{number}.HEIC").write_bytes(b"\0\0\0\x18ftypheic")
    (root / "cat" / "self").symlink_to(root / "cat")
    task = load_task(str(root))
    assert task.class_names == ["cat", "dog"] and sum(sizes(task).values()) == 25
    said = str(task)
    for words in (
        "phone: 2 classes (cat, dog)",
        "test  5 images, 20 % carved from train",
        "1 .txt file ('dog/notes.txt')",
        "1 hidden or system file ('dog/Thumbs.db')",
        "1 file without an ending that are no images ('cat/README')",
        "1 image file beside the class folders ('beside.png')",
        "1 file that link to a folder above ('cat/self')",
    ):
        assert words in said
    assert "3 .heic files (such as 'cat/" in said and 'pip install "clipvp[heif]"' in said
    assert json.loads(json.dumps(task.describe()))["notes"] == task.notes


def test_heic_files_are_images_with_pillow_heif(tmp_path, monkeypatch):
    pillow_heif.register_heif_opener()  # to write one
    monkeypatch.setenv("CLIPVP_CACHE", str(tmp_path / "cache"))
    tree(tmp_path / "data", "a", "b")
    Image.new("RGB", (64, 64), (200, 30, 20)).save(tmp_path / "data" / "a" / "x.HEIC", "HEIF", quality=95)
    task = load_task(DataConfig(name=str(tmp_path / "data"), val=0))
    pixels = np.concatenate(
        [task.tensors(split, Resize((4, 4))).images.numpy() for split in ("train", "test")]
    )
    assert len(pixels) == 21 and abs(pixels[:, :, 0, 0].astype(int) - [200, 30, 20]).max(1).min() <= 3


def test_a_class_without_usable_files_says_why(tmp_path):
    root = tree(tmp_path, "cat", "dog")
    (root / "bird").mkdir()
    (root / "bird" / "1.xyz").write_bytes(b"x")
    with pytest.raises(UserError, match=r"without training images: 'bird'; not used: 1 \.xyz file"):
        load_task(str(root))


@pytest.mark.skipif(sys.platform != "linux", reason="other systems refuse such a name")
def test_a_name_that_is_not_utf8_is_a_class_and_two_that_read_the_same_are_refused(tmp_path):
    tree(tmp_path, "a")
    for number, name in enumerate((b"caf\xe9", b"caf\xe8")):
        folder = os.path.join(os.fsencode(tmp_path), name)
        os.mkdir(folder)
        with open(os.path.join(folder, b"1.png"), "wb") as file:
            Image.new("RGB", (4, 4)).save(file, "PNG")
        if number == 0:
            assert load_task(DataConfig(name=str(tmp_path), val=0)).class_names == ["a", "caf\ufffd"]
    with pytest.raises(UserError, match="two folders have the name 'caf\ufffd'"):
        load_task(str(tmp_path))


CSV = [  # name, header, label of class i, how it is written, class names
    ("from_one.csv", "path,label", lambda i: i + 1, {}, ["1", "2", "3"]),
    ("from_ten.csv", "path,label", lambda i: i + 9, {}, ["9", "10", "11"]),
    ("gap.csv", "path,label", lambda i: 5 * i, {}, ["0", "5", "10"]),
    ("float.csv", "path,label", float, {}, ["0", "1", "2"]),
    ("bool.csv", "path,label", lambda i: i == 0, {}, ["False", "True"]),
    ("none.csv", "path,label", lambda i: "None" if i else "a", {}, ["None", "a"]),
    ("na.csv", "path,label", lambda i: "NA" if i else "nan", {}, ["NA", "nan"]),
    ("zeros.csv", "path,label", lambda i: f"00{i + 1}", {}, ["001", "002", "003"]),
    ("mixed.csv", "path,label", lambda i: "x" if i == 2 else i, {}, ["0", "1", "x"]),
    ("semicolon.csv", "path;label", lambda i: "abc"[i], {}, ["a", "b", "c"]),
    ("tabs.tsv", "path\tlabel", lambda i: "abc"[i], {}, ["a", "b", "c"]),
    ("bar.csv", "path|label", lambda i: "a,bc"[i], {}, [",", "a", "b"]),
    ("UPPER.CSV", "path,label", lambda i: "abc"[i], {}, ["a", "b", "c"]),
    ("capital.csv", "Image,Label", lambda i: "abc"[i], {}, ["a", "b", "c"]),
    ("spaces.csv", "File Name, Class Name", lambda i: f" {'abc'[i]}", {}, ["a", "b", "c"]),
    ("bom.csv", "path,label", lambda i: "abc"[i], {"encoding": "utf-8-sig"}, ["a", "b", "c"]),
    ("utf16.csv", "path,label", lambda i: "abc"[i], {"encoding": "utf-16"}, ["a", "b", "c"]),
    ("latin1.csv", "path,label", lambda i: "é" if i else "a", {"encoding": "latin-1"}, ["a", "é"]),
    ("windows.csv", "path,label", lambda i: "abc"[i], {"newline": "\r\n"}, ["a", "b", "c"]),
    ("more.csv", "id,path,label,note", lambda i: "abc"[i], {}, ["a", "b", "c"]),
]


@pytest.mark.parametrize("name, header, label, how, names", CSV, ids=[row[0] for row in CSV])
def test_labels_of_a_table_are_what_is_written(name, header, label, how, names, tmp_path):
    tree(tmp_path, "0", "1", "2", count=8)
    mark = next(mark for mark in ";\t|," if mark in header)
    rows = [(f"{i}/{k}.png", str(label(i))) for i in range(3) for k in range(8)]
    if "id" in header.split(","):
        rows = [(str(number), *row, "-1") for number, row in enumerate(rows)]
    with open(tmp_path / name, "w", **how) as file:
        file.write("\n".join([header, *(mark.join(row) for row in rows)]))
    task = load_task(str(tmp_path / name))
    assert task.class_names == names
    for images in (task.train, task.test):
        for row, found in enumerate(images.labels):
            folder = int(images.item(row).split(os.sep)[-2])
            assert task.class_names[found] == str(label(folder)).strip().removesuffix(".0")


def table(path, rows, header="path,label,split"):
    path.write_text("\n".join([header, *(",".join(map(str, row)) for row in rows)]))
    return str(path)


def test_a_split_column_splits(tmp_path):
    tree(tmp_path, "cat", "dog")
    rows = [(f"{c}/{k}.png", c, "TEST" if k >= 6 else "Train") for c in ("cat", "dog") for k in range(10)]
    task = load_task(DataConfig(name=table(tmp_path / "l.csv", rows), val=0))
    assert sizes(task) == {"train": 12, "test": 8}
    assert all(index % 10 < 6 for index in task.train.indices) and all(
        index % 10 >= 6 for index in task.test.indices
    )
    assert "splits are from column 'split'" in str(task)
    assert sizes(load_task(DataConfig(name=str(tmp_path / "l.csv"), val=0, split_column="none"))) == {
        "train": 16,
        "test": 4,
    }
    strange = [(path, label, "fold1" if split == "TEST" else split) for path, label, split in rows]
    with pytest.raises(UserError, match="values that are no split: 'fold1'.*data.split_column: none"):
        load_task(table(tmp_path / "strange.csv", strange))
    named = DataConfig(name=str(tmp_path / "strange.csv"), test_split="fold1", val=0)
    assert sizes(load_task(named)) == {"train": 12, "test": 8}


def test_the_folders_of_the_paths_split(tmp_path):
    tree(tmp_path, "train/a", "train/b", "test/a", "test/b")
    rows = [(f"{s}/{c}/{k}.png", c) for s in ("train", "test") for c in "ab" for k in range(10)]
    task = load_task(DataConfig(name=table(tmp_path / "l.csv", rows, "path,label"), val=0))
    assert sizes(task) == {"train": 20, "test": 20} and "first folder of the paths" in str(task)


def test_saved_data_sets_and_metadata_files(tmp_path):
    images = [Image.new("RGB", (4, 4), (k, 0, 0)) for k in range(20)]
    features = datasets.Features({"image": datasets.Image(), "label": datasets.ClassLabel(names=["x", "y"])})
    saved = datasets.Dataset.from_dict({"image": images, "label": [0, 1] * 10}, features=features)
    datasets.DatasetDict(train=saved, test=saved).save_to_disk(tmp_path / "saved")
    assert sizes(load_task(str(tmp_path / "saved"))) == {"train": 18, "val": 2, "test": 20}
    for split in ("train", "test"):
        lines = ["file_name,label"]
        for k in range(10):
            picture(tmp_path / "meta" / split / f"{k}.png")
            lines += [f"{k}.png,{'ab'[k % 2]}"] if k < 8 else []
        (tmp_path / "meta" / split / "metadata.csv").write_text("\n".join(lines))
    task = load_task(DataConfig(name=str(tmp_path / "meta"), val=0))
    assert sizes(task) == {"train": 8, "test": 8} and "2 images that metadata.csv does not name" in str(task)


@pytest.mark.parametrize(
    "given, names",
    [
        (["cat", "dog", "cow"], ["cat", "dog", "cow"]),
        ({"1": "cat", "3": "cow"}, ["cat", "2", "cow"]),
        ("names.txt", ["cat", "dog", "cow"]),
        ("names.yaml", ["no", "yes", "3"]),
        (["zero", "cat", "dog", "cow"], ["cat", "dog", "cow"]),
    ],
    ids=str,
)
def test_names_of_classes_that_are_numbers(given, names, tmp_path):
    tree(tmp_path, "0", "1", "2", count=8)
    (tmp_path / "names.txt").write_text("cat\ndog\ncow\n", encoding="utf-8-sig")
    (tmp_path / "names.yaml").write_text("{1: no, 2: yes, 3: 3}")
    rows = [(f"{i}/{k}.png", i + 1) for i in range(3) for k in range(8)]
    path = table(tmp_path / "l.csv", rows, "path,label")
    given = str(tmp_path / given) if isinstance(given, str) else given
    assert load_task(DataConfig(name=path, class_names=given)).class_names == names


def test_a_list_orders_classes_that_are_words(tmp_path):
    tree(tmp_path, "ant", "bee")
    task = load_task(DataConfig(name=str(tmp_path), class_names=["bee", "ant"]))
    assert task.class_names == ["bee", "ant"]
    assert all(task.class_names[label] in task.train.item(row) for row, label in enumerate(task.train.labels))
    with pytest.raises(UserError, match="'wasp' is not one of them"):
        load_task(DataConfig(name=str(tmp_path), class_names=["wasp", "ant"]))


def test_a_transform_of_a_data_set_is_refused_and_a_mode_is_kept():
    features = datasets.Features({"image": datasets.Image(), "label": datasets.ClassLabel(names=["x", "y"])})
    red = [Image.new("RGB", (4, 4), (200, 0, 0)) for _ in range(10)]
    data = datasets.Dataset.from_dict({"image": red, "label": [0, 1] * 5}, features=features)
    with pytest.raises(UserError, match="has a transform of its own"):
        Task.from_dataset(data.with_transform(lambda rows: rows))
    grey = data.cast_column("image", datasets.Image(mode="L"))
    assert np.asarray(Task.from_dataset(grey).train.item(0)).shape == (4, 4)
    both = Task.from_dataset(datasets.DatasetDict(training=data, validation=data, test=data))
    assert sizes(both) == {"train": 10, "val": 10, "test": 10}


def test_the_validation_of_few_shots_is_told_by_its_images_a_class(tmp_path):
    task = load_task(DataConfig(name=str(tree(tmp_path, "a", "b", count=20)), shots=5))
    assert "val   8 images, at most 4 a class, carved from train" in str(task)


def test_data_that_cannot_be_taken_by_number_is_refused_in_one_line():
    import datasets
    import torch

    pairs = coloured_images(6, 3)

    class Stream(torch.utils.data.IterableDataset):
        def __iter__(self):
            return iter(pairs)

    table = datasets.Dataset.from_dict({"image": [[[0]]] * 3, "label": [0, 1, 2]}).to_iterable_dataset()
    for given in (Stream(), table, iter(pairs), (pair for pair in pairs)):
        with pytest.raises(
            UserError, match="one after the other; .* datasets.Dataset.from_generator"
        ) as error:
            Task.from_dataset(given, class_names=["a", "b", "c"])
        assert "\n" not in str(error.value)
