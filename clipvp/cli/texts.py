"""``clipvp texts``: which texts each class has, what was left out, what the mapping leans on, and which are alike."""

from __future__ import annotations

import textwrap
from collections import Counter
from collections.abc import Callable, Sequence
from typing import Any

from tabulate import tabulate

from ..labels.space import LabelSpace
from ..presets import is_config
from ..registry import UserError

_SHOWN = 5  # pairs of classes, and texts that were left out


def describe(prompt: str, wanted: str | None, **where: Any) -> dict[str, Any]:
    """Return what is known of the texts of a saved prompt, or of a config, ready for JSON.

    Args:
        prompt: Folder or hub id of a saved prompt, or a config: a file, or the name of one of the package.
        wanted: A class, whose texts are listed whole; the counts of all classes when None.
        where: As ``PromptedClassifier.from_pretrained`` takes it, for a prompt.

    Raises:
        UserError: The source has a closed label set, or there is no such class.
    """
    source, weights_of, surplus, note = _of_config(prompt) if is_config(prompt) else _of_prompt(prompt, where)
    labels = source.labels
    if not labels.is_text:
        raise UserError(f"{prompt!r}: source {source.name!r} has a closed label set and no texts")
    names = list(labels.class_names)
    if wanted is not None and wanted not in names:
        from ..registry import check_choice

        check_choice("--class", wanted, names)
    own: list[list[int]] = [[] for _ in names]
    for place, owner in enumerate(labels.class_of):
        own[owner].append(place)
    rows = []
    for target, (name, places) in enumerate(zip(names, own, strict=True)):
        row: dict[str, Any] = {"class": name, "texts": len(places)}
        if labels.groups:
            row["groups"] = dict(Counter(labels.groups[place] for place in places))
        weights = weights_of(target, places) if weights_of else None
        if weights and max(weights):
            most = max(weights)
            row |= {"most weight": labels.names[places[weights.index(most)]], "weight": round(most, 6)}
        if name == wanted:
            given: Sequence[float | None] = weights or [None] * len(places)
            row["all"] = [_text(labels, *pair) for pair in zip(places, given, strict=True)]
        rows.append(row)
    return {
        "classes": [row for row in rows if wanted in (None, row["class"])],
        "left out": [text._asdict() for text in labels.left_out if wanted in (None, text.class_name)],
        "classes that the task does not have": list(surplus),
        "most alike": [] if wanted else _alike(source, names),
        "no weights": note,
    }


def _text(labels: LabelSpace, place: int, weight: float | None) -> dict[str, Any]:
    row: dict[str, Any] = {"text": labels.names[place]}
    if labels.groups:
        row["group"] = labels.groups[place]
    if weight is not None:
        row["weight"] = round(weight, 6)
    return row


def _of_prompt(
    prompt: str, where: dict[str, Any]
) -> tuple[Any, Callable[[int, list[int]], list[float]] | None, Sequence[str], str | None]:
    """Return the source of a prompt, and the weights of some labels in a class's logit, or why there are none."""
    from ..model import PromptedClassifier

    classifier = PromptedClassifier.from_pretrained(prompt, **where)
    links = classifier.mapping.links(len(classifier.source.labels))
    if not (links.index >= 0).any():
        return classifier.source, None, [], classifier.mapping.why_no_links

    def weights(target: int, places: list[int]) -> list[float]:
        linked = links.index[target] >= 0
        row = links.weight.new_zeros(len(classifier.source.labels))
        row[links.index[target][linked]] = links.weight[target][linked]
        return row[places].tolist()

    return classifier.source, weights, [], None


def _of_config(name: str) -> tuple[Any, None, Sequence[str], None]:
    from ..build import source_from_config, text_bank, text_label_space
    from ..config.parse import parse
    from ..data.task import load_task
    from ..labels.templates import text_class_names

    config, _ = parse("", arguments=["--config", name])
    names = load_task(config.data, seed=config.seed).class_names
    source = source_from_config(config.source, lambda: text_label_space(config.mapping, names, config.seed))
    if config.mapping.texts is None or not source.labels.is_text:
        return source, None, [], None
    bank = text_bank(config.mapping, text_class_names(names, config.mapping.class_names), config.seed)
    return source, None, bank.surplus, None


def _alike(source: Any, names: Sequence[str]) -> list[dict[str, Any]]:
    """Return the pairs of classes whose mean texts have the largest cosine."""
    import torch

    from ..mappings.linear import class_texts

    if not source.has_logits or len(names) < 2:
        return []
    means = class_texts(source)
    cosines = (means @ means.T).triu(1) - 2 * torch.ones(len(names), len(names)).tril()
    values, places = cosines.flatten().topk(min(_SHOWN, len(names) * (len(names) - 1) // 2))
    return [
        {"classes": [names[place // len(names)], names[place % len(names)]], "cosine": round(value, 4)}
        for value, place in zip(values.tolist(), places.tolist(), strict=True)
    ]


def as_text(found: dict[str, Any]) -> str:
    """Return what ``describe`` found for a terminal."""
    rows, parts = found["classes"], []
    if "all" in rows[0]:
        parts.append(tabulate(rows[0]["all"], headers="keys", maxcolwidths=[90], disable_numparse=True))
    else:
        table = [
            {
                "class": row["class"],
                "texts": row["texts"],
                **(
                    {"groups": ", ".join(f"{k} {v}" for k, v in row["groups"].items())}
                    if "groups" in row
                    else {}
                ),
                **(
                    {"most weight": row["most weight"], "weight": f"{row['weight']:.3f}"}
                    if "weight" in row
                    else {}
                ),
            }
            for row in rows
        ]
        parts.append(tabulate(table, headers="keys", disable_numparse=True, missingval="-"))
    if found["no weights"]:
        parts.append(f"weights: none, {found['no weights']}")
    if found["left out"]:
        lines = [
            f"  {text['class_name']}: {textwrap.shorten(text['text'], 70, placeholder=' ...')!r} ({text['why']})"
            for text in found["left out"]
        ]
        parts.append("\n".join([f"texts that are left out: {len(lines)}", *lines]))
    if surplus := found["classes that the task does not have"]:
        parts.append(f"classes of the files that the task does not have: {', '.join(surplus)}")
    if found["most alike"]:
        pairs = [f"  {' and '.join(pair['classes'])}  {pair['cosine']:.3f}" for pair in found["most alike"]]
        parts.append("\n".join(["classes whose texts are most alike (cosine of their means):", *pairs]))
    return "\n\n".join(parts)
