"""Configs as nested dictionaries, as YAML, JSON and checkpoints hold them: there and back, and where two differ.

No torch here, as in ``config``.
"""

from __future__ import annotations

import dataclasses
import types
import typing
from typing import Any

from ..registry import UserError, check_choice
from .schema import RunConfig


def to_dict(config: Any) -> dict[str, Any]:
    """Return a config as nested plain dictionaries, ready for YAML or JSON."""
    return dataclasses.asdict(config)


def settings_of(config: RunConfig) -> dict[str, Any]:
    """Return what a run records of its config: all but whether it was started or went on."""
    return {key: value for key, value in to_dict(config).items() if key not in ("resume", "overwrite")}


# What says how a run is started, shown and kept, not what it computes.
_NOT_COMPUTED = (
    "output",
    "resume",
    "overwrite",
    "data.cache_dir",
    "source.compile",
    "prompt.share_border",
) + tuple(
    f"train.{name}"
    for name in ("gradient_accumulation_steps", "progress", "keep", "save_every", "save_minutes", "report_to")
)


def differences(one: dict[str, Any], other: dict[str, Any]) -> list[str]:
    """Return where two configs, as nested dicts, would compute something else: ``key: value, not value``.

    A key that one of them does not know yet has its default there.
    """
    defaults = flat(to_dict(RunConfig()))
    ours, theirs = defaults | flat(one), defaults | flat(other)
    keys = [
        key for key in {**ours, **theirs} if key not in _NOT_COMPUTED and ours.get(key) != theirs.get(key)
    ]
    return [f"{key}: {ours.get(key)!r}, not {theirs.get(key)!r}" for key in keys]


def flat(values: dict[str, Any], prefix: str = "") -> dict[str, Any]:
    """Return nested dictionaries as one with dotted keys."""
    found: dict[str, Any] = {}
    for key, value in values.items():
        found |= flat(value, f"{prefix}{key}.") if isinstance(value, dict) else {f"{prefix}{key}": value}
    return found


def from_dict(values: dict[str, Any]) -> RunConfig:
    """Return the config that ``to_dict`` gave.

    Raises:
        UserError: An unknown key or section, or a value that is not allowed.
    """
    return _fill(RunConfig, values, "")


def _fill(kind: type, values: Any, where: str) -> Any:
    hints = typing.get_type_hints(kind)
    if not isinstance(values, dict):
        raise UserError(f"config: {where or 'the whole'} is {values!r}, not a section with keys")
    given = {}
    for key, value in values.items():
        check_choice(f"config, section {where}" if where else "config", key, hints)
        if dataclasses.is_dataclass(hints[key]):
            given[key] = _fill(hints[key], value, key)
        else:
            try:
                given[key] = _typed(value, hints[key])
            except ValueError:
                path, allowed = f"{where}.{key}".lstrip("."), str(kind.__annotations__[key])
                raise UserError(f"{path}: {value!r} is not allowed; give {allowed}") from None
    return kind(**given)


def _typed(value: Any, hint: Any) -> Any:
    """Return a value as its type has it; YAML reads 1e-3 as text, and JSON 1.0 as 1."""
    origin, inner = typing.get_origin(hint), typing.get_args(hint)
    if origin in (types.UnionType, typing.Union):
        for one in inner:
            try:
                return _typed(value, one)
            except ValueError:
                continue
    elif origin is list and isinstance(value, (list, tuple)):
        return [_typed(item, inner[0]) for item in value]
    elif origin is dict and isinstance(value, dict):
        return {_typed(key, inner[0]): _typed(item, inner[1]) for key, item in value.items()}
    elif hint is float and isinstance(value, (int, float, str)) and not isinstance(value, bool):
        return float(value)
    elif isinstance(hint, type) and type(value) is hint:
        return value
    raise ValueError(value)
