"""What no prompt pixel reaches is the same in every epoch: the source's work on it is kept.

Each layer of the source reads a rim of the core of each image (``clipvp.sharing``). These pixels are computed once,
kept in memory or on disk, and given to every later pass over the image: steps, counting, validating.
"""

from __future__ import annotations

import errno
import hashlib
import os
import warnings
from collections.abc import Callable, Iterator
from contextlib import suppress
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import torch
from accelerate import Accelerator
from accelerate.utils import broadcast
from torch import Tensor

from ..config.schema import TrainConfig
from ..data.batches import Batches
from ..data.cache import CoreEntry, remove_partial_core
from ..data.sets import ImageSet
from ..data.task import Task
from ..model import PromptedClassifier
from ..progress import Progress
from ..sharing import CoreTape, TapeMismatch
from .core_depth import LEAST_SAVED, Depth, best_depth, recorded

BATCH = 32  # images at a time while building, whatever the run's batch size: rounding depends on it
# Of the machine's or container's memory, the most that is kept there by all its processes; each keeps a copy.
_MEMORY_SHARE = 1 / 8
# What a container may use, in bytes: control groups of version 2 and 1.
_CONTAINER_LIMITS = ("/sys/fs/cgroup/memory.max", "/sys/fs/cgroup/memory/memory.limit_in_bytes")
_FULL = (errno.ENOSPC, errno.EDQUOT, errno.EFBIG)
_LEAST_IMAGES = 1000  # over all epochs: a shorter run ends sooner than the depths are tried


class Taken(NamedTuple):
    """Images (B, 3, h, w) and what passes over them read of their core."""

    images: Tensor
    tape: CoreTape


class CoreBatches(Batches):
    """Batches of images with what is kept of their core.

    Args:
        batches: Of the images, which no run augments.
        depth: How far the core is kept.
        rows: (N, n) of the depth's type, what is kept of each image.
    """

    def __init__(self, batches: Batches, depth: Depth, rows: np.ndarray):
        self.__dict__.update(batches.__dict__)
        self.depth, self.kept = depth, rows

    def augmentation(self, name: str, seed: int, epoch: int) -> None:
        """Return None: what is kept is that of the images as they are."""

    def take(self, indices: Tensor, augment: None = None) -> tuple[Taken, Tensor]:
        images, labels = super().take(indices)
        rows = torch.from_numpy(self.kept[indices.numpy()]).to(self.device)
        return Taken(images, CoreTape(self.depth.share, self.depth.plan, rows)), labels

    def outputs(self, classifier: PromptedClassifier, taken: Taken) -> Tensor:
        # What is kept was computed in the source's precision; counts and scores may be computed in fp32.
        tape = taken.tape if classifier.source.computes_in == classifier.source.precision else None
        return classifier.source_outputs(taken.images, tape)

    def plain_features(self, classifier: PromptedClassifier, taken: Taken) -> Tensor:
        return classifier.plain_features(taken.images)


def where_to_keep(
    classifier: PromptedClassifier, config: TrainConfig, num_images: int, device: torch.device
) -> str | None:
    """Return where a run keeps the core, memory or disk; None where it does not.

    Args:
        num_images: Of the training split.
        device: Of the run.
    """
    where = config.keep_core
    if where == "auto":
        pays = device.type == "cpu" and config.epochs > 1 and num_images * config.epochs >= _LEAST_IMAGES
        where = "memory" if pays else "off"
    return where if where != "off" and config.augment == "none" and _has_core(classifier) else None


def with_cores(
    classifier: PromptedClassifier,
    data: dict[str, Batches],
    task: Task,
    where: str,
    config: TrainConfig,
    accelerator: Accelerator,
    progress: Progress,
) -> dict[str, Batches]:
    """Return the batches of a run, with what is kept of their core where that saves time and fits.

    Every process must call it; each computes its share.
    """
    passed = [split for split in data if split != "test" or config.test_every_epoch]
    unnamed = [split for split in passed if where == "disk" and task.images(split).fingerprint is None]
    if unnamed:
        progress.line(
            f"train.keep_core: disk: nothing is kept of {' and '.join(unnamed)}, whose images have no file; "
            "give memory"
        )
    passed = [split for split in passed if split not in unnamed]
    if not passed:
        return data
    count = sum(len(data[split]) for split in passed)
    # Building is one more pass over the images: by itself the core is kept where the epochs save more than that.
    least = 1 / config.epochs if config.keep_core == "auto" else 0.0
    depth = best_depth(classifier, _most_bytes_each(where, accelerator) / count, max(least, LEAST_SAVED))
    if depth is None:
        if config.keep_core != "auto":
            progress.line(f"train.keep_core: {where}: nothing is kept, it saves too little or does not fit")
        return data
    progress.line(
        f"the core of {count} images is kept ({where}): {depth.num_bytes / 1e3:.0f} kB an image, "
        f"{depth.num_bytes * count / 1e6:.0f} MB in all"
    )
    found = dict(data)
    for split in passed:
        batches, images = data[split], task.images(split)
        watch = progress.watch(batches.num_local_images(BATCH), f"core of {split}")
        if where == "memory":
            rows = _in_memory(classifier, batches, split, depth, accelerator, watch)
        else:
            rows = _on_disk(classifier, batches, split, images, task.cache_dir, depth, accelerator, watch)
        if rows is None:
            break
        found[split] = CoreBatches(data[split], depth, rows)
    return found


def describe(data: dict[str, Batches], where: str | None) -> dict[str, Any] | None:
    """Return what results.json says of the kept core: where it is, bytes an image, and images; None without one."""
    kept = [batches for batches in data.values() if isinstance(batches, CoreBatches)]
    if not kept:
        return None
    return {"where": where, "bytes_an_image": kept[0].depth.num_bytes, "images": sum(map(len, kept))}


def _has_core(classifier: PromptedClassifier) -> bool:
    """Return whether all prompts of a classifier act on the same pixels and leave some alone."""
    acting = {prompt.acts_on() for prompt in classifier.prompt.parts()}
    [only] = acting if len(acting) == 1 else [None]
    source = classifier.source
    # A source that only answers is given whole images, and each trial of a depth would cost queries.
    shares = source.gives_gradient and not source.is_compiled
    shares = shares and classifier.share_border and classifier.source_is_frozen
    return shares and only is not None and only[1] is not None


def _most_bytes(where: str) -> float:
    """Return how many bytes may be kept by all processes of this machine."""
    if where == "disk":
        return float("inf")  # a full disk is told when it is written to
    try:
        memory = os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")
    except (AttributeError, ValueError, OSError):
        return 0.0
    for limit in _CONTAINER_LIMITS:
        with suppress(OSError, ValueError):  # not there, or "max"
            memory = min(memory, int(Path(limit).read_text()))
    return _MEMORY_SHARE * memory


def _most_bytes_each(where: str, accelerator: Accelerator) -> float:
    """Return how many bytes each process may keep, the same in all; every process must call it."""
    limit = _most_bytes(where)
    if accelerator.num_processes == 1 or where == "disk":
        return limit
    own = torch.tensor([[accelerator.local_process_index, int(limit)]], device=accelerator.device)
    local_indices, limits = accelerator.gather(own).T.tolist()
    # The smallest limit of a machine, divided by the largest number of processes on one.
    return min(limits) / (max(local_indices) + 1)


def _compute(
    classifier: PromptedClassifier, batches: Batches, depth: Depth, own: list[Tensor]
) -> Iterator[tuple[np.ndarray, Tensor]]:
    """Yield what is kept of the images of some batches, (n, N) of the depth's type, and their indices (n,).

    Raises:
        TapeMismatch: The source reads them otherwise than the images that the depth was tried on.
    """
    classifier.eval()
    for indices in own:
        images, _ = batches.take(indices)
        pair = images if len(images) > 1 else torch.cat([images, images])
        plan, values = recorded(classifier, pair, depth.share)
        if plan != depth.plan:
            raise TapeMismatch("the source reads some images otherwise than others")
        yield values[: len(indices)].cpu().numpy(), indices


def _all_can(split: str, error: Exception | None, accelerator: Accelerator) -> bool:
    """Return whether no process has an error, else warn; every process must call it."""
    failed = accelerator.reduce(torch.tensor([error is not None], device=accelerator.device).int(), "sum")
    if failed.item():
        reason = error or "another process cannot do it"
        warnings.warn(f"the core of {split} is not kept: {reason}", stacklevel=5)
    return not failed.item()


def _in_memory(
    classifier: PromptedClassifier,
    batches: Batches,
    split: str,
    depth: Depth,
    accelerator: Accelerator,
    watch: Callable,
) -> np.ndarray | None:
    """Return what is kept; None where the source reads images otherwise than others."""
    rows, error = np.empty((len(batches), depth.count), depth.dtype), None
    try:
        for values, indices in watch(_compute(classifier, batches, depth, batches.local_indices(BATCH))):
            rows[indices.numpy()] = values
    except TapeMismatch as raised:
        error = raised
    if not _all_can(split, error, accelerator):
        return None
    for rank in range(accelerator.num_processes if accelerator.num_processes > 1 else 0):
        for indices in batches.local_indices(BATCH, rank):
            part = torch.from_numpy(rows[indices.numpy()]).to(accelerator.device)
            rows[indices.numpy()] = broadcast(part, from_process=rank).cpu().numpy()
    return rows


def _on_disk(
    classifier: PromptedClassifier,
    batches: Batches,
    split: str,
    images: ImageSet,
    cache_dir: str | Path | None,
    depth: Depth,
    accelerator: Accelerator,
    watch: Callable,
) -> np.ndarray | None:
    """Return what is kept, a view of the cache's file; None where it cannot be written or as ``_in_memory``."""
    identity = _identity(classifier, batches, images, depth)
    everything = [part for part in torch.arange(len(batches)).split(BATCH) if len(part)]
    # First each process its share; then what is still missing, as on a disk that the others do not see.
    for share in (batches.local_indices(BATCH), everything):
        error = kept = None
        try:
            with CoreEntry(cache_dir, images.name, identity, len(batches), depth.num_bytes) as entry:
                entry.check_free_space()
                missing = [part for part in share if not entry.check(part.numpy()).all()]
                for values, indices in watch(_compute(classifier, batches, depth, missing)):
                    rows = np.ascontiguousarray(values).view(np.uint8)
                    entry.write(indices.numpy(), rows, np.zeros(len(rows), np.uint64))
                kept = entry.pixels().view(depth.dtype)
        except (OSError, TapeMismatch) as raised:
            error = raised
        if not _all_can(split, error, accelerator):
            if getattr(error, "errno", None) in _FULL:  # every process has closed it
                remove_partial_core(cache_dir, identity)
            return None
    return kept


def _identity(
    classifier: PromptedClassifier, batches: Batches, images: ImageSet, depth: Depth
) -> dict[str, Any]:
    """Return everything that decides what is kept, ready for JSON."""
    source, prompt = classifier.source, classifier.prompt.parts()[0]
    common = prompt.surroundings()
    (top, left, bottom, right) = prompt.acts_on()[1]
    # What a prompt does to pixels that it does not train: none of ours does anything, one of a user's may.
    probe = torch.rand(2, 3, *prompt.image_size, generator=torch.Generator().manual_seed(0))
    pixels = prompt(probe.to(classifier.device))[:, :, top:bottom, left:right]
    return {
        "format": 2,
        "images": images.fingerprint,
        "indices": hashlib.sha256(images.indices.astype("<i8").tobytes()).hexdigest(),
        "skipped": list(batches.skipped),
        "resize": classifier.resize.to_dict(),
        "weights": source.network_fingerprint,
        "preprocessing": [list(source.preprocessing.mean), list(source.preprocessing.std)],
        "canvas": list(source.canvas),
        "precision": source.precision,
        "device": classifier.device.type,
        "prompt": [prompt.kind, prompt.settings],
        "pixels": hashlib.sha256(pixels.detach().cpu().contiguous().numpy().tobytes()).hexdigest(),
        "acts_on": [list(box) for box in prompt.acts_on()],
        "box": None if common is None else list(common[1]),
        "share": depth.share,
        "reads": [[*read[:3], str(read.dtype)] for read in depth.plan],
    }
