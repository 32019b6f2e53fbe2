"""A step with less and less of it computed, over the bare network's: plain, border shared, core without gradient, and
core kept from the first epoch.

Every step takes its images by their indices, and the last one what is kept of their core, as a run does. Of frames on
the image nothing is shared, so that plain and border are one. On a CPU the ratios are of the processor's time, which
others on the machine disturb less than the clock's; those of the clock are kept beside them.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import Any

import torch
from torch import Tensor
from torch.nn import functional as F

from clipvp.config.schema import PromptConfig, SourceConfig
from clipvp.data.batches import Batches, epoch_order
from clipvp.model import PromptedClassifier
from clipvp.sharing import count_operations
from clipvp.sources.base import Source
from clipvp.training.cores import CoreBatches

from .measure import alternate
from .random_weights import random_source
from .setting import Setting
from .steps import Bare

WAYS = ("plain", "border", "core")


def measure_sharing(setting: Setting) -> Iterator[dict[str, Any]]:
    """Yield, after each architecture and prompt, each way's step over the bare one's in time and in operations."""
    found: dict[str, dict[str, Any]] = {}
    for name, label, source, prompt in cases(setting):
        found.setdefault(name, {})[label] = row = _measure(setting, source, prompt)
        ratios = ", ".join(f"{way} {ratio:.2f}" for way, ratio in row["over_bare"].items())
        print(f"  {name}, {label}: {ratios}", flush=True)
        yield {"sharing": found}


def cases(setting: Setting) -> Iterator[tuple[str, str, Source, PromptConfig]]:
    """Yield each architecture with each prompt that fits its canvas: their names in tables, and both themselves."""
    config = setting.config
    for name in config.architectures:
        source = random_source(SourceConfig(f"timm:{name}", config.canvas, config.precision), setting.device)
        for label, prompt in prompts(setting, source):
            yield name, label, source, prompt


def prompts(setting: Setting, source: Source) -> Iterator[tuple[str, PromptConfig]]:
    """Yield the prompts of the config that fit a source's canvas, each with what tables call it."""
    side = min(source.canvas)
    for size in setting.config.image_sizes:
        if size <= side:
            yield f"image {size}", PromptConfig(kind="padding", image_size=size)
    for width in setting.config.frames:
        if 2 * width < side:
            yield f"frame {width}", PromptConfig(kind="border", width=width)


def classifiers(setting: Setting, source: Source, prompt: PromptConfig) -> dict[str, PromptedClassifier]:
    """Return the classifier of each way."""
    made = {way: setting.classifier(way != "plain", source=source, prompt=prompt) for way in WAYS}
    made["border"].prompt.acts_on = lambda: None  # as a prompt that does not say
    if made["border"].prompt.surroundings() is None:
        del made["border"]
    return made


def steps_of(
    setting: Setting, source: Source, prompt: PromptConfig
) -> tuple[dict[str, Callable[[], Any]], int | None]:
    """Return the step of the bare network and of each way, and the bytes an image that the last one keeps."""
    size = setting.config.batch_size
    ways = classifiers(setting, source, prompt)
    batches = setting.noise(size, ways["core"].prompt.image_size)
    steps: dict[str, Callable[[], Any]] = {"bare": Bare(source, size, compiled=False).step}
    steps |= {way: step_of(each, batches) for way, each in ways.items()}
    kept = setting.with_cores(ways["core"], {"train": batches})["train"]
    if not isinstance(kept, CoreBatches):
        return steps, None
    return {**steps, "kept": step_of(ways["core"], kept)}, kept.depth.num_bytes


def _measure(setting: Setting, source: Source, prompt: PromptConfig) -> dict[str, Any]:
    config, device = setting.config, setting.device
    steps, kept_bytes = steps_of(setting, source, prompt)
    operations = {name: count_operations(step) for name, step in steps.items()}
    wall = alternate(steps, device, config.seconds, config.rounds)
    times = wall if device.type == "cuda" else wall.processor
    measured = [name for name in steps if name != "bare"]
    return {
        "bare_seconds": times.median("bare"),
        "over_bare": {way: times.ratio(way, "bare") for way in measured},
        "over_bare_wall": {way: wall.ratio(way, "bare") for way in measured},
        "spread": {way: times.spread(way, "bare") for way in measured},
        "operations_over_bare": {way: operations[way] / operations["bare"] for way in measured},
        "kept_bytes_an_image": kept_bytes,
        "rounds": times.rounds,
    }


def step_of(classifier: PromptedClassifier, batches: Batches) -> Callable[[], Tensor]:
    """Return forward, and backward to the prompt, of all images of some batches, taken by their indices."""
    parameters, order = list(classifier.prompt.parameters()), epoch_order(len(batches), 0, 0)

    def step() -> Tensor:
        images, labels = batches.take(order)
        loss = F.cross_entropy(classifier.mapping(batches.outputs(classifier, images)), labels)
        return torch.autograd.grad(loss, parameters)[0]

    return step
