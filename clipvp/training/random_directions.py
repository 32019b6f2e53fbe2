"""Random Gaussian directions: the gradient from one loss value at the parameters and one along each direction."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor, nn

from .gradients import DirectionsConfig, GradientRule, Loss, generator_of, moving


@dataclass
class RandomDirectionsConfig(DirectionsConfig):
    """Random Gaussian directions: 1 + draws queries an image and step."""

    gradient: str = "random_directions"


class RandomDirections(GradientRule):
    """The mean over draws of ``u (loss(w + r u) - loss(w)) / r``, the elements of ``u`` from N(0, 1).

    ``r`` is the radius. BAR writes unit directions and a factor d, the number of elements: ``u / |u|`` with the radius
    ``r |u|`` is the same up to ``d / |u|^2``, near 1, but its radius depends on d. The directions are a function of
    seed and step, the same for all parts of a step.

    Source: BAR (Tsai, Chen, Ho 2020, arXiv 2007.08714), equations 4 and 5.
    """

    def __init__(self, config: RandomDirectionsConfig, seed: int):
        super().__init__(config, seed)
        self.radius, self.draws = config.radius, config.draws
        self.evaluations = 1 + config.draws

    @torch.no_grad()
    def __call__(self, loss: Loss, parameters: Sequence[nn.Parameter], step: int) -> list[Tensor]:
        generator, here = generator_of(self.seed, step), loss()
        totals = [torch.zeros_like(parameter) for parameter in parameters]
        with moving(parameters) as move:
            for _ in range(self.draws):
                directions = [
                    torch.randn(parameter.shape, generator=generator).to(parameter)
                    for parameter in parameters
                ]
                move(directions, self.radius)
                slope = (loss() - here) / self.radius
                for total, direction in zip(totals, directions, strict=True):
                    total += slope * direction
        return [total / self.draws for total in totals]
