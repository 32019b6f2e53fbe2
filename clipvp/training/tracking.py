"""Experiment trackers, through accelerate's: each epoch's numbers, and at the end prompt and mapping as pictures."""

from __future__ import annotations

import io
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
from accelerate import Accelerator
from accelerate.tracking import GeneralTracker, filter_trackers, get_available_trackers

from ..config.schema import RunConfig
from ..config.values import flat, to_dict
from ..model import PromptedClassifier
from ..registry import UserError
from ..results.folder import LOGS
from ..scoring.scores import EvalResult

PROJECT = "clipvp"
_PACKAGES = {"comet_ml": "comet-ml"}

Pictures = dict[str, np.ndarray]  # (h, w, 3) uint8 by name


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
        folder: The run's, where trackers that write files do so; trackio has a folder of its own for all runs.

    Raises:
        UserError: A tracker does not start, such as one that wants a login.
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
        name = {"name": folder.name}
        options = {"wandb": {**name, "dir": accelerator.logging_dir}, "trackio": name}
        try:
            accelerator.init_trackers(PROJECT, values, options)
        except Exception as error:  # each tracker has errors of its own
            reason = (str(error) or type(error).__name__).splitlines()[0]
            raise UserError(f"train.report_to: {' or '.join(self.names)} does not start: {reason}") from error

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
            pictures = _pictures(classifier, test)
            for tracker in takers if pictures else []:
                _PICTURES[tracker.name](tracker, pictures, step)
        if self.names:
            for tracker in self.accelerator.trackers:
                tracker.finish()
            self.accelerator.trackers = []


def _pictures(classifier: PromptedClassifier, test: EvalResult) -> Pictures:
    """Return the pictures of a run; none where matplotlib is not installed."""
    from ..results.plots import plot_mapping, plot_prompt

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


def _to_tensorboard(tracker: GeneralTracker, pictures: Pictures, step: int) -> None:
    batches = {name: picture[None] for name, picture in pictures.items()}
    tracker.log_images(batches, step=step, dataformats="NHWC")


def _to_wandb(tracker: GeneralTracker, pictures: Pictures, step: int) -> None:
    tracker.log_images({name: picture[None] for name, picture in pictures.items()}, step=step)


def _to_trackio(tracker: GeneralTracker, pictures: Pictures, step: int) -> None:
    from trackio import Image

    tracker.log({name: Image(picture) for name, picture in pictures.items()}, step=step)


# The trackers that take pictures, and how.
_PICTURES: dict[str, Callable[[GeneralTracker, Pictures, int], None]] = {
    "tensorboard": _to_tensorboard,
    "wandb": _to_wandb,
    "trackio": _to_trackio,
}
