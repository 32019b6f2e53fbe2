"""Rules for operators that slide a window over the map: convolution, pooling, and padding before them.

The box grows by what the window reaches, and no more. The region is computed from what the map shows in a
larger window: the region before it and a halo of shared pixels.
"""

from __future__ import annotations

from functools import partial
from math import ceil, inf

import torch
from torch import Tensor

from .window import Box

Sides = int | tuple[int, int]
"""A number for height and width, or one for each, as operators take them."""


def sides(value: Sides) -> tuple[int, int]:
    return (value, value) if isinstance(value, int) else (value[0], value[-1])


def sweep(
    box: Box,
    size_out: tuple[int, int],
    kernel: Sides,
    stride: Sides,
    padding: Sides,
    dilation: Sides = 1,
) -> tuple[Box, Box]:
    """Follow a box through an operator that slides a window over the map.

    Args:
        box: Where maps differ, in the operator's input.
        size_out: Height and width of its output.
        kernel, stride, padding, dilation: The operator's; padding is that before the first row and column.

    Returns:
        The smallest box that holds every output which sees something of ``box``; and the window of the input,
        perhaps reaching over its edges, from which the operator without padding makes exactly that box.
    """
    kernel, stride, padding, dilation = sides(kernel), sides(stride), sides(padding), sides(dilation)
    (top, bottom, first_row, last_row), (left, right, first_column, last_column) = (
        _sweep_line(box[i], box[i + 2], size_out[i], kernel[i], stride[i], padding[i], dilation[i])
        for i in (0, 1)
    )
    return (top, left, bottom, right), (first_row, first_column, last_row, last_column)


def _sweep_line(low: int, high: int, size_out: int, kernel: int, stride: int, padding: int, dilation: int):
    reach = dilation * (kernel - 1)

    def sees(index: int) -> bool:
        start = index * stride - padding
        return any(low <= start + dilation * step < high for step in range(kernel))

    first = max(0, ceil((low + padding - reach) / stride))
    last = min(size_out - 1, (high - 1 + padding) // stride)
    while first <= last and not sees(first):
        first += 1
    while first <= last and not sees(last):
        last -= 1
    if first > last:
        # Stride or dilation stepped over the box. A pair has a region all the same, be it one pixel.
        first = last = min(first, size_out - 1)
    return first, last + 1, first * stride - padding, last * stride - padding + reach + 1


def divisors(
    box: Box,
    size_in: tuple[int, int],
    kernel: Sides,
    stride: Sides,
    padding: Sides,
    count_padding: bool,
    device,
) -> Tensor | None:
    """Return by what average pooling divides its sums inside ``box`` of its output.

    Returns:
        (height, width) numbers of pixels, which are fewer than the kernel's where a window reaches over the
        edge of what counts; None where all are the kernel's.
    """
    kernel, stride, padding = sides(kernel), sides(stride), sides(padding)
    lines, even = [], True
    for i in (0, 1):
        margin = padding[i] if count_padding else 0
        low, high = -margin, size_in[i] + margin
        first, last = box[i] * stride[i] - padding[i], (box[i + 2] - 1) * stride[i] - padding[i]
        even = even and low <= first and last + kernel[i] <= high
        start = torch.arange(first, last + 1, stride[i], device=device)
        lines.append((start + kernel[i]).clamp(max=high) - start.clamp(min=low))
    return None if even else lines[0][:, None] * lines[1]


def conv2d(run, operator, input, weight, bias=None, stride=1, padding=0, dilation=1, groups=1):
    before = padding
    if isinstance(padding, str):
        reach = [d * (k - 1) for k, d in zip(weight.shape[2:], sides(dilation), strict=True)]
        before = [side // 2 if padding == "same" else 0 for side in reach]
    shared = run.on_shared(operator, input.shared, weight, bias, stride, padding, dilation, groups)
    box, window = sweep(input.box, shared.shape[2:], weight.shape[2:], stride, before, dilation)
    region = operator(input.look(window), weight, bias, stride, 0, dilation, groups)
    return run.pair(shared, region, box)


def max_pool2d(run, operator, input, kernel_size, stride=None, padding=0, dilation=1, ceil_mode=False, **how):
    if how.get("return_indices"):
        return NotImplemented
    stride = stride or kernel_size
    shared = run.on_shared(operator, input.shared, kernel_size, stride, padding, dilation, ceil_mode)
    box, window = sweep(input.box, shared.shape[2:], kernel_size, stride, padding, dilation)
    return run.pair(shared, operator(input.look(window, fill=-inf), kernel_size, stride, 0, dilation), box)


def avg_pool2d(
    run,
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
    how = (ceil_mode, count_include_pad, divisor_override)
    shared = run.on_shared(operator, input.shared, kernel_size, stride, padding, *how)
    box, window = sweep(input.box, shared.shape[2:], kernel_size, stride, padding)
    counts = None
    if divisor_override is None:
        counts = divisors(box, input.canvas, kernel_size, stride, padding, count_include_pad, input.device)
    pool = partial(operator, input.look(window), kernel_size, stride, 0, False, True)
    region = pool(divisor_override) if counts is None else pool(1) / counts.to(input.dtype)
    return run.pair(shared, region, box)


def pad(run, operator, input, pad, mode="constant", value=None):
    if len(pad) not in (2, 4) or min(pad) < 0:
        return NotImplemented
    (top, left, bottom, right), (height, width) = input.box, input.canvas
    if mode != "constant" and min(top, left, height - bottom, width - right) <= max(pad):
        # The other modes repeat what lies near the edges, and images differ there.
        return NotImplemented
    shared = run.on_shared(operator, input.shared, pad, mode, value)
    down, across = (pad[2] if len(pad) == 4 else 0), pad[0]
    return run.pair(shared, input.region, (top + down, left + across, bottom + down, right + across))
