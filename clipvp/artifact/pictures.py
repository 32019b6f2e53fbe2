"""The pictures of a finished run, in its folder, and small ones beside its saved prompt."""

from __future__ import annotations

from pathlib import Path

import torch
from PIL import Image

from ..data.task import Task
from ..files import write_atomic
from ..model import PromptedClassifier
from ..results.folder import PLOTS, PROMPT
from ..results.plots import (
    plot_confusion,
    plot_curves,
    plot_examples,
    plot_gallery,
    plot_mapping,
    plot_moves,
    plot_prompt,
    plot_templates,
    save_figure,
)
from ..training.fit import FitResult
from .card import PICTURES, write_card

_EXAMPLES, _CARDS = 8, 24
_LARGEST = 1000  # pixels of a picture of the model card, in either direction


@torch.no_grad()
def save_pictures(result: FitResult, classifier: PromptedClassifier, task: Task) -> list[str]:
    """Draw a run's prompt, examples, mapping, confusions and curves into ``plots``, and the card's beside the prompt.

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
    labels, names, index = classifier.source.labels, classifier.class_names, classifier.mapping.source_index
    figures = {
        "curves": plot_curves(result.history),
        "confusion": plot_confusion(scores.confusion, names),
    }
    if classifier.is_prompt:
        tensors = task.tensors("test", classifier.resize, progress=False)
        first = {int(c): int((tensors.labels == c).nonzero()[0]) for c in tensors.labels.unique()[:_CARDS]}
        decoded = tensors.images
        images = {c: decoded[row].to(classifier.device, torch.float32) / 255 for c, row in first.items()}
        shown = torch.stack(list(images.values())[:_EXAMPLES])
        titles = [names[c] for c in images][:_EXAMPLES]
        figures["examples"] = plot_examples(shown, classifier.prompt(shown), titles)
        rows = classifier.mapping.describe(labels, names)
        figures["gallery"] = plot_gallery(rows, [images.get(c) for c in range(len(names))])
        figures["mapping"] = plot_mapping(scores.counts, index, labels, names)
        figures["prompt"] = plot_prompt(classifier.prompt)
        if any("mapping_changed" in row for row in result.history[1:]):
            figures["moves"] = plot_moves(result.history, labels, names)
        if labels.is_text:
            figures["templates"] = plot_templates(scores.counts, index, labels, names)
    plots = result.output / PLOTS
    written = [save_figure(figure, plots / f"{name}.png").name for name, figure in figures.items()]
    if classifier.is_prompt:
        _illustrate(plots, result.output / PROMPT)
    return written


def _illustrate(plots: Path, prompt: Path) -> None:
    """Lay small copies of the card's pictures beside a saved prompt, and write its card anew."""
    for name in PICTURES:
        if (plots / f"{name}.png").is_file():
            with Image.open(plots / f"{name}.png") as picture:
                small = picture.convert("RGB")
            small.thumbnail((_LARGEST, _LARGEST), Image.Resampling.LANCZOS)
            small = small.quantize(256)
            path = prompt / f"{name}.png"
            write_atomic(path, lambda aside, small=small: small.save(aside, "PNG", optimize=True))
    write_card(prompt)
