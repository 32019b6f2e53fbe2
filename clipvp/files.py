"""Files that are whole or not there: write aside, flush to the disk, rename."""

from __future__ import annotations

import hashlib
import json
import os
import tempfile
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:  # torch loads only where tensors are written or read
    from torch import Tensor

STATE_VERSION = 1


def write_atomic(path: Path, write: Callable[[Path], None]) -> None:
    """Have ``write`` fill a new file beside ``path``, then put it in the place of ``path``."""
    path.parent.mkdir(parents=True, exist_ok=True)
    handle, name = tempfile.mkstemp(prefix=f".{path.name}.", suffix=".part", dir=path.parent)
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


def write_text(path: Path, text: str) -> None:
    write_atomic(path, lambda aside: aside.write_text(text, encoding="utf-8") and None)


def write_json(path: Path, value: Any) -> None:
    """Write strict JSON: a NaN or an infinity is an error here, never a broken file there."""
    write_text(path, json.dumps(value, indent=2, ensure_ascii=False, allow_nan=False) + "\n")


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
    """A file is not what was written."""


def _digest(tensors: dict[str, Tensor], values: str) -> str:
    import torch

    digest = hashlib.sha256(values.encode())
    for name in sorted(tensors):
        tensor = tensors[name].contiguous()
        digest.update(f"{name} {tuple(tensor.shape)} {tensor.dtype};".encode())
        digest.update(tensor.flatten().view(torch.uint8).numpy().data)
    return digest.hexdigest()


def save_state(path: Path, tensors: dict[str, Tensor], values: dict[str, Any]) -> None:
    """Write tensors and JSON values to one safetensors file, with a hash of everything, atomically."""
    from safetensors.torch import save_file

    tensors = {name: tensor.detach().cpu().contiguous() for name, tensor in tensors.items()}
    text = json.dumps(values, allow_nan=False)
    metadata = {"clipvp_version": str(STATE_VERSION), "values": text, "sha256": _digest(tensors, text)}
    write_atomic(path, lambda aside: save_file(tensors, aside, metadata))


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
        text = metadata["values"]
        if metadata["sha256"] != _digest(tensors, text):
            raise Damaged(f"{path}: its content is not what was written")
        return tensors, json.loads(text)
    except (SafetensorError, OSError, KeyError, json.JSONDecodeError, UnicodeDecodeError) as error:
        raise Damaged(
            f"{path}: {str(error).splitlines()[0] if str(error) else type(error).__name__}"
        ) from error
