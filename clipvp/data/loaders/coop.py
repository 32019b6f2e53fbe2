"""Folders in CoOp's layout: ``split_zhou_*.json`` beside a folder of images, as its DATASETS.md describes.

Train, validation and test images are taken as the split file gives them, in its order. Two layouts without a split file
are known: FGVC-Aircraft's lists of variants, and class folders (ImageNet and its test sets).
Source: Zhou et al., "Learning to Prompt for Vision-Language Models", arXiv 2109.01134.
"""

from __future__ import annotations

import json
import os
from collections.abc import Sequence
from pathlib import Path

import numpy as np

from ...files import read_text
from ...registry import UserError
from ..sets import ImageSet
from .files import image_paths, subfolders
from .raw import RawTask, hash_files, name_few

SPLIT_FILE = "split_zhou_*.json"
_HANDED_OUT = "split.json"  # the same file in the folders that ILM-VP's authors hand out
ROLES = ("train", "val", "test")
_VARIANTS = "images_variant_{}.txt"

Rows = list[tuple[str, int, str]]  # path below the folder of images, label, class name


def is_coop(folder: Path) -> bool:
    """Return whether a folder holds a split file, or the lists that FGVC-Aircraft has in its place."""
    return bool(_split_files(folder)) or (folder / _VARIANTS.format("train")).is_file()


def _split_files(folder: Path) -> list[Path]:
    """Return the split files of a folder; one called split.json counts where there is no other."""
    found, handed_out = sorted(folder.glob(SPLIT_FILE)), folder / _HANDED_OUT
    return found or ([handed_out] if handed_out.is_file() and _is_split(handed_out) else [])


def _is_split(file: Path) -> bool:
    try:
        return set(ROLES) <= json.loads(read_text(file)).keys()
    except (OSError, ValueError, AttributeError):
        return False


def find_task_folder(given: str, name: str) -> Path:
    """Return the folder of a task: the given one, or the one in it that has CoOp's name."""
    folder = Path(given).expanduser()
    if not folder.is_dir():
        raise UserError(f"data.folder: there is no folder {given}")
    return folder / name if (folder / name).is_dir() else folder


def load_coop(folder: Path) -> RawTask:
    """Load the images that a folder's split file names.

    Raises:
        UserError: There is no split file or several, it is damaged, images that it names are missing, its labels and
            class names do not fit, or test has classes that train lacks.
    """
    files = _split_files(folder)
    if len(files) > 1:
        raise UserError(f"{folder} holds several split files: {name_few(file.name for file in files)}")
    if not files and not is_coop(folder):
        raise UserError(f"{folder} holds no {SPLIT_FILE}; CoOp's DATASETS.md says where each comes from")
    file = files[0] if files else folder / "variants.txt"
    splits = _read_splits(file) if files else _read_variants(folder)
    names = _class_names(splits, file)
    root = _image_root(folder, splits["train"])
    sets, missing, total = {}, [], 0
    for role, rows in splits.items():
        paths = [os.path.join(root, path) for path, _, _ in rows]
        missing += [path for path in paths if not os.path.isfile(path)]
        total += len(rows)
        if outside := [path for path, _, _ in rows if os.path.isabs(path) or ".." in Path(path).parts]:
            raise UserError(f"{file} names images outside of its folder: {name_few(outside)}")
        if rows:
            labels = np.array([label for _, label, _ in rows])
            sets[role] = ImageSet(paths, labels, f"{folder.name}/{role}", *hash_files(root, paths))
    if missing and (bases := sorted(path.name for path in folder.glob("*.lmdb"))):
        raise UserError(
            f"{folder}: its images are in {name_few(bases)} as Python pickles, which may be code and are not read; "
            f"put the images that {file.name} names beside it, as CoOp's DATASETS.md says where they come from"
        )
    if missing:
        raise UserError(f"{file}: {len(missing)} of its {total} images are missing: {name_few(missing)}")
    info = {"from": f"CoOp split {file}", "splits": {role: role for role in sets}}
    return RawTask(names, sets["train"], sets.get("val"), sets.get("test"), info)


def load_class_folders(folder: Path, folders: dict[str, str], class_names: Sequence[str]) -> RawTask:
    """Load folders with one folder a class, labelled in the order of their names (of numbers, by value).

    Args:
        folder: The task's.
        folders: Below it, the folder of class folders of train and test; only test for a test set.
        class_names: One for each class folder, in that order.
    """
    sets = {}
    for role, below in folders.items():
        root = folder / below
        folders = subfolders(root)
        found = sorted(folders, key=lambda name: (int(name) if name.isdigit() else 0, name))
        if len(found) != len(class_names):
            raise UserError(f"{root} has {len(found)} class folders, and the task {len(class_names)} classes")
        by_class = [image_paths(folders[name]) for name in found]
        paths = [path for images in by_class for path in images]
        labels = np.repeat(np.arange(len(found)), [len(images) for images in by_class])
        sets[role] = ImageSet(paths, labels, f"{folder.name}/{role}", *hash_files(root, paths))
    info = {"from": f"class folders in {folder}", "splits": folders}
    return RawTask(list(class_names), sets.get("train"), None, sets["test"], info)


def _read_splits(file: Path) -> dict[str, Rows]:
    try:
        content = json.loads(read_text(file))
        return {role: [(str(p), int(label), str(c)) for p, label, c in content[role]] for role in ROLES}
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise UserError(
            f"{file} is no split file: {type(error).__name__} {error}; it lists [path, label, class name] "
            "under train, val and test"
        ) from error


def _read_variants(folder: Path) -> dict[str, Rows]:
    """Return FGVC-Aircraft's splits: a line of a list is an image's number and its class."""
    try:
        names = read_text(folder / "variants.txt").splitlines()
        label_of = {name.strip(): label for label, name in enumerate(names)}
        splits = {}
        for role in ROLES:
            lines = read_text(folder / _VARIANTS.format(role)).splitlines()
            pairs = [line.strip().split(" ", 1) for line in lines if line.strip()]
            splits[role] = [(f"{image}.jpg", label_of[name], name) for image, name in pairs]
        return splits
    except (OSError, ValueError, KeyError) as error:
        raise UserError(f"{folder}: the lists of variants cannot be read: {error}") from error


def _class_names(splits: dict[str, Rows], file: Path) -> list[str]:
    """Return the class names by label, which are those of train."""
    if not splits["train"]:
        raise UserError(f"{file}: its train split is empty")
    name_of: dict[int, str] = {}
    for role, rows in splits.items():
        for _, label, name in rows:
            if role == "train":
                name_of.setdefault(label, name)
            elif label not in name_of:
                lacking = sorted({name for _, label, name in rows if label not in name_of})
                raise UserError(f"{file}: {role} has classes that train lacks: {name_few(lacking)}")
            if name_of[label] != name:
                raise UserError(f"{file}: label {label} is called {name_of[label]!r} and {name!r}")
    if sorted(name_of) != list(range(len(name_of))):
        gap = next(label for label in range(len(name_of)) if label not in name_of)
        raise UserError(f"{file}: its labels do not count from 0 to {len(name_of) - 1}: there is no {gap}")
    return [name_of[label] for label in range(len(name_of))]


def _image_root(folder: Path, rows: Rows) -> Path:
    """Return what the split file's paths start from: the folder itself or the one in it that has most of the first."""
    first = [path for path, _, _ in rows[:20]]
    roots = [folder, *subfolders(folder).values()]
    return max(roots, key=lambda root: sum((root / path).is_file() for path in first))
