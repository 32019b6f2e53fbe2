"""Data sets written in Python: anything with a length whose items are (image, label) pairs."""

from __future__ import annotations

import threading
from collections.abc import Sequence
from typing import Any

import numpy as np

from ...registry import UserError
from ..sets import ImageSet
from .raw import RawTask


def from_pairs(
    splits: dict[str, Sequence[tuple[Any, int]]], *, name: str, class_names: list[str] | None = None
) -> RawTask:
    """Turn torch-style data sets into a task.

    Args:
        splits: train, and val and test where there are any, to a data set of (image, label) pairs.
        name: What to call the task in messages.
        class_names: The classes in the order of their labels; the data set's ``classes`` when empty.
    """
    labels = {role: _read_labels(data, f"{name}/{role}") for role, data in splits.items()}
    names = class_names or getattr(splits["train"], "classes", None)
    if names is None:
        raise UserError(f"{name}: the data set does not name its classes; give class_names")
    sets = {
        role: ImageSet(_PairImages(data), labels[role], f"{name}/{role}") for role, data in splits.items()
    }
    return RawTask(
        [str(word) for word in names], sets["train"], sets.get("val"), sets.get("test"), {"from": "Python"}
    )


class _PairImages(Sequence):
    """The images of a data set of pairs, fetched one at a time: its code need not be thread-safe."""

    def __init__(self, data: Sequence[tuple[Any, int]]):
        self._data = data
        self._lock = threading.Lock()

    def __len__(self) -> int:
        return len(self._data)

    def __getitem__(self, index: int) -> Any:
        with self._lock:
            return self._data[index][0]


def _read_labels(data: Sequence[tuple[Any, int]], where: str) -> np.ndarray:
    labels = getattr(data, "targets", None)  # torchvision's name; saves decoding every image
    if labels is None or len(labels) != len(data) or getattr(data, "target_transform", None):
        labels = []
        for row in range(len(data)):
            pair = data[row]
            if not (isinstance(pair, Sequence) and len(pair) == 2):
                raise UserError(f"{where}[{row}] is no (image, label) pair")
            labels.append(pair[1])
    labels = np.asarray(labels)
    if labels.ndim != 1 or (len(labels) and not np.issubdtype(labels.dtype, np.integer)):
        raise UserError(
            f"{where}: labels of type {labels.dtype} and shape {labels.shape}; give one integer an image"
        )
    return labels
