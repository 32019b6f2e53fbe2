"""LoRA: two small matrices beside a layer's weight, through the PEFT library."""

from __future__ import annotations

import math
import re
import warnings
from dataclasses import dataclass
from typing import TYPE_CHECKING

import torch
from torch import Tensor, nn

from ..config.schema import WeightsConfig
from ..registry import UserError, check_choice, check_positive
from .attention import SplitAttention
from .base import check_gradient
from .dropout import ImageWeights

if TYPE_CHECKING:
    from ..sources.base import Source

TARGETS = ("qkv", "attention", "linear", "all")
_QKV = {"qkv", "q_proj", "k_proj", "v_proj", "query", "key", "value", "q", "k", "v", "to_q", "to_k", "to_v"}


@dataclass
class LoraConfig(WeightsConfig):
    """Adapters beside the weights, which stay: a layer adds ``scale * B(A(dropout(x)))``.

    Args:
        rank: Rows of A and columns of B.
        alpha: The scale is alpha / rank, with scaling: root alpha / sqrt(rank).
        scaling: rank or root.
        dropout: Share of the inputs of the adapters that is dropped in training.
        targets: The layers: qkv (queries, keys and values of the attention), attention (its output layer too), linear
            (every linear layer but the last one of a classifier) or all (convolutions that are not grouped too); when
            empty attention, or all where a network has none.
    """

    kind: str = "lora"
    rank: int = 4
    alpha: float = 8.0
    scaling: str = "rank"
    dropout: float = 0.0
    targets: str | None = None

    def __post_init__(self):
        super().__post_init__()
        check_positive("weights.rank", self.rank)
        check_positive("weights.alpha", self.alpha)
        check_choice("weights.scaling", self.scaling, ["rank", "root"])
        if not 0 <= self.dropout < 1:
            raise UserError(
                f"weights.dropout: {self.dropout} is not a share; give a number from 0 to below 1"
            )
        if self.targets is not None:
            check_choice("weights.targets", self.targets, TARGETS)


class LoraWeights(ImageWeights):
    """Adapters of linear layers and convolutions. A starts uniform, B at zero: the outputs start as the source's.

    An ``nn.MultiheadAttention`` (open_clip, SigLIP's pooling) is split into its linear layers first. A matrix for
    query, key and value together (timm's ``qkv``) has one adapter.

    Args:
        rank, alpha, scaling, dropout, targets: See ``LoraConfig``.

    Source: LoRA (arXiv 2106.09685); CLIP-LoRA (arXiv 2405.18541), whose code scales by ``root``.
    """

    kind = "lora"
    extra = "lora"

    def __init__(
        self,
        rank: int = 4,
        alpha: float = 8.0,
        scaling: str = "rank",
        dropout: float = 0.0,
        targets: str | None = None,
    ):
        super().__init__(rank=rank, alpha=alpha, scaling=scaling, dropout=dropout, targets=targets)
        self.rank, self.alpha, self.scaling, self.dropout = rank, alpha, scaling, dropout
        self.targets = targets

    @classmethod
    def from_config(cls, config: LoraConfig) -> LoraWeights:
        return cls(config.rank, config.alpha, config.scaling, config.dropout, config.targets)

    def apply(self, source: Source, seed: int = 0) -> None:
        try:
            import peft
        except ImportError as error:
            raise UserError(
                "weights.kind: lora needs peft, which is missing: pip install 'clipvp[lora]'"
            ) from error
        check_gradient(source, self.kind)
        if source.precision != "fp32":
            raise UserError(f"source.precision: {source.precision} weights do not train; give fp32")
        if source.is_compiled:
            raise UserError(
                "source.compile: true goes with frozen weights; weights.kind: lora runs uncompiled"
            )
        _ = source.network_fingerprint  # of the weights as they were loaded
        _split_attentions(source)
        names = self._layers(source)
        config = peft.LoraConfig(
            r=self.rank,
            lora_alpha=self.alpha,
            use_rslora=self.scaling == "root",
            lora_dropout=self.dropout,
            # An expression: PEFT takes a list for the ends of names, which other layers may have too.
            target_modules="|".join(map(re.escape, names)),
            bias="none",
        )
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # of PEFT, on layers that it guesses from their names
            peft.inject_adapter_in_model(config, source.network)
        _start(source.network, seed)
        super().apply(source, seed)
        self.train(source.network, False)

    def _layers(self, source: Source) -> list[str]:
        """Return the names of the layers that get adapters: those that a pass calls."""
        head = None if source.labels.is_text else source.last_linear()
        called = _called(source)
        found: dict[str, list[str]] = {"qkv": [], "output": [], "linear": [], "conv": []}
        for name, module in source.network.named_modules():
            if module in called and module is not head:
                found[_role(name, module)].append(name)
        targets = self.targets or ("attention" if found["qkv"] else "all")
        roles = list(found)[: TARGETS.index(targets) + 1]
        names = [name for role in roles for name in found[role]]
        if not names:
            raise UserError(f"weights.targets: {source.name!r} has no {targets} layers; give linear or all")
        return names

    def train(self, network: nn.Module, mode: bool) -> None:
        for name, module in network.named_modules():
            if "lora_dropout" in name:
                module.training = mode

    def tensors(self, network: nn.Module) -> dict[str, Tensor]:
        return {name: value for name, value in network.named_parameters() if ".lora_" in name}


def _role(name: str, module: nn.Module) -> str:
    """Return what a layer is: qkv, output (of an attention), linear or conv."""
    if isinstance(module, nn.Conv2d):
        return "conv"
    *parents, last = name.split(".")
    if not any("attn" in parent or "attention" in parent for parent in parents):
        return "linear"
    return "qkv" if last in _QKV else "output"


def _called(source: Source) -> set[nn.Module]:
    """Return the linear layers and ungrouped convolutions whose ``forward`` a pass runs.

    The weight of a layer that is not called is used in another way, which an adapter would not reach.
    """
    called: set[nn.Module] = set()
    handles = [
        module.register_forward_hook(lambda module, inputs, output: called.add(module))
        for module in source.network.modules()
        if isinstance(module, nn.Linear) or (isinstance(module, nn.Conv2d) and module.groups == 1)
    ]
    try:
        with torch.no_grad():
            pixels = torch.zeros(1, 3, *source.canvas, device=source.mean.device, dtype=torch.float32)
            source.run_network(pixels, compiled=False)
    finally:
        for handle in handles:
            handle.remove()
    return called


def _split_attentions(source: Source) -> None:
    for module in list(source.network.modules()):
        for name, child in module.named_children():
            if SplitAttention.fits(child):
                setattr(module, name, SplitAttention(child).eval())


@torch.no_grad()
def _start(network: nn.Module, seed: int) -> None:
    """Draw A, uniform within 1 / sqrt(its inputs), the same on every device."""
    generator = torch.Generator().manual_seed(seed)
    for name, value in network.named_parameters():
        if ".lora_A." in name:
            bound = 1 / math.sqrt(value[0].numel())
            value.copy_((torch.rand(value.shape, generator=generator) * 2 - 1) * bound)
        elif ".lora_B." in name:
            value.zero_()
