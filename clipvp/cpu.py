"""Settings of the process: how it computes on a CPU, and what importing a library must not change."""

from __future__ import annotations

import ctypes
import os
import platform
import sys
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from types import ModuleType

# Parameters of mallopt with the numbers of the GNU C library's malloc.h, and their defaults. The default of the trim
# threshold is the value that it reaches by itself in a process that works with large maps.
_TRIM_THRESHOLD, _TRIM_DEFAULT, _TRIM_LARGE = -1, 64 << 20, (1 << 31) - 1
_MMAP_THRESHOLD, _MMAP_LARGE = -3, 32 << 20
_MMAP_MAX, _MMAP_MAX_DEFAULT = -4, 65536


def prepare_cpu() -> None:
    """Make this process compute fast on a CPU: denormal numbers become 0, and freed memory is kept.

    Denormal numbers slow an EfficientNet down by several times and do not matter for the result. Threads that already
    compute keep them.
    """
    import torch

    torch.set_flush_denormal(True)
    keep_freed_memory()


def processor_name() -> str:
    """Return the name of the processor, as the system gives it; empty if it gives none."""
    with suppress(OSError):
        for line in Path("/proc/cpuinfo").read_text(errors="replace").splitlines():
            if line.startswith("model name"):
                return line.partition(":")[2].strip()
    return platform.processor()


def keep_freed_memory(keep: bool = True) -> None:
    """Make this process keep the memory of a freed map for the next one, or return it to the system (the default).

    By default every map of 32 MiB and more is taken from the system page by page, zeroed by it, and returned: more
    than half of the time of a pass over 64 images in EfficientNet-Lite0. Up to 2 GiB of free memory at the end of the
    heap are kept. Kept memory is reused less compactly: the peak of a step rises by up to a quarter. Has no effect
    with other C libraries than GNU's.
    """
    mallopt = getattr(ctypes.CDLL(None), "mallopt", None) if sys.platform == "linux" else None
    if mallopt is None:
        return
    mallopt(_MMAP_MAX, 0 if keep else _MMAP_MAX_DEFAULT)
    mallopt(_MMAP_THRESHOLD, _MMAP_LARGE)
    mallopt(_TRIM_THRESHOLD, _TRIM_LARGE if keep else _TRIM_DEFAULT)


@contextmanager
def float32_default() -> Iterator[None]:
    """Context manager and decorator: inside, new tensors are float32, whatever ``torch.set_default_dtype`` has set."""
    import torch

    before = torch.get_default_dtype()
    torch.set_default_dtype(torch.float32)
    try:
        yield
    finally:
        torch.set_default_dtype(before)


def import_open_clip() -> ModuleType:
    """Return the module ``open_clip``, without the change to TOKENIZERS_PARALLELISM that its first import makes."""
    name = "TOKENIZERS_PARALLELISM"
    before = os.environ.get(name)
    import open_clip

    if before is None:
        os.environ.pop(name, None)
    else:
        os.environ[name] = before
    return open_clip
