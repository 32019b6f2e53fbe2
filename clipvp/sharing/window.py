"""Maps that differ only inside a box: the geometry, and what a window onto them shows.

Functions on plain tensors. A map is given as ``shared`` (1, C, H, W), the same for all images, and ``region``
(B, C, h, w), what each image has inside the box; what ``shared`` holds there is never looked at.
"""

from __future__ import annotations

from collections.abc import Iterator

import torch
from torch import Tensor
from torch.autograd.function import once_differentiable

Box = tuple[int, int, int, int]
"""Top, left, bottom, right in pixels of a map, half-open."""


def join(one: Box, other: Box) -> Box:
    """Return the smallest box that holds both."""
    return (min(one[0], other[0]), min(one[1], other[1]), max(one[2], other[2]), max(one[3], other[3]))


def meet(one: Box, other: Box) -> Box:
    """Return the box that lies in both; its area is 0 where they do not meet."""
    top, left = max(one[0], other[0]), max(one[1], other[1])
    return (top, left, max(top, min(one[2], other[2])), max(left, min(one[3], other[3])))


def area(box: Box) -> int:
    return (box[2] - box[0]) * (box[3] - box[1])


def around(outer: Box, inner: Box) -> Iterator[Box]:
    """Yield up to four boxes that tile ``outer`` without ``inner``, which lies inside it or has no area."""
    if area(inner) == 0:
        strips = [outer]
    else:
        (top, left, bottom, right), (upper, near, lower, far) = outer, inner
        strips = [
            (top, left, upper, right),
            (lower, left, bottom, right),
            (upper, left, lower, near),
            (upper, far, lower, right),
        ]
    return (strip for strip in strips if area(strip) > 0)


def cut(maps: Tensor, box: Box, origin: tuple[int, int] = (0, 0)) -> Tensor:
    """Return the view of ``maps`` (B, C, h, w) inside ``box``; the maps begin at pixel ``origin``."""
    top, left, bottom, right = box
    return maps[:, :, top - origin[0] : bottom - origin[0], left - origin[1] : right - origin[1]]


def layout(maps: Tensor) -> torch.memory_format:
    """Return the memory format of maps, which need not be dense in it."""
    return torch.channels_last if maps.shape[1] > 1 and maps.stride(1) == 1 else torch.contiguous_format


class _Window(torch.autograd.Function):
    """Shared around the box, region inside, ``fill`` outside the map, each pixel written once.

    Slices and concatenations would do the same. This way the gradient of the shared map is made in one map of
    zeros, rather than in one for every slice.
    """

    @staticmethod
    def forward(ctx, shared: Tensor, region: Tensor, box: Box, window: Box, fill: float) -> Tensor:
        corner = window[:2]
        inside = meet(window, (0, 0, *shared.shape[2:]))
        hole = meet(inside, box)
        size = (*region.shape[:2], window[2] - window[0], window[3] - window[1])
        seen = torch.empty(size, dtype=region.dtype, device=region.device, memory_format=layout(shared))
        for strip in around(window, inside):
            cut(seen, strip, corner).fill_(fill)
        for strip in around(inside, hole):
            cut(seen, strip, corner).copy_(cut(shared, strip))
        if area(hole):
            cut(seen, hole, corner).copy_(cut(region, hole, box[:2]))
        ctx.places = box, corner, inside, hole
        ctx.shared_like = shared.shape, layout(shared)
        return seen

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
            for strip in around(inside, hole):
                torch.sum(cut(gradient, strip, corner), 0, keepdim=True, out=cut(shared, strip))
        if ctx.needs_input_grad[1] and hole == box:
            region = cut(gradient, hole, corner)
        elif ctx.needs_input_grad[1]:
            region = gradient.new_zeros(*gradient.shape[:2], box[2] - box[0], box[3] - box[1])
            if area(hole):
                cut(region, hole, box[:2]).copy_(cut(gradient, hole, corner))
        return shared, region, None, None, None


def look(shared: Tensor, region: Tensor, box: Box, window: Box, fill: float = 0.0) -> Tensor:
    """Return what each map shows inside a window.

    Args:
        shared: (1, C, H, W).
        region: (B, C, h, w), the maps inside the box.
        box: Where the region lies in the map.
        window: What to look at; it may reach over the edges of the map.
        fill: The value outside the map.

    Returns:
        (B, C, height, width) of the window, in the memory format of ``shared``; where the window lies inside
        the box, a view of ``region``.
    """
    if window == box:
        return region
    if meet(window, box) == window:
        return cut(region, window, box[:2])
    return _Window.apply(shared, region, box, window, fill)


def put_together(shared: Tensor, region: Tensor, box: Box) -> Tensor:
    """Return the whole maps (B, C, H, W): ``region`` inside ``box``, ``shared`` around it.

    Gradients reach both, that of ``shared`` summed over the batch and zero inside the box.
    """
    return _Window.apply(shared, region, box, (0, 0, *shared.shape[2:]), 0.0)
