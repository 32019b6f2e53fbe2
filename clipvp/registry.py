"""Names that users type, and the errors they get when a name or a value is wrong.

This room imports nothing heavy: a refused name must cost no torch import. An entry is written as
``"package.module:attribute"`` and imported when it is first asked for.
"""

from __future__ import annotations

import difflib
from collections.abc import Iterable
from importlib import import_module
from typing import Any


class UserError(ValueError):
    """Something the user gave is wrong; the message alone must be enough to mend it."""


def nearest(value: str, allowed: Iterable[str]) -> str:
    """Return the end of an error sentence: the nearest match, then everything that is allowed."""
    names = [str(name) for name in allowed]
    close = difflib.get_close_matches(str(value), names, n=1, cutoff=0.5)
    hint = f"did you mean {close[0]!r}? " if close else ""
    return f"{hint}allowed: {', '.join(names)}"


def check_choice(what: str, value: str, allowed: Iterable[str]) -> None:
    """Raise ``UserError`` when ``value`` is not one of ``allowed``; ``what`` names the setting."""
    allowed = list(allowed)
    if value not in allowed:
        raise UserError(f"{what}: unknown value {value!r}; {nearest(value, allowed)}")


class Registry:
    """A table from a name to a class or function.

    Args:
        what: What the entries are, in the singular, for error messages ("prompt").
        entries: Name to ``"package.module:attribute"``.
    """

    def __init__(self, what: str, entries: dict[str, str]):
        self.what = what
        self._entries: dict[str, Any] = dict(entries)

    def names(self) -> list[str]:
        return sorted(self._entries)

    def __contains__(self, name: str) -> bool:
        return name in self._entries

    def check(self, name: str) -> None:
        """Raise ``UserError`` with the nearest names when ``name`` is not registered."""
        if name not in self._entries:
            raise UserError(f"unknown {self.what} {name!r}; {nearest(name, self.names())}")

    def get(self, name: str) -> Any:
        """Return the entry, importing it at its first use."""
        self.check(name)
        entry = self._entries[name]
        if isinstance(entry, str):
            module, _, attribute = entry.partition(":")
            entry = self._entries[name] = getattr(import_module(module), attribute)
        return entry

    def register(self, name: str, entry: Any = None):
        """Add an entry, as a call or as a decorator; a name that is taken is refused."""
        if entry is None:
            return lambda decorated: self.register(name, decorated)
        if name in self._entries:
            raise ValueError(f"{self.what} {name!r} is registered already")
        self._entries[name] = entry
        return entry


PROMPTS = Registry(
    "prompt",
    {
        "padding": "clipvp.prompts.base:PaddingPrompt",
        "border": "clipvp.prompts.base:BorderPrompt",
        "patch": "clipvp.prompts.base:PatchPrompt",
        "full": "clipvp.prompts.base:FullPrompt",
        "none": "clipvp.prompts.base:NoPrompt",
    },
)
MAPPINGS = Registry(
    "mapping",
    {
        "random": "clipvp.mappings.base:RandomMapping",
        "frequency": "clipvp.mappings.base:FrequencyMapping",
        "identity": "clipvp.mappings.base:IdentityMapping",
    },
)
AUGMENTATIONS = Registry(
    "augmentation",
    {
        "none": "clipvp.data.augment.basic:none",
        "flip": "clipvp.data.augment.basic:flip",
        "crop_flip": "clipvp.data.augment.basic:crop_flip",
        "trivial": "clipvp.data.augment.trivial:trivial",
    },
)
SOURCES = Registry(
    "source scheme",
    {
        "timm": "clipvp.sources.closed:load_timm",
        "hf": "clipvp.sources.hf:load_hf",
        "open_clip": "clipvp.sources.open_clip:load_open_clip",
        "offline": "clipvp.sources.offline:load_offline",
    },
)
TASKS = Registry(
    "task",
    {
        "digits": "clipvp.data.loaders.embedded:load_digits",
        "mnist5k": "clipvp.data.loaders.embedded:load_mnist5k",
        "abide": "clipvp.data.loaders.abide:load_abide",
        **dict.fromkeys(
            (  # those of clipvp.data.catalog
                *("flowers102", "dtd", "ucf101", "food101", "gtsrb", "eurosat", "oxfordpets", "stanfordcars"),
                *("sun397", "cifar10", "cifar100", "svhn", "caltech101", "fgvc_aircraft", "resisc45"),
                *("imagenet", "imagenet_v2", "imagenet_sketch", "imagenet_a", "imagenet_r"),
            ),
            "clipvp.data.loaders.registered:load_registered",
        ),
    },
)
