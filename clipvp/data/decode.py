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

from ..images import ImageError, Resize, Shrink
from ..pixels import NOTICES
from ..progress import Bar
from .cache import Entry, pack

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
        base: (M, h, w, 3) uint8, or M rows for ``cache.unpack`` where images keep their sizes; perhaps a private view
            of the cache's file.
        places: (N,) the place of each image in the base.
        errors: The error of each image that cannot be read; its pixels are to be ignored.
        notices: Lines about images that may be meant otherwise, and how many images each is about.
    """

    base: Any
    places: np.ndarray
    errors: dict[int, ImageError]
    notices: dict[str, int]


def load_pixels(
    images: Images, resize: Resize | Shrink, *, cache_dir: str | Path | None, progress: bool
) -> Pixels:
    """Decode a set of N images, or read them from the disk cache."""
    errors: dict[int, ImageError] = {}
    if images.fingerprint is not None and len(images):
        try:
            with Entry(cache_dir, images.name, images.fingerprint, len(images.items), resize) as entry:
                missing = _missing(entry, images.indices)
                for chunk in _decode(images, missing, resize, progress):
                    entry.write(images.indices[chunk.rows], chunk.pixels, chunk.notices)
                    errors |= chunk.errors
                notices = _counted(entry.notices(images.indices))
                return Pixels(entry.pixels(), images.indices, errors, notices)
        except OSError as error:
            warnings.warn(
                f"decoded images of {images.name} stay in memory, not on disk: {error}", stacklevel=3
            )
    any_size, errors, flags = isinstance(resize, Shrink), {}, np.zeros(len(images), np.uint64)
    everything: Any = [None] * len(images) if any_size else np.empty((len(images), *resize.size, 3), np.uint8)
    for chunk in _decode(images, np.arange(len(images)), resize, progress):
        flags[chunk.rows] = chunk.notices
        for row, pixels in zip(chunk.rows, chunk.pixels, strict=True):
            everything[row] = pack(pixels) if any_size else pixels
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
    """Rows of a set that can be read, their pixels, their notices as bits, and the errors of the other rows."""

    rows: np.ndarray
    pixels: list[np.ndarray]
    notices: np.ndarray
    errors: dict[int, ImageError]


def _decode(images: Images, rows: np.ndarray, resize: Resize | Shrink, progress: bool) -> Iterator[_Chunk]:
    """Yield the rows of a set chunk by chunk, in order."""
    if not len(rows):
        return

    def decode_chunk(rows: np.ndarray) -> _Chunk:
        pixels, notices, errors = [], [], {}
        for row in rows:
            lines: list[str] = []
            try:
                pixels.append(decode_one(images, row, resize, lines.append))
            except ImageError as error:
                errors[int(row)] = error
            else:
                notices.append(sum(1 << NOTICES.index(line) for line in set(lines)))
        good = np.array([row for row in rows if int(row) not in errors], np.int64)
        return _Chunk(good, pixels, np.array(notices, np.uint64), errors)

    chunks = deque(np.array_split(rows, -(-len(rows) // CHUNK)))
    ahead = 2 * num_threads()  # bounds the memory when writing is slower than decoding
    size = str(resize.side) if isinstance(resize, Shrink) else "x".join(map(str, resize.size))
    bar = Bar(len(rows), f"decode {images.name} at {size}", progress)
    with bar, ThreadPoolExecutor(num_threads()) as pool:
        running = deque(pool.submit(decode_chunk, chunks.popleft()) for _ in range(min(ahead, len(chunks))))
        while running:
            result = running.popleft().result()
            if chunks:
                running.append(pool.submit(decode_chunk, chunks.popleft()))
            bar.advance(len(result.rows) + len(result.errors))
            yield result


def decode_one(
    images: Images, row: int, resize: Resize | Shrink, report: Callable[[str], None]
) -> np.ndarray:
    """Return the pixels of one image, (h, w, 3) uint8; any failure is an ``ImageError``."""
    name = f"{images.name}[{images.indices[row]}]"
    try:
        item = images.item(row)
        return resize.read(item, None if isinstance(item, (str, os.PathLike)) else name, report)
    except ImageError:
        raise
    except Exception as error:  # a data set written in Python may decode, and fail, in its own way
        raise ImageError(f"{name}: cannot be read as an image: {error}") from error
