"""What a loader returns before anything is chosen: the splits as they are on disk."""

from __future__ import annotations

import hashlib
import os
from collections.abc import Iterable
from dataclasses import dataclass, field, replace
from importlib.metadata import PackageNotFoundError, version
from typing import Any

import numpy as np

from ...registry import UserError
from ..sets import ImageSet


@dataclass(eq=False)
class RawTask:
    """A task as its files give it; the result of every entry of the ``TASKS`` registry.

    Args:
        class_names: The T classes in the order of their labels.
        train: All training images; empty for a task that is a test set.
        val: Validation images, if the task has a split of them.
        test: Test images; carved from train when empty.
        info: Where it came from, ready for JSON.
        notes: What was taken for what, and what is not used: sentences for people.
        empty: Where its images are empty, by a name in ``clipvp.prompts.masked.EMPTY``.
    """

    class_names: list[str]
    train: ImageSet | None
    val: ImageSet | None = None
    test: ImageSet | None = None
    info: dict[str, Any] = field(default_factory=dict)
    notes: list[str] = field(default_factory=list)
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


def hash_files(root: str | os.PathLike, paths: Iterable[str]) -> tuple[str, str]:
    """Return a set of files' fingerprint and identity, see ``ImageSet``.

    Both are hashes of the paths below ``root`` and the sizes; the fingerprint also of the times of change.
    """
    fingerprint, identity = hashlib.sha256(), hashlib.sha256()
    for path in paths:
        try:
            stat = os.stat(path)
            size, time = stat.st_size, stat.st_mtime_ns
            state = f"{size} {time}"
        except OSError:
            size, state = None, "missing"
        place = os.path.relpath(path, root)
        fingerprint.update(f"{place}\0{state}\0".encode(errors="surrogateescape"))
        identity.update(f"{place}\0{size}\0".encode(errors="surrogateescape"))
    return f"files:{fingerprint.hexdigest()}", identity.hexdigest()


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
