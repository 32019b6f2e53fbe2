"""The origin of a source's weights by its name: a local path or a hub repository, and the licence if known."""

from __future__ import annotations

import os
import re
from pathlib import Path

from ..cpu import import_open_clip

_OFFLINE = "apache-2.0"  # of both pip packages


def origin(name: str) -> tuple[str | None, str | None]:
    """Return the hub repository and the licence of a source by its name, each None if unknown.

    Does not use the network: a licence is known only if the installed library states it.
    """
    scheme, _, model = name.partition(":")
    if is_local(name):
        return None, None
    if scheme == "offline":
        return None, _OFFLINE
    if scheme == "timm" and not model.startswith("hf-hub:"):
        return _timm(model)
    if scheme == "open_clip" and "/" in model and ":" not in model:
        return _open_clip(*model.split("/", 1))
    model = model.removeprefix("hf-hub:").partition("@")[0]
    return (model if scheme in ("hf", "timm", "open_clip") and _is_hub_id(model) else None), None


def is_local(name: str) -> bool:
    """Return whether a source's name refers to a folder or file of this machine."""
    return _local_path(name) is not None


def expand_home(name: str) -> str:
    """Return a source's name with ``~`` at the start of a local path replaced by the home folder."""
    found = _local_path(name)
    return name if found is None else "".join(found)


def public_name(name: str) -> str:
    """Return a source's name without local paths: of a local folder or file only the last part remains."""
    found = _local_path(name)
    if found is None:
        return name
    start, path = found
    return f"{start}{'' if start.endswith('local-dir:') else './'}{Path(path).resolve().name}"


def is_weight_file(tag: str) -> bool:
    """Return whether the part after an open_clip architecture names a file: it has a dot or a slash, as no tag has."""
    return "/" in tag or "." in tag


def _local_path(name: str) -> tuple[str, str] | None:
    """Return the start of a local source's name and its path, ``~`` expanded; None for any other source.

    >>> _local_path("open_clip:ViT-B-32/runs/epoch_1.pt")
    ('open_clip:ViT-B-32/', 'runs/epoch_1.pt')
    """
    scheme, _, model = name.partition(":")
    if model.startswith("local-dir:"):
        start, path = f"{scheme}:local-dir:", model.removeprefix("local-dir:")
    elif scheme in ("onnx", "distilled"):
        start, path = f"{scheme}:", model
    elif scheme == "hf" and (model.startswith((".", "/", "~")) or Path(model).is_dir()):
        start, path = "hf:", model
    elif scheme == "open_clip" and ":" not in model and is_weight_file(model.partition("/")[2]):
        architecture, _, path = model.partition("/")
        start = f"open_clip:{architecture}/"
    else:
        return None
    return start, os.path.expanduser(path)


def _is_hub_id(model: str) -> bool:
    """Return whether a name has the form ORG/NAME."""
    return re.fullmatch(r"\w[\w.-]*/\w[\w.-]*", model) is not None


def _timm(model: str) -> tuple[str | None, str | None]:
    import timm

    config = timm.get_pretrained_cfg(model)
    if config is None:
        return None, None
    repository = config.hf_hub_id or ""
    if repository.endswith("/"):
        repository += f"{model.partition('.')[0]}.{config.tag}" if config.tag else model
    return (repository if _is_hub_id(repository) else None), config.license


def _open_clip(model: str, tag: str) -> tuple[str | None, str | None]:
    repository = (import_open_clip().get_pretrained_cfg(model, tag) or {}).get("hf_hub", "").rstrip("/")
    return (repository if _is_hub_id(repository) else None), None
