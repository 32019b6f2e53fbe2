"""Where a source's weights come from: its repository on the hub and its licence, where they are known."""

from __future__ import annotations

import re

_OFFLINE = "apache-2.0"  # of both pip packages


def origin(name: str) -> tuple[str | None, str | None]:
    """Return the hub repository and the licence of a source by its name; None where nobody can say.

    No network is asked: a licence is known where a library carries it.
    """
    scheme, _, model = name.partition(":")
    if scheme == "offline":
        return None, _OFFLINE
    if scheme == "timm" and not model.startswith(("local-dir:", "hf-hub:")):
        return _timm(model)
    if scheme == "open_clip" and "/" in model and ":" not in model:
        return _open_clip(*model.split("/", 1))
    model = model.removeprefix("hf-hub:").partition("@")[0]
    return (model if scheme in ("hf", "timm", "open_clip") and _is_id(model) else None), None


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
