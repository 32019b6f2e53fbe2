"""A hash of weights, by which a saved prompt knows the model that it was made for."""

from __future__ import annotations

import hashlib
import re
from typing import Any

import torch
from torch import nn

_POSITIONS = re.compile("pos_embed|position|rel_pos")


def weights_fingerprint(*modules: nn.Module) -> str:
    """Return a hash of the weights and buffers of some modules, 16 hexadecimal digits.

    Position embeddings are left out: the libraries interpolate them to the canvas, in other bits on other machines.
    """
    digest = hashlib.sha256()
    for module in modules:
        for key, value in sorted(module.state_dict().items()):
            if not _POSITIONS.search(key):
                _add(digest, key, value)
    return digest.hexdigest()[:16]


def _add(digest, key: str, value: Any) -> None:
    """Add an entry of a state dict to a hash; a layer may also hold settings, and tuples of tensors (quantised)."""
    if isinstance(value, (list, tuple)):
        for index, part in enumerate(value):
            _add(digest, f"{key}.{index}", part)
        return
    if not torch.is_tensor(value):
        digest.update(f"{key} {value!r};".encode())
        return
    digest.update(f"{key} {tuple(value.shape)} {value.dtype};".encode())
    value = value.detach().cpu().resolve_conj().resolve_neg()
    value = value.dequantize() if value.is_quantized else value.to_dense() if value.is_sparse else value
    digest.update(value.contiguous().flatten().view(torch.uint8).numpy().data)
