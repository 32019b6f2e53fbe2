"""A feature map as a pair: one map that all images share and, inside a box, a region for each image.

To the network that works on it a pair is a tensor (B, C, H, W). Operators with a rule work on the two parts;
every other operator gets the whole map, put together. This room knows no operator; ``rules.py`` does.
"""

from __future__ import annotations

import weakref
from collections.abc import Iterator
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor

from .window import Box, look

if TYPE_CHECKING:
    from .run import Run

Axes = tuple[int, int]

# What can be answered without a single pixel of the map.
_QUESTIONS = {
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
_QUESTIONS |= {
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
_QUESTIONS |= {torch.is_floating_point, torch.is_complex, torch.numel}


class Pair(Tensor):
    """A map (B, C, H, W), or (B, H, W, C), in two parts.

    Args:
        run: The pass through the network that the pair belongs to.
        shared: (1, C, H, W), what all images have outside the box. Inside it is finite and means nothing.
        region: (B, C, h, w), what each image has inside the box.
        box: Where the region lies in the map.
        axes: The axes of height and width: (2, 3), or (1, 2) when channels come last.

    Attributes:
        kin: The pairs that show this memory: itself, and what ``permute`` and the like made of it.
        settled: A plain tensor shows the memory of the whole map, which from then on is the map.
    """

    @staticmethod
    def __new__(cls, run: Run, shared: Tensor, region: Tensor, box: Box, axes: Axes = (2, 3)):
        shape = (region.shape[0], *shared.shape[1:])
        strides = (shared.numel(), *shared.stride()[1:])
        return Tensor._make_wrapper_subclass(cls, shape, strides, dtype=region.dtype, device=region.device)

    def __init__(self, run: Run, shared: Tensor, region: Tensor, box: Box, axes: Axes = (2, 3)):
        self.run, self.axes = run, axes
        self.shared, self.region, self.box = shared, region, box
        self.kin = [weakref.ref(self)]
        self.settled = False
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
            self._whole = self.look((0, 0, *self.canvas))
        return self._whole

    def look(self, window: Box, fill: float = 0.0) -> Tensor:
        """Return what the map shows inside a window, which may reach over its edges."""
        if self.channel_axis == 1:
            return look(self.shared, self.region, self.box, window, fill)
        shared, region = self.shared.permute(0, 3, 1, 2), self.region.permute(0, 3, 1, 2)
        return look(shared, region, self.box, window, fill).permute(0, 2, 3, 1)

    @property
    def viewed(self) -> bool:
        """Whether another pair that is still in use shows the same memory."""
        return sum(pair() is not None for pair in self.kin) > 1

    def note_view_of(self, other: Pair) -> None:
        """Note that this pair shows the memory of another."""
        other.kin += self.kin
        self.kin = other.kin

    def become(self, other: Pair) -> Pair:
        """Take over the parts of another pair: what an operator in place does to its operand."""
        if self.viewed:
            self.run.give_up("an operator works in place on a map that has a view")
        self.shared, self.region, self.box, self._whole = other.shared, other.region, other.box, None
        return self

    @classmethod
    def __torch_function__(cls, func, types, args=(), kwargs=None):
        kwargs = kwargs or {}
        if func in _QUESTIONS:
            with torch._C.DisableTorchFunctionSubclass():
                return func(*args, **kwargs)
        pairs = list(_find((args, kwargs), Pair))
        run = pairs[0].run
        if func == Tensor.requires_grad.__get__:
            return run.differentiable
        if run.differentiable and not torch.is_grad_enabled():
            # Inside a torch.autograd.Function the parts would lose their gradient without a word.
            run.give_up(f"{_name(func)} runs without gradients inside the network")
        if not any(pair.settled for pair in pairs):
            result = run.apply_rule(func, args, kwargs)
            if result is not NotImplemented:
                return result
        args, kwargs = _put_together((args, kwargs))
        result = func(*args, **kwargs)
        for pair in pairs:
            if any(same_memory(pair.whole, tensor) for tensor in _find(result, Tensor)):
                if pair.viewed:
                    run.give_up(f"{_name(func)} makes a view of a map that has one already")
                # What is done in place to the result is done to the map, and the parts could not follow.
                pair.settled = True
        return result

    @classmethod
    def __torch_dispatch__(cls, func, types, args=(), kwargs=None):
        # Reached only from code that Python does not see, below autograd: too late to work on the parts.
        next(_find((args, kwargs or {}), Pair)).run.give_up(f"{_name(func)} runs outside Python")


def same_memory(one: Tensor, other: Tensor) -> bool:
    """Whether two plain tensors are views of the same memory."""
    return one.untyped_storage().data_ptr() == other.untyped_storage().data_ptr() != 0


def _find(value: Any, kind: type) -> Iterator[Any]:
    if isinstance(value, kind):
        yield value
    elif isinstance(value, (list, tuple)):
        for item in value:
            yield from _find(item, kind)
    elif isinstance(value, dict):
        for item in value.values():
            yield from _find(item, kind)


def _put_together(value: Any) -> Any:
    if isinstance(value, Pair):
        return value.whole
    if type(value) in (list, tuple):
        return type(value)(_put_together(item) for item in value)
    if type(value) is dict:
        return {key: _put_together(item) for key, item in value.items()}
    return value


def _name(func: Any) -> str:
    return getattr(func, "__name__", str(func))
