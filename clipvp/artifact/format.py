"""A saved prompt, in a folder or on the hub: ``config.json`` and ``model.safetensors``, data and never code.

This module finds, reads, checks and writes the files; ``save.py`` builds prompt, source and mapping from them.
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

FORMAT, VERSION = "clipvp-prompt", 2
CONFIG, WEIGHTS, CARD = "config.json", "model.safetensors", "README.md"
_KEYS = {
    "prompt": dict,
    "mapping": dict,
    "weights": dict,
    "source": dict,
    "class_names": list,
    "preprocessing": dict,
    "plugins": list,
    "tensors": dict,
}
_SOURCE_KEYS = {
    "name": str,
    "revision": str | None,
    "fingerprint": str,
    "canvas": list,
    "outputs": str,
    "options": dict,
    "labels": dict,
    "text_tower": bool,
}


def write_artifact(folder: Path, config: dict[str, Any], tensors: dict[str, Tensor]) -> None:
    """Write a prompt's config and tensors into a folder, each file whole or not at all.

    ``sha256`` in the config covers the config itself and the tensors.
    """
    tensors = {name: tensor.detach().cpu().contiguous() for name, tensor in tensors.items()}
    shapes = {
        name: {"dtype": str(tensor.dtype).removeprefix("torch."), "shape": list(tensor.shape)}
        for name, tensor in tensors.items()
    }
    config = json.loads(json.dumps({"format": FORMAT, "version": VERSION, **config, "tensors": shapes}))
    write_tensors(folder / WEIGHTS, tensors, {"format": "pt"})
    write_json(folder / CONFIG, {**config, "sha256": digest(tensors, _canonical(config))})


def _canonical(config: dict[str, Any]) -> str:
    return json.dumps({key: value for key, value in config.items() if key != "sha256"}, sort_keys=True)


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
        UserError: There is no such folder, and the hub does not have it.
    """
    folder = Path(prompt).expanduser()
    if folder.is_dir():
        return folder
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
    """Return the config of a saved prompt as format 2 has it; its format, version and keys are checked.

    Raises:
        UserError: The folder is not a saved prompt, its config is damaged, or a newer version wrote it.
    """
    return _upgraded(_read_config(Path(folder)), Path(folder))


def _read_config(folder: Path) -> dict[str, Any]:
    missing = [name for name in (CONFIG, WEIGHTS) if not (folder / name).is_file()]
    if missing:
        inner = folder / "prompt"
        hint = f"; did you mean {str(inner)!r}?" if (inner / CONFIG).is_file() else ""
        raise UserError(f"{str(folder)!r} is not a saved prompt: {' and '.join(missing)} missing{hint}")
    try:
        config = json.loads((folder / CONFIG).read_text(encoding="utf-8"))
    except (ValueError, RecursionError, OSError) as error:
        raise _damaged(folder, error) from error
    if not isinstance(config, dict) or config.get("format") != FORMAT:
        raise UserError(f"{str(folder / CONFIG)!r} is not the config of a clipvp prompt")
    version = config.get("version")
    if type(version) is not int or not 1 <= version <= VERSION:
        raise UserError(
            f"{str(folder)!r} was written in format version {version}, this clipvp reads 1 to "
            f"{VERSION}; upgrade it with `pip install -U clipvp`"
        )
    return config


def _upgraded(config: dict[str, Any], folder: Path) -> dict[str, Any]:
    """Return a config of any version with the keys of this one, each of its type."""
    if config["version"] == 1 and isinstance(config.get("source"), dict):
        source, texts = config["source"], ("class_names", "templates")
        given = {key: source.get(key) for key in texts}
        labels = given if all(isinstance(value, list) for value in given.values()) else {}
        if not labels and any(value is not None for value in given.values()):
            raise UserError(f"{str(folder / CONFIG)!r}: source.class_names and source.templates do not fit")
        source = {key: value for key, value in source.items() if key not in texts}
        config = {**config, "source": {**source, "outputs": "logits", "options": {}, "labels": labels}}
        config = {"plugins": [], "tensors": {}, **config}
    config = {"weights": {"kind": "frozen"}, **config}
    if isinstance(config.get("source"), dict):
        config = {**config, "source": {"text_tower": True, **config["source"]}}
    for values, kinds, where in ((config, _KEYS, ""), (config.get("source"), _SOURCE_KEYS, "source.")):
        for key, kind in kinds.items():
            if key not in values or not isinstance(values[key], kind):
                said = getattr(kind, "__name__", kind)
                raise UserError(f"{str(folder / CONFIG)!r}: {where + key!r} is missing or not a {said}")
    source = config["source"]
    if len(source["canvas"]) != 2 or any(type(side) is not int or side < 1 for side in source["canvas"]):
        raise UserError(f"{str(folder / CONFIG)!r}: source.canvas {source['canvas']} is not [height, width]")
    # The label space holds the texts themselves: the name of a template set or a file is not looked up.
    labels = {
        key: source["labels"].get(key, []) for key in ("class_names", "templates", "wordings", "groups")
    }
    texts = {f"source.labels.{key}": values for key, values in labels.items()}
    for what, values in {"class_names": config["class_names"], "plugins": config["plugins"], **texts}.items():
        if not (isinstance(values, list) and all(isinstance(value, str) for value in values)):
            raise UserError(f"{str(folder / CONFIG)!r}: {what!r} is not a list of texts")
    return config


def read_artifact(folder: str | Path) -> tuple[dict[str, Any], dict[str, Tensor]]:
    """Return the config, as ``read_config`` does, and the tensors of a saved prompt.

    Raises:
        UserError: The folder is not a saved prompt, a file is damaged, or a newer version wrote it.
    """
    from safetensors import SafetensorError
    from safetensors.torch import load_file

    folder = Path(folder)
    written = _read_config(folder)
    config = _upgraded(written, folder)
    try:
        tensors = load_file(folder / WEIGHTS)
    except (SafetensorError, OSError) as error:
        raise _damaged(folder, error) from error
    covered = _canonical(written) if written["version"] > 1 else ""
    # The first prompts of version 1 have no digest.
    if (written["version"] > 1 or "sha256" in written) and written.get("sha256") != digest(tensors, covered):
        raise _damaged(folder, ValueError(f"{CONFIG} and {WEIGHTS} are not as they were written"))
    if written["version"] == 1 and config["prompt"].get("kind") == "none":
        tensors.pop("prompt.delta", None)  # zeros that nothing used
    return config, tensors


def _damaged(folder: Path, error: Exception) -> UserError:
    return UserError(f"{str(folder)!r}: a file of the prompt is damaged: {str(error).splitlines()[0]}")
