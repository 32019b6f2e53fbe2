"""Optimisers by name, and learning rates as a function of the step alone, so that nothing has to be resumed."""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import nn

from ..config.schema import OptimConfig
from ..registry import OPTIMIZERS, UserError, check_positive, nearest

# The settings of each group and its parameters; the first settings are those of most groups.
Groups = list[tuple[OptimConfig, list[nn.Parameter]]]


@dataclass
class AdamConfig(OptimConfig):
    """Adam."""

    name: str = "adam"


@dataclass
class AdamWConfig(OptimConfig):
    """AdamW."""

    name: str = "adamw"


@dataclass
class SGDConfig(OptimConfig):
    """Stochastic gradient descent.

    Args:
        momentum: Momentum, 0 or more.
        nesterov: Nesterov's momentum; with it, momentum is above 0.
    """

    name: str = "sgd"
    momentum: float = 0.9
    nesterov: bool = False

    def __post_init__(self):
        super().__post_init__()
        check_positive("optim.momentum", self.momentum, zero=not self.nesterov)


def adam(groups: Groups) -> torch.optim.Optimizer:
    return torch.optim.Adam(_settings(groups))


def adamw(groups: Groups) -> torch.optim.Optimizer:
    return torch.optim.AdamW(_settings(groups))


def sgd(groups: Groups) -> torch.optim.Optimizer:
    return torch.optim.SGD(_settings(groups, "momentum", "nesterov"))


def _settings(groups: Groups, *more: str) -> list[dict]:
    """Return groups as torch has them, with the rate, the weight decay and further settings."""
    return [
        {"params": parameters, **{key: getattr(config, key) for key in ("lr", "weight_decay", *more)}}
        for config, parameters in groups
    ]


class ScheduledOptimizer:
    """The optimiser of a config over groups of parameters, each with its own settings and schedule.

    Args:
        config: ``groups`` holds what differs for a group.
        parameters: The parameters that train, by group; one or more.
        steps_per_epoch: Steps in an epoch.
        epochs: Epochs of the run.

    Attributes:
        optimizer: The torch optimiser.
        whole_canvas: Whether it wants the gradients of prompts where their masks are 0, too.

    Raises:
        UserError: ``optim.groups`` names a group that this run does not have.
    """

    def __init__(
        self,
        config: OptimConfig,
        parameters: dict[str, list[nn.Parameter]],
        steps_per_epoch: int,
        epochs: int,
    ):
        for name in config.groups:
            if name not in parameters:
                raise UserError(
                    f"optim.groups: nothing trains in a group {name!r}; {nearest(name, parameters)}"
                )
        self.configs = {name: config.group(name) for name in parameters}
        build: Callable[[Groups], torch.optim.Optimizer] = OPTIMIZERS.get(config.name)
        self.optimizer = build([(self.configs[name], own) for name, own in parameters.items()])
        self.whole_canvas = getattr(self.optimizer, "whole_canvas", False)
        self.steps_per_epoch, self.epochs = steps_per_epoch, epochs

    def rates(self, step: int) -> dict[str, float]:
        """Return the learning rate of each group at a step of the run."""
        return {
            name: lr_at(config, step, self.steps_per_epoch, self.epochs)
            for name, config in self.configs.items()
        }

    def step(self, step: int) -> None:
        """Take one step with the gradients that the parameters hold, at the rates of ``step``."""
        for group, rate in zip(self.optimizer.param_groups, self.rates(step).values(), strict=True):
            group["lr"] = rate
        self.optimizer.step()
        self.optimizer.zero_grad()


def lr_at(config: OptimConfig, step: int, steps_per_epoch: int, epochs: int) -> float:
    """Return the learning rate of a step.

    Args:
        config: The schedule.
        step: 0 for the first step of the run.
        steps_per_epoch: Steps in an epoch.
        epochs: Epochs of the run.

    Returns:
        ``lr`` times the schedule's factor. Warm-up: (step + 1) / warm-up steps while below 1. multistep:
        gamma for each milestone m with int(m * epochs) epochs done, at least one. cosine: (1 + cos(pi * p)) / 2
        with p the share of the steps after warm-up that are done; cosine_epoch: the same at the epoch's first
        step. power: (k + 1) ** -power at the k-th step after warm-up, k = 1, 2, ...; polynomial: (1 - p) ** power.
        constant: 1.

    Source: ILM-VP's reference: Adam with MultiStep at 50 % and 72 %, SGD with cosine per step. BlackVIP: power.
    """
    total = epochs * steps_per_epoch
    warmup = config.warmup_steps or int(config.warmup * total)
    if step < warmup:
        return config.lr * (step + 1) / warmup
    if config.schedule == "multistep":
        epoch = step // steps_per_epoch
        return config.lr * config.gamma ** sum(epoch >= max(1, int(m * epochs)) for m in config.milestones)
    if config.schedule == "cosine_epoch":
        step = max(warmup, step - step % steps_per_epoch)
    if config.schedule in ("cosine", "cosine_epoch"):
        return config.lr * (1 + math.cos(math.pi * (step - warmup) / max(1, total - warmup))) / 2
    if config.schedule == "power":
        return config.lr / (step - warmup + 2) ** config.power
    if config.schedule == "polynomial":
        return config.lr * (1 - (step - warmup) / max(1, total - warmup)) ** config.power
    return config.lr
