"""A source: a frozen vision model from pixels in [0, 1] to source logits, its labels and its preprocessing.

Normalisation lives here and nowhere else. Parameters never train, statistics never move, and the gradient
of the pixels always passes.
"""

from __future__ import annotations

import copy
import hashlib
import re
import warnings
from collections.abc import Callable, Sequence
from contextlib import nullcontext
from dataclasses import dataclass, replace

import torch
from torch import Tensor, nn

from ..images import Resize
from ..labels.space import LabelSpace
from ..registry import UserError
from .frozen_norms import FrozenNorms

DTYPES = {"fp32": torch.float32, "bf16": torch.bfloat16, "fp16": torch.float16}
# In fp16 the pixels' gradient of a mean loss underflows; a power of two scales it without rounding.
_FP16_SCALE = 2.0**12
# Activations whose gradient needs their input: in place, they copy the whole map before they overwrite it.
_KEEP_THEIR_INPUT = (nn.Hardtanh, nn.SiLU, nn.Hardswish, nn.Hardsigmoid, nn.Mish)
_POSITIONS = re.compile("pos_embed|position|rel_pos")


@dataclass(frozen=True)
class Preprocessing:
    """What a model wants of its images: the resize rule, and mean and std of the channels in [0, 1]."""

    resize: Resize
    mean: tuple[float, ...]
    std: tuple[float, ...]

    def at(self, canvas: Sequence[int] | None) -> Preprocessing:
        """Return the same preprocessing for another canvas (H, W)."""
        return self if canvas is None else replace(self, resize=replace(self.resize, size=tuple(canvas)))


class _ScaleGradient(torch.autograd.Function):
    @staticmethod
    def forward(ctx, values: Tensor, factor: float) -> Tensor:
        ctx.factor = factor
        return values.view_as(values)

    @staticmethod
    def backward(ctx, gradient: Tensor):
        return gradient * ctx.factor, None


class Source(nn.Module):
    """A frozen model with its label space.

    Args:
        network: Module from normalised pixels (B, 3, H, W) to logits (B, S).
        labels: The S source labels.
        preprocessing: The model's own; its resize gives the canvas.
        name: The name that ``load_source`` takes.
        revision: Branch, tag or commit that was asked for.
        precision: fp32, bf16 or fp16, of the network only; pixels in and logits out are fp32.
        fingerprint: Of the weights, where more than the network's decide the logits.

    Attributes:
        canvas: (H, W) in pixels.
        mean, std: Buffers (3, 1, 1) of the normalisation.
    """

    def __init__(
        self,
        network: nn.Module,
        labels: LabelSpace,
        preprocessing: Preprocessing,
        name: str,
        revision: str | None = None,
        precision: str = "fp32",
        fingerprint: str | None = None,
    ):
        super().__init__()
        self.training = False
        # channels last: convolutions are about half again as fast so on a CPU, and feed tensor cores on a GPU
        self.network = network.requires_grad_(False).eval().to(memory_format=torch.channels_last)
        for module in network.modules():
            if isinstance(module, _KEEP_THEIR_INPUT):
                module.inplace = False
        self.labels = labels
        self.preprocessing = preprocessing
        self.name, self.revision, self.precision = name, revision, precision
        self.register_buffer("mean", torch.tensor(preprocessing.mean).view(3, 1, 1), persistent=False)
        self.register_buffer("std", torch.tensor(preprocessing.std).view(3, 1, 1), persistent=False)
        self._fingerprint = fingerprint
        self._norms = FrozenNorms()
        self._compiled: Callable[[Tensor], Tensor] | None = None
        if precision != "fp32":
            _ = self.fingerprint  # of the weights as they were loaded
            for module in network.modules():
                if isinstance(module, (nn.Linear, nn.Conv2d)):
                    module.to(DTYPES[precision])

    def __getstate__(self) -> dict:
        return {**self.__dict__, "_compiled": None}

    @property
    def is_compiled(self) -> bool:
        return self._compiled is not None

    @property
    def canvas(self) -> tuple[int, int]:
        return self.preprocessing.resize.size

    @property
    def resize(self) -> Resize:
        """How the model's own preprocessing brings an image to the canvas."""
        return self.preprocessing.resize

    @property
    def fingerprint(self) -> str:
        """A hash of every weight, as loaded: two sources with the same one give the same logits."""
        if self._fingerprint is None:
            self._fingerprint = weights_fingerprint(self.network)
        return self._fingerprint

    def train(self, mode: bool = True) -> Source:
        """Stay in evaluation mode, whatever a parent module asks for."""
        return super().train(False)

    def normalize(self, pixels: Tensor) -> Tensor:
        return (pixels - self.mean) / self.std

    def run(self, network: nn.Module, *inputs) -> Tensor:
        """Return ``network(*inputs)`` in float32, computed in the source's precision."""
        if self.precision == "fp32":
            with self._norms if self._gains_by_norms(network) else nullcontext():
                return network(*inputs).float()
        with torch.autocast(self.mean.device.type, DTYPES[self.precision]):
            if self.precision == "fp16":
                inputs = [
                    _ScaleGradient.apply(x, 1 / _FP16_SCALE) if torch.is_tensor(x) else x for x in inputs
                ]
                return _ScaleGradient.apply(network(*inputs).float(), _FP16_SCALE)
            return network(*inputs).float()

    def _gains_by_norms(self, network: nn.Module) -> bool:
        """Whether frozen norms are faster as a multiplication and an addition: with gradients, on a CPU, where no
        compiler or exporter fuses them by itself."""
        eager = network is not self._compiled and not torch.compiler.is_compiling()
        return eager and self.mean.device.type == "cpu" and torch.is_grad_enabled()

    def logits(self, output: Tensor) -> Tensor:
        """Return source logits (B, S) from what the network gives, here the logits themselves."""
        return output

    def forward(self, pixels: Tensor) -> Tensor:
        """Return source logits (B, S) float32 of pixels (B, 3, H, W), the images in [0, 1]."""
        return self.logits(self.run(self._compiled or self.network, self.normalize(pixels)))

    def compile_network(self) -> None:
        """Have ``forward`` use the network compiled (torch.compile), for each of the few sizes of batch that a run has;
        up to rounding the result is the same. What shares the border of images uses the network itself, and so does a
        copy of this source."""
        compiled = torch.compile(lambda pixels: self.network(pixels), dynamic=False)

        def network(pixels: Tensor) -> Tensor:
            try:
                return compiled(pixels)
            except torch._dynamo.exc.TorchDynamoException as error:
                reason = next(filter(None, map(str.strip, str(error).splitlines())), type(error).__name__)
                raise UserError(f"source.compile: {self.name!r} cannot be compiled here: {reason}") from error

        self._compiled = network

    def classifier_head(self) -> nn.Linear:
        """Return the last linear layer, the one that makes the logits.

        Raises:
            UserError: The network does not end in a linear layer.
        """
        linear = [
            m
            for m in self.network.modules()
            if isinstance(m, nn.Linear) and m.out_features == len(self.labels)
        ]
        if not linear:
            raise UserError(
                f"source {self.name!r}: no linear classifier layer was found, so no features before it"
            )
        return linear[-1]

    def features(self, pixels: Tensor) -> Tensor:
        """Return features (B, D) float32: what the classifier layer is given."""
        seen: list[Tensor] = []
        handle = self.classifier_head().register_forward_pre_hook(
            lambda module, inputs: seen.append(inputs[0])
        )
        try:
            self.run(self.network, self.normalize(pixels))
        finally:
            handle.remove()
        return seen[-1].float()

    @property
    def num_features(self) -> int:
        return self.classifier_head().in_features

    def headless_network(self) -> nn.Module:
        """Return a copy of the network that gives features (B, D) in the place of logits."""
        head = self.classifier_head()
        path = next(name for name, module in self.network.named_modules() if module is head)
        network = copy.deepcopy(self.network)
        parent, _, child = path.rpartition(".")
        setattr(network.get_submodule(parent), child, nn.Identity())
        return network

    def extra_repr(self) -> str:
        return f"{self.name}, S={len(self.labels)}, canvas={self.canvas}, precision={self.precision}"


def weights_fingerprint(*modules: nn.Module) -> str:
    """Return a hash of the weights and buffers of some modules, 16 hexadecimal digits.

    Position embeddings are left out: the libraries interpolate them to the canvas, in other bits on other machines.
    """
    digest = hashlib.sha256()
    for module in modules:
        for key, value in sorted(module.state_dict().items()):
            if _POSITIONS.search(key):
                continue
            digest.update(f"{key} {tuple(value.shape)} {value.dtype};".encode())
            digest.update(value.detach().cpu().contiguous().flatten().view(torch.uint8).numpy().data)
    return digest.hexdigest()[:16]


def check_precision(precision: str, device: torch.device) -> str:
    """Return the precision to use on a device: half precision on a CPU is far slower, so fp32 there."""
    if precision != "fp32" and device.type == "cpu":
        warnings.warn(
            f"source.precision: {precision} is slower than fp32 on a CPU; fp32 is used", stacklevel=3
        )
        return "fp32"
    return precision


def check_forward(source: Source) -> Source:
    """Run one empty image through a source and hold the number of its logits against its labels.

    Raises:
        UserError: The architecture does not take the canvas, or the labels do not fit the logits.
    """
    try:
        with torch.no_grad():
            logits = source(torch.zeros(1, 3, *source.canvas, device=source.mean.device))
    except (RuntimeError, AssertionError, ValueError) as error:
        reason = str(error).splitlines()[0] if str(error) else type(error).__name__
        height, width = source.canvas
        raise UserError(
            f"source.canvas: {source.name!r} does not take {height}x{width} pixels: {reason}"
        ) from error
    if logits.ndim != 2 or logits.shape[1] != len(source.labels):
        raise UserError(
            f"source {source.name!r} gives logits {tuple(logits.shape)} for {len(source.labels)} labels"
        )
    return source
