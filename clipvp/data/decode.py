"""Decode the images of a set in parallel, each once: into the disk cache, or into memory without one."""

from __future__ import annotations

import os
import warnings
from collections import deque
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any, NamedTuple, Protocol

import numpy as np

from ..images import ImageError, Resize
from ..pixels import NOTICES
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


class Pixels(NamedTuple):
    """Decoded images: N of M images in memory or in the cache's file.

    Args:
        base: (M, h, w, 3) uint8, perhaps a private view of the cache's file.
        places: (N,) the place of each image in the base.
        errors: The error of each image that cannot be read; its pixels are to be ignored.
        notices: Lines about images that may be meant otherwise, and how many images each is about.
    """

    base: np.ndarray
    places: np.ndarray
    errors: dict[int, ImageError]
    notices: dict[str, int]


def load_pixels(images: Images, resize: Resize, *, cache_dir: str | Path | None, progress: bool) -> Pixels:
    """Decode a set of N images, or read them from the disk cache."""
    errors: dict[int, ImageError] = {}
    if images.fingerprint is not None and len(images):
        try:
            with Entry(cache_dir, images.name, images.fingerprint, len(images.items), resize) as entry:
                missing = _missing(entry, images.indices)
                for chunk in _decode(images, missing, resize, progress):
                    good = [row not in chunk.errors for row in chunk.rows]
                    entry.write(images.indices[chunk.rows[good]], chunk.pixels[good], chunk.notices[good])
                    errors |= chunk.errors
                notices = _counted(entry.notices(images.indices))
                return Pixels(entry.pixels(), images.indices, errors, notices)
        except OSError as error:
            warnings.warn(
                f"decoded images of {images.name} stay in memory, not on disk: {error}", stacklevel=3
            )
    everything, errors = np.empty((len(images), *resize.size, 3), np.uint8), {}
    flags = np.zeros(len(images), np.uint64)
    for chunk in _decode(images, np.arange(len(images)), resize, progress):
        everything[chunk.rows], flags[chunk.rows] = chunk.pixels, chunk.notices
        errors |= chunk.errors
    return Pixels(everything, np.arange(len(images)), errors, _counted(flags))


def _counted(flags: np.ndarray) -> dict[str, int]:
    counts = {line: int(((flags >> np.uint64(n)) & np.uint64(1)).sum()) for n, line in enumerate(NOTICES)}
    return {line: count for line, count in counts.items() if count}


def num_threads() -> int:
    """Return how many cores this process may use."""
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1


def _missing(entry: Entry, indices: np.ndarray) -> np.ndarray:
    """Return the rows whose pixels the entry does not hold, or holds damaged."""
    chunks = np.array_split(np.arange(len(indices)), max(1, len(indices) // 256))
    with ThreadPoolExecutor(num_threads()) as pool:
        good = list(pool.map(lambda rows: entry.check(indices[rows]), chunks))
    return np.flatnonzero(~np.concatenate(good))


class _Chunk(NamedTuple):
    """Rows of a set, their pixels, their notices as bits, and the errors of those that cannot be read."""

    rows: np.ndarray
    pixels: np.ndarray
    notices: np.ndarray
    errors: dict[int, ImageError]


def _decode(images: Images, rows: np.ndarray, resize: Resize, progress: bool) -> Iterator[_Chunk]:
    """Yield the rows of a set chunk by chunk, in order."""
    if not len(rows):
        return

    def decode_chunk(rows: np.ndarray) -> _Chunk:
        pixels = np.zeros((len(rows), *resize.size, 3), np.uint8)
        chunk = _Chunk(rows, pixels, np.zeros(len(rows), np.uint64), {})
        for place, row in enumerate(rows):
            lines: list[str] = []
            try:
                pixels[place] = decode_one(images, row, resize, lines.append)
            except ImageError as error:
                chunk.errors[int(row)] = error
            else:
                chunk.notices[place] = sum(1 << NOTICES.index(line) for line in set(lines))
        return chunk

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
            bar.advance(len(result.rows))
            yield result


def decode_one(images: Images, row: int, resize: Resize, report: Callable[[str], None]) -> np.ndarray:
    """Return the pixels of one image, (h, w, 3) uint8; any failure is an ``ImageError``."""
    name = f"{images.name}[{images.indices[row]}]"
    try:
        item = images.item(row)
        return resize.read(item, None if isinstance(item, (str, os.PathLike)) else name, report)
    except ImageError:
        raise
    except Exception as error:  # a data set written in Python may decode, and fail, in its own way
        raise ImageError(f"{name}: cannot be read as an image: {error}") from error
