"""Files that are written whole or not at all: write beside, flush to the disk, rename. And where caches are."""

from __future__ import annotations

import codecs
import hashlib
import json
import os
import re
import shutil
import tempfile
import time
from collections.abc import Callable, Iterable
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from .registry import UserError

if TYPE_CHECKING:  # torch loads only where tensors are written or read
    from torch import Tensor

STATE_VERSION = 1


@dataclass(frozen=True)
class CacheEntry:
    """One entry of the cache.

    Args:
        kind: images, texts, features or cores.
        what: What it holds, for people.
        path: Its file or folder.
        num_bytes: Bytes on disk.
    """

    kind: str
    what: str
    path: Path
    num_bytes: int


def cache_root(cache_dir: str | Path | None = None) -> Path:
    """Return the folder of all caches: ``cache_dir``, else $CLIPVP_CACHE, else clipvp in $XDG_CACHE_HOME or ~/.cache,
    or in the folder of temporary files where the user has no home.

    Decoded images are in its folder ``images``, text embeddings in ``text``, features in ``features``, cores in
    ``cores``.
    """
    if cache_dir:
        return Path(cache_dir).expanduser()
    if os.environ.get("CLIPVP_CACHE"):
        return Path(os.environ["CLIPVP_CACHE"]).expanduser()
    if os.environ.get("XDG_CACHE_HOME"):
        return Path(os.environ["XDG_CACHE_HOME"]) / "clipvp"
    try:
        return Path.home() / ".cache" / "clipvp"
    except RuntimeError:  # a user of a container may have no home
        return Path(tempfile.gettempdir()) / f"clipvp-{os.getuid() if hasattr(os, 'getuid') else 'cache'}"


_ASIDE = ".part"
_MARKS = {codecs.BOM_UTF8: "utf-8-sig", codecs.BOM_UTF16_LE: "utf-16", codecs.BOM_UTF16_BE: "utf-16"}


def read_text(path: str | Path) -> str:
    """Return a person's text file, in UTF-8 or, with its byte order mark, UTF-16; ~ is the home.

    Raises:
        OSError: It cannot be read.
        UnicodeDecodeError: It has another encoding.
    """
    return decode_text(Path(path).expanduser().read_bytes())


def decode_text(content: bytes) -> str:
    """Return the text of bytes in UTF-8, or in UTF-16 with its byte order mark; a mark is not part of it."""
    encoding = next((name for mark, name in _MARKS.items() if content.startswith(mark)), "utf-8")
    return content.decode(encoding).replace("\r\n", "\n")


def list_features(cache_dir: str | Path | None = None) -> list[CacheEntry]:
    """Return the folders of cached features, the largest first."""
    folders = (folder for folder in (cache_root(cache_dir) / "features").glob("*") if folder.is_dir())
    sizes = {folder: sum(f.stat().st_size for f in folder.rglob("*") if f.is_file()) for folder in folders}
    entries = [CacheEntry("features", folder.name, folder, size) for folder, size in sizes.items()]
    return sorted(entries, key=lambda entry: -entry.num_bytes)


def remove_entries(entries: Iterable[CacheEntry]) -> int:
    """Remove entries of the cache; return the bytes set free. A run that reads one goes on: it holds its files open.

    Raises:
        UserError: An entry cannot be removed.
    """
    freed = 0
    for entry in entries:
        try:
            shutil.rmtree(entry.path) if entry.path.is_dir() else entry.path.unlink(missing_ok=True)
        except OSError as error:
            raise UserError(f"cannot remove {entry.path}: {error.strerror or error}") from error
        freed += entry.num_bytes
    return freed


# What filelock raises where a file system has no locks: an error of the system, or one of its own.
NO_LOCKS = (OSError, NotImplementedError)


def why_no_lock(error: Exception) -> str:
    """Return in one line why there is no lock, given one of ``NO_LOCKS``."""
    return getattr(error, "strerror", None) or str(error) or "the file system has no locks"


def write_atomic(path: Path, write: Callable[[Path], None]) -> None:
    """Let ``write`` fill a new file beside ``path``, then rename it to ``path``."""
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        handle, name = tempfile.mkstemp(prefix=f".{path.name}.", suffix=_ASIDE, dir=path.parent)
        os.close(handle)
        aside = Path(name)
        try:
            write(aside)
            os.chmod(aside, 0o666 & ~_umask())
            with open(aside, "rb+") as file:
                os.fsync(file.fileno())
            os.replace(aside, path)
            _sync_folder(path.parent)
        finally:
            aside.unlink(missing_ok=True)
    except OSError as error:  # name the requested file, not the one beside it
        if error.errno is None:
            raise
        raise OSError(error.errno, f"cannot write: {os.strerror(error.errno)}", str(path)) from error


def write_tensors(path: Path, tensors: dict[str, Tensor], metadata: dict[str, str]) -> None:
    """Write a safetensors file; a full disk is an ``OSError`` here too."""
    from safetensors import SafetensorError
    from safetensors.torch import save_file

    def write(aside: Path) -> None:
        try:
            save_file(tensors, aside, metadata)
        except SafetensorError as error:
            if found := re.search(r"os error (\d+)", str(error)):
                raise OSError(int(found[1]), str(error)) from error
            raise

    write_atomic(path, write)


def remove_asides(folder: Path, older_than: float = 0) -> None:
    """Remove unfinished files of ``write_atomic`` whose process was killed.

    Args:
        folder: The folder; those inside it are not searched.
        older_than: Seconds since a file was last written; 0 if no other process may be writing there.
    """
    for aside in folder.glob(f".*{_ASIDE}"):
        with suppress(FileNotFoundError):  # finished in the meantime
            if time.time() - aside.stat().st_mtime >= older_than:
                aside.unlink()


def write_text(path: Path, text: str) -> None:
    """Write text in UTF-8; what it cannot hold, bytes of a file's name, becomes a question mark."""
    write_atomic(path, lambda aside: aside.write_text(text, encoding="utf-8", errors="replace") and None)


def write_json(path: Path, value: Any) -> None:
    """Write strict JSON, which is read as it was; NaN and infinity are errors."""
    text = json.dumps(value, indent=2, ensure_ascii=False, allow_nan=False)
    if not text.isascii() and any("\ud800" <= letter <= "\udfff" for letter in text):
        text = json.dumps(value, indent=2)
    write_text(path, text + "\n")


def _umask() -> int:
    mask = os.umask(0)
    os.umask(mask)
    return mask


def _sync_folder(folder: Path) -> None:
    if os.name == "posix":
        handle = os.open(folder, os.O_RDONLY)
        try:
            os.fsync(handle)
        finally:
            os.close(handle)


class Damaged(ValueError):
    """A file is not as it was written."""


def digest(tensors: dict[str, Tensor], values: str = "") -> str:
    """Return the SHA-256 of tensors, with their names, shapes and types, and of a text."""
    import torch

    found = hashlib.sha256(values.encode())
    for name in sorted(tensors):
        tensor = tensors[name].detach().cpu().contiguous()
        found.update(f"{name} {tuple(tensor.shape)} {tensor.dtype};".encode())
        found.update(tensor.flatten().view(torch.uint8).numpy().data)
    return found.hexdigest()


def save_state(path: Path, tensors: dict[str, Tensor], values: dict[str, Any]) -> None:
    """Write tensors and JSON values to one safetensors file, with a hash of everything, atomically."""
    tensors = {name: tensor.detach().cpu().contiguous() for name, tensor in tensors.items()}
    text = json.dumps(values, allow_nan=False)
    metadata = {"clipvp_version": str(STATE_VERSION), "values": text, "sha256": digest(tensors, text)}
    write_tensors(path, tensors, metadata)


def load_state(path: Path) -> tuple[dict[str, Tensor], dict[str, Any]]:
    """Return the tensors and values of a file that ``save_state`` wrote.

    Raises:
        Damaged: The file is cut, changed, or another kind of file.
    """
    from safetensors import SafetensorError, safe_open

    try:
        with safe_open(path, framework="pt") as file:
            metadata = file.metadata() or {}
            tensors = {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118, no mapping
        if metadata.get("clipvp_version") != str(STATE_VERSION):
            raise Damaged(f"{path}: not a checkpoint of version {STATE_VERSION}")
        text = metadata["values"]
        if metadata["sha256"] != digest(tensors, text):
            raise Damaged(f"{path}: its content is not what was written")
        return tensors, json.loads(text)
    except (SafetensorError, OSError, KeyError, json.JSONDecodeError, UnicodeDecodeError) as error:
        raise Damaged(
            f"{path}: {str(error).splitlines()[0] if str(error) else type(error).__name__}"
        ) from error


def read_values(path: Path) -> dict[str, Any]:
    """Return the values of a file that ``save_state`` wrote, from its header alone and without importing torch.

    Raises:
        Damaged: The header cannot be read.
    """
    try:
        with open(path, "rb") as file:
            size = int.from_bytes(file.read(8), "little")
            if size > path.stat().st_size:
                raise Damaged(f"{path}: its header is cut")
            return json.loads(json.loads(file.read(size))["__metadata__"]["values"])
    except (OSError, KeyError, TypeError, ValueError) as error:
        raise Damaged(f"{path}: {error}") from error
