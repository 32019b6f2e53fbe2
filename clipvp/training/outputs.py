"""What does not change is computed once: outputs of the source, where nothing before the mapping trains."""

from __future__ import annotations

import hashlib
import json
import warnings
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch
from accelerate import Accelerator
from accelerate.utils import gather_object
from torch import Tensor

from ..config.schema import TrainConfig
from ..data.batches import Batches
from ..data.sets import ImageSet
from ..files import Damaged, cache_root, load_state, save_state
from ..model import PromptedClassifier
from ..progress import Progress
from ..registry import UserError

BATCH = 64  # images at a time, whatever the run's batch size: rounding depends on it


class OutputBatches(Batches):
    """Batches of what a source gives, in the place of images.

    Args:
        batches: Of the images.
        outputs: (N, D) features, or (N, S) logits of a source without features, float32, on the CPU.
        are_features: Which of the two.
        views: The same of augmented images, one tensor a view; the epochs take one after the other.
    """

    asks_source = False

    def __init__(self, batches: Batches, outputs: Tensor, are_features: bool, views: Sequence[Tensor] = ()):
        self.skipped, self.rank, self.world = batches.skipped, batches.rank, batches.world
        self.device, self.are_features = batches.device, are_features
        self.values, self.labels = outputs.to(self.device), batches.labels.to(self.device)
        self.views = [view.to(self.device) for view in views]

    def augmentation(self, name: str, seed: int, epoch: int) -> Tensor | None:
        return self.views[epoch % len(self.views)] if self.views else None

    def take(self, indices: Tensor, augment: Tensor | None = None) -> tuple[Tensor, Tensor]:
        indices = indices.to(self.device)
        return (self.values if augment is None else augment)[indices], self.labels[indices]

    def outputs(self, classifier: PromptedClassifier, taken: Tensor) -> Tensor:
        if self.are_features and classifier.source.outputs == "logits":
            return classifier.source.score(taken)
        return taken


def fixed_outputs(classifier: PromptedClassifier, config: TrainConfig) -> bool:
    """Return whether the outputs of a run's source are computed before the first epoch.

    Raises:
        UserError: ``feature_views`` is given, and something before the mapping trains.
    """
    prompt_stands = not any(parameter.requires_grad for parameter in classifier.prompt.parameters())
    stands = prompt_stands and classifier.source_is_frozen
    if config.feature_views and not stands:
        raise UserError(
            f"train.feature_views: {config.feature_views} needs features that stay the same, and the "
            f"{'source' if prompt_stands else classifier.prompt.kind + ' prompt'} trains; use prompt.kind: none"
        )
    return stands and (config.augment == "none" or config.feature_views is not None)


def with_outputs(
    classifier: PromptedClassifier,
    batches: Batches,
    images: ImageSet,
    accelerator: Accelerator,
    progress: Progress,
    *,
    cache_dir: str | Path | None = None,
    phase: str = "features",
    views: Sequence[tuple[str, int, int]] = (),
) -> OutputBatches:
    """Return the batches of a split with the source's outputs, computed once, or read from the disk cache.

    Every process must call it; each computes its share.

    Args:
        classifier: Nothing before its mapping trains.
        batches: Of the split's images.
        images: The split; says what the outputs are kept under.
        accelerator: Processes and device.
        progress: Shows a bar.
        cache_dir: See ``clipvp.files.cache_root``.
        phase: What the bar is called.
        views: Of augmented views that are wanted too, the arguments of ``Batches.augmentation``.
    """
    source = classifier.source
    try:
        are_features = source.num_features > 0
    except UserError:  # the network gives logits alone
        are_features = False
    decides = _decides(classifier, batches, images, are_features)
    wanted: list[tuple[str, int, int] | None] = [None, *views]
    found = []
    for place, view in enumerate(wanted):
        more = {"view": view} if view else {}
        if view and batches.originals is not None:
            more["originals"] = batches.originals.shrink.to_dict()
        path, key = _place(decides | more, images, cache_dir)
        [values] = gather_object([_read(path, key, len(batches)) if accelerator.is_main_process else None])[
            :1
        ]
        if values is None:
            name = f"{phase}, view {place} of {len(views)}" if view else phase
            augment = batches.augmentation(*view) if view else None
            own = _compute(classifier, batches, progress, name, are_features, augment)
            values = torch.cat(gather_object([own]))
            if path is not None and accelerator.is_main_process:
                _write(path, key, values, images.name)
        found.append(values)
    return OutputBatches(batches, found[0], are_features, found[1:])


@torch.no_grad()
def _compute(
    classifier: PromptedClassifier,
    batches: Batches,
    progress: Progress,
    phase: str,
    are_features: bool,
    augment: Any,
) -> Tensor:
    """Return the outputs of this process's share of a split, in order, on the CPU."""
    source, wanted = classifier.source, classifier.source.outputs
    width = source.num_features if are_features else len(source.labels)
    parts = [torch.zeros(0, width)]
    classifier.eval()
    source.outputs = "features" if are_features else "logits"
    try:
        watch = progress.watch(batches.num_local_images(BATCH), phase)
        for images, _ in watch(batches.local_batches(BATCH, augment)):
            parts.append(classifier.source_outputs(images).cpu())
    finally:
        source.outputs = wanted
    return torch.cat(parts)


def _decides(
    classifier: PromptedClassifier, batches: Batches, images: ImageSet, are_features: bool
) -> dict[str, Any]:
    """Return everything that decides the outputs, ready for JSON."""
    source, prompt = classifier.source, classifier.prompt
    state = hashlib.sha256()
    for name, value in sorted(prompt.state_dict().items()):
        state.update(name.encode() + value.detach().cpu().contiguous().numpy().tobytes())
    return {
        "format": 1,
        "images": images.fingerprint,
        "indices": hashlib.sha256(images.indices.astype("<i8").tobytes()).hexdigest(),
        "skipped": batches.skipped,
        "resize": classifier.resize.to_dict(),
        "weights": source.fingerprint,
        "preprocessing": [source.preprocessing.mean, source.preprocessing.std, source.canvas],
        "precision": source.computes_in,
        "device": classifier.device.type,
        "prompt": [prompt.kind, prompt.settings, state.hexdigest()],
        "values": "features" if are_features else "logits",
    }


def _place(
    decides: dict[str, Any], images: ImageSet, cache_dir: str | Path | None
) -> tuple[Path | None, str]:
    """Return the file that keeps the outputs, None where the images have no name for good, and its key."""
    key = json.dumps(decides, sort_keys=True)
    if images.fingerprint is None:
        return None, key
    digest = hashlib.sha256(key.encode()).hexdigest()[:24]
    return cache_root(cache_dir) / "features" / digest / "values.safetensors", key


def _write(path: Path, key: str, values: Tensor, name: str) -> None:
    try:
        save_state(path, {"values": values}, {"key": key})
    except OSError as error:
        reason = str(error).splitlines()[0]
        warnings.warn(f"features of {name} are computed anew each time: {reason}", stacklevel=3)


def _read(path: Path | None, key: str, count: int) -> Tensor | None:
    if path is None:
        return None
    try:
        tensors, values = load_state(path)
    except Damaged:  # or not there
        return None
    found = tensors.get("values")
    return found if values.get("key") == key and found is not None and len(found) == count else None
