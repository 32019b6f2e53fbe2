"""The linear probe: logistic regression on features, solved, with a penalty chosen by cross-validation."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field

import torch
from torch import Tensor
from torch.nn import functional as F

from ..config.schema import MappingConfig
from ..registry import UserError, check_positive
from .feature_statistics import FeatureRows
from .fitted_once import FittedOnce

STRENGTHS = (3e-4, 1e-3, 3e-3, 1e-2, 3e-2, 0.1, 0.3, 1.0, 3.0)


@dataclass
class LogisticConfig(MappingConfig):
    """Logistic regression on the features of the training images, solved before the first epoch.

    Args:
        strengths: C of scikit-learn: the loss is |weight|^2 / 2 + C times the summed cross-entropies. Of several, the
            one with the smallest loss in cross-validation within the training images is taken.
        folds: Folds of the cross-validation.
    """

    kind: str = "logistic"
    strengths: list[float] = field(default_factory=lambda: list(STRENGTHS))
    folds: int = 4

    def __post_init__(self):
        super().__post_init__()
        for strength in self.strengths:
            check_positive("mapping.strengths", strength)
        if not self.strengths:
            raise UserError("mapping.strengths is empty; give one number or more")
        if self.folds < 2:
            raise UserError(f"mapping.folds: {self.folds} is not allowed; give 2 or more")


class LogisticMapping(FittedOnce):
    """The linear probe: target logits are ``features @ weight + bias``, the optimum of penalised logistic regression.

    The features are standardised for the penalty, and that is folded into the weight.

    Args:
        num_source: D.
        num_target: T.
        strengths: See ``LogisticConfig``.
        folds: Folds of the cross-validation; images of a class are spread over them.

    Source: the linear probe of CLIP (arXiv 2103.00020), section 3.2, whose penalty is chosen too.
    """

    kind = "logistic"

    def __init__(
        self, num_source: int, num_target: int, strengths: Sequence[float] = STRENGTHS, folds: int = 4
    ):
        super().__init__(num_source, num_target, strengths=list(strengths), folds=folds)
        self.strengths, self.folds = sorted(strengths), folds
        self.register_buffer("weight", torch.zeros(num_source, num_target, dtype=torch.float32))
        self.register_buffer("bias", torch.zeros(num_target, dtype=torch.float32))
        self.register_buffer("strength", torch.zeros((), dtype=torch.float32))

    @classmethod
    def from_config(cls, config, source, class_names, seed) -> LogisticMapping:
        return cls(source.num_features, len(class_names), config.strengths, config.folds)

    def forward(self, outputs: Tensor) -> Tensor:
        return outputs @ self.weight + self.bias

    def fit(self, statistic: FeatureRows) -> None:
        rows = (values.to(self.weight.device) for values in statistic.rows())
        weight, bias, strength = linear_probe(*rows, self.num_target, self.strengths, self.folds)
        self.weight.copy_(weight)
        self.bias.copy_(bias)
        self.strength.fill_(strength)


def linear_probe(
    features: Tensor,
    targets: Tensor,
    num_classes: int,
    strengths: Sequence[float] = STRENGTHS,
    folds: int = 4,
) -> tuple[Tensor, Tensor, float]:
    """Return weight (D, T) and bias (T,), float64, of logistic regression on features, and the strength chosen.

    Args:
        features: (n, D), by class.
        targets: int64 (n,).
        num_classes: T.
        strengths: From the smallest to the largest.
        folds: Of the cross-validation that chooses among them.
    """
    features = features.double()
    mean = features.mean(0)
    deviation = features.std(0, correction=0)
    deviation = torch.where(deviation > 1e-6, deviation, 1)
    # Fewer images than features: the optimum lies in what the images span.
    scaled = (features - mean) / deviation
    basis = torch.linalg.qr(scaled.T).Q if len(scaled) < scaled.shape[1] else None
    inputs = scaled if basis is None else scaled @ basis
    strength = choose_strength(inputs, targets, num_classes, strengths, folds)
    weight, bias = solve(inputs, targets, num_classes, strength)
    weight = (weight if basis is None else basis @ weight) / deviation[:, None]
    return weight, bias - mean @ weight, strength


def choose_strength(
    inputs: Tensor, targets: Tensor, num_classes: int, strengths: Sequence[float], folds: int
) -> float:
    """Return the strength with the smallest cross-entropy on the folds that were left out; the smallest of equals.

    Strengths after two in a row that are worse than the best before them are not tried.

    Args:
        inputs: (n, d) float64, by class.
        targets: int64 (n,).
        num_classes: T.
        strengths: From the smallest to the largest.
        folds: Their number; one image after the other goes to the next fold.
    """
    if len(strengths) == 1 or len(targets) < 2 * folds:
        return strengths[0]
    fold = torch.arange(len(targets), device=targets.device) % folds
    starts: list[tuple[Tensor, Tensor] | None] = [None] * folds
    best, smallest, worse = strengths[0], torch.inf, 0
    for strength in strengths:
        loss = 0.0
        for left_out in range(folds):
            train, held = fold != left_out, fold == left_out
            weight, bias = starts[left_out] = solve(
                inputs[train], targets[train], num_classes, strength, starts[left_out], tolerance=1e-4
            )
            loss += float(F.cross_entropy(inputs[held] @ weight + bias, targets[held], reduction="sum"))
        best, smallest, worse = (strength, loss, 0) if loss < smallest else (best, smallest, worse + 1)
        if worse == 2:  # the loss falls and then rises; weak penalties take longest
            break
    return best


def solve(
    inputs: Tensor,
    targets: Tensor,
    num_classes: int,
    strength: float,
    start: tuple[Tensor, Tensor] | None = None,
    tolerance: float = 1e-6,
) -> tuple[Tensor, Tensor]:
    """Return weight (d, T) and bias (T,) that minimise |weight|^2 / 2 + strength * the sum of the cross-entropies.

    Args:
        inputs: (n, d) float64.
        targets: int64 (n,).
        num_classes: T.
        strength: C.
        start: Where to begin; zeros when None.
        tolerance: Largest gradient of the mean loss at the end.
    """
    weight, bias = start or (inputs.new_zeros(inputs.shape[1], num_classes), inputs.new_zeros(num_classes))
    weight, bias = weight.clone().requires_grad_(), bias.clone().requires_grad_()
    scale = 1 / (strength * len(targets))
    optimizer = torch.optim.LBFGS(
        [weight, bias],
        max_iter=500,
        tolerance_grad=tolerance,
        tolerance_change=1e-10,
        line_search_fn="strong_wolfe",
    )

    def loss() -> Tensor:
        optimizer.zero_grad()
        value = F.cross_entropy(inputs @ weight + bias, targets) + scale * weight.square().sum() / 2
        value.backward()
        return value

    with torch.enable_grad():
        optimizer.step(loss)
    return weight.detach(), bias.detach()
