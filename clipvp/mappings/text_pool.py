"""A class's logit from those of its own texts: their mean, the mean of the largest, or the largest."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field

import torch
from torch import Tensor

from ..config.schema import MappingConfig
from ..labels.space import LabelSpace
from ..registry import UserError, check_choice, check_positive, nearest
from .base import LabelMapping, Links, check_texts

POOLS = ("mean", "top_k_mean", "max")


@dataclass
class TextPoolConfig(MappingConfig):
    """The logits of a class's texts, pooled; nothing is learned.

    Args:
        pool: mean; top_k_mean (of the ``top_k`` largest, chosen for each image anew); or max.
        top_k: Texts of a class and group that count, for top_k_mean.
        group_weights: Share of each group of texts, 0 to 1, with sum 1; equal when empty.
    """

    kind: str = "text_pool"
    pool: str = "mean"
    top_k: int = 3
    group_weights: dict[str, float] = field(default_factory=dict)

    def __post_init__(self):
        super().__post_init__()
        check_choice("mapping.pool", self.pool, POOLS)
        check_positive("mapping.top_k", self.top_k)
        for group, share in self.group_weights.items():
            if not (isinstance(share, (int, float)) and 0 <= share <= 1):
                raise UserError(f"mapping.group_weights.{group}: {share} is not a share; give 0 to 1")
        if self.group_weights and abs(sum(self.group_weights.values()) - 1) > 1e-6:
            raise UserError(
                f"mapping.group_weights: {self.group_weights} sum to {sum(self.group_weights.values()):g}, not to 1"
            )


class TextPoolMapping(LabelMapping):
    """The target logit of a class is the sum over groups of share times pooled logits of its texts in that group.

    Args:
        num_source: S texts.
        num_target: T.
        class_of: The class of each text; template-major when empty.
        group_of: The group of each text, 0 and up; one group when empty.
        shares: Of each group.
        pool: mean, top_k_mean or max.
        top_k: Texts that count, for top_k_mean; all where a group has fewer.

    Source: AttrVR (arXiv 2501.13982) for top_k_mean, k 3, two groups with equal shares.
    """

    kind = "text_pool"
    why_no_links = "the texts that count are chosen for each image"

    def __init__(
        self,
        num_source: int,
        num_target: int,
        class_of: Sequence[int] | None = None,
        group_of: Sequence[int] | None = None,
        shares: Sequence[float] = (1.0,),
        pool: str = "mean",
        top_k: int = 3,
    ):
        given = {"class_of": class_of, "group_of": group_of}
        settings = {key: list(value) for key, value in given.items() if value is not None}
        super().__init__(num_source, num_target, **settings, shares=list(shares), pool=pool, top_k=top_k)
        check_choice("mapping.pool", pool, POOLS)
        self.pool, self.top_k = pool, top_k
        owner = list(class_of) if class_of is not None else [s % num_target for s in range(num_source)]
        groups = list(group_of) if group_of is not None else [0] * num_source
        own: list[list[int]] = [[] for _ in range(num_target * len(shares))]
        for text, (target, group) in enumerate(zip(owner, groups, strict=True)):
            own[target * len(shares) + group].append(text)
        if not all(own):
            target, group = divmod(own.index([]), len(shares))
            raise UserError(f"class number {target} has no text in group number {group}")
        most = max(map(len, own))
        index = torch.tensor([texts + [-1] * (most - len(texts)) for texts in own])
        self.register_buffer("index", index, persistent=False)  # (T * G, most), -1 where there is no text
        self.register_buffer("shares", torch.tensor(shares, dtype=torch.float32), persistent=False)

    @classmethod
    def from_config(cls, config, source, class_names, seed) -> TextPoolMapping:
        check_texts(cls.kind, source)
        texts = groups_of(source.labels, config.group_weights)
        return cls(len(source.labels), len(class_names), *texts, config.pool, config.top_k)

    def forward(self, outputs: Tensor) -> Tensor:
        there = self.index >= 0
        values = outputs[:, self.index.clamp(min=0)]
        if self.pool != "mean":
            values = values.masked_fill(~there, -torch.inf)
            values = values.topk(min(self._most(), values.shape[2]), dim=2).values
            there = there[:, : values.shape[2]]  # what is missing is last
        pooled = values.masked_fill(~there, 0).sum(2) / there.sum(1)
        return (pooled.view(outputs.shape[0], self.num_target, -1) * self.shares).sum(2)

    def _most(self) -> int:
        return 1 if self.pool == "max" else self.top_k

    def _own(self) -> tuple[Tensor, Tensor]:
        """Return the texts (T, n) of each class, -1 where there is none, and their weights in the mean of the class."""
        there = self.index >= 0
        weights = there * (self.shares.repeat(self.num_target) / there.sum(1))[:, None]
        return self.index.view(self.num_target, -1), weights.view(self.num_target, -1)

    def matrix(self) -> Tensor | None:
        if self.pool != "mean":
            return None
        index, weights = self._own()
        matrix = torch.zeros(self.num_target, self.num_source + 1, device=index.device, dtype=torch.float32)
        return matrix.scatter_(1, index % (self.num_source + 1), weights)[:, :-1].T  # -1 is the last column

    def links(self, k: int = 1) -> Links:
        """Texts of the class with their weight in the mean; none where they are chosen for each image."""
        if self.pool != "mean":
            return super().links(k)
        index, weights = (values.cpu() for values in self._own())
        weight, place = weights.topk(min(k, index.shape[1]), dim=1)
        return Links(index.gather(1, place).where(weight != 0, -1), weight)


def groups_of(
    labels: LabelSpace, given: Mapping[str, float]
) -> tuple[Sequence[int] | None, list[int] | None, list[float]]:
    """Return the class and the group of each text, None where all texts follow from templates or are one group, and the
    share of each group, see ``group_shares``."""
    names = list(dict.fromkeys(labels.groups)) or [""]
    class_of = None if labels.is_grid else labels.class_of
    group_of = [names.index(group) for group in labels.groups] if labels.groups else None
    return class_of, group_of, group_shares(given, names)


def group_shares(given: Mapping[str, float], names: Sequence[str]) -> list[float]:
    """Return the share of each group of texts; equal ones where none are given.

    Raises:
        UserError: A group has no share, or a share no group.
    """
    if not given:
        return [1 / len(names)] * len(names)
    for name in given:
        if name not in names:
            groups = (
                nearest(name, [group for group in names if group]) if any(names) else "there are no groups"
            )
            raise UserError(f"mapping.group_weights: there is no group {name!r}; {groups}")
    if missing := [name for name in names if name not in given]:
        raise UserError(f"mapping.group_weights: the group {missing[0]!r} has no share; give each group one")
    return [float(given[name]) for name in names]
