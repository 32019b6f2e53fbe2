"""Where a source's weights come from: a local folder, or a repository on the hub, and its licence, where known."""

from __future__ import annotations

import re
from pathlib import Path

_OFFLINE = "apache-2.0"  # of both pip packages


def origin(name: str) -> tuple[str | None, str | None]:
    """Return the hub repository and the licence of a source by its name; None where nobody can say.

    No network is asked: a licence is known where a library carries it.
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
    return (model if scheme in ("hf", "timm", "open_clip") and _is_id(model) else None), None


def is_local(name: str) -> bool:
    """Return whether a source's name tells a folder of this machine."""
    scheme, _, model = name.partition(":")
    return model.startswith("local-dir:") or (scheme == "hf" and (model[:1] in "./~" or Path(model).is_dir()))


def public_name(name: str) -> str:
    """Return a source's name as others may read it: of a local folder the last part alone."""
    if not is_local(name):
        return name
    scheme, _, model = name.partition(":")
    mark = "./" if scheme == "hf" else "local-dir:"
    return f"{scheme}:{mark}{Path(model.removeprefix('local-dir:')).resolve().name}"


def _is_id(model: str) -> bool:
    return re.fullmatch(r"\w[\w.-]*/\w[\w.-]*", model) is not None


def _timm(model: str) -> tuple[str | None, str | None]:
    import timm

    config = timm.get_pretrained_cfg(model)
    if config is None:
        return None, None
    repository = config.hf_hub_id or ""
    if repository.endswith("/"):
        repository += f"{model.partition('.')[0]}.{config.tag}" if config.tag else model
    return (repository if _is_id(repository) else None), config.license


def _open_clip(model: str, tag: str) -> tuple[str | None, str | None]:
    from open_clip import get_pretrained_cfg

    repository = (get_pretrained_cfg(model, tag) or {}).get("hf_hub", "").rstrip("/")
    return (repository if _is_id(repository) else None), None
