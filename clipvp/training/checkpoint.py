"""The checkpoints of a run: written whole, checked when read, the newest few kept."""

from __future__ import annotations

import hashlib
import json
import re
from dataclasses import replace
from pathlib import Path
from typing import Any

from torch import Tensor

from ..files import Damaged, load_state, save_state
from ..labels.space import LabelSpace


def texts_hash(labels: LabelSpace) -> str:
    """Return a hash of a CLIP's texts with their classes and groups; the same for all closed label sets."""
    scored = replace(labels, left_out=())
    return hashlib.sha256(json.dumps(scored.to_dict()).encode()).hexdigest()[:16]


class Checkpoints:
    """The newest ``keep`` checkpoints of a run, named by their step.

    Args:
        folder: The folder of the files.
        keep: How many are kept.
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
