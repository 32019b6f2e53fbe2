"""Batches of decoded images on the device, in an order that is a function of seed and epoch alone.

No global random state is used, so a counting pass between two epochs changes nothing, and the global batches are the
same for any number of processes.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import torch
from accelerate import Accelerator
from torch import Tensor

from .augment.basic import EpochAugmentation, epoch_augmentation
from .originals import OriginalImages
from .sets import ImageTensors

# Images stay on the accelerator when they take at most this share of its free memory.
RESIDENT_SHARE = 0.3


class Batches:
    """One process's view of decoded images: batches in float32, on the device.

    Args:
        tensors: The images and labels of a split.
        accelerator: The device, this process and how many share each batch.
        originals: The same images undiminished, for an augmentation that takes them.

    Attributes:
        asks_source: Whether ``outputs`` asks the source.
    """

    asks_source = True

    def __init__(
        self, tensors: ImageTensors, accelerator: Accelerator, originals: OriginalImages | None = None
    ):
        if originals is not None and len(originals) != len(tensors):
            raise ValueError(f"{len(originals)} originals for {len(tensors)} images")
        self.originals = originals
        self.skipped = tensors.skipped
        self.rank, self.world = accelerator.process_index, accelerator.num_processes
        self.device = accelerator.device
        self.images, self.rows, self.labels = tensors.base, tensors.rows, tensors.labels
        if self.device.type == "cuda":
            free, _ = torch.cuda.mem_get_info(self.device)
            if len(self) * self.images[:1].numel() <= RESIDENT_SHARE * free:
                self.images, self.rows = tensors.images.to(self.device), None
                self.labels = self.labels.to(self.device)

    def __len__(self) -> int:
        return len(self.labels)

    def take(self, indices: Tensor, augment: EpochAugmentation | None = None) -> tuple[Tensor, Tensor]:
        """Return the images (B, 3, h, w), float32 in [0, 1], and labels (B,) at ``indices``, on the device.

        Args:
            indices: (B,), on the CPU.
            augment: What changes the images, from ``augmentation``.
        """
        labels = self.labels[indices.to(self.labels.device)]
        if augment is not None and augment.takes_originals and len(indices):
            if self.originals is None:
                raise ValueError("this augmentation takes originals, and these batches have none")
            images = augment(self.originals.batch(indices, self.device), indices)
            return images.to(torch.float32).div_(255), labels.to(self.device)
        places = indices if self.rows is None else self.rows[indices]
        images = self.images[places.to(self.images.device)]
        if images.device.type != self.device.type:  # of many processes on a CPU, the device is cpu:0
            if self.device.type == "cuda":
                images, labels = images.pin_memory(), labels.pin_memory()
            images = images.to(self.device, non_blocking=True)
            labels = labels.to(self.device, non_blocking=True)
        if augment is not None and len(indices):
            images = augment(images, indices)
        return images.to(torch.float32).div_(255), labels

    def augmentation(self, name: str, seed: int, epoch: int) -> Any:
        """Return what ``take`` needs to augment the images of an epoch, see ``augment.epoch_augmentation``."""
        return epoch_augmentation(name, len(self), seed, epoch)

    def outputs(self, classifier: Any, taken: Tensor) -> Tensor:
        """Return what a classifier's source gives of the images that ``take`` returned."""
        return classifier.source_outputs(taken)

    def plain_features(self, classifier: Any, taken: Tensor) -> Tensor:
        """Return the source's features of the images that ``take`` returned, without the prompt."""
        return classifier.plain_features(taken)

    # Rounding depends on what is computed together, so data is split independently of the process count.

    def share(self, batch: Tensor, parts: int = 1) -> tuple[Tensor, ...]:
        """Return this process's parts of a global batch.

        Args:
            batch: Indices (B,).
            parts: Parts of a process; with too few images some are empty. The split of the batch depends on the
                product of processes and parts alone.
        """
        return batch.tensor_split(self.world * parts)[self.rank * parts : (self.rank + 1) * parts]

    def local_indices(self, batch_size: int, rank: int | None = None) -> list[Tensor]:
        """Return the indices of the batches of this process, or of another ``rank``, in a pass over all images.

        The batches of all processes together hold each image once and are the same for any number of processes. With
        fewer batches than processes, some processes have no batch.
        """
        batches = torch.arange(len(self)).split(batch_size)
        own = torch.arange(len(batches)).tensor_split(self.world)[self.rank if rank is None else rank]
        return [batches[place] for place in own.tolist() if len(batches[place])]

    def num_local_images(self, batch_size: int) -> int:
        """Return how many images this process has in a pass over all images."""
        return sum(map(len, self.local_indices(batch_size)))

    def local_batches(self, batch_size: int, augment: Any = None) -> Iterator[tuple[Tensor, Tensor]]:
        """Yield this process's batches in a pass over all images, in order."""
        for batch in self.local_indices(batch_size):
            yield self.take(batch, augment)


def epoch_order(count: int, seed: int, epoch: int) -> Tensor:
    """Return the order int64 (count,) of the training images in one epoch."""
    generator = torch.Generator().manual_seed((seed * 1_000_003 + epoch * 7919 + 17) % (1 << 63))
    return torch.randperm(count, generator=generator)
