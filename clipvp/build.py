"""From a config and a task to what they describe: a source, a label space, an untrained classifier."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from functools import partial

import torch

from .config.schema import MappingConfig, RunConfig, SourceConfig
from .cpu import float32_default
from .data.task import Task
from .labels.bank import Bank, read_bank
from .labels.space import LabelSpace
from .labels.templates import resolve_templates, text_class_names
from .model import PromptedClassifier
from .prompts.build import build_prompt
from .registry import MAPPINGS, WEIGHTS, UserError
from .sources.base import Source
from .sources.load import load_source, source_options


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
        **source_options(config),
    )
    if config.compile:
        source.compile_network()
    return source


def text_label_space(
    config: MappingConfig, class_names: Sequence[str], seed: int = 0, surplus: bool = True
) -> LabelSpace:
    """Return the label space that a config describes for a CLIP and a task's class names.

    Args:
        config: ``templates``, ``texts``, ``texts_per_class``, ``phrase_template`` and ``class_names`` are used.
        class_names: The task's.
        seed: Draws texts.
        surplus: Warn of classes of ``texts`` that the task does not have.
    """
    names = text_class_names(class_names, config.class_names)
    if config.texts is None:
        return LabelSpace.from_templates(
            resolve_templates(config.templates or config.default_templates), names
        )
    bank = text_bank(config, names, seed)
    bank.warn(surplus)
    return bank.label_space()


def text_bank(config: MappingConfig, names: Sequence[str], seed: int) -> Bank:
    """Return the texts that ``mapping.texts`` describes for the names of classes as texts spell them."""
    templates = resolve_templates(config.templates) if config.templates else ()
    return read_bank(
        config.texts or {},
        names,
        templates=templates,
        per_class=config.texts_per_class,
        phrase_template=config.phrase_template,
        seed=seed,
    )


@float32_default()
def build_classifier(
    config: RunConfig, task: Task, device: str | torch.device | None = None
) -> PromptedClassifier:
    """Return the untrained classifier that a config describes for a task.

    Args:
        config: ``source``, ``weights``, ``prompt``, ``mapping`` and ``seed`` are used.
        task: Gives the class names, and where its images are empty, so that a padding prompt acts there too.
        device: Where it runs; the CPU when None.

    Raises:
        UserError: Parts of the config do not fit the source or the task.

    >>> from clipvp import RunConfig, build_classifier, load_task
    >>> from clipvp.config import DataConfig, PromptConfig, SourceConfig
    >>> config = RunConfig(
    ...     source=SourceConfig(name="offline:lite0", canvas=64),
    ...     prompt=PromptConfig(kind="padding", image_size=32),
    ...     data=DataConfig(name="digits"),
    ... )
    >>> classifier = build_classifier(config, load_task(config.data))
    >>> classifier.num_trainable()  # 3 x (64 x 64 - 32 x 32)
    9216
    """
    names, whole = task.class_names, config.data.classes == "all"
    labels = partial(text_label_space, config.mapping, names, config.seed, surplus=whole)
    source = source_from_config(config.source, labels, device)
    for key in ("templates", "texts"):
        if getattr(config.mapping, key) is not None and not source.labels.is_text:
            raise UserError(f"mapping.{key}: {source.name!r} has a closed label set and no text tower")
    wanted = MAPPINGS.get(config.mapping.kind).takes_of(config.mapping)
    if config.source.outputs not in (None, wanted):
        raise UserError(
            f"source.outputs: {config.source.outputs} does not go with mapping.kind {config.mapping.kind!r} here, "
            f"which takes {wanted}"
        )
    source.outputs = wanted
    WEIGHTS.get(config.weights.kind).from_config(config.weights).apply(source, config.seed)
    if config.prompt.views > 1 and wanted == "features":
        raise UserError(
            f"prompt.views: {config.prompt.views} prompts give logits, and mapping.kind {config.mapping.kind!r} takes "
            "features"
        )
    prompt = build_prompt(config.prompt, source, task.empty, config.seed)
    mapping = MAPPINGS.get(config.mapping.kind).from_config(config.mapping, source, names, config.seed)
    share = config.prompt.share_border
    return PromptedClassifier(prompt, source, mapping, names, share, task.reading).to(source.mean.device)
