"""What a loader returns before anything is chosen: the splits as they are on disk."""

from __future__ import annotations

import hashlib
import os
from collections.abc import Iterable
from dataclasses import dataclass, field, replace
from importlib.metadata import PackageNotFoundError, version
from typing import Any

import numpy as np

from ...config.schema import DataConfig
from ...registry import UserError, nearest
from ..sets import ImageSet

VAL_NAMES = ("validation", "val", "valid", "dev")


@dataclass(eq=False)
class RawTask:
    """A task as its files give it; the result of every entry of the ``TASKS`` registry.

    Args:
        class_names: The T classes in the order of their labels.
        train: All training images; empty for a task that is a test set.
        val: Validation images, if the task has a split of them.
        test: Test images; carved from train when empty.
        info: Where it came from, ready for JSON.
        empty: Where its images are empty, by a name in ``clipvp.prompts.masked.EMPTY``.
    """

    class_names: list[str]
    train: ImageSet | None
    val: ImageSet | None = None
    test: ImageSet | None = None
    info: dict[str, Any] = field(default_factory=dict)
    empty: str | None = None

    @property
    def name(self) -> str:
        """What to call the task in messages: its first split."""
        return (self.train or self.test).name

    def of_classes(self, classes: str) -> RawTask:
        """Return the task of all classes, or of base (the first half, in the order of labels) or new (the rest).

        An odd class is a base class. Source: CoCoOp (arXiv 2203.05557), generalisation from base to new classes.
        """
        if classes == "all":
            return self
        half = (len(self.class_names) + 1) // 2
        first, last = (0, half) if classes == "base" else (half, len(self.class_names))
        sets = {}
        for role in ("train", "val", "test"):
            images = getattr(self, role)
            if images is not None:
                images = images.subset(np.flatnonzero((images.labels >= first) & (images.labels < last)))
                images = replace(images, labels=images.labels - first)
            sets[role] = None if role == "val" and images is not None and not len(images) else images
        return replace(self, class_names=self.class_names[first:last], **sets)


def choose_split_names(available: Iterable[str], config: DataConfig) -> dict[str, str]:
    """Return which of the available splits is train, val and test; val and test may be missing.

    A task with a validation split and no test split is tested on the validation split.
    """
    available = list(available)
    chosen = {}
    for role in ("train", "val", "test"):
        asked = getattr(config, f"{role}_split")
        if asked is not None and asked not in available:
            raise UserError(f"data.{role}_split: there is no split {asked!r}; {nearest(asked, available)}")
        if asked is not None:
            chosen[role] = asked
    for role, names in {"train": ("train",), "test": ("test",), "val": VAL_NAMES}.items():
        free = [name for name in names if name in available and name not in chosen.values()]
        if role not in chosen and free:
            chosen[role] = free[0]
    if "train" not in chosen:
        raise UserError(f"there is no split 'train'; set data.train_split to one of: {', '.join(available)}")
    if "test" not in chosen and "val" in chosen and config.val_split is None:
        chosen["test"] = chosen.pop("val")
    if len(set(chosen.values())) < len(chosen):
        raise UserError(
            f"one split has two roles: {chosen}; give data.train_split, val_split, test_split their own"
        )
    return chosen


def fingerprint_files(root: str | os.PathLike, paths: Iterable[str]) -> str:
    """Return a hash of the files' paths below ``root``, their sizes and times of change."""
    digest = hashlib.sha256()
    for path in paths:
        try:
            stat = os.stat(path)
            state = f"{stat.st_size} {stat.st_mtime_ns}"
        except OSError:
            state = "missing"
        digest.update(f"{os.path.relpath(path, root)}\0{state}\0".encode(errors="surrogateescape"))
    return f"files:{digest.hexdigest()}"


def package_version(task: str, package: str, extra: str) -> str:
    """Return the version of the package that a task comes out of, which the extra of that name installs."""
    try:
        return version(package)
    except PackageNotFoundError:
        raise UserError(f'the task {task!r} needs {package}: pip install "clipvp[{extra}]"') from None


def name_few(names: Iterable[str]) -> str:
    """Return at most ten names and how many more there are, for an error message."""
    names = list(names)
    rest = f" and {len(names) - 10} more" if len(names) > 10 else ""
    return ", ".join(repr(name) for name in names[:10]) + rest
