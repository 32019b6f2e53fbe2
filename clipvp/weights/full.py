"""Full fine-tuning: every weight of the source trains."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

from torch import Tensor, nn

from ..config.schema import WeightsConfig
from ..registry import UserError
from .base import check_gradient, used_parameters
from .dropout import ImageWeights

if TYPE_CHECKING:
    from ..sources.base import Source


@dataclass
class FullConfig(WeightsConfig):
    """Every weight trains, and batch norms learn their statistics. What is saved is as large as the network."""

    kind: str = "full"


class FullWeights(ImageWeights):
    """All weights on which the mapping's inputs depend; a last layer that the mapping does not see stays as it is.

    Source: ILM-VP (arXiv 2211.11635), full fine-tuning.
    """

    kind = "full"
    trains_norms = True

    def apply(self, source: Source, seed: int = 0) -> None:
        check_gradient(source, self.kind)
        if source.precision != "fp32":
            raise UserError(f"source.precision: {source.precision} weights do not train; give fp32")
        if source.is_compiled:
            raise UserError(
                "source.compile: true goes with frozen weights; weights.kind: full runs uncompiled"
            )
        _ = source.network_fingerprint  # of the weights as they were loaded
        source.network.requires_grad_(True)
        used = {id(parameter) for parameter in used_parameters(source)}
        for parameter in source.network.parameters():
            parameter.requires_grad_(id(parameter) in used)
        super().apply(source, seed)

    def train(self, network: nn.Module, mode: bool) -> None:
        network.train(mode)

    def tensors(self, network: nn.Module) -> dict[str, Tensor]:
        trains = {name for name, parameter in network.named_parameters() if parameter.requires_grad}
        fixed = {name for name, _ in network.named_parameters()} - trains
        return {name: value for name, value in network.state_dict().items() if name not in fixed}
