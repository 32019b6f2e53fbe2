"""Steps of a length that the learning rate alone decides: the gradient divided by its norm."""

from __future__ import annotations

from dataclasses import dataclass

import torch

from ..config.schema import OptimConfig
from ..registry import UserError
from .optim import Groups

_LEAST = 1e-10  # added to the norm


@dataclass
class NormalizedSGDConfig(OptimConfig):
    """Gradient steps with the gradient divided by its norm over the whole canvas; no momentum."""

    name: str = "normalized_sgd"

    def __post_init__(self):
        super().__post_init__()
        if self.weight_decay:
            raise UserError(f"optim.weight_decay: {self.weight_decay} is not used by normalized_sgd; give 0")


class NormalizedSGD(torch.optim.Optimizer):
    """``value -= lr * g / (||g|| + 1e-10)`` for each tensor on its own; the norm is taken in float64.

    The gradient of a prompt with a fixed mask is that of the whole canvas: pixels where the mask is 0 count in the
    norm, and their steps change nothing that is seen. So a step on the frame is ``lr * mask * g / ||g||``. A ``scaled``
    prompt, whose mask moves, has the gradient of its frame alone: a later frame would show the other steps.

    Source: EVP (Wu et al., arXiv 2212.10556), section 3.2 and its code.
    """

    whole_canvas = True

    @torch.no_grad()
    def step(self, closure=None) -> None:
        for group in self.param_groups:
            for value in group["params"]:
                norm = value.grad.double().square().sum().sqrt()
                value -= (group["lr"] * value.grad.double() / (norm + _LEAST)).to(value.dtype)


def normalized_sgd(groups: Groups) -> torch.optim.Optimizer:
    return NormalizedSGD([{"params": own, "lr": config.lr} for config, own in groups], {})
