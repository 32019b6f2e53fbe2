"""Image folders: ``train/ val/ test/`` with a folder a class in each, or one tree of class folders."""

from __future__ import annotations

import os
from pathlib import Path

import numpy as np

from ...config.schema import DataConfig
from ...registry import UserError
from ..sets import ImageSet
from .raw import VAL_NAMES, RawTask, choose_split_names, fingerprint_files, name_few

EXTENSIONS = (
    *(".jpg", ".jpeg", ".jfif", ".png", ".webp", ".avif", ".gif", ".bmp", ".tif", ".tiff"),
    *(".ppm", ".pgm", ".pbm", ".pnm", ".jp2"),
)


def load_folder(config: DataConfig) -> RawTask:
    """Load an image folder; classes are the sorted names of the class folders, hidden files are no images."""
    root = Path(config.name).expanduser()
    folders = subfolders(root)
    if config.train_split is None and "train" not in folders:
        if folders and set(folders) <= {"test", *VAL_NAMES}:
            raise UserError(f"{root} has the splits {folders}, but no 'train'")
        names, train = _read_classes(root, root.name)
        return RawTask(names, train, info={"from": f"image folder {root}"})
    splits = choose_split_names(folders, config)
    names, train = _read_classes(root / splits["train"], f"{root.name}/{splits['train']}")
    raw = RawTask(names, train, info={"from": f"image folder {root}", "splits": splits})
    for role in ("val", "test"):
        if role in splits:
            folder = root / splits[role]
            setattr(raw, role, _read_classes(folder, f"{root.name}/{splits[role]}", names)[1])
    return raw


def _read_classes(
    folder: Path, name: str, class_names: list[str] | None = None
) -> tuple[list[str], ImageSet]:
    """Return the class names and the images of a folder of class folders."""
    found = subfolders(folder)
    names = found if class_names is None else class_names
    if unknown := sorted(set(found) - set(names)):
        raise UserError(f"{folder}: the training folder has no class {name_few(unknown)}")
    paths: list[str] = []
    labels: list[int] = []
    for label, class_name in enumerate(names):
        images = image_paths(folder / class_name)
        paths += images
        labels += [label] * len(images)
    if not paths:
        raise UserError(f"{folder}: there are no images; expected {folder}/CLASS/IMAGE, one folder a class")
    return names, ImageSet(paths, np.array(labels), name, fingerprint_files(folder, paths))


def subfolders(folder: Path) -> list[str]:
    """Return the names of the folders in a folder, sorted; there are none where it does not exist."""
    if not folder.is_dir():
        return []
    return sorted(
        entry.name for entry in os.scandir(folder) if entry.is_dir() and not entry.name.startswith(".")
    )


def image_paths(folder: Path) -> list[str]:
    """Return the images in a folder and the folders below it, in a fixed order."""
    paths = []
    for parent, folders, files in os.walk(folder, followlinks=True):
        folders[:] = [name for name in folders if not name.startswith(".")]
        paths += [
            os.path.join(parent, name)
            for name in files
            if name.lower().endswith(EXTENSIONS) and not name.startswith(".")
        ]
    return sorted(paths)
