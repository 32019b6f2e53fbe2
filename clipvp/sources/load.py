"""Frozen source models by name."""

from __future__ import annotations

import inspect
from collections.abc import Callable, Sequence
from dataclasses import fields
from typing import Any

import torch

from ..config.schema import SourceConfig
from ..cpu import float32_default
from ..labels.space import LabelSpace
from ..labels.templates import PAPER_FIRST, resolve_templates, warn_of_ties
from ..registry import SOURCES, UserError, check_choice, nearest
from .base import Source, check_forward, check_precision
from .origin import expand_home


@float32_default()
def load_source(
    name: str,
    *,
    canvas: int | Sequence[int] | None = None,
    class_names: Sequence[str] | None = None,
    templates: str | Sequence[str] | None = None,
    labels: Callable[[], LabelSpace] | None = None,
    precision: str = "fp32",
    device: str | torch.device | None = None,
    revision: str | None = None,
    local_files_only: bool = False,
    text_tower: bool = True,
    **options: Any,
) -> Source:
    """Load a frozen model by name, ``scheme:model``.

    Schemes: ``timm:resnet18.a1_in1k``, ``timm:local-dir:FOLDER``, ``hf:microsoft/resnet-50``, ``hf:FOLDER``
    (transformers: image classifiers, CLIP, SigLIP; and timm's), ``open_clip:ViT-B-32-quickgelu/openai``,
    ``open_clip:ViT-B-32/FILE`` (a checkpoint, such as runs/epoch_1.pt), ``open_clip:hf-hub:ORG/NAME``,
    ``open_clip:local-dir:FOLDER``, ``offline:lite0`` and ``offline:lite0-minilm`` (out of pip packages),
    ``distilled:FOLDER`` (what ``clipvp ares`` leaves), and two that give no gradient: ``onnx:FILE`` and
    ``http://HOST:PORT`` (or https://). A local path may start with ``~``.

    Args:
        name: The scheme and what it names.
        canvas: Input size in pixels, a number for a square or (H, W); the model's own when None.
        class_names: For CLIP, the T class names of the label space.
        templates: For CLIP, the templates of the label space, each with one ``{}``, or what
            ``resolve_templates`` takes, such as "paper"; "This is a photo of a {}." when None.
        labels: Makes the label space, instead of class names and templates; called only if the model is a CLIP.
        precision: fp32, bf16 or fp16, of the frozen network only.
        device: Where it runs; the CPU when None.
        revision: Branch, tag or commit of a hub model.
        local_files_only: Take what the local hub cache holds, never ask the network.
        text_tower: False loads a CLIP without its texts and its text tower; it gives features and no logits.
        options: Further keys of a plug-in's scheme.

    Returns:
        The source, frozen and in evaluation mode.

    Raises:
        UserError: An unknown name, a model that cannot be loaded, or a canvas that it does not take.

    >>> from clipvp import load_source
    >>> source = load_source("offline:lite0", canvas=64)
    >>> source.canvas, len(source.labels), source.num_features
    ((64, 64), 1000, 1280)
    """
    scheme, colon, model = name.partition(":")
    if not colon or scheme not in SOURCES:
        schemes = [f"{known}:" for known in SOURCES.names()]
        raise UserError(f"unknown source {name!r}; a name is scheme:model; {nearest(scheme + ':', schemes)}")
    for key in options:
        check_choice(f"options of source {name!r}", key, _option_names(scheme))
    name = expand_home(name)
    model = name.partition(":")[2]
    device = torch.device(device or "cpu")
    loader = SOURCES.get(scheme)
    if not text_tower:
        options = {**options, "text_tower": False}
        if not inspect.signature(loader).parameters.keys() & {"text_tower", "options"}:
            raise UserError(f"text_tower: sources of the scheme {scheme!r} cannot be loaded without it")
    source = loader(
        model,
        name=name,
        canvas=(canvas, canvas) if isinstance(canvas, int) else canvas,
        labels=labels or (lambda: _text_labels(name, class_names, templates)),
        precision=check_precision(precision, device),
        revision=revision,
        local_files_only=local_files_only,
        **options,
    )
    source.options = {key: value for key, value in options.items() if key != "text_tower"}
    if source.has_logits != text_tower:
        raise UserError(f"text_tower: source {name!r} has a closed label set and no text tower")
    if templates is not None and not source.labels.is_text:
        raise UserError(f"source {name!r} has a closed label set and no text tower, so it takes no templates")
    return check_forward(source.to(device))


def _option_names(scheme: str) -> set[str]:
    """Return the keys that a scheme has beyond those of every source."""
    own = SOURCES.config(scheme) if scheme in SOURCES else None
    return (
        {item.name for item in fields(own)} - {item.name for item in fields(SourceConfig)} if own else set()
    )


def source_options(config: SourceConfig) -> dict[str, Any]:
    """Return the values of the keys that a config's scheme has beyond those of every source."""
    return {key: getattr(config, key) for key in sorted(_option_names(config.name.partition(":")[0]))}


def _text_labels(
    name: str, class_names: Sequence[str] | None, templates: str | Sequence[str] | None
) -> LabelSpace:
    if not class_names:
        raise UserError(f"source {name!r} is a CLIP: its labels are made of text, so it needs class names")
    labels = LabelSpace.from_templates(resolve_templates(templates or PAPER_FIRST), class_names)
    warn_of_ties(class_names)
    return labels
