"""Optimisers, and learning rates as a function of the step alone, so that nothing has to be resumed."""

from __future__ import annotations

import math
from collections.abc import Iterable

import torch
from torch import nn

from ..config.schema import OptimConfig


def build_optimizer(config: OptimConfig, parameters: Iterable[nn.Parameter]) -> torch.optim.Optimizer:
    """Return the optimiser that a config names, over the parameters that train."""
    parameters = list(parameters)
    if config.name == "sgd":
        return torch.optim.SGD(
            parameters, lr=config.lr, momentum=config.momentum, weight_decay=config.weight_decay
        )
    kind = {"adam": torch.optim.Adam, "adamw": torch.optim.AdamW}[config.name]
    return kind(parameters, lr=config.lr, weight_decay=config.weight_decay)


def lr_at(config: OptimConfig, step: int, steps_per_epoch: int, epochs: int) -> float:
    """Return the learning rate of a step.

    Args:
        config: The schedule.
        step: 0 for the first step of the run.
        steps_per_epoch: Steps in an epoch.
        epochs: Epochs of the run.

    Returns:
        ``lr`` times the schedule's factor. Warm-up: (step + 1) / warm-up steps while below 1. multistep:
        gamma for each milestone m with int(m * epochs) epochs done, one at least. cosine: (1 + cos(pi * p)) / 2
        with p the share of the steps after warm-up that are done; cosine_epoch: the same at the epoch's first
        step. constant: 1.

    Source: ILM-VP's reference: Adam with MultiStep at 50 % and 72 %, SGD with cosine per step.
    """
    total = epochs * steps_per_epoch
    warmup = int(config.warmup * total)
    if step < warmup:
        return config.lr * (step + 1) / warmup
    if config.schedule == "multistep":
        epoch = step // steps_per_epoch
        return config.lr * config.gamma ** sum(epoch >= max(1, int(m * epochs)) for m in config.milestones)
    if config.schedule == "cosine_epoch":
        step = max(warmup, step - step % steps_per_epoch)
    if config.schedule in ("cosine", "cosine_epoch"):
        return config.lr * (1 + math.cos(math.pi * (step - warmup) / max(1, total - warmup))) / 2
    return config.lr
