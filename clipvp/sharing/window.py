"""Boxes, and maps that differ between images only inside a box, as functions on plain tensors.

Such maps are given as ``shared`` (1, C, H, W), the same for all images, and ``region`` (B, C, h, w), the part of
each image inside the box. Values of ``shared`` inside the box are never read.
"""

from __future__ import annotations

from collections.abc import Iterator

import torch
from torch import Tensor
from torch.autograd.function import once_differentiable

Box = tuple[int, int, int, int]
"""Top, left, bottom, right in pixels of a map, half-open."""


def union(one: Box, other: Box) -> Box:
    """Return the smallest box that contains both."""
    return (min(one[0], other[0]), min(one[1], other[1]), max(one[2], other[2]), max(one[3], other[3]))


def intersection(one: Box, other: Box) -> Box:
    """Return the box of the pixels that are in both; its area is 0 if there are none."""
    top, left = max(one[0], other[0]), max(one[1], other[1])
    return (top, left, max(top, min(one[2], other[2])), max(left, min(one[3], other[3])))


def area(box: Box) -> int:
    return (box[2] - box[0]) * (box[3] - box[1])


def strips_around(outer: Box, inner: Box) -> Iterator[Box]:
    """Yield up to four boxes that cover ``outer`` without ``inner``, which must be inside it or have no area."""
    if area(inner) == 0:
        strips = [outer]
    else:
        (top, left, bottom, right), (inner_top, inner_left, inner_bottom, inner_right) = outer, inner
        strips = [
            (top, left, inner_top, right),
            (inner_bottom, left, bottom, right),
            (inner_top, left, inner_bottom, inner_left),
            (inner_top, inner_right, inner_bottom, right),
        ]
    return (strip for strip in strips if area(strip) > 0)


def view_of(maps: Tensor, box: Box, origin: tuple[int, int] = (0, 0)) -> Tensor:
    """Return the view of ``maps`` (B, C, h, w) inside ``box``; the first pixel of the maps is at ``origin``."""
    top, left, bottom, right = box
    return maps[:, :, top - origin[0] : bottom - origin[0], left - origin[1] : right - origin[1]]


def memory_format_of(maps: Tensor) -> torch.memory_format:
    """Return the memory format of maps, which may be a view that is not dense in it."""
    return torch.channels_last if maps.shape[1] > 1 and maps.stride(1) == 1 else torch.contiguous_format


class _Window(torch.autograd.Function):
    """Shared pixels around the box, region pixels inside it, ``fill`` outside the map; each pixel is written once.

    Slices and concatenations would give the same. Here the gradient of the shared map is one map of zeros that is
    written to, where autograd would make one for every slice.
    """

    @staticmethod
    def forward(ctx, shared: Tensor, region: Tensor, box: Box, window: Box, fill: float) -> Tensor:
        corner = window[:2]
        inside = intersection(window, (0, 0, *shared.shape[2:]))
        hole = intersection(inside, box)
        size = (*region.shape[:2], window[2] - window[0], window[3] - window[1])
        result = torch.empty(
            size, dtype=region.dtype, device=region.device, memory_format=memory_format_of(shared)
        )
        for strip in strips_around(window, inside):
            view_of(result, strip, corner).fill_(fill)
        for strip in strips_around(inside, hole):
            view_of(result, strip, corner).copy_(view_of(shared, strip))
        if area(hole):
            view_of(result, hole, corner).copy_(view_of(region, hole, box[:2]))
        ctx.places = box, corner, inside, hole
        ctx.shared_like = shared.shape, memory_format_of(shared)
        return result

    @staticmethod
    @once_differentiable
    def backward(ctx, gradient: Tensor):
        box, corner, inside, hole = ctx.places
        shared = region = None
        if ctx.needs_input_grad[0]:
            shape, memory_format = ctx.shared_like
            shared = torch.empty(
                shape, dtype=gradient.dtype, device=gradient.device, memory_format=memory_format
            ).zero_()
            for strip in strips_around(inside, hole):
                torch.sum(view_of(gradient, strip, corner), 0, keepdim=True, out=view_of(shared, strip))
        if ctx.needs_input_grad[1] and hole == box:
            region = view_of(gradient, hole, corner)
        elif ctx.needs_input_grad[1]:
            region = gradient.new_zeros(*gradient.shape[:2], box[2] - box[0], box[3] - box[1])
            if area(hole):
                view_of(region, hole, box[:2]).copy_(view_of(gradient, hole, corner))
        return shared, region, None, None, None


def read_window(shared: Tensor, region: Tensor, box: Box, window: Box, fill: float = 0.0) -> Tensor:
    """Return the maps inside a window.

    Args:
        shared: (1, C, H, W).
        region: (B, C, h, w), the maps inside the box.
        box: The position of the region in the map.
        window: The box to read; it may extend over the edges of the map.
        fill: The value outside the map.

    Returns:
        (B, C, height, width) of the window, in the memory format of ``shared``; if the window is inside the box,
        a view of ``region``.
    """
    if window == box:
        return region
    if intersection(window, box) == window:
        return view_of(region, window, box[:2])
    return _Window.apply(shared, region, box, window, fill)


def put_together(shared: Tensor, region: Tensor, box: Box) -> Tensor:
    """Return the whole maps (B, C, H, W): ``region`` inside ``box``, ``shared`` around it.

    Both get gradients; that of ``shared`` is summed over the batch and zero inside the box.
    """
    return _Window.apply(shared, region, box, (0, 0, *shared.shape[2:]), 0.0)
