"""Small replicas of the hub's data sets: their files, configurations, splits, columns, types and class names.

The pictures are ours: row r of a split is of one colour, ``colour(r)``. Class names that no documentation was found for
are "class 0", "class 1" and so on; they are marked so in ``REPOSITORIES``.
"""

from __future__ import annotations

import functools
import io
import json
import tarfile
from pathlib import Path

import yaml
from PIL import Image

NAMES = {
    task: names.split(", ")
    for task, names in json.loads(
        (Path(__file__).parent / "files" / "hub_class_names.json").read_text()
    ).items()
}
CORRUPTIONS = [
    "contrast",
    "gaussian_noise",
    "impulse_noise",
    "jpeg_compression",
    "motion_blur",
    "pixelate",
    "spatter",
]
BOTH, THREE = ["train", "test"], ["train", "validation", "test"]


def unknown(count: int) -> list[str]:
    return [f"class {label}" for label in range(count)]


# task: repository, configuration, folder, image column, label column, class names, splits, further columns
REPOSITORIES = {
    "flowers102": (
        *("dpdl-benchmark/oxford_flowers102", "default", "data", "image", "label", unknown(102), THREE),
        {"file_name": "string"},
    ),
    "dtd": ("mcimpoi/dtd_split_1", "default", "data", "image", "label", NAMES["dtd"], THREE, {}),
    "food101": (
        *("ethz/food101", "default", "data", "image", "label", NAMES["food101"]),
        *(["train", "validation"], {}),
    ),
    "gtsrb": ("tanganke/gtsrb", "default", "data", "image", "label", unknown(43), BOTH + CORRUPTIONS, {}),
    "eurosat": (
        *("timm/eurosat-rgb", "default", "data", "image", "label", NAMES["eurosat"], THREE),
        {"image_id": "string"},
    ),
    "oxfordpets": (
        *("timm/oxford-iiit-pet", "default", "data", "image", "label", NAMES["oxfordpets"], BOTH),
        {"image_id": "string", "label_cat_dog": ["cat", "dog"]},
    ),
    "stanfordcars": (
        *("tanganke/stanford_cars", "default", "data", "image", "label", unknown(196)),
        *(BOTH + CORRUPTIONS, {}),
    ),
    "sun397": ("tanganke/sun397", "default", "data", "image", "label", unknown(397), BOTH, {}),
    "cifar10": ("uoft-cs/cifar10", "plain_text", "plain_text", "img", "label", NAMES["cifar10"], BOTH, {}),
    "cifar100": (
        *("uoft-cs/cifar100", "cifar100", "cifar100", "img", "fine_label", NAMES["cifar100"], BOTH),
        {"coarse_label": [f"group {group}" for group in range(20)]},
    ),
    "svhn": (
        *("ufldl-stanford/svhn", "cropped_digits", "cropped_digits", "image", "label", NAMES["svhn"]),
        *([*BOTH, "extra"], {}),
    ),
    "resisc45": (
        "tanganke/resisc45",
        "default",
        "data",
        "image",
        "label",
        unknown(45),
        BOTH + CORRUPTIONS,
        {},
    ),
    "imagenet": ("ILSVRC/imagenet-1k", "default", "data", "image", "label", unknown(1000), THREE, {}),
}
WEB = {  # WebDatasets of one split, test: repository and number of classes
    "imagenet_v2": ("clip-benchmark/wds_imagenetv2", 1000),
    "imagenet_sketch": ("clip-benchmark/wds_imagenet_sketch", 1000),
    "imagenet_a": ("clip-benchmark/wds_imagenet-a", 200),
    "imagenet_r": ("clip-benchmark/wds_imagenet-r", 200),
}


def colour(row: int) -> int:
    return 7 * row % 256


@functools.cache
def picture(value: int, kind: str = "PNG") -> bytes:
    buffer = io.BytesIO()
    Image.new("RGB", (3, 3), (value, value, value)).save(
        buffer, kind, **({"lossless": True} if kind == "WEBP" else {})
    )
    return buffer.getvalue()


def labels_of(split: str, num_classes: int) -> list[int]:
    """Return the labels of a split's rows: each class once, the last first; train holds class 0 once more."""
    return [*range(num_classes - 1, -1, -1), *([0] if split == "train" else [])]


def parquet_files(task: str) -> dict[str, bytes]:
    """Return the files of a repository of Parquet files, by path."""
    import datasets

    _, config, folder, image, label, names, splits, more = REPOSITORIES[task]
    kinds = {column: datasets.ClassLabel(names=kind) for column, kind in more.items() if kind != "string"}
    kinds |= {column: datasets.Value("string") for column, kind in more.items() if kind == "string"}
    features = datasets.Features({image: datasets.Image(), label: datasets.ClassLabel(names=names), **kinds})
    found = {}
    for split in splits:
        rows = labels_of(split, len(names))
        columns = {
            image: [{"bytes": picture(colour(row)), "path": None} for row in range(len(rows))],
            label: rows,
        }
        for column, kind in more.items():
            columns[column] = [
                f"{row}.jpg" if kind == "string" else row % len(kind) for row in range(len(rows))
            ]
        if task == "imagenet" and split == "test":
            columns[label] = [-1] * len(rows)
        buffer = io.BytesIO()
        datasets.Dataset.from_dict(columns, features=features).to_parquet(buffer)
        found[f"{folder}/{split}-00000-of-00001.parquet"] = buffer.getvalue()
    patterns = [{"split": split, "path": f"{folder}/{split}-*"} for split in splits]
    configs = [{"config_name": config, "data_files": patterns}]
    if task == "svhn":
        found["full_numbers/train-00000-of-00001.parquet"] = found[f"{folder}/extra-00000-of-00001.parquet"]
        other = [{"split": "train", "path": "full_numbers/train-*"}]
        configs.insert(0, {"config_name": "full_numbers", "data_files": other})
    found["README.md"] = f"---\n{yaml.safe_dump({'configs': configs})}---\n".encode()
    return found


def web_files(task: str) -> dict[str, bytes]:
    """Return the files of a repository of tar files, by path."""
    _, num_classes = WEB[task]
    rows = list(enumerate(labels_of("test", num_classes)))
    found = {"test/nshards.txt": b"2", "classnames.txt": "\n".join(unknown(num_classes)).encode()}
    for shard, part in enumerate((rows[: num_classes // 2], rows[num_classes // 2 :])):
        buffer = io.BytesIO()
        with tarfile.open(fileobj=buffer, mode="w") as tar:
            for row, label in part:
                for suffix, data in (("cls", str(label).encode()), ("webp", picture(colour(row), "WEBP"))):
                    entry = tarfile.TarInfo(f"s{row:07d}.{suffix}")
                    entry.size = len(data)
                    tar.addfile(entry, io.BytesIO(data))
        found[f"test/{shard}.tar"] = buffer.getvalue()
    return found


def files_of(task: str) -> tuple[str, dict[str, bytes]]:
    """Return a task's repository and its files."""
    return (WEB[task][0], web_files(task)) if task in WEB else (REPOSITORIES[task][0], parquet_files(task))


def write_files(folder: Path, files: dict[str, bytes]) -> None:
    for path, data in files.items():
        (folder / path).parent.mkdir(parents=True, exist_ok=True)
        (folder / path).write_bytes(data)
