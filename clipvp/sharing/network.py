"""A frozen network, run on images that have the same surroundings, or parts that need no gradient."""

from __future__ import annotations

import warnings
from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor, nn
from torch.utils import _pytree as pytree

from .core_tape import CoreTape, TapeMismatch
from .network_pass import Limits, NetworkPass, ResultCache
from .rules import RULES
from .split_map import SplitMap
from .window import Box, Layout, Parts, put_together, split, view_of


class SplitNetwork:
    """Computes a frozen network on images of which parts need less work.

    What all images share outside a box is computed once for all images. What gets no gradient, the core of each image,
    is computed without. Both parts shrink with the receptive field. The output is the same up to rounding, and so are
    the gradients of ``shared`` (summed over the batch) and of ``region`` outside the core. Any module works: an
    operator without a rule (``rules.py``) gets the whole map, and so do the operators after it.

    The network is not copied, and this class is no ``nn.Module``, so that no parameter is registered twice. The
    network must not be compiled.

    Args:
        network: Maps (B, 3, H, W) to any output. Frozen and in ``eval()``.
        limits: When parts are too small to save time.

    Attributes:
        reason: Why the network always runs on whole maps; None as long as it can run in parts.
    """

    def __init__(self, network: nn.Module, limits: Limits | None = None):
        self.network = network
        self.limits = limits or Limits()
        self.reason: str | None = None

    def __call__(
        self,
        shared: Tensor | Held | None,
        region: Tensor,
        box: Box,
        core: Box | None = None,
        tape: CoreTape | None = None,
    ) -> Any:
        """Return the network's output for a batch of images in their surroundings.

        Args:
            shared: (1, 3, H, W), normalised surroundings, or what ``hold`` returned; or (B, 3, H, W), those of each
                image, which then get no gradient; None where the box is the whole canvas. Values inside the box are
                ignored but must be finite.
            region: (B, 3, h, w), the normalised images.
            box: (top, left, bottom, right) of the images in pixels, half-open.
            core: The pixels inside the box that need no gradient: theirs is not defined.
            tape: What passes over these images read of the core, to be recorded or played; of a single image it is not
                used.

        Raises:
            ValueError: Shapes, box, dtypes or devices do not fit together.
            StaleError: A tensor that the held work depends on was written to.
        """
        cache = None
        if isinstance(shared, Held):
            shared, cache = shared.check(), shared.cache
            cache.start_pass(region.device.type)
        canvas = (box[2], box[3]) if shared is None else tuple(shared.shape[2:])
        _check_inputs(shared, region, box, canvas)
        inputs = (shared, region)
        differentiable = torch.is_grad_enabled() and any(x is not None and x.requires_grad for x in inputs)
        batch = len(region)
        tape = tape if batch > 1 and core is not None else None
        network_pass = NetworkPass(RULES, self.limits, batch, cache, differentiable, tape)
        per_image = shared is not None and len(shared) > 1
        # Of one image, an operand that is the same for all images cannot be told from one that is not.
        layout = Layout(canvas, box).with_core(
            core if (differentiable or tape is not None) and batch > 1 else None
        )
        if per_image and not differentiable:
            layout = layout.without_outer()
        settled = network_pass.settle(layout, per_image)
        if self.reason is None and not settled.is_whole:
            if tape is not None:
                tape.start_pass()
            try:
                output = self.network(_first_map(network_pass, shared, region, layout, settled))
                output = pytree.tree_map_only(SplitMap, lambda split_map: split_map.whole, output)
                if tape is not None:
                    tape.end_pass()
                return output
            except TapeMismatch as error:
                network_pass.reason = str(error)
            except Exception:
                if network_pass.reason is None:
                    raise
            self.reason = network_pass.reason
            warnings.warn(
                f"nothing is shared between images, the network runs on whole maps: {self.reason}",
                stacklevel=2,
            )
        return self.network(region if shared is None else put_together(shared, region, box))

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
    """A shared map and the results of the work on it so far, kept in memory; made by ``SplitNetwork.hold``."""

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


def _first_map(
    network_pass: NetworkPass, shared: Tensor | None, region: Tensor, layout: Layout, settled: Layout
) -> SplitMap:
    """Return the images as a map in parts."""
    outer = shared.detach() if shared is not None and len(shared) > 1 else shared
    ring = split(region, layout.box, layout.ring)
    core = None
    if layout.core is not None:
        core = view_of(region.detach(), layout.core, layout.box[:2])
    first = SplitMap(network_pass, Parts(layout, outer, ring, core))
    if settled == layout:
        return first
    outer, *ring, core = first.at(settled)
    return SplitMap(network_pass, Parts(settled, outer, tuple(ring), core))


def _check_inputs(shared: Tensor | None, region: Tensor, box: Box, canvas: tuple[int, int]) -> None:
    top, left, bottom, right = box
    if shared is not None and (shared.ndim != 4 or shared.shape[0] not in (1, len(region))):
        raise ValueError(
            f"the shared map must be (1, C, H, W) or (B, C, H, W), got {tuple(shared.shape)} for {len(region)} images"
        )
    height, width = canvas
    if not (0 <= top < bottom <= height and 0 <= left < right <= width) or (
        shared is None and (top, left) != (0, 0)
    ):
        raise ValueError(
            f"{tuple(box)} is not a box (top, left, bottom, right) inside a canvas of {height}x{width}"
        )
    size = (
        region.shape[0],
        region.shape[1] if shared is None else shared.shape[1],
        bottom - top,
        right - left,
    )
    if tuple(region.shape) != size:
        wanted = ", ".join(map(str, size[1:]))
        raise ValueError(f"the region in box {tuple(box)} must be (B, {wanted}), got {tuple(region.shape)}")
    if shared is not None and (shared.dtype, shared.device) != (region.dtype, region.device):
        raise ValueError(
            f"shared and region must have the same dtype and device: shared is {shared.dtype} on "
            f"{shared.device}, region is {region.dtype} on {region.device}"
        )
