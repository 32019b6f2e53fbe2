"""Boxes, and maps in parts, as functions on plain tensors.

A map (B, C, H, W) has up to three parts. Outside a box lies the outer part, whose values inside the box are never
read. Inside the box lie the ring, up to four rectangles, and the core, one rectangle.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from functools import lru_cache
from typing import Any, NamedTuple

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


def area(box: Box | None) -> int:
    return (box[2] - box[0]) * (box[3] - box[1]) if box is not None else 0


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


class Layout(NamedTuple):
    """Where the parts of a map lie.

    Args:
        canvas: Height and width of the map.
        box: What is outside is the outer part; there is none where the box is the whole map.
        core: Inside the box; what is between is the ring. None where there is no core.
    """

    canvas: tuple[int, int]
    box: Box
    core: Box | None = None

    @property
    def whole(self) -> Box:
        return (0, 0, *self.canvas)

    @property
    def has_outer(self) -> bool:
        return self.box != self.whole

    @property
    def ring(self) -> tuple[Box, ...]:
        """The rectangles of the ring, in a fixed order; none where the core fills the box."""
        return _ring(self.box, self.core)

    @property
    def is_whole(self) -> bool:
        """Whether one rectangle of the ring is the whole map."""
        return self.core is None and not self.has_outer

    def with_core(self, core: Box | None) -> Layout:
        """Return the layout with the pixels of ``core`` that are inside the box as its core."""
        core = intersection(core, self.box) if core is not None else None
        return self._replace(core=core if area(core) else None)

    def without_outer(self) -> Layout:
        return self._replace(box=self.whole)


@lru_cache(maxsize=4096)
def _ring(box: Box, core: Box | None) -> tuple[Box, ...]:
    return tuple(strips_around(box, core)) if core is not None else (box,)


class Parts(NamedTuple):
    """The parts of a map.

    Args:
        layout: Where they lie.
        outer: (1, C, H, W) or (B, C, H, W); None where the box is the whole map. Its values inside the box are ignored
            but must be finite.
        ring: (B, C, h, w), one a rectangle of ``layout.ring``.
        core: (B, C, h, w), without gradient, or what stands for it while a tape is played (``core_tape.py``); None
            where there is none.
    """

    layout: Layout
    outer: Tensor | None
    ring: tuple[Tensor, ...]
    core: Any

    @property
    def tensors(self) -> list[Any]:
        """All parts that are there: outer, ring, core."""
        return [part for part in (self.outer, *self.ring, self.core) if isinstance(part, Tensor)]

    def permuted(self, *order: int) -> Parts:
        outer, core = (part if part is None else part.permute(order) for part in (self.outer, self.core))
        return Parts(self.layout, outer, tuple(part.permute(order) for part in self.ring), core)


class _Copies(NamedTuple):
    """From where the pixels of a window come, as boxes of the map; those of the ring with the rectangle's index."""

    window: Box
    fills: tuple[Box, ...]
    outer: tuple[Box, ...]
    ring: tuple[tuple[int, Box], ...]
    core: Box | None


@lru_cache(maxsize=4096)
def _copies(layout: Layout, window: Box) -> _Copies:
    inside = intersection(window, layout.whole)
    hole = intersection(inside, layout.box)
    ring = [(index, intersection(inside, box)) for index, box in enumerate(layout.ring)]
    core = intersection(inside, layout.core) if layout.core is not None else None
    return _Copies(
        window,
        tuple(strips_around(window, inside)),
        tuple(strips_around(inside, hole)) if area(inside) else (),
        tuple((index, box) for index, box in ring if area(box)),
        core if area(core) else None,
    )


class _Windows(torch.autograd.Function):
    """Windows of a map in parts, ``fill`` outside the map; each pixel is written once.

    Slices and concatenations would give the same. Here the gradient of each part is one map that is written to, where
    autograd would make one for every slice.
    """

    @staticmethod
    def forward(ctx, copies, fill, batch, origins, cores, outer, *ring):
        like = next(part for part in (outer, *ring, *cores) if part is not None)
        results = []
        for each, core in zip(copies, cores, strict=True):
            top, left, bottom, right = each.window
            size = (batch, like.shape[1], bottom - top, right - left)
            result = torch.empty(
                size, dtype=like.dtype, device=like.device, memory_format=memory_format_of(like)
            )
            corner = (top, left)
            for box in each.fills:
                view_of(result, box, corner).fill_(fill)
            for box in each.outer:
                view_of(result, box, corner).copy_(view_of(outer, box))
            for index, box in each.ring:
                view_of(result, box, corner).copy_(view_of(ring[index], box, origins[index]))
            if each.core is not None:
                view_of(result, each.core, corner).copy_(core)
            results.append(result)
        ctx.copies, ctx.origins = copies, origins
        ctx.like = [None if part is None else (part.shape, memory_format_of(part)) for part in (outer, *ring)]
        return tuple(results)

    @staticmethod
    @once_differentiable
    def backward(ctx, *gradients):
        outer, *ring = (
            _gradient(like, gradients, ctx, index - 1) if ctx.needs_input_grad[5 + index] else None
            for index, like in enumerate(ctx.like)
        )
        return None, None, None, None, None, outer, *ring


def _gradient(like: tuple, gradients: Sequence[Tensor], ctx: Any, index: int) -> Tensor:
    """Return the gradient of rectangle ``index`` of the ring, or of the outer part where it is -1."""
    shape, memory_format = like
    origin = (0, 0) if index < 0 else ctx.origins[index]
    pieces = [
        (view_of(gradient, box, each.window[:2]), box)
        for gradient, each in zip(gradients, ctx.copies, strict=True)
        for box in (each.outer if index < 0 else [box for place, box in each.ring if place == index])
    ]
    if len(pieces) == 1 and pieces[0][0].shape == shape:
        return pieces[0][0]
    result = torch.empty(
        shape, dtype=gradients[0].dtype, device=gradients[0].device, memory_format=memory_format
    )
    result.zero_()
    for piece, box in pieces:
        place = view_of(result, box, origin)
        place += piece.sum(0, keepdim=True) if len(piece) > shape[0] else piece
    return result


def read_windows(
    parts: Parts,
    windows: Sequence[Box],
    batch: int,
    fill: float = 0.0,
    read_core: Callable[[Any, Box, tuple[int, int]], Tensor] = view_of,
) -> list[Tensor]:
    """Return the map inside some windows, each (B, C, height, width).

    Args:
        parts: The map.
        windows: Boxes, which may extend over the edges of the map.
        batch: B.
        fill: The value outside the map.
        read_core: Gives the pixels of the core in a box.

    Returns:
        The windows in the memory format of the parts; views of one part where a window lies inside it.
    """
    ring, core = parts.layout.ring, parts.layout.core
    results: list[Any] = []
    missing: list[int] = []
    for window in windows:
        around = [index for index, box in enumerate(ring) if intersection(window, box) == window]
        if around:
            box, part = ring[around[0]], parts.ring[around[0]]
            results.append(part if box == window else view_of(part, window, box[:2]))
        elif core is not None and intersection(window, core) == window:
            results.append(read_core(parts.core, window, core[:2]))
        else:
            missing.append(len(results))
            results.append(None)
    if missing:
        copies = [_copies(parts.layout, windows[place]) for place in missing]
        cores = [None if each.core is None else read_core(parts.core, each.core, core[:2]) for each in copies]
        origins = [box[:2] for box in ring]
        made = _Windows.apply(copies, fill, batch, origins, cores, parts.outer, *parts.ring)
        for place, result in zip(missing, made, strict=True):
            results[place] = result
    return results


def put_together(shared: Tensor, region: Tensor, box: Box) -> Tensor:
    """Return the whole maps (B, C, H, W): ``region`` inside ``box``, ``shared`` around it.

    Both get gradients; that of ``shared`` is summed over the batch and zero inside the box.
    """
    layout = Layout(tuple(shared.shape[2:]), box)
    copies = [_copies(layout, layout.whole)]
    return _Windows.apply(copies, 0.0, len(region), [box[:2]], [None], shared, region)[0]


def split(region: Tensor, box: Box, rectangles: Sequence[Box]) -> tuple[Tensor, ...]:
    """Return rectangles inside ``box`` of maps (B, C, h, w) that lie there; views where no gradient is needed."""
    if rectangles == (box,):
        return (region,)
    if not (torch.is_grad_enabled() and region.requires_grad):
        return tuple(view_of(region, each, box[:2]) for each in rectangles)
    copies = [_Copies(each, (), (), ((0, each),), None) for each in rectangles]
    nothing = [None] * len(copies)
    return _Windows.apply(copies, 0.0, len(region), [box[:2]], nothing, None, region) if copies else ()
