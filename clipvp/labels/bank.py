"""A bank of texts: descriptions of each class, from files, cleaned and counted."""

from __future__ import annotations

import csv
import io
import json
import re
import warnings
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from importlib.resources import files
from pathlib import Path
from typing import NamedTuple

import numpy as np

from ..files import read_text
from ..registry import UserError, nearest
from .space import LabelSpace

SHORTEST = 20  # characters of a text without punctuation, as AttrVR's code has it (arXiv 2501.13982)
WAFFLE, WAFFLE_TEXTS = "waffle", 15
_ENDS = (".", "!", "?", '"', "'", ")")
_STREAM = 0xBA2C  # keeps the draws apart from other numbers of the same seed
_HOME = "descriptions"
_SHOWN = 3  # names in a message
# Words of the control: they say nothing of a class.
_WORDS = re.findall(
    r"\w+",
    """
anchor apple arch basket bell blanket bottle branch brick bridge brush bucket button candle carpet chain chair chalk
circle clock cloud coal coin copper corner cotton crown cup curtain desk dice door drum dust engine fabric feather
fence flame fog fork frame glass glove gravel hammer handle hinge honey hook ink iron jar kettle key knot ladder
lamp leather lid lock map marble mirror nail needle net oil paint paper pebble pencil pepper pillow pipe plank plate
pocket pump ribbon ring rope rubber salt sand scale screw shelf shell silk smoke soap spoon spring stamp steam steel
string sugar table tape thread tile towel tray tube wax wheel whistle wire wool
""",
)


class Dropped(NamedTuple):
    """A text that was left out, the class it stood for, and why."""

    class_name: str
    text: str
    why: str


@dataclass
class Bank:
    """The texts of each class.

    Args:
        texts: Class name to its texts.
        groups: Class name to the group of each of its texts; "" where texts have no groups.
        dropped: What was left out.
        surplus: Classes of the files that the task does not have.
    """

    texts: dict[str, list[str]]
    groups: dict[str, list[str]]
    dropped: list[Dropped] = field(default_factory=list)
    surplus: list[str] = field(default_factory=list)

    def label_space(self) -> LabelSpace:
        """Return the texts as a label space, class by class."""
        named = any(group for own in self.groups.values() for group in own)
        return LabelSpace.from_texts(self.texts, self.groups if named else None)

    def warn(self, surplus: bool = True) -> None:
        """Say in one warning what was left out, and which classes are surplus, if that is asked for."""
        parts = []
        if self.dropped:
            total = len(self.dropped) + sum(map(len, self.texts.values()))
            reasons = Counter(text.why for text in self.dropped)
            said = ", ".join(f"{count} {why}" for why, count in reasons.most_common())
            parts.append(f"{len(self.dropped)} of {total} texts are left out ({said})")
        if self.surplus and surplus:
            parts.append(f"the task does not have the classes {_few(self.surplus)}")
        if parts:
            warnings.warn(f"mapping.texts: {'; '.join(parts)}; `clipvp texts` lists them", stacklevel=3)


def bank_names() -> list[str]:
    """Return the names of the banks that are part of the package."""
    home = files(__package__) / _HOME
    return sorted([WAFFLE, *(folder.name for folder in home.iterdir() if folder.is_dir())])


def read_bank(
    given: str | Mapping[str, str],
    class_names: Sequence[str],
    *,
    templates: Sequence[str] = (),
    per_class: int | None = None,
    seed: int = 0,
) -> Bank:
    """Return the texts of a task's classes.

    A file is JSON, an object of class names and lists of texts, or CSV with the columns class and text. Class names
    are matched without case, punctuation, hyphens and underscores. Empty texts are left out. Where at least half of
    a file's texts end with a punctuation mark, those without one are left out as cut off; in other files, those of
    fewer than 20 characters.

    Args:
        given: A file; a folder of files, or a map of group names to files, each of which is a group; or one of
            ``bank_names()``.
        class_names: The T names that the texts' classes are matched with.
        templates: Further texts of every class, with one ``{}``, in a group ``templates``.
        per_class: Texts drawn of each class and group, where it has more; all when None.
        seed: Of the draw, which moves no other random state.

    Raises:
        UserError: A file cannot be read, or lacks a class or has no text for it.
    """
    if len(set(class_names)) < len(class_names):
        same = next(name for name in class_names if list(class_names).count(name) > 1)
        raise UserError(f"mapping.texts: two classes are named {same!r}; mapping.class_names gives others")
    if given == WAFFLE:
        own = _waffle(per_class or WAFFLE_TEXTS, seed)
        bank = Bank(
            {name: list(own) for name in class_names}, {name: [""] * len(own) for name in class_names}
        )
    else:
        bank = Bank({name: [] for name in class_names}, {name: [] for name in class_names})
        for place, (group, path) in enumerate(_files(given).items()):
            _add_file(bank, group, path, per_class, np.random.default_rng([seed % 2**64, _STREAM, place]))
    for name in class_names if templates else ():
        bank.texts[name] += templates
        bank.groups[name] += ["templates"] * len(templates)
    return bank


def _files(given: str | Mapping[str, str]) -> dict[str, Path]:
    """Return the files by group; the group of a single file is the empty text."""
    if isinstance(given, Mapping):
        if not given:
            raise UserError("mapping.texts: the map is empty; give {GROUP: FILE, ...}")
        return {str(group): Path(path).expanduser() for group, path in given.items()}
    path = Path(given).expanduser()
    if given in bank_names():
        path = Path(str(files(__package__) / _HOME / given))
    if path.is_dir():
        found = {file.stem: file for file in sorted(path.iterdir()) if file.suffix in (".json", ".csv")}
        if not found:
            raise UserError(f"mapping.texts: the folder {given!r} holds no .json or .csv file")
        return found
    if path.suffix.lower() not in (".json", ".csv"):
        raise UserError(
            f"mapping.texts: {given!r} is no .json or .csv file and no folder; {nearest(given, bank_names())}"
        )
    return {"": path}


def _read(path: Path) -> dict[str, list[str]]:
    """Return the texts by class of one file."""
    where = f"mapping.texts: {str(path)!r}"
    try:
        text = read_text(path)
    except (OSError, UnicodeDecodeError) as error:
        raise UserError(f"{where} cannot be read: {getattr(error, 'strerror', None) or error}") from error
    if path.suffix.lower() == ".csv":
        rows = csv.DictReader(io.StringIO(text))
        columns = rows.fieldnames or []
        if not {"class", "text"} <= set(columns):
            raise UserError(f"{where} has the columns {', '.join(columns)}; it needs class and text")
        found: dict[str, list[str]] = {}
        for row in rows:
            found.setdefault(row["class"] or "", []).append(row["text"] or "")
        return found
    try:
        value = json.loads(text)
    except (ValueError, RecursionError) as error:
        raise UserError(f"{where} is damaged: {error}") from error
    if not isinstance(value, dict) or not all(
        isinstance(texts, list) and all(isinstance(text, str) for text in texts) for texts in value.values()
    ):
        raise UserError(f"{where} is not an object of class names and lists of texts")
    return value


def _add_file(
    bank: Bank, group: str, path: Path, per_class: int | None, numbers: np.random.Generator
) -> None:
    """Add the texts of one file as a group, matched, cleaned and drawn."""
    found, where = _read(path), f"mapping.texts: {str(path)!r}"
    by_key: dict[str, str] = {}
    for name in found:
        other = by_key.setdefault(_key(name), name)
        if other != name:
            raise UserError(f"{where} has the classes {other!r} and {name!r}, which are the same class here")
    missing = [name for name in bank.texts if _key(name) not in by_key]
    if missing:
        hint = nearest(missing[0], list(found)) if found else "the file holds no class"
        raise UserError(f"{where} has no texts of {_few(missing)}; {hint}")
    wanted = {_key(name) for name in bank.texts}
    surplus = [name for key, name in by_key.items() if key not in wanted]
    bank.surplus += [name for name in surplus if name not in bank.surplus]
    texts = [text.strip() for own in found.values() for text in own]
    ended = sum(text.endswith(_ENDS) for text in texts if text)
    has_ends = 2 * ended >= len([text for text in texts if text])
    for name, own in bank.texts.items():
        kept = []
        for text in found[by_key[_key(name)]]:
            text, why = " ".join(text.split()), None
            if not text:
                why = "empty"
            elif text in kept:
                why = "given twice"
            elif has_ends and not text.endswith(_ENDS):
                why = "cut off"
            elif not has_ends and len(text) < SHORTEST:
                why = f"shorter than {SHORTEST} characters"
            if why:
                bank.dropped.append(Dropped(name, text, why))
            else:
                kept.append(text)
        if not kept:
            raise UserError(f"{where} has no text that can be used for {name!r}")
        if per_class is not None and len(kept) > per_class:
            kept = [kept[index] for index in sorted(numbers.choice(len(kept), per_class, replace=False))]
        own += kept
        bank.groups[name] += [group] * len(kept)


def _key(name: str) -> str:
    """Return what is compared of a class name."""
    return re.sub(r"[\W_]+", " ", name.casefold()).strip()


def _few(names: Sequence[str]) -> str:
    shown = ", ".join(map(repr, names[:_SHOWN]))
    return shown + (f" and {len(names) - _SHOWN} more" if len(names) > _SHOWN else "")


def _waffle(count: int, seed: int) -> list[str]:
    """Return templates with random words and random letters, the same for every class.

    Source: WaffleCLIP (arXiv 2306.07282), where the words are in the place of what a language model would say.
    """
    numbers = np.random.default_rng([seed % 2**64, _STREAM])
    texts: list[str] = []
    while len(texts) < count:
        words = " ".join(_WORDS[place] for place in numbers.integers(len(_WORDS), size=2))
        if len(texts) % 2:
            words = "".join(chr(ord("a") + letter) for letter in numbers.integers(26, size=8))
        text = f"A photo of a {{}}, which has {words}."
        texts += [text] * (text not in texts)
    return texts
