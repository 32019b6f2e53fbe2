"""The model card of a saved prompt, with metadata for the hub. It is made from ``config.json`` alone."""

from __future__ import annotations

import re
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from ..files import write_text
from ..results.tables import (
    CAPTIONS,
    MAPPING_COLUMNS,
    SAVED_PROMPTS,
    SCORE_COLUMNS,
    SCORES,
    code,
    mapping_columns,
    mapping_text,
    markdown_table,
    plain,
    queries_text,
    scores_table,
)
from ..sources.origin import public_name
from .format import CARD, read_config

PAPER = "https://arxiv.org/abs/2211.11635"
TAGS = ("visual-prompting", "label-mapping")
PICTURES = ("prompt", "masks", "examples", "gallery", "confusion")
_ROWS = 100  # of the mapping table
_LONGEST = 20  # elements of a list that the settings show


def write_card(folder: str | Path, prompt: str | None = None) -> None:
    """Write ``README.md`` of a saved prompt from its config and the pictures beside it."""
    folder = Path(folder)
    pictures = [name for name in PICTURES if (folder / f"{name}.png").is_file()]
    write_text(folder / CARD, card_text(read_config(folder), pictures, prompt))


def card_text(config: dict[str, Any], pictures: Sequence[str] = (), prompt: str | None = None) -> str:
    """Return the card.

    Args:
        config: Of the saved prompt.
        pictures: Those of ``PICTURES`` that are beside it.
        prompt: Its hub id, for the example of use.
    """
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
        "\n\n".join(f"![{CAPTIONS[name]}]({name}.png)" for name in pictures),
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
            metric_name=f"{SCORE_COLUMNS['acc1']}, {SCORES[key]}",
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
    shown = {
        name: value for name, value in prompt.items() if not (isinstance(value, list) and len(value) > 2)
    }
    inner = [f"{name.replace('_', ' ')} {_size(value)}" for name, value in _short(shown).items() if value]
    details = f" ({', '.join(inner)})" if inner else ""
    views = config.get("views", 1)
    cost = f" Each image is encoded {views} times, once for each of its prompted views." if views > 1 else ""
    return (
        f"A **{kind}** prompt{details} on a canvas of {_size(canvas)} pixels and a **{mapping['kind']}** label mapping "
        f"make a frozen vision model a classifier of {len(config['class_names'])} classes. No weight of the model "
        f"is changed or saved here.{cost} Made with clipvp, after [ILM-VP]({PAPER})."
    )


def _source(source: dict[str, Any]) -> str:
    repository, licence = source.get("repository"), source.get("license")
    lines = [f"name {code(source['name'])}", f"weights {code(source.get('fingerprint'))}"]
    if source.get("revision"):
        lines.append(f"revision {code(source['revision'])}")
    if repository:
        lines.append(f"from [{repository}](https://huggingface.co/{repository})")
    lines.append(f"licence {licence}" if licence else "licence: see the origin of the weights")
    return "## Source model\n\n" + "\n".join(f"- {line}" for line in lines)


def _numbers(results: dict[str, Any]) -> str:
    saved = SAVED_PROMPTS.get(results["saved_prompt"])
    facts = (
        f"{f'Saved is {saved}. ' if saved else ''}Seed {results['seed']}, {results['num_train']:,} training images, "
        f"split hash {code(results['split_hash'])}, protocol {results['protocol']}."
    )
    if results.get("queries"):
        facts += f" {queries_text(results['queries'])}."
    table = markdown_table(["", *SCORE_COLUMNS.values()], scores_table(results["metrics"]))
    return f"## Numbers on {plain(results['task'])}\n\n{table}\n\n{facts}"


def _mapping(config: dict[str, Any], per_class: list[float | None] | None) -> str:
    rows = config.get("mapping_table")
    if not rows:
        return ""
    if per_class:
        rows = [{**row, "acc1": accuracy} for row, accuracy in zip(rows, per_class, strict=True)]
    keys = mapping_columns(rows)
    cells = [[mapping_text(row, key) for key in keys] for row in rows[:_ROWS]]
    table = markdown_table([MAPPING_COLUMNS[key] for key in keys], cells)
    more = f"\n\n... and {len(rows) - _ROWS} more in `config.json`." if len(rows) > _ROWS else ""
    return f"## Label mapping\n\n{table}{more}"


def _settings(config: dict[str, Any], results: dict[str, Any]) -> str:
    import yaml

    settings = results.get("config") or {part: _short(config[part]) for part in ("prompt", "mapping")}
    text = yaml.safe_dump(settings, sort_keys=False, allow_unicode=True).replace("```", "'''")
    return f"## Settings\n\n```yaml\n{text}```"


def _short(section: dict[str, Any]) -> dict[str, Any]:
    """Return settings without long lists, which belong to ``config.json``."""
    return {
        key: value
        for key, value in section.items()
        if not (
            isinstance(value, list) and (len(value) > _LONGEST or any(isinstance(v, dict) for v in value))
        )
    }


def _size(value: Any) -> str:
    if isinstance(value, list) and value and not any(isinstance(one, float) for one in value):
        return " x ".join(map(str, value))
    return "set" if isinstance(value, (list, bool)) else str(value)
