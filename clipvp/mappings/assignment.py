"""Which source label each class takes: pure functions of counts."""

from __future__ import annotations

import numpy as np
import torch
from torch import Tensor

from ..registry import UserError
from .statistic import CellSums

_BLOCK = 4096  # cells that are filtered at once


def check_sizes(num_source: int, num_target: int) -> None:
    """Raise ``UserError`` where there are more classes than source labels."""
    if num_target > num_source:
        raise UserError(
            f"{num_target} target classes need as many source labels, and the source has {num_source}; "
            "take a source with more labels or, for CLIP, more templates"
        )


def assign_greedy(counts: CellSums) -> Tensor:
    """Return the greedy one-to-one assignment.

    The largest count maps its label to its class, both leave, and so on. Ties: lowest source index, then lowest target
    index. Classes that are left when only zeros remain take the remaining labels in ascending order.

    Args:
        counts: Of S labels and T classes, S >= T.

    Returns:
        int64 (T,) of distinct source indices, on the CPU.

    Raises:
        UserError: T > S.

    Source: ILM-VP (arXiv 2211.11635), algorithm 1, and its reference's mapping.
    """
    check_sizes(counts.num_source, counts.num_target)
    labels, classes, values = (part.numpy() for part in counts.cells)
    # Cells come by label and then by class, so a stable sort breaks ties as wanted.
    order = np.argsort(-values, kind="stable")
    order = order[values[order] > 0]
    chosen = np.full(counts.num_target, -1, dtype=np.int64)
    label_free, class_free = np.ones(counts.num_source, dtype=bool), np.ones(counts.num_target, dtype=bool)
    for start in range(0, len(order), _BLOCK):
        block = order[start : start + _BLOCK]
        block = block[label_free[labels[block]] & class_free[classes[block]]]
        for source, target in zip(labels[block].tolist(), classes[block].tolist(), strict=True):
            if label_free[source] and class_free[target]:
                chosen[target] = source
                label_free[source] = class_free[target] = False
        if not class_free.any():
            break
    left = np.flatnonzero(class_free)
    chosen[left] = np.flatnonzero(label_free)[: len(left)]
    return torch.from_numpy(chosen)


def assign_optimal(counts: CellSums) -> Tensor:
    """Return the one-to-one assignment with the largest total count.

    Args:
        counts: Of S labels and T classes, S >= T.

    Returns:
        int64 (T,) of distinct source indices, on the CPU.

    Raises:
        UserError: T > S.

    Source: the linear sum assignment problem, solved by scipy.
    """
    from scipy.optimize import linear_sum_assignment  # a large import that few runs need

    check_sizes(counts.num_source, counts.num_target)
    seen = (counts.by_label() > 0).numpy()
    # Labels without any count are alike, so the first T of them are enough.
    rows = np.sort(np.concatenate([np.flatnonzero(seen), np.flatnonzero(~seen)[: counts.num_target]]))
    picked, targets = linear_sum_assignment(counts.rows(torch.from_numpy(rows)).numpy(), maximize=True)
    chosen = np.empty(counts.num_target, dtype=np.int64)
    chosen[targets] = rows[picked]
    return torch.from_numpy(chosen)


def assign_within(counts: CellSums, class_of: Tensor) -> Tensor:
    """Return, for each class, its own text label with the largest count: pure choice of the text.

    Ties, and classes whose own labels have no count, take the lowest label.

    Args:
        counts: Of S labels and T classes.
        class_of: int64 (S,), the class of each label; every class has one or more.

    Returns:
        int64 (T,) of distinct source indices, on the CPU.
    """
    labels, classes, values = counts.cells
    own = class_of[labels] == classes
    labels, classes, values = labels[own], classes[own], values[own]
    chosen = torch.empty(counts.num_target, dtype=torch.int64)
    # Written last wins: each class's lowest label, then its labels from the smallest count to the largest.
    everyone = torch.arange(counts.num_source - 1, -1, -1)
    order = torch.from_numpy(np.lexsort((-labels.numpy(), values.numpy())))
    for target, label in ((class_of[everyone], everyone), (classes[order], labels[order])):
        chosen.numpy()[target.numpy()] = label.numpy()
    return chosen
