"""One pass of maps in two parts through a network: when they stay in two parts, and what is remembered."""

from __future__ import annotations

import inspect
from collections.abc import Callable
from typing import Any, NoReturn

import torch
from torch import Tensor

from .pair import Axes, Pair
from .window import Box, area


class Run:
    """What the pairs of one pass have in common.

    Args:
        rules: Operator to rule, see ``rules.py``.
        limit: See ``PairNetwork``.
        tape: What is known of the shared maps from earlier passes; None: every pass works on them anew.
        differentiable: Whether gradients are to reach the parts.

    Attributes:
        reason: Why the pass was given up, if it was.
    """

    def __init__(
        self, rules: dict[Callable, Callable], limit: float, tape: Tape | None, differentiable: bool
    ):
        self.rules = rules
        self.limit = limit
        self.tape = tape
        self.differentiable = differentiable
        self.reason: str | None = None

    def pair(self, shared: Tensor, region: Tensor, box: Box, axes: Axes = (2, 3)) -> Tensor:
        """Return the two parts as a pair, or put together where the box fills the map."""
        pair = Pair(self, shared, region, box, axes)
        return pair.whole if self.fills(box, pair.canvas, region.shape[0]) else pair

    def fills(self, box: Box, canvas: tuple[int, int], batch: int) -> bool:
        """Whether a box takes up so much of a map that a pair no longer pays."""
        share = area(box) / (canvas[0] * canvas[1])
        images_on_shared = 0 if self.tape else 1
        return share == 1 or images_on_shared + share * batch > self.limit * batch

    def apply_rule(self, operator: Callable, args: tuple, kwargs: dict) -> Any:
        """Return what the operator's rule returns; ``NotImplemented`` where there is none."""
        rule = self.rules.get(operator)
        if rule is None:
            return NotImplemented
        try:
            return rule(self, operator, *args, **kwargs)
        except TypeError:
            # Operators take their arguments in more ways than rules do.
            if _takes(rule, self, operator, *args, **kwargs):
                raise
            return NotImplemented

    def on_shared(self, operator: Callable, *args: Any, **kwargs: Any) -> Any:
        """Return ``operator(*args, **kwargs)``, on shared maps, from the tape where it is there."""
        return self.tape.play(operator, args, kwargs) if self.tape else operator(*args, **kwargs)

    def give_up(self, reason: str) -> NoReturn:
        """End the pass: in this network pairs cannot stand for whole maps."""
        self.reason = reason
        raise RuntimeError(reason)


class Tape:
    """The operators on shared maps, in the order of a pass, and what they returned.

    A result serves again only where the operator and all its arguments are the very same, tensors by
    identity. So a tape may be of no use, as with weights that are made anew in every pass, but it is never
    wrong.
    """

    def __init__(self):
        self._entries: list[tuple[tuple, Any]] = []
        self._position = 0
        self._autocast: torch.dtype | None = None

    def rewind(self, device_type: str) -> None:
        """Begin a pass; under another autocast than the last one's, with nothing on the tape."""
        autocast = None
        if torch.amp.is_autocast_available(device_type) and torch.is_autocast_enabled(device_type):
            autocast = torch.get_autocast_dtype(device_type)
        if autocast != self._autocast:
            self._entries.clear()
        self._position, self._autocast = 0, autocast

    def play(self, operator: Callable, args: tuple, kwargs: dict) -> Any:
        """Return what the operator returned in the last pass, or else what it returns now."""
        call = (operator, args, kwargs)
        if self._position == len(self._entries) or not _same(call, self._entries[self._position][0]):
            with torch.no_grad():
                result = operator(*args, **kwargs)
            self._entries[self._position :] = [(call, result)]
        self._position += 1
        return self._entries[self._position - 1][1]


def _takes(function: Callable, *args: Any, **kwargs: Any) -> bool:
    try:
        inspect.signature(function).bind(*args, **kwargs)
    except TypeError:
        return False
    return True


def _same(one: Any, other: Any) -> bool:
    if isinstance(one, Tensor) or isinstance(other, Tensor):
        return one is other
    if isinstance(one, (list, tuple)) and isinstance(other, (list, tuple)):
        return len(one) == len(other) and all(map(_same, one, other))
    if isinstance(one, dict) and isinstance(other, dict):
        return one.keys() == other.keys() and all(_same(value, other[key]) for key, value in one.items())
    return type(one) is type(other) and one == other
