"""How far the core of the images is kept: the depth at which passes then need the fewest operations."""

from __future__ import annotations

from functools import partial
from typing import NamedTuple

import numpy as np
import torch
from torch import Tensor

from ..model import PromptedClassifier
from ..sharing import CoreTape, Read, count_operations, dtype_of

LEAST_SAVED = 0.05  # of the operations of a pass
_SHARES = (0.1, 0.2, 0.3, 0.45)  # of a map, the smallest core that is kept apart: each is another depth
_TRIED = 16  # images of the passes that are counted; a shared border is held and counts nothing
_AS_GOOD = 0.02  # of the operations: then the depth with fewer bytes is taken


class Depth(NamedTuple):
    """How far the core is kept: its smallest share, what passes read of it, and what a pass then costs."""

    share: float
    plan: tuple[Read, ...]
    operations: float

    @property
    def dtype(self) -> np.dtype:
        """Of the numbers that are kept: float32, or float64 where a pass reads such."""
        return np.dtype(np.float64 if dtype_of(self.plan) == torch.float64 else np.float32)

    @property
    def count(self) -> int:
        """Numbers an image."""
        return sum(read.count for read in self.plan)

    @property
    def num_bytes(self) -> int:
        """Bytes an image."""
        return self.dtype.itemsize * self.count


@torch.no_grad()
def best_depth(
    classifier: PromptedClassifier, most_bytes: float = float("inf"), least_saved: float = LEAST_SAVED
) -> Depth | None:
    """Return the depth at which keeping the core leaves the fewest operations; None where it saves too little.

    Args:
        classifier: Of the run.
        most_bytes: An image.
        least_saved: Of the operations of a pass, 0 to 1.
    """
    classifier.eval()
    images = torch.zeros(_TRIED, 3, *classifier.prompt.image_size, device=classifier.device)
    classifier.source_outputs(images)  # uncounted: what it shares is held for all later passes
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
