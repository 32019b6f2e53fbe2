"""Tip-Adapter: the features of the training images are kept, and vote for their classes beside a CLIP's texts."""

from __future__ import annotations

from dataclasses import dataclass
from typing import NamedTuple

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from ..config.schema import MappingConfig
from ..registry import check_positive
from .base import check_texts
from .feature_statistics import FeatureRows
from .fitted_once import FittedOnce
from .linear import class_texts

ALPHAS = tuple(2.0**power for power in range(-3, 7))
BETAS = tuple(2.0**power for power in range(8))
_ROWS = 1024  # rows of the similarities of all images with each other that are in memory at a time


@dataclass
class TipAdapterConfig(MappingConfig):
    """The features of all training images as keys, beside a CLIP's texts.

    Args:
        alpha: Weight of the keys' votes; chosen with each training image left out of its own vote when empty.
        beta: How fast a vote falls with the distance; chosen likewise when empty.
        train: Whether the keys train (Tip-Adapter-F); else they stay the features.
    """

    kind: str = "tip_adapter"
    alpha: float | None = None
    beta: float | None = None
    train: bool = False

    def __post_init__(self):
        super().__post_init__()
        check_positive("mapping.alpha", self.alpha)
        check_positive("mapping.beta", self.beta)


class TipAdapterMapping(FittedOnce):
    """Target logits are ``scale * f @ texts + alpha * exp(-beta * (1 - f @ keys)) @ classes``, f being L2-normalised.

    The keys are the L2-normalised features of the training images, and ``classes`` their classes, one-hot.

    Args:
        num_source: D.
        num_target: T.
        num_images: n, the number of keys; ``begin`` sets it.
        alpha: Weight of the votes; chosen when the mapping is fitted when None.
        beta: Fall of a vote with the distance; likewise.
        train: Whether the keys train.

    Source: Tip-Adapter and, with ``train``, Tip-Adapter-F (arXiv 2207.09519). There alpha and beta are searched on
    validation images; here they are chosen on the training images, before the keys train.
    """

    kind = "tip_adapter"

    def __init__(
        self,
        num_source: int,
        num_target: int,
        num_images: int = 0,
        alpha: float | None = None,
        beta: float | None = None,
        train: bool = False,
    ):
        settings = {"num_images": num_images, "alpha": alpha, "beta": beta, "train": train}
        super().__init__(num_source, num_target, **settings)
        self.given = alpha, beta
        self.trains = train
        self.register_buffer("texts", torch.zeros(num_source, num_target, dtype=torch.float32))
        self.register_buffer("alpha", torch.tensor(alpha or 0.0, dtype=torch.float32))
        self.register_buffer("beta", torch.tensor(beta or 0.0, dtype=torch.float32))
        self.register_buffer("classes", torch.zeros(0, dtype=torch.int64))
        self.keys = nn.Parameter(torch.zeros(0, num_source, dtype=torch.float32), requires_grad=train)
        self.begin(num_images)

    @classmethod
    def from_config(cls, config, source, class_names, seed) -> TipAdapterMapping:
        check_texts(cls.kind, source)
        options = config.alpha, config.beta, config.train
        mapping = cls(source.num_features, len(class_names), 0, *options)
        mapping.texts.copy_(source.scale * class_texts(source).T)
        return mapping

    def begin(self, num_images: int) -> None:
        if num_images != len(self.keys):
            self.keys = nn.Parameter(
                self.keys.new_zeros(num_images, self.num_source), requires_grad=self.trains
            )
            self.classes = self.classes.new_zeros(num_images)
        self.settings["num_images"] = num_images

    def forward(self, outputs: Tensor) -> Tensor:
        outputs = F.normalize(outputs, dim=1)
        votes = (-self.beta * (1 - outputs @ self.keys.T)).exp() @ _one_hot(
            self.classes, outputs, self.num_target
        )
        return outputs @ self.texts + self.alpha * votes

    @torch.no_grad()
    def fit(self, statistic: FeatureRows) -> None:
        features, classes = statistic.rows()
        features = F.normalize(features.to(self.keys.device), dim=1)
        self.begin(len(features))
        self.keys.copy_(features)
        self.classes.copy_(classes)
        alpha, beta = self.given
        if alpha is None or beta is None:
            alphas, betas = (ALPHAS if alpha is None else (alpha,)), (BETAS if beta is None else (beta,))
            scores = leave_one_out(features, self.classes, features @ self.texts, alphas, betas)
            best = max(scores, key=lambda score: (score.hits, -score.loss))
            alpha, beta = best.alpha, best.beta
        self.alpha.fill_(alpha)
        self.beta.fill_(beta)


class LeftOut(NamedTuple):
    """How well images are classified by the votes of the others: ``hits`` are right, of ``loss`` in all."""

    alpha: float
    beta: float
    hits: int
    loss: float


def leave_one_out(
    features: Tensor,
    classes: Tensor,
    text_logits: Tensor,
    alphas: tuple[float, ...],
    betas: tuple[float, ...],
) -> list[LeftOut]:
    """Return the scores of all pairs of alpha and beta, each image being left out of its own vote.

    Args:
        features: (n, D), L2-normalised.
        classes: int64 (n,).
        text_logits: (n, T).
        alphas, betas: What is tried.
    """
    one_hot = _one_hot(classes, features, text_logits.shape[1])
    sums = {(alpha, beta): [0, 0.0] for beta in betas for alpha in alphas}
    for rows in torch.arange(len(features), device=features.device).split(_ROWS):
        distances = 1 - features[rows] @ features.T
        distances[torch.arange(len(rows), device=rows.device), rows] = torch.inf
        for beta in betas:
            votes = (-beta * distances).exp() @ one_hot
            for alpha in alphas:
                logits = text_logits[rows] + alpha * votes
                found = sums[alpha, beta]
                found[0] += int((logits.argmax(1) == classes[rows]).sum())
                found[1] += float(F.cross_entropy(logits.double(), classes[rows], reduction="sum"))
    return [LeftOut(*pair, *found) for pair, found in sums.items()]


def _one_hot(classes: Tensor, like: Tensor, num_target: int) -> Tensor:
    return (classes[:, None] == torch.arange(num_target, device=classes.device)).to(like.dtype)
