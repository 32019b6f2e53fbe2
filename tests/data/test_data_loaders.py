"""What folders, tables and Python data mean as target tasks, and what is refused."""

import io
import shutil
from dataclasses import replace

import datasets
import numpy as np
import pytest
from PIL import Image

from clipvp.config.schema import DataConfig
from clipvp.data.task import Task, load_task
from clipvp.images import Resize
from clipvp.registry import UserError

RESIZE = Resize((4, 4))
NAMES_4 = ["ant", "bee", "cat", "dog"]


@pytest.fixture(autouse=True)
def private_caches(tmp_path_factory, monkeypatch):
    monkeypatch.setenv("CLIPVP_CACHE", str(tmp_path_factory.mktemp("cache")))
    monkeypatch.setattr(datasets.config, "HF_DATASETS_CACHE", tmp_path_factory.mktemp("tables"))


def sizes(task):
    return [None if images is None else len(images) for images in (task.train, task.val, task.test)]


# Image folders


def picture(path, value=0):
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.new("RGB", (5, 5), (value, 10, 20)).save(path)


def tree(root, classes=("b", "a"), count=10):
    for name in classes:
        for number in range(count):
            picture(root / name / f"{number}.png", number)
    return root


def test_a_tree_of_classes_is_split(tmp_path):
    root = tree(tmp_path / "pets")
    picture(root / "a" / "deeper" / "more.JPG")
    for other in ("a/.hidden.png", ".git/x.png", "a/.thumbs/x.png"):
        picture(root / other)
    (root / "a" / "notes.txt").write_text("no image")
    task = load_task(str(root))
    assert task.name == "pets" and task.class_names == ["a", "b"] and sizes(task) == [15, 2, 4]
    assert {path.split("/")[-2] for path in task.train.items} == {"a", "b", "deeper"}
    images = task.tensors("train", RESIZE)
    for row in range(len(task.train)):
        assert task.train.item(row).startswith(str(root / task.class_names[images.labels[row]]))
        assert images.images[row, 0, 0, 0] == Image.open(task.train.item(row)).getpixel((0, 0))[0]


@pytest.mark.parametrize("val_name", ["val", "valid", "validation"])
def test_a_folder_with_splits(tmp_path, val_name):
    for split, count in {"train": 10, val_name: 4, "test": 3}.items():
        tree(tmp_path / split, count=count)
    assert sizes(load_task(str(tmp_path))) == [20, 8, 6]
    shutil.rmtree(tmp_path / "test")
    task = load_task(str(tmp_path))
    assert sizes(task) == [18, 2, 8] and task.info["splits"] == {"train": "train", "test": val_name}
    assert task.info["test_from"] == val_name and task.info["val_from"] == "carved from train"
    shutil.rmtree(tmp_path / val_name)
    assert sizes(load_task(str(tmp_path))) == [14, 2, 4]


def test_named_splits_of_a_folder(tmp_path):
    for split in ("seen", "unseen"):
        tree(tmp_path / split)
    task = load_task(DataConfig(name=str(tmp_path), train_split="seen", test_split="unseen"))
    assert sizes(task) == [18, 2, 20]
    with pytest.raises(UserError, match="no split 'sen'; did you mean 'seen'"):
        load_task(DataConfig(name=str(tmp_path), train_split="sen"))
    with pytest.raises(UserError, match="two roles"):
        load_task(DataConfig(name=str(tmp_path), train_split="seen", test_split="seen"))


def test_folders_that_are_no_task_are_refused(tmp_path):
    (tmp_path / "empty").mkdir()
    with pytest.raises(UserError, match="there are no images"):
        load_task(str(tmp_path / "empty"))
    tree(tmp_path / "one", classes=["a"])
    with pytest.raises(UserError, match="two or more"):
        load_task(str(tmp_path / "one"))
    tree(tmp_path / "gap")
    (tmp_path / "gap" / "c").mkdir()
    with pytest.raises(UserError, match="without training images: 'c'"):
        load_task(str(tmp_path / "gap"))
    tree(tmp_path / "late" / "train")
    tree(tmp_path / "late" / "test", classes=["a", "new"])
    with pytest.raises(UserError, match="the training folder has no class 'new'"):
        load_task(str(tmp_path / "late"))
    (tmp_path / "notes.txt").write_text("")
    with pytest.raises(UserError, match=r"give a table \(\.csv, .*\) or a folder"):
        load_task(str(tmp_path / "notes.txt"))


def test_a_changed_image_is_decoded_again(tmp_path):
    tree(tmp_path)
    config = DataConfig(name=str(tmp_path))
    before = load_task(config)
    before.tensors("train", RESIZE)
    assert load_task(config).train.fingerprint == before.train.fingerprint
    picture(tmp_path / "a" / "0.png", 200)
    after = load_task(replace(config, val=0.0))
    assert after.train.fingerprint != before.train.fingerprint
    assert sizes(after)[0] == 16
    images = after.tensors("train", RESIZE).images[:, 0, 0, 0].tolist()
    assert images == [Image.open(after.train.item(row)).getpixel((0, 0))[0] for row in range(16)]


# Tables


def png(value, size=5):
    buffer = io.BytesIO()
    Image.new("RGB", (size, size), (value, 10, 20)).save(buffer, "PNG")
    return buffer.getvalue()


def table(count=40, labels=None, feature=None, **columns):
    """Return a table laid out as CIFAR-10's is; the label of image i is i % 4."""
    labels = [row % 4 for row in range(count)] if labels is None else labels
    images = [{"bytes": png(row), "path": None} for row in range(len(labels))]
    values = {"img": images, "label": labels, **columns}
    features = datasets.Dataset.from_dict(values).features
    features["img"] = datasets.Image()
    features["label"] = feature or datasets.ClassLabel(names=NAMES_4)
    return datasets.Dataset.from_dict(values, features=features)


def few(labels, feature=None):
    return table(labels=labels, feature=feature)


def values_and_labels(images, tensors):
    rows = images.indices.tolist()
    assert tensors.images[:, 0, 0, 0].tolist() == rows
    return tensors.labels.tolist() == [row % 4 for row in rows]


def test_a_folder_of_parquet_files(tmp_path):
    folder = tmp_path / "small.v1"
    (folder / "data").mkdir(parents=True)
    table(20).to_parquet(folder / "data" / "train-00000-of-00002.parquet")
    table(20).to_parquet(folder / "data" / "train-00001-of-00002.parquet")
    table(12).to_parquet(folder / "data" / "test-00000-of-00001.parquet")
    (folder / "notes.txt").write_text("not a table")
    task = load_task(str(folder))
    assert task.name == "small.v1" and task.class_names == NAMES_4 and sizes(task) == [36, 4, 12]
    assert values_and_labels(task.test, task.tensors("test", RESIZE))
    assert task.info["columns"] == {"image": "img", "label": "label"}
    assert load_task(str(folder)).train.fingerprint == task.train.fingerprint


def test_one_parquet_file_is_split(tmp_path):
    table(40).to_parquet(tmp_path / "all.parquet")
    task = load_task(str(tmp_path / "all.parquet"))
    assert task.name == "all" and sizes(task) == [29, 3, 8]
    for split in ("train", "val", "test"):
        assert values_and_labels(getattr(task, split), task.tensors(split, RESIZE))


def test_a_csv_of_paths_follows_its_files(tmp_path):
    tree(tmp_path / "pictures", count=5)
    lines = [f"pictures/{name}/{number}.png,{name}" for number in range(5) for name in "ba"]
    (tmp_path / "list.csv").write_text("\n".join(["path,label", *lines]))
    task = load_task(str(tmp_path / "list.csv"))
    assert task.class_names == ["a", "b"] and sizes(task) == [7, 1, 2]
    images = task.tensors("test", RESIZE)
    assert images.images[:, 0, 0, 0].tolist() == (task.test.indices // 2).tolist()
    picture(tmp_path / "pictures" / "a" / "0.png", 99)
    assert load_task(str(tmp_path / "list.csv")).train.fingerprint != task.train.fingerprint


def from_table(train, test=None, **options):
    return Task.from_dataset(train, test, config=DataConfig(**options))


def test_a_dataset_in_memory():
    task = Task.from_dataset(table(), table(12), val=table(8), name="mine")
    assert task.name == "mine" and sizes(task) == [40, 8, 12]
    assert values_and_labels(task.val, task.tensors("val", RESIZE))
    chosen = table().select(range(39, 0, -1))
    task = from_table(chosen)
    expected = [39 - index for index in task.train.indices]
    assert task.tensors("train", RESIZE).images[:, 0, 0, 0].tolist() == expected
    assert task.train.fingerprint != from_table(table()).train.fingerprint


def test_labels_may_be_words_or_numbers():
    words = table(labels=["dog", "ant"] * 10, feature=datasets.Value("string"))
    assert from_table(words).class_names == ["ant", "dog"]
    numbers = table(feature=datasets.Value("int32"))
    assert from_table(numbers).class_names == ["0", "1", "2", "3"]
    assert Task.from_dataset(numbers, class_names=NAMES_4).class_names == NAMES_4


INT, FLOAT, STRING = datasets.Value("int64"), datasets.Value("float32"), datasets.Value("string")


@pytest.mark.parametrize(
    "train, test, options, message",
    [
        (table().remove_columns("label"), None, {}, r"no column can be the label.*img \(Image\)"),
        (table().remove_columns("img"), None, {}, r"no column can be the image.*label \(ClassLabel\)"),
        (table().rename_column("label", "kind"), None, {"label_column": "kin"}, "did you mean 'kind'"),
        (table(), None, {"image_column": "label"}, "holds neither images nor paths"),
        (few([0, 1, None, 1]), None, {}, "1 rows have no label"),
        (few([0.5] * 4, FLOAT), None, {}, "labels in column 'label' are not whole numbers, such as 0.5"),
        (few([[0]] * 4, datasets.List(INT)), None, {}, "labels in column 'label' are List"),
        (few([0, -1, 0, 1], INT), None, {}, r"1 of 4 labels are below 0 \(-1\)"),
        (table(feature=INT), few([-1, -1], INT), {}, "custom/test: all labels are -1.*data.test_split: none"),
        (table(feature=INT), few([0, 9], INT), {}, "custom/test: the training split has no class '9'"),
        (few(["a", "b"], STRING), few(["c"], STRING), {}, "no class 'c'"),
        (table(), table(feature=datasets.ClassLabel(names=NAMES_4[::-1])), {}, "not the training split's"),
        (table(), table().rename_column("img", "photo"), {}, "custom/test has no column 'img'"),
    ],
)
def test_tables_that_do_not_fit_are_refused(train, test, options, message):
    with pytest.raises(UserError, match=message):
        from_table(train, test, **options)


def test_two_label_columns_must_be_told_apart():
    two = table(coarse=[0, 1] * 20).cast_column("coarse", datasets.ClassLabel(names=["x", "y"]))
    with pytest.raises(UserError, match=r"several columns can be the label; set data\.label_column.*coarse"):
        from_table(two)
    assert from_table(two, label_column="coarse").class_names == ["x", "y"]


@pytest.mark.parametrize(
    "names, options, expected",
    [
        (["train", "dev", "test"], {}, {"train": "train", "val": "dev", "test": "test"}),
        (["train", "validation"], {}, {"train": "train", "test": "validation"}),
        (["train", "validation"], {"val_split": "validation"}, {"train": "train", "val": "validation"}),
        (["train", "validation"], {"test_split": "validation"}, {"train": "train", "test": "validation"}),
        (["full"], {"train_split": "full"}, {"train": "full"}),
        (["full"], {}, "set data.train_split to one of: full"),
    ],
)
def test_which_split_is_which(monkeypatch, names, options, expected):
    monkeypatch.setattr(
        datasets, "load_dataset", lambda *_, **__: datasets.DatasetDict({name: table() for name in names})
    )
    config = DataConfig(name="some/where", **options)
    if isinstance(expected, str):
        with pytest.raises(UserError, match=expected):
            load_task(config)
    else:
        assert load_task(config).info["splits"] == expected


def test_a_hub_error_is_one_line(monkeypatch):
    def unreachable(*arguments, **options):
        raise ConnectionError("Couldn't reach\nthe hub")

    monkeypatch.setattr(datasets, "load_dataset", unreachable)
    with pytest.raises(UserError, match="cannot load 'some/where'.*taken for a hub.*Couldn't reach the hub$"):
        load_task("some/where")


def test_a_hub_name_passes_its_configuration_on(monkeypatch):
    asked = []

    def load(*arguments, **options):
        asked.append((arguments, options))
        return datasets.DatasetDict(train=table(), test=table(12))

    monkeypatch.setattr(datasets, "load_dataset", load)
    task = load_task(DataConfig(name="some/where", config="small", revision="abc"))
    assert asked == [(("some/where", "small"), {"revision": "abc"})]
    assert task.name == "where" and task.describe()["revision"] == "abc" and sizes(task) == [36, 4, 12]


# Data sets written in Python


class Pairs:
    classes = NAMES_4

    def __init__(self, count=40):
        self.count = count

    def __len__(self):
        return self.count

    def __getitem__(self, index):
        return np.full((3, 5, 5), index, np.uint8), index % 4


def test_a_torch_style_data_set():
    task = Task.from_dataset(Pairs(), Pairs(12))
    assert task.class_names == NAMES_4 and sizes(task) == [36, 4, 12] and task.train.fingerprint is None
    for split in ("train", "val", "test"):
        assert values_and_labels(getattr(task, split), task.tensors(split, RESIZE))
    pairs = [Pairs()[index] for index in range(40)]
    assert sizes(Task.from_dataset(pairs, class_names=NAMES_4, protocol="paper")) == [32, None, 8]


def test_targets_save_a_pass_over_the_images():
    data = Pairs()
    data.targets = [0, 1] * 20
    data.__class__ = type("Late", (Pairs,), {"__getitem__": lambda self, index: pytest.fail("decoded")})
    task = Task.from_dataset(data, class_names=["x", "y"])
    assert task.train.class_counts(2).tolist() == [14, 15]


def test_python_data_that_does_not_fit_is_refused():
    pairs = [Pairs()[index] for index in range(40)]
    with pytest.raises(UserError, match="give class_names"):
        Task.from_dataset(pairs)
    with pytest.raises(UserError, match=r"custom/train\[0\] is no \(image, label\) pair"):
        Task.from_dataset([{"image": 1}], class_names=NAMES_4)
    with pytest.raises(UserError, match="one integer an image"):
        Task.from_dataset([(image, "ant") for image, _ in pairs], class_names=NAMES_4)
