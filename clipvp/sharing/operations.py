"""How many floating-point operations a call takes, forward and backward."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils.flop_counter import flop_registry


class _Counter(TorchDispatchMode):
    # torch's own FlopCounterMode asks the inputs of all modules for their gradient's node, which puts whole maps
    # together.
    def __init__(self):
        super().__init__()
        self.total = 0

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        result = func(*args, **(kwargs or {}))
        count = flop_registry.get(func._overloadpacket)
        if count is not None:
            self.total += count(*args, **(kwargs or {}), out_val=result)
        return result


def count_operations(run: Callable[[], Any]) -> int:
    """Return the operations of a call, a multiplication and an addition counted as two."""
    with _Counter() as counter:
        run()
    return counter.total
