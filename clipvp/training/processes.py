"""Work that all processes share: failing together, and building a shared result once."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import TypeVar

import torch
from accelerate import Accelerator
from accelerate.utils import gather_object

from ..registry import UserError

Result = TypeVar("Result")


@contextmanager
def fail_together(accelerator: Accelerator) -> Iterator[None]:
    """Raise on all processes when one fails, so that none waits for it; every process must enter this context.

    Raises:
        UserError: Another process failed; the message is that process's.
    """
    error = None
    try:
        yield
    except Exception as raised:
        error = raised
    if accelerator.num_processes > 1:
        failed = torch.tensor([error is not None], device=accelerator.device).int()
        if accelerator.reduce(failed, "sum").item():
            lines = gather_object([str(error) if error else None])
            if error is None:
                rank = next(rank for rank, line in enumerate(lines) if line is not None)
                raise UserError(f"process {rank} failed: {lines[rank]}")
    if error is not None:
        raise error


def main_first(accelerator: Accelerator, act: Callable[[], Result]) -> Result:
    """Return what ``act`` returns; the main process runs it first, then one process of each machine, then the others.

    So the later ones find in a cache what the first ones wrote.
    """
    turn = 0 if accelerator.is_main_process else 1 if accelerator.is_local_main_process else 2
    for now in range(3):
        with fail_together(accelerator):
            if now == turn:
                result = act()
    return result
