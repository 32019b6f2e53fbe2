"""Networks of one input channel: they see the grey image of RGB pixels."""

from __future__ import annotations

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from ..registry import UserError

LUMA = (0.299, 0.587, 0.114)  # ITU-R BT.601, as Pillow's mode "L"


class Grey(nn.Module):
    """A network of one channel as a network of RGB pixels (B, 3, H, W), of which it is given the luma (B, 1, H, W).

    The weights of the luma add up to 1. With the same mean and std for all channels it does not matter whether pixels
    are normalised before or after it.
    """

    def __init__(self, network: nn.Module):
        super().__init__()
        self.network = network
        self.register_buffer(
            "luma", torch.tensor(LUMA, dtype=torch.float32).view(1, 3, 1, 1), persistent=False
        )

    def forward(self, pixels: Tensor) -> Tensor:
        return self.network(F.conv2d(pixels, self.luma))


def for_rgb(network: nn.Module, channels: int, name: str) -> nn.Module:
    """Return a network that takes RGB pixels, for one of 3 or 1 input channels.

    Raises:
        UserError: It takes another number of channels.
    """
    if channels not in (1, 3):
        raise UserError(
            f"source {name!r} takes images of {channels} channels; a source has 3, or 1 for grey images"
        )
    return Grey(network) if channels == 1 else network
