"""Dropout that depends on seed, epoch and image alone, so that neither processes nor a resume change it."""

from __future__ import annotations

from collections.abc import Callable
from contextlib import AbstractContextManager
from typing import Any

import torch
from torch import Tensor
from torch.nn import functional as F
from torch.overrides import TorchFunctionMode

from ..registry import UserError
from .base import Weights

# Of the hash splitmix64, as signed numbers.
_STEP, _FIRST, _SECOND = -0x61C8864680B583EB, -0x40A7B892E31B1A47, -0x6B2FB644ECCEEE15
_BITS = 24


def mixed(values: Tensor) -> Tensor:
    """Return a hash of each number, int64 as ``values``; the same on every device.

    Source: splitmix64, with shifts that keep the sign.
    """
    values = (values ^ (values >> 30)) * _FIRST
    values = (values ^ (values >> 27)) * _SECOND
    return values ^ (values >> 31)


def image_keys(seed: int, epoch: int, images: Tensor) -> Tensor:
    """Return a number (B,) int64 for each image of an epoch."""
    start = mixed(torch.tensor([seed, epoch], dtype=torch.int64)).sum()
    return mixed(images.to(torch.int64) * _STEP + start.to(images.device))


class ImageDropout(TorchFunctionMode):
    """Context manager in which ``F.dropout`` draws for each image on its own.

    Args:
        keys: (B,) int64, one number an image of the batch.
    """

    def __init__(self, keys: Tensor):
        super().__init__()
        self.keys, self._layer = keys, 0

    def __torch_function__(self, func: Callable, types, args=(), kwargs=None) -> Any:
        if func is not F.dropout:
            return func(*args, **(kwargs or {}))
        return self._dropout(*args, **(kwargs or {}))

    def _dropout(self, input: Tensor, p: float = 0.5, training: bool = True, inplace: bool = False) -> Tensor:
        if not training or p == 0:
            return input
        self._layer += 1
        count = len(self.keys)
        if input.shape[0] % count:
            if input.ndim > 2 and input.shape[1] == count:  # positions first
                return self._dropped(input.transpose(0, 1), p).transpose(0, 1)
            raise UserError(f"weights: dropout of {tuple(input.shape)} does not tell {count} images apart")
        return self._dropped(input, p)

    def _dropped(self, input: Tensor, p: float) -> Tensor:
        per_image = input.numel() // len(self.keys)
        places = torch.arange(per_image, device=input.device) * _STEP
        layer = torch.tensor(self._layer, dtype=torch.int64) * _FIRST  # wraps, as the hash wants
        keys = mixed(self.keys.to(input.device) + layer.to(input.device))
        drawn = mixed(keys[:, None] ^ places) & (2**_BITS - 1)
        kept = (drawn >= round(p * 2**_BITS)).view(input.shape)
        return input * kept / (1 - p)


class ImageWeights(Weights):
    """Weights of a network that may have dropout; what it drops follows from seed, epoch and image."""

    _keys: Tensor | None = None

    def begin(self, seed: int, epoch: int, images: Tensor) -> None:
        self._keys = image_keys(seed, epoch, images)

    def running(self) -> AbstractContextManager:
        return super().running() if self._keys is None else ImageDropout(self._keys)
