"""LP++: a linear probe of a CLIP's features, with a learned weight of each class's text."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor
from torch.nn import functional as F

from ..config.schema import MappingConfig
from ..registry import check_positive
from .base import check_texts
from .feature_statistics import FeatureRows
from .fitted_once import FittedOnce
from .linear import class_texts

START = 250.0  # times the mean score of an image with the text of its class: where the text weights start
MOMENTUM = 0.9
ALPHA_EVERY = 10  # iterations of the vectors for one of the text weights


@dataclass
class LpPlusPlusConfig(MappingConfig):
    """A linear probe that learns, for each class, a vector and the weight of its text.

    Args:
        iterations: Steps over all training images at once.
    """

    kind: str = "lp_plus_plus"
    iterations: int = 300

    def __post_init__(self):
        super().__post_init__()
        check_positive("mapping.iterations", self.iterations)


class LpPlusPlusMapping(FittedOnce):
    """The target logit of class t is ``f @ (vector_t + alpha_t * text_t)``, f and the texts being L2-normalised.

    Fitted to the features of all n training images at once, by gradient steps on the mean cross-entropy. The vectors
    start at the class means and step by 4 n / (largest eigenvalue of F^T F), with momentum 0.9. Every tenth
    iteration the text weights step, by n / (4 * largest column sum of squares of F @ texts).

    Args:
        num_source: D.
        num_target: T.
        iterations: Steps.

    Source: LP++ (arXiv 2404.02285). Its code takes the iteration that is best on validation images; here the last.
    """

    kind = "lp_plus_plus"

    def __init__(self, num_source: int, num_target: int, iterations: int = 300):
        super().__init__(num_source, num_target, iterations=iterations)
        self.iterations = iterations
        self.register_buffer("texts", torch.zeros(num_target, num_source, dtype=torch.float32))
        self.register_buffer("vectors", torch.zeros(num_target, num_source, dtype=torch.float32))
        self.register_buffer("alpha", torch.zeros(num_target, dtype=torch.float32))

    @classmethod
    def from_config(cls, config, source, class_names, seed) -> LpPlusPlusMapping:
        check_texts(cls.kind, source)
        mapping = cls(source.num_features, len(class_names), config.iterations)
        mapping.texts.copy_(class_texts(source))
        return mapping

    def forward(self, outputs: Tensor) -> Tensor:
        return F.normalize(outputs, dim=1) @ (self.vectors + self.alpha[:, None] * self.texts).T

    @torch.no_grad()
    def fit(self, statistic: FeatureRows) -> None:
        features, classes = statistic.rows()
        features = F.normalize(features.to(self.texts.device).double(), dim=1)
        classes = classes.to(self.texts.device)
        one_hot = F.one_hot(classes, self.num_target).double()
        count, texts = one_hot.sum(0).clamp(min=1)[:, None], self.texts.double()
        scores = features @ texts.T
        vectors = one_hot.T @ features / count
        seen = one_hot.sum(0) > 0  # the mean over the classes that have images
        own = (one_hot * scores).sum(0) / count[:, 0]
        alpha = (START * own[seen].mean()).expand(self.num_target).clone()
        vector_step = 4 * len(features) / torch.linalg.matrix_norm(features, 2) ** 2
        alpha_step = len(features) / (4 * scores.square().sum(0).max()).clamp(min=1e-12)
        change = torch.zeros_like(vectors)
        for iteration in range(self.iterations):
            errors = ((features @ vectors.T + alpha * scores).softmax(1) - one_hot) / len(features)
            change = MOMENTUM * change + errors.T @ features
            vectors = vectors - vector_step * change
            if (iteration + 1) % ALPHA_EVERY == 0:
                alpha = alpha - alpha_step * (errors * scores).sum(0)
        self.vectors.copy_(vectors)
        self.alpha.copy_(alpha)
