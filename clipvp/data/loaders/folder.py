"""Image folders: a folder a class, in one tree or in each of the folders train, val and test."""

from __future__ import annotations

from dataclasses import dataclass, field
from pathlib import Path

import numpy as np

from ...config.schema import DataConfig
from ...registry import UserError
from ..sets import ImageSet
from .files import Found, any_images, find_images, holds_images, subfolders
from .raw import RawTask, hash_files, name_few
from .split_names import NONE, choose_split_names, role_of, roles_of, the_split

HERE = "."  # the value of data.train_split for: every folder is a class
# A folder of class folders beside others that describe its images.
_IMAGES = {"image", "images", "img", "imgs", "data", "photo", "photos", "picture", "pictures", "jpegimages"}
_ABOUT = {
    "annotation",
    "annotations",
    "label",
    "labels",
    "mask",
    "masks",
    "trimaps",
    "xml",
    "xmls",
    "metadata",
    "meta",
}
_ABOUT |= {"docs", "doc", "splits", "lists", "bboxes", "boxes", "segmentation", "segmentations", "attributes"}


@dataclass
class Layout:
    """Where the class folders are.

    Args:
        splits: Split to its folder of class folders; only train where the folder has no splits.
        names: Split to the name that it has in the folder; empty where the folder has no splits.
        notes: What was taken for what, and what is not used.
    """

    splits: dict[str, Path]
    names: dict[str, str] = field(default_factory=dict)
    notes: list[str] = field(default_factory=list)


def load_folder(config: DataConfig) -> RawTask:
    """Load an image folder; classes are the sorted names of the class folders.

    Folders are splits if their names say so: train, val and test in their usual spellings, see ``split_names``. Files
    that are not used are counted in the notes.

    Raises:
        UserError: There are no images, or it is not clear which folders are classes and which are splits.
    """
    root = Path(config.name).expanduser()
    layout, found = find_layout(root, config), Found()
    names, sets = None, {}
    for role in ("train", "val", "test"):
        if role in layout.splits:
            name = "/".join([root.name, *([layout.names[role]] if layout.names else [])])
            names, sets[role] = _read_classes(layout.splits[role], name, names, found)
    info = {"from": f"image folder {root}", **({"splits": layout.names} if layout.names else {})}
    notes = layout.notes + [f"not used: {note}" for note in found.notes(root)]
    return RawTask(names, sets.get("train"), sets.get("val"), sets.get("test"), info, notes)


def find_layout(root: Path, config: DataConfig) -> Layout:
    """Return where the class folders of an image folder are.

    Raises:
        UserError: It is not clear which folders are classes and which are splits; the message says which key decides.
    """
    folders, notes = subfolders(root), []
    asked = {role: getattr(config, f"{role}_split") for role in ("train", "val", "test")}
    if config.train_split == HERE:
        return _all_classes(root, folders, asked)
    if not any(name not in (None, NONE) for name in asked.values()):
        root, folders, notes = _descend(root, folders)
        roles = {name: role for name, role in roles_of(folders).items() if asked[role] != NONE}
        roles = _splits(root, folders, roles)
        if not roles:
            return Layout({"train": root}, {}, notes)
        for role in ("train", "val", "test"):
            the_split(roles, role)  # two folders for one split are refused
    names = choose_split_names(folders, config)
    splits = {role: _unwrap(folders[name]) for role, name in names.items()}
    renamed = [f"{name!r} is taken for {role}" for role, name in names.items() if name != role]
    others = [name for name in folders if name not in names.values()]
    if others:
        notes.append(
            f"not used: folder {name_few(others)}, which {'is' if len(others) == 1 else 'are'} no split"
        )
    return Layout(splits, names, notes + renamed)


def _all_classes(root: Path, folders: dict[str, Path], asked: dict[str, str | None]) -> Layout:
    """Return the layout where every folder is a class; other splits are folders elsewhere that the config names."""
    named = {role: name for role, name in asked.items() if role != "train" and name not in (None, NONE)}
    inside = [name for name in named.values() if name in folders]
    if inside:
        raise UserError(
            f"data.train_split: with . every folder is a class, and {name_few(inside)} is a split"
        )
    return Layout(
        {"train": root, **{role: root / name for role, name in named.items()}}, {"train": HERE, **named}
    )


def _descend(root: Path, folders: dict[str, Path]) -> tuple[Path, dict[str, Path], list[str]]:
    """Return the folder that holds classes or splits: the given one, or the only one in it that does."""
    notes: list[str] = []
    while True:
        about = [name for name in folders if name.lower() in _ABOUT]
        images = [name for name in folders if name.lower() in _IMAGES]
        alone = list(folders) if len(folders) == 1 and not roles_of(folders) else []
        inner = alone or (images if len(images) == 1 and about and len(about) + 1 == len(folders) else [])
        if not inner or holds_images(root):
            return root, folders, notes
        [name] = inner
        below = subfolders(folders[name])
        if not any(any_images(folder) for folder in below.values()):
            if alone or not holds_images(folders[name]):
                return root, folders, notes
            raise UserError(
                f"{root}: the images in {name!r} are not in one folder a class; give a table of paths and labels, "
                f"such as a CSV file with the columns path and label (beside them there is {name_few(about)})"
            )
        notes.append(
            f"the classes are in {name!r}" + (f"; not used: folder {name_few(about)}" if about else "")
        )
        root, folders = folders[name], below


def _splits(root: Path, folders: dict[str, Path], roles: dict[str, str]) -> dict[str, str]:
    """Return the folders that are splits, of those that are named so; none where all folders are classes.

    Raises:
        UserError: It is not clear what they are.
    """
    if not roles:
        return {}
    flat = [name for name in roles if holds_images(folders[name])]
    others = [name for name in folders if name not in roles and any_images(folders[name])]
    hint = "to take every folder for a class set data.train_split: ."
    if len(flat) == len(roles):
        if others and len(set(roles.values())) == 1:
            return {}  # a class is called so
        raise UserError(
            f"{root}: {name_few(flat)} should hold one folder a class, and the images are not in folders; {hint}, or "
            "give a table of paths and labels"
        )
    if flat and any(roles[name] == "train" for name in flat):
        raise UserError(
            f"{root}: {name_few(flat)} holds images, {name_few(name for name in roles if name not in flat)} class "
            f"folders; {hint}"
        )
    if flat:
        keys = ", ".join(f"data.{roles[name]}_split: {NONE}" for name in flat)
        raise UserError(
            f"{root}: the images in {name_few(flat)} are in no class folders, so they have no labels; leave them out "
            f"with {keys}"
        )
    if "train" not in roles.values() and others:
        raise UserError(
            f"{root}: {name_few(roles)} is named as a split, {name_few(others)} is not, and there is no training "
            f"split; set data.train_split, or {hint}"
        )
    return roles


def _unwrap(folder: Path) -> Path:
    """Return a split's folder of class folders: itself, or its only folder where the classes are in that one."""
    inner = subfolders(folder)
    if len(inner) == 1 and not holds_images(folder):
        [only] = inner.values()
        if not holds_images(only) and any(any_images(below) for below in subfolders(only).values()):
            return only
    return folder


def _read_classes(
    folder: Path, name: str, class_names: list[str] | None, found: Found
) -> tuple[list[str], ImageSet]:
    """Return the class names and the images of a folder of class folders; add to ``found`` what is not used."""
    folders = subfolders(folder)
    names = list(folders) if class_names is None else class_names
    if unknown := sorted(folders.keys() - set(names)):
        raise UserError(f"{folder}: the training folder has no class {name_few(unknown)}")
    paths: list[str] = []
    labels: list[int] = []
    for label, class_name in enumerate(names):
        if class_name not in folders:
            continue
        _check_class(folders[class_name])
        inside = find_images(folders[class_name])
        found.add(inside)
        paths += inside.images
        labels += [label] * len(inside.images)
    beside = _beside(folder, found)
    if not paths:
        more = f"; {beside} images are in it without a class folder" if beside else ""
        more = f"; not images: {'; '.join(found.notes(folder))}" if found.unused and not beside else more
        raise UserError(
            f"{folder}: there are no images; expected {folder}/CLASS/IMAGE, one folder a class{more}"
        )
    return names, ImageSet(paths, np.array(labels), name, *hash_files(folder, paths))


def _check_class(folder: Path) -> None:
    """Raise ``UserError`` where a class folder holds splits, so that they are not mixed."""
    inner = list(subfolders(folder))
    if len(inner) > 1 and all(role_of(name) for name in inner) and not holds_images(folder):
        raise UserError(
            f"{folder}: the splits {name_few(inner)} are inside of the class; expected SPLIT/CLASS/IMAGE, or give a "
            "table with the columns path, label and split"
        )


def _beside(folder: Path, found: Found) -> int:
    """Add the files beside the class folders to ``found``; return how many of them are images."""
    here, images = find_images(folder, deep=False), 0
    found.add(here)
    for path in here.images:
        found.leave("image {files} beside the class folders", path)
        images += 1
    return images
