"""A step with less and less of it computed, over the bare network's: plain, border shared, core without gradient, and
core kept from the first epoch.

Of frames on the image nothing is shared, so that plain and border are one. On a CPU it is the processor's time that is
measured, which others on the machine disturb less than the clock's.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator
from typing import Any

import torch
from torch import Tensor
from torch.nn import functional as F

from clipvp.config.schema import PromptConfig, SourceConfig
from clipvp.model import PromptedClassifier
from clipvp.sharing import CoreTape, count_operations
from clipvp.sources.base import Source
from clipvp.training.cores import Depth, best_depth, recorded

from .measure import alternate, now
from .random_weights import random_source
from .setting import Setting
from .steps import Bare

WAYS = ("plain", "border", "core")


def measure_sharing(setting: Setting) -> dict[str, Any]:
    """Return, for each architecture and prompt, each way's step over the bare one's in time and in operations."""
    config, found = setting.config, {}
    for name in config.architectures:
        source = random_source(SourceConfig(f"timm:{name}", config.canvas, config.precision), setting.device)
        found[name] = {}
        for label, prompt in prompts(setting, source):
            found[name][label] = row = _measure(setting, source, prompt)
            ratios = ", ".join(f"{way} {ratio:.2f}" for way, ratio in row["over_bare"].items())
            print(f"  {name}, {label}: {ratios}", flush=True)
    return {"sharing": found}


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


def _measure(setting: Setting, source: Source, prompt: PromptConfig) -> dict[str, Any]:
    config, device = setting.config, setting.device
    bare = Bare(source, config.batch_size, compiled=False)
    steps: dict[str, Callable[[], Any]] = {"bare": bare.step}
    ways = classifiers(setting, source, prompt)
    steps |= {way: _step(setting, each) for way, each in ways.items()}
    depth = best_depth(ways["core"])
    if depth is not None:
        steps["kept"] = _step(setting, ways["core"], depth)
    operations = {name: count_operations(step) for name, step in steps.items()}
    clock = (lambda: now(device)) if device.type == "cuda" else time.process_time
    times = alternate(steps, device, config.seconds, config.rounds, clock=clock)
    measured = [name for name in steps if name != "bare"]
    return {
        "bare_seconds": times.median("bare"),
        "over_bare": {way: times.ratio(way, "bare") for way in measured},
        "spread": {way: times.spread(way, "bare") for way in measured},
        "operations_over_bare": {way: operations[way] / operations["bare"] for way in measured},
        "kept_bytes_an_image": None if depth is None else depth.num_bytes,
        "rounds": times.rounds,
    }


def _step(
    setting: Setting, classifier: PromptedClassifier, depth: Depth | None = None
) -> Callable[[], Tensor]:
    """Return forward, and backward to the prompt, of a batch of noise, with its core kept to a depth."""
    images, labels = setting.noise(setting.config.batch_size, classifier.prompt.image_size).take(
        torch.arange(setting.config.batch_size)
    )
    parameters, tape = list(classifier.prompt.parameters()), None
    if depth is not None:
        tape = CoreTape(depth.share, *recorded(classifier, images, depth.share))

    def step() -> Tensor:
        loss = F.cross_entropy(classifier.mapping(classifier.source_outputs(images, tape)), labels)
        return torch.autograd.grad(loss, parameters)[0]

    return step
