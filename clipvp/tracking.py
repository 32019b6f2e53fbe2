"""Experiment trackers, through accelerate's: each epoch's numbers, and at the end prompt and mapping as pictures."""

from __future__ import annotations

import io
from pathlib import Path
from typing import Any

import numpy as np
from accelerate import Accelerator
from accelerate.tracking import filter_trackers, get_available_trackers

from .config import RunConfig, flat, to_dict
from .model import PromptedClassifier
from .registry import UserError
from .run import LOGS
from .scores import EvalResult

PROJECT = "clipvp"
_PACKAGES = {"comet_ml": "comet-ml"}
# Those that take pictures as arrays (N, h, w, 3), and what they want beside them.
_PICTURES: dict[str, dict[str, Any]] = {"tensorboard": {"dataformats": "NHWC"}, "wandb": {}}


def check_trackers(names: list[str]) -> None:
    """Raise ``UserError`` where a tracker's package is not installed; accelerate would leave it out in silence."""
    available = {str(tracker) for tracker in get_available_trackers()}
    for name in names:
        if name not in available:
            package = _PACKAGES.get(name, name)
            raise UserError(f"train.report_to: {name} is not installed; run `pip install {package}`")


class Tracking:
    """The trackers that ``train.report_to`` names, for one run; none is the usual case.

    Args:
        accelerator: Its main process reports. Trackers that it has already are told too, and left open.
        config: The run's.
        folder: The run's, where trackers that write files do so.
    """

    def __init__(self, accelerator: Accelerator, config: RunConfig, folder: Path):
        self.accelerator, self.names = accelerator, config.train.report_to
        if not self.names:
            return
        (folder / LOGS).mkdir(parents=True, exist_ok=True)
        accelerator.project_configuration.logging_dir = str(folder / LOGS)
        accelerator.log_with = filter_trackers(self.names, accelerator.logging_dir)
        values = {
            key: value if isinstance(value, (bool, int, float, str)) else str(value)
            for key, value in flat(to_dict(config)).items()
        }
        accelerator.init_trackers(PROJECT, values, {"wandb": {"name": folder.name}})

    def epoch(self, row: dict[str, Any]) -> None:
        """Report the numbers of one line of metrics.jsonl."""
        numbers = {key: value for key, value in flat(row).items() if isinstance(value, (int, float))}
        step = numbers.pop("epoch")
        self.accelerator.log(numbers, step=step)

    def end(
        self, classifier: PromptedClassifier, test: EvalResult, metrics: dict[str, Any], step: int
    ) -> None:
        """Report the final scores and the pictures, and close what was opened here."""
        scores = {key: value for key, value in flat(metrics).items() if isinstance(value, (int, float))}
        self.accelerator.log(scores, step=step)
        takers = [tracker for tracker in self.accelerator.trackers if tracker.name in _PICTURES]
        if takers and classifier.is_prompt and self.accelerator.is_main_process:
            for name, picture in _pictures(classifier, test).items():
                for tracker in takers:
                    tracker.log_images({name: picture[None]}, step=step, **_PICTURES[tracker.name])
        if self.names:
            for tracker in self.accelerator.trackers:
                tracker.finish()
            self.accelerator.trackers = []


def _pictures(classifier: PromptedClassifier, test: EvalResult) -> dict[str, np.ndarray]:
    """Return pictures (h, w, 3) uint8 by name; none where matplotlib is not installed."""
    from .plots import plot_mapping, plot_prompt

    labels, index = classifier.source.labels, classifier.mapping.source_index
    try:
        figures = {
            "prompt": plot_prompt(classifier.prompt),
            "mapping": plot_mapping(test.counts, index, labels, classifier.class_names),
        }
    except UserError:
        return {}
    return {name: _pixels(figure) for name, figure in figures.items()}


def _pixels(figure) -> np.ndarray:
    from PIL import Image

    buffer = io.BytesIO()
    figure.savefig(buffer, format="png", dpi=100)
    with Image.open(buffer) as picture:
        return np.array(picture.convert("RGB"))
