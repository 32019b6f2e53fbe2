"""Configs as nested dictionaries, as YAML, JSON and checkpoints hold them, and where two of them differ."""

from __future__ import annotations

import dataclasses
from typing import Any

from ..registry import UserError
from .parse import from_dict
from .schema import RunConfig


def to_dict(config: Any) -> dict[str, Any]:
    """Return a config as nested plain dictionaries, ready for YAML or JSON."""
    return dataclasses.asdict(config)


def settings_of(config: RunConfig) -> dict[str, Any]:
    """Return the config that a run records: without ``resume`` and ``overwrite``."""
    return {key: value for key, value in to_dict(config).items() if key not in ("resume", "overwrite")}


# Keys that say how a run is started, shown and stored, not what it computes.
_NOT_COMPUTED = (
    "output",
    "resume",
    "overwrite",
    "plugins",
    "data.cache_dir",
    "source.compile",
    "source.timeout",
    "source.retries",
    "source.per_second",
    "source.token_variable",
    "source.answers",
    "prompt.share_border",
) + tuple(
    f"train.{name}"
    for name in (
        "gradient_accumulation_steps",
        "progress",
        "keep",
        "save_every",
        "save_minutes",
        "report_to",
        "keep_core",
    )
)


def differences(one: dict[str, Any], other: dict[str, Any]) -> list[str]:
    """Return where two configs, as nested dictionaries, compute something else: ``key: value, not value``.

    A key that is missing has its default; a key of another choice, which older configs hold, is ignored. A config that
    cannot be read here, for example without its plug-ins, is compared as it is.
    """
    if not _unequal(flat(one), flat(other)):  # the usual case, at once
        return []
    ours, theirs = (_complete(values) for values in (one, other))
    keys = _unequal(ours, theirs)
    return [f"{key}: {ours.get(key)!r}, not {theirs.get(key)!r}" for key in keys]


def _unequal(ours: dict[str, Any], theirs: dict[str, Any]) -> list[str]:
    return [
        key for key in {**ours, **theirs} if key not in _NOT_COMPUTED and ours.get(key) != theirs.get(key)
    ]


def _complete(values: dict[str, Any]) -> dict[str, Any]:
    try:
        return flat(to_dict(from_dict(values)))
    except UserError:
        return flat(values)


def flat(values: dict[str, Any], prefix: str = "") -> dict[str, Any]:
    """Return nested dictionaries as one with dotted keys."""
    found: dict[str, Any] = {}
    for key, value in values.items():
        found |= flat(value, f"{prefix}{key}.") if isinstance(value, dict) else {f"{prefix}{key}": value}
    return found
