"""Text templates by the name of a set, and class names cleaned for use in templates."""

from __future__ import annotations

import re
import warnings
from collections.abc import Sequence
from functools import cache
from importlib.resources import files

from ..cpu import import_open_clip
from ..files import read_text
from ..registry import UserError, check_choice
from .names import Names, read_names, without_numbers

# Sets by task, as published with CLIP (Radford et al. 2021, arXiv 2103.00020). {a|b} means one template with each word.
_TASKS: dict[str, tuple[str, ...]] = {
    "caltech101": tuple(
        f"{kind} {{a|the}} {{}}."
        for kind in (
            "a photo of",
            "a painting of",
            "a sculpture of",
            "a sketch of",
            "a tattoo of",
            "a rendition of",
            "art of",
            "graffiti of",
            "a drawing of",
            "a doodle of",
        )
    )
    + tuple(
        f"{{a|the}} {kind} {{}}."
        for kind in ("plastic", "toy", "embroidered", "cartoon", "plushie", "origami")
    )
    + ("{a|the} {} in a video game.",),
    "cifar10": tuple(
        f"{kind} {{a|the}} {{}}."
        for kind in (
            "a photo of",
            "a blurry photo of",
            "a black and white photo of",
            "a low contrast photo of",
            "a high contrast photo of",
            "a bad photo of",
            "a good photo of",
        )
    )
    + ("a photo of {a|the} small {}.", "a photo of {a|the} big {}."),
    "dtd": tuple(f"a photo of {{a|the}} {{}} {noun}." for noun in ("texture", "pattern", "thing", "object")),
    "eurosat": (
        "a centered satellite photo of {}.",
        "a centered satellite photo of {a|the} {}.",
    ),
    "fgvc_aircraft": ("a photo of {a|the} {}, a type of aircraft.",),
    "flowers102": ("a photo of a {}, a type of flower.",),
    "food101": ("a photo of {}, a type of food.",),
    "gtsrb": (
        'a zoomed in photo of a "{}" traffic sign.',
        'a centered photo of a "{}" traffic sign.',
        'a close up photo of a "{}" traffic sign.',
    ),
    "mnist": ('a photo of the number: "{}".',),
    "oxford_pets": ("a photo of a {}, a type of pet.",),
    "resisc45": tuple(
        f"{kind} of {article}{{}}."
        for article in ("", "a ", "the ")
        for kind in (
            "satellite imagery",
            "aerial imagery",
            "satellite photo",
            "aerial photo",
            "satellite view",
            "aerial view",
        )
    ),
    "stanford_cars": (
        "a photo of {a|the|my} {}.",
        "i love my {}!",
        "a photo of my dirty {}.",
        "a photo of my clean {}.",
        "a photo of my new {}.",
        "a photo of my old {}.",
    ),
    "sun397": ("a photo of {a|the} {}.",),
    "ucf101": tuple(
        f"a {kind} of {{a|the}} person {verb}{{}}."
        for verb in ("", "using ", "doing ", "during ", "performing ", "practicing ")
        for kind in ("photo", "video", "example", "demonstration")
    ),
}
_ALIASES = {"cifar100": "cifar10"}
PAPER_FIRST = "This is a photo of a {}."


def _expand(pattern: str) -> list[str]:
    """Return the templates of a pattern: one for each choice of the words in {a|b}."""
    choice = re.search(r"\{([^{}]+)\}", pattern)
    if not choice:
        return [pattern]
    words = choice[1].split("|")
    return [
        text for word in words for text in _expand(pattern[: choice.start()] + word + pattern[choice.end() :])
    ]


def template_sets() -> list[str]:
    """Return the names of all template sets."""
    return ["paper", "openai_imagenet", "simple", *sorted([*_TASKS, *_ALIASES])]


@cache
def template_set(name: str) -> tuple[str, ...]:
    """Return a named set of templates.

    ``paper``: "This is a photo of a {}." and OpenAI's 80 templates (ILM-VP); ``openai_imagenet``: the 80;
    ``simple``: the seven best of these; the others: by task, as published with CLIP.

    Raises:
        UserError: An unknown name.
    """
    check_choice("template set", name, template_sets())
    if name in ("paper", "openai_imagenet", "simple"):
        open_clip = import_open_clip()
        functions = (
            open_clip.SIMPLE_IMAGENET_TEMPLATES if name == "simple" else open_clip.OPENAI_IMAGENET_TEMPLATES
        )
        return (PAPER_FIRST,) * (name == "paper") + tuple(function("{}") for function in functions)
    return tuple(text for pattern in _TASKS[_ALIASES.get(name, name)] for text in _expand(pattern))


def resolve_templates(given: str | Sequence[str]) -> tuple[str, ...]:
    """Return templates from the name of a set, a text file with one template per line, one template, or a list.

    Raises:
        UserError: The set or file does not exist, there is no template, a template is given twice, or one does not
            have exactly one ``{}``.
    """
    if isinstance(given, str):
        if "{}" in given:
            templates = [given]
        elif given.endswith(".txt"):
            try:
                lines = read_text(given).splitlines()
            except (OSError, UnicodeDecodeError) as error:
                raise UserError(f"mapping.templates: {given!r} cannot be read: {error}") from error
            templates = [line.strip() for line in lines if line.strip()]
        else:
            templates = list(template_set(given))
    else:
        templates = [str(template) for template in given]
    if not templates:
        raise UserError("mapping.templates is empty; give the name of a set, a list or a text file")
    for template in templates:
        if template.count("{}") != 1:
            raise UserError(f"template {template!r} needs exactly one {{}} for the class name")
        if templates.count(template) > 1:
            raise UserError(f"template {template!r} is given twice")
    return tuple(templates)


_INDEX = re.compile(r"(\d{1,4})[._ -]\s*(?=[A-Za-z])")
_WORDNET = re.compile(r"n\d{8}")


def clean_class_name(name: str) -> str:
    """Return a class name as words in lower case.

    Underscores become spaces, and CamelCase ("AnnualCrop") is split into words; "737-200" and "McLaren" are
    not split.
    """
    text = name.strip().replace("_", " ")
    if re.fullmatch(r"(?:[A-Z][a-z]{2,}){2,}", text):
        text = re.sub(r"(?<=[a-z])(?=[A-Z])", " ", text)
    return " ".join(text.split()).lower()


def without_index(class_names: Sequence[str]) -> list[str]:
    """Return class names without the number that each begins with, where these numbers are an index of the classes.

    They are one if every name has one, they differ, the rest of the names differ too, and they have leading zeros
    ("001.Laysan_Albatross") or count without a gap, from 0 or 1 or over ten classes or more.

    >>> without_index(["0_cat", "1_dog"]), without_index(["20_speed", "30_zone"])
    (['cat', 'dog'], ['20_speed', '30_zone'])
    """
    names = [name.strip() for name in class_names]
    found = [_INDEX.match(name) for name in names]
    if not names or not all(found):
        return names
    digits, rests = (
        [match[1] for match in found],
        [name[match.end() :] for name, match in zip(names, found, strict=True)],
    )
    numbers = sorted({int(text) for text in digits})
    padded = (
        len({len(text) for text in digits}) == 1
        and any(text.startswith("0") for text in digits)
        and len(digits[0]) > 1
    )
    counts = numbers[-1] - numbers[0] == len(names) - 1 and (numbers[0] < 2 or len(names) >= 10)
    differ = len(numbers) == len(names) == len({rest.lower() for rest in rests})
    return rests if differ and (padded or counts) else names


@cache
def _wordnet_names() -> dict[str, str]:
    """Return the first name of each of WordNet's nouns that ImageNet-22k has, by its id."""
    text = files("timm.data").joinpath("_info", "imagenet_synset_to_lemma.txt").read_text(encoding="utf-8")
    pairs = (line.split("\t", 1) for line in text.splitlines() if "\t" in line)
    return {synset: lemmas.split(",")[0].strip() for synset, lemmas in pairs}


def _of_wordnet(class_names: Sequence[str]) -> dict[str, str]:
    """Return the names of the classes that are WordNet ids, such as n01440764, and warn which were taken."""
    found = {
        name: _wordnet_names()[name]
        for name in class_names
        if _WORDNET.fullmatch(name) and name in _wordnet_names()
    }
    if found:
        few = ", ".join(f"{name} is {text!r}" for name, text in list(found.items())[:3])
        more = f" and {len(found) - 3} more" if len(found) > 3 else ""
        warnings.warn(
            f"texts have the names of WordNet ids: {few}{more}; mapping.class_names gives others",
            stacklevel=3,
        )
    return found


def text_class_names(class_names: Sequence[str], override: Names | None = None) -> list[str]:
    """Return the class names to put into templates: clean, without an index, and by name where they are WordNet ids.

    Classes that get the same text are warned of: a CLIP cannot tell them apart.

    Args:
        class_names: The class names of the task.
        override: The names to use instead, which are not changed: a map of classes of the task, a list with one name a
            class, or a file of either.

    Raises:
        UserError: The override does not fit the classes, or a resulting name is empty.
    """
    key = "mapping.class_names"
    given = read_names(key, override or {})
    if isinstance(given, list):
        if len(given) != len(class_names):
            raise UserError(
                f"{key}: {len(given)} names for {len(class_names)} classes; give one name a class, or a map"
            )
        given = dict(zip(class_names, given, strict=True))
    for name in given:
        check_choice(f"{key}, class", name, class_names)
    plain = without_index(without_numbers(class_names))
    given = {**_of_wordnet([name for name in class_names if name not in given]), **given}
    names = [given.get(name, clean_class_name(text)) for name, text in zip(class_names, plain, strict=True)]
    if "" in (cleaned := [name.strip() for name in names]):
        empty = class_names[cleaned.index("")]
        raise UserError(
            f"class {empty!r} has no name to put into a template; set {key}, such as {{{empty!r}: a name}}"
        )
    warn_of_ties(names, class_names)
    return names


def warn_of_ties(names: Sequence[str], class_names: Sequence[str] | None = None) -> None:
    """Warn where classes have the same name, so that their texts are the same.

    Args:
        names: The names in the texts.
        class_names: What the task calls the classes; their numbers when None.
    """
    same: dict[str, list[str]] = {}
    for place, name in enumerate(names):
        same.setdefault(name, []).append(repr(class_names[place]) if class_names else f"{place}")
    if ties := [
        f"{' and '.join(classes)} are both {name!r}" for name, classes in same.items() if len(classes) > 1
    ]:
        more = f"; and {len(ties) - 3} more" if len(ties) > 3 else ""
        warnings.warn(
            f"a CLIP cannot tell classes with the same text apart: {'; '.join(ties[:3])}{more}; mapping.class_names "
            "gives others",
            stacklevel=3,
        )
