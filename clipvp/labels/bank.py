"""A bank of texts: descriptions of each class, from files, cleaned and counted."""

from __future__ import annotations

import hashlib
import re
import statistics
import warnings
from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path

import numpy as np

from ..registry import UserError, nearest
from .space import Dropped, LabelSpace
from .text_files import read_texts, text_files
from .waffle import WAFFLE, WAFFLE_TEXTS, waffle_texts

SHORTEST = 20  # characters of a sentence without punctuation, as AttrVR's code has it (arXiv 2501.13982)
# Characters of a sentence without punctuation, at least; phrases, such as "six petals", have fewer.
PHRASE = 50
_ENDS = (".", "!", "?", '"', "'", ")")
_STREAM = 0xBA2C  # keeps the draws apart from other numbers of the same seed
_SHOWN = 3  # names in a message
# First words of a phrase: with a verb of its own, and of what a class is; before any other, "has" is right.
_VERBS = {"is", "are", "has", "have", "can", "may", "often", "usually", "typically", "sometimes"}
_IS = {"a", "an", "the", "used", "made", "found", "known"}


@dataclass
class Bank:
    """The texts of each class.

    Args:
        texts: Class name to its texts.
        groups: Class name to the group of each of its texts; "" where texts have no groups.
        dropped: What was left out.
        surplus: Classes of the files that the task does not have.
        nameless: Phrases that do not have their class's name.
    """

    texts: dict[str, list[str]]
    groups: dict[str, list[str]]
    dropped: list[Dropped] = field(default_factory=list)
    surplus: list[str] = field(default_factory=list)
    nameless: int = 0

    def label_space(self) -> LabelSpace:
        """Return the texts as a label space, class by class."""
        named = any(group for own in self.groups.values() for group in own)
        space = LabelSpace.from_texts(self.texts, self.groups if named else None)
        return replace(space, left_out=tuple(self.dropped))

    def warn(self, surplus: bool = True) -> None:
        """Say in one warning what was left out, and which classes are surplus, if that is asked for."""
        parts, kept = [], sum(map(len, self.texts.values()))
        if self.nameless:
            parts.append(
                f"{self.nameless} of {kept} texts are phrases without the name of their class, which "
                "mapping.phrase_template adds"
            )
        if self.dropped:
            reasons = Counter(text.why for text in self.dropped)
            said = ", ".join(f"{count} {why}" for why, count in reasons.most_common())
            parts.append(f"{len(self.dropped)} of {len(self.dropped) + kept} texts are left out ({said})")
        if self.surplus and surplus:
            parts.append(f"the task does not have the classes {_few(self.surplus)}")
        if parts:
            warnings.warn(f"mapping.texts: {'; '.join(parts)}; `clipvp texts` lists them", stacklevel=3)


def read_bank(
    given: str | Mapping[str, str],
    class_names: Sequence[str],
    *,
    templates: Sequence[str] = (),
    per_class: int | None = None,
    phrase_template: str | None = None,
    seed: int = 0,
) -> Bank:
    """Return the texts of a task's classes.

    A file is JSON, an object of class names and lists of texts, or CSV with the columns class and text. A class of the
    task is matched with the class of the file that has the same name; else with the one whose name differs in case or
    outer spaces; else in punctuation, hyphens and underscores too.

    Empty and repeated texts are left out. Where at least half of a file's texts end with a punctuation mark, those
    without one are left out as cut off. Other files hold phrases if half of their texts are shorter than 50
    characters; each of them stays. Else they hold sentences without punctuation (AttrVR's files), and those of fewer
    than 20 characters are left out.

    Args:
        given: A file; a folder of files, or a map of group names to files, each of which is a group; or one of
            ``text_files.bank_names()``.
        class_names: The T names that the texts' classes are matched with.
        templates: Further texts of every class, with one ``{}``, in a group ``templates``.
        per_class: Texts drawn of each class and group, where it has more; all when None. Of what is drawn, a source
            leaves out the texts that are too long for it, so fewer may stay.
        phrase_template: What the phrases of files are put into, with one ``{}`` for the class and one ``{text}``;
            "is/has" before ``{text}`` becomes "is", "has" or nothing, as the phrase needs it. A phrase with a ``{}`` of
            its own stays as it is.
        seed: Of the draw, which moves no other random state and does not depend on the other classes.

    Raises:
        UserError: A file cannot be read, or lacks a class or has no text for it; or its classes fit several ways.

    Source: WaffleCLIP (arXiv 2306.07282) for "A photo of a {}, which is/has {text}.".
    """
    if len(set(class_names)) < len(class_names):
        same = next(name for name in class_names if list(class_names).count(name) > 1)
        raise UserError(f"mapping.texts: two classes are named {same!r}; mapping.class_names gives others")
    bank = Bank({name: [] for name in class_names}, {name: [] for name in class_names})
    if given == WAFFLE:
        for name in class_names:
            bank.texts[name] += waffle_texts(per_class or WAFFLE_TEXTS, seed)
            bank.groups[name] += [""] * len(bank.texts[name])
        found: list[bool] = []
    else:
        found = [
            _add_file(bank, group, path, per_class, phrase_template, seed)
            for group, path in text_files(given).items()
        ]
    if phrase_template and not any(found):
        raise UserError(
            "mapping.phrase_template: mapping.texts holds sentences and no phrases; sentences stay as they are"
        )
    for name in class_names if templates else ():
        bank.texts[name] += templates
        bank.groups[name] += ["templates"] * len(templates)
    return bank


def _add_file(
    bank: Bank, group: str, path: Path, per_class: int | None, phrase_template: str | None, seed: int
) -> bool:
    """Add the texts of one file as a group, matched, cleaned and drawn; return whether they are phrases."""
    found, where = read_texts(path), f"mapping.texts: {str(path)!r}"
    class_of = _matched(list(bank.texts), list(found), where)
    bank.surplus += [name for name in found if name not in class_of.values() and name not in bank.surplus]
    texts = [stripped for own in found.values() for text in own if (stripped := text.strip())]
    has_ends = 2 * sum(text.endswith(_ENDS) for text in texts) >= len(texts)
    phrases = not has_ends and statistics.median(map(len, texts)) < PHRASE
    for name, own in bank.texts.items():
        kept: list[str] = []
        for text in found[class_of[name]]:
            text, why = " ".join(text.split()), None
            if not text:
                why = "empty"
            elif text in kept:
                why = "given twice"
            elif has_ends and not text.endswith(_ENDS):
                why = "cut off"
            elif not has_ends and not phrases and len(text) < SHORTEST:
                why = f"shorter than {SHORTEST} characters"
            if why:
                bank.dropped.append(Dropped(name, text, why))
            else:
                kept.append(text)
        if not kept:
            raise UserError(f"{where} has no text that can be used for {name!r}")
        if per_class is not None and len(kept) > per_class:
            numbers = np.random.default_rng([seed % 2**64, _STREAM, _number(f"{group}/{_cleaned(name)}")])
            kept = [kept[index] for index in sorted(numbers.choice(len(kept), per_class, replace=False))]
        if phrases and phrase_template:
            kept = [text if "{}" in text else _in_template(phrase_template, text) for text in kept]
        elif phrases:
            bank.nameless += sum("{}" not in text and _cleaned(name) not in _cleaned(text) for text in kept)
        own += kept
        bank.groups[name] += [group] * len(kept)
    return phrases


def _matched(wanted: Sequence[str], found: Sequence[str], where: str) -> dict[str, str]:
    """Return for each class of the task the class of a file, the most similar spelling first."""
    match: dict[str, str] = {}
    for spell in (_as_it_is, _plain, _cleaned):
        all_wanted, all_found = _by_spelling(wanted, spell), _by_spelling(found, spell)
        for name in (name for name in wanted if name not in match):
            ours, theirs = (names.get(spell(name), []) for names in (all_wanted, all_found))
            if all(other in match.values() for other in theirs):
                continue
            if len(ours) + len(theirs) > 2:
                raise UserError(
                    f"{where}: {_few(theirs)} in the file and {_few(ours)} in the task are too alike; spell the "
                    "classes in the file exactly as the task does"
                )
            match[name] = theirs[0]
    if missing := [name for name in wanted if name not in match]:
        hint = nearest(missing[0], found) if found else "the file holds no class"
        raise UserError(f"{where} has no texts of {_few(missing)}; {hint}")
    return match


def _by_spelling(names: Sequence[str], spell: Callable[[str], str]) -> dict[str, list[str]]:
    """Return the names by spelling, without those of which nothing is left."""
    found: dict[str, list[str]] = {}
    for name in names:
        if spelling := spell(name):
            found.setdefault(spelling, []).append(name)
    return found


def _as_it_is(name: str) -> str:
    return name


def _plain(name: str) -> str:
    return " ".join(name.casefold().split())


def _cleaned(text: str) -> str:
    """Return a name or a text without case and punctuation; nothing is left of an emoji."""
    return re.sub(r"[\W_]+", " ", text.casefold()).strip()


def _number(text: str) -> int:
    """Return a number of a text, the same in every process."""
    return int.from_bytes(hashlib.sha256(text.encode(errors="surrogatepass")).digest()[:8], "little")


def _in_template(template: str, phrase: str) -> str:
    """Return a template with a phrase in it, and the verb that the phrase needs.

    >>> _in_template("A photo of a {}, which is/has {text}.", "six petals")
    'A photo of a {}, which has six petals.'
    """
    first = phrase.split()[0].lower()
    verb = "" if first in _VERBS else "is " if first in _IS else "has "
    return template.replace("is/has {text}", verb + "{text}").replace("{text}", phrase)


def _few(names: Sequence[str]) -> str:
    shown = ", ".join(map(repr, names[:_SHOWN]))
    return shown + (f" and {len(names) - _SHOWN} more" if len(names) > _SHOWN else "")
