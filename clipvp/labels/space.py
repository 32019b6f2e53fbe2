"""Label spaces: the ordered list of what a source model can score.

A closed label set is a list of names. A label space of text also knows the class of each text, its template or
description, and its group.
"""

from __future__ import annotations

from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass, field, replace
from functools import cached_property
from typing import Any, NamedTuple

from ..notebook import html_table
from ..registry import UserError


class Dropped(NamedTuple):
    """A text that was left out, the class it stood for, and why."""

    class_name: str
    text: str
    why: str


@dataclass(frozen=True)
class LabelSpace:
    """The source labels, in the order of the source logits.

    Args:
        names: S strings that people can read; for text, the texts themselves.
        class_names: For text, the T class names as the texts spell them; else empty.
        class_of: For text, the class of each of the S texts, 0..T-1, one or more texts a class; else empty.
        wordings: For text, the distinct templates, each with one ``{}``, and descriptions; else empty.
        wording_of: For text, the wording of each of the S texts; else empty.
        groups: For text in named groups, the group of each of the S texts; else empty.
        left_out: Texts that are not part of it, with the reason, for people.
    """

    names: tuple[str, ...]
    class_names: tuple[str, ...] = ()
    class_of: tuple[int, ...] = ()
    wordings: tuple[str, ...] = ()
    wording_of: tuple[int, ...] = ()
    groups: tuple[str, ...] = ()
    left_out: tuple[Dropped, ...] = field(default=(), compare=False, repr=False)

    def __post_init__(self) -> None:
        size = len(self.names)
        if self.class_names and not len(self.class_of) == len(self.wording_of) == size:
            raise ValueError(f"{size} texts need a class and a wording each")
        if self.class_names and set(self.class_of) != set(range(len(self.class_names))):
            raise ValueError("each class needs one text or more, and each text a class")
        if not all(0 <= wording < len(self.wordings) for wording in self.wording_of):
            raise ValueError(f"each text needs one of the {len(self.wordings)} wordings")
        if self.groups and len(self.groups) != size:
            raise ValueError(f"{size} texts need a group each, got {len(self.groups)}")

    def __len__(self) -> int:
        return len(self.names)

    @property
    def is_text(self) -> bool:
        return bool(self.class_names)

    def _repr_html_(self) -> str:
        if not self.is_text:
            return html_table(f"{len(self)} source labels", enumerate(self.names))
        title = f"{len(self)} texts of {len(self.class_names)} classes, {len(self.wordings)} wordings"
        rows = [
            (self.class_names[target], name) for name, target in zip(self.names, self.class_of, strict=True)
        ]
        return html_table(title, rows, ["class", "text"])

    @cached_property
    def is_grid(self) -> bool:
        """Whether the texts are every template filled with every class name, template-major."""
        count = len(self.class_names)
        return (
            self.is_text
            and not self.groups
            and len(self.names) == count * len(self.wordings)
            and all(wording.count("{}") == 1 for wording in self.wordings)
            and self.class_of == tuple(range(count)) * len(self.wordings)
            and self.wording_of == tuple(w for w in range(len(self.wordings)) for _ in range(count))
        )

    @property
    def templates(self) -> tuple[str, ...]:
        """The templates of a grid of texts; empty for any other label space."""
        return self.wordings if self.is_grid else ()

    @classmethod
    def from_templates(cls, templates: Sequence[str], class_names: Sequence[str]) -> LabelSpace:
        """Return the label space of every template filled with every class name, template-major.

        Label ``template * T + class`` is ``templates[template]`` filled with ``class_names[class]``.

        Raises:
            UserError: A template does not hold exactly one ``{}``, or a class name is empty.
        """
        _check_class_names(class_names)
        for template in templates:
            if template.count("{}") != 1:
                raise UserError(f"template {template!r} needs exactly one {{}} for the class name")
        return cls(
            tuple(template.replace("{}", name) for template in templates for name in class_names),
            tuple(class_names),
            tuple(range(len(class_names))) * len(templates),
            tuple(templates),
            tuple(index for index in range(len(templates)) for _ in class_names),
        )

    @classmethod
    def from_texts(
        cls, texts: Mapping[str, Sequence[str]], groups: Mapping[str, Sequence[str]] | None = None
    ) -> LabelSpace:
        """Return the label space of texts that are given class by class, any number a class.

        Args:
            texts: Class name to its texts, in the order of the classes. A text with ``{}`` is a template, which the
                class name fills.
            groups: Class name to the group of each of its texts; no groups when None.

        Raises:
            UserError: A class name is empty, or a class has no text or no group for one of its texts.

        >>> labels = LabelSpace.from_texts({"cat": ["a photo of a {}.", "It purrs."], "dog": ["a photo of a {}."]})
        >>> labels.names, labels.class_of
        (('a photo of a cat.', 'It purrs.', 'a photo of a dog.'), (0, 0, 1))
        """
        _check_class_names(list(texts))
        wordings = list(dict.fromkeys(text for own in texts.values() for text in own))
        place = {wording: index for index, wording in enumerate(wordings)}
        names: list[str] = []
        class_of: list[int] = []
        wording_of: list[int] = []
        group_of: list[str] = []
        for index, (name, own) in enumerate(texts.items()):
            if not own or not all(text.strip() for text in own):
                raise UserError(f"class {name!r} has {'an empty text' if own else 'no texts'}")
            if groups is not None and len(groups.get(name, ())) != len(own):
                raise UserError(f"class {name!r} has {len(own)} texts and {len(groups.get(name, ()))} groups")
            names += [text.replace("{}", name) for text in own]
            class_of += [index] * len(own)
            wording_of += [place[text] for text in own]
            group_of += groups[name] if groups is not None else []
        return cls(
            tuple(names), tuple(texts), tuple(class_of), tuple(wordings), tuple(wording_of), tuple(group_of)
        )

    def without(self, texts: Collection[str]) -> LabelSpace:
        """Return the label space without some of its texts, which are too long for the model.

        Raises:
            UserError: A class would have no text left, or none of a group of which it has texts now.
        """
        kept = [place for place, text in enumerate(self.names) if text not in texts]
        groups = self.groups or ("",) * len(self)
        left = {(self.class_of[place], groups[place]) for place in kept}
        for target, group in zip(self.class_of, groups, strict=True):
            if (target, group) not in left:
                of_group = f" of the group {group!r}" if group else ""
                raise UserError(
                    f"class {self.class_names[target]!r} has no text{of_group} that is short enough for the model"
                )
        gone = [place for place, text in enumerate(self.names) if text in texts]
        dropped = [
            Dropped(self.class_names[self.class_of[i]], self.names[i], "longer than the model's context")
            for i in gone
        ]
        return LabelSpace(
            tuple(self.names[place] for place in kept),
            self.class_names,
            tuple(self.class_of[place] for place in kept),
            self.wordings,
            tuple(self.wording_of[place] for place in kept),
            tuple(self.groups[place] for place in kept) if self.groups else (),
            (*self.left_out, *dropped),
        )

    def to_dict(self) -> dict[str, Any]:
        """Return the texts ready for JSON; a grid by its templates and class names. Empty for a closed label set."""
        if not self.is_text:
            return {}
        left_out = {"left_out": [list(text) for text in self.left_out]} if self.left_out else {}
        if self.is_grid:
            return {"class_names": list(self.class_names), "templates": list(self.wordings), **left_out}
        fields = ("class_names", "class_of", "wordings", "wording_of", "groups")
        return {name: list(getattr(self, name)) for name in fields} | left_out

    @classmethod
    def from_dict(cls, values: dict[str, Any]) -> LabelSpace:
        """Return the label space of text that ``to_dict`` gave.

        Raises:
            UserError: The values do not describe texts.
        """
        try:
            left_out = tuple(Dropped(*map(str, text)) for text in values.get("left_out", ()))
            if "templates" in values:
                return replace(
                    cls.from_templates(values["templates"], values["class_names"]), left_out=left_out
                )
            class_names, class_of, wordings, wording_of, groups = (
                tuple(values[name])
                for name in ("class_names", "class_of", "wordings", "wording_of", "groups")
            )
            pairs = zip(class_of, wording_of, strict=True)
            _check_class_names(class_names)
            names = tuple(wordings[wording].replace("{}", class_names[target]) for target, wording in pairs)
            return cls(names, class_names, class_of, wordings, wording_of, groups, left_out)
        except UserError:
            raise
        except (KeyError, IndexError, TypeError, ValueError, AttributeError) as error:
            raise UserError(f"the label space is not one of texts: {error or error!r}") from error


def _check_class_names(class_names: Sequence[str]) -> None:
    if isinstance(class_names, str):
        raise UserError(f"the class names are the text {class_names!r}; give a list of names")
    for name in class_names:
        if not name.strip():
            raise UserError(f"class name {name!r} is empty")


def unique_names(names: Sequence[str], details: Sequence[str]) -> tuple[str, ...]:
    """Return ``names`` with the detail added in brackets to each name that occurs more than once."""
    count: dict[str, int] = {}
    for name in names:
        count[name] = count.get(name, 0) + 1
    return tuple(
        f"{name} ({detail})" if count[name] > 1 else name for name, detail in zip(names, details, strict=True)
    )
