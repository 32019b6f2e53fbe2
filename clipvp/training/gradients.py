"""Gradient rules: how the loss of a part of a step becomes what it adds to the gradient.

A rule is a class. Backpropagation needs the gradient of everything before the loss; the others see loss values only. A
plug-in registers another one.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass

import torch
from torch import Tensor, nn

from ..config.schema import TrainConfig
from ..model import PromptedClassifier
from ..registry import GRADIENTS, UserError, check_positive

Loss = Callable[[], Tensor]


class GradientRule(ABC):
    """Base of all rules.

    Args:
        config: The section ``train``, with the rule's own keys.
        seed: The run's seed, for rules that draw random numbers.

    Attributes:
        needs_gradient: Whether the gradient must pass through the source.
        evaluations: How often a step computes its loss, so how often it asks the source about each image.
    """

    needs_gradient = False
    evaluations = 1

    def __init__(self, config: TrainConfig, seed: int):
        self.seed = seed

    @abstractmethod
    def __call__(self, loss: Loss, parameters: Sequence[nn.Parameter], step: int) -> list[Tensor]:
        """Return the gradient of one part of a step.

        A step is cut into parts, whose gradients are summed; a rule must depend on its arguments alone, so that it does
        not matter which process computes a part.

        Args:
            loss: Computes the part's share of the loss with the parameters as they are, to be called ``evaluations``
                times; its first call is the one that counts in the metrics.
            parameters: What trains, one tensor or more. A rule may change them while it works.
            step: Steps of the run taken before.

        Returns:
            One tensor for each parameter.
        """


class Backpropagation(GradientRule):
    """The exact gradient, by automatic differentiation."""

    needs_gradient = True

    def __call__(self, loss: Loss, parameters: Sequence[nn.Parameter], step: int) -> list[Tensor]:
        return list(torch.autograd.grad(loss(), parameters, allow_unused=True, materialize_grads=True))


@dataclass
class DirectionsConfig(TrainConfig):
    """Keys of rules that follow random directions.

    Args:
        radius: How far a parameter is moved, before the direction's own factor; in units of the parameter.
        draws: Directions a step, whose estimates are averaged.
    """

    radius: float = 0.01
    draws: int = 5

    def __post_init__(self):
        super().__post_init__()
        check_positive("train.radius", self.radius)
        check_positive("train.draws", self.draws)


def generator_of(seed: int, step: int) -> torch.Generator:
    """Return the random numbers of a step, on the CPU; they are the same for all its parts."""
    return torch.Generator().manual_seed((seed * 1_000_003 + step * 7919 + 29) % (1 << 63))


@contextmanager
def moving(parameters: Sequence[nn.Parameter]) -> Iterator[Callable[[Sequence[Tensor], float], None]]:
    """Yield a function that sets parameters to their start plus a length times directions; in the end they are at their
    start again, to the bit."""
    start = [parameter.detach().clone() for parameter in parameters]

    def move(directions: Sequence[Tensor], length: float) -> None:
        for parameter, value, direction in zip(parameters, start, directions, strict=True):
            parameter.copy_(value + length * direction)

    try:
        yield move
    finally:
        for parameter, value in zip(parameters, start, strict=True):
            parameter.copy_(value)


def check_gradient(classifier: PromptedClassifier, name: str) -> None:
    """Raise ``UserError`` where a rule needs a gradient that the source does not give."""
    trains = any(parameter.requires_grad for parameter in classifier.prompt.parameters())
    if trains and not classifier.source.gives_gradient and GRADIENTS.get(name).needs_gradient:
        others = [other for other in GRADIENTS.names() if not GRADIENTS.get(other).needs_gradient]
        raise UserError(
            f"train.gradient: {name} needs a gradient, and source {classifier.source.name!r} gives none; "
            f"allowed: {', '.join(others)}"
        )
