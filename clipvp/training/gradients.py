"""Gradient rules: how the loss of a part of a step becomes what it adds to the gradient.

A rule is a class. A plug-in registers another one, for example one that sees loss values only.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence

import torch
from torch import Tensor, nn

from ..config.schema import TrainConfig


class Backpropagation:
    """The exact gradient, by automatic differentiation.

    Args:
        config: The section ``train``, with the rule's own keys.
        seed: The run's seed, for rules that draw random numbers.
    """

    def __init__(self, config: TrainConfig, seed: int):
        pass

    def __call__(
        self, loss: Callable[[], Tensor], parameters: Sequence[nn.Parameter], step: int
    ) -> list[Tensor]:
        """Return the gradient of one part of a step.

        A step is cut into parts, whose gradients are summed; a rule must depend on its arguments alone, so that it does
        not matter which process computes a part.

        Args:
            loss: Computes the part's share of the loss with the parameters as they are; its first call is the one that
                counts in the metrics.
            parameters: What trains, maybe nothing; then ``loss`` must be called all the same.
            step: Steps of the run taken before.

        Returns:
            One tensor for each parameter.
        """
        value = loss()
        if not parameters:
            return []
        return list(torch.autograd.grad(value, parameters, allow_unused=True, materialize_grads=True))
