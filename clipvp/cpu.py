"""How this process computes on a CPU: settings that change its speed and no result that anyone looks at."""

from __future__ import annotations

import ctypes
import sys

import torch

# Parameters of mallopt, as malloc.h of the GNU C library numbers them, and what they are where nobody sets them: the
# threshold is what it rises to by itself in a process that works with large maps.
_TRIM_THRESHOLD, _TRIM_DEFAULT, _TRIM_LARGE = -1, 64 << 20, (1 << 31) - 1
_MMAP_THRESHOLD, _MMAP_LARGE = -3, 32 << 20
_MMAP_MAX, _MMAP_MAX_DEFAULT = -4, 65536


def prepare_cpu() -> None:
    """Compute without denormal numbers, which slow an EfficientNet by several times and carry nothing, and keep
    freed memory. Threads that compute already do not follow the first."""
    torch.set_flush_denormal(True)
    keep_freed_memory()


def keep_freed_memory(keep: bool = True) -> None:
    """Keep the memory of a freed map for the next one, or give it back to the system as by default; for the process.

    By default every map of 32 MiB and more is taken from the system page by page, zeroed there, and given back: more
    than half of the time of a pass over 64 images in EfficientNet-Lite0. Of what is free at the end of the heap 2 GiB
    are kept. Kept memory is reused less tightly: the peak of a step rises by up to a quarter. Nothing happens where
    the C library is not GNU's.
    """
    mallopt = getattr(ctypes.CDLL(None), "mallopt", None) if sys.platform == "linux" else None
    if mallopt is None:
        return
    mallopt(_MMAP_MAX, 0 if keep else _MMAP_MAX_DEFAULT)
    mallopt(_MMAP_THRESHOLD, _MMAP_LARGE)
    mallopt(_TRIM_THRESHOLD, _TRIM_LARGE if keep else _TRIM_DEFAULT)
