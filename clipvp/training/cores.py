"""What no prompt pixel reaches is the same in every epoch: the source's work on it is kept.

Each layer of the source reads a rim of the core of each image (``clipvp.sharing``). These pixels are computed once,
kept in memory or on disk, and given to every later pass over the image: steps, counting, validating.
"""

from __future__ import annotations

import hashlib
import os
import warnings
from collections.abc import Callable, Iterator
from contextlib import suppress
from functools import partial
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import torch
from accelerate import Accelerator
from accelerate.utils import gather_object
from torch import Tensor

from ..config.schema import TrainConfig
from ..data.batches import Batches
from ..data.cache import CoreEntry
from ..data.sets import ImageSet
from ..data.task import Task
from ..model import PromptedClassifier
from ..progress import Progress
from ..sharing import CoreTape, Read, count_operations

BATCH = 32  # images at a time while building, whatever the run's batch size: rounding depends on it
_SHARES = (0.1, 0.2, 0.3, 0.45)  # of a map, the smallest core that is kept apart: each is another depth
# Of the machine's or container's memory, the most that is kept there; every process keeps its own copy.
_MEMORY_SHARE = 1 / 8
# What a container may use, in bytes: control groups of version 2 and 1.
_CONTAINER_LIMITS = ("/sys/fs/cgroup/memory.max", "/sys/fs/cgroup/memory/memory.limit_in_bytes")
_TRIED = 16  # images of the passes that are counted; a shared border counts as one more
_LEAST_SAVED = 0.05  # of the operations of a pass
_LEAST_IMAGES = 1000  # over all epochs: a shorter run ends sooner than the depths are tried
_AS_GOOD = 0.02  # of the operations: then the depth with fewer bytes is taken


class Depth(NamedTuple):
    """How far the core is kept: its smallest share, what passes read of it, and what a pass then costs."""

    share: float
    plan: tuple[Read, ...]
    operations: float

    @property
    def num_bytes(self) -> int:
        """Bytes an image."""
        return 4 * sum(read.count for read in self.plan)


class Taken(NamedTuple):
    """Images (B, 3, h, w) and what passes over them read of their core."""

    images: Tensor
    tape: CoreTape


class CoreBatches(Batches):
    """Batches of images with what is kept of their core.

    Args:
        batches: Of the images, which no run augments.
        depth: How far the core is kept.
        rows: (N, n) float32, what is kept of each image.
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
    depth = best_depth(classifier, _room(where) / count, max(least, _LEAST_SAVED))
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
            rows = _in_memory(classifier, batches, depth, accelerator, watch)
        else:
            rows = _on_disk(classifier, batches, images, task.cache_dir, depth, accelerator, watch)
        if rows is not None:
            found[split] = CoreBatches(data[split], depth, rows)
    return found


def _has_core(classifier: PromptedClassifier) -> bool:
    """Return whether all prompts of a classifier act on the same pixels and leave some alone."""
    acting = {prompt.acts_on() for prompt in classifier.prompt.parts()}
    [only] = acting if len(acting) == 1 else [None]
    source = classifier.source
    # A source that only answers is given whole images, and each trial of a depth would cost queries.
    shares = source.gives_gradient and not source.is_compiled
    shares = shares and classifier.share_border and classifier.source_is_frozen
    return shares and only is not None and only[1] is not None


def _room(where: str) -> float:
    """Return how many bytes may be kept."""
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


@torch.no_grad()
def best_depth(
    classifier: PromptedClassifier, most_bytes: float = float("inf"), least_saved: float = _LEAST_SAVED
) -> Depth | None:
    """Return the depth at which keeping the core leaves the fewest operations; None where it saves too little.

    Args:
        classifier: Of the run.
        most_bytes: An image.
        least_saved: Of the operations of a pass, 0 to 1.
    """
    classifier.eval()
    images = torch.zeros(_TRIED, 3, *classifier.prompt.image_size, device=classifier.device)
    whole = count_operations(lambda: classifier.source_outputs(images))
    depths = []
    for share in _SHARES:
        plan, values = recorded(classifier, images, share)
        if plan:
            play = partial(classifier.source_outputs, images, CoreTape(share, plan, values))
            depths.append(Depth(share, plan, count_operations(play)))
    fitting = [depth for depth in depths if depth.num_bytes <= most_bytes]
    if not fitting:
        return None
    fewest = min(depth.operations for depth in fitting)
    if fewest > (1 - least_saved) * whole:
        return None
    good = [depth for depth in fitting if depth.operations <= fewest + _AS_GOOD * whole]
    return min(good, key=lambda depth: depth.num_bytes)


@torch.no_grad()
def recorded(classifier: PromptedClassifier, images: Tensor, share: float) -> tuple[tuple[Read, ...], Tensor]:
    """Return what a pass over two or more images reads of their core."""
    tape = CoreTape(share)
    classifier.source_outputs(images, tape)
    return tape.recorded()


def _compute(
    classifier: PromptedClassifier, batches: Batches, depth: Depth, own: list[Tensor]
) -> Iterator[tuple[np.ndarray, Tensor]]:
    """Yield what is kept of the images of some batches, (n, N) float32, and their indices (n,)."""
    classifier.eval()
    for indices in own:
        images, _ = batches.take(indices)
        pair = images if len(images) > 1 else torch.cat([images, images])
        plan, values = recorded(classifier, pair, depth.share)
        if plan != depth.plan:
            raise RuntimeError("the core of these images is read otherwise than that of others")
        yield values[: len(indices)].cpu().numpy(), indices


def _in_memory(
    classifier: PromptedClassifier,
    batches: Batches,
    depth: Depth,
    accelerator: Accelerator,
    watch: Callable,
) -> np.ndarray:
    rows = np.empty((len(batches), depth.num_bytes // 4), np.float32)
    own = []
    for values, indices in watch(_compute(classifier, batches, depth, batches.local_indices(BATCH))):
        own.append((indices.numpy(), values))
    for indices, values in gather_object(own):
        rows[indices] = values
    return rows


def _on_disk(
    classifier: PromptedClassifier,
    batches: Batches,
    images: ImageSet,
    cache_dir: str | Path | None,
    depth: Depth,
    accelerator: Accelerator,
    watch: Callable,
) -> np.ndarray | None:
    """Return what is kept, a view of the cache's file; None where it cannot be written."""
    identity, error = _identity(classifier, batches, images, depth), None
    everything = [part for part in torch.arange(len(batches)).split(BATCH) if len(part)]
    # First each process its share; then what is still missing, as on a disk that the others do not see.
    for share in (batches.local_indices(BATCH), everything):
        try:
            with CoreEntry(cache_dir, images.name, identity, len(batches), depth.num_bytes) as entry:
                missing = [part for part in share if not entry.check(part.numpy()).all()]
                for values, indices in watch(_compute(classifier, batches, depth, missing)):
                    rows = np.ascontiguousarray(values).view(np.uint8)
                    entry.write(indices.numpy(), rows, np.zeros(len(rows), np.uint64))
                kept = entry.pixels().view(np.float32)
        except OSError as raised:
            error = raised
        failed = accelerator.reduce(torch.tensor([error is not None], device=accelerator.device).int(), "sum")
        if failed.item():
            reason = error or "another process cannot write it"
            warnings.warn(f"the core of {images.name} is not kept: {reason}", stacklevel=4)
            return None
    return kept


def _identity(
    classifier: PromptedClassifier, batches: Batches, images: ImageSet, depth: Depth
) -> dict[str, Any]:
    """Return everything that decides what is kept, ready for JSON."""
    source, prompt = classifier.source, classifier.prompt.parts()[0]
    common = prompt.surroundings()
    return {
        "format": 1,
        "images": images.fingerprint,
        "indices": hashlib.sha256(images.indices.astype("<i8").tobytes()).hexdigest(),
        "skipped": list(batches.skipped),
        "resize": classifier.resize.to_dict(),
        "weights": source.network_fingerprint,
        "preprocessing": [list(source.preprocessing.mean), list(source.preprocessing.std)],
        "canvas": list(source.canvas),
        "precision": source.precision,
        "device": classifier.device.type,
        "acts_on": [list(box) for box in prompt.acts_on()],
        "box": None if common is None else list(common[1]),
        "share": depth.share,
        "reads": [[*read[:3], str(read.dtype)] for read in depth.plan],
    }
