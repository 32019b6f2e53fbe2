"""DGA's mapping: logits of several views, over the levels of a class tree and over crops by their certainty."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor
from torch.nn import functional as F

from ..registry import UserError, check_positive
from .base import LabelMapping, Links, check_texts
from .feature_statistics import FeatureSums
from .text_pool import TextPoolConfig, TextPoolMapping, groups_of


@dataclass
class DgaMappingConfig(TextPoolConfig):
    """Class logits of each view as text_pool makes them, put together; for a prompt of kind dga.

    Args:
        levels: Levels of the class tree above the classes; each has half as many super-classes as the one below.
        crops: Crops of the image.
        tree_share: Share of the levels in the logits, 0 to 1; the crops have the rest.
    """

    kind: str = "dga"
    levels: int = 2
    crops: int = 2
    tree_share: float = 0.7

    def __post_init__(self):
        super().__post_init__()
        check_positive("mapping.levels", self.levels)
        check_positive("mapping.crops", self.crops, zero=True)
        if not 0 <= self.tree_share <= 1:
            raise UserError(
                f"mapping.tree_share: {self.tree_share} is not a share; give a number from 0 to 1"
            )


class DgaMapping(TextPoolMapping):
    """Target logits are ``tree_share`` times those of the levels plus the rest times those of the crops.

    The views are those of ``DgaPrompt``: levels 0..L, their mean, crops 1..E; c are class logits of a view.

    Levels: the logit of a super-class is the logarithm of the sum of the exponentials of its classes' logits, under the
    prompt of the level. A class gets it plus the logarithm of its softmax among its siblings, under the mean prompt.
    Averaged over the levels 0..L; at level 0 a class is its own super-class.

    Crops: the mean of the crops' logits, weighted by ``max(0, H0 - H)``; H is the entropy of a crop's softmax, H0 that
    of the whole image under level 0. No gradient passes through the weights. Where no crop is more certain than the
    whole image, it counts alone.

    The tree joins the classes' mean features without a prompt, each image's scaled to length 1, by Ward's rule; level l
    has T / 2**l super-classes, rounded up. Logarithms are added, so that probabilities multiply: the product of a
    super-class's logit and the softmax, as the paper may be read, would favour classes without siblings.

    Args:
        num_source: S texts.
        num_target: T.
        class_of, group_of, shares, pool, top_k: As for ``TextPoolMapping``.
        levels: L.
        crops: E.
        tree_share: The paper's lambda.
        num_features: D of the source, for the tree.

    Source: DGA (Wu et al., CVPR 2026).
    """

    kind = "dga"
    why_no_links = "how much a text counts differs from image to image"

    def __init__(
        self,
        num_source: int,
        num_target: int,
        class_of: Sequence[int] | None = None,
        group_of: Sequence[int] | None = None,
        shares: Sequence[float] = (1.0,),
        pool: str = "mean",
        top_k: int = 3,
        levels: int = 2,
        crops: int = 2,
        tree_share: float = 0.7,
        num_features: int = 1,
    ):
        super().__init__(num_source, num_target, class_of, group_of, shares, pool, top_k)
        if num_target <= 2 ** (levels - 1):
            raise UserError(
                f"mapping.levels: {levels} levels above the classes need {2 ** (levels - 1) + 1} classes or more; "
                f"there are {num_target}"
            )
        own = {"levels": levels, "crops": crops, "tree_share": tree_share, "num_features": num_features}
        self.settings |= own
        self.num_features = num_features
        self.levels, self.crops, self.tree_share = levels, crops, tree_share
        self.views = levels + 2 + crops
        # The super-class of each class at each level; until the tree is known, a class is its own.
        self.register_buffer("parents", torch.arange(num_target).repeat(levels + 1, 1))

    @classmethod
    def from_config(cls, config, source, class_names, seed) -> DgaMapping:
        check_texts(cls.kind, source)
        options = {name: getattr(config, name) for name in ("pool", "top_k", "levels", "crops", "tree_share")}
        texts = groups_of(source.labels, config.group_weights)
        size = len(source.labels), len(class_names)
        return cls(*size, *texts, **options, num_features=source.num_features)

    def due(self, epoch: int) -> bool:
        return epoch == 0

    def statistic(self) -> PlainFeatureSums:
        return PlainFeatureSums(self.num_features, self.num_target)

    @torch.no_grad()
    def fit(self, statistic: PlainFeatureSums) -> None:
        means = statistic.class_means().numpy()
        self.parents.copy_(torch.tensor(class_tree(means, self.levels)))

    def _class_logits(self, outputs: Tensor) -> Tensor:
        """Return class logits (B, V, T) of text logits (B, V, S)."""
        count, views, size = outputs.shape
        return super().forward(outputs.reshape(count * views, size)).view(count, views, -1)

    def _level_logits(self, logits: Tensor, parents: Tensor) -> Tensor:
        """Return the logits of super-classes (B, T) of class logits (B, T); minus infinity where there is none."""
        owner = parents.expand_as(logits)
        most = torch.full_like(logits, -torch.inf).scatter_reduce(1, owner, logits.detach(), "amax")
        there = most > -torch.inf
        most = most.where(there, 0)
        sums = torch.zeros_like(logits).scatter_add(1, owner, (logits - most.gather(1, owner)).exp())
        return (sums.where(there, 1).log() + most).masked_fill(~there, -torch.inf)

    def forward(self, outputs: Tensor) -> Tensor:
        logits = self._class_logits(outputs)
        shared, total = logits[:, self.levels + 1], 0.0
        for level, parents in enumerate(self.parents):
            owner = parents.expand_as(shared)
            own = self._level_logits(logits[:, level], parents).gather(1, owner)
            total = total + own + shared - self._level_logits(shared, parents).gather(1, owner)
        tree = total / (self.levels + 1)
        return self.tree_share * tree + (1 - self.tree_share) * self._by_certainty(logits)

    def _by_certainty(self, logits: Tensor) -> Tensor:
        whole, crops = logits[:, 0], logits[:, self.levels + 2 :]
        weights = (_entropy(whole)[:, None] - _entropy(crops)).clamp(min=0).detach()
        sums = weights.sum(1, keepdim=True)
        weighted = (weights[:, :, None] * crops).sum(1) / sums.where(sums > 0, 1)
        return torch.where(sums > 0, weighted, whole)

    def extra_loss(self, outputs: Tensor, targets: Tensor) -> Tensor:
        """Return the mean over the levels of the cross-entropy over super-classes, summed over the images."""
        logits = self._class_logits(outputs)
        losses = [
            F.cross_entropy(self._level_logits(logits[:, level], parents), parents[targets], reduction="sum")
            for level, parents in enumerate(self.parents)
        ]
        return torch.stack(losses).mean()

    def matrix(self) -> None:
        return None

    def links(self, k: int = 1) -> Links:
        return LabelMapping.links(self, k)  # none: no text has one weight


class PlainFeatureSums(FeatureSums):
    """Sums of the features of images without a prompt, each scaled to length 1."""

    plain = True

    def add(self, outputs: Tensor, targets: Tensor) -> None:
        super().add(F.normalize(outputs.detach(), dim=1), targets)


def _entropy(logits: Tensor) -> Tensor:
    """Return the entropy of the softmax over the last axis."""
    logs = logits.log_softmax(-1)
    return -(logs.exp() * logs).sum(-1)


def class_tree(points: np.ndarray, levels: int) -> list[list[int]]:
    """Return the super-class of each class at the levels 0..L of an agglomerative tree, numbered as classes come.

    Args:
        points: (T, D), of each class.
        levels: L; level l has T / 2**l super-classes, rounded up, and level 0 the classes themselves.
    """
    from scipy.cluster.hierarchy import cut_tree, linkage

    tree, found = linkage(points, method="ward"), []
    for level in range(levels + 1):
        owner = cut_tree(tree, n_clusters=-(-len(points) // 2**level))[:, 0].tolist()
        order = {cluster: place for place, cluster in enumerate(dict.fromkeys(owner))}
        found.append([order[cluster] for cluster in owner])
    return found
