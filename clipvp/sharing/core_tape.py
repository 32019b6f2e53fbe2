"""The pixels of the core that a pass reads, in the order of the pass: recorded once, then given back.

What the ring needs of the core is a rim at each layer, and the rest where the core is joined. A pass that has these
pixels computes nothing in the core. They do not depend on the prompt, so that they are the same in every pass over an
image.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any, NamedTuple

import torch
from torch import Tensor

from .window import Box, view_of


class Read(NamedTuple):
    """A box of the core that a pass reads: channels, height, width, and the type of its numbers."""

    channels: int
    height: int
    width: int
    dtype: torch.dtype

    @property
    def count(self) -> int:
        return self.channels * self.height * self.width


def dtype_of(plan: tuple[Read, ...]) -> torch.dtype:
    """Return the type in which all reads are kept: float64 where one of them is, else float32."""
    return torch.float64 if any(read.dtype == torch.float64 for read in plan) else torch.float32


class TapeMismatch(RuntimeError):
    """A pass reads the core otherwise than the one that was recorded."""


class CoreTape:
    """What passes over a batch read of the core.

    Args:
        share: The smallest core, as a share of its map, that is kept apart; it decides at which depth the core is
            joined.
        plan: The reads of a pass; None to record them.
        values: (B, N), what they read; None to record it.
    """

    def __init__(self, share: float, plan: tuple[Read, ...] | None = None, values: Tensor | None = None):
        self.share, self.plan, self.values = share, plan, values
        self._reads: list[Tensor] = []
        self._place = self._offset = 0
        self._paused = False

    @property
    def records(self) -> bool:
        return self.values is None

    def start_pass(self) -> None:
        self._reads, self._place, self._offset = [], 0, 0

    def end_pass(self) -> None:
        """Raise ``TapeMismatch`` if the pass did not read all there is."""
        if not self.records and self._place != len(self.plan):
            raise TapeMismatch(f"{self._place} reads of the core in the place of {len(self.plan)}")

    def compute(self, function: Callable, args: tuple) -> Any:
        """Return what a function gives of the core: computed while recording, else a core without values."""
        if not self.records:
            return TapedCore(self, None)
        with self._pause():
            found = function(*_plain(args))
        if isinstance(found, Tensor):
            return TapedCore(self, found)
        return tuple(TapedCore(self, each) for each in found)

    def read(self, values: Tensor | None, height: int, width: int) -> Tensor:
        """Return a box of a core, (B, C, height, width): its ``values`` while recording, else the next of the tape."""
        if self._paused:
            return values
        if self.records:
            self._reads.append(values)
            return values
        read = self.plan[self._place] if self._place < len(self.plan) else None
        if read is None or (read.height, read.width) != (height, width):
            raise TapeMismatch(f"a read of the core of {height}x{width} in the place of {read}")
        part = self.values[:, self._offset : self._offset + read.count]
        self._place, self._offset = self._place + 1, self._offset + read.count
        part = part.unflatten(1, (height, width, read.channels)).permute(0, 3, 1, 2)
        return part.to(read.dtype)

    def recorded(self) -> tuple[tuple[Read, ...], Tensor]:
        """Return the plan and the values (B, N) of the pass that was recorded: float32, or float64 as the pass."""
        plan = tuple(Read(*each.shape[1:], each.dtype) for each in self._reads)
        rows = [each.permute(0, 2, 3, 1).flatten(1).to(dtype_of(plan)) for each in self._reads]
        return plan, torch.cat(rows, 1) if rows else torch.zeros(0, 0)

    @contextmanager
    def _pause(self) -> Iterator[None]:
        self._paused = True
        try:
            yield
        finally:
            self._paused = False


class TapedCore:
    """A core in the place of a tensor: its values while a tape records, none while it is played."""

    def __init__(self, tape: CoreTape, values: Tensor | None):
        self.tape, self.values = tape, values

    def permute(self, order: tuple[int, ...]) -> TapedCore:
        return TapedCore(self.tape, None if self.values is None else self.values.permute(order))


def read_core(core: Tensor | TapedCore, box: Box, origin: tuple[int, int]) -> Tensor:
    """Return the pixels (B, C, h, w) of a core inside ``box``; its first pixel is at ``origin``."""
    if not isinstance(core, TapedCore):
        return view_of(core, box, origin)
    values = None if core.values is None else view_of(core.values, box, origin)
    return core.tape.read(values, box[2] - box[0], box[3] - box[1])


def crop_core(core: Tensor | TapedCore, box: Box, origin: tuple[int, int]) -> Tensor | TapedCore:
    """Return a smaller core, without reading it."""
    if not isinstance(core, TapedCore):
        return view_of(core, box, origin)
    return TapedCore(core.tape, None if core.values is None else view_of(core.values, box, origin))


def _plain(value: Any) -> Any:
    if isinstance(value, TapedCore):
        return value.values
    return type(value)(map(_plain, value)) if type(value) in (list, tuple) else value
