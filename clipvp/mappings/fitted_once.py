"""Mappings that are fitted once, to the features of all training images."""

from __future__ import annotations

from .base import LabelMapping
from .feature_statistics import FeatureRows


class FittedOnce(LabelMapping):
    """Base of mappings that are fitted before the first epoch to the features and classes of the training images."""

    takes = "features"

    def due(self, epoch: int) -> bool:
        return epoch == 0

    def statistic(self) -> FeatureRows:
        return FeatureRows(self.num_source)

    def num_fitted(self) -> int:
        if any(parameter.requires_grad for parameter in self.parameters()):
            return 0
        return sum(value.numel() for value in self.state_dict().values() if value.is_floating_point())
