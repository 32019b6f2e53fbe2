"""Rules for operators that slide a window over the map: convolution, pooling, and padding before them.

The box grows only as far as the operator's window reaches. The new region is computed from a larger window of the
input: its region and a halo of shared pixels.
"""

from __future__ import annotations

from functools import partial
from math import ceil, inf

import torch
from torch import Tensor

from .window import Box

HeightWidth = int | tuple[int, int]
"""One number for height and width, or one for each, as operators accept them."""


def height_width(value: HeightWidth) -> tuple[int, int]:
    return (value, value) if isinstance(value, int) else (value[0], value[-1])


def grow_box(
    box: Box,
    size_out: tuple[int, int],
    kernel: HeightWidth,
    stride: HeightWidth,
    padding: HeightWidth,
    dilation: HeightWidth = 1,
) -> tuple[Box, Box]:
    """Return the box in the output of an operator that slides a window over the map.

    Args:
        box: The box in the operator's input.
        size_out: Height and width of its output.
        kernel, stride, padding, dilation: The operator's; padding is that before the first row and column.

    Returns:
        The smallest box that contains every output that depends on ``box``; and the window of the input, which
        may extend over its edges, from which the operator without padding computes exactly that box.
    """
    kernel, stride = height_width(kernel), height_width(stride)
    padding, dilation = height_width(padding), height_width(dilation)
    (top, bottom, first_row, last_row), (left, right, first_column, last_column) = (
        _grow_interval(box[i], box[i + 2], size_out[i], kernel[i], stride[i], padding[i], dilation[i])
        for i in (0, 1)
    )
    return (top, left, bottom, right), (first_row, first_column, last_row, last_column)


def _grow_interval(
    low: int, high: int, size_out: int, kernel: int, stride: int, padding: int, dilation: int
) -> tuple[int, int, int, int]:
    """Return what ``grow_box`` does, on one axis: first and last of the box, first and last of the window."""
    reach = dilation * (kernel - 1)

    def depends(index: int) -> bool:
        start = index * stride - padding
        return any(low <= start + dilation * step < high for step in range(kernel))

    first = max(0, ceil((low + padding - reach) / stride))
    last = min(size_out - 1, (high - 1 + padding) // stride)
    while first <= last and not depends(first):
        first += 1
    while first <= last and not depends(last):
        last -= 1
    if first > last:
        # Stride or dilation skips the box. A pair needs a region of at least one pixel.
        first = last = min(first, size_out - 1)
    return first, last + 1, first * stride - padding, last * stride - padding + reach + 1


def pooling_divisors(
    box: Box,
    size_in: tuple[int, int],
    kernel: HeightWidth,
    stride: HeightWidth,
    padding: HeightWidth,
    count_padding: bool,
    device,
) -> Tensor | None:
    """Return the numbers by which average pooling divides its sums inside ``box`` of its output.

    Returns:
        (height, width) numbers of pixels: the kernel's, or fewer if the kernel extends over the edge of the
        pixels that count; None if all are the kernel's.
    """
    kernel, stride, padding = height_width(kernel), height_width(stride), height_width(padding)
    counts, all_full = [], True
    for i in (0, 1):
        margin = padding[i] if count_padding else 0
        low, high = -margin, size_in[i] + margin
        first, last = box[i] * stride[i] - padding[i], (box[i + 2] - 1) * stride[i] - padding[i]
        all_full = all_full and low <= first and last + kernel[i] <= high
        start = torch.arange(first, last + 1, stride[i], device=device)
        counts.append((start + kernel[i]).clamp(max=high) - start.clamp(min=low))
    return None if all_full else counts[0][:, None] * counts[1]


def conv2d(operator, input, weight, bias=None, stride=1, padding=0, dilation=1, groups=1):
    before = padding
    if isinstance(padding, str):
        reach = [d * (k - 1) for k, d in zip(weight.shape[2:], height_width(dilation), strict=True)]
        before = [side // 2 if padding == "same" else 0 for side in reach]
    shared = input.network_pass.on_shared(
        operator, input.shared, weight, bias, stride, padding, dilation, groups
    )
    box, window = grow_box(input.box, shared.shape[2:], weight.shape[2:], stride, before, dilation)
    region = operator(input.read_window(window), weight, bias, stride, 0, dilation, groups)
    return input.with_parts(shared, region, box)


def max_pool2d(operator, input, kernel_size, stride=None, padding=0, dilation=1, ceil_mode=False, **options):
    if options.get("return_indices"):
        return NotImplemented
    stride = stride or kernel_size
    shared = input.network_pass.on_shared(
        operator, input.shared, kernel_size, stride, padding, dilation, ceil_mode
    )
    box, window = grow_box(input.box, shared.shape[2:], kernel_size, stride, padding, dilation)
    region = operator(input.read_window(window, fill=-inf), kernel_size, stride, 0, dilation)
    return input.with_parts(shared, region, box)


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
    options = (ceil_mode, count_include_pad, divisor_override)
    shared = input.network_pass.on_shared(operator, input.shared, kernel_size, stride, padding, *options)
    box, window = grow_box(input.box, shared.shape[2:], kernel_size, stride, padding)
    counts = None
    if divisor_override is None:
        counts = pooling_divisors(
            box, input.canvas, kernel_size, stride, padding, count_include_pad, input.device
        )
    pool = partial(operator, input.read_window(window), kernel_size, stride, 0, False, True)
    region = pool(divisor_override) if counts is None else pool(1) / counts.to(input.dtype)
    return input.with_parts(shared, region, box)


def pad(operator, input, pad, mode="constant", value=None):
    if len(pad) not in (2, 4) or min(pad) < 0:
        return NotImplemented
    (top, left, bottom, right), (height, width) = input.box, input.canvas
    if mode != "constant" and min(top, left, height - bottom, width - right) <= max(pad):
        # The other modes repeat pixels near the edges, and images differ there.
        return NotImplemented
    shared = input.network_pass.on_shared(operator, input.shared, pad, mode, value)
    down, across = (pad[2] if len(pad) == 4 else 0), pad[0]
    box = (top + down, left + across, bottom + down, right + across)
    return input.with_parts(shared, input.region, box)
