"""Class names that a user gives: a list, a map, or a file of either."""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Mapping, Sequence
from pathlib import Path

from ..files import read_text
from ..registry import UserError, nearest

_NUMBERED = re.compile(r"(.+) \(\d+\)")
Names = str | Sequence[str] | Mapping[str, str]


def read_names(key: str, given: Names) -> list[str] | dict[str, str]:
    """Return names as a list or a map; a text is the path of a file.

    Args:
        key: The config key, for messages.
        given: A list of names, a map of a class to its name, or the path of a YAML or JSON file with one of them, or of
            a text file with one name a line.

    Raises:
        UserError: The file cannot be read, or holds something else.
    """
    if isinstance(given, Mapping):
        return {str(name): str(text) for name, text in given.items()}
    if not isinstance(given, str):
        return [str(name) for name in given]
    path = Path(given).expanduser()
    if path.suffix.lower() not in (".txt", ".yaml", ".yml", ".json"):
        raise UserError(
            f"{key}: {given!r} is no file of names; give a list, a map, or a .txt, .yaml or .json file"
        )
    try:
        text = read_text(path)
    except (OSError, UnicodeDecodeError) as error:
        raise UserError(
            f"{key}: {given} cannot be read: {getattr(error, 'strerror', None) or error}"
        ) from error
    if path.suffix.lower() == ".txt":
        return [line.strip() for line in text.splitlines() if line.strip()]
    import yaml

    try:
        value = yaml.load(text, yaml.BaseLoader)  # every value as the text that is written there
    except yaml.YAMLError as error:
        raise UserError(f"{key}: {given} is damaged: {' '.join(str(error).split())}") from error
    if isinstance(value, list) and all(isinstance(name, str) for name in value):
        return value
    if isinstance(value, dict) and all(isinstance(name, str) for name in value.values()):
        return value
    raise UserError(f"{key}: {given} holds neither a list of names nor a map of classes to names")


def distinct_names(names: Sequence[str]) -> list[str]:
    """Return names with its place added to each that is there more than once.

    >>> distinct_names(["missile", "crane", "missile"])
    ['missile (0)', 'crane', 'missile (2)']
    """
    count = Counter(names)
    return [f"{name} ({place})" if count[name] > 1 else name for place, name in enumerate(names)]


def without_numbers(names: Sequence[str]) -> list[str]:
    """Return names without what ``distinct_names`` has added."""
    found = [_NUMBERED.fullmatch(name) for name in names]
    count = Counter(match[1] for match in found if match)
    return [
        match[1] if match and count[match[1]] > 1 else name for match, name in zip(found, names, strict=True)
    ]


def rename_classes(class_names: Sequence[str], given: Names) -> tuple[list[str], list[int] | None]:
    """Return class names with what ``data.class_names`` says in their place, and their order where that changes.

    - A map renames the classes that it has.
    - A list names classes that are numbers: number n is at place n, or n - 1 where the numbers count from 1 to the
      length of the list. A list of the class names themselves sets their order.

    Returns:
        The names; and for each of them the place of its class in ``class_names``, None where the order is the same.

    Raises:
        UserError: The names do not fit the classes.
    """
    key, names = "data.class_names", read_names("data.class_names", given)
    if isinstance(names, dict):
        unknown = [name for name in names if name not in class_names]
        if unknown and not set(class_names) <= names.keys():
            raise UserError(f"{key}: there is no class {unknown[0]!r}; {nearest(unknown[0], class_names)}")
        return [names.get(name, name) for name in class_names], None
    if all(name.isdecimal() for name in class_names):
        numbers = [int(name) for name in class_names]
        start = int(max(numbers) == len(names) and min(numbers) > 0)
        if max(numbers) - start >= len(names):
            raise UserError(
                f"{key}: {len(names)} names for labels from {min(numbers)} to {max(numbers)}; give one name a label"
            )
        return [names[number - start] for number in numbers], None
    if sorted(names) != sorted(class_names):
        other = next((name for name in names if name not in class_names), f"{len(names)} names")
        raise UserError(
            f"{key}: the classes have names, so a list may only order them, and {other!r} is not one of them; "
            f"{nearest(other, class_names)}; to rename give a map"
        )
    return list(names), [list(class_names).index(name) for name in names]
