"""A saved prompt, in a folder or on the hub: ``config.json`` and ``model.safetensors``, data and never code.

This room finds, reads and writes the files and checks every one of their claims; the classifier is built elsewhere.
"""

from __future__ import annotations

import json
import re
from pathlib import Path
from typing import TYPE_CHECKING, Any

from ..files import digest, write_json, write_tensors
from ..registry import UserError

if TYPE_CHECKING:  # the config alone is read without torch
    from torch import Tensor

FORMAT, VERSION = "clipvp-prompt", 1
CONFIG, WEIGHTS, CARD = "config.json", "model.safetensors", "README.md"
_KEYS = {"prompt": dict, "mapping": dict, "source": dict, "class_names": list, "preprocessing": dict}
_SOURCE_KEYS = {
    "name": str,
    "revision": str | None,
    "fingerprint": str,
    "canvas": list,
    "class_names": list | None,
    "templates": list | None,
}


def write_artifact(folder: str | Path, config: dict[str, Any], tensors: dict[str, Tensor]) -> None:
    """Write a prompt's config and tensors into a folder, each file whole or not there."""
    folder = Path(folder)
    tensors = {name: tensor.detach().cpu().contiguous() for name, tensor in tensors.items()}
    write_tensors(folder / WEIGHTS, tensors, {"format": "pt"})
    write_json(folder / CONFIG, {"format": FORMAT, "version": VERSION, "sha256": digest(tensors), **config})


def find_artifact(
    prompt: str | Path, revision: str | None = None, local_files_only: bool = False, **download: Any
) -> Path:
    """Return the local folder of a saved prompt.

    Args:
        prompt: A folder, which comes first, or a hub id ``ORG/NAME``.
        revision: Branch, tag or commit on the hub.
        local_files_only: Take what the local hub cache holds, never ask the network.
        download: Further options of ``huggingface_hub.snapshot_download``, such as token and cache_dir.

    Raises:
        UserError: There is no such folder, or the hub does not give it.
    """
    if Path(prompt).is_dir():
        return Path(prompt)
    name = str(prompt)
    if not re.fullmatch(r"\w[\w.-]*/\w[\w.-]*", name):
        raise UserError(
            f"there is no folder {name!r}; give the folder of a saved prompt or a hub id ORG/NAME"
        )
    from huggingface_hub import snapshot_download

    from ..sources.hub import hub_access

    with hub_access(name, [name], revision, local_files_only, what="no local folder; prompt") as offline:
        options = {"revision": revision, "local_files_only": offline, **download}
        return Path(snapshot_download(name, allow_patterns=[CONFIG, WEIGHTS], **options))


def read_config(folder: str | Path) -> dict[str, Any]:
    """Return the config of a saved prompt, its format, version and keys checked.

    Raises:
        UserError: The folder is no saved prompt, its config is damaged, or a newer version wrote it.
    """
    folder = Path(folder)
    missing = [name for name in (CONFIG, WEIGHTS) if not (folder / name).is_file()]
    if missing:
        inner = folder / "prompt"
        hint = f"; did you mean {str(inner)!r}?" if (inner / CONFIG).is_file() else ""
        raise UserError(f"{str(folder)!r} is no saved prompt: {' and '.join(missing)} missing{hint}")
    try:
        config = json.loads((folder / CONFIG).read_text(encoding="utf-8"))
    except (ValueError, RecursionError, OSError) as error:
        raise _damaged(folder, error) from error
    if not isinstance(config, dict) or config.get("format") != FORMAT:
        raise UserError(f"{str(folder / CONFIG)!r} is not the config of a clipvp prompt")
    version = config.get("version")
    if not isinstance(version, int) or version > VERSION:
        raise UserError(
            f"{str(folder)!r} was written in format version {version}, this clipvp reads up to "
            f"{VERSION}; upgrade it with `pip install -U clipvp`"
        )
    for values, kinds, where in ((config, _KEYS, ""), (config.get("source"), _SOURCE_KEYS, "source.")):
        for key, kind in kinds.items():
            if key not in values or not isinstance(values[key], kind):
                said = getattr(kind, "__name__", kind)
                raise UserError(f"{str(folder / CONFIG)!r}: {where + key!r} is missing or not a {said}")
    source = config["source"]
    if len(source["canvas"]) != 2 or any(type(side) is not int or side < 1 for side in source["canvas"]):
        raise UserError(f"{str(folder / CONFIG)!r}: source.canvas {source['canvas']} is not [height, width]")
    # Templates and names are the texts themselves: the name of a set or of a file is not followed.
    texts = {f"source.{key}": source[key] or [] for key in ("class_names", "templates")}
    for what, values in {"class_names": config["class_names"], **texts}.items():
        if not all(isinstance(value, str) for value in values):
            raise UserError(f"{str(folder / CONFIG)!r}: {what!r} holds something that is no text")
    return config


def read_artifact(folder: str | Path) -> tuple[dict[str, Any], dict[str, Tensor]]:
    """Return the config and the tensors of a saved prompt.

    Raises:
        UserError: The folder is no saved prompt, a file is damaged, or a newer version wrote it.
    """
    from safetensors import SafetensorError
    from safetensors.torch import load_file

    folder = Path(folder)
    config = read_config(folder)
    try:
        tensors = load_file(folder / WEIGHTS)
    except (SafetensorError, OSError) as error:
        raise _damaged(folder, error) from error
    if config.get("sha256", found := digest(tensors)) != found:  # the first prompts have none
        raise _damaged(folder, ValueError(f"{WEIGHTS} is not the one that {CONFIG} was written with"))
    return config, tensors


def _damaged(folder: Path, error: Exception) -> UserError:
    return UserError(f"{str(folder)!r}: a file of the prompt is damaged: {str(error).splitlines()[0]}")
