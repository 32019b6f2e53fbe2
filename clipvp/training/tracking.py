"""Experiment trackers, through accelerate: each epoch's numbers, and at the end pictures of prompt and mapping."""

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
    """Raise ``UserError`` where a tracker's package is not installed; accelerate would ignore it silently."""
    available = {str(tracker) for tracker in get_available_trackers()}
    for name in names:
        if name not in available:
            package = _PACKAGES.get(name, name)
            raise UserError(f"train.report_to: {name} is not installed; run `pip install {package}`")


class Tracking:
    """The trackers that ``train.report_to`` names, for one run.

    Args:
        accelerator: Its main process reports, also to trackers that the accelerator has already; those stay open.
        config: The run's.
        folder: The run's; trackers that write files write there, except trackio, which has one folder for all runs.

    Raises:
        UserError: A tracker does not start, for example without a login.
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
        except Exception as error:  # each tracker raises errors of its own
            reason = (str(error) or type(error).__name__).splitlines()[0]
            raise UserError(f"train.report_to: {' or '.join(self.names)} does not start: {reason}") from error

    def epoch(self, row: dict[str, Any]) -> None:
        """Report the numbers of one line of metrics.jsonl."""
        numbers = {key: value for key, value in flat(row).items() if isinstance(value, (int, float))}
        step = numbers.pop("epoch")
        self.accelerator.log(numbers, step=step)

    def end(
        self, classifier: PromptedClassifier, test: EvalResult | None, metrics: dict[str, Any], step: int
    ) -> None:
        """Report the final scores and the pictures, and close the trackers that were opened here."""
        scores = {key: value for key, value in flat(metrics).items() if isinstance(value, (int, float))}
        self.accelerator.log(scores, step=step)
        takers = [tracker for tracker in self.accelerator.trackers if tracker.name in _PICTURES]
        if takers and test is not None and self.accelerator.is_main_process:
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

    labels, links = classifier.source.labels, classifier.mapping.links()
    try:
        figures = {
            "prompt": plot_prompt(classifier.prompt),
            "mapping": plot_mapping(test.counts, links, labels, classifier.class_names),
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


# How to send pictures, for the trackers that take them.
_PICTURES: dict[str, Callable[[GeneralTracker, Pictures, int], None]] = {
    "tensorboard": _to_tensorboard,
    "wandb": _to_wandb,
    "trackio": _to_trackio,
}
