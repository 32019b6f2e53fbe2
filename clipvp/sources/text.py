"""Text embeddings, made once for each label space and kept on disk."""

from __future__ import annotations

import hashlib
import json
import os
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import torch
from filelock import FileLock
from torch import Tensor
from torch.nn import functional as F
from tqdm import tqdm

from ..files import Damaged, load_state, save_state

_BATCH = 256


def cache_folder() -> Path:
    """Return the folder of cached embeddings: ``$CLIPVP_CACHE/text``, by default in the user's cache folder."""
    base = os.environ.get("CLIPVP_CACHE") or Path(os.environ.get("XDG_CACHE_HOME") or "~/.cache") / "clipvp"
    return Path(base).expanduser() / "text"


def encode_in_batches(
    encode: Callable[[list[str]], Tensor], texts: Sequence[str], progress: bool = True
) -> Tensor:
    """Return L2-normalised embeddings (n, D) float32 of n texts, on the CPU.

    Args:
        encode: A list of texts to their embeddings (len, D).
        texts: What to encode.
        progress: Show a bar, on a terminal.
    """
    parts = []
    bar = tqdm(
        total=len(texts), desc="encoding texts", unit="text", leave=False, disable=None if progress else True
    )
    with torch.no_grad(), bar:  # no inference mode: its tensors cannot take part in training
        for start in range(0, len(texts), _BATCH):
            batch = list(texts[start : start + _BATCH])
            parts.append(F.normalize(encode(batch).float(), dim=1).cpu())
            bar.update(len(batch))
    return torch.cat(parts)


def text_embeddings(
    encode: Callable[[list[str]], Tensor], texts: Sequence[str], key: dict[str, Any], progress: bool = True
) -> Tensor:
    """Return L2-normalised embeddings (n, D) float32, from the disk where they were made before.

    Args:
        encode: A list of texts to their embeddings (len, D).
        texts: What to encode; part of the key.
        key: Everything else that decides the embeddings: model, revision, weights, precision.
        progress: Show a bar, on a terminal.

    A cache file that is cut, changed or of another key is made again. Runs that start at once encode once.
    """
    full_key = json.dumps({**key, "texts": list(texts)}, sort_keys=True)
    path = cache_folder() / f"{hashlib.sha256(full_key.encode()).hexdigest()[:32]}.safetensors"
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        with FileLock(f"{path}.lock"):
            found = _read(path, full_key, len(texts))
            if found is None:
                found = encode_in_batches(encode, texts, progress)
                save_state(path, {"embeddings": found}, {"key": full_key})
            return found
    except OSError:  # no room or no right to write: the embeddings are still to be had
        return encode_in_batches(encode, texts, progress)


def _read(path: Path, full_key: str, count: int) -> Tensor | None:
    if not path.exists():
        return None
    try:
        tensors, values = load_state(path)
    except Damaged:
        return None
    found = tensors.get("embeddings")
    whole = values.get("key") == full_key and found is not None and found.ndim == 2 and len(found) == count
    return found if whole else None
