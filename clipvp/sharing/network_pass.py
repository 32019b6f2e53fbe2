"""One pass through a network on maps in parts, and the results on shared maps that are kept between passes.

This module is independent of ``SplitMap`` and of the rules, which it is given as a table.
"""

from __future__ import annotations

import inspect
from collections.abc import Callable
from typing import Any, NamedTuple, NoReturn

import torch
from torch import Tensor

from .core_tape import CoreTape
from .window import Layout, area


class Limits(NamedTuple):
    """Shares of a map, 0 to 1, from which on parts are joined.

    Args:
        box: The largest box, without a core, that keeps an outer part which all images share; this part counts as one
            more image. The time of a step hardly changes between 0.55 and 1 (ResNet-18 and EfficientNet-Lite0, on a
            CPU).
        box_with_core: The same where there is a core.
        box_per_image: The same where each image has an outer part of its own.
        core: The smallest core that is kept apart.
        side: In pixels, the smallest map with a core: convolutions of narrow strips of smaller ones save no time.
    """

    box: float = 0.7
    box_with_core: float = 0.9
    box_per_image: float = 0.4
    core: float = 0.3
    side: int = 20


class NetworkPass:
    """The settings and the state that all maps in parts of one pass have in common.

    Args:
        rules: Operator to rule, see ``rules.py``.
        limits: When parts are joined.
        batch: Images in the pass.
        cache: The results on shared maps from earlier passes; None to compute them in every pass.
        differentiable: Whether the parts get gradients.
        tape: Of the core; None to compute it.

    Attributes:
        reason: Why the pass was given up; None if it was not.
    """

    def __init__(
        self,
        rules: dict[Callable, Callable],
        limits: Limits,
        batch: int,
        cache: ResultCache | None,
        differentiable: bool,
        tape: CoreTape | None = None,
    ):
        self.rules, self.limits, self.batch, self.tape = rules, limits, batch, tape
        self.cache = cache
        self.differentiable = differentiable
        self.reason: str | None = None

    def settle(self, layout: Layout, per_image: bool = False) -> Layout:
        """Return the layout without the parts that are too small to save time.

        Args:
            layout: Of a map.
            per_image: Whether each image has an outer part of its own.
        """
        whole = area(layout.whole)
        if layout.core == layout.whole:  # the prompt acts nowhere
            return layout.with_core(None)
        least = self.limits.core if self.tape is None else self.tape.share
        if area(layout.core) < least * whole or min(layout.canvas) < self.limits.side:
            layout = layout.with_core(None)
        share = area(layout.box) / whole
        if per_image:
            too_large = share > self.limits.box_per_image
        elif layout.core is None and self.tape is not None:
            too_large = share > self.limits.box  # a tape is read in the same order whatever the batch
        elif layout.core is None:
            too_large = (0 if self.cache else 1) + share * self.batch > self.limits.box * self.batch
        else:
            too_large = share > self.limits.box_with_core
        return layout.without_outer() if too_large else layout

    def apply_rule(self, operator: Callable, args: tuple, kwargs: dict) -> Any:
        """Return the result of the operator's rule; ``NotImplemented`` if there is no rule for this call."""
        rule = self.rules.get(operator)
        if rule is None:
            return NotImplemented
        try:
            return rule(operator, *args, **kwargs)
        except TypeError:
            # Operators accept more combinations of arguments than rules do.
            if _accepts(rule, operator, *args, **kwargs):
                raise
            return NotImplemented

    def on_outer(self, operator: Callable, *args: Any, **kwargs: Any) -> Any:
        """Return ``operator(*args, **kwargs)`` on outer parts, from the cache if it is there."""
        return self.cache.call(operator, args, kwargs) if self.cache else operator(*args, **kwargs)

    def on_core(self, function: Callable, *args: Any) -> Any:
        """Return what a function gives of the core; a core without values while a tape is played."""
        return function(*args) if self.tape is None else self.tape.compute(function, args)

    def give_up(self, reason: str) -> NoReturn:
        """End the pass: the network does something that is not exact on parts."""
        self.reason = reason
        raise RuntimeError(reason)


class ResultCache:
    """The operators called on shared maps, in the order of a pass, and their results.

    A result is reused only if the operator and all its arguments are the same; tensors must be the same objects.
    So the cache may save nothing, as with weights that are computed in every pass, but it never returns a
    wrong result.
    """

    def __init__(self):
        self._entries: list[tuple[tuple, Any]] = []
        self._position = 0
        self._autocast: torch.dtype | None = None

    def start_pass(self, device_type: str) -> None:
        """Start at the first operator again; forget all results if the autocast dtype changed."""
        autocast = None
        if torch.amp.is_autocast_available(device_type) and torch.is_autocast_enabled(device_type):
            autocast = torch.get_autocast_dtype(device_type)
        if autocast != self._autocast:
            self._entries.clear()
        self._position, self._autocast = 0, autocast

    def call(self, operator: Callable, args: tuple, kwargs: dict) -> Any:
        """Return the operator's result from the last pass if the call is the same, else compute it."""
        call = (operator, args, kwargs)
        if self._position == len(self._entries) or not _same(call, self._entries[self._position][0]):
            with torch.no_grad():
                result = operator(*args, **kwargs)
            self._entries[self._position :] = [(call, result)]
        self._position += 1
        return self._entries[self._position - 1][1]


def _accepts(function: Callable, *args: Any, **kwargs: Any) -> bool:
    """Return whether a function can be called with these arguments."""
    try:
        inspect.signature(function).bind(*args, **kwargs)
    except TypeError:
        return False
    return True


def _same(one: Any, other: Any) -> bool:
    """Return whether two arguments are the same: tensors by identity, numbers and the like by type and value."""
    if isinstance(one, Tensor) or isinstance(other, Tensor):
        return one is other
    if isinstance(one, (list, tuple)) and isinstance(other, (list, tuple)):
        return len(one) == len(other) and all(map(_same, one, other))
    if isinstance(one, dict) and isinstance(other, dict):
        return one.keys() == other.keys() and all(_same(value, other[key]) for key, value in one.items())
    return type(one) is type(other) and one == other
