"""Decode the images of a set in parallel, each once: into the disk cache, or into memory without one."""

from __future__ import annotations

import os
import warnings
from collections import deque
from collections.abc import Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any, Protocol

import numpy as np

from ..images import ImageError, Resize, to_rgb
from ..progress import Bar
from .cache import Entry

CHUNK = 32  # images a thread decodes before it reports


class Images(Protocol):
    """What is decoded: N images of a base data set (``ImageSet``)."""

    name: str
    fingerprint: str | None
    items: Sequence[Any]
    indices: np.ndarray

    def __len__(self) -> int: ...

    def item(self, row: int) -> Any: ...


def load_pixels(
    images: Images, resize: Resize, *, cache_dir: str | Path | None, progress: bool
) -> tuple[np.ndarray, np.ndarray, dict[int, ImageError]]:
    """Decode a set of N images.

    Returns:
        Pixels (M, h, w, 3) uint8, perhaps a private view of the cache's file; the place in them of each image (N,);
        and the error of each image that cannot be read; its pixels are to be ignored.
    """
    errors: dict[int, ImageError] = {}
    if images.fingerprint is not None and len(images):
        try:
            with Entry(cache_dir, images.name, images.fingerprint, len(images.items), resize) as entry:
                missing = _missing(entry, images.indices)
                for rows, pixels, failed in _decode(images, missing, resize, progress):
                    good = [row not in failed for row in rows]
                    entry.write(images.indices[rows[good]], pixels[good])
                    errors |= failed
                return entry.pixels(), images.indices, errors
        except OSError as error:
            warnings.warn(
                f"decoded images of {images.name} stay in memory, not on disk: {error}", stacklevel=3
            )
    everything, errors = np.empty((len(images), *resize.size, 3), np.uint8), {}
    for rows, pixels, failed in _decode(images, np.arange(len(images)), resize, progress):
        everything[rows] = pixels
        errors |= failed
    return everything, np.arange(len(images)), errors


def num_threads() -> int:
    """Return how many cores this process may use."""
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1


def _missing(entry: Entry, indices: np.ndarray) -> np.ndarray:
    """Return the rows whose pixels the entry does not hold, or holds damaged."""
    chunks = np.array_split(np.arange(len(indices)), max(1, len(indices) // 256))
    with ThreadPoolExecutor(num_threads()) as pool:
        good = list(pool.map(lambda rows: entry.check(indices[rows]), chunks))
    return np.flatnonzero(~np.concatenate(good))


def _decode(
    images: Images, rows: np.ndarray, resize: Resize, progress: bool
) -> Iterator[tuple[np.ndarray, np.ndarray, dict[int, ImageError]]]:
    """Yield rows, their pixels, and the errors of those that cannot be read, chunk by chunk in order."""
    if not len(rows):
        return

    def decode_chunk(chunk: np.ndarray) -> tuple[np.ndarray, np.ndarray, dict[int, ImageError]]:
        pixels, errors = np.zeros((len(chunk), *resize.size, 3), np.uint8), {}
        for place, row in enumerate(chunk):
            try:
                pixels[place] = decode_one(images, row, resize)
            except ImageError as error:
                errors[int(row)] = error
        return chunk, pixels, errors

    chunks = deque(np.array_split(rows, -(-len(rows) // CHUNK)))
    ahead = 2 * num_threads()  # bounds the memory when writing is slower than decoding
    size = "x".join(str(side) for side in resize.size)
    bar = Bar(len(rows), f"decode {images.name} at {size}", progress)
    with bar, ThreadPoolExecutor(num_threads()) as pool:
        running = deque(pool.submit(decode_chunk, chunks.popleft()) for _ in range(min(ahead, len(chunks))))
        while running:
            result = running.popleft().result()
            if chunks:
                running.append(pool.submit(decode_chunk, chunks.popleft()))
            bar.advance(len(result[0]))
            yield result


def decode_one(images: Images, row: int, resize: Resize) -> np.ndarray:
    """Return the pixels of one image, (h, w, 3) uint8; any failure is an ``ImageError``."""
    name = f"{images.name}[{images.indices[row]}]"
    try:
        item = images.item(row)
        return resize(to_rgb(item, None if isinstance(item, (str, os.PathLike)) else name))
    except ImageError:
        raise
    except Exception as error:  # a data set written in Python may decode, and fail, in its own way
        raise ImageError(f"{name}: cannot be read as an image: {error}") from error
