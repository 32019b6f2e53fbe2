"""CLIP: a source whose label space is made of text.

Each loader describes its model as ``ClipParts``; the label space, the text embeddings and the logits are then the same
for all.
"""

from __future__ import annotations

import copy
import textwrap
import warnings
from collections.abc import Callable, Sequence
from dataclasses import dataclass

from torch import Tensor, nn
from torch.nn import functional as F

from ..labels.space import LabelSpace
from ..registry import UserError
from .base import PixelsInParts, Preprocessing, Source
from .fingerprint import weights_fingerprint
from .text import text_embeddings


@dataclass
class ClipParts:
    """A model with an image and a text tower.

    Args:
        image_tower: Normalised pixels (B, 3, H, W) to image features (B, D).
        encode_text: A list of n texts to text features (n, D); not used where the texts are left out.
        too_long: A list of texts to those that exceed the text tower's context.
        weights: The modules whose weights decide features and embeddings.
        scale: Factor of the cosine in the logits, exp(logit_scale).
        bias: Added to the logits (SigLIP), else 0.
        preprocessing: The model's own.
        drop_text: Called when the text tower is needed no more, to free its memory.
    """

    image_tower: nn.Module
    encode_text: Callable[[list[str]], Tensor]
    too_long: Callable[[list[str]], list[str]]
    weights: Sequence[nn.Module]
    scale: float
    bias: float
    preprocessing: Preprocessing
    drop_text: Callable[[], None] = lambda: None


class ClipSource(Source):
    """A source that scores images against texts: ``scale * cos(image, text) + bias``.

    Args:
        parts: The model.
        labels: The label space of S texts.
        text_features: (S, D), L2-normalised; None for a source that gives features alone.
        options: As for ``Source``.

    Source: CLIP (arXiv 2103.00020), figure 3; SigLIP (arXiv 2303.15343) for the bias.
    """

    def __init__(self, parts: ClipParts, labels: LabelSpace, text_features: Tensor | None, **options):
        super().__init__(parts.image_tower, labels, parts.preprocessing, **options)
        self.scale, self.bias = parts.scale, parts.bias
        self.register_buffer("text_features", text_features, persistent=False)
        self._width = 0 if text_features is None else text_features.shape[1]

    @property
    def has_logits(self) -> bool:
        return self.text_features is not None

    def without_texts(self) -> ClipSource:
        """Return the same image tower as a source that gives features alone, as ``load_source(text_tower=False)``."""
        source = copy.copy(self)
        source._buffers = {**self._buffers, "text_features": None}
        source._fingerprint, source.outputs = None, "features"
        return source

    def encode(self, pixels: Tensor | PixelsInParts) -> Tensor:
        """Return image features (B, D) float32, not normalised."""
        features = self.run_network(pixels)
        self._width = features.shape[1]
        return features

    def score(self, features: Tensor) -> Tensor:
        if not self.has_logits:
            raise UserError(
                f"source {self.name!r} was loaded without its text tower, so it gives features and no logits"
            )
        return self.scale * F.normalize(features, dim=1) @ self.text_features.T + self.bias

    def forward(self, pixels: Tensor | PixelsInParts) -> Tensor:
        return self.score(self.encode(pixels))

    def linear_head(self) -> tuple[Tensor, Tensor, bool]:
        bias = self.text_features.new_full((len(self.text_features),), self.bias)
        return self.scale * self.text_features, bias, True

    @property
    def num_features(self) -> int:
        return self._width

    def headless_network(self) -> nn.Module:
        return copy.deepcopy(self.network)


def clip_source(
    parts: ClipParts,
    *,
    name: str,
    labels: LabelSpace,
    precision: str,
    revision: str | None,
    text_tower: bool = True,
) -> ClipSource:
    """Return the source of a model for a label space, its texts embedded, or left out with ``text_tower`` False.

    Raises:
        UserError: A text is longer than the model's context.
    """

    def check() -> None:
        long = parts.too_long(list(labels.names))
        if long:
            raise UserError(
                f"source {name!r}: {len(long)} of {len(labels)} texts are longer than the model's context, "
                f"the first: {textwrap.shorten(long[0], 120, placeholder=' ...')!r}; "
                "shorten the class name or leave out the template"
            )

    embeddings = fingerprint = None
    if text_tower and not labels.is_grid and (long := parts.too_long(list(labels.names))):
        labels = labels.without(set(long))
        first = textwrap.shorten(long[0], 120, placeholder=" ...")
        warnings.warn(
            f"source {name!r}: texts that are longer than the model's context are left out: {len(long)}, the first: "
            f"{first!r}",
            stacklevel=2,
        )
    if text_tower:
        fingerprint = weights_fingerprint(*parts.weights)
        key = {"model": name, "revision": revision, "weights": fingerprint, "precision": "fp32"}
        embeddings = text_embeddings(parts.encode_text, labels.names, key, check)
    parts.drop_text()
    return ClipSource(
        parts, labels, embeddings, name=name, revision=revision, precision=precision, fingerprint=fingerprint
    )


class ImageTower(nn.Module):
    """One method of a two-tower model as a module of the image tower's own weights."""

    def __init__(self, visual: nn.Module, encode: Callable[[nn.Module, Tensor], Tensor]):
        super().__init__()
        self.visual = visual
        self.encode = encode

    def forward(self, pixels: Tensor) -> Tensor:
        return self.encode(self.visual, pixels)
