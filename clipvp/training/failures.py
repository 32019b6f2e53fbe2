"""Which errors end one run of many, while the others are worth having."""

from __future__ import annotations

from traceback import clear_frames

import torch

from ..registry import UserError

_CPU = "DefaultCPUAllocator"  # torch raises a plain RuntimeError where the CPU's memory is short


def why_failed(error: Exception) -> str | None:
    """Return one line that says why a run failed, or None where the error is a defect and must be raised.

    A run fails by what the user gave, or by a lack of memory on the device or the machine. Then what the run held,
    which the error still refers to, is freed for the next one.
    """
    if isinstance(error, UserError):
        return str(error)
    on_cpu = isinstance(error, RuntimeError) and _CPU in str(error)
    if not (on_cpu or isinstance(error, (MemoryError, torch.cuda.OutOfMemoryError))):
        return None
    clear_frames(error.__traceback__)
    reason = " ".join(str(error).split()) or type(error).__name__
    return f"out of memory; a smaller train.batch_size or source.canvas needs less ({reason[:200]})"
