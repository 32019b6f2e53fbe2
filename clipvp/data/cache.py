"""The cache of decoded images: pixels of one base data set at one size, on disk, each with a checksum.

An entry is a folder with three files. ``pixels.u8`` holds (base size, h, w, 3) bytes, sparse where the system can; of
images of any size (``Shrink``) it holds one place of equal size for each, with what ``pack`` gives at its start.
``crc.u64`` holds for each image its CRC-32 plus 2**32, or 0 while the image is absent; bit 33 + n says that decoding it
gave notice n of ``clipvp.pixels.NOTICES``. ``entry.json`` says what it is. Runs that write one entry at the same time
write the same bytes, and an image whose checksum differs counts as absent, so no lock is needed and an interrupted run
loses nothing. Unfinished files of a killed run are removed when the entry is next opened, once they are old enough to
be surely abandoned.
"""

from __future__ import annotations

import errno
import hashlib
import json
import math
import os
import re
import shutil
import zlib
from collections.abc import Callable, Sequence
from contextlib import suppress
from pathlib import Path
from typing import Any

import numpy as np

from ..files import CacheEntry, cache_root, remove_asides, write_atomic, write_json
from ..images import Resize, Shrink

try:
    import fcntl
except ImportError:  # on Windows, where a file that is open cannot be removed
    fcntl = None  # type: ignore[assignment]

FORMAT = 3  # raise it when the meaning of an entry's bytes changes: old entries are then not used
ABANDONED = 3600.0  # seconds; files here take milliseconds to write, so an older unfinished one is abandoned
PRESENT = 1 << 32  # tells an image whose CRC is 0 from an absent one
_HEAD = 8  # bytes of height and width before the pixels of an image of any size
_PAGE = 4096  # places of images of any size start at whole pages, so that the file has holes between them


class Entry:
    """The decoded images of one base data set, resized in one way; a context manager that holds its files open.

    Args:
        cache_dir: See ``cache_root``.
        name: What the data set is called, for people.
        fingerprint: Identifies the base data set's images.
        count: How many images the base has.
        resize: How they are resized.

    Raises:
        OSError: The folder cannot be written, or the disk is full (from every method).
    """

    def __init__(
        self,
        cache_dir: str | Path | None,
        name: str,
        fingerprint: str,
        count: int,
        resize: Resize | Shrink,
    ):
        identity = {"format": FORMAT, "fingerprint": fingerprint, "count": count, "resize": resize.to_dict()}
        self._any_size = self._may_exceed_memory = isinstance(resize, Shrink)
        if isinstance(resize, Shrink):
            shape = (count, -(-(_HEAD + 3 * resize.most_pixels) // _PAGE) * _PAGE)
        else:
            shape = (count, *resize.size, 3)
        self._open(cache_root(cache_dir) / "images", name, identity, shape)

    def _open(self, parent: Path, name: str, identity: dict[str, Any], shape: tuple[int, ...]) -> None:
        """Open the entry of an identity below ``parent``: rows of bytes of this shape."""
        self.folder = _folder(parent, identity)
        self.folder.mkdir(parents=True, exist_ok=True)
        with suppress(OSError):  # a read-only cache is tidied by its owner
            remove_asides(self.folder, older_than=ABANDONED)
        self._shape = shape
        known = _read_json(self.folder / "entry.json")
        if {field: known.get(field) for field in identity} != identity:
            for file in ("pixels.u8", "crc.u64"):  # of another entry or damaged
                (self.folder / file).unlink(missing_ok=True)
            write_json(self.folder / "entry.json", {"name": name, **identity})
        self._pixels = _open_sized(self.folder / "pixels.u8", math.prod(self._shape))
        try:
            self._crcs = _open_sized(self.folder / "crc.u64", shape[0] * 8)
        except OSError:
            self._pixels.close()
            raise
        # Mapped through the open file, not the path: a concurrent rebuild may put another file there.
        self._crc_of = np.asarray(np.memmap(self._crcs, "<u8", mode="c", shape=shape[:1]))

    def __enter__(self) -> Entry:
        return self

    def __exit__(self, *exception: Any) -> None:
        with self._pixels, self._crcs:
            pass

    def check(self, indices: np.ndarray) -> np.ndarray:
        """Return for each image of the base whether the entry holds it undamaged."""
        pixels = self.pixels()
        good = self._crc_of[indices] != 0
        for row in np.flatnonzero(good):
            image = pixels[indices[row]]
            if self._any_size:
                image = image[: _HEAD + math.prod(_size(image)) * 3]
            good[row] = _checksum(image) == int(self._crc_of[indices[row]]) % (2 * PRESENT)
        return good

    def notices(self, indices: np.ndarray) -> np.ndarray:
        """Return the notices of images of the base as bits, (n,) uint64."""
        return self._crc_of[indices] >> np.uint64(33)

    def write(self, indices: np.ndarray, pixels: Sequence[np.ndarray], notices: np.ndarray) -> None:
        """Keep the pixels, n times (h, w, 3) uint8, and the notices (n,) uint64, of the images of the base at
        ``indices``."""
        if not (self._pixels.writable() and self._crcs.writable()):
            raise OSError(errno.EROFS, "the cache is read-only", str(self.folder))
        stored = [pack(image) for image in pixels] if self._any_size else pixels
        crcs = np.array([_checksum(image) for image in stored], "<u8") | notices << np.uint64(33)
        # Not through a map: a full disk would then end the process by a signal, not by an error.
        # Neighbours together: each system call makes the decoding threads switch.
        for file, values in ((self._pixels, stored), (self._crcs, crcs)):
            alone = self._any_size and file is self._pixels
            place = math.prod(self._shape[1:]) if file is self._pixels else 8
            ends = np.arange(1, len(indices)) if alone else np.flatnonzero(np.diff(indices) != 1) + 1
            for run in np.split(np.arange(len(indices)), ends):
                if len(run):
                    file.seek(int(indices[run[0]]) * place)
                    file.write(np.ascontiguousarray(values[run[0] : run[-1] + 1]))
            file.flush()

    def pixels(self) -> np.ndarray:
        """Return the pixels of the whole base, (count, h, w, 3), or (count, bytes) for ``unpack`` where images have any
        size: a private view of the file, read where it is used."""
        # The system counts a private map that can be written to as memory, which these files may exceed.
        mode = "r" if self._may_exceed_memory else "c"
        return np.asarray(np.memmap(self._pixels, np.uint8, mode=mode, shape=self._shape))


class CoreEntry(Entry):
    """What a source computes of the images of a split where no prompt pixel reaches: rows of bytes, one an image.

    Args:
        cache_dir: See ``cache_root``.
        name: What the data set is called, for people.
        identity: Everything that decides the values, ready for JSON.
        count: How many images there are.
        num_bytes: Bytes an image.
    """

    def __init__(
        self, cache_dir: str | Path | None, name: str, identity: dict[str, Any], count: int, num_bytes: int
    ):
        self._any_size, self._may_exceed_memory = False, True
        self._open(cache_root(cache_dir) / "cores", name, identity, (count, num_bytes))
        if fcntl is not None:
            with suppress(OSError):  # a file system without locks
                fcntl.flock(self._pixels, fcntl.LOCK_SH)  # as long as the file or a map of it is open

    def check_free_space(self) -> None:
        """Raise ``OSError`` where the images that the entry lacks need more than nine tenths of the disk's free space:
        the run writes more than this entry."""
        free = shutil.disk_usage(self.folder).free  # first: meanwhile other processes may write images
        needed = int((self._crc_of == 0).sum()) * self._shape[1]
        if needed > 0.9 * free:
            raise OSError(
                f"it needs {needed / 1e6:.1f} MB; of {free / 1e6:.1f} MB that are free at {self.folder.parent} "
                "a tenth is left for other files"
            )


def remove_partial_core(cache_dir: str | Path | None, identity: dict[str, Any]) -> None:
    """Remove a core entry, for its place on a full disk; not where it is complete or a process has it open."""
    folder = _folder(cache_root(cache_dir) / "cores", identity)
    with suppress(OSError):
        with open(folder / "pixels.u8", "rb") as pixels:
            if fcntl is not None:
                fcntl.flock(pixels, fcntl.LOCK_EX | fcntl.LOCK_NB)
        if not np.fromfile(folder / "crc.u64", "<u8").all():
            (folder / "pixels.u8").unlink()
            shutil.rmtree(folder)


def _folder(parent: Path, identity: dict[str, Any]) -> Path:
    return parent / hashlib.sha256(json.dumps(identity, sort_keys=True).encode()).hexdigest()[:32]


def pack(image: np.ndarray) -> np.ndarray:
    """Return the pixels (h, w, 3) uint8 of an image of any size as bytes that say their size."""
    return np.concatenate([np.array(image.shape[:2], "<u4").view(np.uint8), image.reshape(-1)])


def unpack(stored: np.ndarray) -> np.ndarray:
    """Return the pixels (h, w, 3) that ``pack`` stored at the start of some bytes, as a view."""
    height, width = _size(stored)
    return stored[_HEAD : _HEAD + height * width * 3].reshape(height, width, 3)


def _size(stored: np.ndarray) -> tuple[int, int]:
    height, width = stored[:_HEAD].view("<u4").tolist()
    return height, width


def list_images(cache_dir: str | Path | None = None) -> list[CacheEntry]:
    """Return the data sets whose decoded images the cache holds, the largest first."""

    def size(known: dict[str, Any]) -> str:
        resize = known["resize"]
        side = "x".join(map(str, resize.get("size", []))) or str(resize.get("side"))
        return f"{side} ({resize.get('rule')})"

    return _list_entries("images", cache_dir, size)


def list_cores(cache_dir: str | Path | None = None) -> list[CacheEntry]:
    """Return the splits whose cores the cache holds, the largest first."""
    return _list_entries("cores", cache_dir, lambda known: "x".join(map(str, known["canvas"])))


def _list_entries(
    kind: str, cache_dir: str | Path | None, size: Callable[[dict[str, Any]], str]
) -> list[CacheEntry]:
    """Return the entries of a kind; ``size`` says of what ``entry.json`` holds at which size the images are."""
    folder, entries = cache_root(cache_dir) / kind, []
    for path in sorted(folder.iterdir()) if folder.is_dir() else ():
        if not (path.is_dir() and re.fullmatch("[0-9a-f]{32}", path.name)):
            continue
        known, what = _read_json(path / "entry.json"), "unknown"
        with suppress(KeyError, TypeError, AttributeError):  # damaged
            what = f"{known.get('name')} at {size(known)}"
        crcs = path / "crc.u64"
        values = np.fromfile(crcs, "<u8") if crcs.is_file() else np.zeros(0)
        # Blocks, where the system counts them: a sparse file takes less than its length.
        stats = [file.stat() for file in path.iterdir() if file.is_file()]
        num_bytes = sum(getattr(stat, "st_blocks", -(-stat.st_size // 512)) * 512 for stat in stats)
        what += f", {int((values != 0).sum())} of {len(values)} images"
        entries.append(CacheEntry(kind, what, path, num_bytes))
    return sorted(entries, key=lambda entry: -entry.num_bytes)


def _checksum(pixels: np.ndarray) -> int:
    return zlib.crc32(pixels) | PRESENT


def _read_json(path: Path) -> dict[str, Any]:
    """Return the file's dictionary, or an empty one if it cannot be read."""
    try:
        value = json.loads(path.read_bytes())
    except (OSError, ValueError):
        return {}
    return value if isinstance(value, dict) else {}


def _open_sized(path: Path, size: int):
    """Open a file of exactly ``size`` bytes, or a new one of zeros if it is missing or has another size."""
    if not (path.is_file() and path.stat().st_size == size):
        write_atomic(path, lambda aside: os.truncate(aside, size))
    try:
        return open(path, "r+b")
    except OSError:  # a read-only cache may still hold everything that is needed
        return open(path, "rb")
