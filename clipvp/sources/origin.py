"""The origin of a source's weights by its name: local folder or hub repository, and the licence if known."""

from __future__ import annotations

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
    """Return whether a source's name refers to a folder of this machine."""
    scheme, _, model = name.partition(":")
    return model.startswith("local-dir:") or (scheme == "hf" and (model[:1] in "./~" or Path(model).is_dir()))


def public_name(name: str) -> str:
    """Return a source's name without local paths: of a local folder only the last part remains."""
    if not is_local(name):
        return name
    scheme, _, model = name.partition(":")
    prefix = "./" if scheme == "hf" else "local-dir:"
    return f"{scheme}:{prefix}{Path(model.removeprefix('local-dir:')).resolve().name}"


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
