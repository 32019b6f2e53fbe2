"""Batch norms that are frozen, as one multiplication and one addition a pixel: on a CPU their gradient takes a third of
the time of a step of EfficientNet-Lite0 otherwise."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor
from torch.nn import functional as F
from torch.overrides import TorchFunctionMode


class FrozenNorms(TorchFunctionMode):
    """While in use as a context, ``batch_norm`` with its own statistics is ``x * scale + shift``.

    Any network will do, and it stays as it is: the operator is replaced, not its modules. Scale and shift are kept,
    and made anew where what they are made of was written to. A norm that trains, or whose statistics move, is left
    to torch. The result is the same up to rounding.
    """

    def __init__(self):
        super().__init__()
        self._affine: dict[int, tuple[tuple, Tensor, Tensor]] = {}

    def __torch_function__(self, func: Callable, types, args=(), kwargs=None) -> Any:
        if func is not F.batch_norm:
            return func(*args, **(kwargs or {}))
        return self._batch_norm(*args, **(kwargs or {}))

    def _batch_norm(
        self,
        input: Tensor,
        running_mean: Tensor | None,
        running_var: Tensor | None,
        weight: Tensor | None = None,
        bias: Tensor | None = None,
        training: bool = False,
        momentum: float = 0.1,
        eps: float = 1e-5,
    ) -> Tensor:
        made_of = [value for value in (running_mean, running_var, weight, bias) if value is not None]
        if training or input.ndim != 4 or any(value.requires_grad for value in made_of):
            return F.batch_norm(input, running_mean, running_var, weight, bias, training, momentum, eps)
        state = (eps, *((value.data_ptr(), value._version) for value in made_of))
        known = self._affine.get(id(running_mean))
        if known is None or known[0] != state:
            with torch.inference_mode(False), torch.no_grad():  # they serve later passes, with gradients too
                scale = (running_var + eps).rsqrt() * (1 if weight is None else weight)
                shift = (0 if bias is None else bias) - running_mean * scale
            known = (state, scale[:, None, None], shift[:, None, None])
            self._affine[id(running_mean)] = known
        return torch.addcmul(known[2], input, known[1])
