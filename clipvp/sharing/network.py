"""A frozen network run on images that stand in the same surroundings."""

from __future__ import annotations

import warnings
from typing import Any

import torch
from torch import Tensor, nn
from torch.utils import _pytree as pytree

from .pair import Pair
from .rules import RULES
from .run import Run, Tape
from .window import Box, put_together


class PairNetwork:
    """``network(put_together(shared, region, box))`` for a part of the work.

    What the network makes of the shared pixels is computed once for all images, and once for each only a box
    that grows with the receptive field. The result is the same up to rounding, and so are the gradients, to
    ``shared`` (summed over the batch) and to ``region``. Any module will do: an operator without a rule
    (``rules.py``) gets the whole map, and so does what comes after it.

    The network is used as it stands, not copied, and this is no module: nothing is registered twice. Give it
    uncompiled.

    Args:
        network: Maps (B, 3, H, W) to any output. Frozen and in ``eval()``.
        limit: The share of a map, 0 to 1, above which a box no longer pays and the map is put together; the
            shared map counts as one more image. The time of a step hardly changes between 0.55 and 1
            (ResNet-18 and EfficientNet-Lite0, on a CPU).

    Attributes:
        reason: Why the network is run on whole maps from the start; None while it is not.
    """

    def __init__(self, network: nn.Module, limit: float = 0.7):
        self.network = network
        self.limit = limit
        self.reason: str | None = None

    def __call__(self, shared: Tensor | Held, region: Tensor, box: Box) -> Any:
        """Return the network's output for a batch of images in their surroundings.

        Args:
            shared: (1, 3, H, W), normalised; what lies inside the box must be finite and is ignored. Or what
                ``hold`` returned.
            region: (B, 3, h, w), the normalised images.
            box: (top, left, bottom, right) of the images in pixels, half-open.

        Raises:
            ValueError: Shapes, box, dtypes or devices do not fit together.
            StaleError: The held map is not what it was.
        """
        tape = None
        if isinstance(shared, Held):
            shared, tape = shared.check(), shared.tape
            tape.rewind(region.device.type)
        _check(shared, region, box)
        differentiable = torch.is_grad_enabled() and (shared.requires_grad or region.requires_grad)
        run = Run(RULES, self.limit, tape, differentiable)
        if self.reason is None and not run.fills(box, shared.shape[2:], region.shape[0]):
            try:
                output = self.network(Pair(run, shared, region, box))
                return pytree.tree_map_only(Pair, lambda pair: pair.whole, output)
            except Exception:
                if run.reason is None:
                    raise
            self.reason = run.reason
            warnings.warn(f"no sharing, the network runs on whole maps: {self.reason}", stacklevel=2)
        return self.network(put_together(shared, region, box))

    def hold(self, shared: Tensor, *made_from: Tensor) -> Held:
        """Return ``shared`` with a memory: in passes that are given it, the work on it is done only once.

        For a prompt that stands still, as in counting and evaluating. No gradient reaches what is held.

        Args:
            shared: (1, 3, H, W), normalised.
            made_from: The tensors that ``shared`` was computed from, such as the prompt's delta. Once one of
                them, ``shared`` itself or the network is written to, a pass is an error.

        Raises:
            ValueError: Gradients are on and ``shared`` wants one.
        """
        if torch.is_grad_enabled() and shared.requires_grad:
            raise ValueError("a held map gets no gradient: call hold under torch.no_grad()")
        return Held(shared, (*made_from, *self.network.parameters(), *self.network.buffers()))


class StaleError(RuntimeError):
    """A held map, what it was made from or the network was written to."""


class Held:
    """A shared map and the work done on it so far, which stays in memory; made by ``PairNetwork.hold``."""

    def __init__(self, shared: Tensor, made_from: tuple[Tensor, ...]):
        self.shared = shared.detach()
        self.tape = Tape()
        self._watched = [(tensor, _state(tensor)) for tensor in (shared, *made_from)]

    @property
    def fresh(self) -> bool:
        """Whether nothing that the held work depends on was written to."""
        return all(_state(tensor) == state for tensor, state in self._watched)

    def check(self) -> Tensor:
        """Return the shared map (1, 3, H, W), or raise ``StaleError``."""
        if not self.fresh:
            raise StaleError(
                "the held map is stale: it, what it was made from or the network changed; hold anew"
            )
        return self.shared


def _state(tensor: Tensor) -> tuple:
    # Tensors made under inference_mode do not count the writes to them.
    return tensor.data_ptr(), None if tensor.is_inference() else tensor._version


def _check(shared: Tensor, region: Tensor, box: Box) -> None:
    top, left, bottom, right = box
    if shared.ndim != 4 or shared.shape[0] != 1:
        raise ValueError(f"the shared map is (1, C, H, W), got {tuple(shared.shape)}")
    height, width = shared.shape[2:]
    if not (0 <= top < bottom <= height and 0 <= left < right <= width):
        raise ValueError(f"{tuple(box)} is no box (top, left, bottom, right) in a canvas of {height}x{width}")
    size = (region.shape[0], shared.shape[1], bottom - top, right - left)
    if tuple(region.shape) != size:
        wanted = ", ".join(map(str, size[1:]))
        raise ValueError(f"the region in box {tuple(box)} is (B, {wanted}), got {tuple(region.shape)}")
    if (shared.dtype, shared.device) != (region.dtype, region.device):
        raise ValueError(
            f"shared is {shared.dtype} on {shared.device}, region {region.dtype} on {region.device}"
        )
