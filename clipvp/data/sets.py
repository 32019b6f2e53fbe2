"""Labelled images: not yet decoded (``ImageSet``), and decoded to one size (``ImageTensors``)."""

from __future__ import annotations

import os
import warnings
from collections.abc import Sequence
from contextlib import suppress
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import numpy as np
import torch

from ..images import ImageWarning, Resize, Shrink
from ..registry import UserError, check_choice
from .decode import load_pixels
from .originals import OriginalImages


@dataclass(eq=False)
class ImageTensors:
    """Decoded images: N of M images in memory, or in the cache's file, from which they are read when they are used.

    Args:
        base: (M, 3, h, w) uint8, 0..255, in channels-last memory format.
        labels: (N,) int64.
        rows: (N,) int64, the place of each image in the base; the whole base in order when None.
        skipped: Names of the images that were left out because they cannot be read.
    """

    base: torch.Tensor
    labels: torch.Tensor
    rows: torch.Tensor | None = None
    skipped: list[str] = field(default_factory=list)

    def __len__(self) -> int:
        return len(self.labels)

    @property
    def images(self) -> torch.Tensor:
        """All N images, (N, 3, h, w): a copy where they are not the whole base."""
        return self.base if self.rows is None else self.base[self.rows]


@dataclass(frozen=True, eq=False)
class ImageSet:
    """Images not yet decoded, with their labels: some or all images of a base data set.

    Args:
        items: All images of the base: paths, bytes, PIL images or arrays, fetched one at a time.
        labels: (N,) class index of each image of this set.
        name: What to call the set in messages.
        fingerprint: Changes whenever the base's images change; empty where that cannot be known, and
            decoded images are then not kept on disk.
        identity: The same wherever the base's images are the same, also in a copy of their files; None where that
            cannot be known.
        indices: (N,) place in the base of each image of this set; the whole base when empty.
    """

    items: Sequence[Any]
    labels: np.ndarray
    name: str = "images"
    fingerprint: str | None = None
    identity: str | None = None
    indices: np.ndarray | None = None

    def __post_init__(self):
        indices = np.arange(len(self.items)) if self.indices is None else np.asarray(self.indices, np.int64)
        object.__setattr__(self, "indices", indices)
        object.__setattr__(self, "labels", np.asarray(self.labels, np.int64))
        if self.labels.shape != indices.shape:
            raise ValueError(f"{self.name}: {len(self.labels)} labels for {len(indices)} images")

    def __len__(self) -> int:
        return len(self.labels)

    def subset(self, rows: np.ndarray) -> ImageSet:
        """Return the images at ``rows`` of this set; they share the base and its decoded images."""
        return replace(self, labels=self.labels[rows], indices=self.indices[rows])

    def class_counts(self, num_classes: int) -> np.ndarray:
        """Return how many images each class has: (T,) int64."""
        return np.bincount(self.labels, minlength=num_classes)

    def item(self, row: int) -> Any:
        """Return one image, not decoded."""
        return self.items[int(self.indices[row])]

    def item_name(self, row: int) -> str:
        """Return a path, or ``name[place in the base]``."""
        item = None
        with suppress(Exception):  # a data set written in Python may fail in its own way
            item = self.item(row)
        return (
            os.fspath(item) if isinstance(item, (str, os.PathLike)) else f"{self.name}[{self.indices[row]}]"
        )

    def tensors(
        self,
        resize: Resize,
        *,
        cache_dir: str | Path | None = None,
        on_error: str = "raise",
        progress: bool = True,
    ) -> ImageTensors:
        """Decode and resize all images, or read them from the disk cache.

        Args:
            resize: The size of the result and how to reach it.
            cache_dir: Folder of decoded images; the user's cache folder when empty.
            on_error: raise (one error lists every unreadable image) or skip (they are left out).
            progress: Show a bar while images are decoded.
        """
        pixels, rows, good = self._decoded(resize, cache_dir, on_error, progress, warn=True)
        left_out = np.setdiff1d(np.arange(len(self)), good)
        whole = np.array_equal(rows, np.arange(len(pixels)))
        return ImageTensors(
            torch.from_numpy(pixels).permute(0, 3, 1, 2),
            torch.from_numpy(self.labels[good]),
            None if whole else torch.from_numpy(rows.copy()),
            [self.item_name(row) for row in left_out],
        )

    def originals(
        self,
        shrink: Shrink,
        size: tuple[int, int],
        *,
        cache_dir: str | Path | None = None,
        on_error: str = "raise",
        progress: bool = True,
    ) -> OriginalImages:
        """Decode all images at their own size, or at most a smaller one, or read them from the disk cache.

        Args:
            shrink: The most that an image may have.
            size: (h, w) of what will be cut from them.
            cache_dir: As for ``tensors``; so are the others.
        """
        pixels, rows, _ = self._decoded(shrink, cache_dir, on_error, progress, warn=False)
        return OriginalImages(pixels, rows, shrink, size)

    def _decoded(
        self,
        how: Resize | Shrink,
        cache_dir: str | Path | None,
        on_error: str,
        progress: bool,
        warn: bool,
    ) -> tuple[Any, np.ndarray, np.ndarray]:
        """Return a base of decoded images, the place in it of each image that can be read, and their rows."""
        check_choice("data.on_error", on_error, ["raise", "skip"])
        pixels, rows, errors, notices = load_pixels(self, how, cache_dir=cache_dir, progress=progress)
        for line, count in notices.items() if warn else ():
            warnings.warn(f"{self.name}: {count} of {len(self)} images: {line}", ImageWarning, stacklevel=3)
        if errors and on_error == "raise":
            first = "; ".join(str(errors[row]) for row in sorted(errors)[:10])
            rest = f"; and {len(errors) - 10} more" if len(errors) > 10 else ""
            raise UserError(
                f"{self.name}: {len(errors)} of {len(self)} images cannot be read ({first}{rest}); "
                "mend or remove them, or set data.on_error: skip"
            )
        good = np.delete(np.arange(len(self)), sorted(errors))
        return pixels, rows[good], good
