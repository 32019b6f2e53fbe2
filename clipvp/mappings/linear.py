"""A linear layer as mapping, on logits (FullyMap) or on features (a linear head)."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from ..config.schema import MappingConfig
from ..registry import UserError, check_choice
from .base import LabelMapping, Links
from .feature_statistics import FeatureRows, FeatureSums
from .logistic import linear_probe

STARTS = ("zeros", "identity", "text", "means", "probe")
_FITTED = ("means", "probe")


@dataclass
class LinearConfig(MappingConfig):
    """A linear layer.

    Args:
        takes: What it is put on, features or logits.
        start: zeros; means (the class whose mean is nearest); probe (the linear probe, as ``logistic`` solves it); for
            CLIP also text (the mean text of each class, on features) and identity (the first template, on logits).
            Weight decay pulls to the start.
        standardise: Scale each input to mean 0 and deviation 1 over the training images, before training.
        bias: Whether it has a bias.
        train: Whether it trains; else it stays at its start.
    """

    kind: str = "linear"
    takes: str = "features"
    start: str = "zeros"
    standardise: bool = False
    bias: bool = True
    train: bool = True

    def __post_init__(self):
        super().__post_init__()
        check_choice("mapping.takes", self.takes, ["features", "logits"])
        check_choice("mapping.start", self.start, STARTS)
        if self.start == "text" and (self.takes == "logits" or self.standardise):
            raise UserError(
                "mapping.start: text needs mapping.takes: features and mapping.standardise: false"
            )
        if self.start == "identity" and (self.takes == "features" or self.standardise):
            raise UserError(
                "mapping.start: identity needs mapping.takes: logits and mapping.standardise: false"
            )


class LinearMapping(LabelMapping):
    """Target logits are ``inputs @ (start + weight) + start_bias + bias``; weight and bias train, from 0.

    The inputs are what the source gives: standardised where asked, and with the start text divided by their norm, so
    that the logits at the start are a CLIP's.

    Args:
        num_source: S or D, as ``takes`` says.
        num_target: T.
        takes: logits or features.
        start: zeros, identity, text, means or probe.
        standardise: Scale each input to mean 0 and deviation 1.
        bias: Whether there is a bias that trains.
        train: Whether anything trains.

    Source: AutoVP (arXiv 2310.08381) for logits, with bias, from the identity of CLIP's first template.
    """

    kind = "linear"

    def __init__(
        self,
        num_source: int,
        num_target: int,
        takes: str = "features",
        start: str = "zeros",
        standardise: bool = False,
        bias: bool = True,
        train: bool = True,
    ):
        check_choice("mapping.start", start, STARTS)
        settings = {"takes": takes, "start": start, "standardise": standardise, "bias": bias, "train": train}
        super().__init__(num_source, num_target, **settings)
        self.takes, self.start, self.standardise = takes, start, standardise
        self.weight = nn.Parameter(
            torch.zeros(num_source, num_target, dtype=torch.float32), requires_grad=train
        )
        self.bias = None
        if bias:
            self.bias = nn.Parameter(torch.zeros(num_target, dtype=torch.float32), requires_grad=train)
        if start != "zeros":
            self.register_buffer("start_weight", torch.zeros(num_source, num_target, dtype=torch.float32))
            self.register_buffer("start_bias", torch.zeros(num_target, dtype=torch.float32))
        if standardise:
            self.register_buffer("mean", torch.zeros(num_source, dtype=torch.float32))
            self.register_buffer("deviation", torch.ones(num_source, dtype=torch.float32))

    @classmethod
    def takes_of(cls, config: LinearConfig) -> str:
        return config.takes

    @classmethod
    def from_config(cls, config, source, class_names, seed) -> LinearMapping:
        size = source.num_features if config.takes == "features" else len(source.labels)
        options = config.takes, config.start, config.standardise, config.bias, config.train
        mapping, labels = cls(size, len(class_names), *options), source.labels
        if config.start in ("text", "identity") and not labels.is_text:
            raise UserError(
                f"mapping.start: {config.start} needs a CLIP; {source.name!r} has a closed label set"
            )
        if config.start == "text":
            mapping.start_weight.copy_(source.scale * class_texts(source).T)
        if config.start == "identity":
            for label, target in reversed(list(enumerate(labels.class_of))):  # the first label of a class
                mapping.start_weight[:, target] = 0
                mapping.start_weight[label, target] = 1
        return mapping

    def forward(self, outputs: Tensor) -> Tensor:
        if self.start == "text":
            outputs = F.normalize(outputs, dim=1)
        if self.standardise:
            outputs = (outputs - self.mean) / self.deviation
        weight = self.weight if self.start == "zeros" else self.start_weight + self.weight
        logits = outputs @ weight
        if self.start in _FITTED:
            logits = logits + self.start_bias
        return logits if self.bias is None else logits + self.bias

    def due(self, epoch: int) -> bool:
        return epoch == 0 and (self.standardise or self.start in _FITTED)

    def num_fitted(self) -> int:
        fits = self.start in _FITTED and not self.weight.requires_grad
        return self.start_weight.numel() + self.start_bias.numel() if fits else 0

    def statistic(self) -> FeatureSums | FeatureRows | None:
        if self.start == "probe":
            return FeatureRows(self.num_source)
        return FeatureSums(self.num_source, self.num_target) if self.due(0) else None

    @torch.no_grad()
    def fit(self, statistic: FeatureSums | FeatureRows) -> None:
        sums = statistic
        if isinstance(statistic, FeatureRows):
            features, targets = statistic.rows()
            sums = FeatureSums(self.num_source, self.num_target)
            sums.add(features, targets)
        means = sums.class_means()
        if self.standardise:
            mean, deviation = sums.moments()
            self.mean.copy_(mean)
            self.deviation.copy_(deviation)
            means = (means - mean) / deviation
        if self.start == "probe":
            device = self.weight.device
            weight, bias, _ = linear_probe(features.to(device), targets.to(device), self.num_target)
            if self.standardise:
                bias = bias + self.mean.double() @ weight
                weight = weight * self.deviation.double()[:, None]
            self.start_weight.copy_(weight)
            self.start_bias.copy_(bias)
        if self.start == "means":  # of the squared distances, |x|^2 is the same for all classes
            self.start_weight.copy_(means.T)
            self.start_bias.copy_(-(means**2).sum(1) / 2)

    @torch.no_grad()
    def fold(self, head: Tensor, head_bias: Tensor) -> tuple[Tensor, Tensor] | None:
        if self.takes == "features":
            return None
        eye = torch.cat([torch.zeros_like(head_bias)[None], torch.eye(len(head_bias), device=head.device)])
        bias, *rows = self(eye)  # what it makes of nothing, and of each logit
        matrix = torch.stack(rows) - bias
        return head.T @ matrix, head_bias @ matrix + bias

    def links(self, k: int = 1) -> Links:
        """On logits, the labels of the largest weights."""
        if self.takes == "features":
            return super().links(k)
        weight = self.weight if self.start == "zeros" else self.start_weight + self.weight
        weight, index = weight.detach().T.cpu().topk(min(k, self.num_source), dim=1)
        return Links(index.where(weight != 0, -1), weight)


def class_texts(source) -> Tensor:
    """Return the mean text embedding of each class of a CLIP, (T, D) float32, L2-normalised."""
    texts, labels = source.text_features.detach().cpu(), source.labels
    sums = torch.zeros(len(labels.class_names), texts.shape[1], dtype=torch.float32)
    return F.normalize(sums.index_add_(0, torch.tensor(labels.class_of), texts), dim=1)
