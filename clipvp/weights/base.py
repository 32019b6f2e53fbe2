"""Which of a source's own weights train: none of them, all of them, or adapters beside them."""

from __future__ import annotations

from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor, nn

from ..config.schema import WeightsConfig
from ..registry import UserError

if TYPE_CHECKING:
    from ..sources.base import Source


@dataclass
class FrozenConfig(WeightsConfig):
    """No weight of the source trains."""

    kind: str = "frozen"


class Weights:
    """The source as it was loaded: nothing of it trains. Other kinds change this.

    Args:
        settings: The arguments that make it again, ready for JSON.

    Attributes:
        trains_norms: Whether batch norms use and update the statistics of the batch.
        extra: The extra of the package that loading needs; None where it needs none.
    """

    kind = "frozen"
    trains_norms = False
    extra: str | None = None

    def __init__(self, **settings: Any):
        self.settings = settings

    @classmethod
    def from_config(cls, config: WeightsConfig) -> Weights:
        return cls()

    def apply(self, source: Source, seed: int = 0) -> None:
        """Change a source, loaded and with its ``outputs`` chosen, so that its weights train.

        Args:
            source: Changed in place.
            seed: Of what is drawn.

        Raises:
            UserError: They cannot train.
        """
        source.weights = self

    def train(self, network: nn.Module, mode: bool) -> None:
        """Set what behaves otherwise in training to training, or back."""

    def tensors(self, network: nn.Module) -> dict[str, Tensor]:
        """Return what training changes of the network, by name."""
        return {}

    def begin(self, seed: int, epoch: int, images: Tensor) -> None:
        """Say which images the next passes see.

        Args:
            seed: Of the run.
            epoch: Of the run.
            images: (B,) int64, their places in the training set.
        """

    def running(self) -> AbstractContextManager:
        """Return the context in which the network runs."""
        return nullcontext()


def check_gradient(source: Source, kind: str) -> None:
    """Raise ``UserError`` where weights are to train and the source gives no gradient."""
    if not source.gives_gradient:
        raise UserError(
            f"weights.kind: {kind}: source {source.name!r} gives no gradient, so its weights do not train; give frozen"
        )


def used_parameters(source: Source) -> list[nn.Parameter]:
    """Return the parameters that require gradients and on which what the mapping is given depends."""
    parameters = [parameter for parameter in source.network.parameters() if parameter.requires_grad]
    pixels = torch.zeros(1, 3, *source.canvas, device=source.mean.device, dtype=torch.float32)
    with torch.enable_grad():
        outputs = source.encode(pixels) if source.outputs == "features" else source(pixels)
        gradients = torch.autograd.grad(outputs.sum(), parameters, allow_unused=True)
    return [
        parameter for parameter, gradient in zip(parameters, gradients, strict=True) if gradient is not None
    ]
