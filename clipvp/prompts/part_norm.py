"""Batch norm for what trains: its statistics do not depend on the process that computes a part of a step."""

from __future__ import annotations

import torch
from torch import Tensor, nn
from torch.nn import functional as F


class PartNorm(nn.Module):
    """Batch norm whose running statistics are changed between steps, not in ``forward``.

    In training mode a batch, which is one part of a step, is normalised by its own mean and variance, which are kept
    until ``take``. The loop gathers what the parts of a step kept and calls ``update`` part by part in one order. A
    batch with one value a channel is normalised by the running statistics, as in evaluation mode, and keeps nothing.

    Args:
        channels: C of maps (B, C, H, W).
        momentum: Weight of a part in the running statistics.
        eps: Added to variances.
    """

    def __init__(self, channels: int, momentum: float = 0.1, eps: float = 1e-5):
        super().__init__()
        self.momentum, self.eps = momentum, eps
        self.weight = nn.Parameter(torch.ones(channels, dtype=torch.float32))
        self.bias = nn.Parameter(torch.zeros(channels, dtype=torch.float32))
        self.register_buffer("running_mean", torch.zeros(channels, dtype=torch.float32))
        self.register_buffer("running_var", torch.ones(channels, dtype=torch.float32))
        self._seen: tuple[Tensor, Tensor] | None = None

    def forward(self, maps: Tensor) -> Tensor:
        if self.training and maps.numel() > maps.shape[1]:
            mean, var = torch.zeros_like(self.running_mean), torch.ones_like(self.running_var)
            # With a momentum of 1 torch puts the batch's own statistics there, the variance unbiased.
            normalised = F.batch_norm(maps, mean, var, self.weight, self.bias, True, 1.0, self.eps)
            self._seen = mean, var
            return normalised
        self._seen = None
        return F.batch_norm(
            maps, self.running_mean, self.running_var, self.weight, self.bias, False, 0.0, self.eps
        )

    def take(self) -> Tensor:
        """Return and forget what the last batch kept, (2 * C + 1,): mean, variance, 1; zeros where it kept nothing."""
        seen, self._seen = self._seen, None
        if seen is None:
            return self.running_mean.new_zeros(2 * len(self.running_mean) + 1)
        return torch.cat([*seen, torch.ones_like(seen[0][:1])])

    @torch.no_grad()
    def update(self, taken: Tensor) -> None:
        """Move the running statistics towards what ``take`` gave of one part."""
        channels = len(self.running_mean)
        rate = self.momentum * taken[-1]
        self.running_mean.lerp_(taken[:channels], rate)
        self.running_var.lerp_(taken[channels:-1], rate)
