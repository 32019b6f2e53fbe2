"""A saved prompt on disk: ``config.json`` and ``model.safetensors``, data and never code.

This room reads and writes the files and checks every one of their claims; the classifier is built elsewhere.
"""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

from safetensors import SafetensorError
from safetensors.torch import load_file, save_file
from torch import Tensor

from .files import write_atomic, write_json
from .registry import UserError

FORMAT, VERSION = "clipvp-prompt", 1
CONFIG, WEIGHTS = "config.json", "model.safetensors"
_KEYS = {"prompt": dict, "mapping": dict, "source": dict, "class_names": list, "preprocessing": dict}


def write_artifact(folder: str | Path, config: dict[str, Any], tensors: dict[str, Tensor]) -> None:
    """Write a prompt's config and tensors into a folder, each file whole or not there."""
    folder = Path(folder)
    tensors = {name: tensor.detach().cpu().contiguous() for name, tensor in tensors.items()}
    write_atomic(folder / WEIGHTS, lambda aside: save_file(tensors, aside, {"format": "pt"}))
    write_json(folder / CONFIG, {"format": FORMAT, "version": VERSION, **config})


def read_artifact(folder: str | Path) -> tuple[dict[str, Any], dict[str, Tensor]]:
    """Return the config and the tensors of a saved prompt.

    Raises:
        UserError: The folder is no saved prompt, a file is damaged, or a newer version wrote it.
    """
    folder = Path(folder)
    missing = [name for name in (CONFIG, WEIGHTS) if not (folder / name).is_file()]
    if missing:
        raise UserError(f"{str(folder)!r} is no saved prompt: {' and '.join(missing)} missing")
    try:
        config = json.loads((folder / CONFIG).read_text(encoding="utf-8"))
        tensors = load_file(folder / WEIGHTS)
    except (json.JSONDecodeError, UnicodeDecodeError, SafetensorError, OSError) as error:
        raise UserError(
            f"{str(folder)!r}: a file of the prompt is damaged: {str(error).splitlines()[0]}"
        ) from error
    if not isinstance(config, dict) or config.get("format") != FORMAT:
        raise UserError(f"{str(folder / CONFIG)!r} is not the config of a clipvp prompt")
    if not isinstance(config.get("version"), int) or config["version"] > VERSION:
        raise UserError(
            f"{str(folder)!r} was written in format version {config.get('version')}, this clipvp reads up to "
            f"{VERSION}; upgrade it with `pip install -U clipvp`"
        )
    for key, kind in _KEYS.items():
        if not isinstance(config.get(key), kind):
            raise UserError(f"{str(folder / CONFIG)!r}: {key!r} is missing or not a {kind.__name__}")
    return config, tensors
