"""What many processes do together: fail together, and build what they share once."""

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
def together(accelerator: Accelerator) -> Iterator[None]:
    """What fails on one process fails on all, so that none waits for one that has left; every process must enter it.

    Raises:
        UserError: Another process failed; the line is that process's.
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
    """Return what ``act`` returns; the main process does it first, then one process of each machine, then the rest.

    What the first leaves in a cache, the others find there.
    """
    turn = 0 if accelerator.is_main_process else 1 if accelerator.is_local_main_process else 2
    for now in range(3):
        with together(accelerator):
            if now == turn:
                result = act()
    return result
