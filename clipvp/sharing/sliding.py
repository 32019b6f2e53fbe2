"""Rules for operators that slide a window over the map: convolution, pooling, and padding before them.

The box grows and the core shrinks only as far as the operator's window reaches. Each rectangle of the ring is computed
from a window of the input that holds the rectangle and a halo of pixels of the other parts.
"""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from math import inf

import torch
from torch import Tensor

from .reach import Slide
from .split_map import SplitMap
from .window import Box, Layout, memory_format_of


def slide(
    input: SplitMap,
    how: Slide,
    operator: Callable,
    arguments: tuple,
    on_window: Callable[[Tensor, Box], Tensor],
    fill: float = 0.0,
) -> Tensor:
    """Return what an operator gives that slides a window over the map.

    Args:
        input: The map.
        how: How the window slides.
        operator, arguments: What is called on the outer part.
        on_window: A window of the input and a box of the output to the output in this box, computed without padding.
        fill: The value outside the map.
    """
    size_out = how.output_size(input.canvas)
    box, core = how.grow(input.layout.box, size_out), input.layout.core
    if not input.layout.has_outer:  # windows in the padding alone see no part of the map
        box = (0, 0, *size_out)
    if core is not None:
        core = how.shrink(core, input.canvas, size_out)
    layout = Layout(size_out, box).with_core(core)
    network_pass = input.network_pass
    outer = network_pass.on_outer(operator, input.parts.outer, *arguments) if layout.has_outer else None
    windows = input.read_windows([how.window(each) for each in layout.ring], fill)
    ring = [on_window(window, each) for window, each in zip(windows, layout.ring, strict=True)]
    core = None
    if layout.core is not None:
        window = how.window(layout.core)
        core = network_pass.on_core(lambda: on_window(input.read_windows([window], fill)[0], layout.core))
    return input.with_parts(layout, [outer, *ring, core])


def conv2d(operator, input, weight, bias=None, stride=1, padding=0, dilation=1, groups=1):
    return slide(
        input,
        Slide.of(tuple(weight.shape[2:]), stride, padding, dilation),
        operator,
        (weight, bias, stride, padding, dilation, groups),
        lambda window, box: operator(window, weight, bias, stride, 0, dilation, groups),
    )


def max_pool2d(operator, input, kernel_size, stride=None, padding=0, dilation=1, ceil_mode=False, **options):
    if options.get("return_indices"):
        return NotImplemented
    stride = stride or kernel_size
    return slide(
        input,
        Slide.of(kernel_size, stride, padding, dilation, ceil_mode),
        operator,
        (kernel_size, stride, padding, dilation, ceil_mode),
        lambda window, box: operator(window, kernel_size, stride, 0, dilation),
        fill=-inf,
    )


def avg_pool2d(
    operator,
    input,
    kernel_size,
    stride=None,
    padding=0,
    ceil_mode=False,
    count_include_pad=True,
    divisor_override=None,
):
    stride = stride or kernel_size
    how = Slide.of(kernel_size, stride, padding, 1, ceil_mode)

    def on_window(window: Tensor, box: Box) -> Tensor:
        counts = None
        if divisor_override is None:
            counts = how.pooling_divisors(box, input.canvas, count_include_pad, input.device)
        pool = partial(operator, window, kernel_size, stride, 0, False, True)
        return pool(divisor_override) if counts is None else pool(1) / counts.to(input.dtype)

    options = (kernel_size, stride, padding, ceil_mode, count_include_pad, divisor_override)
    return slide(input, how, operator, options, on_window)


def pad(operator, input, pad, mode="constant", value=None):
    if len(pad) not in (2, 4) or min(pad) < 0:
        return NotImplemented
    layout, parts = input.layout, input.parts
    (top, left, bottom, right), (height, width) = layout.box, layout.canvas
    if mode != "constant" and min(top, left, height - bottom, width - right) <= max(pad):
        # The other modes repeat pixels near the edges, and images differ there.
        return NotImplemented
    above, below = (pad[2], pad[3]) if len(pad) == 4 else (0, 0)

    def moved(box: Box | None) -> Box | None:
        return box and (box[0] + above, box[1] + pad[0], box[2] + above, box[3] + pad[0])

    padded = Layout((height + above + below, width + pad[0] + pad[1]), moved(layout.box), moved(layout.core))
    if parts.outer is not None:
        outer = input.network_pass.on_outer(operator, parts.outer, pad, mode, value)
    elif padded.has_outer:
        size = (1, input.shape[1], *padded.canvas)
        outer = torch.full(size, value or 0.0, dtype=input.dtype, device=input.device)
        outer = outer.contiguous(memory_format=memory_format_of(parts.tensors[0]))
    else:
        outer = None
    return input.with_parts(padded, [outer, *parts.ring, parts.core])
