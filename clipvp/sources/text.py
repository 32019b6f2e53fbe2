"""Text embeddings, computed once for each list of texts and stored on disk.

The key is the whole list: the padding of a batch, and how its sums are rounded, depend on the texts that are in it, so
that embeddings kept text by text would have other bits after other runs.
"""

from __future__ import annotations

import contextlib
import hashlib
import json
import warnings
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import torch
from filelock import FileLock
from torch import Tensor
from torch.nn import functional as F

from ..files import (
    NO_LOCKS,
    CacheEntry,
    Damaged,
    cache_root,
    load_state,
    read_values,
    save_state,
    why_no_lock,
)
from ..progress import Bar

_BATCH = 256


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
    bar = Bar(len(texts), "encoding texts", progress, unit="text")
    with torch.no_grad(), bar:  # not inference mode, whose tensors cannot be used in training
        for start in range(0, len(texts), _BATCH):
            batch = list(texts[start : start + _BATCH])
            parts.append(F.normalize(encode(batch).float(), dim=1).cpu())
            bar.advance(len(batch))
    return torch.cat(parts)


def text_embeddings(
    encode: Callable[[list[str]], Tensor],
    texts: Sequence[str],
    key: dict[str, Any],
    check: Callable[[], None] | None = None,
    progress: bool = True,
) -> Tensor:
    """Return L2-normalised embeddings (n, D) float32, from the disk where they were made before.

    Args:
        encode: A list of texts to their embeddings (len, D).
        texts: What to encode, each distinct text once; these are part of the key.
        key: Everything else that decides the embeddings: model, revision, weights, precision.
        check: Called before anything is encoded; raises where a text cannot be.
        progress: Show a bar, on a terminal.

    A cache file that is damaged or has another key is made again. Of runs that start together, one encodes.
    """
    place = {text: row for row, text in enumerate(dict.fromkeys(texts))}
    rows = [place[text] for text in texts] if len(place) < len(texts) else slice(None)
    distinct = list(place)
    full_key = json.dumps({**key, "texts": distinct}, sort_keys=True)
    path = cache_root() / "text" / f"{hashlib.sha256(full_key.encode()).hexdigest()[:32]}.safetensors"
    with contextlib.ExitStack() as held:
        try:
            path.parent.mkdir(parents=True, exist_ok=True)
            held.enter_context(FileLock(f"{path}.lock"))
            unguarded = None
        except NO_LOCKS as error:
            unguarded = why_no_lock(error)
        found = _read(path, full_key, len(distinct))
        if found is not None:
            return found[rows]
        if check is not None:
            check()
        found = encode_in_batches(encode, distinct, progress)
        try:
            save_state(path, {"embeddings": found}, {"key": full_key})
        except OSError as error:  # the embeddings can be used without the file
            reason = str(error).splitlines()[0]
            warnings.warn(f"text embeddings are made anew each time: {reason}", stacklevel=2)
        else:
            if unguarded is not None:
                warnings.warn(f"runs that start together each encode the texts: {unguarded}", stacklevel=2)
        return found[rows]


def _read(path: Path, full_key: str, count: int) -> Tensor | None:
    try:
        tensors, values = load_state(path)
    except Damaged:  # or not there
        return None
    found = tensors.get("embeddings")
    whole = values.get("key") == full_key and found is not None and found.ndim == 2 and len(found) == count
    return found if whole else None


def list_texts(cache_dir: str | Path | None = None) -> list[CacheEntry]:
    """Return the files of cached text embeddings, the largest first."""
    entries = []
    for path in (cache_root(cache_dir) / "text").glob("*.safetensors"):
        try:
            key = json.loads(read_values(path)["key"])
            what = f"{len(key['texts']):,} texts, {key['model']}"
        except (Damaged, KeyError, TypeError, ValueError):
            what = "unknown"
        entries.append(CacheEntry("texts", what, path, path.stat().st_size))
    return sorted(entries, key=lambda entry: -entry.num_bytes)
