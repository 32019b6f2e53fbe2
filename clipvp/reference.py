"""Prompts that the code of ILM-VP (arXiv 2211.11635) has saved, as classifiers that are saved and used as all others.

Its ``best.pth`` and ``ckpt.pth`` are read as tensors and numbers alone: a file that holds anything else is refused, and
none of its code ever runs.
"""

from __future__ import annotations

import pickle
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from .labels.space import LabelSpace
from .labels.templates import PAPER_FIRST, resolve_templates
from .mappings.frequency import FrequencyMapping
from .mappings.identity import IdentityMapping
from .model import PromptedClassifier
from .prompts.border import BorderPrompt
from .prompts.masked import MaskedPrompt
from .prompts.padding import PaddingPrompt
from .registry import UserError
from .sources.load import load_source

_PROMPT, _MAPPING = "visual_prompt_dict", "mapping_sequence"


@dataclass(frozen=True)
class ReferencePrompt:
    """What is used of a file.

    Args:
        program: (3, H, W), the trained values.
        mask: (3, H, W), 1 where they act.
        source_index: int64 (T,), the source label of each class; None where the file has no mapping.
    """

    program: Tensor
    mask: Tensor
    source_index: Tensor | None


def read_reference(path: str | Path) -> ReferencePrompt:
    """Read a file of the reference.

    Raises:
        UserError: It cannot be read, holds more than tensors and numbers, or no visual prompt.
    """
    path = Path(path).expanduser()
    try:
        found = torch.load(path, map_location="cpu", weights_only=True)
    except OSError as error:
        raise UserError(f"{str(path)!r} cannot be read: {error.strerror or error}") from error
    except (pickle.UnpicklingError, RuntimeError, EOFError, ValueError, KeyError) as error:
        raise UserError(
            f"{str(path)!r} is no checkpoint of tensors and numbers alone; others may hold code and are not read"
        ) from error
    state = found.get(_PROMPT) if isinstance(found, dict) else None
    if not (isinstance(state, dict) and {"program", "mask"} <= state.keys()):
        raise UserError(
            f"{str(path)!r} holds no {_PROMPT} with program and mask; give the reference's best.pth"
        )
    program, mask = (_tensor(path, name, state[name]) for name in ("program", "mask"))
    if program.ndim != 3 or program.shape[0] != 3 or mask.shape != program.shape:
        raise UserError(
            f"{str(path)!r}: program {tuple(program.shape)} and mask {tuple(mask.shape)} are not (3, H, W)"
        )
    return ReferencePrompt(program.float(), mask.float(), _index(path, found.get(_MAPPING)))


def _tensor(path: Path, name: str, value: Any) -> Tensor:
    if not (torch.is_tensor(value) and value.isfinite().all()):
        raise UserError(f"{str(path)!r}: {name} is not a tensor of finite numbers")
    return value.detach()


def _index(path: Path, value: Any) -> Tensor | None:
    if value is None:
        return None
    try:
        index = torch.as_tensor(value)
    except (RuntimeError, TypeError, ValueError):
        index = torch.empty(0)
    if index.ndim != 1 or index.is_floating_point() or index.is_complex():
        raise UserError(f"{str(path)!r}: {_MAPPING} is not a row of whole numbers")
    return index.long()


def import_prompt(
    path: str | Path, source: str, class_names: Sequence[str], **options: Any
) -> PromptedClassifier:
    """Return the classifier that a file of the reference describes.

    Args:
        path: best.pth or ckpt.pth.
        source: The model it was trained on, as ``load_source`` takes it; its canvas is the prompt's.
        class_names: The T classes, in the order of their labels.
        options: Further ones of ``load_source``.

    Raises:
        UserError: The file is not of the reference, or does not fit the source or the classes.
    """
    reference, names = read_reference(path), list(class_names)
    templates = [PAPER_FIRST] if reference.source_index is None else resolve_templates("paper")
    frozen = load_source(
        source,
        canvas=tuple(reference.program.shape[1:]),
        labels=lambda: LabelSpace.from_templates(templates, names),
        **options,
    )
    index, size = reference.source_index, len(frozen.labels)
    if index is None and not frozen.labels.is_text:
        raise UserError(
            f"{str(path)!r} holds no {_MAPPING}, so its model is a CLIP, and {source!r} is not one"
        )
    if index is None:
        mapping = IdentityMapping(size, len(names), range(len(names)))
    else:
        if index.shape != (len(names),):
            raise UserError(f"{str(path)!r} maps {len(index)} classes, and {len(names)} names are given")
        if not ((index >= 0) & (index < size)).all() or len(index.unique()) != len(index):
            raise UserError(
                f"{str(path)!r}: its {_MAPPING} are not different labels among the {size} of {source!r}"
            )
        mapping = FrequencyMapping(size, len(names))
        mapping.source_index.copy_(index)
    if frozen.labels.is_text:
        prompt = _border(reference.mask, list(frozen.preprocessing.std))
    else:
        prompt = _padding(reference.mask)
    if prompt is None:
        raise UserError(f"{str(path)!r}: its mask is not that of a prompt for {source!r}")
    with torch.no_grad():
        prompt.delta.copy_(reference.program)
    return PromptedClassifier(prompt, frozen, mapping, names).eval()


def _padding(mask: Tensor) -> MaskedPrompt | None:
    """Return the padding prompt with this mask, None if there is none."""
    canvas = tuple(mask.shape[1:])
    free = (mask[0] == 0).any(1).sum().item()
    for size, empty in ((free, None), (free + 1, "lower_triangle")):  # the first row of a triangle is whole
        if 1 <= size <= min(canvas):
            prompt = PaddingPrompt(canvas, (size, size), empty)
            if torch.equal(prompt.mask.expand_as(mask), mask):
                return prompt
    return None


def _border(mask: Tensor, scale: list[float]) -> MaskedPrompt | None:
    """Return the border prompt with this mask, in normalised space, None if there is none."""
    free = (mask[0] == 0).any(1).sum().item()
    prompt = BorderPrompt(tuple(mask.shape[1:]), (mask.shape[1] - free) // 2, scale)
    return prompt if torch.equal(prompt.mask.expand_as(mask), mask) else None
