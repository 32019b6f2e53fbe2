"""Counts of source labels by target class, and which source label each class takes: pure functions on tensors."""

from __future__ import annotations

from collections.abc import Iterable

import numpy as np
import torch
from torch import Tensor

from ..registry import UserError

# So many of the largest cells are sorted at once: nearly always all that are needed, and never all of a full matrix.
_BLOCK = 1 << 16


def add_counts(counts: Tensor, source_logits: Tensor, targets: Tensor) -> None:
    """Add one batch to a count matrix, in place.

    Args:
        counts: int64 (S, T); cell (s, t) is the number of images of class t whose top-1 source label is s.
        source_logits: (B, S), finite.
        targets: int64 (B,), each in 0..T-1.
    """
    cell = source_logits.argmax(1) * counts.shape[1] + targets
    counts.view(-1).index_add_(0, cell, torch.ones_like(cell))


def count_matrix(batches: Iterable[tuple[Tensor, Tensor]], num_source: int, num_target: int) -> Tensor:
    """Return the counts int64 (S, T) over batches of (source logits (B, S), targets (B,)).

    Only one batch of logits exists at a time. Counts add up over batches and over processes.

    Raises:
        ValueError: A target, on the CPU, is outside 0..T-1.

    Source: ILM-VP (arXiv 2211.11635), section 4, frequency label mapping.
    """
    counts = None
    for source_logits, targets in batches:
        if counts is None:
            counts = torch.zeros(num_source, num_target, dtype=torch.int64, device=source_logits.device)
        # Not on an accelerator: to look at the targets would be to wait for it in every batch.
        looks = len(targets) and targets.device.type == "cpu"
        if looks and not 0 <= int(targets.min()) <= int(targets.max()) < num_target:
            raise ValueError(f"targets {int(targets.min())}..{int(targets.max())} leave 0..{num_target - 1}")
        add_counts(counts, source_logits, targets)
    return torch.zeros(num_source, num_target, dtype=torch.int64) if counts is None else counts


def _check_counts(counts: Tensor) -> np.ndarray:
    num_source, num_target = counts.shape
    if num_target > num_source:
        raise UserError(
            f"{num_target} target classes need as many source labels, and the source has {num_source}; "
            "take a source with more labels or, for CLIP, more templates"
        )
    if counts.dtype.is_floating_point or (counts.numel() and int(counts.min()) < 0):
        raise ValueError("counts must be whole numbers, none below zero")
    return counts.detach().cpu().numpy()


def assign_greedy(counts: Tensor) -> Tensor:
    """Return, for each class, the source label it takes by greedy choice of the largest counts.

    The largest cell maps its source label to its class and removes its row and column, T times over.
    Ties: the lowest source index, then the lowest target index. When only zero cells are left, the
    remaining classes in ascending order take the remaining labels in ascending order.

    Args:
        counts: int64 (S, T), S >= T.

    Returns:
        int64 (T,) of distinct source indices, on the CPU.

    Raises:
        UserError: T > S.

    Source: ILM-VP (arXiv 2211.11635), algorithm 1, and its reference's mapping.
    """
    table = _check_counts(counts)
    chosen = np.full(table.shape[1], -1, dtype=np.int64)
    labels, classes = np.arange(table.shape[0]), np.arange(table.shape[1])
    while len(classes):
        flat = table.reshape(-1)
        lowest = _lowest_of_largest(flat)
        cells = np.flatnonzero(flat >= lowest)  # ascending: by source index, then by target index
        label_free, class_free = np.ones(len(labels), dtype=bool), np.ones(len(classes), dtype=bool)
        cells = cells[np.argsort(-flat[cells], kind="stable")]
        for start in range(0, len(cells), 4096):
            sources, targets = np.divmod(cells[start : start + 4096], len(classes))
            free = label_free[sources] & class_free[targets]
            for source, target in zip(sources[free].tolist(), targets[free].tolist(), strict=True):
                if label_free[source] and class_free[target]:
                    chosen[classes[target]] = labels[source]
                    label_free[source] = class_free[target] = False
            if not class_free.any():
                break
        labels, classes = labels[label_free], classes[class_free]
        if lowest == 1:  # only zero cells are left
            chosen[classes] = labels[: len(classes)]
            break
        table = table[label_free][:, class_free]
    return torch.from_numpy(chosen)


def _lowest_of_largest(values: np.ndarray) -> int:
    """Return a value, at least 1, that about the ``_BLOCK`` largest values reach, or 1 if they are few.

    A sample is enough: whatever is returned, greedy choice among the cells that reach it is exact.
    """
    sample = values[:: max(1, len(values) // _BLOCK)]
    rank = max(0, len(sample) - 1 - _BLOCK * len(sample) // len(values))
    return max(1, int(np.partition(sample, rank)[rank]))


def assign_optimal(counts: Tensor) -> Tensor:
    """Return the one-to-one assignment with the largest total count.

    Args:
        counts: int64 (S, T), S >= T.

    Returns:
        int64 (T,) of distinct source indices, on the CPU.

    Raises:
        UserError: T > S.

    Source: the linear sum assignment problem, solved by scipy.
    """
    from scipy.optimize import linear_sum_assignment  # a large import that few runs need

    table = _check_counts(counts)
    num_target = table.shape[1]
    some = table.any(axis=1)
    # A label without any count serves as well as another: T of them, the first, are enough.
    rows = np.sort(np.concatenate([np.flatnonzero(some), np.flatnonzero(~some)[:num_target]]))
    picked, targets = linear_sum_assignment(table[rows], maximize=True)
    chosen = np.empty(num_target, dtype=np.int64)
    chosen[targets] = rows[picked]
    return torch.from_numpy(chosen)


def assign_within(counts: Tensor) -> Tensor:
    """Return, for each class, its own text label with the largest count: pure template selection.

    Labels are ``template * T + class``. Ties, and classes that none of their own labels was seen for, take the
    lowest template.

    Args:
        counts: int64 (S, T), S a multiple of T.

    Returns:
        int64 (T,) of distinct source indices, on the CPU.
    """
    num_source, num_target = counts.shape
    own = counts.reshape(num_source // num_target, num_target, num_target).diagonal(
        dim1=1, dim2=2
    )  # (templates, T)
    template = torch.from_numpy(own.cpu().numpy().argmax(0))  # the first of equals
    return template * num_target + torch.arange(num_target)
