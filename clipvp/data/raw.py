"""What a loader hands over before anything is chosen: the splits as they lie on disk, and which is which."""

from __future__ import annotations

import hashlib
import os
from collections.abc import Iterable
from dataclasses import dataclass, field
from typing import Any

from ..config import DataConfig
from ..registry import UserError, nearest
from .sets import ImageSet

VAL_NAMES = ("validation", "val", "valid", "dev")


@dataclass(eq=False)
class RawTask:
    """A task as its files give it; the result of every entry of the ``TASKS`` registry.

    Args:
        class_names: The T classes in the order of their labels.
        train: All training images.
        val: Validation images, if the task has a split of them.
        test: Test images; carved from train when empty.
        info: Where it came from, ready for JSON.
    """

    class_names: list[str]
    train: ImageSet
    val: ImageSet | None = None
    test: ImageSet | None = None
    info: dict[str, Any] = field(default_factory=dict)


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


def name_few(names: Iterable[str]) -> str:
    """Return at most ten names and how many more there are, for an error message."""
    names = list(names)
    rest = f" and {len(names) - 10} more" if len(names) > 10 else ""
    return ", ".join(repr(name) for name in names[:10]) + rest
