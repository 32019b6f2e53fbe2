"""What an operator that slides a window over the map reaches: sizes and boxes, no tensors but divisors."""

from __future__ import annotations

from math import ceil
from typing import NamedTuple

import torch
from torch import Tensor

from .window import Box

HeightWidth = int | tuple[int, int]
"""One number for height and width, or one for each, as operators accept them."""


def height_width(value: HeightWidth) -> tuple[int, int]:
    return (value, value) if isinstance(value, int) else (value[0], value[-1])


class Slide(NamedTuple):
    """How an operator slides its window; each as (height, width).

    Args:
        kernel, stride, dilation: The operator's.
        before, after: The padding before the first and after the last row and column.
        ceil_mode: As poolings have it.
    """

    kernel: tuple[int, int]
    stride: tuple[int, int]
    before: tuple[int, int]
    after: tuple[int, int]
    dilation: tuple[int, int] = (1, 1)
    ceil_mode: bool = False

    @classmethod
    def of(
        cls,
        kernel: HeightWidth,
        stride: HeightWidth,
        padding: HeightWidth | str,
        dilation: HeightWidth = 1,
        ceil_mode: bool = False,
    ) -> Slide:
        """Return the slide of an operator's arguments."""
        kernel, dilation = height_width(kernel), height_width(dilation)
        if isinstance(padding, str):
            reach = [d * (k - 1) if padding == "same" else 0 for k, d in zip(kernel, dilation, strict=True)]
            before, after = [side // 2 for side in reach], [side - side // 2 for side in reach]
        else:
            before = after = height_width(padding)
        return cls(kernel, height_width(stride), tuple(before), tuple(after), dilation, ceil_mode)

    def output_size(self, size: tuple[int, int]) -> tuple[int, int]:
        """Return height and width of the output for a map of ``size``."""
        sizes = []
        for i in (0, 1):
            last = size[i] + self.before[i] + self.after[i] - self._reach(i) - 1
            count = (ceil(last / self.stride[i]) if self.ceil_mode else last // self.stride[i]) + 1
            if self.ceil_mode and (count - 1) * self.stride[i] >= size[i] + self.before[i]:
                count -= 1  # the last window would begin after the map
            sizes.append(count)
        return sizes[0], sizes[1]

    def grow(self, box: Box, size_out: tuple[int, int]) -> Box:
        """Return the smallest box that contains every output that depends on ``box``, at least one pixel."""
        (top, bottom), (left, right) = (
            self._grow_interval(box[i], box[i + 2], size_out[i], i) for i in (0, 1)
        )
        return top, left, bottom, right

    def shrink(self, core: Box, size_in: tuple[int, int], size_out: tuple[int, int]) -> Box:
        """Return a box of outputs that read nothing of the map but ``core``; it may have no area."""
        ends = []
        for i in (0, 1):
            low, high = core[i], core[i + 2]
            # Beyond an edge of the map there is padding, the same for all images.
            first = ceil((low + self.before[i]) / self.stride[i]) if low > 0 else 0
            last = size_out[i] - 1
            if high < size_in[i]:
                last = min(last, (high - 1 - self._reach(i) + self.before[i]) // self.stride[i])
            ends.append((first, max(first, last + 1)))
        (top, bottom), (left, right) = ends
        return top, left, bottom, right

    def window(self, box: Box) -> Box:
        """Return the window of the input, maybe over its edges, from which the operator without padding computes
        exactly ``box`` of its output."""
        (top, bottom), (left, right) = (
            (
                box[i] * self.stride[i] - self.before[i],
                (box[i + 2] - 1) * self.stride[i] - self.before[i] + self._reach(i) + 1,
            )
            for i in (0, 1)
        )
        return top, left, bottom, right

    def _reach(self, axis: int) -> int:
        return self.dilation[axis] * (self.kernel[axis] - 1)

    def _grow_interval(self, low: int, high: int, size_out: int, axis: int) -> tuple[int, int]:
        def depends(index: int) -> bool:
            start = index * self.stride[axis] - self.before[axis]
            taps = (start + self.dilation[axis] * step for step in range(self.kernel[axis]))
            return any(low <= tap < high for tap in taps)

        first = max(0, ceil((low + self.before[axis] - self._reach(axis)) / self.stride[axis]))
        last = min(size_out - 1, (high - 1 + self.before[axis]) // self.stride[axis])
        while first <= last and not depends(first):
            first += 1
        while first <= last and not depends(last):
            last -= 1
        if first > last:
            # Stride or dilation skips the box. A map in parts needs a box of at least one pixel.
            first = last = min(first, size_out - 1)
        return first, last + 1

    def pooling_divisors(
        self, box: Box, size_in: tuple[int, int], count_padding: bool, device
    ) -> Tensor | None:
        """Return the numbers by which average pooling divides its sums inside ``box`` of its output.

        Returns:
            (height, width) numbers of pixels: the kernel's, or fewer if the kernel extends over the edge of the
            pixels that count; None if all are the kernel's.
        """
        counts, all_full, window = [], True, self.window(box)
        for i in (0, 1):
            margin = self.before[i] if count_padding else 0
            low, high = -margin, size_in[i] + margin
            first, end = window[i], window[i + 2]
            all_full = all_full and low <= first and end <= high
            start = torch.arange(first, end - self.kernel[i] + 1, self.stride[i], device=device)
            counts.append((start + self.kernel[i]).clamp(max=high) - start.clamp(min=low))
        return None if all_full else counts[0][:, None] * counts[1]
