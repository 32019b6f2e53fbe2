"""ILM-VP as one readable loop: count, map, train the prompt, test. The library's own `fit` does the same, but faster.

    clipvp textbook --config quickstart_ilm --train.epochs 3

Plain PyTorch: every pass decodes every file, logits are kept whole, and the test set is scored each epoch. Of the
library, only the frozen source, the task and the resizing of an image are used. Read it to see the method;
clipvp benchmark measures the library against it. It prints loss and test accuracy of each epoch, saves nothing, and
does not use validation images.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import nullcontext
from typing import Any

import torch
from torch import Tensor
from torch.nn import functional as F
from torch.utils.data import DataLoader, Dataset

from clipvp.cli import parse, user_errors
from clipvp.data.sets import ImageSet
from clipvp.data.task import Task
from clipvp.images import Resize
from clipvp.prompts.base import VisualPrompt
from clipvp.sources.base import DTYPES, Source


class Files(Dataset):
    """Images decoded when they are asked for: (3, h, w) float32 in [0, 1], and the label."""

    def __init__(self, images: ImageSet, resize: Resize):
        self.images, self.resize = images, resize

    def __len__(self) -> int:
        return len(self.images)

    def __getitem__(self, row: int) -> tuple[Tensor, int]:
        pixels = self.resize.read(self.images.item(row))
        return torch.from_numpy(pixels).permute(2, 0, 1).float() / 255, int(self.images.labels[row])


class TextbookEpoch:
    """Counting, training and testing, one epoch a call.

    Args:
        source: In full precision; used in the usual memory format, not channels last.
        task: Its train and test images.
        prompt: Padding or additive; its mask and the place of the image are used.
        resize: How an image becomes what the prompt takes.
        batch_size: Images a batch.
        precision: Of the training steps, by autocast; all else is in full precision.
        workers: Processes that decode.
        lr: Adam's.
        phases: A context for each named phase, to measure its time.

    Attributes:
        delta: What trains, (3, H, W).
        counts: int64 (S, T) of the last epoch.
    """

    def __init__(
        self,
        source: Source,
        task: Task,
        prompt: VisualPrompt,
        resize: Resize,
        batch_size: int,
        precision: str,
        workers: int,
        lr: float,
        phases: Callable[..., Any] = lambda name, wait=True: nullcontext(),
    ):
        source.network.to(memory_format=torch.contiguous_format)
        self.source, self.batch_size, self.workers = source, batch_size, workers
        self.precision, self.device = precision, source.mean.device
        self.num_target = task.num_classes
        self.train, self.test = Files(task.train, resize), Files(task.test, resize)
        self.pads, self.mask = prompt.kind == "padding", prompt.mask.clone().to(self.device)
        height, width = prompt.canvas
        top, left, bottom, right = prompt.box if self.pads else (0, 0, height, width)
        self.padding = (left, width - right, top, height - bottom)
        self.delta = torch.zeros(3, height, width, device=self.device, requires_grad=True)
        self.optimizer = torch.optim.Adam([self.delta], lr=lr)
        self.scaler = torch.amp.GradScaler(self.device.type, enabled=precision == "fp16")
        self.phases = phases
        self.counts = torch.zeros(len(source.labels), self.num_target, dtype=torch.int64)

    def epoch(self, order: list[int]) -> tuple[float, float]:
        """Run an epoch whose training images come in ``order``; return mean loss and test accuracy."""
        with self.phases("counting"):
            source_index = self._map(*self._all_logits(self.train))
        with self.phases("training"):
            loss = self._train(order, source_index)
        with self.phases("scoring"):
            logits, labels = self._all_logits(self.test)
            accuracy = (logits[:, source_index].argmax(1) == labels).float().mean().item()
        return loss, accuracy

    def _batches(self, files: Files, order: list[int] | None = None) -> Iterator[tuple[Tensor, Tensor]]:
        loader = DataLoader(
            files,
            self.batch_size,
            sampler=order,
            num_workers=self.workers,
            pin_memory=self.device.type == "cuda",
        )
        with self.phases("waiting for data", wait=False):
            batches = iter(loader)
        while True:
            with self.phases("waiting for data", wait=False):
                batch = next(batches, None)
            if batch is None:
                return
            yield batch[0].to(self.device), batch[1].to(self.device)

    def _logits(self, images: Tensor) -> Tensor:
        padded = F.pad(images, self.padding)
        return self.source(padded + (self.delta.sigmoid() if self.pads else self.delta) * self.mask)

    @torch.no_grad()
    def _all_logits(self, files: Files) -> tuple[Tensor, Tensor]:
        logits, labels = zip(
            *((self._logits(images), labels) for images, labels in self._batches(files)), strict=True
        )
        return torch.cat(logits), torch.cat(labels)

    def _map(self, logits: Tensor, labels: Tensor) -> Tensor:
        """Count with one-hot vectors and map greedily."""
        with self.phases("mapping"):
            predicted = F.one_hot(logits.argmax(1), logits.shape[1]).float()
            self.counts = (predicted.T @ F.one_hot(labels, self.num_target).float()).long().cpu()
            return greedy_loop(self.counts).to(self.device)

    def _train(self, order: list[int], source_index: Tensor) -> float:
        total = 0.0
        for images, labels in self._batches(self.train, order):
            half = self.precision != "fp32"
            with torch.autocast(self.device.type, DTYPES[self.precision] if half else None, enabled=half):
                loss = F.cross_entropy(self._logits(images)[:, source_index], labels)
            self.optimizer.zero_grad()
            self.scaler.scale(loss).backward()
            self.scaler.step(self.optimizer)
            self.scaler.update()
            total += loss.item() * len(labels)
        return total / len(order)


def greedy_loop(counts: Tensor) -> Tensor:
    """Return the source label (T,) of each class: T times the largest cell of the whole matrix, ties to the first."""
    left = counts.clone()
    source_index = torch.full((counts.shape[1],), -1, dtype=torch.int64)
    for _ in range(counts.shape[1]):
        source, target = divmod(int(left.argmax()), counts.shape[1])
        source_index[target] = source
        left[source], left[:, target] = -1, -1
    return source_index


def main() -> None:
    config, _ = parse(__doc__)
    with user_errors():
        from clipvp import build_classifier, load_task
        from clipvp.cpu import prepare_cpu
        from clipvp.data.batches import epoch_order

        prepare_cpu()
        task = load_task(config.data, seed=config.seed, protocol=config.train.protocol)
        model = build_classifier(config, task)
        how = config.train.batch_size, "fp32", 0, config.optim.lr
        run = TextbookEpoch(model.source, task, model.prompt, model.resize, *how)
        for epoch in range(config.train.epochs):
            loss, accuracy = run.epoch(epoch_order(len(task.train), config.seed, epoch).tolist())
            print(f"epoch {epoch + 1}/{config.train.epochs}  loss {loss:.3f}  test {100 * accuracy:.1f} %")


if __name__ == "__main__":
    main()
