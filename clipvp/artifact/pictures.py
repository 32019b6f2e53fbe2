"""The pictures of a finished run: in its folder, and smaller copies beside its saved prompt."""

from __future__ import annotations

from importlib.util import find_spec
from pathlib import Path
from typing import TYPE_CHECKING

import torch
from PIL import Image

from ..files import write_atomic
from ..results.folder import PLOTS, PROMPT
from ..results.plots import (
    plot_confusion,
    plot_curves,
    plot_examples,
    plot_gallery,
    plot_mapping,
    plot_masks,
    plot_moves,
    plot_prompt,
    plot_templates,
    plot_texts,
    save_figure,
)
from ..results.tables import MOST_LINKS, mapping_rows
from .card import PICTURES, write_card

if TYPE_CHECKING:
    from ..data.task import Task
    from ..model import PromptedClassifier
    from ..training.fit import FitResult

_EXAMPLES, _GALLERY = 8, 24  # classes
_TEXTS = 12  # of a class
_LARGEST = 1000  # pixels of a picture of the model card, in either direction


def pictures(result: FitResult, classifier: PromptedClassifier, task: Task) -> str:
    """``save_pictures``, and return a line on them; where matplotlib is missing it says so."""
    if find_spec("matplotlib") is None:
        return "no pictures: pip install 'clipvp[plots]'"
    return f"pictures: {', '.join(save_pictures(result, classifier, task))}, in {result.output / PLOTS}"


@torch.no_grad()
def save_pictures(result: FitResult, classifier: PromptedClassifier, task: Task) -> list[str]:
    """Draw the pictures of a run into ``plots``, and put the model card's beside the saved prompt.

    Args:
        result: What ``fit`` returned.
        classifier: As ``fit`` left it.
        task: The run's task.

    Returns:
        The names of the files.

    Raises:
        UserError: matplotlib is not installed.
    """
    scores = result.test["best_val" if "best_val" in result.test else "last"]
    labels, names = classifier.source.labels, classifier.class_names
    links = classifier.mapping.links(MOST_LINKS)
    figures = {
        "curves": plot_curves(result.history),
        "confusion": plot_confusion(scores.confusion, names),
    }
    images = _examples(task, classifier)
    shown = torch.stack([images[c] for c in list(images)[:_EXAMPLES]])
    first_view = classifier.prompt(shown)[: len(shown)]
    titles = [names[c] for c in images][:_EXAMPLES]
    figures["examples"] = plot_examples(shown, first_view, titles)
    if (links.index >= 0).any():
        rows = mapping_rows(links, labels.names, names)
        figures["gallery"] = plot_gallery(rows, [images.get(c) for c in range(len(names))])
    figures["mapping"] = plot_mapping(scores.counts, links, labels, names)
    parts = [(part, part.learned(), part.masks(shown)) for part in classifier.prompt.parts()]
    parts = [part for part in parts if part[1] is not None or part[2] is not None]
    for place, (part, learned, masks) in enumerate(parts, 1):
        number = "" if len(parts) == 1 else f"_{place}"
        if learned is not None:
            figures[f"prompt{number}"] = plot_prompt(part)
        if masks is not None:
            figures[f"masks{number}"] = plot_masks(shown, masks, titles)
    if any("mapping_changed" in row for row in result.history[1:]):
        figures["moves"] = plot_moves(result.history, labels, names)
    if labels.is_text:
        figures["templates"] = plot_templates(scores.counts, links, labels, names)
        texts = classifier.mapping.links(_TEXTS)
        if (texts.index[:, 1:] >= 0).any():
            figures["texts"] = plot_texts(texts, labels, names)
    plots = result.output / PLOTS
    written = [save_figure(figure, plots / f"{name}.png").name for name, figure in figures.items()]
    _illustrate(plots, result.output / PROMPT)
    return written


def _examples(task: Task, classifier: PromptedClassifier) -> dict[int, torch.Tensor]:
    """Return, by class, the first test image (3, h, w) of each of the first classes that have one."""
    tensors = task.tensors("test", classifier.resize, progress=False)
    first = {int(c): int((tensors.labels == c).nonzero()[0]) for c in tensors.labels.unique()[:_GALLERY]}
    decoded = tensors.images
    return {c: decoded[row].to(classifier.device, torch.float32) / 255 for c, row in first.items()}


def _illustrate(plots: Path, prompt: Path) -> None:
    """Write small copies of the card's pictures beside a saved prompt, and write its card anew."""
    for name in PICTURES:
        if (plots / f"{name}.png").is_file():
            with Image.open(plots / f"{name}.png") as picture:
                small = picture.convert("RGB")
            small.thumbnail((_LARGEST, _LARGEST), Image.Resampling.LANCZOS)
            small = small.quantize(256)
            path = prompt / f"{name}.png"
            write_atomic(path, lambda aside, small=small: small.save(aside, "PNG", optimize=True))
    write_card(prompt)
