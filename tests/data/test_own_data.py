"""Data of one's own, end to end: a run on each kind, and the class names and their order in what it leaves."""

import json
from pathlib import Path

import datasets
import numpy as np
import pytest
from conftest import small_config, trained
from PIL import Image

from clipvp import PromptedClassifier, Task, load_task
from clipvp.images import Resize

NAMES = ["red thing", "green thing", "blue thing"]  # not in alphabetical order
COUNTS = {"train": 24, "val": 6, "test": 9}


def pair(index: int) -> tuple[np.ndarray, int]:
    """Return an image whose channel of its label is bright, and the label."""
    label = index % 3
    image = np.full((8, 8, 3), index, np.uint8)
    image[..., label] = 200
    return image, label


PAIRS = {split: [pair(index) for index in range(count)] for split, count in COUNTS.items()}


@pytest.fixture(autouse=True)
def private_caches(tmp_path_factory, monkeypatch):
    monkeypatch.setenv("CLIPVP_CACHE", str(tmp_path_factory.mktemp("cache")))
    monkeypatch.setattr(datasets.config, "HF_DATASETS_CACHE", tmp_path_factory.mktemp("tables"))


class TorchStyle:
    """What any torch data set is: a length, and pairs by index."""

    classes = NAMES

    def __init__(self, split: str):
        self.pairs = PAIRS[split]

    def __len__(self) -> int:
        return len(self.pairs)

    def __getitem__(self, index: int):
        return self.pairs[index]


def table(split: str) -> datasets.Dataset:
    features = datasets.Features({"image": datasets.Image(), "label": datasets.ClassLabel(names=NAMES)})
    images, labels = zip(*PAIRS[split], strict=True)
    rows = {"image": [Image.fromarray(image) for image in images], "label": labels}
    return datasets.Dataset.from_dict(rows, features=features)


def folder(root: Path, config) -> Task:
    for split, pairs in PAIRS.items():
        for index, (image, label) in enumerate(pairs):
            path = root / split / NAMES[label] / f"{index}.png"
            path.parent.mkdir(parents=True, exist_ok=True)
            Image.fromarray(image).save(path)
    config.data.name = str(root)
    return load_task(config.data)


def csv_of_paths(root: Path, config) -> Task:
    root.mkdir()
    lines = ["path,label"]
    for index, (image, label) in enumerate(PAIRS["train"]):
        Image.fromarray(image).save(root / f"{index}.png")
        lines.append(f"{index}.png,{NAMES[label]}")
    (root / "list.csv").write_text("\n".join(lines))
    config.data.name = str(root / "list.csv")
    return load_task(config.data)


def parquet_folder(root: Path, config) -> Task:
    root.mkdir()
    for split, name in {"train": "train", "val": "validation", "test": "test"}.items():
        table(split).to_parquet(root / f"{name}.parquet")
    config.data.name = str(root)
    return load_task(config.data)


def dataset_object(root: Path, config) -> Task:
    return Task.from_dataset(table("train"), table("test"), val=table("val"), config=config.data)


def torch_dataset(root: Path, config) -> Task:
    return Task.from_dataset(
        TorchStyle("train"), TorchStyle("test"), val=TorchStyle("val"), config=config.data
    )


@pytest.mark.parametrize(
    "make, names",
    [
        (folder, sorted(NAMES)),  # folders and words have no order of their own
        (csv_of_paths, sorted(NAMES)),
        (parquet_folder, NAMES),
        (dataset_object, NAMES),
        (torch_dataset, NAMES),
    ],
)
def test_a_run_on_data_of_ones_own_stores_its_classes(make, names, tiny_timm, tmp_path):
    config = small_config(tiny_timm, tmp_path / "run", train={"epochs": 1})
    task = make(tmp_path / "data", config)
    assert task.class_names == names
    for split in ("train", "val", "test"):
        decoded = task.tensors(split, Resize((2, 2)), progress=False)
        brightest = decoded.images.float().mean((2, 3)).argmax(1)
        assert [NAMES[channel] for channel in brightest] == [names[label] for label in decoded.labels]
    trained(config, task)
    results = json.loads((tmp_path / "run" / "results.json").read_text())
    assert results["data"]["class_names"] == names
    assert PromptedClassifier.from_pretrained(tmp_path / "run" / "prompt").class_names == names
