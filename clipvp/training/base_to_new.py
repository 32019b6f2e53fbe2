"""From base to new classes: a prompt trained on half of a task's classes, scored on the other half too."""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import Any

from accelerate import Accelerator

from ..build import build_classifier
from ..config.schema import RunConfig
from ..cpu import float32_default
from ..data.batches import Batches
from ..data.task import Task, load_task
from ..progress import Progress
from ..registry import UserError
from ..results.folder import RunFolder
from ..scoring.scores import EvalResult, evaluate
from .fit import FitResult, fit
from .statistics import count_pass, fit_mapping


@dataclass
class BaseToNew:
    """Scores of one prompt on the classes it was trained on and on the others.

    Args:
        base: Scores of the base classes' test images, predicted among the base classes.
        new: The same of the new classes.
        mapping: How the new classes got their source labels.
        fit: The run on the base classes.
    """

    base: EvalResult
    new: EvalResult
    mapping: str
    fit: FitResult

    @property
    def harmonic_mean(self) -> float:
        return harmonic_mean(self.base.acc1, self.new.acc1)

    def to_dict(self) -> dict[str, Any]:
        """Return what results.json says of it."""
        scores = {"base": self.base.to_dict(), "new": self.new.to_dict()}
        return {**scores, "harmonic_mean": self.harmonic_mean, "mapping_of_new": self.mapping}


def harmonic_mean(one: float, other: float) -> float:
    """Return 2 / (1 / one + 1 / other), 0 where one of them is 0.

    >>> round(harmonic_mean(0.8, 0.4), 4)
    0.5333
    """
    return 2 * one * other / (one + other) if one and other else 0.0


@float32_default()
def fit_base_to_new(config: RunConfig, accelerator: Accelerator | None = None) -> BaseToNew:
    """Train on the base classes, then score base and new classes with the prompt that the run saves.

    The prompt sees no image of a new class. A mapping that needs counts gets them from the new classes' training
    images (the few-shot ones, with ``data.shots``) and the trained prompt; any other mapping sees none of them.

    Args:
        config: ``data.classes`` must be all; the run's own config says base.
        accelerator: Processes and device; a new one when None.

    Raises:
        UserError: As for ``load_task`` and ``fit``.
    """
    if config.data.classes != "all":
        raise UserError(
            f"data.classes: {config.data.classes} leaves no other classes to score; leave it at all"
        )
    accelerator = accelerator or Accelerator()
    (base, base_config), (new, new_config) = (_half(config, classes) for classes in ("base", "new"))
    classifier = build_classifier(base_config, base, accelerator.device)
    other = build_classifier(new_config, new, accelerator.device)  # what does not fit is said before training
    result = fit(classifier, base, base_config, accelerator)
    other.prompt.take_over(classifier.prompt, classifier.source, other.source)
    progress, mapping = config.train.progress, "needs no images"
    if other.mapping.due(0):
        train = Batches(new.tensors("train", other.resize, progress=progress), accelerator)
        size, bars = config.train.batch_size, Progress(progress and accelerator.is_main_process)
        watch = bars.watch(train.num_local_images(size), "counting new classes")
        fit_mapping(other, count_pass(other, train, size, watch))
        mapping = f"counts of {len(train)} training images of the new classes"
    batch_size = config.train.batch_size
    scores = evaluate(other, new, batch_size=batch_size, accelerator=accelerator, progress=progress)
    found = BaseToNew(result.test[result.results["saved_prompt"] or "last"], scores, mapping, result)
    result.results["base_to_new"] = found.to_dict()
    RunFolder(result.output, writes=accelerator.is_main_process).write_results(result.results)
    return found


def _half(config: RunConfig, classes: str) -> tuple[Task, RunConfig]:
    """Return the task of the base or the new classes, and the config of a run on it."""
    data = replace(config.data, classes=classes)
    task = load_task(data, seed=config.seed, protocol=config.train.protocol)
    given = config.mapping.class_names or {}
    names = {name: words for name, words in given.items() if name in task.class_names} or None
    return task, replace(config, data=data, mapping=replace(config.mapping, class_names=names))
