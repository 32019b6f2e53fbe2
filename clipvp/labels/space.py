"""Label spaces: the ordered list of what a source model can score.

A closed label set is a list of names. A label space made of text is every template times every class
name, and knows which class and which template each of its labels is.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from ..registry import UserError


@dataclass(frozen=True)
class LabelSpace:
    """The source labels, in the order of the source logits.

    Args:
        names: S strings that people can read.
        class_names: For text, the T class names that the templates were filled with; else empty.
        templates: For text, the templates, each with one ``{}``; else empty. Label
            ``template * T + class`` is ``templates[template]`` filled with ``class_names[class]``.
    """

    names: tuple[str, ...]
    class_names: tuple[str, ...] = ()
    templates: tuple[str, ...] = ()

    def __post_init__(self):
        if self.templates and len(self.names) != len(self.templates) * len(self.class_names):
            raise ValueError(
                f"{len(self.names)} labels are not {len(self.templates)} templates x {len(self.class_names)} classes"
            )

    def __len__(self) -> int:
        return len(self.names)

    @property
    def is_text(self) -> bool:
        return bool(self.templates)

    @classmethod
    def from_templates(cls, templates: Sequence[str], class_names: Sequence[str]) -> LabelSpace:
        """Return the label space of every template filled with every class name, template-major.

        Raises:
            UserError: A template does not hold exactly one ``{}``, a class name is empty or there twice.
        """
        if isinstance(class_names, str):
            raise UserError(f"the class names are the text {class_names!r}; give a list of names")
        for name in class_names:
            if not name.strip() or class_names.count(name) > 1:
                raise UserError(f"class name {name!r} is {'given twice' if name.strip() else 'empty'}")
        for template in templates:
            if template.count("{}") != 1:
                raise UserError(f"template {template!r} needs exactly one {{}} for the class name")
        names = tuple(template.replace("{}", name) for template in templates for name in class_names)
        return cls(names, tuple(class_names), tuple(templates))

    def class_of(self, label: int) -> int:
        """Return the index of the class whose name stands in a text label."""
        return label % len(self.class_names)

    def template_of(self, label: int) -> int:
        """Return the index of the template of a text label."""
        return label // len(self.class_names)


def unique_names(names: Sequence[str], details: Sequence[str]) -> tuple[str, ...]:
    """Return ``names`` with the detail added in brackets to each name that occurs more than once."""
    count: dict[str, int] = {}
    for name in names:
        count[name] = count.get(name, 0) + 1
    return tuple(
        f"{name} ({detail})" if count[name] > 1 else name for name, detail in zip(names, details, strict=True)
    )
