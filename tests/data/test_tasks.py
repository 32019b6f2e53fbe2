"""The registered tasks: what the table says, and that each loads from a small replica of its repository."""

from dataclasses import replace
from pathlib import Path

import datasets
import pytest
import yaml
from hub_data import NAMES, REPOSITORIES, WEB, colour, files_of, labels_of, write_files

from clipvp.config.schema import DataConfig
from clipvp.data.catalog import TASK_TABLE
from clipvp.data.task import load_task
from clipvp.images import Resize
from clipvp.labels.templates import text_class_names
from clipvp.registry import TASKS, UserError

RESIZE = Resize((2, 2))
ON_HUB = [name for name, entry in TASK_TABLE.items() if entry.repo]


@pytest.fixture(autouse=True)
def private_caches(tmp_path_factory, monkeypatch):
    monkeypatch.setenv("CLIPVP_CACHE", str(tmp_path_factory.mktemp("cache")))
    monkeypatch.setattr(datasets.config, "HF_DATASETS_CACHE", tmp_path_factory.mktemp("tables"))


@pytest.fixture
def hub(tmp_path, monkeypatch):
    """A function that lays out a task's repository; ``load_dataset`` then finds it. Returns what was asked for."""
    load, asked = datasets.load_dataset, []

    def from_folder(repo, config=None, *, revision):
        asked.append((repo, revision))
        return load(str(tmp_path / repo), config)

    def lay_out(task):
        repo, files = files_of(task)
        write_files(tmp_path / repo, files)
        monkeypatch.setattr(datasets, "load_dataset", from_folder)
        return asked

    return lay_out


def test_every_entry_is_a_registered_task():
    assert set(TASK_TABLE) == set(TASKS.names()) and set(ON_HUB) == set(REPOSITORIES) | set(WEB)
    assert all(entry.repo or entry.coop or entry.package for entry in TASK_TABLE.values())


@pytest.mark.parametrize("name", [name for name, entry in TASK_TABLE.items() if entry.paper])
def test_the_papers_sizes_are_those_of_its_configs(name):
    file = Path(__file__).parents[2] / "recipes" / "configs" / "paper" / "tasks" / f"{name}.yaml"
    settings = yaml.safe_load(file.read_text())
    assert settings["prompt"]["image_size"] == TASK_TABLE[name].image_size
    assert settings.get("train", {}).get("batch_size", 128) == TASK_TABLE[name].batch_size
    assert settings["data"]["name"] == name


@pytest.mark.parametrize("name", TASK_TABLE)
def test_class_names_given_are_as_many_as_classes_and_differ_as_words(name):
    entry = TASK_TABLE[name]
    if names := entry.names() or NAMES.get(name):
        assert len(names) == entry.num_classes == len(set(text_class_names(names)))


def test_class_names_are_in_the_order_of_the_labels():
    assert [TASK_TABLE["gtsrb"].names()[label] for label in (0, 14, 17, 42)] == [
        *("20 km/h speed limit", "stop", "no entry", "end of no passing for trucks")
    ]
    assert [TASK_TABLE["flowers102"].names()[label] for label in (0, 42, 76, 101)] == [
        *("pink primrose", "sword lily", "passion flower", "blackberry lily")
    ]
    imagenet = TASK_TABLE["imagenet"].names()
    assert imagenet[0] == "tench" and imagenet[999] == "toilet paper"
    for name, first, last in (("imagenet_a", 6, 988), ("imagenet_r", 1, 988)):
        names = TASK_TABLE[name].names()
        assert names[0] == imagenet[first] and names[-1] == imagenet[last]
        assert [imagenet.index(word) for word in names] == sorted(imagenet.index(word) for word in names)


@pytest.mark.parametrize("name", ON_HUB)
def test_a_task_loads_from_its_repository(name, hub):
    asked, entry = hub(name), TASK_TABLE[name]
    task = load_task(DataConfig(name=name, val=0.0))
    assert asked == [(entry.repo, entry.revision)]
    given = entry.names() or [entry.renames.get(word, word) for word in REPOSITORIES[name][5]]
    assert task.class_names == given and task.num_classes == entry.num_classes
    for role in ("train", "val", "test"):
        images = getattr(task, role)
        assert (images is not None) == (role in entry.splits)
        if images is not None:
            assert images.labels.tolist() == labels_of(entry.splits[role], entry.num_classes)
    few = load_task(DataConfig(name=name, val=0.0, max_test=2))  # pixels that belong to their labels
    pixels = few.tensors("test", RESIZE, progress=False).images[:, 0, 0, 0]
    assert pixels.tolist() == [colour(row) for row in few.test.indices]


def test_names_that_the_hub_misspells(hub):
    hub("cifar100")
    names = load_task("cifar100").class_names
    assert "crab" in names and "cra" not in names and names.index("crab") == 26


def test_a_config_may_choose_other_splits(hub):
    asked = hub("eurosat")
    task = load_task(DataConfig(name="eurosat", test_split="validation", val_split="test", revision="main"))
    assert asked == [("timm/eurosat-rgb", "main")]
    assert task.info["splits"] == {"train": "train", "val": "test", "test": "validation"}


def test_a_test_set_trains_nothing(hub):
    hub("imagenet_a")
    task = load_task("imagenet_a")
    assert task.train is None and task.val is None and task.describe()["sizes"] == {"test": 200}
    with pytest.raises(UserError, match="imagenet_a has no train split; it is a test set"):
        task.tensors("train", RESIZE)


def test_a_task_without_a_repository_says_where_its_files_go():
    with pytest.raises(UserError, match=r"no hub data set of ucf101 is known.*data\.folder.*ucf101"):
        load_task("ucf101")
    for name in ("svhn", "digits", "somewhere"):
        with pytest.raises(UserError, match=f"data.folder: CoOp's layout has no '{name}'"):
            load_task(DataConfig(name=name, folder="."))


def test_another_number_of_classes_is_refused(hub, monkeypatch):
    hub("dtd")
    monkeypatch.setitem(TASK_TABLE, "dtd", replace(TASK_TABLE["dtd"], num_classes=48))
    with pytest.raises(UserError, match="dtd: found 47 classes, and the task has 48"):
        load_task("dtd")


def test_a_repository_with_a_script_says_what_to_do(monkeypatch):
    def refuse(*_, **__):
        raise RuntimeError("Dataset scripts are no longer supported, but found food.py")

    monkeypatch.setattr(datasets, "load_dataset", refuse)
    with pytest.raises(UserError, match=r"made by a script.*data\.revision: refs/convert/parquet"):
        load_task("some/where")
