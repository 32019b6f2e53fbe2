"""A frozen network, run on images that have the same surroundings."""

from __future__ import annotations

import warnings
from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor, nn
from torch.utils import _pytree as pytree

from .network_pass import NetworkPass, ResultCache
from .pair import Pair
from .rules import RULES
from .window import Box, put_together


class PairNetwork:
    """Computes ``network(put_together(shared, region, box))`` with less work.

    The part of the work that depends on the shared pixels only is done once for all images. For each image the
    network computes only a box that grows with the receptive field. The output is the same up to rounding, and so
    are the gradients of ``shared`` (summed over the batch) and of ``region``. Any module works: an operator
    without a rule (``rules.py``) gets the whole map, and so do the operators after it.

    The network is not copied, and this class is no ``nn.Module``, so that no parameter is registered twice. The
    network must not be compiled.

    Args:
        network: Maps (B, 3, H, W) to any output. Frozen and in ``eval()``.
        limit: The largest share of a map, 0 to 1, that is computed in two parts; above it the whole map is
            computed. The shared map counts as one more image. The time of a step hardly changes between 0.55
            and 1 (ResNet-18 and EfficientNet-Lite0, on a CPU).

    Attributes:
        reason: Why the network always runs on whole maps; None as long as it can run in two parts.
    """

    def __init__(self, network: nn.Module, limit: float = 0.7):
        self.network = network
        self.limit = limit
        self.reason: str | None = None

    def __call__(self, shared: Tensor | Held, region: Tensor, box: Box) -> Any:
        """Return the network's output for a batch of images in their surroundings.

        Args:
            shared: (1, 3, H, W), normalised surroundings, or what ``hold`` returned. Values inside the box are
                ignored but must be finite.
            region: (B, 3, h, w), the normalised images.
            box: (top, left, bottom, right) of the images in pixels, half-open.

        Raises:
            ValueError: Shapes, box, dtypes or devices do not fit together.
            StaleError: A tensor that the held work depends on was written to.
        """
        cache = None
        if isinstance(shared, Held):
            shared, cache = shared.check(), shared.cache
            cache.start_pass(region.device.type)
        _check_inputs(shared, region, box)
        differentiable = torch.is_grad_enabled() and (shared.requires_grad or region.requires_grad)
        network_pass = NetworkPass(RULES, self.limit, cache, differentiable)
        if self.reason is None and not network_pass.is_too_large(box, shared.shape[2:], region.shape[0]):
            try:
                output = self.network(Pair(network_pass, shared, region, box))
                return pytree.tree_map_only(Pair, lambda pair: pair.whole, output)
            except Exception:
                if network_pass.reason is None:
                    raise
            self.reason = network_pass.reason
            warnings.warn(
                f"the border is not shared, the network runs on whole maps: {self.reason}", stacklevel=2
            )
        return self.network(put_together(shared, region, box))

    def hold(self, shared: Tensor, *made_from: Tensor) -> Held:
        """Return ``shared`` with a cache: the network's work on it is done in the first pass and then reused.

        For a prompt that does not change between passes, as in counting and evaluating. The held map gets no
        gradient.

        Args:
            shared: (1, 3, H, W), normalised.
            made_from: The tensors that ``shared`` was computed from, such as the prompt's delta. If one of them,
                ``shared`` itself, or a parameter or buffer of the network is written to, the next pass raises
                ``StaleError``.

        Raises:
            ValueError: Gradients are enabled and ``shared`` requires one.
        """
        if torch.is_grad_enabled() and shared.requires_grad:
            raise ValueError("a held map gets no gradient: call hold under torch.no_grad()")
        return Held(shared, made_from, (*self.network.parameters(), *self.network.buffers()))


class StaleError(RuntimeError):
    """A held map, a tensor it was made from, or the network was written to."""


class Held:
    """A shared map and the results of the work on it so far, kept in memory; made by ``PairNetwork.hold``."""

    def __init__(self, shared: Tensor, made_from: tuple[Tensor, ...], weights: tuple[Tensor, ...]):
        self.shared = shared.detach()
        self.cache = ResultCache()
        self._made_from = made_from
        self._watched = [(tensor, _version(tensor)) for tensor in (shared, *made_from, *weights)]

    @property
    def fresh(self) -> bool:
        """Whether no tensor that the held work depends on was written to."""
        return all(_version(tensor) == version for tensor, version in self._watched)

    def made_from_these(self, tensors: Sequence[Tensor]) -> bool:
        """Return whether ``hold`` was given exactly these tensor objects as ``made_from``, in this order.

        Equal values are not enough. False for no tensors: they do not tell one map from another.
        """
        same = len(tensors) == len(self._made_from)
        return (
            same and len(tensors) > 0 and all(a is b for a, b in zip(tensors, self._made_from, strict=True))
        )

    def check(self) -> Tensor:
        """Return the shared map (1, 3, H, W), or raise ``StaleError``."""
        if not self.fresh:
            raise StaleError(
                "the held map, a tensor it was made from, or the network was written to; call hold() again"
            )
        return self.shared


def _version(tensor: Tensor) -> tuple:
    # Tensors made under inference_mode do not count the writes to them.
    return tensor.data_ptr(), None if tensor.is_inference() else tensor._version


def _check_inputs(shared: Tensor, region: Tensor, box: Box) -> None:
    top, left, bottom, right = box
    if shared.ndim != 4 or shared.shape[0] != 1:
        raise ValueError(f"the shared map must be (1, C, H, W), got {tuple(shared.shape)}")
    height, width = shared.shape[2:]
    if not (0 <= top < bottom <= height and 0 <= left < right <= width):
        raise ValueError(
            f"{tuple(box)} is not a box (top, left, bottom, right) inside a canvas of {height}x{width}"
        )
    size = (region.shape[0], shared.shape[1], bottom - top, right - left)
    if tuple(region.shape) != size:
        wanted = ", ".join(map(str, size[1:]))
        raise ValueError(f"the region in box {tuple(box)} must be (B, {wanted}), got {tuple(region.shape)}")
    if (shared.dtype, shared.device) != (region.dtype, region.device):
        raise ValueError(
            f"shared and region must have the same dtype and device: shared is {shared.dtype} on "
            f"{shared.device}, region is {region.dtype} on {region.device}"
        )
