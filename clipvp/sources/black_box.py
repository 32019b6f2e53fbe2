"""Black-box sources: models that answer with numbers for pixels, and show neither gradient nor features."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from pathlib import Path

import numpy as np
import torch
from torch import Tensor, nn

from ..labels.names import read_names
from ..labels.space import LabelSpace
from ..registry import UserError
from ..sharing import put_together
from .base import PixelsInParts, Preprocessing, Source

SMALLEST = 1e-12  # of a probability, whose logarithm is the logit
TOLERANCE = 1e-3  # of a sum of probabilities


class _Answers(nn.Module):
    """A function of arrays as a network."""

    def __init__(self, answer: Callable[[np.ndarray], np.ndarray]):
        super().__init__()
        self.answer = answer

    def forward(self, pixels: Tensor) -> Tensor:
        found = self.answer(pixels.detach().cpu().numpy())
        return torch.from_numpy(found).to(pixels.device, torch.float32)


class BlackBoxSource(Source):
    """A source whose logits come from elsewhere.

    Args:
        answer: Normalised pixels float32 (B, 3, H, W) to logits (B, S).
        labels: The S source labels.
        preprocessing: The canvas, and the normalisation before ``answer``.
        fingerprint: Of the model that answers.
        options: As for ``Source``.
    """

    gives_gradient = False

    def __init__(
        self,
        answer: Callable[[np.ndarray], np.ndarray],
        labels: LabelSpace,
        preprocessing: Preprocessing,
        fingerprint: str,
        **options,
    ):
        super().__init__(_Answers(answer), labels, preprocessing, fingerprint=fingerprint, **options)

    def run_network(self, pixels: Tensor | PixelsInParts, compiled: bool = True) -> Tensor:
        if isinstance(pixels, PixelsInParts):
            around = pixels.surroundings
            pixels = pixels.images if around is None else put_together(around, pixels.images, pixels.box)
        return self.network(self.normalize(pixels))

    def compile_network(self) -> None:
        raise UserError(f"source.compile: {self.name!r} is not computed by torch, so it cannot be compiled")

    def classifier_head(self) -> nn.Linear:
        raise UserError(
            f"source {self.name!r} only answers with the scores of its labels, so it gives logits and no features"
        )


def are_probabilities(rows: np.ndarray, tolerance: float = TOLERANCE) -> bool:
    """Return whether each row (B, S) is finite, not negative, and sums to 1 within the tolerance."""
    if not np.isfinite(rows).all():
        return False
    return bool((rows >= 0).all() and (abs(rows.sum(1, dtype=np.float64) - 1) <= tolerance).all())


def logits_of(probabilities: np.ndarray) -> np.ndarray:
    """Return logarithms of probabilities, float32; those below 1e-12 count as 1e-12."""
    return np.log(np.maximum(probabilities, SMALLEST, dtype=np.float64)).astype(np.float32)


def label_space(key: str, names: str | Sequence[str], count: int | None = None) -> LabelSpace:
    """Return a label space of names, or of the file that holds them.

    Raises:
        UserError: They are no list, an entry is empty or there twice, or they are not ``count``.
    """
    found = read_names(key, names)
    if not isinstance(found, list) or not found:
        raise UserError(f"{key}: give a list of names, or a file with one name a line")
    if count is not None and len(found) != count:
        raise UserError(f"{key}: {len(found)} names for a model that scores {count} labels")
    for place, name in enumerate(found):
        if not name.strip() or name in found[:place]:
            raise UserError(
                f"{key}: name {place}, {name!r}, is {'empty' if not name.strip() else 'there twice'}"
            )
    return LabelSpace(tuple(found))


def check_file(name: str, path: Path) -> None:
    if not path.is_file():
        raise UserError(
            f"source {name!r}: {str(path)!r} {'is a folder' if path.is_dir() else 'does not exist'}"
        )
