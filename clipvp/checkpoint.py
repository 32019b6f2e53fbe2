"""Checkpoints: one file each, whole or not there, checked when read, never code.

A checkpoint is a safetensors file whose metadata holds the plain values as JSON and a hash of everything.
"""

from __future__ import annotations

import hashlib
import json
import re
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import save_file
from torch import Tensor

from .files import write_atomic

VERSION = 1


class Damaged(ValueError):
    """A checkpoint file is not what was written."""


def _digest(tensors: dict[str, Tensor], values: str) -> str:
    digest = hashlib.sha256(values.encode())
    for name in sorted(tensors):
        tensor = tensors[name].contiguous()
        digest.update(f"{name} {tuple(tensor.shape)} {tensor.dtype};".encode())
        digest.update(tensor.flatten().view(torch.uint8).numpy().data)
    return digest.hexdigest()


def save_state(path: Path, tensors: dict[str, Tensor], values: dict[str, Any]) -> None:
    """Write tensors and JSON values to one file, atomically."""
    tensors = {name: tensor.detach().cpu().contiguous() for name, tensor in tensors.items()}
    text = json.dumps(values, allow_nan=False)
    metadata = {"clipvp_version": str(VERSION), "values": text, "sha256": _digest(tensors, text)}
    write_atomic(path, lambda aside: save_file(tensors, aside, metadata))


def load_state(path: Path) -> tuple[dict[str, Tensor], dict[str, Any]]:
    """Return the tensors and values of a file that ``save_state`` wrote.

    Raises:
        Damaged: The file is cut, changed, or another kind of file.
    """
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


class Checkpoints:
    """The newest ``keep`` checkpoints of a run, named by their step.

    Args:
        folder: Where they lie.
        keep: How many stay.
    """

    def __init__(self, folder: Path, keep: int):
        self.folder, self.keep = folder, keep

    def paths(self) -> list[Path]:
        """Return the files, oldest first."""
        found = [
            path for path in self.folder.glob("step-*.safetensors") if re.fullmatch(r"step-\d+", path.stem)
        ]
        return sorted(found, key=lambda path: int(path.stem.removeprefix("step-")))

    def save(self, step: int, tensors: dict[str, Tensor], values: dict[str, Any]) -> Path:
        path = self.folder / f"step-{step:08d}.safetensors"
        save_state(path, tensors, values)
        for old in self.paths()[: -self.keep]:
            old.unlink(missing_ok=True)
        return path

    def newest(self) -> tuple[Path, dict[str, Tensor], dict[str, Any], list[str]] | None:
        """Return the newest whole checkpoint as (path, tensors, values, what was damaged), or None."""
        damaged: list[str] = []
        for path in reversed(self.paths()):
            try:
                return path, *load_state(path), damaged
            except Damaged as error:
                damaged.append(str(error))
        return None
