"""The model card of a saved prompt: a page made of its config and nothing else, metadata for the hub on top."""

from __future__ import annotations

import re
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Any

from ..files import write_text
from .format import CARD, read_config

PAPER = "https://arxiv.org/abs/2211.11635"
TAGS = ("visual-prompting", "label-mapping")
PICTURES = {
    "prompt": "The prompt, and how far each pixel moved from its start",
    "examples": "Images, and what the source model sees",
    "gallery": "Classes and the source labels they take",
    "confusion": "Confusion of the test images",
}
SCORES = {
    "test.best_val": "test, the prompt that validated best",
    "test.last": "test, the prompt of the last epoch",
    "val.best": "validation, best epoch",
    "test.best_on_test": "test, the best of all epochs on test itself",
}
_ROWS = 100  # of the mapping table


def write_card(folder: str | Path, prompt: str | None = None) -> None:
    """Write ``README.md`` of a saved prompt from its config and the pictures beside it."""
    folder = Path(folder)
    pictures = [name for name in PICTURES if (folder / f"{name}.png").is_file()]
    write_text(folder / CARD, card_text(read_config(folder), pictures, prompt))


def card_text(config: dict[str, Any], pictures: Sequence[str] = (), prompt: str | None = None) -> str:
    """Return the card.

    Args:
        config: Of the saved prompt.
        pictures: Those of ``PICTURES`` that lie beside it.
        prompt: Its hub id, for the lines of use.
    """
    from ..sources.origin import public_name  # here, because the card's numbers are read without torch

    source, results = config["source"], config.get("results") or {}
    source = {**source, "name": public_name(source["name"])}
    task = results.get("task", "custom")
    sections = [
        f"---\n{_metadata(config, task)}\n---\n\n# {plain(task)}: a visual prompt for {code(source['name'])}",
        _what(config),
        "## Use\n\n```python\nfrom clipvp import PromptedClassifier\n"
        f'model = PromptedClassifier.from_pretrained("{prompt or "ORG/NAME or a folder"}")\n'
        'model.predict("image.jpg", top_k=3)  # label, score and source label, best first\n```',
        _source(source),
        _numbers(results) if results else "",
        _mapping(config, results.get("per_class")),
        "\n\n".join(f"![{PICTURES[name]}]({name}.png)" for name in pictures),
        _settings(config, results),
    ]
    return "\n\n".join(section for section in sections if section) + "\n"


def _metadata(config: dict[str, Any], task: str) -> str:
    from huggingface_hub import EvalResult, ModelCardData

    results, repository = config.get("results") or {}, config["source"].get("repository")
    found = [
        EvalResult(
            task_type="image-classification",
            dataset_type=re.sub(r"[^\w./-]+", "-", task) or "custom",
            dataset_name=task,
            dataset_split=key.partition(".")[0],
            metric_type="accuracy",
            metric_name=f"top-1, {SCORES[key]}",
            metric_value=scores["acc1"],
        )
        for key, scores in results.get("metrics", {}).items()
        if key in ("test.last", "test.best_val") and scores["n"]
    ]
    data = ModelCardData(
        library_name="clipvp",
        pipeline_tag="image-classification",
        tags=[*TAGS, config["prompt"]["kind"] + "-prompt"],
        base_model=repository,
        base_model_relation="adapter" if repository else None,
        model_name=f"{task} by a visual prompt" if found else None,
        eval_results=found or None,
    )
    return data.to_yaml().strip()


def _what(config: dict[str, Any]) -> str:
    prompt, mapping = dict(config["prompt"]), config["mapping"]
    kind, canvas = prompt.pop("kind"), prompt.pop("canvas")
    inner = [f"{name.replace('_', ' ')} {_size(value)}" for name, value in prompt.items() if value]
    details = f" ({', '.join(inner)})" if inner else ""
    return (
        f"A **{kind}** prompt{details} on a canvas of {_size(canvas)} pixels and a **{mapping['kind']}** label mapping "
        f"make a frozen vision model a classifier of {len(config['class_names'])} classes. No weight of the model "
        f"is changed, and none is in here. Made with clipvp, after [ILM-VP]({PAPER})."
    )


def _source(source: dict[str, Any]) -> str:
    repository, licence = source.get("repository"), source.get("license")
    lines = [f"name {code(source['name'])}", f"weights {code(source.get('fingerprint'))}"]
    if source.get("revision"):
        lines.append(f"revision {code(source['revision'])}")
    if repository:
        lines.append(f"from [{repository}](https://huggingface.co/{repository})")
    lines.append(f"licence {licence}" if licence else "licence: see where it comes from")
    return "## Source model\n\n" + "\n".join(f"- {line}" for line in lines)


def _numbers(results: dict[str, Any]) -> str:
    rows = [
        [label, percent(m["acc1"]), percent(m["acc5"]), percent(m["mean_per_class_recall"]), m["n"]]
        for key, label in SCORES.items()
        if (m := results["metrics"].get(key)) and m["n"]
    ]
    kept = {"best_val": "that validated best", "last": "of the last epoch"}.get(results["saved_prompt"])
    facts = (
        f"Saved here is the prompt {kept}. Seed {results['seed']}, {results['num_train']:,} training images, "
        f"split hash {code(results['split_hash'])}, protocol {results['protocol']}."
    )
    table = markdown_table(["", "top-1", "top-5", "per class", "images"], rows)
    return f"## Numbers on {plain(results['task'])}\n\n{table}\n\n{facts}"


def _mapping(config: dict[str, Any], per_class: list[float | None] | None) -> str:
    table = config.get("mapping_table")
    if not table:
        return ""
    headers = ["class", "source label", "count", "of its images"]
    rows = [[row["class"], row["label"], row["count"], percent(row["share"])] for row in table]
    if per_class:
        headers.append("test accuracy")
        rows = [[*row, percent(score)] for row, score in zip(rows, per_class, strict=True)]
    more = f"\n\n... and {len(rows) - _ROWS} more in `config.json`." if len(rows) > _ROWS else ""
    return f"## Label mapping\n\n{markdown_table(headers, rows[:_ROWS])}{more}"


def _settings(config: dict[str, Any], results: dict[str, Any]) -> str:
    import yaml

    settings = results.get("config") or {key: config[key] for key in ("prompt", "mapping")}
    text = yaml.safe_dump(settings, sort_keys=False, allow_unicode=True).replace("```", "'''")
    return f"## Settings\n\n```yaml\n{text}```"


def _size(value: Any) -> str:
    if isinstance(value, list) and value and not any(isinstance(one, float) for one in value):
        return " x ".join(map(str, value))
    return "set" if isinstance(value, (list, bool)) else str(value)


def percent(share: float | None) -> str:
    return "-" if share is None else f"{100 * share:.1f} %"


def plain(text: Any) -> str:
    """Return text on one line that Markdown shows as it is."""
    line = " ".join(str(text).split())
    return re.sub(r"([\\`*_\[\]|<>#&])", r"\\\1", line)


def code(text: Any) -> str:
    """Return text as Markdown code on one line."""
    return f"`{' '.join(str(text).replace('`', chr(39)).split())}`"


def markdown_table(headers: Sequence[str], rows: Iterable[Sequence[Any]]) -> str:
    """Return a Markdown table; any text may stand in a cell, and None is a dash."""
    cells = [["-" if cell is None else plain(cell) for cell in row] for row in rows]
    lines = [list(headers), ["---"] * len(headers), *cells]
    return "\n".join(f"| {' | '.join(line)} |" for line in lines)
