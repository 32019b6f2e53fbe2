"""A feature map in parts that the network uses like a tensor (B, C, H, W).

The outer part is the same for all images, or gets no gradient; the ring differs between images and gets a gradient; the
core differs between images and gets none. Operators with a rule compute the parts; every other operator gets the whole
map. This module is independent of the operators; see ``rules.py``.
"""

from __future__ import annotations

import weakref
from collections.abc import Iterator, Sequence
from typing import Any

import torch
from torch import Tensor

from .core_tape import crop_core, read_core
from .network_pass import NetworkPass
from .window import Box, Layout, Parts, read_windows

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


class SplitMap(Tensor):
    """A map (B, C, H, W), or (B, H, W, C), in parts.

    Args:
        network_pass: The pass through the network that the map belongs to.
        parts: With their axes in the order of the map's.
        axes: The axes of height and width: (2, 3), or (1, 2) when channels come last.

    Attributes:
        views: Weak references to all maps in parts that use the same memory: this one and those that ``permute`` and
            the like made from it.
        whole_only: Whether a plain tensor uses the memory of the whole map. From then on operators get the whole
            map, because writes to that tensor do not reach the parts.
    """

    @staticmethod
    def __new__(cls, network_pass: NetworkPass, parts: Parts, axes: Axes = (2, 3)):
        like = parts.tensors[0]
        shape = [network_pass.batch, *like.shape[1:]]
        shape[axes[0]], shape[axes[1]] = parts.layout.canvas
        height, width = parts.layout.canvas
        channels = like.shape[3 if axes == (1, 2) else 1]
        by_axis = {axes[0]: width, axes[1]: 1, 0: channels * height * width}
        channel_axis = 3 if axes == (1, 2) else 1
        if like.stride(channel_axis) == 1 and channels > 1:
            by_axis = {axes[0]: width * channels, axes[1]: channels, 0: by_axis[0], channel_axis: 1}
        else:
            by_axis[channel_axis] = height * width
        strides = [by_axis[axis] for axis in range(4)]
        return Tensor._make_wrapper_subclass(cls, shape, strides, dtype=like.dtype, device=like.device)

    def __init__(self, network_pass: NetworkPass, parts: Parts, axes: Axes = (2, 3)):
        self.network_pass, self.parts, self.axes = network_pass, parts, axes
        self.views = [weakref.ref(self)]
        self.whole_only = False
        self._whole: Tensor | None = None

    @property
    def layout(self) -> Layout:
        return self.parts.layout

    @property
    def canvas(self) -> tuple[int, int]:
        """Height and width of the whole map."""
        return self.parts.layout.canvas

    @property
    def channel_axis(self) -> int:
        return 1 if self.axes == (2, 3) else 3

    @property
    def whole(self) -> Tensor:
        """The whole map, put together at most once."""
        if self._whole is None:
            self._whole = self.read_windows([self.layout.whole])[0]
        return self._whole

    def read_windows(self, windows: Sequence[Box], fill: float = 0.0) -> list[Tensor]:
        """Return the map inside some windows, which may extend over the edges of the map."""
        if self.channel_axis == 1:
            return read_windows(self.parts, windows, self.network_pass.batch, fill, read_core)
        parts = self.parts.permuted(0, 3, 1, 2)
        found = read_windows(parts, windows, self.network_pass.batch, fill, read_core)
        return [window.permute(0, 2, 3, 1) for window in found]

    def at(self, layout: Layout) -> list[Tensor | None]:
        """Return the parts, outer, ring and core, of this map in a layout whose box holds that of this map, and whose
        core, if any, is inside its core."""
        if layout == self.layout:
            return [self.parts.outer, *self.parts.ring, self.parts.core]
        outer = self.parts.outer if layout.has_outer else None
        core = None
        if layout.core is not None:
            core, order = self.parts.core, (self.channel_axis, *self.axes)
            to_first, back = (0, *order), [0] * 4
            for place, axis in enumerate(to_first):
                back[axis] = place
            cropped = crop_core(core.permute(to_first), layout.core, self.layout.core[:2])
            core = cropped.permute(tuple(back))
        return [outer, *self.read_windows(layout.ring), core]

    def with_parts(self, layout: Layout, found: Sequence[Any], axes: Axes | None = None) -> Any:
        """Return what an operator gave of the parts, outer, ring and core, as a map of the same pass.

        It is a plain tensor where nothing is gained by parts, and a tuple where the operator gave several tensors.
        """
        first = next(part for part in found if part is not None)
        if not isinstance(first, Tensor):
            each = zip(
                *(part if isinstance(part, (tuple, list)) else [part] * len(first) for part in found),
                strict=True,
            )
            return tuple(self.with_parts(layout, parts, axes) for parts in each)
        outer, *ring, core = found
        per_image = outer is not None and len(outer) > 1
        result = SplitMap(self.network_pass, Parts(layout, outer, tuple(ring), core), axes or self.axes)
        settled = self.network_pass.settle(layout, per_image)
        if settled.is_whole:
            return result.whole
        if settled != layout:
            outer, *ring, core = result.at(settled)
            result = SplitMap(self.network_pass, Parts(settled, outer, tuple(ring), core), result.axes)
        return result

    def mark_views(self, result: Any) -> Any:
        """Return what an operator gave of this map, each map that uses its memory marked as a view of it."""
        for other in _instances(result, SplitMap):
            own = self.parts.tensors
            if any(same_memory(part, mine) for part in other.parts.tensors for mine in own):
                self.views += other.views
                other.views = self.views
        return result

    @property
    def has_views(self) -> bool:
        """Whether another map in parts that is still in use has the same memory."""
        return sum(other() is not None for other in self.views) > 1

    def overwrite(self, other: SplitMap) -> SplitMap:
        """Take over the parts of another map, as an operator in place overwrites its operand."""
        if self.has_views:
            self.network_pass.give_up("an operator works in place on a map that has a view")
        self.parts, self._whole = other.parts, None
        return self

    @classmethod
    def __torch_function__(cls, func, types, args=(), kwargs=None):
        kwargs = kwargs or {}
        if func in _METADATA:
            with torch._C.DisableTorchFunctionSubclass():
                return func(*args, **kwargs)
        maps = list(_instances((args, kwargs), SplitMap))
        network_pass = maps[0].network_pass
        if func == Tensor.requires_grad.__get__:
            return network_pass.differentiable
        if network_pass.differentiable and not torch.is_grad_enabled():
            # Inside a torch.autograd.Function the parts would lose their gradient without an error.
            network_pass.give_up(f"{_name(func)} runs without gradients inside the network")
        if not any(each.whole_only for each in maps):
            result = network_pass.apply_rule(func, args, kwargs)
            if result is not NotImplemented:
                return result
        args, kwargs = _with_whole_maps((args, kwargs))
        result = func(*args, **kwargs)
        for each in maps:
            if any(same_memory(each.whole, tensor) for tensor in _instances(result, Tensor)):
                if each.has_views:
                    network_pass.give_up(f"{_name(func)} makes a view of a map that has a view already")
                each.whole_only = True
        return result

    @classmethod
    def __torch_dispatch__(cls, func, types, args=(), kwargs=None):
        # Called only by code below Python and autograd, where the parts cannot be used any more.
        first = next(_instances((args, kwargs or {}), SplitMap))
        first.network_pass.give_up(f"{_name(func)} runs outside Python")


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
    """Return nested lists, tuples and dicts with the whole map in the place of each map in parts."""
    if isinstance(value, SplitMap):
        return value.whole
    if type(value) in (list, tuple):
        return type(value)(_with_whole_maps(item) for item in value)
    if type(value) is dict:
        return {key: _with_whole_maps(item) for key, item in value.items()}
    return value


def _name(func: Any) -> str:
    return getattr(func, "__name__", str(func))
