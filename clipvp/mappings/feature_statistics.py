"""What a pass over training images gathers of their features, exact over batches and processes."""

from __future__ import annotations

import numpy as np
import torch
from torch import Tensor

from .statistic import Statistic


class FeatureSums(Statistic):
    """Sums over images of their features and of the features' squares, by class, as multiples of 2**-24.

    Args:
        num_features: D.
        num_target: T.
    """

    ONE = 1 << 24

    def __init__(self, num_features: int, num_target: int):
        self.sums = {
            "count": torch.zeros(num_target, dtype=torch.int64),
            "sum": torch.zeros(num_target, num_features, dtype=torch.int64),
            "square": torch.zeros(num_target, num_features, dtype=torch.int64),
        }

    def add(self, outputs: Tensor, targets: Tensor) -> None:
        values, targets = outputs.detach().double().cpu(), targets.cpu()
        parts = {"count": torch.ones_like(targets)}
        parts |= {"sum": (values * self.ONE).round().long(), "square": (values**2 * self.ONE).round().long()}
        for name, part in parts.items():
            self.sums[name].index_add_(0, targets, part)

    def tensors(self) -> dict[str, Tensor]:
        return self.sums

    def add_tensors(self, tensors: dict[str, Tensor]) -> None:
        for name, value in self.sums.items():
            value += tensors[name]

    def moments(self) -> tuple[Tensor, Tensor]:
        """Return mean and standard deviation of each feature, (D,) float64; the deviation is 1 where it is 0 up to
        rounding."""
        count = self.sums["count"].sum().clamp(min=1)
        mean = self.sums["sum"].sum(0).double() / self.ONE / count
        variance = (self.sums["square"].sum(0).double() / self.ONE / count - mean**2).clamp(min=0)
        return mean, torch.where(variance > 1e-6 * (1 + mean**2), variance, 1).sqrt()

    def class_means(self) -> Tensor:
        """Return the mean features of each class, (T, D) float64; the mean of all images where a class has none."""
        count = self.sums["count"]
        means = self.sums["sum"].double() / self.ONE / count.clamp(min=1)[:, None]
        return torch.where(count[:, None] > 0, means, self.moments()[0])


class FeatureRows(Statistic):
    """The features and the class of every image, in an order that does not depend on who added them.

    Args:
        num_features: D.
    """

    def __init__(self, num_features: int):
        self.num_features = num_features
        self._parts: list[tuple[Tensor, Tensor]] = []

    def add(self, outputs: Tensor, targets: Tensor) -> None:
        self._parts.append((outputs.detach().float().cpu(), targets.cpu()))

    def tensors(self) -> dict[str, Tensor]:
        features, targets = self.rows()
        return {"features": features.view(torch.int32).to(torch.int64), "targets": targets}

    def add_tensors(self, tensors: dict[str, Tensor]) -> None:
        self._parts.append((tensors["features"].to(torch.int32).view(torch.float32), tensors["targets"]))

    def rows(self) -> tuple[Tensor, Tensor]:
        """Return features (n, D) float32 and classes (n,) int64, by class and then by the bits of the features."""
        empty = torch.zeros(0, self.num_features), torch.zeros(0, dtype=torch.int64)
        features, targets = (torch.cat(parts) for parts in zip(empty, *self._parts, strict=True))
        factors = torch.randint(1 << 62, (self.num_features,), generator=torch.Generator().manual_seed(0))
        key = (features.contiguous().view(torch.int32).to(torch.int64) * factors).sum(1)  # it wraps around
        order = torch.from_numpy(np.lexsort((key.numpy(), targets.numpy())))
        features, targets = features[order], targets[order]
        self._parts = [(features, targets)]
        return features, targets
