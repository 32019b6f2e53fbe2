"""A source: a vision model from pixels in [0, 1] to source logits, its labels and its preprocessing.

Normalisation is done here and nowhere else. As loaded it is frozen: no parameter trains and no norm statistic changes,
unless ``weights`` says so. The pixels' gradient always passes.
"""

from __future__ import annotations

import copy
import warnings
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager, nullcontext
from dataclasses import dataclass, replace
from typing import Any

import torch
from torch import Tensor, nn

from ..images import Resize
from ..labels.space import LabelSpace
from ..registry import UserError
from ..sharing import Box, CoreTape, Held, SplitNetwork
from ..weights.base import Weights
from .fingerprint import weights_fingerprint
from .frozen_norms import FrozenNorms

DTYPES = {"fp32": torch.float32, "bf16": torch.bfloat16, "fp16": torch.float16}
_OTHER_FLOATS = (torch.float16, torch.bfloat16, torch.float64)
# In fp16 the pixels' gradient of a mean loss underflows; a power of two scales it without rounding.
_FP16_SCALE = 2.0**12
_MOST_HELD = 8  # borders whose results are kept at a time
# Activations whose gradient needs their input: in place, they copy the whole map before they overwrite it.
_KEEP_THEIR_INPUT = (nn.Hardtanh, nn.SiLU, nn.Hardswish, nn.Hardsigmoid, nn.Mish)


@dataclass(frozen=True)
class Preprocessing:
    """How a model expects its images: the resize rule, and mean and std of the channels in [0, 1].

    Mean and std have three values. One value holds for all channels.

    Raises:
        UserError: Another number of values, or a std that is not above 0.
    """

    resize: Resize
    mean: tuple[float, ...]
    std: tuple[float, ...]

    def __post_init__(self):
        for key in ("mean", "std"):
            values = tuple(map(float, getattr(self, key)))
            if len(values) not in (1, 3):
                raise UserError(f"the model's {key} has {len(values)} values; give 3, or 1 for all channels")
            object.__setattr__(self, key, values if len(values) == 3 else values * 3)
        if not all(0 < value < float("inf") for value in self.std):
            raise UserError(f"the model's std is {self.std}; give numbers above 0")

    def at(self, canvas: Sequence[int] | None) -> Preprocessing:
        """Return the same preprocessing for another canvas (H, W)."""
        return self if canvas is None else replace(self, resize=replace(self.resize, size=tuple(canvas)))


@dataclass(frozen=True)
class PixelsInParts:
    """Prompted pixels of which a part is the same for all images of a batch, or does not depend on the prompt.

    Args:
        surroundings: (1, 3, H, W) in [0, 1], what is outside the box; or (B, 3, H, W), which then get no gradient; None
            where the box is the canvas. Values inside the box are ignored but must be finite.
        images: (B, 3, h, w) in [0, 1], what is inside the box.
        box: (top, left, bottom, right) in pixels, half-open.
        made_from: The tensors that ``surroundings`` was computed from, where all images share them. Without gradients a
            source keeps its work on the surroundings until one of them is written to.
        core: Inside the box, pixels that do not depend on the prompt; they get no gradient.
        tape: What the network reads of these images' core, to be recorded or played.
    """

    surroundings: Tensor | None
    images: Tensor
    box: Box
    made_from: tuple[Tensor, ...] = ()
    core: Box | None = None
    tape: CoreTape | None = None


class _ScaleGradient(torch.autograd.Function):
    @staticmethod
    def forward(ctx, values: Tensor, factor: float) -> Tensor:
        ctx.factor = factor
        return values.view_as(values)

    @staticmethod
    def backward(ctx, gradient: Tensor):
        return gradient * ctx.factor, None


class Source(nn.Module):
    """A frozen model with its label space: ``forward(pixels) == score(encode(pixels))``.

    ``encode`` and ``forward`` take pixels (B, 3, H, W) in [0, 1], or ``PixelsInParts``, which need less work: the
    result is the same up to rounding.

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
        outputs: "logits" or "features": what a label mapping is given.
        keeps_weights: The weights stay in fp32, for ``full_precision``, whatever ``precision`` is; set before any use.
        has_logits: False for a CLIP without its texts, which gives features alone.
        gives_gradient: False for a source that only answers: no gradient passes through it.
        weights: Which of its weights train; none of a source as loaded.
        options: Further keywords that ``load_source`` was given, of a plug-in's scheme.
        mean, std: Buffers (3, 1, 1) of the normalisation.
    """

    has_logits = True
    gives_gradient = True

    mean: Tensor
    std: Tensor

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
        if any(value.dtype in _OTHER_FLOATS for value in (*network.parameters(), *network.buffers())):
            network.float()
        for module in network.modules():
            if isinstance(module, _KEEP_THEIR_INPUT):
                module.inplace = False
        self.labels = labels
        self.preprocessing = preprocessing
        self.name, self.revision, self.precision = name, revision, precision
        self.register_buffer(
            "mean", torch.tensor(preprocessing.mean, dtype=torch.float32).view(3, 1, 1), persistent=False
        )
        self.register_buffer(
            "std", torch.tensor(preprocessing.std, dtype=torch.float32).view(3, 1, 1), persistent=False
        )
        self._fingerprint, self._network_fingerprint = fingerprint, None
        self.outputs = "logits"
        self.weights = Weights()
        self.options: dict[str, Any] = {}
        self._norms = FrozenNorms()
        self._split_network = SplitNetwork(self.network)
        self._held: list[Held] = []  # of each prompt whose surroundings were seen last
        self._ends_in_linear = True  # until ``check_forward`` has looked
        self._compiled: Callable[[Tensor], Tensor] | None = None
        self.keeps_weights, self._rounded, self._full = False, False, False

    def __getstate__(self) -> dict:
        return {**self.__dict__, "_compiled": None, "_held": []}

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
        return self._fingerprint or self.network_fingerprint

    @property
    def network_fingerprint(self) -> str:
        """A hash of the network's own weights; for a CLIP they are those of the image tower."""
        if self._network_fingerprint is None:
            self._network_fingerprint = weights_fingerprint(self.network)
        return self._network_fingerprint

    def train(self, mode: bool = True) -> Source:
        """Stay in evaluation mode, but for what ``weights`` trains."""
        super().train(False)
        self.weights.train(self.network, mode)
        return self

    def normalize(self, pixels: Tensor) -> Tensor:
        return (pixels - self.mean) / self.std

    @property
    def computes_in(self) -> str:
        """The precision of the next run: ``precision``, or fp32 within ``full_precision``."""
        return "fp32" if self._full else self.precision

    @contextmanager
    def full_precision(self) -> Iterator[None]:
        """Context manager: inside, the network computes in fp32 with the weights as they were loaded.

        Raises:
            UserError: The network has computed in half precision before, without ``keeps_weights``.
        """
        if self._rounded:
            raise UserError(
                f"source {self.name!r} has computed in {self.precision}, and its weights are rounded; load it anew"
            )
        before, self._full = self._full, True
        changes = self.precision != "fp32" and not before
        self._held = [] if changes else self._held  # what was kept is of the other precision
        try:
            yield
        finally:
            self._full = before
            self._held = [] if changes else self._held

    def _round_weights(self) -> None:
        """Keep the weights in half precision from now on, as autocast would round them in each run."""
        if self.computes_in == "fp32" or self.keeps_weights or self._rounded:
            return
        _ = self.network_fingerprint  # of the weights as they were loaded
        for module in self.network.modules():
            if isinstance(module, (nn.Linear, nn.Conv2d)):
                module.to(DTYPES[self.precision])
        self._rounded = True

    def run(self, network: nn.Module, *inputs) -> Tensor:
        """Return ``network(*inputs)`` in float32, computed in the source's precision."""
        with self.weights.running():
            return self._run(network, *inputs)

    def _run(self, network: nn.Module, *inputs) -> Tensor:
        if self.computes_in == "fp32":
            with self._norms if self._gains_by_norms(network) else nullcontext():
                return network(*inputs).float()
        self._round_weights()
        with torch.autocast(self.mean.device.type, DTYPES[self.precision]):
            if self.precision == "fp16":
                inputs = [
                    _ScaleGradient.apply(x, 1 / _FP16_SCALE) if torch.is_tensor(x) else x for x in inputs
                ]
                return _ScaleGradient.apply(network(*inputs).float(), _FP16_SCALE)
            return network(*inputs).float()

    def _gains_by_norms(self, network: nn.Module) -> bool:
        """Whether frozen norms are faster as a multiplication and an addition: with gradients, on a CPU, unless a
        compiler or exporter fuses them anyway."""
        eager = network is not self._compiled and not torch.compiler.is_compiling()
        return eager and self.mean.device.type == "cpu" and torch.is_grad_enabled()

    def run_network(self, pixels: Tensor | PixelsInParts, compiled: bool = True) -> Tensor:
        """Return the network's output, float32, for pixels or pixels in parts; ``compiled`` where it can be."""
        self._round_weights()  # before anything of them is held
        if not isinstance(pixels, PixelsInParts):
            network = (self._compiled if compiled else None) or self.network
            return self.run(network, self.normalize(pixels))
        surroundings = pixels.surroundings
        shared: Tensor | Held | None = None if surroundings is None else self.normalize(surroundings)
        if shared is not None and len(shared) == 1 and not torch.is_grad_enabled():
            known = [held for held in self._held if held.fresh]
            found = [held for held in known if held.made_from_these(pixels.made_from)]
            if not found:
                found = [self._split_network.hold(shared, *pixels.made_from)]
                known = [*known[1 - _MOST_HELD :], *found]
            self._held, shared = known, found[0]
        images = self.normalize(pixels.images)
        return self.run(self._split_network, shared, images, pixels.box, pixels.core, pixels.tape)

    def encode(self, pixels: Tensor | PixelsInParts) -> Tensor:
        """Return features (B, D) float32: what the last linear layer is given.

        Raises:
            UserError: The network does not end in a linear layer.
        """
        seen: list[Tensor] = []
        handle = self.classifier_head().register_forward_pre_hook(
            lambda module, inputs: seen.append(inputs[0])
        )
        try:
            self.run_network(pixels, compiled=False)  # a compiled network does not call the hook
        finally:
            handle.remove()
        return seen[-1].float()

    def score(self, features: Tensor) -> Tensor:
        """Return source logits (B, S) float32 of features (B, D)."""
        return self.run(self.classifier_head(), features)

    def forward(self, pixels: Tensor | PixelsInParts) -> Tensor:
        """Return source logits (B, S) float32."""
        return self.run_network(pixels)

    def compile_network(self) -> None:
        """Use the compiled network (torch.compile) for plain pixels, compiled for each batch size that occurs.

        The result is the same up to rounding. Pixels in parts, ``encode`` of a closed label set, and copies of this
        source use the network uncompiled.
        """
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
        head = self.last_linear()
        if head is None or not self._ends_in_linear:
            raise UserError(
                f"source {self.name!r} does not end in a linear layer, so it gives logits and no features"
            )
        return head

    def last_linear(self) -> nn.Linear | None:
        """Return the last linear layer with S outputs, None where there is none."""
        linear = [module for module in self.network.modules() if isinstance(module, nn.Linear)]
        return next((layer for layer in reversed(linear) if layer.out_features == len(self.labels)), None)

    def linear_head(self) -> tuple[Tensor, Tensor, bool]:
        """Return weight (S, D) and bias (S,) of the layer that makes the logits, and whether it is given features that
        are divided by their norm.

        Raises:
            UserError: The network does not end in a linear layer.
        """
        head = self.classifier_head()
        bias = head.bias if head.bias is not None else head.weight.new_zeros(head.out_features)
        return head.weight.float(), bias.float(), False

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


def check_precision(precision: str, device: torch.device) -> str:
    """Return the precision to use on a device: half precision on a CPU is far slower, so fp32 there."""
    if precision != "fp32" and device.type == "cpu":
        warnings.warn(
            f"source.precision: {precision} is slower than fp32 on a CPU; fp32 is used", stacklevel=3
        )
        return "fp32"
    return precision


def check_forward(source: Source) -> Source:
    """Run one empty image through a source and check that it gives one logit for each label, where it gives logits.

    The source learns whether its logits are the output of its last linear layer: after two heads that are averaged, or
    a softmax, there are no features.

    Raises:
        UserError: The architecture does not take the canvas, or the labels do not fit the logits.
    """
    head, seen = source.last_linear(), []
    handle = head and head.register_forward_hook(lambda module, inputs, output: seen.append(output))
    try:
        with torch.no_grad(), source.full_precision():
            empty = torch.zeros(1, 3, *source.canvas, device=source.mean.device, dtype=torch.float32)
            logits = source(empty) if source.has_logits else source.encode(empty)
    except UserError:  # of a black box, which knows better
        raise
    except Exception as error:  # a network of any library may raise any type
        reason = str(error).splitlines()[0] if str(error) else type(error).__name__
        height, width = source.canvas
        raise UserError(
            f"source.canvas: {source.name!r} does not take {height}x{width} pixels: {reason}"
        ) from error
    finally:
        if handle is not None:
            handle.remove()
    if not source.has_logits:
        return source
    if logits.ndim != 2 or logits.shape[1] != len(source.labels):
        raise UserError(
            f"source {source.name!r} gives logits {tuple(logits.shape)} for {len(source.labels)} labels"
        )
    source._ends_in_linear = any(torch.equal(output.float(), logits) for output in seen[-1:])
    return source
