"""What a pass over training images gathers for a mapping.

Statistics are sums of whole numbers, so that batches, processes and resumed runs give the same bits in any order. Their
memory grows with the images that were seen, never with S x T.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Iterable
from typing import TypeVar

import torch
from torch import Tensor

# Entries that wait to be summed by cell; 16 bytes each. They wait in one buffer: a tensor for each batch would be
# allocated between the logits of two batches, and the memory of the logits could not be used again.
_MOST_WAITING = 1 << 18


OneStatistic = TypeVar("OneStatistic", bound="Statistic")


class Statistic(ABC):
    """A sum over images of something that a mapping is fitted to. Subclasses define all three methods.

    Attributes:
        plain: Whether it is given the features of images without a prompt, not what the mapping takes.
    """

    plain = False

    @abstractmethod
    def add(self, outputs: Tensor, targets: Tensor) -> None:
        """Add one batch.

        Args:
            outputs: What the source gives, (B, S) logits or (B, D) features, finite.
            targets: int64 (B,), each in 0..T-1.
        """

    @abstractmethod
    def tensors(self) -> dict[str, Tensor]:
        """Return the sum as int64 tensors by name, on the CPU: for checkpoints and other processes."""

    @abstractmethod
    def add_tensors(self, tensors: dict[str, Tensor]) -> None:
        """Add a sum that ``tensors`` of another statistic of this kind returned."""


class CellSums(Statistic):
    """Whole numbers summed by cell (source label, target class); a cell that was never seen takes no memory.

    Args:
        num_source: S.
        num_target: T.
    """

    def __init__(self, num_source: int, num_target: int):
        self.num_source, self.num_target = num_source, num_target
        empty = torch.zeros(0, dtype=torch.int64)
        self._waiting: Tensor | None = None  # (2, n): cells and values, the first ``_num_waiting`` in use
        self._num_waiting = 0
        self._summed = empty, empty

    @classmethod
    def from_matrix(cls, matrix: Tensor) -> CellSums:
        """Return the sums of a whole table, int64 (S, T).

        Raises:
            ValueError: The table does not hold whole numbers of 0 and more.
        """
        if matrix.ndim != 2 or matrix.is_floating_point() or (matrix < 0).any():
            raise ValueError(f"sums are a table of whole numbers, none below zero, not {matrix.dtype}")
        sums = cls(*matrix.shape)
        flat = matrix.cpu().flatten()
        cells = flat.nonzero().flatten()
        sums.add_cells(cells, flat[cells])
        return sums

    def add_cells(self, cells: Tensor, values: Tensor) -> None:
        """Add values int64 (n,) to cells int64 (n,), each ``source label * T + target class``. Waits for no device."""
        start, end = self._num_waiting, self._num_waiting + len(cells)
        if self._waiting is None or end > self._waiting.shape[1] or cells.device != self._waiting.device:
            self._sum_up()
            start, end = 0, len(cells)
            with torch.inference_mode(False):  # it may be written to in another mode later
                size = max(_MOST_WAITING, end)
                self._waiting = torch.empty(2, size, dtype=torch.int64, device=cells.device)
        self._waiting[0, start:end], self._waiting[1, start:end] = cells, values
        self._num_waiting = end

    def _sum_up(self) -> tuple[Tensor, Tensor]:
        if self._waiting is not None:
            cells, values = self._waiting[:, : self._num_waiting].cpu()
            cells, place = torch.cat([self._summed[0], cells]).unique(return_inverse=True)
            values = torch.zeros_like(cells).index_add_(0, place, torch.cat([self._summed[1], values]))
            self._waiting, self._num_waiting, self._summed = None, 0, (cells, values)
        return self._summed

    @property
    def cells(self) -> tuple[Tensor, Tensor, Tensor]:
        """The cells that were seen: source labels (n,), classes (n,) and sums (n,), by label and then by class."""
        cells, values = self._sum_up()
        return cells // self.num_target, cells % self.num_target, values

    def at(self, labels: Tensor, classes: Tensor) -> Tensor:
        """Return the sums int64 (n,) at labels (n,) and classes (n,)."""
        cells, values = self._sum_up()
        wanted = labels * self.num_target + classes
        if not len(cells):
            return torch.zeros_like(wanted)
        place = torch.searchsorted(cells, wanted).clamp(max=len(cells) - 1)
        return torch.where(cells[place] == wanted, values[place], 0)

    def by_class(self) -> Tensor:
        """Return the sum of each class, int64 (T,)."""
        _, classes, values = self.cells
        return torch.zeros(self.num_target, dtype=torch.int64).index_add_(0, classes, values)

    def by_label(self) -> Tensor:
        """Return the sum of each source label, int64 (S,)."""
        labels, _, values = self.cells
        return torch.zeros(self.num_source, dtype=torch.int64).index_add_(0, labels, values)

    def rows(self, labels: Tensor) -> Tensor:
        """Return the rows of some labels (n,) of the table, int64 (n, T)."""
        cells, values = self._sum_up()
        bounds = torch.stack([labels, labels + 1]) * self.num_target
        starts, ends = torch.searchsorted(cells, bounds)
        table = torch.zeros(len(labels), self.num_target, dtype=torch.int64)
        for row, start, end in zip(range(len(labels)), starts.tolist(), ends.tolist(), strict=True):
            table[row, cells[start:end] % self.num_target] = values[start:end]
        return table

    def tensors(self) -> dict[str, Tensor]:
        cells, values = self._sum_up()
        return {"cells": cells, "values": values}

    def add_tensors(self, tensors: dict[str, Tensor]) -> None:
        cells, values = tensors["cells"], tensors["values"]
        size = self.num_source * self.num_target
        if cells.shape != values.shape or (
            len(cells) and not 0 <= int(cells.min()) <= int(cells.max()) < size
        ):
            raise ValueError(f"the sums do not fit {self.num_source} labels and {self.num_target} classes")
        self.add_cells(cells, values)


class Counts(CellSums):
    """Counts by cell: images of class t whose top-1 source label is s.

    Source: ILM-VP (arXiv 2211.11635), section 4, frequency label mapping.
    """

    def add(self, outputs: Tensor, targets: Tensor) -> None:
        # On an accelerator, looking at the targets would mean waiting for it in every batch.
        looks = len(targets) and targets.device.type == "cpu"
        if looks and not 0 <= int(targets.min()) <= int(targets.max()) < self.num_target:
            raise ValueError(
                f"targets {int(targets.min())}..{int(targets.max())} are outside 0..{self.num_target - 1}"
            )
        cells = outputs.detach().argmax(1) * self.num_target + targets
        self.add_cells(cells, torch.ones_like(cells))


class SoftCounts(CellSums):
    """Probabilities by cell: of images of class t, the sum of label s's probability where s is among the k largest.

    A probability is added as the whole number nearest to it times 2**32. Probabilities are not scaled after the cut.

    Args:
        num_source: S.
        num_target: T.
        k: Labels of an image that count.

    Source: BLM+ (arXiv 2410.24018), section 4.
    """

    ONE = 1 << 32

    def __init__(self, num_source: int, num_target: int, k: int):
        super().__init__(num_source, num_target)
        self.k = k

    def add(self, outputs: Tensor, targets: Tensor) -> None:
        largest, labels = outputs.detach().softmax(1, dtype=torch.float32).topk(self.k, dim=1)
        values = (largest.double() * self.ONE).round().to(torch.int64)
        self.add_cells((labels * self.num_target + targets[:, None]).flatten(), values.flatten())


def sum_over_processes(own: OneStatistic, empty: OneStatistic) -> OneStatistic:
    """Return the sum of the statistics of all processes, in ``empty``; every process must call it."""
    from accelerate.utils import gather_object

    for tensors in gather_object([own.tensors()]):
        empty.add_tensors(tensors)
    return empty


def gather(statistic: Statistic, batches: Iterable[tuple[Tensor, Tensor]]) -> Statistic:
    """Add batches of (source outputs, targets) to a statistic, one at a time, and return it."""
    for outputs, targets in batches:
        statistic.add(outputs, targets)
    return statistic
