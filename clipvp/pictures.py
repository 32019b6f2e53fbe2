"""The pictures of a finished run, in its folder."""

from __future__ import annotations

import torch

from .data import Task
from .model import PromptedClassifier
from .plots import (
    plot_confusion,
    plot_curves,
    plot_examples,
    plot_mapping,
    plot_moves,
    plot_prompt,
    plot_templates,
    save_figure,
)
from .run import PLOTS
from .train import FitResult

_EXAMPLES = 8


@torch.no_grad()
def save_pictures(result: FitResult, classifier: PromptedClassifier, task: Task) -> list[str]:
    """Draw a run's prompt, prompted examples, mapping, confusions and curves into its ``plots`` folder.

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
        rows = [int((tensors.labels == c).nonzero()[0]) for c in tensors.labels.unique()[:_EXAMPLES]]
        images = tensors.images[rows].to(classifier.device, torch.float32) / 255
        titles = [names[c] for c in tensors.labels[rows]]
        figures["examples"] = plot_examples(images, classifier.prompt(images), titles)
        figures["mapping"] = plot_mapping(scores.counts, index, labels, names)
        figures["prompt"] = plot_prompt(classifier.prompt)
        if any("mapping_changed" in row for row in result.history[1:]):
            figures["moves"] = plot_moves(result.history, labels, names)
        if labels.is_text:
            figures["templates"] = plot_templates(scores.counts, index, labels, names)
    return [
        save_figure(figure, result.output / PLOTS / f"{name}.png").name for name, figure in figures.items()
    ]
