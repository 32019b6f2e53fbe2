"""SPSA: the gradient from two loss values along each of a few random directions."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor, nn

from ..registry import check_positive
from .gradients import DirectionsConfig, GradientRule, Loss, generator_of, moving


@dataclass
class SPSAConfig(DirectionsConfig):
    """Simultaneous perturbation: two loss values a direction, 2 x draws queries an image and step.

    Args:
        radius_decay: The radius at step k (1, 2, ...) is radius / k ** radius_decay; 0 or more.
    """

    gradient: str = "spsa"
    radius_decay: float = 0.1

    def __post_init__(self):
        super().__post_init__()
        check_positive("train.radius_decay", self.radius_decay, zero=True)


class SPSA(GradientRule):
    """``(loss(w + c d) - loss(w - c d)) / (2 c d)``, element by element, averaged over draws.

    Each element of ``d`` has an absolute value uniform in [0.5, 1] and a random sign; ``c`` is the radius of the step.
    The directions are a function of seed and step, the same for all parts of a step. The metrics take their loss and
    accuracy from the first evaluation, at ``w + c d``.

    The gradient correction of BlackVIP, ``m = beta m + g; w = w - a (g + beta m)``, is SGD with Nesterov momentum:
    ``optim: {name: sgd, momentum: beta, nesterov: true}``.

    Source: BlackVIP (arXiv 2303.14773), section 3.2; Spall 1992.
    """

    def __init__(self, config: SPSAConfig, seed: int):
        super().__init__(config, seed)
        self.radius, self.decay, self.draws = config.radius, config.radius_decay, config.draws
        self.evaluations = 2 * config.draws

    @torch.no_grad()
    def __call__(self, loss: Loss, parameters: Sequence[nn.Parameter], step: int) -> list[Tensor]:
        generator, radius = generator_of(self.seed, step), self.radius / (step + 1) ** self.decay
        totals = [torch.zeros_like(parameter) for parameter in parameters]
        with moving(parameters) as move:
            for _ in range(self.draws):
                directions = [_direction(parameter, generator) for parameter in parameters]
                values = []
                for sign in (1, -1):
                    move(directions, sign * radius)
                    values.append(loss())
                slope = (values[0] - values[1]) / (2 * radius)
                for total, direction in zip(totals, directions, strict=True):
                    total += slope / direction
        return [total / self.draws for total in totals]


def _direction(parameter: Tensor, generator: torch.Generator) -> Tensor:
    """Return a direction of a parameter's shape: sizes uniform in [0.5, 1], signs even."""
    size = 0.5 + 0.5 * torch.rand(parameter.shape, generator=generator)
    sign = 2 * torch.randint(0, 2, parameter.shape, generator=generator) - 1
    return (size * sign).to(parameter)
