"""From a config to what it describes: a source, a label space, an untrained classifier."""

from __future__ import annotations

from collections.abc import Callable, Sequence

import torch

from .config.schema import MappingConfig, RunConfig, SourceConfig
from .labels.space import LabelSpace
from .labels.templates import PAPER_FIRST, resolve_templates, text_class_names
from .mappings.base import build_mapping
from .model import PromptedClassifier
from .prompts.base import build_prompt
from .registry import UserError
from .sources.base import Source
from .sources.load import load_source


def source_from_config(
    config: SourceConfig,
    labels: Callable[[], LabelSpace] | None = None,
    device: str | torch.device | None = None,
) -> Source:
    """Return the source that a config names; ``labels`` makes the label space where it is a CLIP."""
    source = load_source(
        config.name,
        canvas=config.canvas,
        labels=labels,
        precision=config.precision,
        revision=config.revision,
        local_files_only=config.local_files_only,
        device=device,
    )
    if config.compile:
        source.compile_network()
    return source


def text_label_space(config: MappingConfig, class_names: Sequence[str]) -> LabelSpace:
    """Return the label space that a config describes for a CLIP and a task's class names."""
    templates = config.templates or (PAPER_FIRST if config.kind == "identity" else "paper")
    return LabelSpace.from_templates(
        resolve_templates(templates), text_class_names(class_names, config.class_names)
    )


def build_classifier(
    config: RunConfig,
    class_names: Sequence[str],
    device: str | torch.device | None = None,
    empty: str | None = None,
) -> PromptedClassifier:
    """Return the untrained classifier that a config describes.

    Args:
        config: ``source``, ``prompt``, ``mapping`` and ``seed`` rule.
        class_names: The task's.
        device: Where it runs; the CPU when None.
        empty: Where the task's images hold nothing (``Task.empty``), so that a padding prompt acts there too.
    """
    source = source_from_config(config.source, lambda: text_label_space(config.mapping, class_names), device)
    if config.mapping.templates is not None and not source.labels.is_text:
        raise UserError(f"mapping.templates: {source.name!r} has a closed label set and no text tower")
    prompt = build_prompt(config.prompt, source.canvas, source.preprocessing.std, empty)
    mapping = build_mapping(config.mapping, source.labels, class_names, config.seed)
    share = config.prompt.share_border
    return PromptedClassifier(prompt, source, mapping, class_names, share).to(source.mean.device)
