"""A feature map as a pair: one map that all images share and, inside a box, a region for each image.

The network uses a pair like a tensor (B, C, H, W). Operators with a rule compute the two parts; every other operator
gets the whole map. This module is independent of the operators; see ``rules.py``.
"""

from __future__ import annotations

import weakref
from collections.abc import Iterator
from typing import Any

import torch
from torch import Tensor

from .network_pass import NetworkPass
from .window import Box, read_window

Axes = tuple[int, int]

# Attributes and functions that read no pixel of the map.
_METADATA = {
    getattr(Tensor, name).__get__
    for name in (
        "shape",
        "dtype",
        "device",
        "layout",
        "ndim",
        "is_cuda",
        "is_cpu",
        "is_sparse",
        "is_quantized",
    )
}
_METADATA |= {
    getattr(Tensor, name)
    for name in (
        "size",
        "dim",
        "numel",
        "stride",
        "is_contiguous",
        "is_floating_point",
        "is_complex",
        "__len__",
    )
}
_METADATA |= {torch.is_floating_point, torch.is_complex, torch.numel}


class Pair(Tensor):
    """A map (B, C, H, W), or (B, H, W, C), in two parts.

    Args:
        network_pass: The pass through the network that the pair belongs to.
        shared: (1, C, H, W), the map outside the box, the same for all images. Values inside the box are ignored
            but must be finite.
        region: (B, C, h, w), the map of each image inside the box.
        box: The position of the region in the map.
        axes: The axes of height and width: (2, 3), or (1, 2) when channels come last.

    Attributes:
        views: Weak references to all pairs that use the same memory: this one and those that ``permute`` and the
            like made from it.
        whole_only: Whether a plain tensor uses the memory of the whole map. From then on operators get the whole
            map, because writes to that tensor do not reach the two parts.
    """

    @staticmethod
    def __new__(
        cls, network_pass: NetworkPass, shared: Tensor, region: Tensor, box: Box, axes: Axes = (2, 3)
    ):
        shape = (region.shape[0], *shared.shape[1:])
        strides = (shared.numel(), *shared.stride()[1:])
        return Tensor._make_wrapper_subclass(cls, shape, strides, dtype=region.dtype, device=region.device)

    def __init__(
        self, network_pass: NetworkPass, shared: Tensor, region: Tensor, box: Box, axes: Axes = (2, 3)
    ):
        self.network_pass, self.axes = network_pass, axes
        self.shared, self.region, self.box = shared, region, box
        self.views = [weakref.ref(self)]
        self.whole_only = False
        self._whole: Tensor | None = None

    @property
    def canvas(self) -> tuple[int, int]:
        """Height and width of the whole map."""
        return self.shared.shape[self.axes[0]], self.shared.shape[self.axes[1]]

    @property
    def channel_axis(self) -> int:
        return 1 if self.axes == (2, 3) else 3

    @property
    def whole(self) -> Tensor:
        """The whole map, put together at most once."""
        if self._whole is None:
            self._whole = self.read_window((0, 0, *self.canvas))
        return self._whole

    def read_window(self, window: Box, fill: float = 0.0) -> Tensor:
        """Return the map inside a window, which may extend over the edges of the map."""
        if self.channel_axis == 1:
            return read_window(self.shared, self.region, self.box, window, fill)
        shared, region = self.shared.permute(0, 3, 1, 2), self.region.permute(0, 3, 1, 2)
        return read_window(shared, region, self.box, window, fill).permute(0, 2, 3, 1)

    def with_parts(self, shared: Tensor, region: Tensor, box: Box, axes: Axes | None = None) -> Tensor:
        """Return a new pair of the same pass, or the whole map if the box is too large for two parts to save time."""
        pair = Pair(self.network_pass, shared, region, box, axes or self.axes)
        too_large = self.network_pass.is_too_large(box, pair.canvas, region.shape[0])
        return pair.whole if too_large else pair

    @property
    def has_views(self) -> bool:
        """Whether another pair that is still in use has the same memory."""
        return sum(pair() is not None for pair in self.views) > 1

    def mark_as_view_of(self, other: Pair) -> None:
        """Record that this pair uses the memory of another."""
        other.views += self.views
        self.views = other.views

    def overwrite(self, other: Pair) -> Pair:
        """Take over the parts of another pair, as an operator in place overwrites its operand."""
        if self.has_views:
            self.network_pass.give_up("an operator works in place on a map that has a view")
        self.shared, self.region, self.box, self._whole = other.shared, other.region, other.box, None
        return self

    @classmethod
    def __torch_function__(cls, func, types, args=(), kwargs=None):
        kwargs = kwargs or {}
        if func in _METADATA:
            with torch._C.DisableTorchFunctionSubclass():
                return func(*args, **kwargs)
        pairs = list(_instances((args, kwargs), Pair))
        network_pass = pairs[0].network_pass
        if func == Tensor.requires_grad.__get__:
            return network_pass.differentiable
        if network_pass.differentiable and not torch.is_grad_enabled():
            # Inside a torch.autograd.Function the parts would lose their gradient without an error.
            network_pass.give_up(f"{_name(func)} runs without gradients inside the network")
        if not any(pair.whole_only for pair in pairs):
            result = network_pass.apply_rule(func, args, kwargs)
            if result is not NotImplemented:
                return result
        args, kwargs = _with_whole_maps((args, kwargs))
        result = func(*args, **kwargs)
        for pair in pairs:
            if any(same_memory(pair.whole, tensor) for tensor in _instances(result, Tensor)):
                if pair.has_views:
                    network_pass.give_up(f"{_name(func)} makes a view of a map that has a view already")
                pair.whole_only = True
        return result

    @classmethod
    def __torch_dispatch__(cls, func, types, args=(), kwargs=None):
        # Called only by code below Python and autograd, where the two parts cannot be used any more.
        pair = next(_instances((args, kwargs or {}), Pair))
        pair.network_pass.give_up(f"{_name(func)} runs outside Python")


def same_memory(one: Tensor, other: Tensor) -> bool:
    """Return whether two plain tensors are views of the same memory."""
    return one.untyped_storage().data_ptr() == other.untyped_storage().data_ptr() != 0


def _instances(value: Any, kind: type) -> Iterator[Any]:
    """Yield the instances of a class in nested lists, tuples and dicts."""
    if isinstance(value, kind):
        yield value
    elif isinstance(value, (list, tuple)):
        for item in value:
            yield from _instances(item, kind)
    elif isinstance(value, dict):
        for item in value.values():
            yield from _instances(item, kind)


def _with_whole_maps(value: Any) -> Any:
    """Return nested lists, tuples and dicts with the whole map in the place of each pair."""
    if isinstance(value, Pair):
        return value.whole
    if type(value) in (list, tuple):
        return type(value)(_with_whole_maps(item) for item in value)
    if type(value) is dict:
        return {key: _with_whole_maps(item) for key, item in value.items()}
    return value


def _name(func: Any) -> str:
    return getattr(func, "__name__", str(func))
